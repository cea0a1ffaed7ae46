"""A CA that does what cert-manager would do of the Certificates that we ship."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.deploy.charts import Document
from tests.deploy.node import secret


def signed(documents: list[Document]) -> dict[str, Document]:
    """Sign what the Certificates ask for, as cert-manager would; return its Secrets."""
    now, made = datetime.now(UTC), {}
    wanted = [item for item in documents if item["kind"] == "Certificate"]
    root = next(item["spec"] for item in wanted if item["spec"].get("isCA"))
    ca_key, ca_name = ec.generate_private_key(ec.SECP384R1()), x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, root["commonName"])]
    )  # fmt: skip

    def builder(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName]
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + timedelta(days=90))
            .add_extension(x509.SubjectAlternativeName(names), critical=not subject)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )  # fmt: skip

    def usage(*, signs: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
            data_encipherment=False, key_encipherment=False, key_agreement=False, encipher_only=False,
            decipher_only=False,
        )  # fmt: skip

    uris: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in root["uris"]]
    ca = (
        builder(ca_name, ca_key, uris).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )  # fmt: skip
    known = {"server auth": ExtendedKeyUsageOID.SERVER_AUTH, "client auth": ExtendedKeyUsageOID.CLIENT_AUTH}
    for spec in (item["spec"] for item in wanted if not item["spec"].get("isCA")):
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in spec["uris"]]
        names += [x509.DNSName(name) for name in spec.get("dnsNames", [])]
        names += [x509.IPAddress(ipaddress.ip_address(text)) for text in spec.get("ipAddresses", [])]
        purposes = [known[use] for use in spec["usages"] if use in known]
        leaf = (
            builder(x509.Name([]), key, names).add_extension(usage(signs=False), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .sign(ca_key, hashes.SHA384())
        )  # fmt: skip
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        made[spec["secretName"]] = secret(tls_crt=leaf.public_bytes(pem), tls_key=private, ca_crt=ca.public_bytes(pem))
    return made
