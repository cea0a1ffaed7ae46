"""Sign how far the chain goes, with an Ed25519 key that the folder keeps and a public half that others keep.

The signature covers a checkpoint's number, the hash before it and its time: all records up to there. Whoever changes
the log can compute hashes; he cannot sign, unless he also takes the key, which is why a copy of the public half, the
newest checkpoint or the records themselves (syslog) belong on another host.
"""

from __future__ import annotations

import base64
import os
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secure_dagu.audit.chain import Place, Record, text_of
from secure_dagu.audit.events import SYSTEM, Action, Detail, Event
from secure_dagu.errors import ConfigError

KEY_FILE = "checkpoint.key"
_PREFIX = "ed25519:"


class Signer:
    """Hold the key and make checkpoints."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> str:
        """Return the public half as `ed25519:<base64>`, as `audit key` prints it."""
        return public_text(self._key.public_key())

    def checkpoint(self, after: Place, at: datetime) -> Event:
        """Return the event that signs everything up to `after`; it must be written next, with the time `at`."""
        signature = self._key.sign(_signed(after.seq + 1, after.hash, text_of(at)))
        return Event(
            action=Action.AUDIT_CHECKPOINT,
            actor=SYSTEM,
            details={Detail.SIGNATURE: base64.b64encode(signature).decode()},
        )


def load_or_make(folder: Path) -> tuple[Signer, bool]:
    """Return the key of a folder and whether it was made now.

    Raises:
        ConfigError: the key cannot be read or is no Ed25519 key, or others may read it.
    """
    path = folder / KEY_FILE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return _load(path), False
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(fd, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(fd)
    return Signer(key), True


def public_of(folder: Path) -> str:
    """Return the public half of a folder's key.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    return _load(folder / KEY_FILE).public


def is_signed(record: Record, public: Ed25519PublicKey) -> bool:
    """Tell whether a checkpoint carries the signature of a key."""
    try:
        signature = base64.b64decode(str(record.details.get(Detail.SIGNATURE.value, "")), validate=True)
        public.verify(signature, _signed(record.seq, record.prev, record.time))
    except (ValueError, InvalidSignature):
        return False
    return True


def public_text(key: Ed25519PublicKey) -> str:
    """Return a public key as `ed25519:<base64>`."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return _PREFIX + base64.b64encode(raw).decode()


def read_public(text: str) -> Ed25519PublicKey:
    """Read what `public_text` wrote.

    Raises:
        ConfigError: it is something else.
    """
    prefix, raw = text[: len(_PREFIX)], text[len(_PREFIX) :]
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(raw if prefix == _PREFIX else "", validate=True))
    except ValueError:
        raise ConfigError(
            "the public key cannot be read", why="it is not ed25519: and 44 characters of base64",
            fix="give what `secure-dagu audit key` printed",
        ) from None  # fmt: skip


def _signed(seq: int, prev: str, time: str) -> bytes:
    return f"secure-dagu audit checkpoint v1\n{seq}\n{prev}\n{time}\n".encode()


def _load(path: Path) -> Signer:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            key = serialization.load_pem_private_key(file.read(4096), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise ConfigError(
            f"the key of the audit log {path} cannot be used", why=type(problem).__name__,
            fix="restore it; or move the whole folder away as evidence, and a new log begins",
        ) from problem  # fmt: skip
    if mode & 0o077:
        raise ConfigError(f"others may read {path}", why="it signs the audit log", fix=f"chmod 600 {path}")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is no Ed25519 key", fix="restore it from your backup")
    return Signer(key)
