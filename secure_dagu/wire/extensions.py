"""The method tables beside coordinator.v1: our secure_dagu.v1 services and grpc.health.v1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial

from grpc_health.v1 import health_pb2

from secure_dagu.dispatch.api import Announced, Coordinator
from secure_dagu.dispatch.model import Caller, RunSummary
from secure_dagu.dispatch.operating import MAX_LINES, RunFilter, Window
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.run.model import RunStatus
from secure_dagu.wire import codec, fields, machines, streams
from secure_dagu.wire.interceptors import Cap, Context, Method
from secure_dagu.wire.pb import extensions_pb2 as ext

HEALTH = "/grpc.health.v1.Health/"
EVENTS = "/secure_dagu.v1.WorkerEvents/"
OPERATIONS = "/secure_dagu.v1.Operations/"
MAX_RUNS = 1000
_PRESENCES = frozenset(Announced)


class Health:
    """Whether this coordinator takes calls, told to those who ask and to those who watch."""

    SERVICES = frozenset({"", "coordinator.v1.CoordinatorService"})

    def __init__(self, advertise: Sequence[str] = ()) -> None:
        """Take the addresses that this coordinator writes into tasks."""
        self._advertise = ",".join(advertise)
        self._is_serving = True
        self._changed = asyncio.Event()

    def methods(self) -> Sequence[Method]:
        """Return the table."""
        decode = partial(codec.parse, health_pb2.HealthCheckRequest)
        return (
            Method(path=HEALTH + "Check", decode=decode, unary=self._check),
            Method(path=HEALTH + "Watch", decode=decode, cap=Cap.STREAMS, download=self._watch),
        )

    def set_not_serving(self) -> None:
        """Tell everybody that this coordinator is going away."""
        self._is_serving = False
        self._changed.set()

    def _answer(self) -> bytes:
        kind = health_pb2.HealthCheckResponse
        packed: bytes = kind(status=kind.SERVING if self._is_serving else kind.NOT_SERVING).SerializeToString()
        return packed

    async def _check(self, _caller: Caller, request: health_pb2.HealthCheckRequest, context: Context) -> bytes:
        if request.service not in self.SERVICES:
            raise NotFound("unknown service")
        context.set_trailing_metadata(
            ((fields.TIME_KEY, datetime.now(UTC).isoformat()), (fields.ADVERTISE_KEY, self._advertise))
        )
        return self._answer()

    async def _watch(self, _caller: Caller, request: health_pb2.HealthCheckRequest) -> AsyncIterator[bytes]:
        if request.service not in self.SERVICES:
            unknown = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            yield unknown.SerializeToString()
            await asyncio.Event().wait()  # the standard service waits here for the service to appear; ours never do
        yield self._answer()
        await self._changed.wait()
        yield self._answer()


class Extensions:
    """Answer secure_dagu.v1 with a `Coordinator`."""

    def __init__(self, desk: Coordinator) -> None:
        self._desk = desk

    def methods(self) -> Sequence[Method]:
        """Return the table."""
        return (
            Method(
                path=EVENTS + "WatchCancellations",
                decode=partial(codec.parse, ext.WatchCancellationsRequest),
                claimed=lambda request: str(request.worker_id),
                cap=Cap.STREAMS,
                download=self._cancellations,
            ),
            Method(
                path=EVENTS + "Announce",
                decode=partial(codec.parse, ext.AnnounceRequest),
                claimed=lambda request: str(request.worker_id),
                unary=self._announce,
            ),
            Method(
                path=OPERATIONS + "ListMachines",
                decode=partial(codec.parse, ext.ListMachinesRequest),
                unary=self._machines,
            ),
            Method(
                path=OPERATIONS + "DrainWorker", decode=partial(codec.parse, ext.DrainWorkerRequest), unary=self._drain
            ),
            Method(path=OPERATIONS + "ListLinks", decode=partial(codec.parse, ext.ListLinksRequest), unary=self._links),
            Method(path=OPERATIONS + "ListRuns", decode=partial(codec.parse, ext.ListRunsRequest), unary=self._runs),
            Method(path=OPERATIONS + "FindRuns", decode=partial(codec.parse, ext.FindRunsRequest), unary=self._find),
            Method(path=OPERATIONS + "CountRuns", decode=partial(codec.parse, ext.CountRunsRequest), unary=self._count),
            Method(
                path=OPERATIONS + "FollowRun",
                decode=partial(codec.parse, ext.FollowRunRequest),
                cap=Cap.STREAMS,
                download=self._follow,
            ),
            Method(
                path=OPERATIONS + "ReadLog",
                decode=partial(codec.parse, ext.ReadLogRequest),
                cap=Cap.STREAMS,
                download=self._read_log,
            ),
            Method(
                path=OPERATIONS + "ReadLogPage",
                decode=partial(codec.parse, ext.ReadLogPageRequest),
                unary=self._log_page,
            ),
            Method(
                path=OPERATIONS + "ListArtifacts",
                decode=partial(codec.parse, ext.ListArtifactsRequest),
                unary=self._list_artifacts,
            ),
            Method(
                path=OPERATIONS + "ReadArtifact",
                decode=partial(codec.parse, ext.ReadArtifactRequest),
                cap=Cap.STREAMS,
                download=self._read_artifact,
            ),
            Method(
                path=OPERATIONS + "DeleteRun", decode=partial(codec.parse, ext.DeleteRunRequest), unary=self._delete
            ),
        )

    async def _cancellations(self, caller: Caller, _request: ext.WatchCancellationsRequest) -> AsyncIterator[bytes]:
        if caller.worker is None:
            raise InvalidRequest("worker_id is required")
        yield b""  # empty: the stream stands
        async for key in self._desk.cancellations(caller):
            if key:
                yield ext.Cancellation(attempt_key=key).SerializeToString()

    async def _announce(self, caller: Caller, request: ext.AnnounceRequest, _context: Context) -> bytes:
        if caller.worker is None:
            raise InvalidRequest("worker_id is required")
        if request.presence not in _PRESENCES:
            raise InvalidRequest("presence is unknown", why=f"number {request.presence}")
        version = machines.version_of(request.version)
        await self._desk.announce(caller, version=version, presence=Announced(request.presence))
        return b""

    async def _machines(self, caller: Caller, _request: ext.ListMachinesRequest, _context: Context) -> bytes:
        views = await self._desk.fleet(caller)
        return ext.ListMachinesResponse(machines=[machines.machine_message(view) for view in views]).SerializeToString()

    async def _drain(self, caller: Caller, request: ext.DrainWorkerRequest, _context: Context) -> bytes:
        worker = fields.worker_id(request.worker_id)
        await self._desk.drain(caller, worker=worker, draining=request.draining)
        return b""

    async def _links(self, caller: Caller, _request: ext.ListLinksRequest, _context: Context) -> bytes:
        views = await self._desk.links(caller)
        return ext.ListLinksResponse(links=[machines.link_message(view) for view in views]).SerializeToString()

    async def _runs(self, caller: Caller, request: ext.ListRunsRequest, _context: Context) -> bytes:
        if not 0 <= request.limit <= MAX_RUNS:
            raise InvalidRequest("limit is out of range", why=f"{request.limit}, at most {MAX_RUNS} are returned")
        runs = await self._desk.runs(
            caller,
            name=fields.line(request.dag_name, "dag_name") or None,
            run_id=fields.line(request.dag_run_id, "dag_run_id") or None,
            limit=request.limit or 100,
        )
        return ext.ListRunsResponse(runs=[_summary(run) for run in runs]).SerializeToString()

    async def _find(self, caller: Caller, request: ext.FindRunsRequest, _context: Context) -> bytes:
        if not 0 <= request.limit <= MAX_RUNS:
            raise InvalidRequest("limit is out of range", why=f"{request.limit}, at most {MAX_RUNS} are returned")
        if len(request.statuses) > 16 or len(request.labels) > 100:
            raise InvalidRequest("a filter has at most 16 statuses and 100 labels")
        before = (request.before_at, fields.line(request.before_ident, "before_ident")) if request.before_at else None
        runs = await self._desk.find_runs(caller, _filter(request), limit=request.limit or 100, before=before)
        found = [
            ext.ListedRun(at=run.at, ident=run.ident, status_json=run.document, revision=run.revision) for run in runs
        ]
        return ext.FindRunsResponse(runs=found).SerializeToString()

    async def _count(self, caller: Caller, request: ext.CountRunsRequest, _context: Context) -> bytes:
        since = fields.from_milliseconds(request.since) or datetime.fromtimestamp(0, UTC)
        counts = await self._desk.count_runs(caller, since=since, until=fields.from_milliseconds(request.until))
        return ext.CountRunsResponse(by_status=counts).SerializeToString()

    async def _follow(self, caller: Caller, request: ext.FollowRunRequest) -> AsyncIterator[bytes]:
        run = fields.run(request.dag_name, request.dag_run_id)
        async for event in self._desk.follow(caller, run=run, with_logs=request.with_logs):
            message = ext.RunEvent(status_json=event.status, ended=event.ended)
            if (part := event.log) is not None:
                message.step_name = part.step
                message.stream_type = part.stream
                message.byte_offset = part.offset or 0
                message.data = part.data
            yield message.SerializeToString()

    async def _read_log(self, caller: Caller, request: ext.ReadLogRequest) -> AsyncIterator[bytes]:
        if not 0 <= request.stream_type <= 3:
            raise InvalidRequest("stream_type is unknown", why=f"number {request.stream_type}")
        run = fields.run(request.dag_name, request.dag_run_id)
        step = fields.line(request.step_name, "step_name")
        stored = self._desk.read_log(caller, run=run, step=step, stream=request.stream_type, offset=request.byte_offset)
        async for data in stored:
            for piece in streams.pieces(data, streams.LOG_CHUNK):
                yield ext.Bytes(data=piece).SerializeToString()

    async def _log_page(self, caller: Caller, request: ext.ReadLogPageRequest, _context: Context) -> bytes:
        if not 0 <= request.stream_type <= 3:
            raise InvalidRequest("stream_type is unknown", why=f"number {request.stream_type}")
        numbers = (request.tail, request.head, request.offset, request.limit)
        if min(numbers) < 0 or max(request.tail, request.head, request.limit) > MAX_LINES:
            raise InvalidRequest("the window is out of range", why=f"at most {MAX_LINES} lines are returned")
        page = await self._desk.log_page(
            caller,
            run=fields.run(request.dag_name, request.dag_run_id),
            step=fields.line(request.step_name, "step_name"),
            stream=request.stream_type,
            window=Window(tail=request.tail, head=request.head, offset=request.offset, limit=request.limit or 1000),
        )
        return ext.LogPage(
            content=page.content, line_count=page.line_count, total_lines=page.total_lines, has_more=page.has_more,
            is_estimate=page.is_estimate, end_offset=page.end_offset,
        ).SerializeToString()  # fmt: skip

    async def _list_artifacts(self, caller: Caller, request: ext.ListArtifactsRequest, _context: Context) -> bytes:
        files = await self._desk.artifacts(caller, run=fields.run(request.dag_name, request.dag_run_id))
        answer = ext.ListArtifactsResponse()
        for file in files:
            answer.artifacts.add(path=file.path, size_bytes=file.size_bytes)
        return answer.SerializeToString()

    async def _read_artifact(self, caller: Caller, request: ext.ReadArtifactRequest) -> AsyncIterator[bytes]:
        run = fields.run(request.dag_name, request.dag_run_id)
        path = fields.line(fields.required(request.path, "path"), "path", limit=1024)
        async for data in self._desk.read_artifact(caller, run=run, path=path):
            for piece in streams.pieces(data, streams.LOG_CHUNK):
                yield ext.Bytes(data=piece).SerializeToString()

    async def _delete(self, caller: Caller, request: ext.DeleteRunRequest, _context: Context) -> bytes:
        await self._desk.delete_run(caller, run=fields.run(request.dag_name, request.dag_run_id))
        return b""


def _filter(request: ext.FindRunsRequest) -> RunFilter:
    """Return what a request asks for; unknown statuses match nothing."""
    known = {int(status) for status in RunStatus}
    if any(status not in known for status in request.statuses):
        raise InvalidRequest("there is no such status")
    return RunFilter(
        name=fields.line(request.dag_name, "dag_name"),
        name_part=fields.line(request.name_part, "name_part"),
        run_id_part=fields.line(request.run_id_part, "run_id_part"),
        statuses=frozenset(RunStatus(status) for status in request.statuses),
        labels=tuple(fields.line(label, "labels") for label in request.labels),
        since=fields.from_milliseconds(request.since),
        until=fields.from_milliseconds(request.until),
    )


def _summary(run: RunSummary) -> ext.RunSummary:
    return ext.RunSummary(
        dag_name=run.run.name,
        dag_run_id=run.run.run_id,
        root_dag_run_name=run.root.name,
        root_dag_run_id=run.root.run_id,
        status=run.status,
        worker_id=run.worker,
        error=run.error,
        created_at=fields.milliseconds(run.created_at),
        started_at=fields.milliseconds(run.started_at),
        finished_at=fields.milliseconds(run.finished_at),
    )
