"""Messages of coordinator.v1 to domain values and back; every field that arrives is bounded here (section 1.5).

Reading raises `InvalidRequest` with the text that section 1.7 names, where it names one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from secure_dagu.dispatch.model import (
    NO_ATTEMPT,
    NO_KEY,
    STATE_SCOPES,
    ArtifactPart,
    BundleRef,
    Claim,
    ClaimToken,
    LogPart,
    LogStream,
    Operation,
    RunningTask,
    SecretRequest,
    StateEntry,
    StateRef,
    StateSource,
    StreamIdentity,
    Task,
    WorkerHealth,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.errors import InvalidRequest
from secure_dagu.run import model as run_model
from secure_dagu.run.model import AttemptKey
from secure_dagu.wire import fields
from secure_dagu.wire.pb import coordinator_pb2 as pb

M = TypeVar("M", bound=Message)

# -- tasks -------------------------------------------------------------------------------------------------------------


def task_of(message: pb.Task, *, arriving: bool) -> Task:
    """Read a task.

    Args:
        arriving: True at Dispatch, where attempt id and key are ours to set and what the sender says is dropped.
    """
    run = fields.run(message.target, message.dag_run_id)
    if not message.definition:
        raise InvalidRequest("task.Definition is required for distributed execution")
    bundle = None
    if message.workspace_bundle_digest:
        bundle = BundleRef(
            digest=fields.digest(message.workspace_bundle_digest),
            size_bytes=_bundle_size(message.workspace_bundle_size, at_least=1),
            dag_path=fields.line(message.workspace_bundle_dag_path, "workspace_bundle_dag_path", limit=1024),
            original_ref=fields.line(message.workspace_bundle_original_ref, "original_ref", limit=1024),
            resolved_ref=fields.line(message.workspace_bundle_resolved_ref, "resolved_ref", limit=1024),
        )
    return Task(
        operation=_operation(message.operation),
        run=run,
        root=fields.root_of(run, message.root_dag_run_name, message.root_dag_run_id),
        parent=fields.optional_run(message.parent_dag_run_name, message.parent_dag_run_id),
        definition=fields.text(message.definition, "task.definition", limit=fields.MAX_DEFINITION),
        params=fields.text(message.params, "task.params", limit=fields.MAX_PARAMS),
        step=fields.line(message.step, "task.step"),
        include_downstream=message.include_downstream,
        worker_selector=fields.labels(message.worker_selector, "task.worker_selector"),
        target_worker=fields.worker_id(message.target_worker_id) or None,
        previous_status=fields.text(message.previous_status.json_data, "previous_status", limit=fields.MAX_STATUS),
        attempt_id=NO_ATTEMPT if arriving or not message.attempt_id else fields.attempt_id(message.attempt_id),
        attempt_key=NO_KEY if arriving else fields.attempt_key(message.attempt_key),
        labels=fields.line(message.labels, "task.labels", limit=fields.MAX_TEXT),
        base_config=fields.text(message.base_config, "task.base_config", limit=fields.MAX_PARAMS),
        schedule_time=fields.line(message.schedule_time, "task.schedule_time", limit=64),
        external_step_retry=message.external_step_retry,
        queue_name=fields.line(message.queue_name, "task.queue_name"),
        source_file=fields.line(message.source_file, "task.source_file", limit=fields.MAX_TEXT),
        bundle=bundle,
        profile_name=fields.line(message.profile_name, "task.profile_name"),
        retry_path=fields.text(message.retry_path, "task.retry_path", limit=65536),
        trigger_actor=fields.line(message.trigger_actor, "task.trigger_actor"),
        definition_id=fields.line(message.definition_id, "task.definition_id"),
        parallel_item=fields.text(message.parallel_item, "task.parallel_item", limit=65536),
    )


def task_message(task: Task) -> pb.Task:
    """Write a task."""
    message = pb.Task(
        operation=cast("pb.Operation.ValueType", task.operation),
        root_dag_run_name=task.root.name,
        root_dag_run_id=task.root.run_id,
        dag_run_id=task.run.run_id,
        target=task.run.name,
        params=task.params,
        step=task.step,
        worker_selector=task.worker_selector,
        definition=task.definition,
        attempt_id=task.attempt_id,
        attempt_key=task.attempt_key,
        labels=task.labels,
        base_config=task.base_config,
        schedule_time=task.schedule_time,
        external_step_retry=task.external_step_retry,
        queue_name=task.queue_name,
        source_file=task.source_file,
        profile_name=task.profile_name,
        retry_path=task.retry_path,
        trigger_actor=task.trigger_actor,
        definition_id=task.definition_id,
        parallel_item=task.parallel_item,
        target_worker_id=task.target_worker or "",
        include_downstream=task.include_downstream,
    )
    if task.parent is not None:
        message.parent_dag_run_name = task.parent.name
        message.parent_dag_run_id = task.parent.run_id
    if task.previous_status:
        message.previous_status.json_data = task.previous_status
    if (bundle := task.bundle) is not None:
        message.workspace_bundle_digest = bundle.digest
        message.workspace_bundle_size = bundle.size_bytes
        message.workspace_bundle_dag_path = bundle.dag_path
        message.workspace_bundle_original_ref = bundle.original_ref
        message.workspace_bundle_resolved_ref = bundle.resolved_ref
    return message


def claim_of(message: pb.PollResponse, worker: WorkerId) -> Claim | None:
    """Read the answer to a poll; None when it carries no task."""
    if not message.HasField("task"):
        return None
    task = message.task
    return Claim(
        task=task_of(task, arriving=False),
        worker=worker,
        token=ClaimToken(fields.line(task.claim_token, "claim_token")),
        owner=fields.owner(task.owner_coordinator_id, task.owner_coordinator_host, task.owner_coordinator_port),
    )


def poll_response(claim: Claim | None) -> pb.PollResponse:
    """Write the answer to a poll."""
    if claim is None:
        return pb.PollResponse()
    task = task_message(claim.task)
    task.worker_id = claim.worker
    task.claim_token = claim.token
    if claim.owner is not None:
        task.owner_coordinator_id = claim.owner.id
        task.owner_coordinator_host = claim.owner.host
        task.owner_coordinator_port = claim.owner.port
    return pb.PollResponse(task=task)


def _operation(number: int) -> Operation:
    try:
        return Operation(number)
    except ValueError:
        raise InvalidRequest("task.operation is unknown", why=f"number {number}") from None


def _bundle_size(size: int, *, at_least: int) -> int:
    if not at_least <= size <= fields.MAX_BUNDLE:
        raise InvalidRequest("the workspace bundle size is out of range", why=f"{size} bytes, at most 64 MiB")
    return size


# -- presence ----------------------------------------------------------------------------------------------------------


class Beat(NamedTuple):
    """A heartbeat."""

    worker: WorkerId
    labels: dict[str, str]
    stats: WorkerStats


class RunBeat(NamedTuple):
    """A renewal of leases."""

    worker: WorkerId
    running: tuple[RunningTask, ...]


# A worker says the same thing second after second, so what was read once is looked up by its bytes: 2 µs become 0.3.
# 2 KiB times 1,536 entries bound the memory; a longer heartbeat is read anew.
_REMEMBERED = 2048


def beat_of(raw: bytes) -> Beat:
    """Read a HeartbeatRequest."""
    return _remembered_beat(raw) if len(raw) <= _REMEMBERED else _beat(raw)


def run_beat_of(raw: bytes) -> RunBeat:
    """Read a RunHeartbeatRequest."""
    return _remembered_run_beat(raw) if len(raw) <= _REMEMBERED else _run_beat(raw)


def _beat(raw: bytes) -> Beat:
    message = parse(pb.HeartbeatRequest, raw)
    stats = message.stats
    return Beat(
        fields.worker_id(fields.required(message.worker_id, "worker_id")),
        fields.labels(message.labels, "labels"),
        _stats_of(stats.total_pollers, stats.busy_pollers, stats.running_tasks),
    )


def _run_beat(raw: bytes) -> RunBeat:
    message = parse(pb.RunHeartbeatRequest, raw)
    worker = fields.worker_id(fields.required(message.worker_id, "worker_id"))
    return RunBeat(worker, _running_of(message.running_tasks))


_remembered_beat = lru_cache(maxsize=1024)(_beat)
_remembered_run_beat = lru_cache(maxsize=512)(_run_beat)


def _stats_of(total: int, busy: int, running: Sequence[pb.RunningTask]) -> WorkerStats:
    if not (0 <= total <= 100_000 and 0 <= busy <= 100_000):
        raise InvalidRequest("stats are out of range", why=f"{busy} of {total} pollers busy")
    return WorkerStats(total_pollers=total, busy_pollers=busy, running=_running_of(running))


def _running_of(tasks: Sequence[pb.RunningTask]) -> tuple[RunningTask, ...]:
    if len(tasks) > fields.MAX_RUNNING:
        raise InvalidRequest("too many running tasks", why=f"{len(tasks)}, at most {fields.MAX_RUNNING} are accepted")
    return tuple(_running_task(task) for task in tasks)


def _running_task(task: pb.RunningTask) -> RunningTask:
    run = fields.run(task.dag_name, task.dag_run_id)
    return RunningTask(
        run=run,
        root=fields.root_of(run, task.root_dag_run_name, task.root_dag_run_id),
        parent=fields.optional_run(task.parent_dag_run_name, task.parent_dag_run_id),
        attempt_key=fields.attempt_key(task.attempt_key),
        started_at=fields.moment(task.started_at, "started_at"),
    )


def running_messages(running: Iterable[RunningTask]) -> list[pb.RunningTask]:
    """Write running tasks."""
    return [
        pb.RunningTask(
            dag_run_id=task.run.run_id,
            dag_name=task.run.name,
            started_at=int(task.started_at.timestamp()),
            root_dag_run_name=task.root.name,
            root_dag_run_id=task.root.run_id,
            parent_dag_run_name=task.parent.name if task.parent else "",
            parent_dag_run_id=task.parent.run_id if task.parent else "",
            attempt_key=task.attempt_key,
        )
        for task in running
    ]


def stats_message(stats: WorkerStats) -> pb.WorkerStats:
    """Write a worker's load."""
    return pb.WorkerStats(
        total_pollers=stats.total_pollers,
        busy_pollers=stats.busy_pollers,
        running_tasks=running_messages(stats.running),
    )


def cancelled_messages(keys: Sequence[AttemptKey]) -> list[pb.CancelledRun]:
    """Write attempts that must stop."""
    return [pb.CancelledRun(attempt_key=key) for key in keys]


def cancelled_of(messages: Sequence[pb.CancelledRun]) -> tuple[AttemptKey, ...]:
    """Read attempts that must stop."""
    return tuple(fields.attempt_key(message.attempt_key) for message in messages[: fields.MAX_RUNNING])


def workers_message(workers: Iterable[WorkerInfo]) -> pb.GetWorkersResponse:
    """Write the list of workers."""
    answer = pb.GetWorkersResponse()
    for worker in workers:
        answer.workers.add(
            worker_id=worker.worker,
            labels=worker.labels,
            total_pollers=worker.stats.total_pollers,
            busy_pollers=worker.stats.busy_pollers,
            running_tasks=running_messages(worker.stats.running),
            last_heartbeat_at=int(worker.last_heartbeat_at.timestamp()),
            health_status=cast("pb.WorkerHealthStatus.ValueType", worker.health),
        )
    return answer


def workers_of(message: pb.GetWorkersResponse) -> tuple[WorkerInfo, ...]:
    """Read the list of workers."""
    return tuple(
        WorkerInfo(
            worker=fields.worker_id(worker.worker_id),
            labels=fields.labels(worker.labels, "labels"),
            stats=_stats_of(worker.total_pollers, worker.busy_pollers, worker.running_tasks),
            last_heartbeat_at=fields.moment(worker.last_heartbeat_at, "last_heartbeat_at"),
            health=WorkerHealth(worker.health_status) if worker.health_status <= 3 else WorkerHealth.UNSPECIFIED,
        )
        for worker in message.workers
    )


# -- uploads -----------------------------------------------------------------------------------------------------------

_NO_IDENTITY = "worker, DAG run, and attempt identity are required"


def identity_fields(chunk: pb.LogChunk | pb.ArtifactChunk) -> tuple[str, ...]:
    """Return the fields that must not change inside a stream, unread."""
    return (
        chunk.worker_id,
        chunk.dag_name,
        chunk.dag_run_id,
        chunk.root_dag_run_name,
        chunk.root_dag_run_id,
        chunk.attempt_id,
        chunk.attempt_key,
        chunk.owner_coordinator_id,
    )


def stream_identity(chunk: pb.LogChunk | pb.ArtifactChunk) -> StreamIdentity:
    """Read under whose authority a stream writes, from its first message."""
    if not (chunk.worker_id and chunk.dag_name and chunk.dag_run_id and chunk.attempt_id):
        raise InvalidRequest(_NO_IDENTITY)
    run = fields.run(chunk.dag_name, chunk.dag_run_id)
    root = fields.root_of(run, chunk.root_dag_run_name, chunk.root_dag_run_id)
    attempt_id = fields.attempt_id(chunk.attempt_id)
    claim_key = fields.attempt_key(chunk.attempt_key)
    if claim_key and root == run and claim_key != run_model.attempt_key(root=root, run=run, attempt_id=attempt_id):
        raise InvalidRequest("attempt key does not match stream metadata")
    return StreamIdentity(
        worker=fields.worker_id(chunk.worker_id),
        run=run,
        root=root,
        attempt_id=attempt_id,
        claim_key=claim_key,
        owner_id=fields.line(chunk.owner_coordinator_id, "owner_coordinator_id"),
    )


def log_part(chunk: pb.LogChunk) -> LogPart:
    """Read what one log message carries beside its identity."""
    if not 0 <= chunk.stream_type <= 3:
        raise InvalidRequest("stream_type is unknown", why=f"number {chunk.stream_type}")
    return LogPart(
        step=fields.line(chunk.step_name, "step_name"),
        stream=LogStream(chunk.stream_type),
        data=b"" if chunk.is_final else _data(chunk.data),
        offset=chunk.byte_offset if chunk.HasField("byte_offset") else None,
        is_final=chunk.is_final,
    )


def log_chunk(identity: StreamIdentity, part: LogPart, sequence: int) -> pb.LogChunk:
    """Write one log message."""
    return pb.LogChunk(
        worker_id=identity.worker,
        dag_run_id=identity.run.run_id,
        dag_name=identity.run.name,
        step_name=part.step,
        stream_type=cast("pb.LogStreamType.ValueType", part.stream),
        data=part.data,
        sequence=sequence,
        is_final=part.is_final,
        root_dag_run_name=identity.root.name,
        root_dag_run_id=identity.root.run_id,
        attempt_id=identity.attempt_id,
        owner_coordinator_id=identity.owner_id,
        attempt_key=identity.claim_key,
        byte_offset=part.offset,
    )


def artifact_part(chunk: pb.ArtifactChunk) -> ArtifactPart:
    """Read what one artifact message carries beside its identity."""
    path = fields.line(fields.required(chunk.relative_path, "relative_path"), "relative_path", limit=1024)
    return ArtifactPart(path=path, data=_data(chunk.data), is_final=chunk.is_final)


def artifact_chunk(identity: StreamIdentity, part: ArtifactPart, sequence: int) -> pb.ArtifactChunk:
    """Write one artifact message."""
    return pb.ArtifactChunk(
        worker_id=identity.worker,
        dag_run_id=identity.run.run_id,
        dag_name=identity.run.name,
        relative_path=part.path,
        data=part.data,
        sequence=sequence,
        is_final=part.is_final,
        root_dag_run_name=identity.root.name,
        root_dag_run_id=identity.root.run_id,
        attempt_id=identity.attempt_id,
        owner_coordinator_id=identity.owner_id,
        attempt_key=identity.claim_key,
    )


def _data(data: bytes) -> bytes:
    if len(data) > fields.MAX_CHUNK:
        raise InvalidRequest("the chunk is too large", why=f"{len(data)} bytes, at most 4 MiB are accepted")
    return data


# -- bundles -----------------------------------------------------------------------------------------------------------


def bundle_of(message: pb.WorkspaceBundle) -> BundleRef:
    """Read which archive is coming; size 0 is "unknown"."""
    return BundleRef(
        digest=fields.digest(message.digest),
        size_bytes=_bundle_size(message.size, at_least=0),
        dag_path=fields.line(message.dag_path, "dag_path", limit=1024),
        original_ref=fields.line(message.original_ref, "original_ref", limit=1024),
        resolved_ref=fields.line(message.resolved_ref, "resolved_ref", limit=1024),
    )


def bundle_message(bundle: BundleRef) -> pb.WorkspaceBundle:
    """Write which archive is coming."""
    return pb.WorkspaceBundle(
        digest=bundle.digest,
        size=bundle.size_bytes,
        dag_path=bundle.dag_path,
        original_ref=bundle.original_ref,
        resolved_ref=bundle.resolved_ref,
    )


# -- state and secrets -------------------------------------------------------------------------------------------------


def state_ref(message: pb.StateRef) -> StateRef:
    """Read the address of a shared value."""
    parts = message.key.split("/")
    if any(part in {"", ".", ".."} for part in parts) or "\\" in message.key or not message.key.strip():
        raise InvalidRequest("dag state: invalid ref", why=f"key {message.key[:80]!a}")
    scope, namespace = state_namespace(message.scope, message.namespace)
    return StateRef(scope, namespace, _state_text(message.key, limit=1024))


def state_namespace(scope: str, namespace: str) -> tuple[str, str]:
    """Read scope and namespace."""
    if scope not in STATE_SCOPES:
        raise InvalidRequest("dag state: invalid ref", why=f"scope {scope[:40]!a}", fix=", ".join(STATE_SCOPES))
    if not namespace.strip() or namespace in {".", ".."} or "/" in namespace or "\\" in namespace:
        raise InvalidRequest("dag state: invalid ref", why=f"namespace {namespace[:80]!a}")
    return scope, _state_text(namespace, limit=255)


def _state_text(value: str, *, limit: int) -> str:
    if len(value) > limit or fields.CONTROL.search(value):
        raise InvalidRequest("dag state: invalid ref", why="too long, or control characters")
    return value


def state_value(value: bytes) -> bytes:
    """Read the value of a shared value, still unparsed."""
    if len(value) > fields.MAX_STATE_VALUE:
        raise InvalidRequest("dag state: value too large", why=f"{len(value)} bytes, at most 1 MiB are accepted")
    return value


def state_ref_message(ref: StateRef) -> pb.StateRef:
    """Write the address of a shared value."""
    return pb.StateRef(scope=ref.scope, namespace=ref.namespace, key=ref.key)


def state_source(message: pb.StateUpdateSource) -> StateSource:
    """Read who says it wrote a shared value."""
    return StateSource(
        dag_name=fields.line(message.dag_name, "updated_by.dag_name"),
        run_id=fields.line(message.dag_run_id, "updated_by.dag_run_id"),
        attempt_id=fields.line(message.attempt_id, "updated_by.attempt_id"),
        step=fields.line(message.step_name, "updated_by.step_name"),
    )


def state_source_message(source: StateSource) -> pb.StateUpdateSource:
    """Write who says it wrote a shared value."""
    return pb.StateUpdateSource(
        dag_name=source.dag_name, dag_run_id=source.run_id, attempt_id=source.attempt_id, step_name=source.step
    )


def state_entry(message: pb.StateEntry) -> StateEntry:
    """Read a shared value."""
    return StateEntry(
        ref=state_ref(message.ref),
        value=state_value(message.value),
        version=message.version,
        hash=fields.line(message.hash, "hash", limit=64),
        created_at_ns=message.created_at,
        updated_at_ns=message.updated_at,
        updated_by=state_source(message.updated_by),
    )


def state_entry_message(entry: StateEntry) -> pb.StateEntry:
    """Write a shared value."""
    return pb.StateEntry(
        ref=state_ref_message(entry.ref),
        value=entry.value,
        version=entry.version,
        hash=entry.hash,
        created_at=entry.created_at_ns,
        updated_at=entry.updated_at_ns,
        updated_by=state_source_message(entry.updated_by),
    )


def secret_request(message: pb.ResolveSecretReferenceRequest) -> SecretRequest:
    """Read a request for a managed secret; every field but the workspace is required."""
    fields.required(message.worker_id, "worker_id")
    fields.required(message.attempt_key, "attempt_key")
    return SecretRequest(
        name=fields.line(fields.required(message.name, "name"), "name"),
        ref=fields.line(fields.required(message.ref, "ref"), "ref"),
        workspace=fields.line(message.workspace, "workspace"),
        check_only=message.check_only,
        attempt_key=fields.attempt_key(message.attempt_key),
        attempt_id=fields.attempt_id(fields.required(message.attempt_id, "attempt_id")),
    )


# -- parsing -----------------------------------------------------------------------------------------------------------


def parse(kind: type[M], raw: bytes) -> M:
    """Read a message of this kind from bytes."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest("the message cannot be read", why=f"it is no {kind.DESCRIPTOR.full_name}") from error
