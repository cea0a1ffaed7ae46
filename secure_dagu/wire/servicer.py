"""The method table of coordinator.v1: message → call of `dispatch.api` in the proven caller's name → message.

No rule lives here beyond "is the message complete"; the texts are those of protocol section 1.7.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import ArtifactPart, Caller, Claim, ClaimToken, LogPart, Verdict
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.run.model import DagRunRef
from secure_dagu.wire import codec, fields, streams
from secure_dagu.wire.interceptors import Cap, Context, Method
from secure_dagu.wire.pb import coordinator_pb2 as pb

SERVICE = "/coordinator.v1.CoordinatorService/"
_NOTHING = b""
"""An answer without fields: `HeartbeatResponse()` and its like."""


class Servicer:
    """Answer coordinator.v1 with a `Coordinator`."""

    def __init__(self, desk: Coordinator, *, withdraw: Callable[[ClaimToken], None]) -> None:
        """Take the desk.

        Args:
            withdraw: told of a claim whose poller went away before the answer was sent; must return at once.
        """
        self._desk = desk
        self._withdraw = withdraw
        self._polls: set[asyncio.Task[Any]] = set()
        self._released: set[asyncio.Task[Any]] = set()

    def methods(self) -> Sequence[Method]:
        """Return the table: all 22 methods."""

        def row(name: str, message: Any, **handler: Any) -> Method:
            return Method(path=SERVICE + name, decode=partial(codec.parse, message), **handler)

        return (
            row(
                "Poll", pb.PollRequest, claimed=_worker_id, labels=_poll_labels, cap=Cap.POLLS, kind="unary",
                download=self._poll,
            ),
            Method(
                path=SERVICE + "Heartbeat", decode=codec.beat_of, claimed=_beat_worker, labels=_beat_labels,
                unary=self._heartbeat,
            ),
            Method(path=SERVICE + "RunHeartbeat", decode=codec.run_beat_of, claimed=_beat_worker, unary=self._renew),
            row("AckTaskClaim", pb.AckTaskClaimRequest, claimed=_worker_id, unary=self._acknowledge),
            row("ReportStatus", pb.ReportStatusRequest, claimed=_worker_id, unary=self._report),
            row("StreamLogs", pb.LogChunk, claimed=_worker_id, cap=Cap.STREAMS, upload=self._logs),
            row("StreamArtifacts", pb.ArtifactChunk, claimed=_worker_id, cap=Cap.STREAMS, upload=self._artifacts),
            row("Dispatch", pb.DispatchRequest, unary=self._dispatch),
            row("GetWorkers", pb.GetWorkersRequest, unary=self._workers),
            row("GetDAGRunStatus", pb.GetDAGRunStatusRequest, unary=self._run_status),
            row("RequestCancel", pb.RequestCancelRequest, unary=self._cancel),
            row("PutWorkspaceBundle", pb.WorkspaceBundleChunk, cap=Cap.STREAMS, upload=self._put_bundle),
            row("HasWorkspaceBundle", pb.HasWorkspaceBundleRequest, unary=self._has_bundle),
            row("GetWorkspaceBundle", pb.GetWorkspaceBundleRequest, cap=Cap.STREAMS, download=self._get_bundle),
            row("GetState", pb.GetStateRequest, unary=self._get_state),
            row("PutState", pb.PutStateRequest, unary=self._put_state),
            row("DeleteState", pb.DeleteStateRequest, unary=self._delete_state),
            row("ListState", pb.ListStateRequest, unary=self._list_state),
            row("GetDAG", pb.GetDAGRequest, unary=self._get_dag),
            row("ResolveSecretReference", pb.ResolveSecretReferenceRequest, claimed=_worker_id, unary=self._secret),
            row("ClaimAgentSessionCleanup", pb.ClaimAgentSessionCleanupRequest, claimed=_worker_id, unary=_no_cleanup),
            row(
                "CompleteAgentSessionCleanup",
                pb.CompleteAgentSessionCleanupRequest,
                claimed=_worker_id,
                unary=_no_such_cleanup,
            ),
        )  # fmt: skip

    def release_polls(self) -> int:
        """Answer every open poll with "nothing"; return how many there were."""
        polls = tuple(self._polls)
        for poll in polls:
            self._released.add(poll)
            poll.cancel()
        return len(polls)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    async def _poll(self, caller: Caller, request: pb.PollRequest) -> AsyncIterator[bytes]:
        """Yield the one answer: a stream of one is unary on the wire, but tells whether it was sent."""
        fields.required(request.poller_id, "poller_id")
        _need_worker(caller)
        poller = fields.line(request.poller_id, "poller_id")
        claim = await self._claim(caller, poller, fields.labels(request.labels, "labels"))
        if claim is None:
            yield _NOTHING
            return
        try:
            yield codec.poll_response(claim).SerializeToString()
        except BaseException:
            self._withdraw(claim.token)  # the poller went away while the claim was made: the task is free again
            raise

    async def _claim(self, caller: Caller, poller: str, labels: Mapping[str, str]) -> Claim | None:
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        self._polls.add(task)
        try:
            return await self._desk.poll(caller, poller_id=poller, labels=labels)
        except asyncio.CancelledError:
            if task not in self._released:
                raise
            task.uncancel()
            return None
        finally:
            self._polls.discard(task)
            self._released.discard(task)

    async def _heartbeat(self, caller: Caller, beat: codec.Beat, _context: Context) -> bytes:
        if caller.worker is not None and caller.worker.endswith(fields.DOCTOR):
            return _NOTHING  # it only asks whether it would be admitted; no worker came
        stopped = await self._desk.heartbeat(caller, labels=beat.labels, stats=beat.stats)
        if not stopped:
            return _NOTHING
        return pb.HeartbeatResponse(cancelled_runs=codec.cancelled_messages(stopped)).SerializeToString()

    async def _renew(self, caller: Caller, beat: codec.RunBeat, _context: Context) -> bytes:
        stopped = await self._desk.run_heartbeat(caller, running=beat.running)
        if not stopped:
            return _NOTHING
        return pb.RunHeartbeatResponse(cancelled_runs=codec.cancelled_messages(stopped)).SerializeToString()

    async def _acknowledge(self, caller: Caller, request: pb.AckTaskClaimRequest, _context: Context) -> bytes:
        token = ClaimToken(fields.line(fields.required(request.claim_token, "claim_token"), "claim_token"))
        if caller.worker is None:
            verdict = Verdict(accepted=False, error="worker_id is required")
        else:
            key = fields.attempt_key(request.attempt_key)
            verdict = await self._desk.acknowledge(caller, token=token, attempt_key=key)
        return pb.AckTaskClaimResponse(accepted=verdict.accepted, error=verdict.error).SerializeToString()

    async def _dispatch(self, caller: Caller, request: pb.DispatchRequest, _context: Context) -> bytes:
        if not request.HasField("task"):
            raise InvalidRequest("task is required")
        task = codec.task_of(request.task, arriving=True)
        token = fields.line(request.admission_reservation_token.strip(), "admission_reservation_token")
        await self._desk.dispatch(caller, task, admission_token=token)
        return _NOTHING

    async def _workers(self, caller: Caller, _request: pb.GetWorkersRequest, _context: Context) -> bytes:
        return codec.workers_message(await self._desk.workers(caller)).SerializeToString()

    async def _cancel(self, caller: Caller, request: pb.RequestCancelRequest, _context: Context) -> bytes:
        run = _named_run(request)
        is_child = request.root_dag_run_id and request.root_dag_run_id != run.run_id
        root = fields.run(request.root_dag_run_name or run.name, request.root_dag_run_id) if is_child else None
        verdict = await self._desk.cancel(caller, run=run, root=root)
        return pb.RequestCancelResponse(accepted=verdict.accepted, error=verdict.error).SerializeToString()

    # -- reports -------------------------------------------------------------------------------------------------------

    async def _report(self, caller: Caller, request: pb.ReportStatusRequest, _context: Context) -> bytes:
        if not request.HasField("status"):
            raise InvalidRequest("status is required")
        if not request.status.json_data:
            raise InvalidRequest("failed to convert status", why="the document is empty")
        if not request.worker_id or caller.worker is None:
            raise InvalidRequest("worker, DAG run, and attempt identity are required")
        verdict = await self._desk.report_status(
            caller,
            status=fields.text(request.status.json_data, "status", limit=fields.MAX_STATUS),
            source_file=fields.line(request.source_file, "source_file", limit=fields.MAX_TEXT),
            labels=fields.line(request.labels, "labels", limit=fields.MAX_TEXT),
        )
        return pb.ReportStatusResponse(accepted=verdict.accepted, error=verdict.error).SerializeToString()

    async def _logs(self, caller: Caller, chunks: AsyncIterator[pb.LogChunk]) -> bytes:
        same, modes = streams.SameIdentity("log"), streams.LogModes()
        first = await anext(chunks)
        same.take(codec.identity_fields(first))
        identity = codec.stream_identity(first)

        async def parts() -> AsyncIterator[LogPart]:
            part = codec.log_part(first)
            modes.take(part)
            yield part
            async for chunk in chunks:
                same.take(codec.identity_fields(chunk))
                part = codec.log_part(chunk)
                modes.take(part)
                yield part

        uploaded = await self._desk.stream_logs(caller, identity, parts())
        return pb.StreamLogsResponse(
            chunks_received=uploaded.chunks, bytes_written=uploaded.size_bytes
        ).SerializeToString()

    async def _artifacts(self, caller: Caller, chunks: AsyncIterator[pb.ArtifactChunk]) -> bytes:
        same = streams.SameIdentity("artifact")
        first = await anext(chunks)
        same.take(codec.identity_fields(first))
        identity = codec.stream_identity(first)

        async def parts() -> AsyncIterator[ArtifactPart]:
            yield codec.artifact_part(first)
            async for chunk in chunks:
                same.take(codec.identity_fields(chunk))
                yield codec.artifact_part(chunk)

        uploaded = await self._desk.stream_artifacts(caller, identity, parts())
        return pb.StreamArtifactsResponse(
            chunks_received=uploaded.chunks, bytes_written=uploaded.size_bytes
        ).SerializeToString()

    async def _run_status(self, caller: Caller, request: pb.GetDAGRunStatusRequest, _context: Context) -> bytes:
        run = _named_run(request)
        is_child = bool(request.root_dag_run_name and request.root_dag_run_id)
        root = fields.run(request.root_dag_run_name, request.root_dag_run_id) if is_child else None
        document = await self._desk.run_status(caller, run=run, root=root)
        answer = pb.GetDAGRunStatusResponse(found=document is not None)
        if document is not None:
            answer.status.json_data = document
        return answer.SerializeToString()

    # -- bundles -------------------------------------------------------------------------------------------------------

    async def _put_bundle(self, caller: Caller, chunks: AsyncIterator[pb.WorkspaceBundleChunk]) -> bytes:
        intake = streams.BundleIntake()
        first = await anext(chunks)
        intake.take(sequence=first.sequence, size=len(first.data), digest=first.bundle.digest)
        if not first.HasField("bundle"):
            error = "workspace bundle descriptor is required"
            return pb.PutWorkspaceBundleResponse(accepted=False, error=error).SerializeToString()

        async def data() -> AsyncIterator[bytes]:
            if first.data:
                yield first.data
            async for chunk in chunks:
                intake.take(sequence=chunk.sequence, size=len(chunk.data), digest=chunk.bundle.digest)
                if chunk.data:
                    yield chunk.data

        verdict = await self._desk.put(caller, codec.bundle_of(first.bundle), data())
        return pb.PutWorkspaceBundleResponse(accepted=verdict.accepted, error=verdict.error).SerializeToString()

    async def _has_bundle(self, caller: Caller, request: pb.HasWorkspaceBundleRequest, _context: Context) -> bytes:
        exists = await self._desk.has(caller, fields.digest(request.digest))
        return pb.HasWorkspaceBundleResponse(exists=exists).SerializeToString()

    async def _get_bundle(self, caller: Caller, request: pb.GetWorkspaceBundleRequest) -> AsyncIterator[bytes]:
        digest = fields.digest(request.digest)
        ready: pb.WorkspaceBundleChunk | None = None
        sequence = 0
        async for data in self._desk.get(caller, digest):
            for piece in streams.pieces(data, streams.BUNDLE_CHUNK):
                if ready is not None:
                    yield ready.SerializeToString()
                ready = pb.WorkspaceBundleChunk(data=piece, sequence=sequence)
                if sequence == 0:
                    ready.bundle.digest = digest
                sequence += 1
        if ready is not None:
            ready.is_final = True
            yield ready.SerializeToString()

    # -- state, definitions, secrets -----------------------------------------------------------------------------------

    async def _get_state(self, caller: Caller, request: pb.GetStateRequest, _context: Context) -> bytes:
        entry = await self._desk.get_state(caller, codec.state_ref(request.ref))
        if entry is None:
            return _NOTHING
        return pb.GetStateResponse(found=True, entry=codec.state_entry_message(entry)).SerializeToString()

    async def _put_state(self, caller: Caller, request: pb.PutStateRequest, _context: Context) -> bytes:
        entry = await self._desk.put_state(
            caller,
            codec.state_ref(request.ref),
            codec.state_value(request.value),
            expected_version=request.expected_version if request.has_expected_version else None,
            create_only=request.create_only,
            updated_by=codec.state_source(request.updated_by),
        )
        return pb.PutStateResponse(entry=codec.state_entry_message(entry)).SerializeToString()

    async def _delete_state(self, caller: Caller, request: pb.DeleteStateRequest, _context: Context) -> bytes:
        deleted = await self._desk.delete_state(caller, codec.state_ref(request.ref))
        return pb.DeleteStateResponse(deleted=deleted).SerializeToString()

    async def _list_state(self, caller: Caller, request: pb.ListStateRequest, _context: Context) -> bytes:
        if request.limit < 0:
            raise InvalidRequest("dag state: invalid limit", why=f"{request.limit} is negative")
        scope, namespace = codec.state_namespace(request.scope, request.namespace)
        prefix = fields.line(request.key_prefix, "key_prefix", limit=1024)
        entries = await self._desk.list_state(
            caller, scope=scope, namespace=namespace, prefix=prefix, limit=request.limit
        )
        return pb.ListStateResponse(entries=[codec.state_entry_message(entry) for entry in entries]).SerializeToString()

    async def _get_dag(self, caller: Caller, request: pb.GetDAGRequest, _context: Context) -> bytes:
        spec = await self._desk.dag_text(caller, fields.line(request.name, "name"))
        if spec is None:
            return pb.GetDAGResponse(error="DAG is not found").SerializeToString()
        return pb.GetDAGResponse(spec=spec).SerializeToString()

    async def _secret(self, caller: Caller, request: pb.ResolveSecretReferenceRequest, _context: Context) -> bytes:
        value = await self._desk.resolve_secret(caller, codec.secret_request(request))
        return pb.ResolveSecretReferenceResponse(value=value).SerializeToString()


def _worker_id(request: Any) -> str:
    claimed: str = request.worker_id
    return claimed


def _beat_worker(beat: codec.Beat | codec.RunBeat) -> str:
    return beat.worker


def _poll_labels(request: pb.PollRequest) -> Mapping[str, str]:
    return fields.labels(request.labels, "labels")


def _beat_labels(beat: codec.Beat) -> Mapping[str, str]:
    return beat.labels


def _need_worker(caller: Caller) -> None:
    """Refuse a worker method without a worker id, which only an unproven caller can leave out."""
    if caller.worker is None:
        raise InvalidRequest("worker_id is required")


def _named_run(request: pb.GetDAGRunStatusRequest | pb.RequestCancelRequest) -> DagRunRef:
    fields.required(request.dag_name, "dag_name")
    fields.required(request.dag_run_id, "dag_run_id")
    return fields.run(request.dag_name, request.dag_run_id)


async def _no_cleanup(_caller: Caller, request: pb.ClaimAgentSessionCleanupRequest, _context: Context) -> bytes:
    """Agent sessions do not exist here, so there is never one to clean up (section 3.18)."""
    fields.required(request.worker_id, "worker_id")
    return _NOTHING


async def _no_such_cleanup(_caller: Caller, request: pb.CompleteAgentSessionCleanupRequest, _context: Context) -> bytes:
    for field in ("worker_id", "job_id", "claim_token"):
        fields.required(getattr(request, field), field)
    raise NotFound("there is no such clean-up job", why="this coordinator keeps no agent sessions")
