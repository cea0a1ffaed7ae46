"""Read the certificate that `secure-dagu policy explain` asks about: from a file, the standard place, or the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from msgspec import Struct

from secure_dagu.config.load import Loaded
from secure_dagu.errors import ConfigError
from secure_dagu.link import crl, material
from secure_dagu.pki import directory
from secure_dagu.pki.facts import read_certificates
from secure_dagu.pki.ledger import LedgerEntry, Status
from secure_dagu.security.admission import Deny, DenyReason
from secure_dagu.security.identity import parse_identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.revocation import Standing, deny


class Subject(Struct, frozen=True, kw_only=True):
    """The certificate that is asked about, as a coordinator would see it."""

    peer: Peer
    source: str
    """Where it was read: a file, or `the ledger`."""
    standing: Deny | None
    """Why it is refused whatever it asks; None when it is not."""


def subject_of(loaded: Loaded, word: str, now: datetime) -> Subject:
    """Return the certificate that a word means: a PEM file, a name in the standard place, or a name in the ledger.

    Raises:
        ConfigError: none of them.
        InvalidRequest: the certificate cannot be read, or names nobody.
    """
    pki = loaded.home.pki_dir
    entry = None if "/" in word else _in_ledger(pki, word)
    path = Path(word)
    if not path.is_file():
        path = pki / f"{word}.crt"
    if not path.is_file():
        if entry is None:
            raise ConfigError(
                f"there is no certificate {word!r}",
                why=f"it is no file, not in {pki}, and the ledger there has no such name",
                fix="name a PEM file, or run this on the host of the CA",
            )
        return Subject(peer=_of_entry(entry), source="the ledger", standing=_revoked(_of_entry(entry), entry))
    certificate = read_certificates(path)[0]
    holder = material.holder_of(certificate, material.names_of(certificate), loaded.settings.peer.identity_rules)
    issuers, standing = _judged(loaded, certificate, now)
    peer = Peer(
        connection="", address=str(path), identity=holder.identity, grants=holder.grants, issuers=issuers,
        serial=certificate.serial_number, not_after=certificate.not_valid_after_utc,
    )  # fmt: skip
    known = directory.ledger(pki).find(certificate.serial_number) if pki.is_dir() else None
    return Subject(peer=peer, source=str(path), standing=standing or _revoked(peer, known))


def _in_ledger(pki: Path, name: str) -> LedgerEntry | None:
    if not pki.is_dir():
        return None
    found = [entry for entry in directory.ledger(pki).entries() if name in (entry.name, f"{entry.role}/{entry.name}")]
    return found[-1] if found else None


def _of_entry(entry: LedgerEntry) -> Peer:
    return Peer(
        connection="", address="", identity=parse_identity(entry.identity), grants=entry.grants,
        serial=int(entry.serial, 16), not_after=datetime.fromisoformat(entry.not_after).astimezone(UTC),
    )  # fmt: skip


def _revoked(peer: Peer, entry: LedgerEntry | None) -> Deny | None:
    return deny(peer, DenyReason.CERT_REVOKED) if entry is not None and entry.status is Status.REVOKED else None


def _judged(loaded: Loaded, certificate: x509.Certificate, now: datetime) -> tuple[tuple[str, ...], Deny | None]:
    """Return the CAs behind a certificate, and the objection of the revocation list that a coordinator here would read.

    A CA that is not on this host says nothing: its coordinator knows.
    """
    peer_settings = loaded.settings.peer
    bundle = peer_settings.client_ca_file or loaded.home.pki_dir / "ca.crt"
    lists = peer_settings.crl_file or loaded.home.pki_dir / "ca.crl"
    if not bundle.is_file():
        return (), None
    trusted = read_certificates(bundle)
    issuing = loaded.home.pki_dir / directory.ISSUING[0]
    signers = crl.signers(trusted, read_certificates(issuing) if issuing.is_file() else ())
    above = [ca for ca in signers if ca.subject == certificate.issuer]
    above += [ca for ca in trusted if any(material.is_issued_by(one, ca) for one in above if one != ca)]
    issuers = tuple(crl.key_of(ca) for ca in above)
    try:
        revocation = crl.read(lists, signers).revocation if lists.is_file() else None
    except ConfigError:
        revocation = None  # the coordinator says what is wrong with it
    standing = Standing(trusted=(crl.key_of(ca) for ca in trusted), revocation=revocation, grace=timedelta())
    probe = Peer(
        connection="", address="", serial=certificate.serial_number, issuers=issuers,
        identity=parse_identity("spiffe://x/worker/x"),
    )  # fmt: skip
    objection = standing.objection(probe, now)
    return issuers, deny(probe, objection) if objection is not None else None
