"""Order, size and digest of what travels in pieces: bundles, logs, artifacts (protocol, sections 5.4 and 7). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from secure_dagu.dispatch.model import LogPart, LogStream
from secure_dagu.errors import IntegrityViolation, InvalidRequest, LimitExceeded, PreconditionFailed

BUNDLE_CHUNK = 2**20
"""Bytes of a bundle piece, by custom."""
LOG_CHUNK = 3 * 2**20
"""Bytes of a log or artifact piece, by custom."""
MAX_BUNDLE = 64 * 2**20
MAX_PARTS = 1_000_000
"""Messages in one upload stream."""


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut `data` into pieces of at most `size` bytes, without copying what fits; nothing for no data."""
    if len(data) <= size:
        if data:
            yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield bytes(view[start : start + size])


class BundleIntake:
    """Check the pieces of a bundle as they arrive."""

    def __init__(self) -> None:
        self._expected = 0
        self._size = 0
        self._digest = ""

    def take(self, *, sequence: int, size: int, digest: str) -> None:
        """Check one piece; `digest` is empty where the piece carries no descriptor.

        Raises:
            InvalidRequest: a gap, another digest than before, more than 64 MiB.
        """
        if sequence != self._expected:
            raise InvalidRequest(f"workspace bundle sequence mismatch: got {sequence}, want {self._expected}")
        if digest:
            if self._digest and digest != self._digest:
                raise InvalidRequest("workspace bundle digest changed")
            self._digest = digest
        self._expected += 1
        self._size += size
        if self._size > MAX_BUNDLE:
            raise InvalidRequest("workspace bundle is too large", why=f"more than {MAX_BUNDLE} bytes")


class BundleCheck:
    """Check a downloaded bundle: order, size and finally the digest."""

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._hash = hashlib.sha256()
        self._intake = BundleIntake()

    def take(self, *, sequence: int, data: bytes) -> None:
        """Check one piece.

        Raises:
            IntegrityViolation: a gap, or more than a bundle may have.
        """
        try:
            self._intake.take(sequence=sequence, size=len(data), digest="")
        except InvalidRequest as error:
            raise IntegrityViolation("the bundle arrived damaged", why=str(error)) from error
        self._hash.update(data)

    def end(self) -> None:
        """Check the whole.

        Raises:
            IntegrityViolation: the bytes are not those that the digest names.
        """
        if self._hash.hexdigest() != self._digest:
            raise IntegrityViolation(
                "the bundle is not the one that was asked for",
                why=f"its SHA-256 is {self._hash.hexdigest()}, not {self._digest}",
            )


class SameIdentity:
    """Hold a stream to the identity of its first message."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._first: tuple[str, ...] | None = None
        self._parts = 0

    def take(self, identity: tuple[str, ...]) -> bool:
        """Check one message; True for the first.

        Raises:
            PreconditionFailed: the identity changed.
            LimitExceeded: too many messages.
        """
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise LimitExceeded(f"{self._kind} stream has too many messages", why=f"at most {MAX_PARTS} are accepted")
        if self._first is None:
            self._first = identity
            return True
        if identity != self._first:
            raise PreconditionFailed(f"{self._kind} stream attempt identity changed")
        return False


class LogModes:
    """Hold each (step, stream) of one call to the mode of its first part: positioned or append (section 5.4)."""

    MAX_STREAMS = 10_000

    def __init__(self) -> None:
        self._is_positioned: dict[tuple[str, LogStream], bool] = {}

    def take(self, part: LogPart) -> None:
        """Check one part.

        Raises:
            InvalidRequest: the mode changed, or too many streams in one call.
        """
        key = (part.step, part.stream)
        positioned = part.offset is not None
        if self._is_positioned.setdefault(key, positioned) is not positioned:
            raise InvalidRequest("failed to create writer: log stream write mode changed")
        if len(self._is_positioned) > self.MAX_STREAMS:
            raise InvalidRequest("too many log streams in one call", why=f"at most {self.MAX_STREAMS} are accepted")
