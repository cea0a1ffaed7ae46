"""Read revocation lists: PEM, one for each CA, signed by a CA that we trust. Whatever is wrong is said before use.

A list that nobody signed would let its writer lock everybody out, and an old one let a revoked peer back in: both are
refused, and whoever asked keeps what it had (threats reference, T26).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from msgspec import Struct

from secure_dagu.errors import ConfigError
from secure_dagu.link import material
from secure_dagu.security.revocation import Revocation, RevocationList, objection_to_successor

MAX_LISTS: Final = 16
MAX_BYTES: Final = 16 << 20
"""About 300,000 revoked certificates."""

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_FIX = "sign a fresh one with `secure-dagu pki crl --renew` on the host of the CA and bring ca.crl here"


class Lists(Struct, frozen=True, kw_only=True):
    """Verified lists: what they say, and what a TLS context takes."""

    revocation: Revocation
    crls: tuple[x509.CertificateRevocationList, ...]
    pem: bytes
    """The file as it was read: kept, so that an older one is known as such after a restart."""


def read(file: Path, trusted: Sequence[x509.Certificate], *, last: Revocation | None = None) -> Lists:
    """Read and verify the lists of the trusted CAs (`signers`) in `file`; those of other CAs are left out.

    A stale list is no fault here: how long it may stay in use is `Standing`'s decision.

    Args:
        last: the lists in use; newer numbers are taken, older ones refused.

    Raises:
        ConfigError: the file is missing, unreadable, cut off, forged, for other CAs only, or older than `last`.
    """
    return verify(material.read_file(file, "revocation list", limit=MAX_BYTES), trusted, file=file, last=last)


def verify(pem: bytes, trusted: Sequence[x509.Certificate], *, file: Path, last: Revocation | None = None) -> Lists:
    """Verify lists that were read from `file` (as `read`)."""
    blocks = _BLOCK.findall(pem)
    if not blocks or len(blocks) > MAX_LISTS or pem.count(b"-----BEGIN") != len(blocks):
        raise _bad(file, "it is empty, cut off, or holds something else than revocation lists in PEM")
    found: dict[str, tuple[RevocationList, x509.CertificateRevocationList]] = {}
    for block in blocks:
        one = _parse(file, block)
        signer = _signer(file, one, trusted)
        if signer is None:
            continue
        said = _said(file, one, signer)
        if said.issuer in found:
            raise _bad(file, f"it holds two lists of {said.issuer_name!r}")
        found[said.issuer] = said, one
    if not found:
        raise _bad(file, "none of its lists is of a CA that is trusted here")
    revocation = Revocation(lists=tuple(said for said, _ in found.values()))
    if last is not None:
        objection = objection_to_successor(last, revocation, (key_of(ca) for ca in trusted))
        if objection:
            raise _bad(file, f"{objection}: somebody may have put an old one back")
    return Lists(revocation=revocation, crls=tuple(one for _, one in found.values()), pem=pem)


def signers(trusted: Sequence[x509.Certificate], known: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return whose lists are believed: the trusted CAs, and of `known` those issuing CAs that one of them signed."""
    below = (one for one in known if one not in trusted and _may_sign_lists(one))
    return (*trusted, *(one for one in below if any(material.is_issued_by(one, ca) for ca in trusted)))


def key_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a CA's public key, hex: how `Peer.issuers` and lists name it, whatever its certificate."""
    encoded = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()


def _may_sign_lists(certificate: x509.Certificate) -> bool:
    try:
        extensions = certificate.extensions
        return (
            extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            and extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
        )
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _parse(file: Path, block: bytes) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(block)
    except ValueError as error:
        raise _bad(file, "one of its lists is damaged or cut off") from error


def _signer(
    file: Path, one: x509.CertificateRevocationList, trusted: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    """Return the trusted CA that signed a list; None when it says that another CA did."""
    named = [ca for ca in trusted if ca.subject == one.issuer and _matches(ca, _authority_key(one))]
    for ca in named:
        try:
            if one.is_signature_valid(ca.public_key()):  # type: ignore[arg-type]  # of any kind: refused below
                return ca
        except (TypeError, ValueError, InvalidSignature, UnsupportedAlgorithm):
            continue
    if named:
        raise _bad(file, f"the list of {material.subject_of(named[0])!r} does not bear that CA's signature")
    return None


def _authority_key(one: x509.CertificateRevocationList) -> bytes | None:
    try:
        return one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _matches(ca: x509.Certificate, key_id: bytes | None) -> bool:
    if key_id is None:
        return True
    try:
        return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest == key_id
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return True


def _said(file: Path, one: x509.CertificateRevocationList, signer: x509.Certificate) -> RevocationList:
    try:
        number = one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise _bad(file, "a list without a CRL number could be replaced by an older one") from error
    if one.next_update_utc is None:
        raise _bad(file, "a list without a next update would never be known to be old")
    return RevocationList(
        issuer=key_of(signer),
        issuer_name=material.subject_of(signer),
        number=number,
        this_update=one.last_update_utc,
        next_update=one.next_update_utc,
        serials=frozenset(entry.serial_number for entry in one),
        reasons=dict(_reasons(one)),
    )


def _reasons(one: x509.CertificateRevocationList) -> Iterator[tuple[int, str]]:
    for entry in one:
        try:
            yield entry.serial_number, entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
        except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
            continue


def _bad(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file} cannot be used", why=why, fix=_FIX)
