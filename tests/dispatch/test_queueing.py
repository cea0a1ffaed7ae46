"""Which queued runs start, and why the others wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dispatch.operating import Waiting
from secure_dagu.dispatch.queueing import QueuedRun, QueueState, conditions, decide
from secure_dagu.run.model import DagRunRef

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _queue(count: int, *, limit: int, running: int, high: int = 0, paused: bool = False) -> QueueState:
    items = tuple(
        QueuedRun(
            key=f"{number}", queue="q", run=DagRunRef("flow", f"r{number}"), high=number < high,
            queued_at=NOW + timedelta(seconds=number),
        )
        for number in range(count)
    )  # fmt: skip
    return QueueState(name="q", is_global=True, max_concurrency=limit, paused=paused, running=running, items=items)


queues = st.builds(
    _queue, st.integers(0, 30), limit=st.integers(1, 10), running=st.integers(0, 12), high=st.integers(0, 30),
    paused=st.booleans(),
)  # fmt: skip
held = st.dictionaries(st.integers(0, 29).map(str), st.sampled_from(Waiting))


@given(queues, held)
def test_a_queue_never_exceeds_its_limit(queue: QueueState, reasons: dict[str, Waiting]) -> None:
    started = len(decide(queue, reasons).start)
    assert started <= max(0, queue.max_concurrency - queue.running)


@given(queues, held)
def test_every_item_starts_or_has_one_reason(queue: QueueState, reasons: dict[str, Waiting]) -> None:
    decision = decide(queue, reasons)
    starting = {item.key for item in decision.start}
    assert starting.isdisjoint(decision.waits)
    assert starting | decision.waits.keys() == {item.key for item in queue.items}


@given(queues, held)
def test_nobody_is_overtaken_but_who_cannot_start(queue: QueueState, reasons: dict[str, Waiting]) -> None:
    decision = decide(queue, reasons)
    able = [item for item in queue.items if item.key not in reasons]
    assert list(decision.start) == able[: len(decision.start)]
    if not queue.paused and len(decision.start) < len(able):
        assert len(decision.start) == max(0, queue.max_concurrency - queue.running)  # no place is left free


@given(queues, held)
def test_a_paused_queue_starts_nothing_and_says_so(queue: QueueState, reasons: dict[str, Waiting]) -> None:
    if queue.paused:
        assert not decide(queue, reasons).start
        assert set(decide(queue, reasons).waits.values()) <= {Waiting.PAUSED}


def test_each_reason_has_its_pair_of_conditions() -> None:
    for reason in Waiting:
        runnable, detail = conditions(reason, NOW)
        assert runnable.type == "Runnable"
        assert detail.type != "Runnable"
        assert {runnable.reason, detail.reason} == {reason}
        assert runnable.message.startswith("The DAG-run cannot start because ")


def test_the_words_of_the_reference() -> None:
    messages = [one.message for one in conditions(Waiting.QUEUE_LIMIT, NOW)]
    assert messages == [
        "The DAG-run cannot start because the queue active-run concurrency limit has been reached.",
        "The queue active-run concurrency limit has been reached.",
    ]
    messages = [one.message for one in conditions(Waiting.NO_MATCHING_WORKER, NOW)]
    assert messages == [
        "The DAG-run cannot start because no healthy worker matches the required selector.",
        "No healthy worker matches the required worker selector.",
    ]
