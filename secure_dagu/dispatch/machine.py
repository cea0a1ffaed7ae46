"""The life of a task: queued → offered → leased → ended | lost. Pure: every rule of the lifecycle is here.

The table is in docs/architecture.md, "The two lifecycles". Tokens arrive as SHA-256 hex digests: the token itself
exists only in the claim that travels to the worker and back.
"""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta
from hashlib import sha256
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dispatch.api import LEASE_FOR
from secure_dagu.dispatch.model import ClaimToken, Phase, WorkerId
from secure_dagu.errors import Conflict, LeaseLost, StaleClaim
from secure_dagu.run.model import RunStatus

NOBODY = WorkerId("")
MAX_DELIVERIES = 5
"""Offers that may expire before the run is failed: a task that kills its workers must not circle for ever."""


def token_hash(token: ClaimToken) -> str:
    """Return what is remembered of a claim token."""
    return sha256(token.encode()).hexdigest()


class TaskState(Struct, frozen=True, kw_only=True):
    """Who holds a task, and until when. `worker`, `token` and `until` are empty while it is queued."""

    phase: Phase = Phase.QUEUED
    worker: WorkerId = NOBODY
    token: str = ""
    """SHA-256 hex of the claim token."""
    until: datetime | None = None
    """When the offer or the lease ends without a word from the worker."""
    deliveries: int = 0
    """Offers that expired unacknowledged."""
    cancelling: bool = False
    status: RunStatus | None = None
    """How the run ended; only in `ENDED` and `LOST`."""

    def holds(self, worker: WorkerId, token: str) -> bool:
        """Tell whether this worker and this token hash are those of the present offer or lease."""
        return bool(token) and worker == self.worker and hmac.compare_digest(token, self.token)

    def is_leased_to(self, worker: WorkerId, now: datetime) -> bool:
        """Tell whether `worker` holds a lease that is fresh at `now`. An expired one is none, swept or not."""
        return self.phase is Phase.LEASED and self.worker == worker and self.until is not None and now < self.until

    @property
    def is_over(self) -> bool:
        """Tell whether nothing will happen to the task any more."""
        return self.phase in (Phase.ENDED, Phase.LOST)


class Offered(Struct, frozen=True):
    """A poller of `worker` is handed the task; `token` is a hash of a fresh random token."""

    worker: WorkerId
    token: str
    until: datetime


class Withdrawn(Struct, frozen=True):
    """The offer never reached its poller: no delivery is spent."""

    token: str


class Acknowledged(Struct, frozen=True):
    """The worker takes the offer."""

    worker: WorkerId
    token: str


class Renewed(Struct, frozen=True):
    """The worker says that it still runs the task."""

    worker: WorkerId


class Expired(Struct, frozen=True):
    """The clock has passed `until`."""


class Finished(Struct, frozen=True):
    """The holder has reported the end of the run."""

    worker: WorkerId
    status: RunStatus


class CancelRequested(Struct, frozen=True):
    """Somebody who may wants the run to stop."""


class GivenUp(Struct, frozen=True):
    """Nobody who could run the task has been there for too long."""


class Resumed(Struct, frozen=True):
    """A coordinator has just started, or was away: silence until now was its own."""

    until: datetime


class Released(Struct, frozen=True):
    """The holder may not hold anything any more, such as after its certificate was revoked: the task is handed on."""

    worker: WorkerId


Event = (
    Offered | Withdrawn | Acknowledged | Renewed | Expired | Finished | CancelRequested | GivenUp | Resumed | Released
)

_UNCLAIMED = (Phase.QUEUED, Phase.OFFERED)


def advance(task: TaskState, event: Event, now: datetime) -> TaskState:
    """Return the state after `event`.

    Raises:
        StaleClaim: an offer, acknowledgement or withdrawal that does not fit the present offer.
        LeaseLost: a renewal, an end or an expiry that no present lease covers.
        Conflict: anything else that the table does not name.
    """
    match event:
        case Offered(worker, token, until) if task.phase is Phase.QUEUED and worker and token and until > now:
            return replace(task, phase=Phase.OFFERED, worker=worker, token=token, until=until)
        case Withdrawn(token) if task.phase is Phase.OFFERED and task.holds(task.worker, token):
            return _queued(task)
        case Acknowledged(worker, token) if task.phase is Phase.OFFERED and task.holds(worker, token):
            if task.until is None or now >= task.until:
                raise _refusal(event)
            return replace(task, phase=Phase.LEASED, until=now + LEASE_FOR)
        case Acknowledged(worker, token) if task.is_leased_to(worker, now) and task.holds(worker, token):
            return task  # the answer got lost: the same worker with the same token asks again (protocol, section 3.5)
        case Renewed(worker) if task.is_leased_to(worker, now):
            return replace(task, until=now + LEASE_FOR)
        case Expired() if task.until is not None and now >= task.until and not task.is_over:
            if task.phase is Phase.LEASED:
                return replace(task, phase=Phase.LOST, until=None, status=RunStatus.FAILED)
            spent = task.deliveries + 1
            if spent >= MAX_DELIVERIES:
                return _ended(replace(task, deliveries=spent), RunStatus.FAILED)
            return _queued(replace(task, deliveries=spent))
        case Finished(worker, status) if task.is_leased_to(worker, now) and _ends_task(status):
            return replace(task, phase=Phase.ENDED, until=None, status=status)
        case CancelRequested() if task.phase in _UNCLAIMED:
            return _ended(replace(task, cancelling=True), RunStatus.ABORTED)
        case CancelRequested() if task.phase is Phase.LEASED:
            return replace(task, cancelling=True)
        case CancelRequested():
            return task  # idempotent, also for what is over
        case GivenUp() if task.phase is Phase.QUEUED:
            return _ended(task, RunStatus.FAILED)
        case Resumed(until) if task.phase in (Phase.LEASED, Phase.OFFERED):
            return replace(task, until=until)
        case Resumed():
            return task
        case Released(worker) if task.phase in (Phase.LEASED, Phase.OFFERED) and worker == task.worker:
            if task.cancelling:
                return _ended(task, RunStatus.ABORTED)
            spent = task.deliveries + 1
            if spent >= MAX_DELIVERIES:
                return _ended(replace(task, deliveries=spent), RunStatus.FAILED)
            return _queued(replace(task, deliveries=spent))
        case _:
            raise _refusal(event)


def shifted(task: TaskState, by: timedelta) -> TaskState:
    """Return the state with its deadline moved: the coordinator itself was away for that long."""
    return task if task.until is None else replace(task, until=task.until + by)


def _queued(task: TaskState) -> TaskState:
    return replace(task, phase=Phase.QUEUED, worker=NOBODY, token="", until=None)


def _ended(task: TaskState, status: RunStatus) -> TaskState:
    return replace(task, phase=Phase.ENDED, worker=NOBODY, token="", until=None, status=status)


def _ends_task(status: RunStatus) -> bool:
    # A run that waits for a person has left its worker too (protocol, section 3.7, "Waiting").
    return status.is_terminal or status is RunStatus.WAITING


def _refusal(event: Event) -> Conflict:
    match event:
        case Offered() | Withdrawn() | Acknowledged():
            return StaleClaim("claim not found or expired", fix="poll again")
        case Renewed() | Finished() | Expired() | Released():
            return LeaseLost("stale attempt: lease no longer active", fix="stop the run; its outcome is decided")
        case CancelRequested() | GivenUp() | Resumed():
            return Conflict(f"{type(event).__name__} does not apply to this task", fix="read it again")
        case _:
            assert_never(event)
