"""Accept a task: check it, give it an attempt, write it once, put it on the board (protocol, section 3.2)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

import structlog
from msgspec.structs import replace

from secure_dagu.audit.events import Action, Detail, Trail, by, recorded, run_target
from secure_dagu.coordinator import bodies, documents, intake
from secure_dagu.coordinator.attempts import as_known
from secure_dagu.coordinator.board import Board
from secure_dagu.coordinator.bodies import SecretGrant
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.ledger import Entry, Ledger, is_limited
from secure_dagu.coordinator.tenants import Tenants
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.machine import TaskState
from secure_dagu.dispatch.match import demand_of
from secure_dagu.dispatch.model import Caller, Operation, Task
from secure_dagu.errors import (
    Conflict,
    LimitExceeded,
    NoMatchingWorker,
    NotFound,
    NoWorker,
    PreconditionFailed,
    Refused,
    SecureDaguError,
    Unavailable,
)
from secure_dagu.run.model import AttemptId, RunStatus, attempt_key
from secure_dagu.security.grants import TENANT
from secure_dagu.security.policy import tenant_of
from secure_dagu.store.api import AttemptRow, NewAttempt, Store
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

MAX_CHILDREN = 10_000
"""Children that one task may dispatch or create: a loop in a workflow must end somewhere."""


class Dispatching:
    """Turn a request into a durable task."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        board: Board,
        definitions: intake.Definitions,
        known_text: Callable[[str], str | None],
        finisher: Finisher,
        clock: Clock,
        trail: Trail,
        tenants: Tenants,
        max_pending: int,
    ) -> None:
        """Take what it works on. `known_text` reads a definition of the DAG directory by name."""
        self._store = store
        self._ledger = ledger
        self._board = board
        self._definitions = definitions
        self._known_text = known_text
        self._finisher = finisher
        self._clock = clock
        self._trail = trail
        self._tenants = tenants
        self._max_pending = max_pending
        self._place = 0

    def starts_after(self, place: int) -> None:
        """Queue later tasks behind a place that is taken."""
        self._place = max(self._place, place)

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        """Accept a task (`TaskDesk.dispatch`)."""
        operation = "retry" if task.operation is Operation.RETRY else "start"
        result = "error"
        try:
            accepted = await self._dispatch(caller, task, admission_token)
            result = "accepted"
        except NoWorker:
            result = "no_worker"
            raise
        except NoMatchingWorker:
            result = "no_matching_worker"
            raise
        except Unavailable:
            raise
        except SecureDaguError:
            result = "rejected"
            raise
        finally:
            metrics.TASKS_DISPATCHED.labels(result, operation).inc()
        return accepted

    async def _dispatch(self, caller: Caller, task: Task, admission_token: str) -> Task:
        task = intake.checked(task)
        if self._board.is_closing:
            raise Unavailable("the coordinator is closing", fix="try another one")
        holder = self._parent_entry(caller, task) if is_limited(caller) else None
        task = await self._tenants.placed(caller, task)
        if admission_token.strip():
            raise PreconditionFailed(
                "failed to enqueue task: dispatch admission not found", why="this coordinator keeps no admissions"
            )
        facts = await self._definitions.get(task.definition, name=task.run.name, base_config=task.base_config)
        previous = intake.previous(task) if task.operation is Operation.RETRY else None
        while True:
            entry = self._ledger.of_run(run=task.run, root=task.root)
            if entry is not None:
                return await self._active(entry)
            self._board.check_workers(demand_of(task))
            if len(self._board.backlog) >= self._max_pending:
                raise LimitExceeded(f"{self._max_pending} tasks wait for workers", fix="add workers")
            latest = await self._store.latest(run=task.run, root=task.root)
            ready = await self._prepared(task, latest, previous)
            try:
                return await self._finisher.finish(self._enter(caller, ready, facts, latest, holder))
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

    async def _enter(
        self, caller: Caller, task: Task, facts: intake.Facts, latest: AttemptRow | None, holder: Entry | None
    ) -> Task:
        now = self._clock.now()
        labels = intake.labels_of(facts, task)
        # The cached text, so that a thousand waiting runs of one DAG hold it once.
        task = replace(task, labels=",".join(labels), definition=facts.text)
        grant = intake.grant_of(facts, labels)
        if holder is not None:
            grant = await self._inherited(grant, task, holder)
        tenant = tenant_of(task.worker_selector)
        stored = (*labels, f"{TENANT}={tenant}") if tenant else labels
        row = _new_row(task, stored, now)
        document = documents.text_of(documents.initial(task, labels=stored, now=now))
        self._place = place = self._place + 1
        entry = new_entry(task, row, state=TaskState(), place=place, at=now)
        entry.task = task
        event = by(
            caller, Action.TASK_DISPATCHED, run_target(task.run),
            details={Detail.ROOT: str(task.root), Detail.ATTEMPT: task.attempt_id},
        )  # fmt: skip
        async with recorded(self._trail, event):
            await self._store.add_attempt(
                NewAttempt(
                    row=row, document=document, body=bodies.to_json(task, grant), place=place,
                    supersedes=latest.key if latest is not None else None,
                )
            )  # fmt: skip
        if holder is not None:
            holder.children += 1
        self._ledger.add(entry)
        self._board.queue(entry, task)
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


def _new_row(task: Task, labels: tuple[str, ...], now: datetime) -> AttemptRow:
    at = int(now.timestamp() * 1000)
    return AttemptRow(
        key=task.attempt_key, attempt_id=task.attempt_id, run=task.run, root=task.root, parent=task.parent,
        claim_key=task.attempt_key, status=int(RunStatus.NOT_STARTED), worker="", archive="", labels=labels, error="",
        created_at=at, started_at=0, finished_at=0, revision=1,
    )  # fmt: skip


def new_entry(task: Task, row: AttemptRow, *, state: TaskState, place: int, at: datetime) -> Entry:
    """Return a task as it is taken in hand."""
    return Entry(
        key=row.key, attempt_id=row.attempt_id, run=row.run, root=row.root, parent=row.parent, state=state, revision=1,
        place=place, enqueued_at=at, bundle=task.bundle, trigger_actor=task.trigger_actor,
        definition_id=task.definition_id, attempts={row.key: as_known(row)},
    )  # fmt: skip
