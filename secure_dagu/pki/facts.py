"""Say what a certificate file contains, for people to read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import Struct

from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.link import material
from secure_dagu.pki import keys


class Facts(Struct, frozen=True, kw_only=True):
    """What a certificate says."""

    subject: str
    identity: str
    """The spiffe URI; empty when there is not exactly one."""
    uris: tuple[str, ...]
    names: tuple[str, ...]
    """DNS names and addresses."""
    labels: tuple[str, ...]
    """Granted labels, as `key=value`."""
    usage: tuple[str, ...]
    key_usage: tuple[str, ...]
    is_ca: bool
    path_length: int | None
    permitted: tuple[str, ...]
    """What a CA is constrained to, as `DNS:example.com`."""
    excluded: tuple[str, ...]
    serial: str
    issuer: str
    not_before: datetime
    not_after: datetime
    key: str
    signature: str
    """Hash or algorithm of the CA's signature."""
    fingerprint: str
    """SHA-256 of the certificate."""
    key_fingerprint: str
    """SHA-256 of its public key."""
    key_id: str
    issuer_key_id: str
    crl_urls: tuple[str, ...]
    unknown_extensions: tuple[str, ...]
    problems: tuple[str, ...]
    """What in it cannot be read."""


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read every certificate of a PEM file.

    Raises:
        ConfigError: the file is missing or holds none.
    """
    try:
        if path.stat().st_size > material.MAX_FILE_BYTES:
            raise ConfigError(f"{path} cannot be read as a certificate", why="it is too large")
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as problem:
        why = problem.strerror or str(problem) if isinstance(problem, OSError) else "it holds no PEM certificate"
        raise ConfigError(f"{path} cannot be read as a certificate", why=why) from problem


def facts_of(certificate: x509.Certificate) -> Facts:
    """Read everything that a certificate says; what is malformed is among its `problems`."""
    problems: list[str] = []
    try:
        extensions = {type(extension.value): extension.value for extension in certificate.extensions}
        unknown = [one.oid.dotted_string for one in certificate.extensions if _is_unknown(one)]
    except (ValueError, x509.DuplicateExtension) as problem:
        extensions, unknown = {}, []
        problems.append(f"extensions: {problem}")
    names = material.names_of(certificate)
    try:
        labels = str(material.grants_of(certificate))
    except InvalidRequest as problem:
        labels = ""
        problems.append(str(problem))
    usage = extensions.get(x509.ExtendedKeyUsage)
    key_usage = extensions.get(x509.KeyUsage)
    basic = extensions.get(x509.BasicConstraints)
    constraints = extensions.get(x509.NameConstraints)
    limits = constraints if isinstance(constraints, x509.NameConstraints) else None
    own_id = extensions.get(x509.SubjectKeyIdentifier)
    issuer_id = extensions.get(x509.AuthorityKeyIdentifier)
    crls = extensions.get(x509.CRLDistributionPoints)
    key = certificate.public_key()
    return Facts(
        subject=certificate.subject.rfc4514_string(),
        identity=names.uris[0] if len(names.uris) == 1 else "",
        uris=names.uris,
        names=(*names.dns, *(str(address) for address in names.ips)),
        labels=tuple(labels.split(",")) if labels else (),
        usage=tuple(_usage_word(item) for item in usage) if isinstance(usage, x509.ExtendedKeyUsage) else (),
        key_usage=_key_usage_words(key_usage) if isinstance(key_usage, x509.KeyUsage) else (),
        is_ca=isinstance(basic, x509.BasicConstraints) and basic.ca,
        path_length=basic.path_length if isinstance(basic, x509.BasicConstraints) else None,
        permitted=_trees(limits.permitted_subtrees) if limits else (),
        excluded=_trees(limits.excluded_subtrees) if limits else (),
        serial=f"{certificate.serial_number:x}",
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=keys.kind_of(key),
        signature=_signature_word(certificate),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        key_fingerprint=keys.fingerprint(key),
        key_id=own_id.digest.hex() if isinstance(own_id, x509.SubjectKeyIdentifier) else "",
        issuer_key_id=(issuer_id.key_identifier or b"").hex()
        if isinstance(issuer_id, x509.AuthorityKeyIdentifier)
        else "",
        crl_urls=_urls(crls) if isinstance(crls, x509.CRLDistributionPoints) else (),
        unknown_extensions=tuple(unknown),
        problems=tuple(problems),
    )


def read_facts(path: Path) -> Facts:
    """Read the first certificate of a PEM file; ConfigError as `read_certificates`."""
    return facts_of(read_certificates(path)[0])


def _is_unknown(extension: x509.Extension[x509.ExtensionType]) -> bool:
    return isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid != material.GRANTS_OID


def _usage_word(oid: x509.ObjectIdentifier) -> str:
    return {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}.get(
        oid, oid.dotted_string
    )


def _key_usage_words(usage: x509.KeyUsage) -> tuple[str, ...]:
    words = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    )
    return tuple(word for word in words if getattr(usage, word))


def _trees(trees: list[x509.GeneralName] | None) -> tuple[str, ...]:
    kinds = {x509.DNSName: "DNS", x509.UniformResourceIdentifier: "URI", x509.IPAddress: "IP"}
    return tuple(f"{kinds.get(type(tree), type(tree).__name__)}:{tree.value}" for tree in trees or ())


def _signature_word(certificate: x509.Certificate) -> str:
    used = certificate.signature_hash_algorithm
    return used.name if used is not None else keys.kind_of(certificate.public_key())


def _urls(points: x509.CRLDistributionPoints) -> tuple[str, ...]:
    return tuple(str(name.value) for point in points for name in point.full_name or ())
