"""The shape of every certificate that we sign: its extensions and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure_dagu.pki.keys import PublicKey, hash_for
from secure_dagu.pki.names import IpAddress
from secure_dagu.pki.profiles import Usage
from secure_dagu.pki.term import BACKDATE
from secure_dagu.security import grants
from secure_dagu.security.grants import Grants
from secure_dagu.security.identity import Identity

_USAGES: dict[Usage, x509.ObjectIdentifier] = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_GRANTS_OID = x509.ObjectIdentifier(grants.OID)


def sign_leaf(
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    *,
    identity: Identity,
    key: PublicKey,
    usage: Usage,
    names: Sequence[str | IpAddress],
    labels: Grants,
    now: datetime,
    until: datetime,
) -> x509.Certificate:
    """Sign an end certificate: one identity, one purpose, no right to sign."""
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    alternatives += [x509.DNSName(item) if isinstance(item, str) else x509.IPAddress(item) for item in names]
    builder = (
        x509.CertificateBuilder()
        # ROLE/NAME: without a DNS name in a certificate OpenSSL holds a common name that looks like one against the
        # CA's constraints. A slash never does.
        .subject_name(_subject(f"{identity.role.value}/{identity.name}"[:64], identity.trust_domain))
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[usage]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_key_identifier(issuer), critical=False)
    )
    if labels:
        builder = builder.add_extension(x509.UnrecognizedExtension(_GRANTS_OID, grants.encode(labels)), critical=False)
    return builder.sign(signer, hash_for(signer.public_key()))


def sign_ca(
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    *,
    trust_domain: str,
    label: str,
    key: ec.EllipticCurvePublicKey,
    path_length: int,
    permitted: Sequence[str],
    now: datetime,
    until: datetime,
) -> x509.Certificate:
    """Sign a CA certificate; without an issuer its own.

    It is constrained to the trust domain (URI) and to the permitted domains (DNS). Addresses are left free: BoringSSL
    refuses every chain in which an address constraint meets an address.
    """
    subject = _subject(f"{label} of {trust_domain}"[:64], trust_domain)
    domains = [x509.UniformResourceIdentifier(trust_domain), *(x509.DNSName(name) for name in permitted)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=domains, excluded_subtrees=None), critical=True)
        # The trust domain itself, without a path: what X509-SVID (section 3) wants a signing certificate to carry, and
        # how the CA remembers it.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(_authority_key_identifier(issuer), critical=False)
    return builder.sign(signer, hash_for(signer.public_key()))


def permitted_domains(ca: x509.Certificate) -> tuple[str, ...] | None:
    """Return the DNS domains to which a CA is constrained; None: it may name any."""
    try:
        constraints = ca.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None
    permitted = [tree.value for tree in constraints.permitted_subtrees or () if isinstance(tree, x509.DNSName)]
    return tuple(permitted) or None


def _subject(common_name: str, trust_domain: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
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
