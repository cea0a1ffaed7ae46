"""The life of a task: the table of docs/architecture.md, and its invariants under any sequence of events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from secure_dagu.dispatch.api import CLAIM_FOR, LEASE_FOR
from secure_dagu.dispatch.machine import (
    MAX_DELIVERIES,
    Acknowledged,
    CancelRequested,
    Event,
    Expired,
    Finished,
    GivenUp,
    Offered,
    Released,
    Renewed,
    Resumed,
    TaskState,
    Withdrawn,
    advance,
    shifted,
    token_hash,
)
from secure_dagu.dispatch.model import ClaimToken, Phase, WorkerId
from secure_dagu.errors import Conflict, LeaseLost, StaleClaim
from secure_dagu.run.model import RunStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
W1, W2 = WorkerId("w1"), WorkerId("w2")
QUEUED = TaskState()
OFFERED = advance(QUEUED, Offered(W1, "t1", NOW + CLAIM_FOR), NOW)
LEASED = advance(OFFERED, Acknowledged(W1, "t1"), NOW)
ENDED = advance(LEASED, Finished(W1, RunStatus.SUCCEEDED), NOW)
LOST = advance(LEASED, Expired(), NOW + LEASE_FOR)
LATER = NOW + timedelta(seconds=31)


def test_an_acknowledged_offer_is_a_lease_until_thirty_seconds_from_now() -> None:
    assert (LEASED.phase, LEASED.worker, LEASED.until) == (Phase.LEASED, "w1", NOW + LEASE_FOR)
    assert LEASED.is_leased_to(W1, NOW + timedelta(seconds=29))
    assert not LEASED.is_leased_to(W1, NOW + LEASE_FOR), "at the deadline it is over, swept or not"
    assert not LEASED.is_leased_to(W2, NOW)


def test_a_repeated_acknowledgement_changes_nothing() -> None:
    assert advance(LEASED, Acknowledged(W1, "t1"), NOW) is LEASED


def test_renewing_moves_the_deadline() -> None:
    assert advance(LEASED, Renewed(W1), NOW + timedelta(seconds=20)).until == NOW + timedelta(seconds=50)


def test_an_expired_offer_is_queued_again_until_its_deliveries_are_spent() -> None:
    task = QUEUED
    for spent in range(1, MAX_DELIVERIES + 1):
        task = advance(task, Offered(W1, f"t{spent}", NOW + CLAIM_FOR), NOW)
        task = advance(task, Expired(), LATER)
        assert task.deliveries == spent
    assert (task.phase, task.status) == (Phase.ENDED, RunStatus.FAILED)


def test_a_withdrawn_offer_spends_no_delivery() -> None:
    assert advance(OFFERED, Withdrawn("t1"), NOW) == QUEUED


def test_an_expired_lease_is_lost_and_failed() -> None:
    assert (LOST.phase, LOST.status) == (Phase.LOST, RunStatus.FAILED)


def test_cancelling_ends_what_nobody_runs_and_marks_what_somebody_does() -> None:
    for task in (QUEUED, OFFERED):
        after = advance(task, CancelRequested(), NOW)
        assert (after.phase, after.status, after.worker, after.token) == (Phase.ENDED, RunStatus.ABORTED, "", "")
    assert advance(LEASED, CancelRequested(), NOW) == replace(LEASED, cancelling=True)
    assert advance(ENDED, CancelRequested(), NOW) is ENDED


def test_what_a_released_worker_held_is_queued_again_and_no_longer_its() -> None:
    for task in (OFFERED, LEASED):
        after = advance(task, Released(W1), NOW)
        assert after == TaskState(deliveries=1)
        with pytest.raises(LeaseLost):
            advance(after, Finished(W1, RunStatus.SUCCEEDED), NOW)
    last = advance(replace(LEASED, deliveries=MAX_DELIVERIES - 1), Released(W1), NOW)
    assert (last.phase, last.status) == (Phase.ENDED, RunStatus.FAILED)
    stopping = advance(replace(LEASED, cancelling=True), Released(W1), NOW)
    assert (stopping.phase, stopping.status) == (Phase.ENDED, RunStatus.ABORTED)


def test_a_stall_moves_deadlines_and_nothing_else() -> None:
    assert shifted(LEASED, timedelta(seconds=5)) == replace(LEASED, until=NOW + timedelta(seconds=35))
    assert shifted(QUEUED, timedelta(seconds=5)) is QUEUED


@pytest.mark.parametrize(
    ("task", "event", "now", "error"),
    [
        (QUEUED, Acknowledged(W1, "t1"), NOW, StaleClaim),
        (QUEUED, Acknowledged(W1, ""), NOW, StaleClaim),
        (QUEUED, Expired(), NOW, LeaseLost),
        (QUEUED, Withdrawn(""), NOW, StaleClaim),
        (QUEUED, Renewed(WorkerId("")), NOW, LeaseLost),
        (QUEUED, Offered(W1, "t", NOW), NOW, StaleClaim),
        (OFFERED, Acknowledged(W1, "t2"), NOW, StaleClaim),
        (OFFERED, Acknowledged(W2, "t1"), NOW, StaleClaim),
        (OFFERED, Acknowledged(W1, "t1"), LATER, StaleClaim),
        (OFFERED, Offered(W2, "t2", LATER), NOW, StaleClaim),
        (OFFERED, Expired(), NOW, LeaseLost),
        (OFFERED, Finished(W1, RunStatus.SUCCEEDED), NOW, LeaseLost),
        (OFFERED, GivenUp(), NOW, Conflict),
        (LEASED, Renewed(W2), NOW, LeaseLost),
        (LEASED, Renewed(W1), LATER, LeaseLost),
        (LEASED, Finished(W2, RunStatus.FAILED), NOW, LeaseLost),
        (LEASED, Finished(W1, RunStatus.SUCCEEDED), LATER, LeaseLost),
        (LEASED, Finished(W1, RunStatus.RUNNING), NOW, LeaseLost),
        (LEASED, Acknowledged(W2, "t1"), NOW, StaleClaim),
        (LEASED, Acknowledged(W1, "t1"), LATER, StaleClaim),
        (LEASED, Withdrawn("t1"), NOW, StaleClaim),
        (QUEUED, Released(WorkerId("")), NOW, LeaseLost),
        (LEASED, Released(W2), NOW, LeaseLost),
        (ENDED, Released(W1), NOW, LeaseLost),
        (ENDED, Renewed(W1), NOW, LeaseLost),
        (ENDED, Expired(), LATER, LeaseLost),
        (LOST, Finished(W1, RunStatus.SUCCEEDED), NOW, LeaseLost),
        (LOST, Acknowledged(W1, "t1"), NOW, StaleClaim),
    ],
)
def test_what_the_table_does_not_name_is_refused(
    task: TaskState, event: Event, now: datetime, error: type[Exception]
) -> None:
    with pytest.raises(error):
        advance(task, event, now)


class AnyLife(RuleBasedStateMachine):
    """Events in any order, by any worker, with any token that was ever made, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.task = TaskState()
        self.now = NOW
        self.fresh = count()
        self.tokens = ["never-made"]
        self.holder: WorkerId | None = None
        self.over: TaskState | None = None

    def send(self, event: Event) -> bool:
        """Apply an event; False when it was refused."""
        try:
            self.task = advance(self.task, event, self.now)
        except Conflict:
            return False
        return True

    @rule(seconds=st.integers(0, 40))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(worker=st.sampled_from((W1, W2)))
    def offer(self, worker: WorkerId) -> None:
        token = token_hash(ClaimToken(f"token {next(self.fresh)}"))
        before = self.task.phase
        if self.send(Offered(worker, token, self.now + CLAIM_FOR)):
            assert before is Phase.QUEUED
            self.tokens.append(token)

    @rule(worker=st.sampled_from((W1, W2)), pick=st.integers(0, 50))
    def acknowledge(self, worker: WorkerId, pick: int) -> None:
        token = self.tokens[pick % len(self.tokens)]
        before = self.task
        if self.send(Acknowledged(worker, token)):
            assert token == self.tokens[-1], "only the newest token opens anything"
            assert worker == before.worker
            assert before.until is not None
            assert self.now < before.until
            self.holder = worker

    @rule(pick=st.integers(0, 50))
    def withdraw(self, pick: int) -> None:
        if self.send(Withdrawn(self.tokens[pick % len(self.tokens)])):
            assert self.task.phase is Phase.QUEUED

    @rule(worker=st.sampled_from((W1, W2)))
    def renew(self, worker: WorkerId) -> None:
        if self.send(Renewed(worker)):
            assert worker == self.holder

    @rule()
    def expire(self) -> None:
        before = self.task
        if self.send(Expired()):
            assert before.until is not None
            assert self.now >= before.until
            assert before.phase is not Phase.LEASED or self.task.phase is Phase.LOST

    @rule(worker=st.sampled_from((W1, W2)), status=st.sampled_from(RunStatus))
    def finish(self, worker: WorkerId, status: RunStatus) -> None:
        before = self.task
        if self.send(Finished(worker, status)):
            assert worker == self.holder, "only the holder can finish"
            assert before.is_leased_to(worker, self.now)
            assert self.task.status is status

    @rule()
    def cancel(self) -> None:
        before = self.task
        assert self.send(CancelRequested())
        if before.phase is Phase.LEASED:
            assert self.task.phase is Phase.LEASED

    @rule()
    def give_up(self) -> None:
        self.send(GivenUp())

    @precondition(lambda self: not self.task.is_over)
    @rule()
    def restart(self) -> None:
        self.send(Resumed(self.now + LEASE_FOR))

    @invariant()
    def there_is_at_most_one_holder(self) -> None:
        held = [worker for worker in (W1, W2) if self.task.is_leased_to(worker, self.now)]
        assert len(held) <= 1
        assert not held or held == [self.holder]

    @invariant()
    def what_is_over_stays_over(self) -> None:
        if self.over is not None:
            assert (self.task.phase, self.task.status) == (self.over.phase, self.over.status)
        if self.task.is_over:
            self.over = self.task
        assert (self.task.status is not None) == self.task.is_over

    @invariant()
    def a_queued_task_belongs_to_nobody(self) -> None:
        if self.task.phase is Phase.QUEUED:
            assert (self.task.worker, self.task.token, self.task.until) == ("", "", None)
        assert self.task.deliveries <= MAX_DELIVERIES


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=80, stateful_step_count=40)
