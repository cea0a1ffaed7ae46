"""A coordinator over real SQLite and real files, a clock that is moved by hand, and a worker's words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field

from secure_dagu.audit.events import NO_TRAIL, Event, Trail
from secure_dagu.coordinator.service import Options, Service, running
from secure_dagu.dag.load import load_definition
from secure_dagu.dispatch.model import (
    Caller,
    Claim,
    LogPart,
    LogStream,
    Operation,
    Owner,
    Role,
    RunningTask,
    StreamIdentity,
    Task,
    Uploaded,
    Verdict,
    WorkerId,
    WorkerStats,
)
from secure_dagu.errors import Unavailable
from secure_dagu.run.model import AttemptKey, DagRunRef, RunStatus
from secure_dagu.store.blobs import Blobs
from secure_dagu.store.definitions import DefinitionFolder
from secure_dagu.store.sql import SqlStore, open_store

T = TypeVar("T")
DEFINITION = "steps:\n  - name: one\n    run: echo hello\n"
DISPATCHER = Caller(role=Role.DISPATCHER, name="ci", proven=True)
OWNER = Owner("c1@50055", "127.0.0.1", 50055)


def worker(name: str = "w1", worker_id: str = "") -> Caller:
    """Return a proven worker."""
    return Caller(role=Role.WORKER, name=name, proven=True, worker=WorkerId(worker_id or name))


def a_task(run_id: str = "r1", *, name: str = "sales", **fields: Any) -> Task:
    """Return a START of a root run, or of a child when `parent` and `root` are given."""
    run = DagRunRef(name, run_id)
    values: dict[str, Any] = {
        "operation": Operation.START,
        "run": run,
        "root": run,
        "definition": DEFINITION,
        "worker_selector": {},
    }
    return Task(**(values | fields))


class ManualClock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def now(self) -> datetime:
        """Return the time."""
        return self.time

    def advance(self, seconds: float) -> None:
        """Move it."""
        self.time += timedelta(seconds=seconds)


class Witness:
    """A trail that remembers; with `refuses` its disk is full."""

    def __init__(self) -> None:
        self.recorded: list[Event] = []
        self.noted: list[Event] = []
        self.refuses = False

    async def record(self, event: Event) -> None:
        """Remember an event that must be on disk first."""
        if self.refuses:
            raise Unavailable("the audit log cannot be written", why="No space left on device")
        self.recorded.append(event)

    def note(self, event: Event) -> None:
        """Remember an event that may come later."""
        self.noted.append(event)


class Place(Struct):
    """One coordinator's folders and clock: what survives a restart."""

    folder: Path
    clock: ManualClock = field(default_factory=ManualClock)
    options: Options = field(default_factory=Options)
    trail: Trail = NO_TRAIL

    @property
    def blobs(self) -> Blobs:
        """Return its files."""
        return Blobs(logs=self.folder / "logs", artifacts=self.folder / "artifacts", bundles=self.folder / "bundles")

    @asynccontextmanager
    async def coordinator(self) -> AsyncIterator[House]:
        """Run a coordinator here."""
        async with (
            open_store(f"sqlite:///{self.folder}/store.db") as store,
            running(
                store=store,
                blobs=self.blobs,
                dags=DefinitionFolder(self.folder / "dags"),
                load=load_definition,
                owner=OWNER,
                clock=self.clock,
                options=self.options,
                trail=self.trail,
            ) as service,
        ):
            yield House(self, store, service)


class House(Struct):
    """A running coordinator and short words for what a worker does."""

    place: Place
    store: SqlStore
    service: Service

    async def beat(
        self, caller: Caller, *claims: Claim, labels: Mapping[str, str] | None = None
    ) -> Sequence[AttemptKey]:
        """Send a heartbeat that lists `claims` as running."""
        stats = WorkerStats(total_pollers=4, running=tuple(self.running(claim) for claim in claims))
        return await self.service.desk.heartbeat(caller, labels=labels or {}, stats=stats)

    def running(self, claim: Claim) -> RunningTask:
        """Return a claim as a heartbeat lists it."""
        task = claim.task
        return RunningTask(
            run=task.run, root=task.root, parent=task.parent, attempt_key=task.attempt_key,
            started_at=self.place.clock.now(),
        )  # fmt: skip

    async def renew(self, caller: Caller, *claims: Claim) -> Sequence[AttemptKey]:
        """Send a run heartbeat."""
        return await self.service.desk.run_heartbeat(caller, running=[self.running(claim) for claim in claims])

    async def poll(self, caller: Caller, labels: Mapping[str, str] | None = None) -> Claim:
        """Poll until there is a task."""
        claim = await self.service.desk.poll(caller, poller_id="p", labels=labels or {})
        assert claim is not None
        return claim

    async def acknowledge(self, caller: Caller, claim: Claim) -> Verdict:
        """Acknowledge a claim."""
        return await self.service.desk.acknowledge(caller, token=claim.token, attempt_key=claim.task.attempt_key)

    async def take(self, caller: Caller, labels: Mapping[str, str] | None = None) -> Claim:
        """Poll and acknowledge."""
        claim = await self.poll(caller, labels)
        verdict = await self.acknowledge(caller, claim)
        assert verdict.accepted, verdict
        return claim

    async def started(self, caller: Caller, run_id: str = "r1", **fields: Any) -> Claim:
        """Dispatch a run and let a worker take it."""
        await self.beat(caller)
        await self.service.desk.dispatch(DISPATCHER, a_task(run_id, **fields))
        return await self.take(caller)

    async def report(self, caller: Caller, claim: Claim, status: int, **fields: Any) -> Verdict:
        """Report a status under a claim."""
        return await self.service.reports.report_status(
            caller, status=json.dumps(a_document(caller, claim, status, **fields)), source_file="", labels=""
        )

    async def document(self, run: DagRunRef, root: DagRunRef | None = None) -> dict[str, Any]:
        """Return the stored document of a run."""
        text = await self.service.reports.run_status(DISPATCHER, run=run, root=root)
        assert text is not None
        document = json.loads(text)
        assert isinstance(document, dict)
        return document

    async def pass_time(self, seconds: int) -> None:
        """Let time pass, with a look every second."""
        for _ in range(seconds):
            self.place.clock.advance(1)
            await self.service.sweeper.look()

    async def upload(self, caller: Caller, claim: Claim, *parts: LogPart) -> Uploaded:
        """Stream log parts under a claim."""
        return await self.service.reports.stream_logs(caller, identity_of(caller, claim), each(*parts))


def a_document(caller: Caller, claim: Claim, status: int, **fields: Any) -> dict[str, Any]:
    """Return a status document as a worker writes it."""
    task = claim.task
    step_status = {1: 1, 4: 4, 2: 2, 3: 3}.get(status, 0)
    return {
        "root": {"name": task.root.name, "id": task.root.run_id},
        "name": task.run.name,
        "dagRunId": task.run.run_id,
        "attemptId": task.attempt_id,
        "attemptKey": task.attempt_key,
        "claimKey": task.attempt_key,
        "status": status,
        "workerId": caller.worker,
        "nodes": [
            {
                "step": {"name": "one"},
                "stdout": "/tmp/w/one.out",
                "stderr": "",
                "startedAt": "2026-01-02T03:04:05Z",
                "finishedAt": "",
                "status": step_status,
            }
        ],
        "startedAt": "2026-01-02T03:04:05Z",
        "finishedAt": "2026-01-02T03:04:09Z" if RunStatus(status).is_terminal else "",
        "pendingStepRetries": None,
    } | fields


def identity_of(caller: Caller, claim: Claim, **fields: Any) -> StreamIdentity:
    """Return the identity of an upload under a claim."""
    task = claim.task
    values: dict[str, Any] = {
        "worker": caller.worker,
        "run": task.run,
        "root": task.root,
        "attempt_id": task.attempt_id,
        "claim_key": task.attempt_key,
    }
    return StreamIdentity(**(values | fields))


def log_part(data: bytes, offset: int | None = 0, *, step: str = "one", final: bool = False) -> LogPart:
    """Return a piece of a step's stdout."""
    return LogPart(step=step, stream=LogStream.STDOUT, data=data, offset=offset, is_final=final)


async def each(*items: T) -> AsyncIterator[T]:
    """Yield the items."""
    for item in items:
        yield item
