"""Values of one run and its attempt: references, keys, statuses. Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import NewType

from msgspec import Struct

AttemptId = NewType("AttemptId", str)
AttemptKey = NewType("AttemptKey", str)
"""`<16 hex of FNV-1a-64>:<attempt id>`; made by `attempt_key` and by nothing else."""

SCRIPT_PREFIX = "secure-dagu-"
"""How the name of a script's temporary file begins; what people read does not show it (section 3.1)."""

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3


class DagRunRef(Struct, frozen=True):
    """Name one run: the DAG's name and the run id."""

    name: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.name}/{self.run_id}"


class RunStatus(IntEnum):
    """Status of a run, with the wire's numbers (protocol, section 4.5)."""

    NOT_STARTED = 0
    RUNNING = 1
    FAILED = 2
    ABORTED = 3
    SUCCEEDED = 4
    QUEUED = 5
    PARTIALLY_SUCCEEDED = 6
    WAITING = 7
    REJECTED = 8

    @property
    def word(self) -> str:
        """Return the lower snake case word: `partially_succeeded`."""
        return self.name.lower()

    @property
    def title(self) -> str:
        """Return the display title: `Partially Succeeded`."""
        return self.name.replace("_", " ").title()

    @property
    def is_terminal(self) -> bool:
        """Tell whether the run is over: everything but not started, running, queued and waiting."""
        return self not in (RunStatus.NOT_STARTED, RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.WAITING)

    @property
    def is_success(self) -> bool:
        """Tell whether the run counts as successful."""
        return self in (RunStatus.SUCCEEDED, RunStatus.PARTIALLY_SUCCEEDED)


class StepStatus(IntEnum):
    """Status of a step in a run, with the wire's numbers (protocol, section 4.5)."""

    NOT_STARTED = 0
    RUNNING = 1
    FAILED = 2
    ABORTED = 3
    SUCCEEDED = 4
    SKIPPED = 5
    PARTIALLY_SUCCEEDED = 6
    WAITING = 7
    REJECTED = 8
    RETRYING = 9

    @property
    def word(self) -> str:
        """Return the lower snake case word."""
        return self.name.lower()

    @property
    def is_terminal(self) -> bool:
        """Tell whether the step will not change any more without a retry of the run."""
        return self in (
            StepStatus.FAILED,
            StepStatus.ABORTED,
            StepStatus.SUCCEEDED,
            StepStatus.SKIPPED,
            StepStatus.PARTIALLY_SUCCEEDED,
            StepStatus.REJECTED,
        )


class TriggerType(IntEnum):
    """What started a run, with the wire's numbers (protocol, section 4.5)."""

    UNKNOWN = 0
    SCHEDULER = 1
    MANUAL = 2
    WEBHOOK = 3
    SUBDAG = 4
    RETRY = 5
    CATCHUP = 6


def attempt_key(*, root: DagRunRef, run: DagRunRef, attempt_id: AttemptId) -> AttemptKey:
    """Return the global key of an attempt (protocol, section 2.2).

    FNV-1a-64 over `rootName NUL rootId NUL dagName NUL runId`, 16 lower-case hex digits, then `:` and the attempt id.
    It is an unkeyed hash: an identifier, never a secret.
    """
    value = _FNV_OFFSET
    for byte in "\0".join((root.name, root.run_id, run.name, run.run_id)).encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return AttemptKey(f"{value:016x}:{attempt_id}")
