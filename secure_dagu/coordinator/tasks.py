"""Hand tasks to workers: dispatch, poll, claim, renew, cancel (protocol, sections 3.2 to 3.10).

The rules are `dispatch.machine` (the lifecycle) and `dispatch.match` (who gets what); this shell keeps their states,
writes what must survive, and wakes who waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from msgspec.structs import replace

from secure_dagu.audit.events import Action, Detail, Outcome, Trail, by, recorded, run_target
from secure_dagu.coordinator import bodies, documents, intake
from secure_dagu.coordinator.board import Board
from secure_dagu.coordinator.dispatching import Dispatching, new_entry
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.ledger import Entry, Ledger, is_limited
from secure_dagu.coordinator.tenants import Tenants, is_bound
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import LEASE_FOR, Clock, as_worker
from secure_dagu.dispatch.machine import Acknowledged, CancelRequested, Renewed, Resumed, TaskState, token_hash
from secure_dagu.dispatch.match import demand_of
from secure_dagu.dispatch.model import (
    ACCEPTED,
    NO_KEY,
    Caller,
    Claim,
    ClaimToken,
    Phase,
    RunningTask,
    Task,
    Verdict,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.dispatch.retrying import is_pending
from secure_dagu.errors import Conflict, InvalidRequest, LimitExceeded, Refused, StaleClaim
from secure_dagu.run.model import AttemptKey, DagRunRef, RunStatus
from secure_dagu.security.policy import reaches_tenant, tenant_of
from secure_dagu.store.api import AttemptRow, Store
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

MAX_RUNNING_LISTED = 10_000
MAX_STREAMS_OF_WORKER = 16
_MISSED_AFTER = timedelta(seconds=5)


class Desk:
    """Implement `dispatch.api.TaskDesk`."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        board: Board,
        dispatching: Dispatching,
        endings: Endings,
        finisher: Finisher,
        clock: Clock,
        trail: Trail,
        tenants: Tenants,
    ) -> None:
        self._tenants = tenants
        self._store = store
        self._ledger = ledger
        self.board = board
        self._dispatching = dispatching
        self._endings = endings
        self._finisher = finisher
        self._clock = clock
        self._trail = trail
        self._streams: dict[WorkerId, set[asyncio.Queue[AttemptKey | None]]] = {}
        endings.when_ended(board.leave)

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take the stored tasks in hand; every lease gets LEASE_FOR again, for the silence until now was ours."""
        now = self._clock.now()
        for row in await self._store.tasks():
            state = TaskState()
            task: Task | None = None
            text = row.body or await self._store.task_body(row.key) or ""
            body, _ = bodies.from_json(text)
            if row.leased:
                leased = TaskState(
                    phase=Phase.LEASED,
                    worker=WorkerId(row.worker),
                    token=row.token,
                    until=now,
                    cancelling=row.cancelling,
                )
                state = machine.advance(leased, Resumed(now + LEASE_FOR), now)
            else:
                task = body
            entry = new_entry(body, row.attempt, state=state, place=row.place, at=_moment(row.enqueued_at))
            entry.revision = row.revision
            entry.task = task
            self._dispatching.starts_after(row.place)
            self._ledger.add(entry)
            if task is not None:
                self.board.backlog.add(entry.key, demand_of(task), entry.place)

    def close(self) -> None:
        """End every waiting poll and stream: the coordinator is going away."""
        self.board.close()
        for streams in self._streams.values():
            for queue in streams:
                queue.put_nowait(None)

    # -- dispatch, poll, claim ----------------------------------------------------------------------------------------

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        """Accept a task (`TaskDesk.dispatch`)."""
        return await self._dispatching.dispatch(caller, task, admission_token=admission_token)

    async def poll(self, caller: Caller, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        """Wait for a task (`TaskDesk.poll`)."""
        return await self.board.poll(_named(caller), poller_id=poller_id, labels=labels)

    async def withdraw(self, token: ClaimToken) -> None:
        """Put an offered task back (`TaskDesk.withdraw`)."""
        self.board.withdraw(token)

    async def acknowledge(self, caller: Caller, *, token: ClaimToken, attempt_key: AttemptKey) -> Verdict:
        """Turn an offer into a lease (`TaskDesk.acknowledge`)."""
        if not token:
            raise InvalidRequest("claim_token is required")
        if not caller.worker:
            return _refused("worker_id is required")
        verdict = await self._finisher.finish(self._acknowledge(caller, caller.worker, token_hash(token), attempt_key))
        if not verdict.accepted:
            self._trail.note(
                by(
                    caller, Action.TASK_CLAIMED, f"attempt:{attempt_key}", outcome=Outcome.DENIED,
                    reason=verdict.error,
                )
            )  # fmt: skip
        metrics.CLAIM_ACKS.labels("ok" if verdict.accepted else "rejected").inc()
        return verdict

    async def _acknowledge(self, caller: Caller, worker: WorkerId, hashed: str, key: AttemptKey) -> Verdict:
        entry = self.board.offered(hashed) or self._ledger.get(key)
        if entry is None:
            return _refused("claim not found or expired")
        async with entry.writing:
            if entry.state.token == hashed and entry.state.worker != worker:
                return _refused("claim belongs to a different worker")
            if key and key != entry.key:
                return _refused("claim belongs to a different attempt")
            try:
                state = machine.advance(entry.state, Acknowledged(worker, hashed), self._clock.now())
            except StaleClaim:
                return _refused("claim not found or expired")
            if entry.state.phase is Phase.LEASED:
                return ACCEPTED
            event = by(
                caller, Action.TASK_CLAIMED, run_target(entry.run),
                details={Detail.ATTEMPT: entry.attempt_id, Detail.WORKER: worker},
            )  # fmt: skip
            try:
                async with recorded(self._trail, event):
                    await self._store.lease(entry.key, revision=entry.revision, worker=worker, token=hashed)
            except Conflict:
                return _refused("attempt claim conflicts with the active lease")
            entry.revision += 1
            entry.task = None
            entry.serial = caller.serial
            # The lease counts from now, not from before the write.
            now = self._clock.now()
            self._ledger.move(entry, replace(state, until=now + LEASE_FOR))
            self.board.leave(entry)
            metrics.QUEUE_WAIT.observe(max((now - entry.enqueued_at).total_seconds(), 0.0), dag=entry.run.name)
        log.info("task.claimed", run=str(entry.run), attempt=entry.attempt_id, worker=worker)
        return ACCEPTED

    # -- presence and renewal -----------------------------------------------------------------------------------------

    async def heartbeat(self, caller: Caller, *, labels: Mapping[str, str], stats: WorkerStats) -> Sequence[AttemptKey]:
        """Note presence (`TaskDesk.heartbeat`). Keys that are not ours are left alone: another coordinator's."""
        worker = _named(caller)
        if len(labels) > intake.MAX_PAIRS or len(stats.running) > MAX_RUNNING_LISTED:
            raise InvalidRequest("a heartbeat is too long", why="too many labels or running tasks")
        now = self._clock.now()
        before = self.board.presences.heard(worker, labels, stats, now)
        metrics.heartbeat_received(worker)
        if before is None:
            log.info("worker.appeared", worker=worker)
        elif now - before > _MISSED_AFTER:
            metrics.HEARTBEATS_MISSED.inc((now - before) // _MISSED_AFTER)
        return [key for key, known in self._renewed(caller, worker, stats.running, now) if known is False]

    async def run_heartbeat(self, caller: Caller, *, running: Sequence[RunningTask]) -> Sequence[AttemptKey]:
        """Renew leases (`TaskDesk.run_heartbeat`)."""
        if len(running) > MAX_RUNNING_LISTED:
            raise InvalidRequest("a run heartbeat is too long", why=f"more than {MAX_RUNNING_LISTED} tasks")
        return [key for key, _ in self._renewed(caller, _named(caller), running, self._clock.now())]

    def _renewed(
        self, caller: Caller, worker: WorkerId, running: Sequence[RunningTask], now: datetime
    ) -> list[tuple[AttemptKey, bool | None]]:
        """Renew what the worker holds; return what must stop: None without a lease here, False for a wish to stop."""
        stop: list[tuple[AttemptKey, bool | None]] = []
        for task in running:
            key = task.attempt_key
            if not key:
                continue
            entry = self._ledger.get(key)
            if entry is None or entry.run != task.run or entry.root != task.root or not entry.is_held_by(worker, now):
                stop.append((key, None))
                continue
            entry.state = machine.advance(entry.state, Renewed(worker), now)
            entry.serial = caller.serial
            if entry.state.cancelling:
                stop.append((key, False))
        return stop

    async def cancellations(self, caller: Caller) -> AsyncIterator[AttemptKey]:
        """Yield attempts that must stop (`TaskDesk.cancellations`)."""
        worker = _named(caller)
        streams = self._streams.setdefault(worker, set())
        if len(streams) >= MAX_STREAMS_OF_WORKER:
            raise LimitExceeded(f"more than {MAX_STREAMS_OF_WORKER} cancellation streams of one worker")
        queue: asyncio.Queue[AttemptKey | None] = asyncio.Queue()  # as long as the worker has tasks, never longer
        streams.add(queue)
        try:
            yield NO_KEY
            for entry in tuple(self._ledger.of_worker(worker).values()):
                if entry.state.cancelling:
                    yield entry.key
            while not self.board.is_closing and (key := await queue.get()) is not None:
                yield key
        finally:
            streams.discard(queue)
            if not streams:
                self._streams.pop(worker, None)

    async def workers(self, caller: Caller) -> Sequence[WorkerInfo]:
        """Return everybody who is there (`TaskDesk.workers`)."""
        self._trail.note(by(caller, Action.WORKERS_READ, "workers"))
        found = self.board.presences.infos(self._clock.now())
        if not is_bound(caller):
            return found
        # Whose workers are there, and what they run, is their tenant's business.
        return [worker for worker in found if reaches_tenant(caller, tenant_of(worker.labels))]

    # -- cancel -------------------------------------------------------------------------------------------------------

    async def cancel(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> Verdict:
        """Ask for the end of a run (`TaskDesk.cancel`)."""
        if not run.name or not run.run_id:
            raise InvalidRequest("dag_name and dag_run_id are required")
        top = run if root is None or not root.run_id or root.run_id == run.run_id else root
        if is_limited(caller) and not self._ledger.held_in_tree(caller, top, self._clock.now()):
            raise Refused("a worker may cancel only runs of its own tree", why="it holds no lease there")
        await self._tenants.check_run(caller, top, "RequestCancel")
        verdict = await self._finisher.finish(self._cancel(caller, run, top))
        metrics.CANCEL_REQUESTS.labels("accepted" if verdict.accepted else "rejected").inc()
        return verdict

    async def _cancel(self, caller: Caller, run: DagRunRef, root: DagRunRef) -> Verdict:
        event = by(caller, Action.RUN_CANCELLED, run_target(run), details={Detail.ROOT: str(root)})
        row = await self._store.latest(run=run, root=root)
        if row is None:
            self._trail.note(replace(event, outcome=Outcome.FAILED, reason="not-found"))
            return _refused(f"failed to find DAG run: {run}")
        entry = self._ledger.get(row.claim_key)
        if RunStatus(row.status).is_terminal:
            if row.status == RunStatus.FAILED and run == root and await self._is_retried(row):
                async with recorded(self._trail, event):
                    await self._endings.end_stored(row, RunStatus.ABORTED, error="stopped before its automatic retry")
                return ACCEPTED
            self._trail.note(replace(event, reason="it was over"))
            return ACCEPTED
        if row.claim_key != row.key and entry is not None:
            self._trail.note(replace(event, outcome=Outcome.FAILED, reason=f"it runs inside {entry.run}"))
            return _refused(f"failed to cancel DAG run: {run} runs inside {entry.run}; cancel that run")
        async with recorded(self._trail, event):
            if entry is None:
                await self._endings.end_stored(row, RunStatus.ABORTED, error="context canceled")
            else:
                await self.cancel_entry(entry)
        log.info("run.cancel_requested", run=str(run), root=str(root))
        return ACCEPTED

    async def _is_retried(self, row: AttemptRow) -> bool:
        """Tell whether a failed run waits for its automatic retry."""
        try:
            return is_pending(documents.parse(await self._store.document(row.key)))
        except InvalidRequest:
            return False

    async def cancel_children(self, lost: Entry) -> None:
        """Cancel the children that a run had dispatched whose holder is gone: nobody waits for them any more."""
        parents = {lost.run, *(known.run for known in lost.attempts.values())}
        for entry in self._ledger.of_tree(lost.root):
            if entry.parent in parents:
                await self.cancel_entry(entry)

    async def cancel_entry(self, entry: Entry) -> None:
        """Cancel a task in hand: at once when no worker has it, else through its worker."""
        async with entry.writing:
            if entry.state.is_over or self._ledger.get(entry.key) is None:
                return
            state = machine.advance(entry.state, CancelRequested(), self._clock.now())
            if state.is_over:
                await self._endings.end(entry, state, error="context canceled")
                return
            if not entry.state.cancelling:
                await self._store.mark_cancelling(entry.key)
                self._ledger.move(entry, replace(entry.state, cancelling=True))
        for queue in self._streams.get(entry.state.worker, ()):
            queue.put_nowait(entry.key)


def _named(caller: Caller) -> WorkerId:
    if not caller.worker:
        raise InvalidRequest("worker_id is required")
    return as_worker(caller)


def _refused(error: str) -> Verdict:
    return Verdict(accepted=False, error=error)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
