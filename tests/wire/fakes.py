"""One fake coordinator that implements the Protocols and writes down what it is asked, and a fake link."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from secure_dagu.dispatch.api import Announced, Coordinator
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
    WorkerHealth,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.dispatch.operating import LinkView, ListedRun, LogPage, RunFilter, Window, WorkerState, WorkerView
from secure_dagu.errors import SecureDaguError
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.security.grants import Grants
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = DagRunRef("mydag", "rrun1")
ATTEMPT = AttemptId("abc123")
KEY = AttemptKey("9cb11d8ee86827a7:abc123")
TASK = Task(
    operation=Operation.START,
    run=RUN,
    root=RUN,
    definition="steps: []",
    params="NAME=wörld",
    attempt_id=ATTEMPT,
    attempt_key=KEY,
    worker_selector={"gpu": "true"},
)
CLAIM = Claim(task=TASK, worker=WorkerId("w1"), token=ClaimToken("token-1"), owner=Owner("c@1", "127.0.0.1", 50055))
IDENTITY = StreamIdentity(worker=WorkerId("w1"), run=RUN, root=RUN, attempt_id=ATTEMPT, claim_key=KEY, owner_id="c@1")
WORKER = Caller(
    role=Role.WORKER, name="w1", proven=True, worker=WorkerId("w1"), identity="spiffe://dagu.example/worker/w1",
    address="192.0.2.1:4711",
)  # fmt: skip
RUNNING = RunningTask(run=RUN, root=RUN, parent=None, attempt_key=KEY, started_at=NOW)
ENTRY = StateEntry(
    ref=StateRef("dag", "mydag", "a/b"),
    value=b'{"n":1}',
    version=3,
    hash="ab" * 32,
    created_at_ns=1,
    updated_at_ns=2,
    updated_by=StateSource(dag_name="mydag", step="s1"),
)


def peer(role: Role | None = Role.WORKER, name: str = "w1", *, days: int = 1) -> Peer:
    """A peer as the TLS edge would have proven it; None: an unproven one."""
    identity = None if role is None else Identity("dagu.example", role, name)
    return Peer(
        connection="unix:", address="192.0.2.1:4711", identity=identity,
        not_after=datetime.now(UTC) + timedelta(days=days), tls_version="TLSv1.3",
        grants=Grants(frozenset({("gpu", "true")}) if role is Role.WORKER else frozenset()),
    )  # fmt: skip


MACHINE = WorkerView(
    info=WorkerInfo(
        worker=WorkerId("w1"), labels={"gpu": "true"}, stats=WorkerStats(total_pollers=2, busy_pollers=1),
        last_heartbeat_at=NOW, health=WorkerHealth.HEALTHY,
    ),
    state=WorkerState.DRAINING, identity="spiffe://dagu.example/worker/w1", serial="ab", issuer="cd",
    cert_not_after=NOW, tls_version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384", group="X25519MLKEM768",
    remote_address="192.0.2.1:4711", connected_since=NOW, version="1.0", is_lost=False, held_tasks=2,
)  # fmt: skip
LINK = LinkView(
    identity="spiffe://dagu.example/worker/w1", role="worker", address="192.0.2.1:4711", tls_version="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384", group="X25519MLKEM768", serial="ab", cert_not_after=NOW, opened_at=NOW,
)  # fmt: skip


class FakeCoordinator:
    """Answers every verb with a constant; `asked` holds (verb, caller, arguments)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Caller, tuple[Any, ...]]] = []
        self.error: BaseException | None = None
        self.claims: asyncio.Queue[Claim | None] = asyncio.Queue()
        self.waiting = 0
        self.changed = asyncio.Condition()
        self.withdrawn: asyncio.Queue[ClaimToken] = asyncio.Queue()
        self.stopped: Sequence[AttemptKey] = ()
        self.cancelled: asyncio.Queue[AttemptKey] = asyncio.Queue()
        self.streams_ended: asyncio.Queue[str] = asyncio.Queue()
        self.verdict = ACCEPTED
        self.document: str | None = '{"status":1}'
        self.bundle = b"b" * (2**20 + 5)

    def ask(self, verb: str, caller: Caller, *arguments: Any) -> None:
        self.asked.append((verb, caller, arguments))
        if self.error is not None:
            raise self.error

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        self.ask("dispatch", caller, task, admission_token)
        return task

    async def poll(self, caller: Caller, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        self.ask("poll", caller, poller_id, dict(labels))
        await self._wait(+1)
        try:
            return await self.claims.get()
        finally:
            await self._wait(-1)

    async def _wait(self, change: int) -> None:
        self.waiting += change
        async with self.changed:
            self.changed.notify_all()

    async def polls_are(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.waiting == count)

    async def announce(self, caller: Caller, *, version: str, presence: Announced) -> None:
        self.ask("announce", caller, version, presence)

    async def fleet(self, caller: Caller) -> Sequence[WorkerView]:
        self.ask("fleet", caller)
        return (MACHINE,)

    async def drain(self, caller: Caller, *, worker: WorkerId, draining: bool) -> None:
        self.ask("drain", caller, worker, draining)

    async def links(self, caller: Caller) -> Sequence[LinkView]:
        self.ask("links", caller)
        return (LINK,)

    async def withdraw(self, token: ClaimToken) -> None:
        self.withdrawn.put_nowait(token)

    async def acknowledge(self, caller: Caller, *, token: ClaimToken, attempt_key: AttemptKey) -> Verdict:
        self.ask("acknowledge", caller, token, attempt_key)
        return self.verdict

    async def heartbeat(self, caller: Caller, *, labels: Mapping[str, str], stats: WorkerStats) -> Sequence[AttemptKey]:
        self.ask("heartbeat", caller, dict(labels), stats)
        return self.stopped

    async def run_heartbeat(self, caller: Caller, *, running: Sequence[RunningTask]) -> Sequence[AttemptKey]:
        self.ask("run_heartbeat", caller, tuple(running))
        return self.stopped

    async def cancellations(self, caller: Caller) -> AsyncIterator[AttemptKey]:
        self.ask("cancellations", caller)
        try:
            while True:
                yield await self.cancelled.get()
        finally:
            self.streams_ended.put_nowait("cancellations")

    async def cancel(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> Verdict:
        self.ask("cancel", caller, run, root)
        return self.verdict

    async def workers(self, caller: Caller) -> Sequence[WorkerInfo]:
        self.ask("workers", caller)
        stats = WorkerStats(total_pollers=4, busy_pollers=1, running=(RUNNING,))
        return (
            WorkerInfo(
                worker=WorkerId("w1"), labels={"gpu": "true"}, stats=stats, last_heartbeat_at=NOW,
                health=WorkerHealth.WARNING,
            ),
        )  # fmt: skip

    async def report_status(self, caller: Caller, *, status: str, source_file: str, labels: str) -> Verdict:
        self.ask("report_status", caller, status, source_file, labels)
        return self.verdict

    async def stream_logs(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]) -> Uploaded:
        self.ask("stream_logs", caller, identity)
        taken = []
        try:
            async for part in parts:
                taken.append(part)
                self.asked.append(("part", caller, (part,)))
                await self._wait(0)
        finally:
            self.streams_ended.put_nowait("logs")
        return Uploaded(len(taken), sum(len(part.data) for part in taken))

    async def parts_are(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.all("part")) == count)

    async def stream_artifacts(
        self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]
    ) -> Uploaded:
        self.ask("stream_artifacts", caller, identity)
        taken = [part async for part in parts]
        self.asked += [("part", caller, (part,)) for part in taken]
        return Uploaded(len(taken), sum(len(part.data) for part in taken))

    async def run_status(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> str | None:
        self.ask("run_status", caller, run, root)
        return self.document

    async def runs(self, caller: Caller, *, name: str | None, run_id: str | None, limit: int) -> Sequence[RunSummary]:
        self.ask("runs", caller, name, run_id, limit)
        return (
            RunSummary(
                run=RUN, root=RUN, status=4, worker="w1", error="", created_at=NOW, started_at=NOW, finished_at=None
            ),
        )

    async def find_runs(
        self, caller: Caller, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None
    ) -> Sequence[ListedRun]:
        self.ask("find_runs", caller, wanted, limit, before)
        return (ListedRun(at=7, ident="mydag/rrun1", document='{"status":4}', revision="k:2"),)

    async def count_runs(self, caller: Caller, *, since: datetime, until: datetime | None) -> Mapping[int, int]:
        self.ask("count_runs", caller, since, until)
        return {4: 2, 5: 1}

    async def log_page(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, window: Window) -> LogPage:
        self.ask("log_page", caller, run, step, stream, window)
        return LogPage(content="ü\n", line_count=1, total_lines=9, has_more=True, is_estimate=True, end_offset=2**40)

    async def delete_run(self, caller: Caller, *, run: DagRunRef) -> None:
        self.ask("delete_run", caller, run)

    async def follow(self, caller: Caller, *, run: DagRunRef, with_logs: bool) -> AsyncIterator[RunEvent]:
        self.ask("follow", caller, run, with_logs)
        yield RunEvent(status='{"status":1}')
        yield RunEvent(log=LogPart(step="s1", stream=LogStream.STDOUT, data=b"hello\n", offset=7, is_final=False))
        yield RunEvent(status='{"status":4}', ended=True)

    async def read_log(
        self, caller: Caller, *, run: DagRunRef, step: str, stream: int, offset: int
    ) -> AsyncIterator[bytes]:
        self.ask("read_log", caller, run, step, stream, offset)
        yield b"abc"
        yield b"def"

    async def artifacts(self, caller: Caller, *, run: DagRunRef) -> Sequence[ArtifactInfo]:
        self.ask("artifacts", caller, run)
        return (ArtifactInfo(path="a/b.txt", size_bytes=7),)

    async def read_artifact(self, caller: Caller, *, run: DagRunRef, path: str) -> AsyncIterator[bytes]:
        self.ask("read_artifact", caller, run, path)
        yield b"x" * (4 * 2**20)

    async def put(self, caller: Caller, bundle: BundleRef, data: AsyncIterator[bytes]) -> Verdict:
        self.ask("put", caller, bundle)
        blocks = [block async for block in data]
        self.asked.append(("blocks", caller, tuple(blocks)))
        return self.verdict

    async def has(self, caller: Caller, digest: str) -> bool:
        self.ask("has", caller, digest)
        return True

    async def get(self, caller: Caller, digest: str) -> AsyncIterator[bytes]:
        self.ask("get", caller, digest)
        yield self.bundle

    async def get_state(self, caller: Caller, ref: StateRef) -> StateEntry | None:
        self.ask("get_state", caller, ref)
        return ENTRY

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
        self.ask("put_state", caller, ref, value, expected_version, create_only, updated_by)
        return ENTRY

    async def delete_state(self, caller: Caller, ref: StateRef) -> bool:
        self.ask("delete_state", caller, ref)
        return True

    async def list_state(
        self, caller: Caller, *, scope: str, namespace: str, prefix: str, limit: int
    ) -> Sequence[StateEntry]:
        self.ask("list_state", caller, scope, namespace, prefix, limit)
        return (ENTRY, ENTRY)

    async def dag_text(self, caller: Caller, name: str) -> str | None:
        self.ask("dag_text", caller, name)
        return "steps: []" if name == "known" else None

    async def resolve_secret(self, caller: Caller, request: SecretRequest) -> str:
        self.ask("resolve_secret", caller, request)
        return "s3cret"

    def all(self, verb: str) -> list[tuple[Any, ...]]:
        return [arguments for asked, _, arguments in self.asked if asked == verb]

    def callers(self) -> set[Caller]:
        return {caller for _, caller, _ in self.asked}


def _is_a_coordinator(fake: FakeCoordinator) -> Coordinator:
    return fake  # for the type checker: the fake fulfils the contract


class FakeLink:
    """A link that leads straight to a private socket."""

    def __init__(self, path: str, error: SecureDaguError | None = None) -> None:
        self.target = f"unix:{path}"
        self.authority = "coordinator.example"
        self.error = error
        self.is_closed = False
        self.names: frozenset[str] = frozenset()

    def proves(self, host: str) -> bool:
        return host in self.names

    def explain(self) -> SecureDaguError | None:
        return self.error

    async def close(self) -> None:
        self.is_closed = True


DIGEST = hashlib.sha256(b"b" * (2**20 + 5)).hexdigest()
BUNDLE = BundleRef(digest=DIGEST, size_bytes=2**20 + 5, dag_path="dag.yaml", original_ref="o", resolved_ref="r")
NOTHING_YET = NO_KEY
