"""`dispatch.api.Coordinator` over gRPC: one method a call, each with its deadline, over any `Transport`.

A transport decides whom to ask: one address (`channel.Channel`), anyone, or a task's owner (`routes`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from secure_dagu.dispatch.api import Announced
from secure_dagu.dispatch.model import (
    NO_KEY,
    ArtifactInfo,
    ArtifactPart,
    BundleRef,
    Caller,
    Claim,
    ClaimToken,
    LogPart,
    LogStream,
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
from secure_dagu.errors import Conflict, InvalidRequest, SecureDaguError, Unavailable
from secure_dagu.run.model import AttemptKey, DagRunRef
from secure_dagu.wire import codec, fields, streams
from secure_dagu.wire.pb import coordinator_pb2 as pb
from secure_dagu.wire.pb import extensions_pb2 as ext

if TYPE_CHECKING:
    from secure_dagu.dispatch.operating import LinkView, ListedRun, LogPage, RunFilter, Window, WorkerView

SERVICE = "/coordinator.v1.CoordinatorService/"
EVENTS = "/secure_dagu.v1.WorkerEvents/"
OPERATIONS = "/secure_dagu.v1.Operations/"

# Deadlines in seconds, over all coordinators that are asked (protocol, section 1.2). The poll has none: heartbeats tell
# whether anybody is there. Log uploads last as long as their step; their sender watches that they move.
HEARTBEAT_S = 10.0
ACK_S = 10.0
REPORT_S = 10.0
ARTIFACTS_S = 180.0
QUESTION_S = 30.0
ANNOUNCE_S = 2.0
DISPATCH_S = 300.0
STATE_S = 300.0
BUNDLE_S = 300.0
DELETE_S = 300.0


class Transport(Protocol):
    """Ask a coordinator, in bytes. Raises our errors only."""

    async def call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        """Make a unary call."""
        ...

    async def upload(self, path: str, requests: AsyncIterator[bytes], timeout_s: float | None) -> bytes:
        """Make a client-streaming call."""
        ...

    def download(self, path: str, request: bytes, timeout_s: float | None) -> AsyncIterator[bytes]:
        """Make a server-streaming call."""
        ...


class RemoteCoordinator:
    """A coordinator at the other end of a transport. `caller` arguments name the worker; the certificate proves it."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # -- TaskDesk ------------------------------------------------------------------------------------------------------

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        """Hand in a task. The wire answers nothing, so what is returned has no attempt id yet."""
        request = pb.DispatchRequest(task=codec.task_message(task), admission_reservation_token=admission_token)
        await self.transport.call(SERVICE + "Dispatch", request.SerializeToString(), DISPATCH_S)
        return task

    async def poll(self, caller: Caller, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        """Wait for a task, without a deadline."""
        worker = _worker(caller)
        request = pb.PollRequest(worker_id=worker, poller_id=poller_id, labels=labels)
        raw = await self.transport.call(SERVICE + "Poll", request.SerializeToString(), None)
        try:
            return codec.claim_of(_parse(pb.PollResponse, raw), WorkerId(worker))
        except InvalidRequest as error:
            # Not our mistake and not a reason to stop polling: the offer expires and its run ends with a reason.
            raise Conflict("the coordinator handed out a malformed task", why=str(error)) from error

    async def withdraw(self, token: ClaimToken) -> None:
        """Do nothing: an offer that we do not acknowledge goes back by itself."""

    async def acknowledge(self, caller: Caller, *, token: ClaimToken, attempt_key: AttemptKey) -> Verdict:
        """Acknowledge an offer."""
        request = pb.AckTaskClaimRequest(worker_id=_worker(caller), claim_token=token, attempt_key=attempt_key)
        answer = _parse(
            pb.AckTaskClaimResponse,
            await self.transport.call(SERVICE + "AckTaskClaim", request.SerializeToString(), ACK_S),
        )
        return Verdict(accepted=answer.accepted, error=answer.error)

    async def heartbeat(self, caller: Caller, *, labels: Mapping[str, str], stats: WorkerStats) -> Sequence[AttemptKey]:
        """Tell presence and load."""
        request = pb.HeartbeatRequest(worker_id=_worker(caller), labels=labels, stats=codec.stats_message(stats))
        raw = await self.transport.call(SERVICE + "Heartbeat", request.SerializeToString(), HEARTBEAT_S)
        return codec.cancelled_of(_parse(pb.HeartbeatResponse, raw).cancelled_runs) if raw else ()

    async def run_heartbeat(self, caller: Caller, *, running: Sequence[RunningTask]) -> Sequence[AttemptKey]:
        """Renew leases."""
        request = pb.RunHeartbeatRequest(worker_id=_worker(caller), running_tasks=codec.running_messages(running))
        raw = await self.transport.call(SERVICE + "RunHeartbeat", request.SerializeToString(), HEARTBEAT_S)
        return codec.cancelled_of(_parse(pb.RunHeartbeatResponse, raw).cancelled_runs) if raw else ()

    async def cancellations(self, caller: Caller) -> AsyncIterator[AttemptKey]:
        """Yield `NO_KEY` when the stream stands, then each attempt that must stop."""
        request = ext.WatchCancellationsRequest(worker_id=_worker(caller))
        answers = self.transport.download(EVENTS + "WatchCancellations", request.SerializeToString(), None)
        async for raw in answers:
            key = fields.attempt_key(_parse(ext.Cancellation, raw).attempt_key)
            yield key or NO_KEY

    async def cancel(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> Verdict:
        """Ask for the end of a run."""
        request = pb.RequestCancelRequest(
            dag_name=run.name,
            dag_run_id=run.run_id,
            root_dag_run_name=root.name if root else "",
            root_dag_run_id=root.run_id if root else "",
        )
        raw = await self.transport.call(SERVICE + "RequestCancel", request.SerializeToString(), QUESTION_S)
        answer = _parse(pb.RequestCancelResponse, raw)
        return Verdict(accepted=answer.accepted, error=answer.error)

    async def workers(self, caller: Caller) -> Sequence[WorkerInfo]:
        """Return the known workers."""
        raw = await self.transport.call(SERVICE + "GetWorkers", b"", QUESTION_S)
        return codec.workers_of(_parse(pb.GetWorkersResponse, raw))

    # -- Machines ------------------------------------------------------------------------------------------------------

    async def announce(self, caller: Caller, *, version: str, presence: Announced) -> None:
        """Say what a heartbeat has no words for."""
        request = ext.AnnounceRequest(worker_id=_worker(caller), version=version, presence=presence)
        await self.transport.call(EVENTS + "Announce", request.SerializeToString(), ANNOUNCE_S)

    async def fleet(self, caller: Caller) -> Sequence[WorkerView]:
        """Return the workers with what their certificates prove."""
        from secure_dagu.wire import machines

        raw = await self.transport.call(OPERATIONS + "ListMachines", b"", QUESTION_S)
        return tuple(machines.machine_of(item) for item in _parse(ext.ListMachinesResponse, raw).machines)

    async def drain(self, caller: Caller, *, worker: WorkerId, draining: bool) -> None:
        """Hold a worker, or free it."""
        request = ext.DrainWorkerRequest(worker_id=worker, draining=draining)
        await self.transport.call(OPERATIONS + "DrainWorker", request.SerializeToString(), QUESTION_S)

    async def links(self, caller: Caller) -> Sequence[LinkView]:
        """Return the live connections."""
        from secure_dagu.wire import machines

        raw = await self.transport.call(OPERATIONS + "ListLinks", b"", QUESTION_S)
        return tuple(machines.link_of(item) for item in _parse(ext.ListLinksResponse, raw).links)

    # -- RunReports ----------------------------------------------------------------------------------------------------

    async def report_status(self, caller: Caller, *, status: str, source_file: str, labels: str) -> Verdict:
        """Hand in a status document."""
        request = pb.ReportStatusRequest(worker_id=_worker(caller), source_file=source_file, labels=labels)
        request.status.json_data = status
        raw = await self.transport.call(SERVICE + "ReportStatus", request.SerializeToString(), REPORT_S)
        answer = _parse(pb.ReportStatusResponse, raw)
        return Verdict(accepted=answer.accepted, error=answer.error)

    async def stream_logs(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]) -> Uploaded:
        """Upload log parts; parts above 3 MiB are cut."""

        async def chunks() -> AsyncIterator[bytes]:
            sequences: dict[tuple[str, LogStream], int] = {}
            async for part in parts:
                for piece in _log_pieces(part):
                    key = (piece.step, piece.stream)
                    sequences[key] = sequences.get(key, 0) + 1
                    yield codec.log_chunk(identity, piece, sequences[key]).SerializeToString()

        raw = await self.transport.upload(SERVICE + "StreamLogs", chunks(), None)
        answer = _parse(pb.StreamLogsResponse, raw)
        if answer.error:
            raise SecureDaguError("the coordinator could not store logs", why=answer.error[:300])
        return Uploaded(answer.chunks_received, answer.bytes_written)

    async def stream_artifacts(
        self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]
    ) -> Uploaded:
        """Upload artifact parts, each at most 3 MiB as its sender makes them."""

        async def chunks() -> AsyncIterator[bytes]:
            sequence = 0
            async for part in parts:
                sequence += 1
                yield codec.artifact_chunk(identity, part, sequence).SerializeToString()

        raw = await self.transport.upload(SERVICE + "StreamArtifacts", chunks(), ARTIFACTS_S)
        answer = _parse(pb.StreamArtifactsResponse, raw)
        if answer.error:
            raise SecureDaguError("the coordinator could not store artifacts", why=answer.error[:300])
        return Uploaded(answer.chunks_received, answer.bytes_written)

    async def run_status(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> str | None:
        """Read the latest status document of a run."""
        request = pb.GetDAGRunStatusRequest(
            dag_name=run.name,
            dag_run_id=run.run_id,
            root_dag_run_name=root.name if root else "",
            root_dag_run_id=root.run_id if root else "",
        )
        raw = await self.transport.call(SERVICE + "GetDAGRunStatus", request.SerializeToString(), QUESTION_S)
        answer = _parse(pb.GetDAGRunStatusResponse, raw)
        if answer.error:
            raise SecureDaguError("the coordinator could not read the run", why=answer.error[:300])
        return answer.status.json_data if answer.found else None

    async def runs(self, caller: Caller, *, name: str | None, run_id: str | None, limit: int) -> Sequence[RunSummary]:
        """List root runs, newest first."""
        request = ext.ListRunsRequest(dag_name=name or "", dag_run_id=run_id or "", limit=limit)
        raw = await self.transport.call(OPERATIONS + "ListRuns", request.SerializeToString(), QUESTION_S)
        return tuple(_summary(run) for run in _parse(ext.ListRunsResponse, raw).runs)

    async def find_runs(
        self, caller: Caller, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None
    ) -> Sequence[ListedRun]:
        """List root runs by filter."""
        from secure_dagu.dispatch.operating import ListedRun

        request = ext.FindRunsRequest(
            dag_name=wanted.name, name_part=wanted.name_part, run_id_part=wanted.run_id_part,
            statuses=[int(status) for status in wanted.statuses], labels=wanted.labels,
            since=fields.milliseconds(wanted.since), until=fields.milliseconds(wanted.until), limit=limit,
            before_at=before[0] if before else 0, before_ident=before[1] if before else "",
        )  # fmt: skip
        raw = await self.transport.call(OPERATIONS + "FindRuns", request.SerializeToString(), QUESTION_S)
        found = _parse(ext.FindRunsResponse, raw).runs
        return tuple(
            ListedRun(at=run.at, ident=run.ident, document=run.status_json, revision=run.revision) for run in found
        )

    async def count_runs(self, caller: Caller, *, since: datetime, until: datetime | None) -> Mapping[int, int]:
        """Count root runs by status."""
        request = ext.CountRunsRequest(since=fields.milliseconds(since), until=fields.milliseconds(until))
        raw = await self.transport.call(OPERATIONS + "CountRuns", request.SerializeToString(), QUESTION_S)
        return dict(_parse(ext.CountRunsResponse, raw).by_status)

    async def follow(self, caller: Caller, *, run: DagRunRef, with_logs: bool) -> AsyncIterator[RunEvent]:
        """Follow a run to its end."""
        request = ext.FollowRunRequest(dag_name=run.name, dag_run_id=run.run_id, with_logs=with_logs)
        events = self.transport.download(OPERATIONS + "FollowRun", request.SerializeToString(), None)
        async for raw in events:
            message = _parse(ext.RunEvent, raw)
            part = None
            if message.step_name or message.data:
                part = LogPart(
                    step=message.step_name,
                    stream=_stream(message.stream_type),
                    data=message.data,
                    offset=message.byte_offset,
                    is_final=False,
                )
            yield RunEvent(status=message.status_json, log=part, ended=message.ended)

    async def read_log(
        self, caller: Caller, *, run: DagRunRef, step: str, stream: int, offset: int
    ) -> AsyncIterator[bytes]:
        """Read a stored log."""
        request = ext.ReadLogRequest(
            dag_name=run.name, dag_run_id=run.run_id, step_name=step, stream_type=stream, byte_offset=offset
        )
        answers = self.transport.download(OPERATIONS + "ReadLog", request.SerializeToString(), BUNDLE_S)
        async for raw in answers:
            yield _parse(ext.Bytes, raw).data

    async def log_page(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, window: Window) -> LogPage:
        """Read some lines of a stored log."""
        from secure_dagu.dispatch.operating import LogPage

        request = ext.ReadLogPageRequest(
            dag_name=run.name, dag_run_id=run.run_id, step_name=step, stream_type=stream, tail=window.tail,
            head=window.head, offset=window.offset, limit=window.limit,
        )  # fmt: skip
        raw = await self.transport.call(OPERATIONS + "ReadLogPage", request.SerializeToString(), QUESTION_S)
        page = _parse(ext.LogPage, raw)
        return LogPage(
            content=page.content, line_count=page.line_count, total_lines=page.total_lines, has_more=page.has_more,
            is_estimate=page.is_estimate, end_offset=page.end_offset,
        )  # fmt: skip

    async def artifacts(self, caller: Caller, *, run: DagRunRef) -> Sequence[ArtifactInfo]:
        """List the artifact files of a run."""
        request = ext.ListArtifactsRequest(dag_name=run.name, dag_run_id=run.run_id)
        raw = await self.transport.call(OPERATIONS + "ListArtifacts", request.SerializeToString(), QUESTION_S)
        files = _parse(ext.ListArtifactsResponse, raw).artifacts
        return tuple(ArtifactInfo(path=file.path, size_bytes=file.size_bytes) for file in files)

    async def read_artifact(self, caller: Caller, *, run: DagRunRef, path: str) -> AsyncIterator[bytes]:
        """Read one artifact file."""
        request = ext.ReadArtifactRequest(dag_name=run.name, dag_run_id=run.run_id, path=path)
        answers = self.transport.download(OPERATIONS + "ReadArtifact", request.SerializeToString(), BUNDLE_S)
        async for raw in answers:
            yield _parse(ext.Bytes, raw).data

    async def delete_run(self, caller: Caller, *, run: DagRunRef) -> None:
        """Delete a finished run."""
        request = ext.DeleteRunRequest(dag_name=run.name, dag_run_id=run.run_id)
        await self.transport.call(OPERATIONS + "DeleteRun", request.SerializeToString(), DELETE_S)

    # -- Bundles -------------------------------------------------------------------------------------------------------

    async def put(self, caller: Caller, bundle: BundleRef, data: AsyncIterator[bytes]) -> Verdict:
        """Upload an archive."""

        async def chunks() -> AsyncIterator[bytes]:
            chunk = pb.WorkspaceBundleChunk(bundle=codec.bundle_message(bundle), sequence=0)
            async for block in data:
                for piece in streams.pieces(block, streams.BUNDLE_CHUNK):
                    if chunk.data:
                        yield chunk.SerializeToString()
                        chunk = pb.WorkspaceBundleChunk(sequence=chunk.sequence + 1)
                    chunk.data = piece
            chunk.is_final = True
            yield chunk.SerializeToString()

        answer = _parse(
            pb.PutWorkspaceBundleResponse,
            await self.transport.upload(SERVICE + "PutWorkspaceBundle", chunks(), BUNDLE_S),
        )
        return Verdict(accepted=answer.accepted, error=answer.error)

    async def has(self, caller: Caller, digest: str) -> bool:
        """Tell whether the archive is stored."""
        request = pb.HasWorkspaceBundleRequest(digest=digest)
        raw = await self.transport.call(SERVICE + "HasWorkspaceBundle", request.SerializeToString(), QUESTION_S)
        return _parse(pb.HasWorkspaceBundleResponse, raw).exists

    async def get(self, caller: Caller, digest: str) -> AsyncIterator[bytes]:
        """Download an archive.

        Raises:
            IntegrityViolation: out of order, too large, or, after the last byte, not what the digest names.
        """
        check = streams.BundleCheck(digest)
        request = pb.GetWorkspaceBundleRequest(digest=digest)
        answers = self.transport.download(SERVICE + "GetWorkspaceBundle", request.SerializeToString(), BUNDLE_S)
        async for raw in answers:
            chunk = _parse(pb.WorkspaceBundleChunk, raw)
            check.take(sequence=chunk.sequence, data=chunk.data)
            if chunk.data:
                yield chunk.data
        check.end()

    # -- SharedState ---------------------------------------------------------------------------------------------------

    async def get_state(self, caller: Caller, ref: StateRef) -> StateEntry | None:
        """Read a shared value."""
        request = pb.GetStateRequest(ref=codec.state_ref_message(ref))
        raw = await self.transport.call(SERVICE + "GetState", request.SerializeToString(), STATE_S)
        answer = _parse(pb.GetStateResponse, raw)
        return codec.state_entry(answer.entry) if answer.found else None

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
        """Write a shared value."""
        request = pb.PutStateRequest(
            ref=codec.state_ref_message(ref),
            value=value,
            has_expected_version=expected_version is not None,
            expected_version=expected_version or 0,
            create_only=create_only,
            updated_by=codec.state_source_message(updated_by),
        )
        raw = await self.transport.call(SERVICE + "PutState", request.SerializeToString(), STATE_S)
        return codec.state_entry(_parse(pb.PutStateResponse, raw).entry)

    async def delete_state(self, caller: Caller, ref: StateRef) -> bool:
        """Remove a shared value."""
        request = pb.DeleteStateRequest(ref=codec.state_ref_message(ref))
        raw = await self.transport.call(SERVICE + "DeleteState", request.SerializeToString(), STATE_S)
        return _parse(pb.DeleteStateResponse, raw).deleted

    async def list_state(
        self, caller: Caller, *, scope: str, namespace: str, prefix: str, limit: int
    ) -> Sequence[StateEntry]:
        """List shared values."""
        request = pb.ListStateRequest(scope=scope, namespace=namespace, key_prefix=prefix, limit=limit)
        raw = await self.transport.call(SERVICE + "ListState", request.SerializeToString(), STATE_S)
        return tuple(codec.state_entry(entry) for entry in _parse(pb.ListStateResponse, raw).entries)

    async def dag_text(self, caller: Caller, name: str) -> str | None:
        """Read a definition by name."""
        request = pb.GetDAGRequest(name=name)
        raw = await self.transport.call(SERVICE + "GetDAG", request.SerializeToString(), QUESTION_S)
        answer = _parse(pb.GetDAGResponse, raw)
        return None if answer.error else fields.text(answer.spec, "spec", limit=fields.MAX_DEFINITION)

    async def resolve_secret(self, caller: Caller, request: SecretRequest) -> str:
        """Read a managed secret."""
        message = pb.ResolveSecretReferenceRequest(
            name=request.name,
            ref=request.ref,
            workspace=request.workspace,
            check_only=request.check_only,
            worker_id=_worker(caller),
            attempt_key=request.attempt_key,
            attempt_id=request.attempt_id,
        )
        raw = await self.transport.call(SERVICE + "ResolveSecretReference", message.SerializeToString(), QUESTION_S)
        return _parse(pb.ResolveSecretReferenceResponse, raw).value


def _worker(caller: Caller) -> str:
    return caller.worker or caller.name


def _parse(kind: type[codec.M], raw: bytes) -> codec.M:
    """Read an answer; one that cannot be read is the other end's fault, and another answer may be better."""
    try:
        return codec.parse(kind, raw)
    except InvalidRequest as error:
        raise Unavailable("the coordinator's answer cannot be read", why=error.why) from error


def _log_pieces(part: LogPart) -> Sequence[LogPart]:
    if len(part.data) <= streams.LOG_CHUNK:
        return (part,)
    pieces = []
    done = 0
    for data in streams.pieces(part.data, streams.LOG_CHUNK):
        offset = None if part.offset is None else part.offset + done
        done += len(data)
        pieces.append(LogPart(step=part.step, stream=part.stream, data=data, offset=offset, is_final=False))
    if part.is_final:
        pieces.append(LogPart(step=part.step, stream=part.stream, data=b"", offset=part.offset, is_final=True))
    return pieces


def _stream(number: int) -> LogStream:
    return LogStream(number) if number in (1, 2, 3) else LogStream.UNSPECIFIED


def _summary(run: ext.RunSummary) -> RunSummary:
    return RunSummary(
        run=DagRunRef(run.dag_name, run.dag_run_id),
        root=DagRunRef(run.root_dag_run_name, run.root_dag_run_id),
        status=run.status,
        worker=run.worker_id,
        error=run.error,
        created_at=fields.from_milliseconds(run.created_at) or datetime.fromtimestamp(0, UTC),
        started_at=fields.from_milliseconds(run.started_at),
        finished_at=fields.from_milliseconds(run.finished_at),
    )
