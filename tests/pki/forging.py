"""Certificates that `secure-dagu pki` would never sign, signed with its CA's key: what a thief of that key could do."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from secure_dagu.pki import directory as pki

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
NOW = datetime.now(UTC).replace(microsecond=0)


def initialise(where: Path, *advertised: str, **more: object) -> pki.Initialised:
    """Make a CA."""
    options: dict[str, object] = {
        "advertised": advertised or ("ci.example.com",), "trust_domain": "secure-dagu", "now": NOW,
    } | more  # fmt: skip
    return pki.initialise(where, **options)  # type: ignore[arg-type]  # a dictionary of the defaults above


@dataclass(frozen=True, kw_only=True)
class Forged:
    """One certificate with its key, in files."""

    cert: Path
    key: Path

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert.read_bytes())


def forge(
    home: Path,
    out: Path,
    *,
    uris: Sequence[str] = (),
    dns: Sequence[str] = (),
    ips: Sequence[str] = (),
    usages: Sequence[ObjectIdentifier] = (CLIENT,),
    common_name: str = "nobody",
    organisation: str = "",
    is_ca: bool = False,
    key: Key | None = None,
    days: int = 1,
    extensions: Sequence[x509.ExtensionType] = (),
) -> Forged:
    """Sign with the key of the CA in `home`, past every check of ours."""
    ca_key = serialization.load_pem_private_key((home / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    ca = x509.load_pem_x509_certificate((home / "ca.crt").read_bytes())
    key = key or ec.generate_private_key(ec.SECP256R1())
    general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(item) for item in uris]
    general += [x509.DNSName(item) for item in dns]
    general += [x509.IPAddress(ipaddress.ip_address(item)) for item in ips]
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organisation:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(parts))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=5))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if general:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    made = builder.sign(ca_key, hashes.SHA384())
    out.mkdir(parents=True, exist_ok=True)
    forged = Forged(cert=out / "forged.crt", key=out / "forged.key")
    forged.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    forged.key.touch(mode=0o600)
    forged.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return forged
