"""Our errors to gRPC statuses and back: one table, the families' own `grpc_status` (docs/conventions.md, "Errors").

A stock peer reads the details text, whose beginning is the text that protocol section 1.7 names. Our own client reads
the trailing metadata key as well and raises the same class with the same what, why and fix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import grpc

from secure_dagu.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    Refused,
    SecureDaguError,
    Unauthenticated,
    Unavailable,
    UnknownCall,
)
from secure_dagu.errors import IntegrityViolation as Integrity

METADATA_KEY = "secure-dagu-error-bin"
"""JSON of `as_dict()`: code, what, why, fix, reason."""
MAX_DETAILS = 1000
_REASON = re.compile(r"[a-z][a-z_]{0,31}")
MAX_METADATA = 3000
"""Bytes: a peer may limit all headers together to 8 KiB."""

_FAMILY: dict[grpc.StatusCode, type[SecureDaguError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: UnknownCall,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DATA_LOSS: Integrity,
}
"""What a status without our metadata means. INTERNAL and UNKNOWN are nobody's family: final, and not retried."""


def _descendants(kind: type[SecureDaguError]) -> Iterator[type[SecureDaguError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


_BY_CODE = {kind.code: kind for kind in _descendants(SecureDaguError) if kind.__module__ == SecureDaguError.__module__}
"""The families as they travel. A room's own refinements, such as a link's verdict, stay at home."""


def code_of(error: SecureDaguError) -> grpc.StatusCode:
    """Return the gRPC status of an error."""
    return grpc.StatusCode[error.grpc_status]


def details_of(error: SecureDaguError) -> str:
    """Return the text that every peer sees: what, why, fix and the code of a refusal, in this order."""
    said = str(error) + (f" ({error.fix})" if error.fix else "") + (f" [{error.reason}]" if error.reason else "")
    return said if len(said) <= MAX_DETAILS else said[: MAX_DETAILS - 1] + "…"


def metadata_of(error: SecureDaguError) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata from which our client rebuilds the error; none when it would be too long."""
    packed = json.dumps(error.as_dict(), ensure_ascii=False, separators=(",", ":")).encode()
    return ((METADATA_KEY, packed),) if len(packed) <= MAX_METADATA else ()


def error_of(code: grpc.StatusCode, details: str, metadata: Iterable[tuple[str, str | bytes]] = ()) -> SecureDaguError:
    """Return the error that a status stands for.

    The metadata is believed only where its class belongs to the status: the status is what decides about retries.
    """
    for key, value in metadata:
        if key == METADATA_KEY and isinstance(value, bytes) and (error := _unpacked(value, code)):
            return error
    said = details[:MAX_DETAILS]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable("no answer in time", why=said)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnknownCall("the other end does not know this call", why=said)
    family = _FAMILY.get(code)
    if family is None:
        return SecureDaguError(said or "the call failed at the other end", why=f"gRPC status {code.name}")
    return family(said or code.name)


def _unpacked(value: bytes, code: grpc.StatusCode) -> SecureDaguError | None:
    if len(value) > MAX_METADATA:
        return None
    try:
        told = json.loads(value)
        kind = _BY_CODE[told["code"]]
        what, why, fix = (str(told[field]) for field in ("what", "why", "fix"))
        reason = str(told.get("reason", ""))
    except (ValueError, KeyError, TypeError):
        return None
    if kind.grpc_status != code.name:
        return None
    error = kind(what, why=why, fix=fix)
    error.reason = reason if _REASON.fullmatch(reason) else ""
    return error
