"""Every call from our client through a real server to the coordinator's verbs and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TypeVar

import pytest

from secure_dagu.dispatch.model import (
    NO_ATTEMPT,
    NO_KEY,
    ArtifactPart,
    LogPart,
    LogStream,
    Role,
    SecretRequest,
    StateSource,
    Verdict,
    WorkerStats,
)
from secure_dagu.dispatch.operating import RunFilter, Window
from secure_dagu.errors import IntegrityViolation, InvalidRequest, LimitExceeded, NotFound, WrongState
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.telemetry.rpc_series import RpcSeries
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from secure_dagu.wire.fields import MAX_MESSAGE
from tests.wire.conftest import House
from tests.wire.fakes import ATTEMPT, BUNDLE, CLAIM, DIGEST, ENTRY, IDENTITY, KEY, NOW, RUN, RUNNING, TASK, WORKER, peer

T = TypeVar("T")
TOO_LARGE = "secure_dagu_grpc_message_size_exceeded_total"


async def each(*items: T) -> AsyncIterator[T]:
    for item in items:
        yield item


async def test_a_task_is_polled_acknowledged_and_renewed(house: House, client: RemoteCoordinator) -> None:
    house.desk.claims.put_nowait(CLAIM)
    claim = await client.poll(WORKER, poller_id="p1", labels={"gpu": "true"})
    assert claim == CLAIM
    assert await client.acknowledge(WORKER, token=CLAIM.token, attempt_key=KEY) == Verdict(accepted=True)
    stats = WorkerStats(total_pollers=4, busy_pollers=1, running=(RUNNING,))
    assert list(await client.heartbeat(WORKER, labels={"gpu": "true"}, stats=stats)) == []
    house.desk.stopped = (KEY,)
    assert list(await client.heartbeat(WORKER, labels={"gpu": "true"}, stats=stats)) == [KEY]
    assert list(await client.run_heartbeat(WORKER, running=(RUNNING,))) == [KEY]
    assert house.desk.all("heartbeat")[0] == ({"gpu": "true"}, stats)
    assert house.desk.all("run_heartbeat") == [((RUNNING,),)]
    assert house.desk.callers() == {WORKER}


async def test_a_refused_acknowledgement_and_report_come_back_in_band(house: House, client: RemoteCoordinator) -> None:
    house.desk.verdict = Verdict(accepted=False, error="stale attempt: lease no longer active")
    assert await client.acknowledge(WORKER, token=CLAIM.token, attempt_key=KEY) == house.desk.verdict
    told = await client.report_status(WORKER, status='{"status":1}', source_file="f.yaml", labels="a=b")
    assert told == house.desk.verdict
    assert house.desk.all("report_status") == [('{"status":1}', "f.yaml", "a=b")]


async def test_an_empty_poll_answer_is_no_claim(house: House, client: RemoteCoordinator) -> None:
    house.desk.claims.put_nowait(None)
    assert await client.poll(WORKER, poller_id="p1", labels={}) is None


async def test_a_dispatched_task_arrives_without_the_senders_attempt(house: House, client: RemoteCoordinator) -> None:
    house.peer = peer(Role.DISPATCHER, "ci")
    assert await client.dispatch(WORKER, TASK, admission_token="t") == TASK
    ((task, token),) = house.desk.all("dispatch")
    assert token == "t"
    assert (task.attempt_id, task.attempt_key) == (NO_ATTEMPT, NO_KEY)
    assert task.worker_selector == {"gpu": "true"}
    assert task.params == "NAME=wörld"


async def test_runs_are_cancelled_and_asked_about(house: House, client: RemoteCoordinator) -> None:
    root = DagRunRef("parent", "r0")
    assert (await client.cancel(WORKER, run=RUN, root=root)).accepted
    assert (await client.cancel(WORKER, run=RUN, root=None)).accepted
    assert await client.run_status(WORKER, run=RUN, root=root) == '{"status":1}'
    assert await client.run_status(WORKER, run=RUN, root=None) == '{"status":1}'
    assert house.desk.all("cancel") == [(RUN, root), (RUN, None)]
    assert house.desk.all("run_status") == [(RUN, root), (RUN, None)]
    house.desk.document = None
    assert await client.run_status(WORKER, run=RUN, root=None) is None


async def test_workers_are_listed_with_their_load(house: House, client: RemoteCoordinator) -> None:
    house.peer = peer(Role.ADMIN, "root")
    (worker,) = await client.workers(WORKER)
    (expected,) = await house.desk.workers(WORKER)
    assert worker == expected


async def test_logs_arrive_in_order_with_their_offsets(house: House, client: RemoteCoordinator) -> None:
    parts = [
        LogPart(step="s1", stream=LogStream.STDOUT, data=b"hello", offset=0, is_final=False),
        LogPart(step="s1", stream=LogStream.STDOUT, data=b"", offset=5, is_final=True),
        LogPart(step="scheduler", stream=LogStream.SCHEDULER, data=b"x", offset=None, is_final=False),
    ]
    uploaded = await client.stream_logs(WORKER, IDENTITY, each(*parts))
    assert (uploaded.chunks, uploaded.size_bytes) == (3, 6)
    assert house.desk.all("stream_logs") == [(IDENTITY,)]
    assert [part for (part,) in house.desk.all("part")] == parts


async def test_a_large_log_part_is_cut_below_the_message_limit(house: House, client: RemoteCoordinator) -> None:
    big = LogPart(step="s1", stream=LogStream.STDOUT, data=b"x" * (7 * 2**20), offset=10, is_final=False)
    uploaded = await client.stream_logs(WORKER, IDENTITY, each(big))
    assert uploaded.size_bytes == 7 * 2**20
    taken = [part for (part,) in house.desk.all("part")]
    assert [(part.offset, len(part.data)) for part in taken] == [
        (10, 3 * 2**20),
        (10 + 3 * 2**20, 3 * 2**20),
        (10 + 6 * 2**20, 2**20),
    ]


async def test_artifacts_arrive(house: House, client: RemoteCoordinator) -> None:
    parts = [ArtifactPart(path="a.txt", data=b"1", is_final=False), ArtifactPart(path="a.txt", data=b"", is_final=True)]
    assert (await client.stream_artifacts(WORKER, IDENTITY, each(*parts))).chunks == 2
    assert [part for (part,) in house.desk.all("part")] == parts


async def test_bundles_go_up_and_come_down_whole(house: House, client: RemoteCoordinator) -> None:
    house.peer = peer(Role.DISPATCHER, "ci")
    assert (await client.put(WORKER, BUNDLE, each(house.desk.bundle, b"tail"))).accepted
    assert house.desk.all("put") == [(BUNDLE,)]
    assert b"".join(house.desk.all("blocks")[0]) == house.desk.bundle + b"tail"
    assert await client.has(WORKER, DIGEST)
    blocks = [block async for block in client.get(WORKER, DIGEST)]
    assert [len(block) for block in blocks] == [2**20, 5]


async def test_a_bundle_with_other_bytes_than_its_digest_is_refused(house: House, client: RemoteCoordinator) -> None:
    house.desk.bundle = b"evil"
    with pytest.raises(IntegrityViolation, match="not the one"):
        async for _ in client.get(WORKER, DIGEST):
            pass


async def test_shared_values_are_read_written_listed_and_removed(house: House, client: RemoteCoordinator) -> None:
    source = StateSource(dag_name="mydag", run_id="r", attempt_id="a", step="s")
    assert await client.get_state(WORKER, ENTRY.ref) == ENTRY
    written = await client.put_state(WORKER, ENTRY.ref, b"1", expected_version=0, create_only=True, updated_by=source)
    assert written == ENTRY
    assert house.desk.all("put_state") == [(ENTRY.ref, b"1", 0, True, source)]
    assert await client.delete_state(WORKER, ENTRY.ref)
    assert await client.list_state(WORKER, scope="dag", namespace="mydag", prefix="a", limit=2) == (ENTRY, ENTRY)


async def test_definitions_and_secrets_are_fetched(house: House, client: RemoteCoordinator) -> None:
    assert await client.dag_text(WORKER, "known") == "steps: []"
    assert await client.dag_text(WORKER, "other") is None
    request = SecretRequest(
        name="TOKEN", ref="team/token", workspace="", check_only=False, attempt_key=KEY, attempt_id=ATTEMPT
    )
    assert await client.resolve_secret(WORKER, request) == "s3cret"
    assert house.desk.all("resolve_secret") == [(request,)]


async def test_cancellations_are_pushed_and_the_stream_ends_with_its_reader(
    house: House, client: RemoteCoordinator
) -> None:
    stream = client.cancellations(WORKER)
    assert await anext(stream) == NO_KEY
    house.desk.cancelled.put_nowait(KEY)
    assert await anext(stream) == KEY
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert await house.desk.streams_ended.get() == "cancellations"


async def test_operators_list_follow_and_read_runs(house: House, client: RemoteCoordinator) -> None:
    house.peer = peer(Role.ADMIN, "root")
    runs = await client.runs(WORKER, name=None, run_id="rrun1", limit=5)
    assert runs == await house.desk.runs(WORKER, name=None, run_id="rrun1", limit=5)
    events = [event async for event in client.follow(WORKER, run=RUN, with_logs=True)]
    assert events == [event async for event in house.desk.follow(WORKER, run=RUN, with_logs=True)]
    logs = client.read_log(WORKER, run=RUN, step="s1", stream=LogStream.STDOUT, offset=3)
    assert [data async for data in logs] == [b"abc", b"def"]
    assert await client.artifacts(WORKER, run=RUN) == await house.desk.artifacts(WORKER, run=RUN)
    pieces = [data async for data in client.read_artifact(WORKER, run=RUN, path="a/b.txt")]
    assert [len(piece) for piece in pieces] == [3 * 2**20, 2**20]
    await client.delete_run(WORKER, run=RUN)
    assert house.desk.all("delete_run") == [(RUN,)]
    house.desk.error = WrongState("it runs", fix="stop it")
    with pytest.raises(WrongState) as caught:
        await client.delete_run(WORKER, run=RUN)
    assert caught.value.as_dict() == house.desk.error.as_dict()


async def test_operators_find_and_count_runs_and_read_pages_of_logs(house: House, client: RemoteCoordinator) -> None:
    house.peer = peer(Role.ADMIN, "root")
    wanted = RunFilter(
        name="mydag", name_part="my", run_id_part="rr", statuses=frozenset({RunStatus.FAILED, RunStatus.QUEUED}),
        labels=("team=ö*", "!nightly"), since=NOW, until=NOW + timedelta(days=1),
    )  # fmt: skip
    for before in (None, (1, "mydag/ü")):
        found = await client.find_runs(WORKER, wanted, limit=5, before=before)
        assert found == await house.desk.find_runs(WORKER, wanted, limit=5, before=before)
    assert house.desk.all("find_runs")[::2] == [(wanted, 5, None), (wanted, 5, (1, "mydag/ü"))]
    assert await client.count_runs(WORKER, since=NOW, until=None) == {4: 2, 5: 1}
    assert house.desk.all("count_runs") == [(NOW, None)]
    window = Window(tail=3, head=4, offset=2**40, limit=7)
    page = await client.log_page(WORKER, run=RUN, step="s1", stream=LogStream.STDERR, window=window)
    assert page == await house.desk.log_page(WORKER, run=RUN, step="s1", stream=LogStream.STDERR, window=window)
    assert house.desk.all("log_page")[0] == (RUN, "s1", LogStream.STDERR, window)
    for wrong in (Window(tail=-1), Window(limit=10_001)):
        with pytest.raises(InvalidRequest):
            await client.log_page(WORKER, run=RUN, step="s1", stream=LogStream.STDOUT, window=wrong)
    with pytest.raises(InvalidRequest):
        await client.find_runs(WORKER, wanted, limit=1001, before=None)


async def test_a_message_beyond_the_limit_is_refused_and_counted(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    channel = channel_to(house.path)
    recorder = channel._recorder
    assert isinstance(recorder, RpcSeries)
    for count in range(3):
        told = [s.value for f in recorder.collect() for s in f.samples if s.name == TOO_LARGE]
        assert told == [count]
        with pytest.raises(LimitExceeded, match="larger than max"):
            await channel.call("/coordinator.v1.CoordinatorService/GetDAG", bytes(MAX_MESSAGE + 1), 10)
    house.desk.error = LimitExceeded("a log part is larger than 4 bytes")
    with pytest.raises(LimitExceeded):  # another limit, another message
        await RemoteCoordinator(channel).dag_text(WORKER, "known")
    assert [s.value for f in recorder.collect() for s in f.samples if s.name == TOO_LARGE] == [3]


async def test_a_download_refused_before_its_first_message_carries_the_exact_error(
    house: House, client: RemoteCoordinator
) -> None:
    house.desk.error = NotFound("workspace bundle not found", why="nobody put it", fix="dispatch again")
    with pytest.raises(NotFound) as caught:
        async for _ in client.get(WORKER, DIGEST):
            pass
    assert caught.value.as_dict() == house.desk.error.as_dict()


async def test_a_thousand_polls_wait_at_once_and_the_next_is_refused_by_name(
    house: House, client: RemoteCoordinator
) -> None:
    async with asyncio.TaskGroup() as group:
        polls = [group.create_task(client.poll(WORKER, poller_id=f"p{n}", labels={})) for n in range(1000)]
        await house.desk.polls_are(1000)
        with pytest.raises(Exception, match=r"too many open polls.*1000"):
            await client.poll(WORKER, poller_id="one more", labels={})
        for _ in polls:
            house.desk.claims.put_nowait(None)
    assert {poll.result() for poll in polls} == {None}
