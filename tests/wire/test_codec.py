"""Values survive the wire; what is out of bounds does not get past it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dispatch.model import (
    BundleRef,
    Claim,
    ClaimToken,
    LogPart,
    LogStream,
    Operation,
    Owner,
    RunningTask,
    StateRef,
    StreamIdentity,
    Task,
    WorkerId,
    WorkerStats,
)
from secure_dagu.errors import IntegrityViolation, InvalidRequest, LimitExceeded, PreconditionFailed
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.wire import codec, fields, streams
from secure_dagu.wire.pb import coordinator_pb2 as pb
from tests.wire.fakes import DIGEST, IDENTITY, TASK

ID = st.from_regex(r"[-a-zA-Z0-9_]{1,64}", fullmatch=True)
NAME = st.from_regex(r"[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,39}", fullmatch=True)
LINE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=40)
TEXT = st.text(max_size=200)
RUNS = st.builds(DagRunRef, NAME, ID)
LABELS = st.dictionaries(LINE, LINE, max_size=5)
KEYS = st.from_regex(r"[0-9a-f]{16}:[-a-zA-Z0-9_]{1,64}", fullmatch=True).map(AttemptKey)
BUNDLES = st.builds(
    BundleRef,
    digest=st.just(DIGEST),
    size_bytes=st.integers(1, 64 * 2**20),
    dag_path=LINE,
    original_ref=LINE,
    resolved_ref=LINE,
)
TASKS = st.builds(
    Task,
    operation=st.sampled_from(Operation),
    run=RUNS,
    root=RUNS,
    parent=st.none() | RUNS,
    definition=TEXT.filter(bool),
    params=TEXT,
    step=LINE,
    include_downstream=st.booleans(),
    worker_selector=LABELS,
    target_worker=st.none() | LINE.filter(bool).map(WorkerId),
    previous_status=TEXT,
    attempt_id=ID.map(AttemptId),
    attempt_key=KEYS,
    labels=LINE,
    base_config=TEXT,
    schedule_time=LINE,
    external_step_retry=st.booleans(),
    queue_name=LINE,
    source_file=LINE,
    bundle=st.none() | BUNDLES,
    profile_name=LINE,
    retry_path=TEXT,
    trigger_actor=LINE,
    definition_id=LINE,
    parallel_item=TEXT,
)
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(  # noqa: DTZ001  made aware below
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
RUNNING = st.builds(RunningTask, run=RUNS, root=RUNS, parent=st.none() | RUNS, attempt_key=KEYS, started_at=MOMENTS)


@given(TASKS, st.builds(Owner, LINE, st.just("c.example"), st.integers(1, 65535)) | st.none())
def test_a_claim_comes_back_as_it_was(task: Task, owner: Owner | None) -> None:
    claim = Claim(task=task, worker=WorkerId("w1"), token=ClaimToken("t"), owner=owner)
    raw = codec.poll_response(claim).SerializeToString()
    assert codec.claim_of(pb.PollResponse.FromString(raw), WorkerId("w1")) == claim


@given(LABELS, st.lists(RUNNING, max_size=3).map(tuple), st.integers(0, 1000), st.integers(0, 1000))
def test_a_heartbeat_comes_back_as_it_was(
    labels: dict[str, str], running: tuple[RunningTask, ...], total: int, busy: int
) -> None:
    stats = WorkerStats(total_pollers=total, busy_pollers=busy, running=running)
    message = pb.HeartbeatRequest(worker_id="w1", labels=labels, stats=codec.stats_message(stats))
    assert codec.beat_of(message.SerializeToString()) == ("w1", labels, stats)
    renewal = pb.RunHeartbeatRequest(worker_id="w1", running_tasks=codec.running_messages(running))
    assert codec.run_beat_of(renewal.SerializeToString()) == ("w1", running)


@given(
    RUNS, RUNS, ID, LINE, st.sampled_from(LogStream), st.binary(max_size=50),
    st.none() | st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_a_log_part_comes_back_as_it_was(
    run: DagRunRef,
    root: DagRunRef,
    attempt: str,
    step: str,
    stream: LogStream,
    data: bytes,
    offset: int | None,
    sequence: int,
) -> None:
    identity = StreamIdentity(
        worker=WorkerId("w1"), run=run, root=root, attempt_id=AttemptId(attempt), claim_key=AttemptKey("")
    )
    part = LogPart(step=step, stream=stream, data=data, offset=offset, is_final=False)
    chunk = pb.LogChunk.FromString(codec.log_chunk(identity, part, sequence).SerializeToString())
    assert codec.stream_identity(chunk) == identity
    assert codec.log_part(chunk) == part
    final = replace(part, data=b"", is_final=True)
    assert codec.log_part(codec.log_chunk(identity, final, 1)) == final


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_read_or_refused(raw: bytes) -> None:
    for read in (codec.beat_of, codec.run_beat_of, lambda raw: codec.parse(pb.DispatchRequest, raw)):
        with contextlib.suppress(InvalidRequest):
            read(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"target": ""}, {"target": "a" * 41}, {"target": ".."}, {"target": "a/b"}, {"target": "a\n"},
        {"dag_run_id": ""}, {"dag_run_id": "r" * 65}, {"dag_run_id": "../../x"}, {"dag_run_id": "r.1"},
        {"root_dag_run_id": "../x"}, {"parent_dag_run_id": "p", "parent_dag_run_name": ""},
        {"attempt_id": "../x"}, {"attempt_key": "k\n"}, {"operation": 9}, {"step": "a\x1b[31m"}, {"step": "s" * 256},
        {"labels": "a=b\n"}, {"definition": "x" * (4 * 2**20 + 1)}, {"params": "x" * (2**20 + 1)},
        {"workspace_bundle_digest": "A" * 64, "workspace_bundle_size": 1},
        {"workspace_bundle_digest": DIGEST, "workspace_bundle_size": 0},
        {"workspace_bundle_digest": DIGEST, "workspace_bundle_size": 64 * 2**20 + 1},
        {"target_worker_id": "w" * 256}, {"source_file": "x" * 5000},
    ],
    ids=lambda change: ascii(change)[1:30],
)  # fmt: skip
def test_a_task_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    message = codec.task_message(TASK)
    for field, value in change.items():
        setattr(message, field, value)
    with pytest.raises(InvalidRequest):
        codec.task_of(message, arriving=False)


@pytest.mark.parametrize("owner", [("", 5), ("h", 0), ("h", 65536), ("h/x", 5), ("a b", 5), ("x" * 300, 5)])
def test_half_an_owner_or_an_odd_one_is_refused(owner: tuple[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="owner coordinator is malformed"):
        fields.owner("id", *owner)


def test_an_owner_may_be_an_ipv6_literal() -> None:
    assert fields.owner("id", "[::1]", 5) == Owner("id", "::1", 5)


def test_crowds_inside_one_message_are_refused() -> None:
    many = pb.HeartbeatRequest(worker_id="w1", labels={f"k{n}": "v" for n in range(65)})
    with pytest.raises(InvalidRequest, match="too many entries"):
        codec.beat_of(many.SerializeToString())
    task = pb.RunningTask(dag_name="d", dag_run_id="r")
    crowd = pb.RunHeartbeatRequest(worker_id="w1", running_tasks=[task] * 1001)
    with pytest.raises(InvalidRequest, match="too many running tasks"):
        codec.run_beat_of(crowd.SerializeToString())


@pytest.mark.parametrize(
    ("scope", "namespace", "key"),
    [
        ("other", "n", "k"), ("dag", "", "k"), ("dag", " ", "k"), ("dag", "..", "k"), ("dag", "a/b", "k"),
        ("dag", "a\\b", "k"), ("dag", "n", ""), ("dag", "n", "/k"), ("dag", "n", "k/"), ("dag", "n", "a//b"),
        ("dag", "n", "a/../b"), ("dag", "n", "a\\b"), ("dag", "n", "a\x00"), ("dag", "n", "k" * 1025),
    ],
)  # fmt: skip
def test_a_state_reference_that_climbs_or_is_empty_is_refused(scope: str, namespace: str, key: str) -> None:
    with pytest.raises(InvalidRequest, match="dag state: invalid ref"):
        codec.state_ref(pb.StateRef(scope=scope, namespace=namespace, key=key))
    assert codec.state_ref(pb.StateRef(scope="dag", namespace="n", key="a/b")) == StateRef("dag", "n", "a/b")


def test_pieces_are_whole_and_bounded() -> None:
    data = bytes(range(256)) * 10
    cut = list(streams.pieces(data, 1000))
    assert b"".join(cut) == data
    assert [len(piece) for piece in cut] == [1000, 1000, 560]
    assert list(streams.pieces(b"", 10)) == []
    assert next(streams.pieces(data, 2560)) is data


def test_a_bundle_may_not_skip_change_its_digest_or_grow_without_end() -> None:
    intake = streams.BundleIntake()
    intake.take(sequence=0, size=1, digest="a")
    with pytest.raises(InvalidRequest, match="got 3, want 1"):
        intake.take(sequence=3, size=1, digest="")
    with pytest.raises(InvalidRequest, match="digest changed"):
        intake.take(sequence=1, size=1, digest="b")
    with pytest.raises(InvalidRequest, match="too large"):
        intake.take(sequence=1, size=64 * 2**20, digest="")
    check = streams.BundleCheck(DIGEST)
    with pytest.raises(IntegrityViolation, match="arrived damaged"):
        check.take(sequence=1, data=b"x")
    with pytest.raises(IntegrityViolation, match="not the one"):
        check.end()


def test_a_stream_keeps_its_identity_its_modes_and_its_bounds() -> None:
    same = streams.SameIdentity("log")
    assert same.take(("a",))
    assert not same.take(("a",))
    with pytest.raises(PreconditionFailed, match="log stream attempt identity changed"):
        same.take(("b",))
    crowded = streams.SameIdentity("log")
    crowded._parts = streams.MAX_PARTS
    with pytest.raises(LimitExceeded):
        crowded.take(("a",))
    modes = streams.LogModes()
    for n in range(streams.LogModes.MAX_STREAMS):
        modes.take(LogPart(step=str(n), stream=LogStream.STDOUT, data=b"", offset=0, is_final=False))
    with pytest.raises(InvalidRequest, match="too many log streams"):
        modes.take(LogPart(step="x", stream=LogStream.STDERR, data=b"", offset=None, is_final=False))


def test_a_root_runs_own_key_is_accepted_and_no_key_too() -> None:
    chunk = codec.log_chunk(IDENTITY, LogPart(step="s", stream=LogStream.STDOUT, data=b"", offset=0, is_final=False), 1)
    assert codec.stream_identity(chunk) == IDENTITY
    chunk.attempt_key = ""
    chunk.root_dag_run_id = chunk.root_dag_run_name = ""
    assert codec.stream_identity(chunk) == replace(IDENTITY, claim_key=AttemptKey(""))
