"""Certificate files → checked material. Whatever is wrong with a file is said before the file is used.

A context made from bad material fails later, at the first handshake, in words that nobody can act on. So every fact
that a peer would hold against us is checked here, and each refusal names the file, the fact and the fix.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, ObjectIdentifier
from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.security import grants, mapping
from secure_dagu.security.grants import Grants
from secure_dagu.security.identity import Identity, parse_identity
from secure_dagu.security.mapping import Holder, Presented, Rule
from secure_dagu.security.tls_signs import identity_fault
from secure_dagu.security.verdict import Reason

MAX_FILE_BYTES: Final = 1 << 20
"""No certificate, key or CA bundle of ours is larger."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


class Names(Struct, frozen=True, kw_only=True):
    """What a certificate is for: its subject alternative names by type. The common name is never used (RFC 9525)."""

    dns: tuple[str, ...] = ()
    ips: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...] = ()
    uris: tuple[str, ...] = ()

    def cover(self, host: str) -> bool:
        """Tell whether `host` is one of the names: an IP only by an IP name, a DNS name exactly, case aside."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            wanted = host.rstrip(".").lower()
            return any(name.rstrip(".").lower() == wanted for name in self.dns)
        return address in self.ips

    def __str__(self) -> str:
        names = [*self.dns, *(str(address) for address in self.ips)]
        return ", ".join(name[:253] for name in names[:20]) or "no name at all"


def names_of(certificate: x509.Certificate) -> Names:
    """Read the subject alternative names; all empty when the extension is absent or unreadable."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return Names()
    addresses = san.get_values_for_type(x509.IPAddress)
    return Names(
        dns=tuple(san.get_values_for_type(x509.DNSName)),
        ips=tuple(a for a in addresses if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address)),
        uris=tuple(san.get_values_for_type(x509.UniformResourceIdentifier)),
    )


GRANTS_OID = x509.ObjectIdentifier(grants.OID)


def grants_of(certificate: x509.Certificate) -> Grants:
    """Return the labels that a certificate grants; none without the extension.

    Raises:
        InvalidRequest: the extension, or the list of extensions, is malformed.
    """
    try:
        value = certificate.extensions.get_extension_for_oid(GRANTS_OID).value
    except x509.ExtensionNotFound:
        return grants.NOTHING
    except (x509.DuplicateExtension, ValueError) as problem:
        raise InvalidRequest(
            "the certificate cannot be read", why=f"its extensions are malformed: {problem}"
        ) from problem
    assert isinstance(value, x509.UnrecognizedExtension), "the OID is ours"
    return grants.decode(value.value)


def holder_of(certificate: x509.Certificate, names: Names, rules: Sequence[Rule] = ()) -> Holder:
    """Return who holds a certificate and what it grants, by the rules (`security.mapping`).

    Raises:
        InvalidRequest: it names nobody, more than one, or its labels are malformed.
    """
    subject = certificate.subject.rfc4514_string() if rules else ""
    presented = Presented(uris=names.uris, dns=names.dns, subject=subject, grants=grants_of(certificate))
    return mapping.holder_of(presented, rules)


def subject_of(certificate: x509.Certificate) -> str:
    """Return the common name, else the first URI or DNS name: for logs only, never for decisions."""
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if common:
        return str(common[0].value)[:100]
    names = names_of(certificate)
    return next(iter((*names.uris, *names.dns)), "")[:100]


class CertificateFacts(Struct, frozen=True, kw_only=True):
    """What metrics and evidence say of a loaded certificate (metrics, C.4)."""

    file: Path
    subject: str
    serial: int
    not_before: datetime
    not_after: datetime
    names: Names
    key_type: str
    """`rsa-3072`, `ec-secp256r1`, `ed25519` or `other`."""

    @property
    def is_weak(self) -> bool:
        """Tell whether our own TLS would refuse the key: RSA below 2048 bits, or a curve below 224."""
        kind, _, size = self.key_type.partition("-")
        bits = "".join(letter for letter in size[4:] if letter.isdigit()) if kind == "ec" else size
        return kind in ("rsa", "ec") and int(bits[:4] or 0) < (2048 if kind == "rsa" else 224)


def facts_of(file: Path, certificate: x509.Certificate) -> CertificateFacts:
    """Read the facts of one certificate."""
    return CertificateFacts(
        file=file,
        subject=subject_of(certificate),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        names=names_of(certificate),
        key_type=_key_type(certificate),
    )


class Material(Struct, frozen=True, kw_only=True):
    """Our own certificate, its chain and key, and the CAs that we trust: everything a context is made of."""

    leaf: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey
    trusted: tuple[x509.Certificate, ...]
    identity: Identity
    grants: Grants
    rules: tuple[Rule, ...] = ()
    """By which certificates name their holders, ours and the peers'; none: by their spiffe URI."""
    own: CertificateFacts
    trust: tuple[CertificateFacts, ...]


def load(
    *,
    cert: Path,
    key: Path,
    ca: Path | None,
    purpose: ObjectIdentifier,
    advertised: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    holder: Holder | None = None,
) -> Material:
    """Read and check one side's files.

    `purpose` is the extended key usage that this side must have; `advertised` are the names (host names or IP literals)
    under which it must be reachable; `rules` say whom certificates name; `holder` says it where our own
    certificate need not. `ca` None trusts nobody: only for a server that asks for no client certificate.

    Raises:
        ConfigError: any file is missing, unreadable, malformed, out of its dates, or unfit for this side.
    """
    leaf, *chain = _certificates(cert, "certificate")
    _check_chain(cert, leaf, chain)
    is_server = purpose == ExtendedKeyUsageOID.SERVER_AUTH
    _check_dates(cert, leaf, is_server=is_server)
    names = names_of(leaf)
    _check_purpose(cert, leaf, purpose)
    if is_server:
        _check_names(cert, names, advertised)
    try:
        holder = holder or holder_of(leaf, names, rules)
    except InvalidRequest as bad:
        reason = Reason.NOT_A_COORDINATOR if is_server else identity_fault(names.uris, "")
        raise _bad(cert, bad.why or bad.what, bad.fix, reason) from bad
    private = _private_key(key)
    if not is_pair(private, leaf):
        raise _bad(key, f"it is not the key of the certificate in {cert}", "point both settings at one pair")
    trusted = read_trust(ca) if ca is not None else ()
    return Material(
        leaf=leaf,
        chain=tuple(chain),
        key=private,
        trusted=trusted,
        identity=holder.identity,
        grants=holder.grants,
        rules=tuple(rules),
        own=facts_of(cert, leaf),
        trust=tuple(facts_of(ca or cert, one) for one in trusted),
    )


def read_key(key: Path) -> PrivateKey:
    """Read and check a private key.

    Raises:
        ConfigError: it is missing, unreadable, malformed, encrypted, or others may use it.
    """
    return _private_key(key)


def is_pair(key: PrivateKey, certificate: x509.Certificate) -> bool:
    """Tell whether this is the certificate's key."""
    return _public_bytes(key.public_key()) == _public_bytes(certificate.public_key())


def read_trust(ca: Path) -> tuple[x509.Certificate, ...]:
    """Read and check a CA bundle.

    Raises:
        ConfigError: it is missing, unreadable, malformed, holds something else than CAs, or none that is valid now.
    """
    trusted = _certificates(ca, "CA certificate")
    _check_trust(ca, trusted)
    return tuple(trusted)


def read_file(file: Path, what: str, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file of bounded size.

    Raises:
        ConfigError: it is missing, unreadable, no regular file, or larger.
    """
    return _read(file, what, limit=limit)


_ISSUE = "issue it again with `secure-dagu pki issue`"


def _bad(file: Path, why: str, fix: str, reason: Reason | None = None) -> ConfigError:
    """Return the error of an unfit file; `reason`: what the other end would refuse it for."""
    error = ConfigError(f"{file} cannot be used", why=why, fix=fix)
    error.reason = reason.value if reason is not None else ""
    return error


def _read(file: Path, what: str, *, is_key: bool = False, limit: int = MAX_FILE_BYTES) -> bytes:
    try:
        with file.open("rb") as opened:
            facts = os.fstat(opened.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise _bad(file, "it is not a regular file", f"point the setting at the {what} file")
            if is_key:
                _check_mode(file, facts)
            data = opened.read(limit + 1)
    except FileNotFoundError as missing:
        raise _bad(
            file, f"the {what} file does not exist", "create it with `secure-dagu pki`, or correct the path"
        ) from missing
    except OSError as error:
        raise _bad(
            file, f"the {what} file is unreadable: {error.strerror}", "give this user the right to read it"
        ) from error
    if len(data) > limit:
        raise _bad(file, f"it is larger than {limit} bytes", f"point the setting at the {what} file")
    return data


def _check_mode(file: Path, facts: os.stat_result) -> None:
    # A mounted Kubernetes secret is root's and readable by one group; anything wider is somebody else's key too.
    may_group_read = facts.st_uid == 0 or facts.st_gid == 0
    forbidden = 0o037 if may_group_read else 0o077
    if facts.st_mode & forbidden:
        raise _bad(
            file,
            f"others may use this private key (mode {stat.S_IMODE(facts.st_mode):04o})",
            f"chmod 600 {file} (0640 only when root owns it)",
        )


def _certificates(file: Path, what: str) -> list[x509.Certificate]:
    data = _read(file, what)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        hint = "it is a private key" if b"PRIVATE KEY" in data else "it holds no readable PEM certificate"
        raise _bad(file, hint, f"the {what} file wants `-----BEGIN CERTIFICATE-----`") from error
    if len(found) > 64:
        raise _bad(file, f"it holds {len(found)} certificates", "keep at most 64")
    return found


def _private_key(file: Path) -> PrivateKey:
    data = _read(file, "private key", is_key=True)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as encrypted:
        raise _bad(file, "the key is encrypted", "decrypt it for this service, mode 0600") from encrypted
    except ValueError as error:
        raise _bad(
            file, "it holds no readable PEM private key", "the file wants `-----BEGIN PRIVATE KEY-----`"
        ) from error
    if not isinstance(key, PrivateKey):
        raise _bad(file, "keys of this kind cannot be used for TLS", "use ECDSA P-256, Ed25519 or RSA-3072")
    return key


def _public_bytes(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _check_chain(file: Path, leaf: x509.Certificate, chain: Sequence[x509.Certificate]) -> None:
    for lower, upper in zip((leaf, *chain), chain, strict=False):
        if not is_issued_by(lower, upper):
            raise _bad(
                file,
                f"the chain is out of order: {subject_of(upper)!r} did not issue {subject_of(lower)!r} above it",
                "our own certificate first, then each one's issuer",
            )


def is_issued_by(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """Tell whether `upper` names and signed `lower`."""
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_dates(file: Path, certificate: x509.Certificate, *, is_server: bool) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        end = certificate.not_valid_after_utc
        raise _bad(
            file,
            f"the certificate expired on {end:%Y-%m-%d %H:%M}Z",
            way_back(certificate),
            Reason.SERVER_EXPIRED if is_server else Reason.CERT_EXPIRED,
        )
    if now < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc
        reason = Reason.SERVER_NOT_YET_VALID if is_server else Reason.CERT_NOT_YET_VALID
        why = f"the certificate is not valid before {start:%Y-%m-%d %H:%M}Z"
        raise _bad(file, why, "set the clock by NTP", reason)


def way_back(certificate: x509.Certificate) -> str:
    """Return the one command that gives a machine whose certificate has ended another one."""
    try:
        (uri,) = names_of(certificate).uris
        identity = parse_identity(uri)
    except (ValueError, InvalidRequest):
        return "issue a new one with `secure-dagu pki issue ROLE NAME --force`"
    if identity.role is Role.COORDINATOR:
        return "on the host of the CA run `secure-dagu pki renew`"
    is_worker = identity.role is Role.WORKER
    what = f"--worker {identity.name}" if is_worker else f"--role {identity.role.value} --name {identity.name}"
    return f"`secure-dagu join LINE`, LINE being what `secure-dagu pki token {what}` prints on the coordinator's host"


def _check_purpose(file: Path, certificate: x509.Certificate, purpose: ObjectIdentifier) -> None:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        usages = None
    if usages is None or purpose not in usages:
        is_server = purpose == ExtendedKeyUsageOID.SERVER_AUTH
        side = "servers (serverAuth)" if is_server else "clients (clientAuth)"
        reason = Reason.SERVER_WRONG_PURPOSE if is_server else Reason.WRONG_PURPOSE
        raise _bad(file, f"the certificate is not for {side}", f"{_ISSUE} for the right role", reason)


def _check_names(file: Path, names: Names, advertised: Sequence[str]) -> None:
    if not names.dns and not names.ips:
        raise _bad(file, "the certificate has no DNS or IP subject alternative name", f"{_ISSUE} and `--advertise`")
    missing = [name for name in advertised if not names.cover(name)]
    if missing:
        raise _bad(
            file,
            f"the certificate does not cover {', '.join(missing)}; it has {names}",
            f"{_ISSUE} and `--advertise` for each name that workers dial",
            Reason.NAME_MISMATCH,
        )


def _check_trust(file: Path, trusted: Sequence[x509.Certificate]) -> None:
    now = datetime.now(UTC)
    for one in trusted:
        try:
            constraints = one.extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS).value
        except (x509.ExtensionNotFound, ValueError):
            constraints = None
        if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
            raise _bad(file, f"{subject_of(one)!r} is not a CA certificate", "keep only CA certificates in this file")
    # A bundle in rotation may still hold an old one; a bundle without a live one admits nobody.
    if not any(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in trusted):
        raise _bad(file, "no CA certificate in it is valid now", "renew the CA, or set the clock by NTP")


def _key_type(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case rsa.RSAPublicKey(key_size=size):
            return f"rsa-{size}"
        case ec.EllipticCurvePublicKey(curve=curve):
            return f"ec-{curve.name}"
        case ed25519.Ed25519PublicKey():
            return "ed25519"
        case _:
            return "other"
