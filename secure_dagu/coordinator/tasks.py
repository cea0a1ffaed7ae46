"""Hand tasks to workers: dispatch, poll, claim, renew, cancel (protocol, sections 3.2 to 3.10).

The rules are `dispatch.machine` (the lifecycle) and `dispatch.match` (who gets what); this shell keeps their states,
writes what must survive, and wakes who waits.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog

from secure_dagu.coordinator import bodies, documents, intake
from secure_dagu.coordinator.attempts import as_known
from secure_dagu.coordinator.bodies import SecretGrant
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.ledger import Entry, Ledger, Presences, is_limited
from secure_dagu.dag.model import Definition
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import CLAIM_FOR, LEASE_FOR, Clock, as_worker
from secure_dagu.dispatch.machine import (
    Acknowledged,
    CancelRequested,
    Offered,
    Renewed,
    Resumed,
    TaskState,
    Withdrawn,
    token_hash,
)
from secure_dagu.dispatch.match import Backlog, Demand, Waiters, demand_of, label_set
from secure_dagu.dispatch.model import (
    ACCEPTED,
    NO_KEY,
    Caller,
    Claim,
    ClaimToken,
    Operation,
    Owner,
    Phase,
    RunningTask,
    Task,
    Verdict,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    Refused,
    SecureDaguError,
    StaleClaim,
    Unavailable,
)
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus, attempt_key
from secure_dagu.store.api import AttemptRow, NewAttempt, Store
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

MAX_CHILDREN = 10_000
"""Children that one task may dispatch or create: a loop in a workflow must end somewhere."""
MAX_RUNNING_LISTED = 10_000
MAX_STREAMS_OF_WORKER = 16
_MISSED_AFTER = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskLimits:
    """Bounds of the desk."""

    pending: int = 50_000
    """Tasks that may wait for a worker."""
    polls_of_worker: int = 1_000
    """Open polls of one worker id (the reference's default is 100)."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """One poll that waits."""

    claim: asyncio.Future[Claim | None]


class Desk:
    """Implement `dispatch.api.TaskDesk`."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        endings: Endings,
        definitions: intake.Definitions,
        known_text: Callable[[str], str | None],
        finisher: Finisher,
        clock: Clock,
        owner: Owner,
        limits: DeskLimits,
    ) -> None:
        """Take what it works on. `known_text` reads a definition of the DAG directory by name."""
        self._store = store
        self._ledger = ledger
        self._endings = endings
        self._definitions = definitions
        self._known_text = known_text
        self._finisher = finisher
        self._clock = clock
        self._owner = owner
        self._limits = limits
        self.presences = Presences()
        self.backlog = Backlog()
        self.waiters: Waiters[_Waiter] = Waiters()
        self._offers: dict[str, Entry] = {}
        self._streams: dict[WorkerId, set[asyncio.Queue[AttemptKey | None]]] = {}
        self._place = 0
        self._is_closing = False
        endings.when_ended(self._ended)

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
            entry = _entry(body, row.attempt, state=state, place=row.place, at=_moment(row.enqueued_at))
            entry.revision = row.revision
            entry.task = task
            self._place = max(self._place, row.place)
            self._ledger.add(entry)
            if task is not None:
                self.backlog.add(entry.key, demand_of(task), entry.place)
        self._count()

    def close(self) -> None:
        """End every waiting poll and stream: the coordinator is going away."""
        self._is_closing = True
        for waiter in self.waiters.take_all():
            if not waiter.claim.done():
                waiter.claim.set_result(None)
        for streams in self._streams.values():
            for queue in streams:
                queue.put_nowait(None)

    # -- dispatch -----------------------------------------------------------------------------------------------------

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        """Accept a task (`TaskDesk.dispatch`)."""
        operation = "retry" if task.operation is Operation.RETRY else "start"
        result = "error"
        try:
            accepted = await self._dispatch(caller, task, admission_token)
            result = "accepted"
        except Unavailable as error:
            result = "no_worker" if error.what == _NO_WORKER else "error"
            raise
        except SecureDaguError as error:
            result = "no_matching_worker" if error.what == _NO_MATCH else "rejected"
            raise
        finally:
            metrics.TASKS_DISPATCHED.labels(result, operation).inc()
        return accepted

    async def _dispatch(self, caller: Caller, task: Task, admission_token: str) -> Task:
        task = intake.checked(task)
        if self._is_closing:
            raise Unavailable("the coordinator is closing", fix="try another one")
        holder = self._parent_entry(caller, task) if is_limited(caller) else None
        if admission_token.strip():
            raise PreconditionFailed(
                "failed to enqueue task: dispatch admission not found", why="this coordinator keeps no admissions"
            )
        definition = await self._definitions.get(task.definition, name=task.run.name, base_config=task.base_config)
        previous = intake.previous(task) if task.operation is Operation.RETRY else None
        while True:
            entry = self._ledger.of_run(run=task.run, root=task.root)
            if entry is not None:
                return await self._active(entry)
            self._check_workers(demand_of(task))
            if len(self.backlog) >= self._limits.pending:
                raise LimitExceeded(f"{self._limits.pending} tasks wait for workers", fix="add workers")
            latest = await self._store.latest(run=task.run, root=task.root)
            ready = await self._prepared(task, latest, previous)
            try:
                return await self._finisher.finish(self._enter(ready, definition, latest, holder))
            except Conflict as error:
                if isinstance(error, PreconditionFailed) or self._ledger.of_run(run=task.run, root=task.root) is None:
                    raise  # another coordinator on the same store was faster: the caller reads again

    def _parent_entry(self, caller: Caller, task: Task) -> Entry:
        parent = task.parent
        if parent is None:
            raise Refused("a worker may dispatch only children of its own runs", fix="use a dispatcher certificate")
        for entry in self._ledger.held_in_tree(caller, task.root, self._clock.now()):
            if parent == entry.run or any(parent == known.run for known in entry.attempts.values()):
                if entry.children >= MAX_CHILDREN:
                    raise LimitExceeded(f"a run may have {MAX_CHILDREN} children", fix="split the workflow")
                return entry
        raise Refused("a worker may dispatch only children of its own runs", why="it holds no lease of the parent")

    async def _active(self, entry: Entry) -> Task:
        """Return the task of a run that is in hand: a repeated dispatch changes nothing."""
        if entry.task is not None:
            return entry.task
        text = await self._store.task_body(entry.key)
        if text is None:
            raise Conflict(f"run {entry.run} has just ended", fix="read it again")
        return bodies.from_json(text)[0]

    def _check_workers(self, demand: Demand) -> None:
        now = self._clock.now()
        is_live = len(self.waiters) > 0
        for worker, labels in self.presences.live(now):
            if demand.is_met_by(worker, labels):
                return
            is_live = True
        if self.waiters.meets(demand):
            return
        if not is_live:
            raise Unavailable(_NO_WORKER, fix="start a worker")
        raise PreconditionFailed(_NO_MATCH, why=f"nobody offers {demand}", fix="start a worker with these labels")

    def meets(self, demand: Demand, now: datetime) -> bool:
        """Tell whether a live worker could take such a task, busy or not."""
        live = self.presences.live(now)
        return self.waiters.meets(demand) or any(demand.is_met_by(worker, labels) for worker, labels in live)

    async def _prepared(self, task: Task, latest: AttemptRow | None, previous: documents.Document | None) -> Task:
        if not task.is_root and await self._store.latest(run=task.root, root=task.root) is None:
            raise NotFound("failed to prepare attempt: root dag-run not found", why=f"{task.root} is unknown")
        if previous is not None and intake.is_from_queue(previous):
            intake.check_queued(previous, latest)
        elif task.operation is Operation.RETRY:
            if latest is None:
                raise NotFound("failed to prepare attempt: dag-run not found", why=f"{task.run} is unknown")
            if previous is None:
                task = replace(task, previous_status=await self._store.document(latest.key))
        elif latest is not None:
            # The reference would let this supersede what is stored (gap G6).
            raise PreconditionFailed(
                f"run {task.run} exists and is over", why=f"it is {RunStatus(latest.status).word}",
                fix="retry it, or start a run with another id",
            )  # fmt: skip
        if previous is not None:
            intake.check_continues(previous, task)
        attempt_id = AttemptId(secrets.token_hex(16))
        key = attempt_key(root=task.root, run=task.run, attempt_id=attempt_id)
        return replace(task, attempt_id=attempt_id, attempt_key=key)

    async def _enter(self, task: Task, definition: Definition, latest: AttemptRow | None, holder: Entry | None) -> Task:
        now = self._clock.now()
        labels = intake.labels_of(definition, task)
        # The cached text, so that a thousand waiting runs of one DAG hold it once.
        task = replace(task, labels=",".join(labels), definition=definition.text or task.definition)
        grant = intake.grant_of(definition, labels)
        if holder is not None:
            grant = await self._inherited(grant, task, holder)
        row = _new_row(task, labels, now)
        document = documents.text_of(documents.initial(task, labels=labels, now=now))
        self._place = place = self._place + 1
        entry = _entry(task, row, state=TaskState(), place=place, at=now)
        entry.task = task
        await self._store.add_attempt(
            NewAttempt(
                row=row, document=document, body=bodies.to_json(task, grant), place=place,
                supersedes=latest.key if latest is not None else None,
            )
        )  # fmt: skip
        if holder is not None:
            holder.children += 1
        self._ledger.add(entry)
        self._queue(entry, task)
        log.info("task.dispatched", run=str(task.run), root=str(task.root), attempt=task.attempt_id)
        return task

    async def _inherited(self, grant: SecretGrant, task: Task, holder: Entry) -> SecretGrant:
        # A worker writes the child's YAML, so what that declares grants nothing that the parent did not have, unless
        # it is, word for word, a definition of our own DAG directory (gap G23).
        text = await self._store.task_body(holder.key)
        own = bodies.from_json(text)[1] if text else bodies.NO_SECRETS
        if not task.base_config and self._known_text(task.run.name) == task.definition:
            return SecretGrant(workspace=own.workspace, names=grant.names)
        return SecretGrant(workspace=own.workspace, names=grant.names & own.names)

    # -- poll and claim -----------------------------------------------------------------------------------------------

    async def poll(self, caller: Caller, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        """Wait for a task (`TaskDesk.poll`)."""
        if not poller_id:
            raise InvalidRequest("poller_id is required")
        worker = _named(caller)
        intake.check_labels(dict(labels))
        if self._is_closing:
            return None
        offer = label_set(labels)
        key = self.backlog.oldest_for(worker, offer)
        if key is not None:
            return self._offer(key, worker)
        if self.waiters.polls_of(worker) >= self._limits.polls_of_worker:
            raise LimitExceeded(
                f"more than {self._limits.polls_of_worker} open polls of one worker", fix="lower its max_active_runs"
            )
        waiter = _Waiter(asyncio.get_running_loop().create_future())
        self.waiters.add(worker, offer, waiter)
        try:
            return await waiter.claim
        except asyncio.CancelledError:
            if waiter.claim.done() and not waiter.claim.cancelled() and (claim := waiter.claim.result()) is not None:
                await self.withdraw(claim.token)
            raise
        finally:
            self.waiters.remove(worker, offer, waiter)

    def _queue(self, entry: Entry, task: Task) -> None:
        """Put a task before the pollers: to one that waits, else into the backlog."""
        demand = demand_of(task)
        self.backlog.add(entry.key, demand, entry.place)
        while (picked := self.waiters.pick(demand, self._ledger.load)) is not None:
            worker, _, waiter = picked
            if not waiter.claim.done():
                waiter.claim.set_result(self._offer(entry.key, worker))
                break
        self._count()

    def _offer(self, key: AttemptKey, worker: WorkerId) -> Claim:
        entry = self._ledger.get(key)
        assert entry is not None, "a queued task is in hand"
        assert entry.task is not None, "a queued task is whole"
        now = self._clock.now()
        token = ClaimToken(secrets.token_urlsafe(24))
        hashed = token_hash(token)
        self._ledger.move(entry, machine.advance(entry.state, Offered(worker, hashed, now + CLAIM_FOR), now))
        self._offers[hashed] = entry
        self.backlog.remove(key)
        metrics.TASKS_CLAIMED.inc()
        metrics.DISPATCH_LATENCY.observe(max((now - entry.enqueued_at).total_seconds(), 0.0))
        self._count()
        return Claim(task=entry.task, worker=worker, token=token, owner=self._owner)

    async def withdraw(self, token: ClaimToken) -> None:
        """Put an offered task back (`TaskDesk.withdraw`)."""
        entry = self._offers.get(token_hash(token))
        if entry is None or entry.writing.locked():  # unknown, or just being acknowledged: then it did arrive
            return
        self.put_back(entry, machine.advance(entry.state, Withdrawn(entry.state.token), self._clock.now()))

    def put_back(self, entry: Entry, state: TaskState) -> None:
        """Queue a task again that was offered."""
        self._offers.pop(entry.state.token, None)
        self._ledger.move(entry, state)
        assert entry.task is not None, "an offered task is whole"
        self._queue(entry, entry.task)

    async def acknowledge(self, caller: Caller, *, token: ClaimToken, attempt_key: AttemptKey) -> Verdict:
        """Turn an offer into a lease (`TaskDesk.acknowledge`)."""
        if not token:
            raise InvalidRequest("claim_token is required")
        if not caller.worker:
            return _refused("worker_id is required")
        verdict = await self._finisher.finish(self._acknowledge(caller.worker, token_hash(token), attempt_key))
        metrics.CLAIM_ACKS.labels("ok" if verdict.accepted else "rejected").inc()
        return verdict

    async def _acknowledge(self, worker: WorkerId, hashed: str, key: AttemptKey) -> Verdict:
        entry = self._offers.get(hashed) or self._ledger.get(key)
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
            try:
                await self._store.lease(entry.key, revision=entry.revision, worker=worker, token=hashed)
            except Unavailable:
                raise
            except Conflict:
                return _refused("attempt claim conflicts with the active lease")
            entry.revision += 1
            entry.task = None
            self._offers.pop(hashed, None)
            # The lease counts from now, not from before the write.
            self._ledger.move(entry, replace(state, until=self._clock.now() + LEASE_FOR))
            self._count()
        log.info("task.claimed", run=str(entry.run), attempt=entry.attempt_id, worker=worker)
        return ACCEPTED

    # -- presence and renewal -----------------------------------------------------------------------------------------

    async def heartbeat(self, caller: Caller, *, labels: Mapping[str, str], stats: WorkerStats) -> Sequence[AttemptKey]:
        """Note presence (`TaskDesk.heartbeat`). Keys that are not ours are left alone: another coordinator's."""
        worker = _named(caller)
        if len(labels) > intake.MAX_PAIRS or len(stats.running) > MAX_RUNNING_LISTED:
            raise InvalidRequest("a heartbeat is too long", why="too many labels or running tasks")
        now = self._clock.now()
        before = self.presences.heard(worker, labels, stats, now)
        metrics.heartbeat_received(worker)
        if before is None:
            log.info("worker.appeared", worker=worker)
        elif now - before > _MISSED_AFTER:
            metrics.HEARTBEATS_MISSED.inc((now - before) // _MISSED_AFTER)
        return [key for key, known in self._renewed(worker, stats.running, now) if known is False]

    async def run_heartbeat(self, caller: Caller, *, running: Sequence[RunningTask]) -> Sequence[AttemptKey]:
        """Renew leases (`TaskDesk.run_heartbeat`)."""
        if len(running) > MAX_RUNNING_LISTED:
            raise InvalidRequest("a run heartbeat is too long", why=f"more than {MAX_RUNNING_LISTED} tasks")
        return [key for key, _ in self._renewed(_named(caller), running, self._clock.now())]

    def _renewed(
        self, worker: WorkerId, running: Sequence[RunningTask], now: datetime
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
            while not self._is_closing and (key := await queue.get()) is not None:
                yield key
        finally:
            streams.discard(queue)
            if not streams:
                self._streams.pop(worker, None)

    async def workers(self, caller: Caller) -> Sequence[WorkerInfo]:
        """Return everybody who is there (`TaskDesk.workers`)."""
        return self.presences.infos(self._clock.now())

    # -- cancel -------------------------------------------------------------------------------------------------------

    async def cancel(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> Verdict:
        """Ask for the end of a run (`TaskDesk.cancel`)."""
        if not run.name or not run.run_id:
            raise InvalidRequest("dag_name and dag_run_id are required")
        top = run if root is None or not root.run_id or root.run_id == run.run_id else root
        if is_limited(caller) and not self._ledger.held_in_tree(caller, top, self._clock.now()):
            raise Refused("a worker may cancel only runs of its own tree", why="it holds no lease there")
        verdict = await self._finisher.finish(self._cancel(run, top))
        metrics.CANCEL_REQUESTS.labels("accepted" if verdict.accepted else "rejected").inc()
        return verdict

    async def _cancel(self, run: DagRunRef, root: DagRunRef) -> Verdict:
        row = await self._store.latest(run=run, root=root)
        if row is None:
            return _refused(f"failed to find DAG run: {run}")
        entry = self._ledger.get(row.claim_key)
        if RunStatus(row.status).is_terminal:
            return ACCEPTED
        if row.claim_key != row.key and entry is not None:
            return _refused(f"failed to cancel DAG run: {run} runs inside {entry.run}; cancel that run")
        if entry is None:
            await self._endings.end_stored(row, RunStatus.ABORTED, error="context canceled")
        else:
            await self.cancel_entry(entry)
        log.info("run.cancel_requested", run=str(run), root=str(root))
        return ACCEPTED

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

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _ended(self, entry: Entry) -> None:
        """Let go of a task that has ended, whoever ended it."""
        self.backlog.remove(entry.key)
        if entry.state.token:
            self._offers.pop(entry.state.token, None)
        self._count()

    def _count(self) -> None:
        metrics.TASKS_PENDING.set(len(self.backlog))
        metrics.LEASES_ACTIVE.set(len(self._ledger) - len(self.backlog) - len(self._offers))


_NO_WORKER = "no available workers"
_NO_MATCH = "no workers match the required selector"


def _named(caller: Caller) -> WorkerId:
    if not caller.worker:
        raise InvalidRequest("worker_id is required")
    return as_worker(caller)


def _refused(error: str) -> Verdict:
    return Verdict(accepted=False, error=error)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _new_row(task: Task, labels: tuple[str, ...], now: datetime) -> AttemptRow:
    at = int(now.timestamp() * 1000)
    return AttemptRow(
        key=task.attempt_key, attempt_id=task.attempt_id, run=task.run, root=task.root, parent=task.parent,
        claim_key=task.attempt_key, status=int(RunStatus.NOT_STARTED), worker="", archive="", labels=labels, error="",
        created_at=at, started_at=0, finished_at=0, revision=1,
    )  # fmt: skip


def _entry(task: Task, row: AttemptRow, *, state: TaskState, place: int, at: datetime) -> Entry:
    return Entry(
        key=row.key, attempt_id=row.attempt_id, run=row.run, root=row.root, parent=row.parent, state=state, revision=1,
        place=place, enqueued_at=at, bundle=task.bundle, trigger_actor=task.trigger_actor,
        definition_id=task.definition_id, attempts={row.key: as_known(row)},
    )  # fmt: skip
