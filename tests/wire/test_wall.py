"""The wall: forged ids, unknown callers and methods, crowds, oversize, cut peers, bugs behind the wall."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from msgspec.structs import replace
from structlog.testing import capture_logs

from secure_dagu.dispatch.model import Caller, Role, WorkerId, WorkerStats
from secure_dagu.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    Refused,
    SecureDaguError,
    Unauthenticated,
    Unavailable,
)
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.roles import RPC_RULES
from secure_dagu.wire import codec
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from secure_dagu.wire.interceptors import Cap
from secure_dagu.wire.pb import coordinator_pb2 as pb
from tests.wire.conftest import House
from tests.wire.fakes import CLAIM, IDENTITY, KEY, WORKER, peer

SERVICE = "/coordinator.v1.CoordinatorService/"

FORGED: dict[str, Any] = {
    "Poll": pb.PollRequest(worker_id="w2", poller_id="p"),
    "Heartbeat": pb.HeartbeatRequest(worker_id="w2"),
    "RunHeartbeat": pb.RunHeartbeatRequest(worker_id="w2"),
    "AckTaskClaim": pb.AckTaskClaimRequest(worker_id="w2", claim_token="t"),
    "ReportStatus": pb.ReportStatusRequest(worker_id="w2", status=pb.DAGRunStatusProto(json_data="{}")),
    "ResolveSecretReference": pb.ResolveSecretReferenceRequest(
        worker_id="w2", name="n", ref="r", attempt_key=KEY, attempt_id="abc123"
    ),
    "ClaimAgentSessionCleanup": pb.ClaimAgentSessionCleanupRequest(worker_id="w2"),
    "CompleteAgentSessionCleanup": pb.CompleteAgentSessionCleanupRequest(worker_id="w2", job_id="j", claim_token="t"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_worker_id_is_refused_counted_and_never_reaches_the_desk(
    house: House, channel_to: Callable[..., Channel], name: str
) -> None:
    with pytest.raises(Refused, match="may not act as worker 'w2'"):
        await channel_to(house.path).call(SERVICE + name, FORGED[name].SerializeToString(), 5)
    assert house.desk.asked == []
    (denial,) = house.denied
    assert (denial.reason, denial.method) == (DenyReason.WORKER_ID_MISMATCH, SERVICE + name)


def chunk(**fields: Any) -> pb.LogChunk:
    message = codec.log_chunk(
        IDENTITY, codec.log_part(pb.LogChunk(step_name="s1", stream_type=pb.LOG_STREAM_TYPE_STDOUT, data=b"x")), 1
    )
    message.byte_offset = 0
    for field, value in fields.items():
        setattr(message, field, value)
    return message


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"worker_id": "w2"}, Refused, "may not act as worker 'w2'"),
        ({"worker_id": "w1@9"}, PreconditionFailed, "log stream attempt identity changed"),
        ({"attempt_id": "other"}, PreconditionFailed, "log stream attempt identity changed"),
        ({"dag_run_id": "other"}, PreconditionFailed, "log stream attempt identity changed"),
        ({"stream_type": 9}, InvalidRequest, "stream_type is unknown"),
        ({"data": b"x" * (4 * 2**20 + 1)}, InvalidRequest, "chunk is too large"),
    ],
)
async def test_what_changes_in_the_middle_of_a_stream_ends_it(
    house: House,
    channel_to: Callable[..., Channel],
    changed: dict[str, Any],
    error: type[SecureDaguError],
    says: str,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield chunk().SerializeToString()
        await house.desk.parts_are(1)
        yield chunk(**changed).SerializeToString()
        yield chunk().SerializeToString()

    with pytest.raises(error, match=says):
        await channel_to(house.path).upload(SERVICE + "StreamLogs", chunks(), 5)
    assert len(house.desk.all("part")) == 1
    assert [denial.reason for denial in house.denied] == ([DenyReason.WORKER_ID_MISMATCH] if error is Refused else [])


async def test_a_switch_of_the_write_mode_ends_the_stream(house: House, channel_to: Callable[..., Channel]) -> None:
    appended = chunk()
    appended.ClearField("byte_offset")

    async def chunks() -> AsyncIterator[bytes]:
        yield chunk().SerializeToString()
        yield appended.SerializeToString()

    with pytest.raises(InvalidRequest, match="log stream write mode changed"):
        await channel_to(house.path).upload(SERVICE + "StreamLogs", chunks(), 5)


async def test_a_foreign_key_on_a_root_run_and_a_stream_without_identity_are_refused(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    async def one(message: pb.LogChunk) -> AsyncIterator[bytes]:
        yield message.SerializeToString()

    async def none() -> AsyncIterator[bytes]:
        for raw in list[bytes]():
            yield raw

    channel = channel_to(house.path)
    with pytest.raises(InvalidRequest, match="attempt key does not match stream metadata"):
        await channel.upload(SERVICE + "StreamLogs", one(chunk(attempt_key="0" * 16 + ":abc123")), 5)
    with pytest.raises(InvalidRequest, match="worker, DAG run, and attempt identity are required"):
        await channel.upload(SERVICE + "StreamLogs", one(chunk(attempt_id="")), 5)
    with pytest.raises(InvalidRequest, match="carries no message"):
        await channel.upload(SERVICE + "StreamLogs", none(), 5)


async def test_a_call_round_the_front_is_refused_on_every_method(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    """A connection that the register does not know did not pass the TLS edge."""
    house.peer = None
    for path in (SERVICE + "Heartbeat", "/grpc.health.v1.Health/Check", "/no.such.Service/Method"):
        with pytest.raises(Unauthenticated, match="the connection is not known"):
            await channel_to(house.path).call(path, b"", 5)
    assert {denial.reason for denial in house.denied} == {DenyReason.UNKNOWN_IDENTITY}
    assert house.desk.asked == []


async def test_every_served_method_is_in_the_role_table_and_the_other_way_round(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    """A method that nobody registered answers UNIMPLEMENTED; no row of the table may do so."""
    house.peer = peer(Role.METRICS, "prometheus")
    for path in RPC_RULES:
        with pytest.raises(Refused, match="may not call"):
            await channel_to(house.path).call(path, b"\x0a\x01x", 5)


@pytest.mark.parametrize(
    "path", ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", SERVICE + "Nothing"]
)
async def test_an_unknown_method_is_refused_and_recorded(
    house: House, channel_to: Callable[..., Channel], path: str
) -> None:
    with pytest.raises(NotFound, match="does not know this call"):
        await channel_to(house.path).call(path, b"", 5)
    assert [denial.reason for denial in house.denied] == [DenyReason.ROLE_NOT_ALLOWED]


async def test_a_worker_may_not_do_what_operators_do(house: House, channel_to: Callable[..., Channel]) -> None:
    for name in ("GetWorkers", "PutWorkspaceBundle"):
        with pytest.raises(Refused, match="may not call"):
            await channel_to(house.path).call(SERVICE + name, b"", 5)


async def test_a_certificate_that_ends_during_a_stream_ends_the_stream(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield chunk().SerializeToString()
        await house.desk.parts_are(1)
        house.gate._now = lambda: datetime.now(UTC) + timedelta(days=2)
        yield chunk().SerializeToString()

    with pytest.raises(Unauthenticated, match="its certificate ended"):
        await channel_to(house.path).upload(SERVICE + "StreamLogs", chunks(), 5)


async def test_a_revoked_peer_is_told_so_in_the_middle_of_its_polls_and_streams(
    house: House, client: RemoteCoordinator
) -> None:
    stream = client.cancellations(WORKER)
    await anext(stream)
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(_error(client.poll(WORKER, poller_id="p", labels={})))
        watch = group.create_task(_error(anext(stream)))
        await house.desk.polls_are(1)
        revoked = Unauthenticated("certificate revoked")
        assert not house.gate.cut(lambda peer: peer.identity is None, revoked)
        calls = house.gate.cut(lambda peer: str(peer.identity) == "worker/w1", revoked)
        assert len(calls) == 2
        _, unanswered = await asyncio.wait(calls, timeout=60)
        assert not unanswered
    assert [str(error) for error in (poll.result(), watch.result())] == ["certificate revoked"] * 2
    assert await client.heartbeat(WORKER, labels={}, stats=WorkerStats()) == ()


async def _error(call: Any) -> SecureDaguError:
    with pytest.raises(SecureDaguError) as caught:
        await call
    return caught.value


async def test_a_crowd_of_streams_is_limited_for_each_identity(house: House, client: RemoteCoordinator) -> None:
    limit = Cap.STREAMS.value[1]
    streams = [client.cancellations(WORKER) for _ in range(limit)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(LimitExceeded, match=f"too many open streams: worker/w1 has {limit}"):
        await anext(client.cancellations(WORKER))
    house.peer = peer(Role.WORKER, "w2")
    second = client.cancellations(W2)
    await anext(second)
    for stream in (*streams, second):
        await stream.aclose()  # type: ignore[attr-defined]  # generators
    assert [await house.desk.streams_ended.get() for _ in range(limit + 1)]
    assert house.gate._open[Cap.STREAMS] == {}


W2 = Caller(role=Role.WORKER, name="w2", proven=True, worker=WorkerId("w2"))


async def test_a_message_above_the_limit_is_refused(house: House, channel_to: Callable[..., Channel]) -> None:
    with pytest.raises(LimitExceeded, match="larger than max"):
        await channel_to(house.path).call(SERVICE + "Heartbeat", b"x" * (16 * 2**20 + 1), 20)


@pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x7f"])
async def test_junk_instead_of_a_message_is_refused(
    house: House, channel_to: Callable[..., Channel], junk: bytes
) -> None:
    for name in ("Heartbeat", "Poll", "Dispatch", "GetWorkspaceBundle"):
        with pytest.raises(InvalidRequest, match="the message cannot be read"):
            await channel_to(house.path).call(SERVICE + name, junk, 5)


MISSING: dict[tuple[str, Any], str] = {
    ("Poll", b""): "poller_id is required",
    ("Heartbeat", b""): "worker_id is required",
    ("RunHeartbeat", b""): "worker_id is required",
    ("AckTaskClaim", b""): "claim_token is required",
    ("ReportStatus", b""): "status is required",
    ("ReportStatus", pb.ReportStatusRequest(worker_id="w1", status=pb.DAGRunStatusProto()).SerializeToString()): (
        "failed to convert status"  # gap G1: this one killed the reference coordinator
    ),
    ("ReportStatus", pb.ReportStatusRequest(status=pb.DAGRunStatusProto(json_data="{}")).SerializeToString()): (
        "worker, DAG run, and attempt identity are required"
    ),
    ("Dispatch", b""): "task is required",
    ("Dispatch", pb.DispatchRequest(task=pb.Task(target="d", dag_run_id="r")).SerializeToString()): (
        "task.Definition is required for distributed execution"
    ),
    ("GetDAGRunStatus", b""): "dag_name is required",
    ("RequestCancel", pb.RequestCancelRequest(dag_name="d").SerializeToString()): "dag_run_id is required",
    ("HasWorkspaceBundle", b""): "valid workspace bundle digest is required",
    ("GetState", b""): "dag state: invalid ref",
    ("PutState", b""): "dag state: invalid ref",
    ("ListState", pb.ListStateRequest(limit=-1).SerializeToString()): "dag state: invalid limit",
    ("ResolveSecretReference", b""): "worker_id is required",
    ("ClaimAgentSessionCleanup", b""): "worker_id is required",
    ("CompleteAgentSessionCleanup", b""): "worker_id is required",
}


@pytest.mark.parametrize(("name", "raw", "says"), [(*key, says) for key, says in MISSING.items()])
async def test_a_missing_field_is_named_as_the_protocol_names_it(
    house: House, channel_to: Callable[..., Channel], name: str, raw: bytes, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await channel_to(house.path).call(SERVICE + name, raw, 5)
    assert str(caught.value).startswith(says)
    assert house.desk.asked == []


async def test_a_bundle_with_a_gap_or_without_a_descriptor_is_refused(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    house.peer = peer(Role.DISPATCHER, "ci")

    async def chunks(*sequences: int) -> AsyncIterator[bytes]:
        for sequence in sequences:
            message = pb.WorkspaceBundleChunk(sequence=sequence, data=b"x")
            if sequence == 0:
                message.bundle.digest = "ab" * 32
            yield message.SerializeToString()

    async def bare() -> AsyncIterator[bytes]:
        yield pb.WorkspaceBundleChunk(data=b"x").SerializeToString()

    channel = channel_to(house.path)
    with pytest.raises(InvalidRequest, match="workspace bundle sequence mismatch: got 2, want 1"):
        await channel.upload(SERVICE + "PutWorkspaceBundle", chunks(0, 2), 5)
    raw = await channel.upload(SERVICE + "PutWorkspaceBundle", bare(), 5)
    assert pb.PutWorkspaceBundleResponse.FromString(raw).error == "workspace bundle descriptor is required"


async def test_agent_session_clean_up_answers_nothing_to_do(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    request = pb.ClaimAgentSessionCleanupRequest(worker_id="w1").SerializeToString()
    assert await channel.call(SERVICE + "ClaimAgentSessionCleanup", request, 5) == b""


async def test_a_bug_behind_the_wall_tells_the_peer_a_number_and_the_log_everything(
    house: House, client: RemoteCoordinator
) -> None:
    house.desk.error = RuntimeError("/srv/private/path")
    with capture_logs() as logs, pytest.raises(SecureDaguError) as caught:
        await client.workers(WORKER) if house.peer is None else await client.dag_text(WORKER, "x")
    assert "private" not in str(caught.value)
    assert "internal error" in str(caught.value)
    (line,) = (entry for entry in logs if entry["event"] == "call.failed")
    assert line["error_id"] in str(caught.value)
    assert line["exc_info"] is house.desk.error


async def test_our_errors_cross_the_wire_whole_and_keep_their_class(house: House, client: RemoteCoordinator) -> None:
    house.desk.error = Conflict("dag state: conflict", why="version 3, not 2", fix="read again")
    with pytest.raises(Conflict) as caught:
        await client.dag_text(WORKER, "x")
    assert caught.value.as_dict() == house.desk.error.as_dict()


async def test_a_poll_whose_client_goes_away_leaves_the_desk(house: House, client: RemoteCoordinator) -> None:
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(client.poll(WORKER, poller_id="p", labels={}))
        await house.desk.polls_are(1)
        poll.cancel()
    await house.desk.polls_are(0)


async def test_a_claim_whose_answer_cannot_be_sent_is_withdrawn(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    """The answer is made while the poller's connection is already gone."""

    too_long = replace(CLAIM.task, params="x" * (17 * 2**20))
    house.desk.claims.put_nowait(replace(CLAIM, task=too_long))
    with pytest.raises(SecureDaguError):
        await channel_to(house.path).call(
            SERVICE + "Poll", pb.PollRequest(worker_id="w1", poller_id="p").SerializeToString(), 5
        )
    assert await house.desk.withdrawn.get() == CLAIM.token


async def test_draining_answers_polls_says_not_serving_and_lets_reports_in(
    house: House, client: RemoteCoordinator, channel_to: Callable[..., Channel]
) -> None:
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(client.poll(WORKER, poller_id="p", labels={}))
        await house.desk.polls_are(1)
        house.server.drain()
    assert poll.result() is None
    with pytest.raises(Unavailable, match="shutting down"):
        await client.poll(WORKER, poller_id="p", labels={})
    assert (await client.report_status(WORKER, status="{}", source_file="", labels="")).accepted
    raw = await channel_to(house.path).call("/grpc.health.v1.Health/Check", b"", 5)
    assert health_pb2.HealthCheckResponse.FromString(raw).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_every_server_of_a_coordinator_has_the_same_desk_and_the_same_wall(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    first, second = (RemoteCoordinator(channel_to(path)) for path in (house.path, f"{house.path}2"))
    async with asyncio.TaskGroup() as group:
        polls = [group.create_task(client.poll(WORKER, poller_id="p", labels={})) for client in (first, second)]
        await house.desk.polls_are(2)
        house.server.drain()
    assert [poll.result() for poll in polls] == [None, None]
    for client in (first, second):
        with pytest.raises(Unavailable, match="shutting down"):
            await client.poll(WORKER, poller_id="p", labels={})
        assert (await client.report_status(WORKER, status="{}", source_file="", labels="")).accepted


async def test_health_is_checked_and_watched(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    kind = health_pb2.HealthCheckResponse
    for service in ("", "coordinator.v1.CoordinatorService"):
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        raw = await channel.call("/grpc.health.v1.Health/Check", request, 5)
        assert kind.FromString(raw).status == kind.SERVING
    request = health_pb2.HealthCheckRequest(service="other").SerializeToString()
    with pytest.raises(NotFound, match="unknown service"):
        await channel.call("/grpc.health.v1.Health/Check", request, 5)
    unknown = channel.download("/grpc.health.v1.Health/Watch", request, 5)
    assert kind.FromString(await anext(unknown)).status == kind.SERVICE_UNKNOWN
    await unknown.aclose()  # type: ignore[attr-defined]  # a generator
    watch = channel.download("/grpc.health.v1.Health/Watch", b"", 5)
    assert kind.FromString(await anext(watch)).status == kind.SERVING
    house.server.drain()
    assert kind.FromString(await anext(watch)).status == kind.NOT_SERVING


async def test_a_stock_client_reads_code_and_text(house: House) -> None:
    """A foreign peer knows neither our metadata nor our classes."""
    house.desk.error = Unavailable("no available workers", fix="start one")
    house.peer = peer(Role.DISPATCHER, "ci")
    task = pb.Task(target="d", dag_run_id="r", definition="x", operation=pb.OPERATION_START)
    async with grpc.aio.insecure_channel(f"unix:{house.path}") as channel:
        dispatch: Any = channel.unary_unary(
            SERVICE + "Dispatch", request_serializer=pb.DispatchRequest.SerializeToString
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await dispatch(pb.DispatchRequest(task=task))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (caught.value.details() or "").startswith("no available workers")


async def test_calls_are_counted_by_method_and_code(house: House, client: RemoteCoordinator) -> None:
    await client.heartbeat(WORKER, labels={}, stats=WorkerStats())
    house.peer = peer(Role.WORKER, "w2")
    with pytest.raises(Refused):
        await client.heartbeat(WORKER, labels={}, stats=WorkerStats())
    series = house.calls.method("unary", "coordinator.v1.CoordinatorService", "Heartbeat")
    async with asyncio.timeout(60):
        while sum(series.handled.values()) < 2:  # noqa: ASYNC110 - counted after the answer has left
            await asyncio.sleep(0)
    assert series.handled == {"OK": 1, "PERMISSION_DENIED": 1}
    assert (series.started_count, series.received, series.sent) == (2, 2, 1)
