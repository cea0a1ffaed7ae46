"""What follows one execution: again after a pause, once more in a loop, or accepted as it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag.model import ContinueOn
from secure_dagu.run.retry import LONGEST_PAUSE_S, Policy, accepts, repeats, retries


@pytest.mark.parametrize(
    ("policy", "pauses"),
    [
        (Policy(interval_s=3), [3, 3, 3]),
        (Policy(interval_s=3, backoff=1.0), [3, 3, 3]),
        (Policy(interval_s=3, backoff=2.0), [3, 6, 12]),
        (Policy(interval_s=4, backoff=1.5), [4, 6, 9]),
        (Policy(interval_s=3, backoff=2.0, max_interval_s=7), [3, 6, 7]),
        (Policy(interval_s=9, max_interval_s=7), [7, 7, 7]),
        (Policy(interval_s=0, backoff=2.0), [0, 0, 0]),
    ],
)
def test_the_pause_before_a_retry_grows_to_its_cap(policy: Policy, pauses: list[float]) -> None:
    assert [policy.pause_s(n) for n in range(3)] == pauses


@pytest.mark.parametrize("backoff", [1.5, 2.0, 10.0, 1e9])
def test_a_backoff_never_overflows(backoff: float) -> None:
    assert Policy(interval_s=1, backoff=backoff, max_interval_s=60).pause_s(10**6) == 60
    assert Policy(interval_s=1, backoff=backoff).pause_s(10**6) == LONGEST_PAUSE_S
    assert Policy(interval_s=0, backoff=backoff).pause_s(10**6) == 0, "no pause never becomes one"


policies = st.builds(
    Policy,
    interval_s=st.floats(0, 1e18),
    backoff=st.just(0.0) | st.floats(1, 1e300, exclude_min=True),
    max_interval_s=st.floats(0, 1e18),
)


@given(policies, st.integers(0, 10**9))
def test_a_pause_is_a_time_that_a_timer_takes_and_never_shrinks(policy: Policy, n: int) -> None:
    pause = policy.pause_s(n)
    assert math.isfinite(pause)
    assert 0 <= pause <= (policy.max_interval_s or LONGEST_PAUSE_S)
    assert pause <= policy.pause_s(n + 1) <= LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("policy", "done", "exit_code", "again"),
    [
        (None, 0, 1, False),
        (Policy(limit=0), 0, 1, False),
        (Policy(limit=2), 0, 1, True),
        (Policy(limit=2), 1, None, True),
        (Policy(limit=2), 2, 1, False),
        (Policy(limit=2, exit_codes=(3, 4)), 0, 4, True),
        (Policy(limit=2, exit_codes=(3, 4)), 0, 1, False),
        (Policy(limit=2, exit_codes=(3, 4)), 0, None, False),
    ],
)
def test_a_failure_is_tried_again(policy: Policy | None, done: int, exit_code: int | None, *, again: bool) -> None:
    assert retries(policy, done=done, exit_code=exit_code) is again


@pytest.mark.parametrize(
    ("mode", "limit", "executions", "met", "again"),
    [
        ("while", 0, 1000, True, True),
        ("while", 0, 1, False, False),
        ("until", 0, 1000, False, True),
        ("until", 0, 1, True, False),
        ("while", 3, 2, True, True),
        ("while", 3, 3, True, False),
        ("until", 3, 2, False, True),
        ("until", 3, 3, False, False),
        ("while", 1, 1, True, False),
    ],
)
def test_a_step_is_executed_once_more(mode: str, limit: int, executions: int, *, met: bool, again: bool) -> None:
    assert repeats(mode, Policy(limit=limit), executions=executions, met=met) is again


@pytest.mark.parametrize(
    ("policy", "exit_code", "output_matches", "accepted"),
    [
        (ContinueOn(), 1, False, False),
        (ContinueOn(failure=True), None, False, True),
        (ContinueOn(skipped=True, mark_success=True), 1, False, False),
        (ContinueOn(exit_codes=(0, 3)), 3, False, True),
        (ContinueOn(exit_codes=(0, 3)), 1, False, False),
        (ContinueOn(exit_codes=(0, 3)), None, False, False),
        (ContinueOn(outputs=("fine",)), 1, True, True),
        (ContinueOn(outputs=("fine",)), 1, False, False),
        (ContinueOn(exit_codes=(3,), outputs=("fine",)), 1, True, True),
    ],
)
def test_a_failure_is_accepted(
    policy: ContinueOn, exit_code: int | None, *, output_matches: bool, accepted: bool
) -> None:
    assert accepts(policy, exit_code=exit_code, output_matches=output_matches) is accepted
