"""Who may take which task, and who gets it first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.match import Backlog, Demand, Waiters, label_set
from secure_dagu.dispatch.model import WorkerId
from secure_dagu.run.model import AttemptKey

W1, W2 = WorkerId("w1"), WorkerId("w2")
ANY = Demand(frozenset(), None)
GPU = Demand(label_set({"gpu": "true"}), None)


def idle(_worker: WorkerId) -> int:
    """Say that everybody is equally loaded."""
    return 0


def test_a_demand_is_met_by_every_pair_and_the_named_worker() -> None:
    labels = label_set({"gpu": "true", "zone": "a"})
    assert ANY.is_met_by(W1, frozenset())
    assert GPU.is_met_by(W1, labels)
    assert not Demand(label_set({"gpu": "True"}), None).is_met_by(W1, labels)
    assert not Demand(label_set({"gpu": "true", "zone": "b"}), None).is_met_by(W1, labels)
    assert Demand(frozenset(), W1).is_met_by(W1, frozenset())
    assert not Demand(label_set({"gpu": "true"}), W2).is_met_by(W1, labels)
    assert str(Demand(label_set({"b": "2", "a": "1"}), W2)) == "a=1, b=2, worker w2"
    assert str(ANY) == "any labels"


@given(
    st.lists(
        st.tuples(st.sampled_from(("add", "remove", "take")), st.integers(0, 20), st.sampled_from((ANY, GPU))),
        max_size=80,
    )
)
@settings(max_examples=200)
def test_the_backlog_gives_the_oldest_that_fits_like_a_plain_list(
    steps: list[tuple[str, int, Demand]],
) -> None:
    backlog = Backlog()
    model: dict[AttemptKey, tuple[int, Demand]] = {}
    for what, number, demand in steps:
        key = AttemptKey(f"k{number}")
        if what == "add":
            backlog.add(key, demand, number)
            model.setdefault(key, (number, demand))
        elif what == "remove":
            backlog.remove(key)
            model.pop(key, None)
        else:
            labels = label_set({"gpu": "true"}) if number % 2 else frozenset()
            fitting = [(place, k) for k, (place, d) in model.items() if d.is_met_by(W1, labels)]
            found = backlog.oldest_for(W1, labels)
            assert found == (min(fitting)[1] if fitting else None)
        assert len(backlog) == len(model)
        assert all(k in backlog for k in model)
        for some in (ANY, GPU):
            assert set(backlog.waiting_for(some)) == {k for k, (_, d) in model.items() if d == some}
        assert set(backlog.demands()) == {d for _, d in model.values()}


def test_a_task_that_nobody_matches_does_not_hold_up_the_others() -> None:
    backlog = Backlog()
    backlog.add(AttemptKey("gpu"), GPU, 1)
    backlog.add(AttemptKey("any"), ANY, 2)
    assert backlog.oldest_for(W1, frozenset()) == "any"


def test_the_least_loaded_worker_is_served_then_the_one_served_longest_ago() -> None:
    waiters: Waiters[int] = Waiters()
    for number in range(3):
        waiters.add(W1, frozenset(), number)
        waiters.add(W2, frozenset(), 10 + number)
    served = [waiters.pick(ANY, idle) for _ in range(4)]
    assert [found[0] for found in served if found] == ["w1", "w2", "w1", "w2"]
    assert [found[2] for found in served if found] == [0, 10, 1, 11], "of its polls the longest waiting first"
    found = waiters.pick(ANY, {W1: 5, W2: 0}.__getitem__)
    assert found is not None
    assert found[0] == "w2"
    assert waiters.pick(GPU, idle) is None


def test_polls_are_counted_and_removed() -> None:
    waiters: Waiters[int] = Waiters()
    gpu = label_set({"gpu": "true"})
    waiters.add(W1, gpu, 1)
    waiters.add(W1, frozenset(), 2)
    assert (len(waiters), waiters.polls_of(W1), waiters.polls_of(W2)) == (2, 2, 0)
    assert waiters.meets(GPU)
    waiters.remove(W1, gpu, 1)
    waiters.remove(W1, gpu, 1)
    assert not waiters.meets(GPU)
    assert waiters.take_all() == [2]
    assert len(waiters) == 0
