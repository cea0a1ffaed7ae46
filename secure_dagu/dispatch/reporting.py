"""Is a status report to be believed? Pure: the decision of protocol section 3.9, hardened as section 14.4 allows.

What differs from the reference: nobody but the holder of a fresh lease is heard (a claim, a free run or a finished run
open to everybody are gaps G11 and G12), the document may not speak for another worker (G13), and a child made on the
fly takes its run id as its attempt id, as in-process children do, so that it cannot name somebody else's folder (G14).
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from secure_dagu.dispatch.model import WorkerId
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus, attempt_key

LEASE_GONE = "stale attempt: lease no longer active"
SUPERSEDED = "stale attempt: superseded by newer attempt"
ALREADY_OVER = "stale attempt: run already terminal"


class Reported(Struct, frozen=True, kw_only=True):
    """Who a status document says it is about."""

    worker: WorkerId
    """The reporting worker, as the wall has established it."""
    run: DagRunRef
    root: DagRunRef
    attempt_id: AttemptId
    attempt_key: AttemptKey
    """Empty when the document has none."""
    claim_key: AttemptKey
    """Empty when the document has none."""
    status: int
    named_worker: str
    """`workerId` of the document; empty when it has none."""

    @property
    def derived_key(self) -> AttemptKey:
        """Return the attempt key that the identity makes."""
        return attempt_key(root=self.root, run=self.run, attempt_id=self.attempt_id)

    @property
    def claim(self) -> AttemptKey:
        """Return the key of the task under which the report is made."""
        return self.claim_key or self.attempt_key or self.derived_key


class Held(Struct, frozen=True, kw_only=True):
    """The task behind the claim key, if the coordinator still has it."""

    key: AttemptKey
    run: DagRunRef
    root: DagRunRef
    attempt_id: AttemptId
    worker: WorkerId
    is_fresh: bool
    """True while the worker's lease has not expired."""


class Stored(Struct, frozen=True, kw_only=True):
    """The latest attempt of the reported run, as stored."""

    key: AttemptKey
    attempt_id: AttemptId
    claim_key: AttemptKey
    status: RunStatus
    worker: str
    has_live_claim: bool
    """True while the task named by `claim_key` has not ended."""


class Accept(Enum):
    """What to do with a report that is believed."""

    STORE = "store"
    CREATE = "create"
    """The first report of a child that runs inside the task."""
    REPEAT = "repeat"
    """The same end again: nothing changes."""


class Refuse(Struct, frozen=True):
    """The in-band refusal and its text."""

    error: str


def decide(report: Reported, held: Held | None, stored: Stored | None) -> Accept | Refuse:
    """Return what becomes of a report. `stored` is the latest attempt of `report.run`."""
    if report.status not in _STATUSES:
        return Refuse(f"stale attempt: run status {report.status} is unknown")
    if report.named_worker and report.named_worker != report.worker:
        return Refuse("stale attempt: the status names another worker")
    if report.attempt_key and report.attempt_key != report.derived_key:
        return Refuse(SUPERSEDED)
    if held is None or not held.is_fresh or held.worker != report.worker:
        return _without_lease(report, held, stored)
    if report.root != held.root:
        return Refuse(SUPERSEDED)
    if report.claim == report.derived_key:
        if report.run != held.run or report.attempt_id != held.attempt_id:
            return Refuse(SUPERSEDED)
    elif report.run == held.run or report.run == held.root:
        return Refuse(SUPERSEDED)  # a task's own run reports under its own key
    if stored is None:
        if report.attempt_id != report.run.run_id or report.run in (held.run, held.root):
            return Refuse(LEASE_GONE)
        return Accept.CREATE
    if stored.attempt_id != report.attempt_id or stored.claim_key != held.key:
        # A new attempt of the task runs its in-process children again, under the new claim and the same child id.
        is_same_child = stored.key == report.derived_key and stored.key not in (held.key, stored.claim_key)
        return Accept.STORE if is_same_child and not stored.has_live_claim else Refuse(SUPERSEDED)
    return _over(report, stored)


def _over(report: Reported, stored: Stored) -> Accept | Refuse:
    if not stored.status.is_terminal:
        return Accept.STORE
    if report.status == stored.status:
        return Accept.REPEAT
    if stored.status.is_success or stored.key == stored.claim_key:
        return Refuse(ALREADY_OVER)
    return Accept.STORE  # a failed child inside the task whose step is tried again, by the holder of the lease


def _without_lease(report: Reported, held: Held | None, stored: Stored | None) -> Refuse | Accept:
    if stored is not None and stored.status.is_terminal:
        is_same = stored.attempt_id == report.attempt_id and stored.worker == report.worker
        if is_same and report.status == stored.status:
            return Accept.REPEAT  # the answer got lost and the worker asks again (protocol, appendix B)
        if is_same and RunStatus(report.status).is_terminal:
            return Refuse(ALREADY_OVER)
    if held is not None and held.worker and held.worker != report.worker:
        return Refuse(SUPERSEDED)
    return Refuse(LEASE_GONE)


_STATUSES = frozenset(int(status) for status in RunStatus)
