"""Certificates for the link tests, made with `cryptography` directly so that every fault can be built."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
DAY = timedelta(days=1)


def uri(role: str, name: str, domain: str = "test.example") -> str:
    """Return an identity's URI."""
    return f"spiffe://{domain}/{role}/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One side's files."""

    cert: Path
    key: Path


class Ca:
    """A CA that signs whatever a test needs."""

    def __init__(self, directory: Path, name: str = "test CA", *, permitted: str = "") -> None:
        """Make it in `directory`; `permitted`: it may sign for URIs of this host only."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        )
        if permitted:
            names = x509.NameConstraints([x509.UniformResourceIdentifier(permitted)], None)
            builder = builder.add_extension(names, critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.file = directory / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self._count = 0

    def issue(
        self,
        uris: Sequence[str],
        *,
        usages: Sequence[ObjectIdentifier] = (CLIENT,),
        names: Sequence[str] = (),
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        is_ca: bool = False,
        common_name: str | None = None,
        is_weak: bool = False,
    ) -> Pair:
        """Issue a certificate; `begins` and `ends` are relative to now. `names` are DNS names or IP literals."""
        key = rsa.generate_private_key(65537, 1024) if is_weak else ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(item) for item in uris]
        for name in names:
            try:
                general.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                general.append(x509.DNSName(name))
        common = common_name or (uris[0].rsplit("/", 1)[-1] if uris else "nobody")
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if general:
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        self._count += 1
        pair = Pair(cert=self.directory / f"{self._count}.pem", key=self.directory / f"{self._count}.key")
        pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def crl(self, *revoked: Pair, number: int = 1, ends: timedelta = DAY) -> Path:
        """Sign a revocation list that was made two days ago; `ends` is its next update, relative to now."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - 2 * DAY)
            .next_update(now + ends)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for pair in revoked:
            serial = x509.load_pem_x509_certificate(pair.cert.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        self._count += 1
        file = self.directory / f"{self._count}.crl"
        file.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return file

    def coordinator(self, *names: str) -> Pair:
        """Issue a good coordinator certificate for these names (default: localhost and the loopback addresses)."""
        return self.issue(
            [uri("coordinator", "main")], usages=(SERVER,), names=names or ("localhost", "127.0.0.1", "::1")
        )

    def worker(self, name: str = "w1") -> Pair:
        """Issue a good worker certificate."""
        return self.issue([uri("worker", name)])
