"""A small real installation: a folder of definitions, runs as processes of this host, a server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from secure_dagu.audit.chain import Place
from secure_dagu.audit.events import NO_TRAIL
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Definition
from secure_dagu.dag.schedule import Upcoming
from secure_dagu.dispatch.model import ArtifactInfo, WorkerHealth, WorkerId, WorkerInfo, WorkerStats
from secure_dagu.dispatch.operating import (
    CertificateView,
    Condition,
    FoundRun,
    LinkView,
    LogPage,
    Outlook,
    Placement,
    QueueView,
    RunFilter,
    RunPage,
    ServiceView,
    StartRequest,
    Waiting,
    Window,
    WorkerState,
    WorkerView,
    Workflow,
    WorkflowFilter,
)
from secure_dagu.errors import Conflict, DefinitionError, NotFound, Refused, Unauthenticated
from secure_dagu.local import history
from secure_dagu.local.queue import Queues
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus
from secure_dagu.run.outputs import outputs_document
from secure_dagu.store.accounts import AccountFolder
from secure_dagu.store.records import Attempt, Record, Records
from secure_dagu.store.secret_files import SecretFiles
from secure_dagu.telemetry import metrics, web_series
from secure_dagu.web.accounts import Accounts
from secure_dagu.web.api import problems
from secure_dagu.web.api.deps import Account, Change, Check, Need, Parts
from secure_dagu.web.api.host import HostLoad
from secure_dagu.web.api.live import Hub
from secure_dagu.web.api.routes import api_router
from secure_dagu.web.api.run_events import EventLog, now
from secure_dagu.web.api.shapes_runs import run_status
from secure_dagu.web.api.tickets import Tickets
from secure_dagu.web.api.views_compliance import Evidence
from secure_dagu.web.context import Options, Services
from secure_dagu.web.gate import Doorkeeper, Rules
from secure_dagu.web.people import Person, Role, Way
from secure_dagu.web.sessions import Sessions, secret_of

ROLES = ("viewer", "operator", "developer", "manager", "admin")
_LEAST = {Need.PUBLIC: 0, Need.READ: 0, Need.RUN: 1, Need.WRITE: 2, Need.MACHINES: 2, Need.AUDIT: 3, Need.ADMIN: 4}


class RoleGate:
    """Believes the role that a bearer token names, and remembers what was recorded."""

    challenge = "Bearer"

    def failed(self, request: Request, status: int, reason: str) -> None:
        """Remember nothing: what is told of failures is the real gate's."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Change, str]] = []
        self.withdrawn: set[str] = set()

    async def admit(self, request: Request, need: Need) -> Account:
        role = request.headers.get("authorization", "").removeprefix("Bearer ")
        if role not in ROLES or role in self.withdrawn:
            raise Unauthenticated("nobody is proven")
        person = Person(name=role, role=Role(role), way=Way.NONE)
        if not person.may(need):
            raise Refused("Insufficient permissions")
        return person

    async def still_good(self, account: Account) -> bool:
        return account.name not in self.withdrawn

    async def record(self, request: Request, account: Account, change: Change, target: str) -> None:
        self.records.append((account.name, change, target))


class FolderWorkflows:
    """Definitions of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.suspended: set[str] = set()

    def _path(self, file: str) -> Path:
        path = self.folder / f"{file}.yaml"
        if path.parent != self.folder or not path.is_file():
            raise NotFound(f"there is no DAG {file}")
        return path

    async def all(self, wanted: WorkflowFilter | None = None) -> Sequence[Workflow]:
        found = [await self.get(path.stem) for path in sorted(self.folder.glob("*.yaml"))]
        wanted = wanted or WorkflowFilter()
        return [
            item
            for item in found
            if wanted.name_part in item.name
            and all(item.definition and label in item.definition.main.labels for label in wanted.labels)
            and (not wanted.active_only or (item.definition and item.definition.main.schedule and not item.suspended))
        ]

    async def problems(self) -> Sequence[str]:
        return []

    async def get(self, file: str) -> Workflow:
        text = self._path(file).read_text()
        definition, errors = await self.validate(text, name=file)
        name = definition.main.name if definition and definition.main.name else file
        return Workflow(
            file=file, name=name, text=text, definition=definition, errors=tuple(errors),
            suspended=file in self.suspended, next_run_at=self._next(definition, file),
        )  # fmt: skip

    def _next(self, definition: Definition | None, file: str) -> datetime | None:
        if definition is None or file in self.suspended:
            return None
        return Upcoming().next_start(definition.main.schedule, datetime.now(UTC), UTC)

    async def create(self, file: str, text: str) -> Workflow:
        if (self.folder / f"{file}.yaml").exists():
            raise Conflict(f"a DAG {file} is there already")
        load_definition(text, name=file)
        (self.folder / f"{file}.yaml").write_text(text)
        return await self.get(file)

    async def write(self, file: str, text: str, *, seen: str | None = None, strict: bool = True) -> Workflow:
        path = self._path(file)
        if seen is not None and seen != sha256(path.read_bytes()).hexdigest():
            raise Conflict("the file is another one now")
        if strict:
            load_definition(text, name=file)
        path.write_text(text)
        return await self.get(file)

    async def rename(self, file: str, to: str) -> None:
        if (self.folder / f"{to}.yaml").exists():
            raise Conflict(f"a DAG {to} is there already")
        self._path(file).rename(self.folder / f"{to}.yaml")

    async def delete(self, file: str) -> None:
        self._path(file).unlink()

    async def suspend(self, file: str, *, suspended: bool) -> None:
        self._path(file)
        (self.suspended.add if suspended else self.suspended.discard)(file)

    async def labels(self) -> Sequence[str]:
        return sorted({label for item in await self.all() if item.definition for label in item.definition.main.labels})

    async def validate(self, text: str, *, name: str = "") -> tuple[Definition | None, Sequence[str]]:
        try:
            return load_definition(text, file=f"{name}.yaml", strict=True), []
        except DefinitionError as error:
            return None, error.why.splitlines() or [str(error)]


class RecordRuns:
    """Runs in the records of one host."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.changed: list[asyncio.Queue[DagRunRef]] = []

    def _record(self, run: DagRunRef, child: str = "") -> tuple[Record, Attempt]:
        record = self.records.newest(run.name) if run.run_id == "latest" else self.records.find(run)
        if record is not None and child:
            record = next((record.child(DagRunRef("", item)) for item in record.children() if item == child), None)
        attempt = record.latest() if record else None
        if record is None or attempt is None:
            raise NotFound(f"dag-run ID {child or run.run_id} not found for DAG {run.name}")
        return record, attempt

    async def find(self, wanted: RunFilter, *, limit: int, cursor: str = "") -> RunPage:
        query = history.Query(
            name=wanted.name, since=wanted.since, until=wanted.until, statuses=wanted.statuses, labels=wanted.labels,
            run_id=wanted.run_id_part, limit=100_000,
        )  # fmt: skip
        found = [item for item in history.find(self.records, query) if wanted.name_part in item["name"]]
        start = int(cursor) if cursor.isascii() and cursor.isdigit() else 0
        page = found[start : start + limit]
        following = str(start + limit) if len(found) > start + limit else ""
        return RunPage(runs=tuple(FoundRun(document=item) for item in page), next_cursor=following)

    async def count(self, *, since: datetime, until: datetime | None = None) -> Mapping[RunStatus, int]:
        page = await self.find(RunFilter(since=since, until=until), limit=100_000)
        return Counter(run_status(found.document) for found in page.runs)

    async def get(self, run: DagRunRef, *, child: str = "") -> FoundRun:
        _, attempt = self._record(run, child)
        document = attempt.status()
        conditions: tuple[Condition, ...] = ()
        if document.get("status") == RunStatus.QUEUED:
            conditions = (
                Condition(
                    type="ConcurrencyReady", status="False", reason=Waiting.QUEUE_LIMIT.value, message="It is full.",
                    checked_at=datetime.now(UTC),
                ),
            )  # fmt: skip
        return FoundRun(document=document, conditions=conditions)

    async def children(self, run: DagRunRef, *, child: str = "") -> Sequence[Mapping[str, Any]]:
        record, _ = self._record(run, child)
        found = [record.child(DagRunRef("", item)).latest() for item in record.children()]
        return [attempt.status() for attempt in found if attempt]

    async def definition(self, run: DagRunRef, *, child: str = "") -> str:
        return str(self._record(run, child)[1].definition()["definition"])

    def _log(self, run: DagRunRef, step: str, stream: str, child: str) -> Path:
        document = self._record(run, child)[1].status()
        if not step:
            return Path(document["log"])
        nodes = [*document["nodes"], *(value for key, value in document.items() if key.startswith("on"))]
        for node in nodes:
            if node["step"]["name"] == step:
                return Path(node[stream])
        raise NotFound(f"there is no step {step}")

    async def log(
        self, run: DagRunRef, window: Window, *, step: str = "", stream: str = "stdout", child: str = ""
    ) -> LogPage:
        lines = self._log(run, step, stream, child).read_text(errors="replace").splitlines(keepends=True)
        if window.tail:
            part = lines[-window.tail :]
        elif window.head:
            part = lines[: window.head]
        else:
            first = max(window.offset, 1) - 1
            part = lines[first : first + window.limit]
        return LogPage(
            content="".join(part), line_count=len(part), total_lines=len(lines), has_more=len(part) < len(lines)
        )

    async def log_bytes(
        self, run: DagRunRef, *, step: str = "", stream: str = "stdout", child: str = "", offset: int = 0
    ) -> AsyncIterator[bytes]:
        yield self._log(run, step, stream, child).read_bytes()[offset:]

    def _artifacts(self, run: DagRunRef, child: str) -> Path:
        return Path(self._record(run, child)[1].status().get("archiveDir") or "/nonexistent")

    async def artifacts(self, run: DagRunRef, *, child: str = "") -> Sequence[ArtifactInfo]:
        folder = self._artifacts(run, child)
        return [
            ArtifactInfo(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size)
            for path in folder.rglob("*")
            if path.is_file()
        ]

    async def artifact_bytes(self, run: DagRunRef, path: str, *, child: str = "") -> AsyncIterator[bytes]:
        yield (self._artifacts(run, child) / path).read_bytes()

    async def outputs(self, run: DagRunRef, *, child: str = "") -> Mapping[str, Any] | None:
        return outputs_document(self._record(run, child)[1].status())

    async def changes(self) -> AsyncIterator[DagRunRef]:
        queue: asyncio.Queue[DagRunRef] = asyncio.Queue()
        self.changed.append(queue)
        while True:
            yield await queue.get()

    def tell(self, run: DagRunRef) -> None:
        for queue in self.changed:
            queue.put_nowait(run)


class ProcessLaunching:
    """Starts a real process a run."""

    def __init__(self, home: Path, workflows: FolderWorkflows, runs: RecordRuns) -> None:
        self.home, self.workflows, self.runs = home, workflows, runs
        self.calls: list[tuple[str, str]] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self.number = 0
        self.expected = Outlook(placement=Placement.LOCAL)

    async def _run(self, *words: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "secure_dagu.cli.main", *words, "-q", env={**os.environ, "DAGU_HOME": str(self.home)},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self.processes.append(process)
        return process

    async def _request(self, verb: str, request: StartRequest) -> DagRunRef:
        self.number += 1
        run_id = request.run_id or f"run{self.number}"
        if request.dag:
            workflow = await self.workflows.get(request.dag)
            if workflow.definition is None:
                raise DefinitionError("the DAG does not load", why="\n".join(workflow.errors))
            path, name = str(self.workflows.folder / f"{request.dag}.yaml"), request.name or workflow.name
        else:
            name = request.name or load_definition(request.text).main.name or "inline"
            path = str(self.home / f"{name}.yaml")
            Path(path).write_text(request.text)  # noqa: ASYNC240 - small
        run = DagRunRef(name, run_id)
        if self.runs.records.find(run) is not None:
            raise Conflict(f"the run id {run_id} is taken")
        params = ["-p", request.params] if request.params else []
        process = await self._run(verb, path, "-r", run_id, "-N", name, *params)
        while self.runs.records.find(run) is None:
            if process.returncode is not None:
                raise DefinitionError("the run did not start")
            await asyncio.sleep(0.01)
        return run

    async def start(self, request: StartRequest) -> DagRunRef:
        return await self._request("start", request)

    async def enqueue(self, request: StartRequest) -> DagRunRef:
        run = await self._request("enqueue", request)
        await self.processes[-1].wait()
        return run

    async def outlook(self, dag: str) -> Outlook:
        return self.expected

    async def stop(self, run: DagRunRef, *, actor: str) -> None:
        _, attempt = self.runs._record(run)
        if attempt.status().get("status") != RunStatus.RUNNING:
            raise Conflict("the run is not running")
        attempt.request_cancel()

    async def retry(
        self, run: DagRunRef, *, actor: str, step: str = "", downstream: bool = False, child: str = ""
    ) -> None:
        self.runs._record(run)
        process = await self._run("retry", run.name, "-r", run.run_id)
        await process.wait()

    async def retry_automatically(self, run: DagRunRef) -> datetime | None:
        return None

    async def reschedule(
        self, run: DagRunRef, *, actor: str, run_id: str = "", name: str = "", use_current: bool = False
    ) -> tuple[DagRunRef, bool]:
        text = await self.runs.definition(run)
        return await self.start(StartRequest(text=text, name=name or run.name, run_id=run_id)), False

    async def dequeue(self, run: DagRunRef, *, actor: str) -> None:
        _, attempt = self.runs._record(run)
        if attempt.status().get("status") != RunStatus.QUEUED:
            raise Conflict("the run is not queued")
        attempt.hide()

    async def delete(self, run: DagRunRef) -> None:
        record, attempt = self.runs._record(run)
        if attempt.status().get("status") == RunStatus.RUNNING:
            raise Conflict("the run is running; stop it first")
        self.runs.records.remove(record)

    async def set_step_status(
        self, run: DagRunRef, step: str, status: StepStatus, *, actor: str, child: str = ""
    ) -> None:
        _, attempt = self.runs._record(run, child)
        document = attempt.status()
        for node in document["nodes"]:
            if node["step"]["name"] == step:
                node["status"] = int(status)
                attempt.write(json.dumps(document), final=True)
                return
        raise NotFound(f"there is no step {step}")

    async def approve(self, run: DagRunRef, step: str, inputs: Mapping[str, str], *, actor: str) -> bool:
        self.calls.append(("approve", step))
        self.runs._record(run)
        return True

    async def reject(self, run: DagRunRef, step: str, reason: str, *, actor: str) -> None:
        self.calls.append(("reject", step))
        self.runs._record(run)

    async def push_back(self, run: DagRunRef, step: str, inputs: Mapping[str, str], *, actor: str) -> bool:
        self.calls.append(("push_back", step))
        self.runs._record(run)
        return True

    async def complete_task(self, run: DagRunRef, step: str, fields: Mapping[str, Any], *, actor: str) -> bool:
        self.calls.append(("complete_task", step))
        self.runs._record(run)
        return True


class FileQueues:
    """The queues of one host."""

    def __init__(self, folder: Path, runs: RecordRuns) -> None:
        self.folder, self.runs = Queues(folder), runs

    async def queues(self) -> Sequence[QueueView]:
        return [
            QueueView(
                name=name, is_global=False, max_concurrency=1, paused=self.folder.is_paused(name),
                queued=len(self.folder.items(name)), running=(),
            )
            for name in self.folder.names()
        ]  # fmt: skip

    async def items(self, queue: str, *, limit: int, cursor: str = "") -> RunPage:
        if queue not in self.folder.names():
            raise NotFound(f'Queue "{queue}" not found')
        return RunPage(runs=tuple([await self.runs.get(item.run) for item in self.folder.items(queue)][:limit]))

    async def pause(self, queue: str, *, actor: str) -> None:
        if queue not in self.folder.names():
            raise NotFound(f'Queue "{queue}" not found')
        self.folder.pause(queue, paused=True)

    async def resume(self, queue: str, *, actor: str) -> None:
        self.folder.pause(queue, paused=False)


class OneWorker:
    """A fleet of one worker and one certificate."""

    def __init__(self) -> None:
        self.draining = False

    async def workers(self) -> Sequence[WorkerView]:
        info = WorkerInfo(
            worker=WorkerId("w1"), labels={"gpu": "true"}, stats=WorkerStats(total_pollers=4, busy_pollers=1),
            last_heartbeat_at=datetime.now(UTC), health=WorkerHealth.HEALTHY,
        )  # fmt: skip
        return [
            WorkerView(
                info=info, state=WorkerState.DRAINING if self.draining else WorkerState.ACTIVE,
                identity="spiffe://dagu/worker/w1", remote_address="192.0.2.7:4711", tls_version="TLSv1.3",
            )
        ]  # fmt: skip

    async def drain(self, worker: str, *, draining: bool, actor: str) -> None:
        if worker != "w1":
            raise NotFound("there is no such worker")
        self.draining = draining

    async def revoke(self, worker: str, *, reason: str, actor: str) -> int:
        if worker != "w1":
            raise NotFound("there is no such worker")
        return 1

    async def coordinators(self) -> Sequence[ServiceView]:
        return [ServiceView(instance_id="c1@50055", host="c1", port=50055, status="active")]

    async def schedulers(self) -> Sequence[ServiceView]:
        return [ServiceView(instance_id="s1", host="s1", port=8090, status="active")]

    async def links(self) -> Sequence[LinkView]:
        return []

    async def certificates(self) -> Sequence[CertificateView]:
        then = datetime(2026, 1, 1, tzinfo=UTC)
        return [
            CertificateView(
                subject="worker w1", identity="spiffe://dagu/worker/w1", serial="ab", issuer="CA", names=("w1",),
                not_before=then, not_after=then.replace(year=2040), in_use=True,
            )
        ]  # fmt: skip


@cache
def app() -> FastAPI:
    """Return the app: made once, for its two hundred shapes take a second."""
    made = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    problems.install(made)
    made.include_router(api_router(), prefix="/api/v1")
    return made


class Installation:
    """All of it, with the address of its server."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.dags = home / "dags"
        self.dags.mkdir(parents=True)
        self.workflows = FolderWorkflows(self.dags)
        self.runs = RecordRuns(Records(home / "data" / "dag-runs"))
        self.launching = ProcessLaunching(home, self.workflows, self.runs)
        self.queues = FileQueues(home / "data" / "queue", self.runs)
        self.gate = RoleGate()
        self.fleet = OneWorker()
        self.hub = Hub(self.runs, max_clients=300)
        self.is_well = True
        self.evidence = Evidence(
            at=datetime.now(UTC), host="h", results=(), exemptions=(), head=Place(), checked=Place(),
            checked_at=datetime.now(UTC), is_checked_whole=True,
        )  # fmt: skip
        self.url = ""
        self.app = app()

    def door(self) -> Doorkeeper:
        """Return a gate with accounts of its own: for the endpoints that are about accounts."""
        auth = self.home / "data" / "auth"
        sessions = Sessions(secret_of(auth, ""), timedelta(hours=1), auth / "ended_sessions.json")
        accounts = Accounts(
            AccountFolder(self.home / "data" / "users"), AccountFolder(self.home / "data" / "apikeys"), sessions
        )
        return Doorkeeper(accounts, NO_TRAIL, Rules())

    def parts(self) -> Parts:
        """Return it as the API sees it."""

        async def look() -> Check:
            return Check(ok=self.is_well, message="" if self.is_well else "the store is gone")

        async def exposition(accept: str) -> tuple[bytes, str]:
            return metrics.exposition(accept, metrics.COMMON, web_series.WEB)

        def write_base_config(text: str) -> None:
            load_definition("steps: [{name: a, run: echo}]", name="a", base_config=text)
            (self.home / "base.yaml").write_text(text)

        events = EventLog(self.home / "logs" / "admin" / "events", retention_days=1, now=now)
        host = HostLoad(self.home, interval_s=5, retention_s=3600)
        host.look()
        return Parts(
            runs=self.runs, launching=self.launching, queues=self.queues, workflows=self.workflows, fleet=self.fleet,
            gate=self.gate, hub=self.hub, tickets=Tickets(), host=host, events=events,
            secrets=SecretFiles(self.home / "data" / "secrets"),
            audit_folders={"server": self.home / "data" / "audit-server"}, base_config=self.home / "base.yaml",
            write_base_config=write_base_config, api_path="/api/v1",
            checks=lambda: {"store": look}, exposition=exposition, compliance=lambda: self.evidence,
            heartbeat_s=0.2, slow_client_s=5,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Installation]:
        """Serve on a free port of loopback."""
        self.app.state.api = parts = self.parts()
        self.app.state.services = Services(parts=parts, door=self.door(), options=Options())
        server = uvicorn.Server(
            uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="error", lifespan="off", access_log=False)
        )
        async with self.hub.serving(), asyncio.TaskGroup() as group:
            task = group.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}/api/v1"
            try:
                yield self
            finally:
                self.hub.end()
                for process in self.launching.processes:
                    await process.wait()
                server.should_exit = True
                await task
