"""Say what a certificate file contains, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from secure_dagu.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a certificate says, for people to read."""

    subject: str
    identity: str
    """The spiffe URI; empty when there is not exactly one."""
    names: tuple[str, ...]
    usage: tuple[str, ...]
    is_ca: bool
    serial: str
    issuer: str
    not_before: datetime
    not_after: datetime
    key: str
    fingerprint: str


def read_facts(path: Path) -> Facts:
    """Read the first certificate of a PEM file.

    Raises:
        ConfigError: the file is missing or holds no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as problem:
        why = problem.strerror or str(problem) if isinstance(problem, OSError) else "it holds no PEM certificate"
        raise ConfigError(f"{path} cannot be read as a certificate", why=why) from problem
    extensions = {type(extension.value): extension.value for extension in certificate.extensions}
    alternatives = extensions.get(x509.SubjectAlternativeName)
    uris: list[str] = []
    names: list[object] = []
    if isinstance(alternatives, x509.SubjectAlternativeName):
        uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
        names = [*alternatives.get_values_for_type(x509.DNSName), *alternatives.get_values_for_type(x509.IPAddress)]
    usage = extensions.get(x509.ExtendedKeyUsage)
    basic = extensions.get(x509.BasicConstraints)
    key = certificate.public_key()
    return Facts(
        subject=certificate.subject.rfc4514_string(),
        identity=uris[0] if len(uris) == 1 else "",
        names=tuple(str(name) for name in names),
        usage=tuple(_usage_word(item) for item in usage) if isinstance(usage, x509.ExtendedKeyUsage) else (),
        is_ca=isinstance(basic, x509.BasicConstraints) and basic.ca,
        serial=f"{certificate.serial_number:x}",
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=f"ECDSA {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _usage_word(oid: x509.ObjectIdentifier) -> str:
    return {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}.get(
        oid, oid.dotted_string
    )
