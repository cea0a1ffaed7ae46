"""An offline root with an online issuing CA: the root's key never touches a host that is reached from the network.

offline   `new_root`           ca.key ca.crt ledger.jsonl: signs issuing CAs and nothing else
online    `request`            issuing.key issuing.csr: the key is made where it will be used
offline   `sign_request`       issuing.crt for it, to carry back together with ca.crt
online    `adopt`              issuing.crt ca.crt: from here on as any CA

Peers trust the root. Each certificate file holds the certificate and then the issuing CA's, so an issuing CA can be
replaced without touching anybody's trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory as place
from secure_dagu.pki import files, keys, requests
from secure_dagu.pki.authority import Authority, iso
from secure_dagu.pki.directory import ISSUING, Initialised, KeyPlace
from secure_dagu.pki.files import Pem
from secure_dagu.pki.ledger import LedgerEntry
from secure_dagu.pki.names import OWN_HOST, domains_of, parse_domains, parse_names
from secure_dagu.pki.opening import Passphrase
from secure_dagu.pki.profiles import load_profiles

REQUEST: Final = "issuing.csr"
ROLE: Final = "issuing-ca"
"""What the root's ledger calls it."""


def new_root(
    directory: Path,
    *,
    advertised: Sequence[str],
    permit: Sequence[str],
    trust_domain: str,
    key: KeyPlace,
    now: datetime,
) -> Authority:
    """Make an offline root. Its key is under a passphrase or in a token, always.

    Raises:
        ConfigError: neither is given, there is a CA already, or a bad name.
    """
    place.refuse_existing_ca(directory)
    if key.passphrase is None:
        raise ConfigError(
            "an offline root wants a passphrase",
            why="its key outlives every host, and its copies lie in drawers",
            fix="add --passphrase (asks for it), --passphrase-file FILE, or --pkcs11 URI",
        )
    domains = (*domains_of(parse_names(advertised)), *parse_domains(permit))
    return place.new_ca(directory, permit=domains, trust_domain=trust_domain, key=key, now=now, is_root=True)


def request(directory: Path, *, key: KeyPlace, now: datetime) -> Path:
    """Make the issuing CA's key and its request; ConfigError if this directory has a CA or a request already."""
    place.refuse_existing_ca(directory)
    files.refuse_existing(directory, (REQUEST,), fix="sign it on the offline host with `secure-dagu pki issue-ca`")
    signer, text = place.make_key(load_profiles().issuing.key, key)
    # For people only: the root writes everything itself.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"secure-dagu issuing CA {now:%Y-%m-%d}")])
    made = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(signer, keys.hash_for(signer.public_key()))
    )
    files.make_private_directory(directory)
    files.write(directory, Pem(ISSUING[1], text, is_private=True))
    return files.write(directory, Pem(REQUEST, made.public_bytes(Encoding.PEM)))


def sign_request(
    directory: Path, wanted: Path, out: Path, *, now: datetime, passphrase: Passphrase | None, actor: str, force: bool
) -> LedgerEntry:
    """Sign an issuing CA with the root in `directory`; write issuing.crt and ca.crt to `out`.

    Raises:
        ConfigError: no root here, a passphrase that is wrong, or files that exist.
        InvalidRequest: the request is malformed or its key is no ECDSA key.
    """
    try:
        asked = wanted.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{wanted} cannot be read", why=problem.strerror or str(problem)) from problem
    key = requests.key_of(asked, ("P-384", "P-256"))
    assert isinstance(key, ec.EllipticCurvePublicKey), "no other kind was accepted"
    if not force:
        files.refuse_existing(out, (ISSUING[0],), fix="choose another --out, or say --force")
    root = place.open_ca(directory, passphrase)
    # The same key keeps its name: whatever it signed, certificates and lists, goes on under its next certificate.
    before = [entry for entry in root.ledger.with_key(keys.fingerprint(key)) if entry.role == ROLE]
    day = min((entry.issued_at for entry in before), default=iso(now))[:10]
    made = root.sign_issuing_ca(key, load_profiles().issuing, day=day, now=now)
    entry = LedgerEntry(
        serial=f"{made.serial_number:x}",
        name=f"issuing-{now:%Y-%m-%d}",
        role=ROLE,
        identity=f"spiffe://{root.trust_domain}",
        issued_at=iso(now),
        not_before=iso(made.not_valid_before_utc),
        not_after=iso(made.not_valid_after_utc),
        fingerprint=made.fingerprint(hashes.SHA256()).hex(),
        key=keys.kind_of(key),
        key_fingerprint=keys.fingerprint(key),
        issuer=root.certificate.fingerprint(hashes.SHA256()).hex(),
        actor=actor,
    )
    root.ledger.append(entry)
    out.mkdir(parents=True, exist_ok=True)
    files.write(out, Pem(ISSUING[0], made.public_bytes(Encoding.PEM)), replace=force)
    if out.resolve() != directory.resolve():
        files.write(out, Pem("ca.crt", root.trust_pem), replace=True)
    return entry


def adopt(
    directory: Path,
    brought: Path,
    *,
    advertised: Sequence[str],
    now: datetime,
    passphrase: Passphrase | None,
    actor: str,
) -> Initialised:
    """Take the issuing CA into use that the root signed, and issue what a coordinator's host needs.

    Raises:
        ConfigError: the certificate is for another key or not signed by the root beside it, or files that exist.
    """
    files.refuse_existing(
        directory,
        ("ca.crt", ISSUING[0], *(f"{name}.crt" for name in (place.COORDINATOR, place.OPERATOR))),
        fix="for a new certificate of this issuing CA, copy issuing.crt over the old one",
    )
    try:
        anchors = (brought / "ca.crt").read_bytes()
        text = (brought / ISSUING[0]).read_bytes()
        roots, made = x509.load_pem_x509_certificates(anchors), x509.load_pem_x509_certificate(text)
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"{brought} does not hold what `secure-dagu pki issue-ca` writes",
            why=str(problem),
            fix=f"bring {ISSUING[0]} and ca.crt from the offline host",
        ) from problem
    if not any(_signed(made, root) for root in roots):
        raise ConfigError(
            f"{brought / ISSUING[0]} is refused",
            why="no CA in the ca.crt beside it signed it",
            fix="bring both files from the same `secure-dagu pki issue-ca`",
        )
    # Written first, because opening checks that it is the certificate of our key; and taken back if it is not.
    written = [files.write(directory, Pem("ca.crt", anchors)), files.write(directory, Pem(ISSUING[0], text))]
    try:
        ca = place.open_ca(directory, passphrase)
        names = tuple(dict.fromkeys((*parse_names(advertised), *OWN_HOST)))
        return place.equip(directory, ca, names=names, now=now, actor=actor)
    except BaseException:
        if not (directory / f"{place.COORDINATOR}.crt").exists():
            for path in written:
                path.unlink()
        raise


def _signed(made: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        made.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
