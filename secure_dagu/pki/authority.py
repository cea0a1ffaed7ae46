"""Sign certificates: the only place that holds a CA key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki.ledger import LedgerEntry, append
from secure_dagu.pki.names import IpAddress
from secure_dagu.pki.profiles import Curve, Profile, Profiles, Usage
from secure_dagu.security.identity import NAME, Identity, parse_identity

BACKDATE = timedelta(minutes=5)
"""How long before now a certificate begins: a peer whose clock is that much behind still accepts it (threat T19)."""

MAX_DAYS = 397
"""Longest lifetime of an end certificate: a year and a month, so that yearly care is enough."""

_CURVES: dict[Curve, type[ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
}
_USAGES: dict[Usage, x509.ObjectIdentifier] = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new certificate with its key, in memory."""

    identity: Identity
    certificate: bytes
    key: bytes
    entry: LedgerEntry


class Authority:
    """One CA: its key, its certificate and its ledger."""

    def __init__(
        self, *, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, trust_domain: str, ledger: Path
    ) -> None:
        """Take a CA that was made or loaded by the functions below."""
        self._key = key
        self._certificate = certificate
        self._trust_domain = trust_domain
        self._ledger = ledger

    @property
    def certificate_pem(self) -> bytes:
        """Return what every peer must trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Return the CA's private key."""
        return _key_pem(self._key)

    @property
    def trust_domain(self) -> str:
        """Return the trust domain of every identity that this CA issues."""
        return self._trust_domain

    @property
    def not_after(self) -> datetime:
        """Return the end of the CA itself."""
        return self._certificate.not_valid_after_utc

    def issue(
        self,
        profile: Profile,
        name: str,
        *,
        now: datetime,
        names: Sequence[str | IpAddress] = (),
        days: int | None = None,
    ) -> Issued:
        """Make a key and a certificate for it, and enter it in the ledger before handing it out.

        Raises:
            ConfigError: a name that no certificate may carry, names for a role without them or none for one that needs
                them, a lifetime outside 1 to `MAX_DAYS`, or a CA that has ended.
        """
        self._check_request(profile, name, names, days, now)
        identity = Identity(self._trust_domain, profile.role, name)
        key = _new_key(profile.key)
        not_after = min(now + timedelta(days=days or profile.days), self.not_after)
        alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        alternatives += [x509.DNSName(item) if isinstance(item, str) else x509.IPAddress(item) for item in names]
        serial = x509.random_serial_number()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_subject(name, self._trust_domain))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - BACKDATE)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_USAGES[profile.usage]]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_authority_key_identifier(self._certificate), critical=False)
            .sign(self._key, _hash_of(self._key))
        )
        entry = LedgerEntry(
            serial=f"{serial:x}",
            name=name,
            role=profile.role.value,
            not_after=not_after.isoformat(timespec="seconds"),
            issued_at=now.isoformat(timespec="seconds"),
            names=tuple(str(item) for item in names),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )
        append(self._ledger, entry)
        return Issued(
            identity=identity,
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=_key_pem(key),
            entry=entry,
        )

    def _check_request(
        self, profile: Profile, name: str, names: Sequence[str | IpAddress], days: int | None, now: datetime
    ) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name[:200]!r} cannot be the name in a certificate",
                why="names are 1 to 64 letters, digits, '.', '_' and '-', with a letter or digit at both ends",
            )
        if profile.names and not names:
            raise ConfigError(
                f"a {profile.role.value} certificate needs the names under which it is dialled",
                fix="add --advertise NAME[,NAME…]",
            )
        if names and not profile.names:
            raise ConfigError(
                f"a {profile.role.value} certificate carries no DNS names or addresses",
                why="nobody dials it; its name is its identity",
                fix="leave --advertise out",
            )
        if days is not None and not 1 <= days <= MAX_DAYS:
            raise ConfigError(
                f"a lifetime of {days} days is not issued", why=f"1 to {MAX_DAYS} are", fix="change --days"
            )
        if now >= self.not_after:
            raise ConfigError(
                "the CA itself has ended",
                why=f"on {self.not_after:%Y-%m-%d %H:%M}Z",
                fix="make a new CA in another directory with `secure-dagu pki init` and re-issue every certificate",
            )


def make_authority(profiles: Profiles, *, trust_domain: str, ledger: Path, now: datetime) -> Authority:
    """Make a new CA in memory.

    Raises:
        ConfigError: the trust domain cannot be part of an identity.
    """
    try:
        parse_identity(f"spiffe://{trust_domain}/{Role.ADMIN.value}/x")
    except Exception as problem:
        raise ConfigError(
            f"{trust_domain[:200]!r} is no trust domain", why="it is lower-case letters, digits, '.' and '-'"
        ) from problem
    key = _new_key(profiles.ca.key)
    subject = _subject(f"secure-dagu CA of {trust_domain}"[:64], trust_domain)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=profiles.ca.days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=profiles.ca.path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        # The trust domain itself, without a path: what X509-SVID (section 3) wants a signing certificate to carry, and
        # how the CA remembers it.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _hash_of(key))
    )
    return Authority(key=key, certificate=certificate, trust_domain=trust_domain, ledger=ledger)


def load_authority(*, certificate: Path, key: Path, ledger: Path) -> Authority:
    """Open a CA that `make_authority` made.

    Raises:
        ConfigError: a file is missing or damaged, the key is another certificate's, or it is no CA of ours.
    """
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        loaded.verify_directly_issued_by(loaded)
        alternatives = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    except FileNotFoundError as problem:
        raise ConfigError(
            f"there is no CA in {certificate.parent}",
            why=f"{problem.filename} is missing",
            fix="make one with `secure-dagu pki init --advertise NAME`, or point --dagu-home at the host that has it",
        ) from problem
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as problem:
        raise ConfigError(
            f"the CA in {certificate.parent} cannot be used",
            why=f"{certificate.name} and {key.name}: {problem}",
            fix="restore both files from your backup",
        ) from problem
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
        raise ConfigError(
            f"the CA in {certificate.parent} cannot be used",
            why=f"{key.name} is not the key of {certificate.name}",
            fix="restore both files from the same backup",
        )
    return Authority(key=private, certificate=loaded, trust_domain=uri.removeprefix("spiffe://"), ledger=ledger)


def _subject(common_name: str, trust_domain: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _new_key(curve: Curve) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(_CURVES[curve]())


def _hash_of(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def utc_now() -> datetime:
    """Return the time for certificates: UTC, whole seconds, as X.509 keeps it."""
    return datetime.now(UTC).replace(microsecond=0)
