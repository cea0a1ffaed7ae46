"""Single decisions of the machine that a walk does not pin down, and what they cost."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import Plan, make_plan
from secure_dagu.run import machine, retry
from secure_dagu.run.machine import Outcome, Result
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.retry import Policy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GOOD = Outcome(result=Result.SUCCEEDED, exit_code=0)
BAD = Outcome(result=Result.FAILED, exit_code=1, error="exit status 1")


def plan_of(*steps: str, head: str = "") -> Plan:
    return make_plan(load_definition(head + "steps:\n" + "".join(f"  - {{{step}}}\n" for step in steps)).main)


def play(plan: Plan, events: list[machine.Event], **options: float) -> tuple[machine.RunState, list[machine.Command]]:
    """Return the state after these events, and the commands that the last of them led to."""
    state = machine.new_run(plan, max_active=int(options.get("max_active", 0)), delay_s=options.get("delay_s", 0.0))
    commands: list[machine.Command] = []
    start: list[machine.Event] = [
        machine.Started(),
        machine.PreconditionsChecked(met=True),
        machine.HandlerEnded("init", None),
    ]
    for event in [*start, *events]:
        transition = machine.advance(state, event, NOW)
        state, commands = transition.state, list(transition.commands)
    return state, commands


def started(commands: list[machine.Command]) -> list[int]:
    return [command.position for command in commands if isinstance(command, machine.StartStep)]


def test_ready_steps_start_in_source_order_up_to_the_limit() -> None:
    plan = plan_of("name: c, run: x", "name: a, run: x", "name: b, run: x")
    assert started(play(plan, [])[1]) == [0, 1, 2]
    assert started(play(plan, [], max_active=2)[1]) == [0, 1]
    assert started(play(plan, [machine.StepEnded(1, GOOD)], max_active=2)[1]) == [2]


def test_the_delay_after_a_launch_holds_back_the_next() -> None:
    plan = plan_of("name: a, run: x", "name: b, run: x")
    state, commands = play(plan, [], delay_s=5.0)
    assert commands == [machine.StartStep(0, is_first=True), machine.Delay(5.0)]
    assert started(list(machine.advance(state, machine.DelayOver(), NOW).commands)) == [1]


def test_of_two_unmet_dependencies_the_failed_one_decides() -> None:
    plan = plan_of("name: s, run: x", "name: f, run: x", "name: c, run: x, depends: [s, f]")
    skipped = Outcome(result=Result.SKIPPED)
    state, _ = play(plan, [machine.StepEnded(0, skipped)])
    assert state.nodes[2].status is StepStatus.NOT_STARTED, "it is decided when all are terminal"
    state = machine.advance(state, machine.StepEnded(1, BAD), NOW).state
    assert state.nodes[2].status is StepStatus.ABORTED


def test_a_repetition_counts_executions_and_not_tries() -> None:
    plan = plan_of("name: a, run: x, repeat_policy: {repeat: true, limit: 2, interval_sec: 0}")
    once_more = Policy(limit=1)
    loop = Policy(limit=2)
    failed = Outcome(result=Result.FAILED, exit_code=1, retry=once_more, repeat=loop, repeat_met=False)
    good = Outcome(result=Result.SUCCEEDED, exit_code=0, retry=once_more, repeat=loop, repeat_met=True)
    events: list[machine.Event] = [machine.StepEnded(0, failed), machine.PauseOver(0), machine.StepEnded(0, good)]
    state, commands = play(plan, events)
    assert commands == [machine.Pause(0, 0.0)], "one execution of two is done"
    assert (state.nodes[0].retry_count, state.nodes[0].done_count) == (1, 1)


@pytest.mark.parametrize("result", [Result.TIMED_OUT, Result.ABORTED, Result.SKIPPED])
def test_only_a_failure_is_tried_again(result: Result) -> None:
    plan = plan_of("name: a, run: x")
    outcome = Outcome(result=result, retry=Policy(limit=9))
    _, commands = play(plan, [machine.StepEnded(0, outcome)])
    assert not [command for command in commands if isinstance(command, machine.Pause)]


@pytest.mark.parametrize(
    ("policy", "pauses"),
    [
        (Policy(interval_s=3), [3, 3, 3]),
        (Policy(interval_s=3, backoff=2.0), [3, 6, 12]),
        (Policy(interval_s=3, backoff=2.0, max_interval_s=7), [3, 6, 7]),
        (Policy(interval_s=0, backoff=2.0), [0, 0, 0]),
    ],
)
def test_the_pause_before_a_retry_grows_to_its_cap(policy: Policy, pauses: list[float]) -> None:
    assert [policy.pause_s(n) for n in range(3)] == pauses


@pytest.mark.parametrize("backoff", [1.5, 2.0, 10.0, 1e9])
def test_a_backoff_never_overflows(backoff: float) -> None:
    assert Policy(interval_s=1, backoff=backoff, max_interval_s=60).pause_s(10**6) == 60
    assert Policy(interval_s=1, backoff=backoff).pause_s(10**6) > 0


def test_zero_retries_are_none() -> None:
    assert not retry.retries(Policy(limit=0), done=0, exit_code=1)


def test_an_event_that_comes_late_changes_nothing() -> None:
    plan = plan_of("name: a, run: x")
    success, exits = machine.HandlerEnded("success", None), machine.HandlerEnded("exit", None)
    state, commands = play(plan, [machine.StepEnded(0, GOOD), success, exits])
    assert commands == [machine.End()]
    assert state.status is RunStatus.SUCCEEDED
    for late in (machine.Started(), machine.StopRequested(), machine.TimedOut()):
        assert machine.advance(state, late, NOW) == machine.Transition(state)


def chain(count: int) -> Plan:
    text = "type: chain\nsteps:\n" + "".join(f"  - {{name: s{n}, run: x}}\n" for n in range(count))
    return make_plan(load_definition(text).main)


def time_of(plan: Plan) -> float:
    begun = time.process_time()
    state, _ = play(plan, [machine.StepEnded(position, GOOD) for position in range(len(plan.steps))])
    assert state.phase is machine.Phase.OUTCOME
    return time.process_time() - begun


def test_a_long_chain_costs_in_proportion_to_its_length() -> None:
    """Each event copies the tuple of nodes, which is cheap; searching them would be sixteen times as dear."""
    short, long = chain(250), chain(1000)
    assert min(time_of(long) for _ in range(3)) < 10 * min(time_of(short) for _ in range(3))


def test_a_failure_at_the_head_of_a_long_chain_aborts_it_all_at_once() -> None:
    plan = chain(3000)
    state, commands = play(plan, [machine.StepEnded(0, BAD)])
    assert {node.status for node in state.nodes[1:]} == {StepStatus.ABORTED}
    assert commands == [machine.StartHandler("failure")]
