"""Sign revocation lists: `<home>/pki/ca.crl`, PEM, one list for each CA that signs or signed here.

A list says what the ledger says, so it can be signed again at any time and after any crash. Its number is the time, or
one more than the last: it grows whatever happened to the file (threats reference, T26).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from secure_dagu.errors import ConfigError
from secure_dagu.pki import files
from secure_dagu.pki.authority import Authority
from secure_dagu.pki.files import Pem
from secure_dagu.pki.ledger import Ledger, LedgerEntry, Status
from secure_dagu.pki.profiles import load_profiles

FILE: Final = "ca.crl"
REASONS: Final = {
    flag.value: flag
    for flag in (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.privilege_withdrawn,
    )
}
"""Why a certificate may be revoked: the words of RFC 5280, section 5.3.1."""
_KEPT_AFTER_END: Final = timedelta(days=1)
"""How long an expired certificate stays on the list: clocks differ."""
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----\n?", re.DOTALL)


class Signed(Struct, frozen=True, kw_only=True):
    """What the lists in a file say, for people to read."""

    file: Path
    number: int
    this_update: datetime
    next_update: datetime
    entries: tuple[tuple[str, datetime, str], ...]
    """Serial as hex, when it was revoked, why."""


def sign(
    directory: Path, authorities: Sequence[Authority], *, now: datetime, without: x509.Certificate | None = None
) -> Signed:
    """Sign a list for each CA, with the next number, and replace ca.crl by them at once.

    The lists of CAs whose key is not here stay as they are; that of `without` is dropped.

    Raises:
        ConfigError: the disk refuses, or the present file is damaged.
    """
    before = _read(directory)
    number = max(int(now.timestamp()), 1 + max((_number(one) for one in before), default=0))
    until = now + timedelta(days=load_profiles().crl.days)
    ours = {_key_id(ca.certificate) for ca in authorities} | ({_key_id(without)} if without is not None else set())
    made = [_sign(ca, number, now, until) for ca in authorities]
    made += [one for one in before if _issuer_key_id(one) not in ours]
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in made)
    files.write(directory, Pem(FILE, pem), replace=True)
    return read(directory)


def revoke(
    directory: Path, authorities: Sequence[Authority], doomed: Sequence[LedgerEntry], *, reason: str, now: datetime,
    actor: str = "",
) -> Signed:  # fmt: skip
    """Mark certificates in the ledger as revoked, then sign lists that say so. Done again after a crash, it completes.

    Raises:
        ConfigError: the disk refuses.
    """
    for entry in doomed:
        authorities[0].ledger.mark_revoked(
            entry.serial, at=now.isoformat(timespec="seconds"), reason=reason, actor=actor
        )
    return sign(directory, authorities, now=now)


def find(ledger: Ledger, word: str, *, now: datetime) -> tuple[LedgerEntry, ...]:
    """Return what `pki revoke WORD` means: a serial, `ROLE/NAME`, or a name; of a name every one that has not ended.

    Certificates that are revoked already are among them, so that a command that was killed can be repeated.

    Raises:
        ConfigError: nothing of that name, several roles of one name, or all have ended.
    """
    role, slash, name = word.rpartition("/")
    named = [entry for entry in ledger.entries() if entry.name == name and (not slash or entry.role == role)]
    if not named and not slash:
        one = ledger.find(word) if re.fullmatch(r"[0-9A-Fa-f]{1,40}", word) else None
        named = [one] if one is not None else []
    if not named:
        raise ConfigError(
            f"the ledger has no certificate {word[:200]!r}",
            why="it is neither a serial number nor a name in it",
            fix="`secure-dagu pki list` shows both",
        )
    roles = sorted({entry.role for entry in named})
    if len(roles) > 1:
        raise ConfigError(
            f"{word} is the name of several",
            why=f"there are certificates for {', '.join(f'{one}/{name}' for one in roles)}",
            fix=f"say which, such as `secure-dagu pki revoke {roles[0]}/{name}`",
        )
    live = tuple(entry for entry in named if datetime.fromisoformat(entry.not_after) > now)
    if not live:
        raise ConfigError(f"every certificate of {word} has ended", why="an expired certificate is refused anyway")
    return live


def read(directory: Path) -> Signed:
    """Read ca.crl.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    lists = _read(directory)
    if not lists:
        raise ConfigError(
            f"there is no revocation list in {directory}",
            why="nothing was revoked yet",
            fix="`secure-dagu pki crl --renew` signs one",
        )
    return Signed(
        file=directory / FILE,
        number=max(_number(one) for one in lists),
        this_update=min(one.last_update_utc for one in lists),
        next_update=min(one.next_update_utc for one in lists if one.next_update_utc is not None),
        entries=tuple(
            (f"{entry.serial_number:x}", entry.revocation_date_utc, _reason(entry)) for one in lists for entry in one
        ),
    )


def _sign(ca: Authority, number: int, now: datetime, until: datetime) -> x509.CertificateRevocationList:
    # An issuing CA has one ledger for all the certificates that its root gave it: what was revoked under the last one
    # stays on the list. Serial numbers are random, so one too many is nobody's.
    issuer = "" if ca.chain_pem else ca.certificate.fingerprint(hashes.SHA256()).hex()
    builder = x509.CertificateRevocationListBuilder().last_update(now).next_update(until)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for entry in ca.ledger.entries():
        is_over = datetime.fromisoformat(entry.not_after) + _KEPT_AFTER_END < now
        if entry.status is not Status.REVOKED or (issuer and entry.issuer != issuer) or is_over:
            continue
        revoked = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(entry.serial, 16))
            .revocation_date(datetime.fromisoformat(entry.status_at))
        )
        flag = REASONS.get(entry.reason, x509.ReasonFlags.unspecified)
        if flag is not x509.ReasonFlags.unspecified:  # RFC 5280: then it should be left out
            revoked = revoked.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(revoked.build())
    return ca.sign_crl(builder)


def _read(directory: Path) -> list[x509.CertificateRevocationList]:
    path = directory / FILE
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read", why=problem.strerror or str(problem)) from problem
    try:
        return [x509.load_pem_x509_crl(block) for block in _BLOCK.findall(pem)]
    except ValueError as problem:
        raise ConfigError(
            f"{path} is damaged", why="a list in it cannot be read", fix="move it away and run the command again"
        ) from problem


def _number(one: x509.CertificateRevocationList) -> int:
    try:
        return one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _key_id(ca: x509.Certificate) -> bytes:
    return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def _issuer_key_id(one: x509.CertificateRevocationList) -> bytes:
    try:
        return one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
    except x509.ExtensionNotFound:
        return b""


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        return "unspecified"
