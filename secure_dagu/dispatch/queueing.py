"""Which queued runs start now, and why each other one waits (configuration reference 6.7, REST reference 6). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from secure_dagu.dispatch.operating import Condition, Waiting
from secure_dagu.run.model import DagRunRef


class QueuedRun(Struct, frozen=True, kw_only=True):
    """One item of a queue."""

    key: str
    """Names the item among those of all queues."""
    queue: str
    run: DagRunRef
    queued_at: datetime
    high: bool = False


class QueueState(Struct, frozen=True, kw_only=True):
    """A queue as it stands. `items` are in their order: high before low, then the older first."""

    name: str
    is_global: bool
    max_concurrency: int
    paused: bool
    running: int
    """How many runs of it are executed, here and by workers."""
    items: tuple[QueuedRun, ...]


class Decision(Struct, frozen=True):
    """What follows: every item is in exactly one of both."""

    start: tuple[QueuedRun, ...]
    waits: Mapping[str, Waiting]
    """By key."""


def decide(queue: QueueState, held: Mapping[str, Waiting]) -> Decision:
    """Return which items start, in their order, and why the others wait.

    Args:
        queue: as it stands.
        held: items that cannot start now whatever the queue says, such as those that no worker would take. They take
            no place, so what stands behind them goes on.
    """
    if queue.paused:
        return Decision((), {item.key: Waiting.PAUSED for item in queue.items})
    free = queue.max_concurrency - queue.running
    start: list[QueuedRun] = []
    waits: dict[str, Waiting] = {}
    for item in queue.items:
        if (reason := held.get(item.key)) is not None:
            waits[item.key] = reason
        elif len(start) < free:
            start.append(item)
        else:
            waits[item.key] = Waiting.QUEUE_LIMIT
    return Decision(tuple(start), waits)


_CANNOT = "The DAG-run cannot start because "
_DETAILS: Mapping[Waiting, tuple[str, str, str, str]] = {
    Waiting.PAUSED: ("QueueReady", "False", "the queue is paused.", "The queue is paused."),
    Waiting.QUEUE_LIMIT: (
        "ConcurrencyReady", "False", "the queue active-run concurrency limit has been reached.",
        "The queue active-run concurrency limit has been reached.",
    ),
    Waiting.NO_WORKER: (
        "WorkerReady", "False", "no healthy worker is available.", "No healthy worker is available.",
    ),
    Waiting.NO_MATCHING_WORKER: (
        "WorkerReady", "False", "no healthy worker matches the required selector.",
        "No healthy worker matches the required worker selector.",
    ),
    Waiting.NOT_AUTHORISED: (
        "WorkerReady", "False", "no worker's certificate grants the required labels.",
        "Workers claim the required labels, and none has a certificate that grants them.",
    ),
    Waiting.NO_CAPACITY: (
        "WorkerReady", "False", "every matching worker is busy.", "Every slot of the matching workers is taken.",
    ),
    Waiting.COORDINATOR_UNREACHABLE: (
        "WorkerAssignmentReady", "Unknown", "the coordinator cannot be reached.", "The coordinator cannot be reached.",
    ),
    Waiting.ASSIGNMENT_PENDING: (
        "WorkerAssignmentReady", "Unknown", "its assignment to a worker is pending.",
        "The assignment to a worker is pending.",
    ),
    Waiting.RECORD_DAMAGED: (
        "RunRecordReady", "False", "its record is damaged.", "The record of the queued run cannot be read.",
    ),
    Waiting.LAUNCH_FAILED: (
        "StartObserved", "False", "it could not be launched.", "The last attempt to launch the run failed.",
    ),
    Waiting.QUEUE_UNREADABLE: (
        "QueueReady", "Unknown", "the queue cannot be read.", "The state of the queue cannot be read.",
    ),
}  # fmt: skip


def conditions(waiting: Waiting, now: datetime) -> tuple[Condition, Condition]:
    """Return the pair of facts that says why a run waits."""
    kind, status, because, message = _DETAILS[waiting]
    return (
        Condition(type="Runnable", status=status, reason=waiting, message=_CANNOT + because, checked_at=now),
        Condition(type=kind, status=status, reason=waiting, message=message, checked_at=now),
    )


def as_fields(condition: Condition) -> dict[str, str]:
    """Return a condition as records, documents and the REST API spell it."""
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "checkedAt": condition.checked_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def from_fields(found: object) -> Condition | None:
    """Return a condition that was noted; None when it is none."""
    if not isinstance(found, dict):
        return None
    try:
        return Condition(
            type=found["type"],
            status=found["status"],
            reason=found["reason"],
            message=found["message"],
            checked_at=datetime.fromisoformat(found["checkedAt"]),
        )
    except (KeyError, ValueError, TypeError):
        return None
