"""Say whether a peer would accept a certificate, in the words and codes that it would use."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from msgspec import Struct

from secure_dagu.errors import ConfigError
from secure_dagu.link import judgement, material
from secure_dagu.pki.authority import trust_domain_of
from secure_dagu.pki.facts import facts_of, read_certificates
from secure_dagu.pki.ledger import Ledger, Status
from secure_dagu.security.mapping import Rule
from secure_dagu.security.verdict import FAULTS, Reason, Side

Purpose = Literal["client", "server"]


class Verified(Struct, frozen=True, kw_only=True):
    """The verdict on one certificate."""

    purpose: Purpose
    accepted: bool
    code: str = ""
    """`verdict.Reason` of the refusal."""
    detail: str = ""
    why: str = ""
    fix: str = ""
    identity: str = ""
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def verify(
    file: Path,
    ca: Path,
    *,
    at: datetime,
    purpose: Purpose | None = None,
    host: str | None = None,
    rules: Sequence[Rule] = (),
    ledger: Ledger | None = None,
) -> Verified:
    """Judge the first certificate of `file`, with the others as its chain, by the CAs in `ca`.

    Args:
        at: aware UTC: when it is presented.
        purpose: what it is presented as; None: what it is for.
        host: the dialled name, for a server.
        rules: by which certificates name their holders.
        ledger: of the CA, where it is on this host: a certificate that is revoked there is refused, and one that the
            CA signed and that is not there was signed outside the tool (threat T18).

    Raises:
        ConfigError: a file cannot be read, or a CA certificate is given where an end certificate is wanted.
    """
    presented = read_certificates(file)
    facts = facts_of(presented[0])
    if facts.is_ca:
        raise ConfigError(
            f"{file} begins with a CA certificate",
            why="peers present an end certificate, with its chain below it",
            fix="`secure-dagu pki lint FILE` looks at CA certificates",
        )
    purpose = purpose or ("server" if facts.usage == ("server",) or host is not None else "client")
    trusted = material.read_trust(ca)
    side = Side.SERVER if purpose == "client" else Side.CLIENT
    domain = "" if rules else _domain(trusted)
    judged = judgement.judge(presented, trusted, side=side, host=host, rules=rules, trust_domain=domain, at=at)
    if isinstance(judged, judgement.Objection):
        return _refused(purpose, side, judged.reason, judged.detail)
    entry = ledger.find(presented[0].serial_number) if ledger is not None else None
    if entry is not None and entry.status is Status.REVOKED:
        reason = Reason.CERT_REVOKED if side is Side.SERVER else Reason.SERVER_REVOKED
        return _refused(purpose, side, reason, f"on {entry.status_at}{entry.reason and f': {entry.reason}'}")
    warnings = []
    if ledger is not None and entry is None and _is_ours(presented, ledger, trusted):
        warnings.append(
            "the CA here signed it, and its ledger does not know it: somebody used the CA's key outside `secure-dagu "
            "pki`. Find out who, and rotate the CA."
        )
    if entry is not None and entry.status is Status.SUPERSEDED:
        warnings.append(f"there is a newer one for {entry.role}/{entry.name}, since {entry.status_at}")
    return Verified(
        purpose=purpose,
        accepted=True,
        identity=judged.identity.uri,
        labels=tuple(str(judged.grants).split(",")) if judged.grants else (),
        warnings=tuple(warnings),
    )


def _refused(purpose: Purpose, side: Side, reason: Reason, detail: str) -> Verified:
    words = FAULTS[reason].words(side)
    return Verified(purpose=purpose, accepted=False, code=reason.value, detail=detail, why=words.why, fix=words.fix)


def _domain(trusted: Sequence[x509.Certificate]) -> str:
    """Return the trust domain of our CA, which is that of its peers; empty for other CAs."""
    try:
        return trust_domain_of(trusted[0])
    except ValueError:
        return ""


def _is_ours(presented: Sequence[x509.Certificate], ledger: Ledger, trusted: Sequence[x509.Certificate]) -> bool:
    """Tell whether the issuer of a certificate is one that this ledger speaks for."""
    signers = {entry.issuer for entry in ledger.entries()}
    return any(
        facts_of(one).fingerprint in signers and one.subject == presented[0].issuer
        for one in (*presented[1:], *trusted)
    )
