"""Bounds of single fields: how long, which characters (protocol, section 2.1). Pure; used in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

from secure_dagu.dispatch.model import Owner, WorkerId
from secure_dagu.errors import InvalidRequest
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef

TIME_KEY = "secure-dagu-time"
ADVERTISE_KEY = "secure-dagu-advertise"
"""Trailing metadata of a health check: the coordinator's clock, and the addresses that it writes into tasks."""
DOCTOR = "@secure-dagu-doctor"
"""End of the worker id of who asks whether it would be admitted. Its heartbeats are judged, answered and forgotten."""

MAX_MESSAGE = 16 * 2**20
"""Bytes of one gRPC message, both ways (protocol, section 1.3)."""
MAX_DEFINITION = 4 * 2**20
MAX_STATUS = 8 * 2**20
MAX_PARAMS = 2**20
MAX_CHUNK = 4 * 2**20
"""Bytes of data in one log or artifact message: 3 MiB by custom (section 1.5), with room for others' habits."""
MAX_BUNDLE = 64 * 2**20
MAX_STATE_VALUE = 2**20
MAX_RUNNING = 1000
MAX_LABELS = 64
MAX_TEXT = 4096
MAX_WORKER_ID = 255
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
DIGEST = re.compile(r"[0-9a-f]{64}")
_DAG_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,40}")
_RUN_ID = re.compile(r"[-a-zA-Z0-9_]{1,64}")
_ATTEMPT_ID = re.compile(r"[-a-zA-Z0-9_]{1,64}")
_ATTEMPT_KEY = re.compile(r"[-a-zA-Z0-9_:]{1,160}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?|[0-9a-fA-F:.]{2,45}")
_LAST_SECOND = 253402300799  # 9999-12-31, the end of datetime


def text(value: str, field: str, *, limit: int = MAX_TEXT) -> str:
    """Return free text of at most `limit` characters."""
    if len(value) > limit:
        raise InvalidRequest(f"{field} is too long", why=f"{len(value)} characters, at most {limit} are accepted")
    return value


def line(value: str, field: str, *, limit: int = 255) -> str:
    """Return a name: one line of at most `limit` characters without control characters."""
    if len(value) > limit:
        raise InvalidRequest(f"{field} is too long", why=f"{len(value)} characters, at most {limit} are accepted")
    if CONTROL.search(value):
        raise InvalidRequest(f"{field} has control characters", why=ascii(value[:80]))
    return value


def worker_id(value: str) -> WorkerId:
    """Return a worker id; empty is the caller's business, for each method says itself whether it needs one."""
    return WorkerId(line(value, "worker_id", limit=MAX_WORKER_ID))


@lru_cache(maxsize=4096)
def run(name: str, run_id: str) -> DagRunRef:
    """Return a run reference; remembered, for heartbeats name the same few runs each second."""
    if not _DAG_NAME.fullmatch(name) or name in {".", ".."}:
        raise InvalidRequest(
            "the DAG name is malformed", why=ascii(name[:80]), fix="use up to 40 letters, digits, `_`, `.` and `-`"
        )
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidRequest(
            "the run id is malformed", why=ascii(run_id[:80]), fix="use up to 64 letters, digits, `_` and `-`"
        )
    return DagRunRef(name, run_id)


def root_of(of: DagRunRef, name: str, run_id: str) -> DagRunRef:
    """Return the root run: `of` itself when the id is empty or its own."""
    if not run_id or (run_id == of.run_id and name in {"", of.name}):
        return of
    return run(name, run_id)


def optional_run(name: str, run_id: str) -> DagRunRef | None:
    """Return a run reference, None when the id is empty."""
    return run(name, run_id) if run_id else None


def attempt_id(value: str) -> AttemptId:
    """Return a non-empty attempt id."""
    if not _ATTEMPT_ID.fullmatch(value):
        raise InvalidRequest("the attempt id is malformed", why=ascii(value[:80]))
    return AttemptId(value)


def attempt_key(value: str) -> AttemptKey:
    """Return an attempt key, or an empty one."""
    if value and not _ATTEMPT_KEY.fullmatch(value):
        raise InvalidRequest("the attempt key is malformed", why=ascii(value[:80]))
    return AttemptKey(value)


def labels(value: Mapping[str, str], field: str) -> dict[str, str]:
    """Return labels: at most 64, keys up to 128, values up to 256 characters, no control characters."""
    if len(value) > MAX_LABELS:
        raise InvalidRequest(f"{field} has too many entries", why=f"{len(value)}, at most {MAX_LABELS} are accepted")
    return {line(key, field, limit=128): line(item, field, limit=256) for key, item in value.items()}


def moment(seconds: int, field: str) -> datetime:
    """Return Unix seconds as an aware time."""
    if not 0 <= seconds <= _LAST_SECOND:
        raise InvalidRequest(f"{field} is no time", why=f"{seconds} is outside 1970 to 9999")
    return datetime.fromtimestamp(seconds, UTC)


def milliseconds(at: datetime | None) -> int:
    """Return a time in Unix milliseconds; 0 for none."""
    return int(at.timestamp() * 1000) if at is not None else 0


def from_milliseconds(value: int) -> datetime | None:
    """Return Unix milliseconds as an aware time; None for what is none."""
    return datetime.fromtimestamp(value / 1000, UTC) if 0 < value < _LAST_SECOND * 1000 else None


def digest(value: str) -> str:
    """Return a SHA-256 in lower-case hex."""
    if not DIGEST.fullmatch(value):
        raise InvalidRequest("valid workspace bundle digest is required", why="64 lower-case hex digits")
    return value


def owner(coordinator_id: str, host: str, port: int) -> Owner | None:
    """Return the owner of a task, None when the fields are empty; half an owner is refused (section 3.5)."""
    if not host and not port:
        return None
    host = host.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host) or not 1 <= port <= 65535:
        raise InvalidRequest("the owner coordinator is malformed", why=f"{host[:80]!a}, port {port}")
    return Owner(line(coordinator_id, "owner_coordinator_id"), host, port)


def required(value: str, field: str) -> str:
    """Return a value that must not be empty."""
    if not value:
        raise InvalidRequest(f"{field} is required")
    return value
