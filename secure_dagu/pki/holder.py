"""The holder's side of a certificate: make a key and a signing request, check what comes back, put it in place.

The key is made here and never leaves. Files get the names that this program looks for in the standard place: a worker's
its own name, a coordinator's `coordinator`, everybody else's `operator` (`metrics` for a scraper).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, IntegrityViolation, Refused
from secure_dagu.link.material import is_issued_by
from secure_dagu.pki import files, keys, pair
from secure_dagu.pki.asking import Answer, JoinRequest, RenewRequest
from secure_dagu.pki.files import Pem
from secure_dagu.security.identity import NAME, Identity, parse_identity
from secure_dagu.security.secret import Secret

TRUST_REQUEST: Final = msgspec.json.encode(RenewRequest())
"""Asks what to trust, without asking for a certificate."""


class Wish:
    """A new key, and the request for a certificate for it."""

    def __init__(self) -> None:
        """Make the key."""
        self._key = keys.new_key("P-256")
        # The name is only for people who read a dump of it: the CA writes its own.
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        assert not isinstance(self._key, ed25519.Ed25519PrivateKey)
        self._csr = request.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def to_join(self, secret: Secret) -> bytes:
        """Return the request of a machine with a token."""
        return msgspec.json.encode(JoinRequest(secret=secret.reveal(), csr=self._csr))

    def to_join_as_pod(self, token: Secret) -> bytes:
        """Return the request of a pod, with what its cluster says of it."""
        return msgspec.json.encode(JoinRequest(pod_token=token.reveal(), csr=self._csr))

    def to_renew(self) -> bytes:
        """Return the request of a machine with a certificate."""
        return msgspec.json.encode(RenewRequest(csr=self._csr))

    def granted(self, answer: bytes) -> Granted:
        """Read the answer of a coordinator that has been proven.

        Raises:
            Refused: it says no, and why.
            IntegrityViolation: what it sent is no certificate for our key.
        """
        said = read_answer(answer)
        try:
            leaf, *chain = x509.load_pem_x509_certificates(said.certificate.encode())
            anchors = x509.load_pem_x509_certificates(said.ca.encode())
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
            identity = parse_identity(uri)
        except Exception as problem:
            raise _broken("it cannot be read") from problem
        if keys.fingerprint(leaf.public_key()) != keys.fingerprint(self._key.public_key()):
            raise _broken("it is for another key than ours")
        if (identity.role.value, identity.name) != (said.role, said.name) or not NAME.fullmatch(said.name):
            raise _broken(f"it names {identity}")
        if not any(is_issued_by((leaf, *chain)[-1], anchor) for anchor in anchors):
            raise _broken("none of the CAs that came with it stands behind it")
        return Granted(
            identity=identity,
            labels=said.labels,
            certificate=said.certificate.encode(),
            key=keys.private_pem(self._key),
            ca=said.ca.encode(),
            not_after=leaf.not_valid_after_utc,
        )


class Granted(Struct, frozen=True, kw_only=True):
    """A certificate that came back, with its key."""

    identity: Identity
    labels: tuple[str, ...]
    certificate: bytes
    key: bytes
    ca: bytes
    not_after: datetime

    @property
    def stem(self) -> str:
        """Return the name of its files in the standard place."""
        return stem_of(self.identity)


def read_answer(answer: bytes) -> Answer:
    """Read a coordinator's answer.

    Raises:
        Refused: it says no.
        IntegrityViolation: it is none.
    """
    try:
        said = msgspec.json.decode(answer, type=Answer)
    except msgspec.MsgspecError as problem:
        raise _broken("it cannot be read") from problem
    if said.problem is not None:
        raise Refused(said.problem.what, why=said.problem.why, fix=said.problem.fix)
    return said


def stem_of(identity: Identity) -> str:
    """Return the name of an identity's files in the standard place."""
    match identity.role:
        case Role.WORKER:
            return identity.name
        case Role.COORDINATOR | Role.METRICS:
            return identity.role.value
        case _:
            return "operator"


def keep(directory: Path, granted: Granted, *, stem: str = "") -> Path:
    """Put certificate, key and CA bundle in place, replacing what is there; return the certificate's path.

    Raises:
        ConfigError: the disk refuses.
    """
    files.make_private_directory(directory)
    keep_trust(directory / "ca.crt", granted.ca)
    return pair.write(directory, stem or granted.stem, certificate=granted.certificate, key=granted.key)


def keep_trust(path: Path, ca: bytes) -> bool:
    """Write a CA bundle if it is another one than is there; tell whether it was.

    Raises:
        ConfigError: the disk refuses.
    """
    if path.exists() and path.read_bytes() == ca:
        return False
    files.write(path.parent, Pem(path.name, ca), replace=True)
    return True


def refuse_other_trust(path: Path, pin: str) -> None:
    """Raise ConfigError if a CA bundle is there that does not hold the root with this fingerprint."""
    if not path.exists():
        return
    try:
        known = {one.fingerprint(hashes.SHA256()).hex() for one in x509.load_pem_x509_certificates(path.read_bytes())}
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read", why=str(problem), fix="restore it, or move it away") from problem
    if pin not in known:
        raise ConfigError(
            f"{path} belongs to another CA",
            why="replacing it would cut this host off from its present peers",
            fix="use another --dagu-home, or say --force to move this host to the CA of the token",
        )


def _broken(why: str) -> IntegrityViolation:
    return IntegrityViolation(
        "the coordinator's answer cannot be used", why=why, fix="nothing was written; look at the coordinator's log"
    )
