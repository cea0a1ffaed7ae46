"""An in-memory coordinator with outages, and a scripted run engine. They implement the Protocols."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from secure_dagu.dispatch.api import Announced
from secure_dagu.dispatch.model import (
    ACCEPTED,
    NO_KEY,
    ArtifactInfo,
    ArtifactPart,
    BundleRef,
    Caller,
    Claim,
    ClaimToken,
    LogPart,
    LogStream,
    Operation,
    Owner,
    Role,
    RunEvent,
    RunningTask,
    RunSummary,
    SecretRequest,
    StateEntry,
    StateRef,
    StateSource,
    StreamIdentity,
    Task,
    Uploaded,
    Verdict,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.dispatch.operating import LinkView, ListedRun, LogPage, RunFilter, Window, WorkerView
from secure_dagu.errors import InvalidRequest, NotFound, SecureDaguError, Unavailable
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus, attempt_key
from secure_dagu.runner.api import ChildRuns, RunFolders, RunObserver, RunRequest
from secure_dagu.worker import Timings, Worker

W1 = WorkerId("w1")
CALLER = Caller(role=Role.WORKER, name="w1", proven=True, worker=W1)
OWNER = Owner("c1@50055", "127.0.0.1", 50055)
DEADLINE_S = 60.0

QUICK = Timings(
    heartbeat_s=0.02,
    poll_pause_s=0.02,
    first_retry_s=0.01,
    report_first_s=0.0,
    outage_cap_s=0.05,
    error_cap_s=0.1,
    hopeless_for_s=0.1,
    ack_for_s=20.0,
    ack_retry_s=0.01,
    orphan_timeout_s=20.0,
    report_every_s=0.01,
    retry_first_s=0.005,
    retry_cap_s=0.02,
    log_age_s=0.01,
    stall_s=20.0,
    child_poll_s=0.02,
    child_cancel_s=20.0,
    drain_timeout_s=20.0,
    deliver_s=20.0,
)


def away() -> Unavailable:
    """Return what a client raises while nobody listens."""
    return Unavailable("the coordinator cannot be reached", why="connection refused")


def make_task(run_id: str = "r1", name: str = "demo", **changes: Any) -> Task:
    """Return a START task as a coordinator hands it out."""
    run = DagRunRef(name, run_id)
    attempt = AttemptId(f"a-{run_id}")
    values: dict[str, Any] = {
        "operation": Operation.START,
        "run": run,
        "root": run,
        "definition": "steps:\n  - run: echo hello\n",
        "attempt_id": attempt,
        "attempt_key": attempt_key(root=run, run=run, attempt_id=attempt),
        "source_file": "/dags/demo.yaml",
        "labels": "team=a",
    }
    return Task(**(values | changes))


T = TypeVar("T")


class FakeCoordinator:
    """Implements `OwnedRoute`, hence `Coordinator`. What it was told is in public fields."""

    def __init__(self) -> None:
        self.error: SecureDaguError | None = None
        """Raised by every call while set; open calls break when `go_away` sets it."""
        self.problem = ""
        self.events = 0
        """How often it was told anything."""
        self.queue: deque[Claim | None] = deque()
        self._offered = asyncio.Event()
        self.heartbeats: list[WorkerStats] = []
        self.announced: list[Announced] = []
        self.open_polls = 0
        self.most_open_polls = 0
        self.polls = 0
        self.acknowledged: list[ClaimToken] = []
        self.ack_answer: Verdict | SecureDaguError = ACCEPTED
        self.leases: set[AttemptKey] = set()
        self.renewals = 0
        self.cancelled: set[AttemptKey] = set()
        self.has_cancellation_stream = True
        self.watchers: list[asyncio.Queue[AttemptKey]] = []
        self.reports: list[dict[str, Any]] = []
        self.report_answer: Callable[[dict[str, Any]], Verdict] = lambda _: ACCEPTED
        self.order: list[str] = []
        self.logs: dict[tuple[str, LogStream], bytearray] = {}
        self.log_calls = 0
        self.log_error: SecureDaguError | None = None
        self.break_after_parts: list[int] = []
        """Each entry breaks one log call after as many parts."""
        self.artifacts_stored: dict[str, bytes] = {}
        self.artifact_error: SecureDaguError | None = None
        self.bundles: dict[str, bytes] = {}
        self.statuses: dict[DagRunRef, str] = {}
        self.dispatched: list[Task] = []
        self.on_dispatch: Callable[[Task], None] = lambda _: None
        self.cancel_requests: list[DagRunRef] = []
        self.secrets: dict[str, str] = {}
        self.changed = asyncio.Condition()
        self._broken = asyncio.Event()

    async def announce(self, caller: Caller, *, version: str, presence: Announced) -> None:
        if self.error is not None:
            raise self.error
        self.announced.append(presence)

    async def fleet(self, caller: Caller) -> Sequence[WorkerView]:
        return ()

    async def drain(self, caller: Caller, *, worker: WorkerId, draining: bool) -> None:
        pass

    async def links(self, caller: Caller) -> Sequence[LinkView]:
        return ()

    # what tests do

    def offer(self, task: Task, *, owner: Owner | None = OWNER, token: str = "") -> None:
        """Put a task into the queue."""
        claim_token = ClaimToken(token or f"token-{task.run.run_id}")
        self.queue.append(Claim(task=task, worker=W1, token=claim_token if owner else ClaimToken(""), owner=owner))
        self._offered.set()

    def go_away(self) -> None:
        """Break every open call and refuse new ones."""
        self.error = away()
        self._broken.set()

    def come_back(self) -> None:
        """Work again."""
        self.error = None
        self._broken = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that this coordinator was told makes `condition` true."""
        async with asyncio.timeout(DEADLINE_S), self.changed:
            await self.changed.wait_for(condition)

    async def until_ended(self, run_id: str = "r1") -> dict[str, Any]:
        """Wait for the terminal report of a run and return it."""

        def terminal() -> list[dict[str, Any]]:
            return [r for r in self.reports if r["dagRunId"] == run_id and RunStatus(r["status"]).is_terminal]

        await self.until(lambda: bool(terminal()))
        return terminal()[-1]

    def log_text(self, step: str = "s1", stream: LogStream = LogStream.STDOUT) -> bytes:
        """Return what has arrived of a log."""
        return bytes(self.logs.get((step, stream), b""))

    async def _told(self) -> None:
        self.events += 1
        async with self.changed:
            self.changed.notify_all()

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error

    async def _or_broken(self, wait: Awaitable[T]) -> T:
        """Await something that an outage interrupts."""
        broken = self._broken
        waiting = asyncio.ensure_future(_run(wait))
        breaking = asyncio.ensure_future(broken.wait())
        try:
            await asyncio.wait({waiting, breaking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            breaking.cancel()
            if not waiting.done():
                waiting.cancel()
        if broken.is_set() or not waiting.done():
            raise away()
        return waiting.result()

    # TaskDesk

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        self._answer()
        self.dispatched.append(task)
        self.on_dispatch(task)
        await self._told()
        return task

    async def poll(self, caller: Caller, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        self._answer()
        self.polls += 1
        self.open_polls += 1
        self.most_open_polls = max(self.most_open_polls, self.open_polls)
        await self._told()
        broken = self._broken
        try:
            while not self.queue:
                # Taking is one step after waking, so a call that is cancelled leaves every task where it was.
                self._offered.clear()
                await self._or_broken(self._offered.wait())
            if broken.is_set():
                raise away()
            return self.queue.popleft()
        finally:
            self.open_polls -= 1

    async def withdraw(self, token: ClaimToken) -> None:
        raise NotImplementedError

    async def acknowledge(self, caller: Caller, *, token: ClaimToken, attempt_key: AttemptKey) -> Verdict:
        self._answer()
        self.acknowledged.append(token)
        await self._told()
        if isinstance(self.ack_answer, SecureDaguError):
            raise self.ack_answer
        if self.ack_answer.accepted:
            self.leases.add(attempt_key)
        return self.ack_answer

    async def heartbeat(self, caller: Caller, *, labels: Mapping[str, str], stats: WorkerStats) -> Sequence[AttemptKey]:
        self._answer()
        self.heartbeats.append(stats)
        await self._told()
        return [task.attempt_key for task in stats.running if task.attempt_key in self.cancelled]

    async def run_heartbeat(self, caller: Caller, *, running: Sequence[RunningTask]) -> Sequence[AttemptKey]:
        self._answer()
        self.renewals += 1
        await self._told()
        return [task.attempt_key for task in running if task.attempt_key in self.cancelled]

    async def cancellations(self, caller: Caller) -> AsyncIterator[AttemptKey]:
        self._answer()
        if not self.has_cancellation_stream:
            raise NotFound("unknown method")
        watcher: asyncio.Queue[AttemptKey] = asyncio.Queue()
        self.watchers.append(watcher)
        await self._told()
        yield NO_KEY
        try:
            while True:
                yield await self._or_broken(watcher.get())
        finally:
            self.watchers.remove(watcher)

    async def cancel(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> Verdict:
        self._answer()
        self.cancel_requests.append(run)
        await self._told()
        return ACCEPTED

    async def workers(self, caller: Caller) -> Sequence[WorkerInfo]:
        raise NotImplementedError

    # RunReports

    async def report_status(self, caller: Caller, *, status: str, source_file: str, labels: str) -> Verdict:
        self._answer()
        document = json.loads(status)
        self.reports.append(document)
        self.order.append(f"status {RunStatus(document['status']).word}")
        await self._told()
        return self.report_answer(document)

    async def stream_logs(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]) -> Uploaded:
        self._answer()
        self.log_calls += 1
        if self.log_error is not None:
            raise self.log_error
        limit = self.break_after_parts.pop(0) if self.break_after_parts else -1
        chunks = size = 0
        while True:
            if chunks == limit:
                raise away()
            part = await self._or_broken(anext(parts, None))
            if part is None:
                break
            chunks += 1
            size += len(part.data)
            assert part.offset is not None, "a worker of ours always sends offsets"
            log = self.logs.setdefault((part.step, part.stream), bytearray())
            if part.offset > len(log):
                raise InvalidRequest("failed to write data: log chunk byte offset exceeds current file size")
            if part.is_final:
                del log[part.offset :]
                self.order.append(f"end of {part.step} {part.stream.name.lower()}")
            else:
                log[part.offset : part.offset + len(part.data)] = part.data
            await self._told()
        return Uploaded(chunks, size)

    async def stream_artifacts(
        self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]
    ) -> Uploaded:
        self._answer()
        if self.artifact_error is not None:
            raise self.artifact_error
        assert any(report.get("archiveDir") for report in self.reports), "no report has announced the folder"
        chunks = size = 0
        open_file = bytearray()
        async for part in parts:
            self._answer()
            chunks += 1
            size += len(part.data)
            open_file += part.data
            if part.is_final:
                self.artifacts_stored[part.path] = bytes(open_file)
                self.order.append(f"artifact {part.path}")
                open_file.clear()
        await self._told()
        return Uploaded(chunks, size)

    async def run_status(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> str | None:
        self._answer()
        return self.statuses.get(run)

    async def runs(self, caller: Caller, *, name: str | None, run_id: str | None, limit: int) -> Sequence[RunSummary]:
        raise NotImplementedError

    async def find_runs(
        self, caller: Caller, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None
    ) -> Sequence[ListedRun]:
        raise NotImplementedError

    async def count_runs(self, caller: Caller, *, since: datetime, until: datetime | None) -> Mapping[int, int]:
        raise NotImplementedError

    async def log_page(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, window: Window) -> LogPage:
        raise NotImplementedError

    async def delete_run(self, caller: Caller, *, run: DagRunRef) -> None:
        raise NotImplementedError

    def follow(self, caller: Caller, *, run: DagRunRef, with_logs: bool) -> AsyncIterator[RunEvent]:
        raise NotImplementedError

    def read_log(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, offset: int) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def artifacts(self, caller: Caller, *, run: DagRunRef) -> Sequence[ArtifactInfo]:
        raise NotImplementedError

    def read_artifact(self, caller: Caller, *, run: DagRunRef, path: str) -> AsyncIterator[bytes]:
        raise NotImplementedError

    # Bundles

    async def put(self, caller: Caller, bundle: BundleRef, data: AsyncIterator[bytes]) -> Verdict:
        raise NotImplementedError

    async def has(self, caller: Caller, digest: str) -> bool:
        return digest in self.bundles

    async def get(self, caller: Caller, digest: str) -> AsyncIterator[bytes]:
        self._answer()
        if digest not in self.bundles:
            raise NotFound("workspace bundle not found")
        data = self.bundles[digest]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    # SharedState

    async def get_state(self, caller: Caller, ref: StateRef) -> StateEntry | None:
        raise NotImplementedError

    async def put_state(
        self,
        caller: Caller,
        ref: StateRef,
        value: bytes,
        *,
        expected_version: int | None,
        create_only: bool,
        updated_by: StateSource,
    ) -> StateEntry:
        raise NotImplementedError

    async def delete_state(self, caller: Caller, ref: StateRef) -> bool:
        raise NotImplementedError

    async def list_state(
        self, caller: Caller, *, scope: str, namespace: str, prefix: str, limit: int
    ) -> Sequence[StateEntry]:
        raise NotImplementedError

    async def dag_text(self, caller: Caller, name: str) -> str | None:
        return "steps: []" if name == "known" else None

    async def resolve_secret(self, caller: Caller, request: SecretRequest) -> str:
        self._answer()
        assert request.attempt_key in self.leases
        return self.secrets[request.ref]


class FakeRoutes:
    """Implements `Routes` over fakes; the owner of every task is the coordinator that served it."""

    def __init__(self, *coordinators: FakeCoordinator) -> None:
        self._coordinators = coordinators

    def listed(self) -> Sequence[FakeCoordinator]:
        return self._coordinators

    def anyone(self) -> FakeCoordinator:
        return self._coordinators[0]

    def owned(self, owner: Owner | None, *, served_by: Any) -> FakeCoordinator:
        assert isinstance(served_by, FakeCoordinator)
        return served_by


Script = Callable[["FakeRun"], Awaitable[None]]


class FakeRun:
    """What a script sees of the run that it plays: shortcuts for what a real runner tells its observer."""

    def __init__(self, request: RunRequest, observer: RunObserver, children: ChildRuns, stop: asyncio.Event) -> None:
        self.request = request
        self.observer = observer
        self.children = children
        self.stop = stop

    def status(self, status: RunStatus, **more: Any) -> None:
        """Report a document; a terminal one is final."""
        request = self.request
        document = {
            "name": request.task.run.name,
            "dagRunId": request.task.run.run_id,
            "attemptId": request.attempt_id,
            "attemptKey": request.attempt_key,
            "claimKey": request.claim_key,
            "status": int(status),
            "workerId": request.worker,
            "warnings": list(request.warnings),
            "pendingStepRetries": None,
        } | more
        self.observer.status_changed(json.dumps(document), final=status.is_terminal)

    def write(self, data: bytes, step: str = "s1", stream: LogStream = LogStream.STDOUT) -> None:
        """Append output to a step's log."""
        path = self.request.folders.logs / f"{step}.{stream.name.lower()}.log"
        with path.open("ab") as file:
            file.write(data)
        self.observer.log_written(step, stream, path, path.stat().st_size)


async def one_step(run: FakeRun) -> None:
    """Play the smallest whole run."""
    run.status(RunStatus.RUNNING)
    await asyncio.sleep(0)  # a real run takes a moment; a report that is overtaken is not sent
    run.write(b"hello\n")
    run.write(b'{"msg":"done"}\n', "scheduler", LogStream.SCHEDULER)
    run.status(RunStatus.SUCCEEDED)


async def until_stopped(run: FakeRun) -> None:
    """Play a run that only ends when it is told to."""
    run.status(RunStatus.RUNNING)
    await run.stop.wait()
    run.status(RunStatus.ABORTED)


class FakeRunner:
    """Implements `Execute` and `Workspaces`: plays a script instead of running steps."""

    def __init__(self, root: Path, script: Script = one_step) -> None:
        self.root = root
        self.script = script
        self.requests: list[RunRequest] = []
        self.active = 0
        self.most_active = 0

    async def execute(
        self, request: RunRequest, observer: RunObserver, children: ChildRuns, *, stop: asyncio.Event
    ) -> object:
        self.requests.append(request)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await self.script(FakeRun(request, observer, children, stop))
        finally:
            self.active -= 1
        return None

    @asynccontextmanager
    async def workspace(self, task: Task, attempt_id: AttemptId) -> AsyncIterator[RunFolders]:
        home = self.root / task.run.run_id / attempt_id
        folders = RunFolders(logs=home / "logs", work=home / "work", artifacts=home / "artifacts")
        for folder in (folders.logs, folders.work, folders.artifacts):
            folder.mkdir(parents=True)
        yield folders


def make_worker(
    runner: FakeRunner, *coordinators: FakeCoordinator, max_active_runs: int = 4, timings: Timings = QUICK
) -> Worker:
    """Return a worker `w1` of these coordinators."""
    return Worker(
        caller=CALLER,
        routes=FakeRoutes(*coordinators),
        names=[f"c{n}:50055" for n in range(1, len(coordinators) + 1)],
        labels={"gpu": "true"},
        max_active_runs=max_active_runs,
        execute=runner.execute,
        workspaces=runner.workspace,
        host_env={"PATH": "/usr/bin"},
        timings=timings,
    )


@asynccontextmanager
async def working(worker: Worker, *, deadline_s: float = DEADLINE_S) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker for the length of a test, then drain it."""
    async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as group:
        task = group.create_task(worker.run())
        yield task
        if not task.done():
            worker.drain()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  the worker has no event for it, and should not have one for tests
            await asyncio.sleep(0.001)


async def _run(wait: Awaitable[T]) -> T:
    return await wait
