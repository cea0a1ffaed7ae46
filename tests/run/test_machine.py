"""How one attempt advances: the workflow language's rules with values, and what they cost."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import pytest
from msgspec.structs import replace

from secure_dagu.dag.plan import Plan
from secure_dagu.run import machine
from secure_dagu.run.machine import HANDLER_NODES, NodeState, Outcome, Phase, Result, new_run, overall, reset_positions
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.retry import Policy
from tests.run.driver import ABORTED, BAD, GOOD, NOW, SKIPPED, TIMED_OUT, Drive, plan_of

HANDLERS = "handler_on: {" + ", ".join(f"{name}: {{run: x}}" for name in HANDLER_NODES) + "}\n"
PARTIAL = Outcome(result=Result.PARTIAL, exit_code=0)
AGAIN = Policy(limit=2, interval_s=3)


# ── what a workflow amounts to (appendix A.4) ────────────────────────────────────────────────────────────────────────

B = "name: b, run: x, depends: a"
ABCD = ("name: a, run: x", "{b}", "name: c, run: x, depends: b", "name: d, run: x")
OUTCOMES: list[tuple[str, tuple[str, ...], dict[str, Outcome], str, RunStatus]] = [
    ("a failure aborts what is behind it only", (ABCD[0], B, *ABCD[2:]), {"b": BAD},
     "a succeeded, b failed, c aborted, d succeeded", RunStatus.FAILED),
    ("an accepted failure", (ABCD[0], f"{B}, continue_on: failed", *ABCD[2:]), {"b": BAD},
     "a succeeded, b failed, c succeeded, d succeeded", RunStatus.PARTIALLY_SUCCEEDED),
    ("a failure marked as success", (ABCD[0], f"{B}, continue_on: {{failure: true, mark_success: true}}", *ABCD[2:]),
     {"b": BAD}, "a succeeded, b succeeded, c succeeded, d succeeded", RunStatus.SUCCEEDED),
    ("an accepted failure and no success", ("name: a, run: x, continue_on: failed",), {"a": BAD},
     "a failed", RunStatus.FAILED),
    ("a skipped step skips what is behind it", (ABCD[0], B), {"a": SKIPPED}, "a skipped, b skipped",
     RunStatus.SUCCEEDED),
    ("a skip that is accepted", ("name: a, run: x, continue_on: skipped", B), {"a": SKIPPED},
     "a skipped, b succeeded", RunStatus.SUCCEEDED),
    ("a step timeout", ("name: a, run: x",), {"a": TIMED_OUT}, "a failed", RunStatus.FAILED),
    ("an accepted step timeout", ("name: a, run: x, continue_on: {exit_code: 124}", B), {"a": TIMED_OUT},
     "a failed, b succeeded", RunStatus.PARTIALLY_SUCCEEDED),
    ("an exit code that is not accepted", ("name: a, run: x, continue_on: {exit_code: [2, 3]}", B), {"a": BAD},
     "a failed, b aborted", RunStatus.FAILED),
    ("an accepted line of output", ("name: a, run: x, continue_on: {output: fine}", B),
     {"a": replace(BAD, output_matches=True)}, "a failed, b succeeded", RunStatus.PARTIALLY_SUCCEEDED),
    ("a partial success satisfies", (ABCD[0], B), {"a": PARTIAL}, "a partially_succeeded, b succeeded",
     RunStatus.PARTIALLY_SUCCEEDED),
    ("a step whose child was aborted", (ABCD[0], B), {"a": ABORTED}, "a aborted, b aborted", RunStatus.FAILED),
    ("an aborted child beside an accepted failure",
     ("name: a, run: x", "name: b, run: x, continue_on: failed", "name: c, run: x"), {"b": BAD, "c": ABORTED},
     "a succeeded, b failed, c aborted", RunStatus.FAILED),
    ("failure and skip go all the way down", (ABCD[0], B, ABCD[2], "name: e, run: x, depends: c"), {"a": BAD},
     "a failed, b aborted, c aborted, e aborted", RunStatus.FAILED),
    ("all good", (ABCD[0], B), {}, "a succeeded, b succeeded", RunStatus.SUCCEEDED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "outcomes", "nodes", "status"), [pytest.param(*row[1:], id=row[0]) for row in OUTCOMES]
)
def test_a_workflow_amounts_to(
    steps: tuple[str, ...], outcomes: Mapping[str, Outcome], nodes: str, status: RunStatus
) -> None:
    drive = Drive(plan_of(*steps, head=HANDLERS), {name: [outcome] for name, outcome in outcomes.items()}).finish()
    assert ", ".join(f"{name} {word}" for name, word in drive.words().items()) == nodes
    assert drive.state.status is status
    ends_with = "success" if status.is_success else "failure"
    assert drive.handlers == ["init", ends_with, "exit"]
    assert (drive.state.started_at, drive.state.finished_at) == (NOW, NOW)
    unaccepted = [node for node in drive.state.nodes if node.error and not node.is_accepted]
    assert bool(drive.state.error) is bool(unaccepted)


def statuses(*words: StepStatus, accepted: bool = False, **changes: bool) -> RunStatus:
    plan = plan_of(*(f"name: s{n}, run: x" for n in range(len(words) or 1)))
    nodes = tuple(NodeState(status=word, is_accepted=accepted and word is StepStatus.FAILED) for word in words)
    return overall(replace(new_run(plan), nodes=nodes, **changes))


def test_the_first_rule_that_matches_decides() -> None:
    """Section 5.3, from its top."""
    ok, failed, skipped, part = (
        StepStatus.SUCCEEDED,
        StepStatus.FAILED,
        StepStatus.SKIPPED,
        StepStatus.PARTIALLY_SUCCEEDED,
    )
    rejected, waiting, aborted = StepStatus.REJECTED, StepStatus.WAITING, StepStatus.ABORTED
    assert statuses(ok, is_timed_out=True, is_stopping=True) is RunStatus.FAILED
    assert statuses(ok, aborted, rejected, is_stopping=True) is RunStatus.ABORTED
    assert statuses(ok, part, is_stopping=True) is RunStatus.PARTIALLY_SUCCEEDED, "the stop came after the work"
    assert statuses(ok, skipped, is_stopping=True) is RunStatus.SUCCEEDED
    assert statuses(failed, rejected, waiting) is RunStatus.REJECTED
    assert statuses(failed, waiting) is RunStatus.WAITING
    assert statuses(ok, failed) is RunStatus.FAILED
    assert statuses(ok, failed, accepted=True) is RunStatus.PARTIALLY_SUCCEEDED
    assert statuses(part, skipped) is RunStatus.PARTIALLY_SUCCEEDED
    assert statuses(skipped, failed, accepted=True) is RunStatus.FAILED
    assert statuses(skipped, skipped) is RunStatus.SUCCEEDED
    assert statuses() is RunStatus.SUCCEEDED, "no nodes"


def test_a_run_names_the_step_that_failed_it() -> None:
    drive = Drive(plan_of("name: a, run: x, continue_on: failed", "name: b, run: x"), {"a": [BAD], "b": [BAD]}).finish()
    assert drive.state.error == "b: exit status 1"


def test_an_accepted_failure_keeps_its_error_and_a_marked_one_loses_it() -> None:
    accepted = "name: a, run: x, continue_on: failed"
    marked = "name: b, run: x, continue_on: {failure: true, mark_success: true}"
    nodes = Drive(plan_of(accepted, marked), {"a": [BAD], "b": [BAD]}).finish().state.nodes
    assert [(node.error, node.is_accepted, node.exit_code) for node in nodes] == [
        ("exit status 1", True, 1),
        ("", False, 1),
    ]


# ── before the steps ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_goes_through_preconditions_and_init_before_its_steps() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS))
    assert drive.take(machine.Started()) == (machine.CheckPreconditions(),)
    assert drive.state.status is RunStatus.RUNNING
    assert drive.answer() == (machine.StartHandler("init"),)
    assert drive.answer() == (machine.StartStep(0, is_first=True),)
    assert drive.answer() == (machine.StartHandler("success"),)
    assert drive.answer() == (machine.StartHandler("exit"),)
    assert drive.answer() == (machine.End(),)
    assert drive.state.running == 0


def test_a_setup_that_fails_ends_the_run_before_anything_ran() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS))
    assert drive.take(machine.SetupFailed("no secret")) == (machine.StartHandler("failure"),)
    drive.finish()
    assert (drive.state.status, drive.state.error, drive.words()) == (
        RunStatus.FAILED,
        "no secret",
        {"a": "not_started"},
    )
    assert drive.handlers == ["failure", "exit"]
    assert drive.state.started_at == NOW


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.NEW])
def test_a_setup_cannot_fail_once_the_run_has_begun(phase: Phase) -> None:
    drive = Drive(plan_of("name: a, run: x")).until(phase)
    assert machine.advance(drive.state, machine.SetupFailed("late"), NOW) == machine.Transition(drive.state)


@pytest.mark.parametrize(
    ("answer", "status", "error", "handler"),
    [
        (machine.PreconditionsChecked(met=False), RunStatus.ABORTED, "", "abort"),
        (machine.PreconditionsChecked(met=False, error="bad regex"), RunStatus.FAILED, "bad regex", "failure"),
    ],
)
def test_preconditions_of_the_dag_decide_before_init(
    answer: machine.PreconditionsChecked, status: RunStatus, error: str, handler: str
) -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS))
    drive.take(machine.Started())
    drive.owed.clear()
    drive.take(answer)
    drive.finish()
    assert (drive.state.status, drive.state.error, drive.handlers) == (status, error, [handler, "exit"])
    assert drive.words() == {"a": "not_started"}


@pytest.mark.parametrize("outcome", [BAD, TIMED_OUT, ABORTED])
def test_an_init_handler_that_fails_aborts_the_run_and_no_step_starts(outcome: Outcome) -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"init": [outcome]}).finish()
    assert (drive.state.status, drive.handlers) == (RunStatus.ABORTED, ["init", "abort", "exit"])
    assert drive.words() == {"a": "not_started"}
    assert drive.state.error == f"init handler failed: {outcome.error}"


@pytest.mark.parametrize("outcome", [GOOD, PARTIAL, SKIPPED])
def test_an_init_handler_that_is_skipped_or_good_lets_the_steps_start(outcome: Outcome) -> None:
    assert Drive(plan_of("name: a, run: x", head=HANDLERS), {"init": [outcome]}).finish().started == ["a"]


# ── order, limits, delays ────────────────────────────────────────────────────────────────────────────────────────────


def test_ready_steps_start_in_source_order_up_to_the_limit() -> None:
    plan = plan_of("name: c, run: x", "name: a, run: x", "name: b, run: x, depends: c", "name: d, run: x")
    assert Drive(plan).until(Phase.STEPS).started == ["c", "a", "d"]
    drive = Drive(plan, max_active=2).until(Phase.STEPS)
    assert drive.started == ["c", "a"]
    assert drive.answer() == (machine.StartStep(2, is_first=True),), "the freed place goes to the first in the source"


def test_a_step_that_pauses_keeps_its_place() -> None:
    plan = plan_of("name: a, run: x", "name: b, run: x")
    drive = Drive(plan, {"a": [replace(BAD, retry=AGAIN)]}, max_active=1).until(Phase.STEPS)
    assert drive.answer() == (machine.Pause(0, 3),)
    assert drive.state.nodes[0].status is StepStatus.RUNNING
    assert drive.finish().started == ["a", "a", "b"]


def test_each_launch_is_followed_by_the_delay_while_anything_is_left_to_start() -> None:
    drive = Drive(plan_of("name: a, run: x", "name: b, run: x", "name: c, run: x, depends: b"), delay_s=5.0)
    drive.until(Phase.STEPS)
    assert list(drive.owed) == [machine.StartStep(0, is_first=True), machine.Delay(5.0)]
    assert drive.answer() == (), "a place is free, but the delay holds"
    assert drive.answer() == (machine.StartStep(1, is_first=True), machine.Delay(5.0))
    assert drive.answer() == (), "c is ready, but b has just been launched"
    assert drive.answer() == (machine.StartStep(2, is_first=True),), "nothing is left to hold back"
    assert drive.finish().state.status is RunStatus.SUCCEEDED


def test_the_delay_takes_no_place_and_its_end_gives_none() -> None:
    drive = Drive(plan_of("name: a, run: x", "name: b, run: x", "name: c, run: x"), delay_s=5.0, max_active=2)
    drive.until(Phase.STEPS)
    drive.owed.rotate(-1)
    assert drive.answer() == (machine.StartStep(1, is_first=True), machine.Delay(5.0)), "one runs, one place is free"
    drive.owed.rotate(-2)
    assert drive.answer() == (), "the delay is over, but both places are taken"
    assert drive.answer() == (machine.StartStep(2, is_first=True),)


def test_of_two_unmet_dependencies_the_failed_one_decides() -> None:
    for first, second in (("s", "f"), ("f", "s")):
        plan = plan_of("name: s, run: x", "name: f, run: x", f"name: c, run: x, depends: [{first}, {second}]")
        drive = Drive(plan, {"s": [SKIPPED], "f": [BAD]}).until(Phase.STEPS)
        drive.answer()
        assert drive.words()["c"] == "not_started", "it is decided when all are terminal"
        drive.answer()
        assert drive.words()["c"] == "aborted"


def test_a_step_that_never_ran_has_an_end_and_no_start() -> None:
    node = Drive(plan_of("name: a, run: x", B), {"a": [BAD]}).finish().state.nodes[1]
    assert (node.status, node.started_at, node.finished_at) == (StepStatus.ABORTED, None, NOW)


# ── retry and repeat ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failure_is_tried_again_up_to_the_limit() -> None:
    failing = replace(BAD, retry=Policy(limit=2, interval_s=3, backoff=2.0))
    drive = Drive(plan_of("name: a, run: x"), {"a": [failing] * 9}).finish()
    node = drive.state.nodes[0]
    assert (drive.pauses, len(drive.started)) == ([3, 6], 3)
    assert (node.status, node.retry_count, node.retried_at, node.done_count) == (StepStatus.FAILED, 2, NOW, 1)


def test_a_retry_that_succeeds_leaves_no_error() -> None:
    drive = Drive(plan_of("name: a, run: x", B), {"a": [replace(BAD, retry=AGAIN)]}).finish()
    assert drive.words() == {"a": "succeeded", "b": "succeeded"}
    assert (drive.state.nodes[0].error, drive.state.nodes[0].exit_code, drive.state.error) == ("", 0, "")


def test_only_the_first_execution_checks_preconditions() -> None:
    drive = Drive(plan_of("name: a, run: x"), {"a": [replace(BAD, retry=AGAIN)]}).until(Phase.STEPS)
    assert list(drive.owed) == [machine.StartStep(0, is_first=True)]
    drive.answer()
    assert drive.answer() == (machine.StartStep(0, is_first=False),)


@pytest.mark.parametrize("outcome", [TIMED_OUT, ABORTED, SKIPPED])
def test_only_a_failure_is_tried_again(outcome: Outcome) -> None:
    """Nor is what a timeout, a stop or a precondition says followed by a repetition."""
    plan = plan_of("name: a, run: x, repeat_policy: {repeat: until, exit_code: [0], interval_sec: 0}")
    never = replace(outcome, retry=AGAIN, repeat=Policy(), repeat_met=False)
    assert Drive(plan, {"a": [never]}).finish().pauses == []


@pytest.mark.parametrize(
    ("policy", "outcomes", "executions", "status"),
    [
        ("repeat: true, limit: 3", [(GOOD, True)] * 9, 3, StepStatus.SUCCEEDED),
        ("repeat: true, limit: 3", [(GOOD, True), (BAD, False)], 2, StepStatus.FAILED),
        ("repeat: while, exit_code: [1], limit: 9", [(BAD, True), (BAD, True), (GOOD, False)], 3, StepStatus.SUCCEEDED),
        ("repeat: while, exit_code: [1], limit: 2", [(BAD, True)] * 9, 2, StepStatus.FAILED),
        ("repeat: while, condition: c, limit: 9", [(GOOD, True), (GOOD, False)], 2, StepStatus.SUCCEEDED),
        ("repeat: while, condition: c, limit: 9", [(BAD, True), (GOOD, False)], 2, StepStatus.SUCCEEDED),
        ("repeat: while, condition: c, limit: 3", [(BAD, True)] * 9, 3, StepStatus.FAILED),
        ("repeat: until, condition: c, limit: 9", [(BAD, False), (BAD, False), (GOOD, True)], 3, StepStatus.SUCCEEDED),
        ("repeat: until, exit_code: [0], limit: 2", [(BAD, False)] * 9, 2, StepStatus.FAILED),
        ("repeat: until, condition: c", [(PARTIAL, False), (PARTIAL, True)], 2, StepStatus.PARTIALLY_SUCCEEDED),
    ],
)
def test_a_step_is_repeated(
    policy: str, outcomes: Sequence[tuple[Outcome, bool]], executions: int, status: StepStatus
) -> None:
    limit = 0 if "limit" not in policy else int(policy[-1])
    plan = plan_of(f"name: a, run: x, repeat_policy: {{{policy}, interval_sec: 4}}")
    loop = Policy(limit=limit, interval_s=4)
    played = [replace(outcome, repeat=loop, repeat_met=met) for outcome, met in outcomes]
    drive = Drive(plan, {"a": played}).finish()
    node = drive.state.nodes[0]
    assert (len(drive.started), node.status, node.done_count) == (executions, status, executions)
    assert drive.pauses == [4] * (executions - 1)


def test_a_repetition_counts_executions_and_not_tries() -> None:
    plan = plan_of("name: a, run: x, repeat_policy: {repeat: true, limit: 2, interval_sec: 0}")
    loop = Policy(limit=2)
    failed = replace(BAD, retry=AGAIN, repeat=loop, repeat_met=False)
    good = replace(GOOD, retry=AGAIN, repeat=loop, repeat_met=True)
    drive = Drive(plan, {"a": [failed, good, good]}).finish()
    assert (drive.pauses, drive.state.nodes[0].retry_count, drive.state.nodes[0].done_count) == ([3, 0], 1, 2)


def test_what_the_last_execution_published_is_what_a_step_publishes() -> None:
    """Except for its children, which it told of while it ran."""
    plan = plan_of("name: a, run: x, repeat_policy: {repeat: true, limit: 2, interval_sec: 0}")
    first = replace(
        GOOD, repeat=Policy(limit=2), repeat_met=True, published={"outputValue": "old", "outputsValue": "{}"}
    )
    drive = Drive(plan).until(Phase.STEPS)
    drive.take(machine.Changed(0, {"children": [1]}))
    drive.answer(first)
    drive.answer()
    drive.answer(replace(BAD, published={"outputValue": "new"}))
    assert drive.state.nodes[0].published == {"children": [1], "outputValue": "new"}


# ── stop and timeout ─────────────────────────────────────────────────────────────────────────────────────────────────

TWO = ("name: a, run: x", B)


def test_a_stop_aborts_what_runs_and_what_waits() -> None:
    drive = Drive(plan_of(*TWO, "name: c, run: x", head=HANDLERS), max_active=1).until(Phase.STEPS)
    assert drive.take(machine.StopRequested()) == (machine.StopRunning(),)
    assert drive.words() == {"a": "running", "b": "aborted", "c": "aborted"}
    drive.answer(ABORTED)
    drive.finish()
    assert (drive.words()["a"], drive.state.status) == ("aborted", RunStatus.ABORTED)
    assert (drive.started, drive.handlers, drive.state.error) == (["a"], ["init", "abort", "exit"], "")


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (GOOD, "succeeded"),
        (PARTIAL, "partially_succeeded"),
        (BAD, "aborted"),
        (TIMED_OUT, "aborted"),
        (SKIPPED, "aborted"),
    ],
)
def test_only_a_step_that_ends_well_in_spite_of_a_stop_is_not_aborted(outcome: Outcome, word: str) -> None:
    drive = Drive(plan_of(*TWO)).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    drive.answer(replace(outcome, retry=AGAIN))
    assert (drive.words(), drive.pauses) == ({"a": word, "b": "aborted"}, [])
    assert drive.finish().state.status is RunStatus.ABORTED


def test_a_stop_that_comes_when_every_step_has_ended_well_does_not_abort() -> None:
    drive = Drive(plan_of("name: a, run: x")).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    drive.answer(GOOD)
    assert drive.finish().state.status is RunStatus.SUCCEEDED


def test_a_stop_before_the_start_checks_and_starts_nothing() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS))
    assert drive.take(machine.StopRequested()) == ()
    assert drive.take(machine.Started()) == (machine.StartHandler("abort"),)
    drive.finish()
    assert (drive.state.status, drive.handlers, drive.state.error) == (RunStatus.ABORTED, ["abort", "exit"], "")


@pytest.mark.parametrize("error", ["", "the check was killed"])
def test_a_stop_during_the_preconditions_aborts_whatever_they_say(error: str) -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS)).until(Phase.PRECONDITIONS)
    assert drive.take(machine.StopRequested()) == (machine.StopRunning(),)
    drive.owed.clear()
    drive.take(machine.PreconditionsChecked(met=not error, error=error))
    drive.finish()
    assert (drive.state.status, drive.handlers, drive.state.error) == (RunStatus.ABORTED, ["abort", "exit"], "")


@pytest.mark.parametrize("outcome", [GOOD, ABORTED, BAD])
def test_a_stop_during_init_aborts_and_is_no_failure_of_init(outcome: Outcome) -> None:
    """A stopped run exits with 0, one whose init handler failed with 1."""
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS)).until(Phase.INIT)
    assert drive.take(machine.StopRequested()) == (machine.StopRunning(),)
    drive.answer(replace(outcome, retry=AGAIN))
    drive.finish()
    assert (drive.state.status, drive.handlers) == (RunStatus.ABORTED, ["init", "abort", "exit"])
    assert (drive.state.error, drive.started, drive.pauses) == ("", [], [])


def test_a_stop_ends_the_pause_of_a_step() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"a": [replace(BAD, retry=AGAIN)]}).until(Phase.STEPS)
    drive.answer()
    assert drive.take(machine.StopRequested()) == (machine.StopRunning(),)
    assert drive.answer() == (machine.StartHandler("abort"),)
    assert (drive.words(), drive.started) == ({"a": "aborted"}, ["a"])
    assert drive.state.nodes[0].retry_count == 1


@pytest.mark.parametrize(
    ("event", "status"), [(machine.StopRequested(), RunStatus.ABORTED), (machine.TimedOut(), RunStatus.FAILED)]
)
def test_the_pause_of_init_ends_with_the_run(event: machine.Event, status: RunStatus) -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"init": [replace(BAD, retry=AGAIN)]}).until(Phase.INIT)
    drive.answer()
    drive.take(event)
    drive.answer()
    assert drive.state.handlers["init"].status is StepStatus.ABORTED
    drive.finish()
    assert (drive.state.status, drive.started, drive.handlers[0], drive.handlers[-1]) == (status, [], "init", "exit")


def test_a_stop_ends_the_delay_and_nothing_starts_after_it() -> None:
    drive = Drive(plan_of("name: a, run: x", "name: b, run: x"), delay_s=5.0).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    drive.answer(ABORTED)
    assert drive.state.phase is Phase.STEPS, "the delay still owes its end"
    assert drive.answer() == (machine.StartHandler("abort"),)
    assert drive.started == ["a"]


def test_a_stop_during_the_outcome_handler_ends_it_and_the_exit_handler_still_runs() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS)).until(Phase.OUTCOME)
    assert drive.take(machine.StopRequested()) == (machine.StopRunning(),)
    assert drive.answer(replace(ABORTED, retry=AGAIN)) == (machine.StartHandler("exit"),)
    drive.finish()
    assert (drive.state.status, drive.handlers[-2:]) == (RunStatus.ABORTED, ["success", "exit"])
    assert drive.state.handlers["success"].status is StepStatus.ABORTED


def test_a_stop_that_the_outcome_handler_survives_changes_nothing() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS)).until(Phase.OUTCOME)
    drive.take(machine.StopRequested())
    assert drive.finish().state.status is RunStatus.SUCCEEDED


def test_a_handler_after_a_stop_pauses_and_tries_again_as_ever() -> None:
    plan = plan_of("name: a, run: x", head=HANDLERS)
    drive = Drive(plan, {"abort": [replace(BAD, retry=AGAIN)], "a": [ABORTED]}).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    drive.finish()
    assert (drive.handlers, drive.pauses) == (["init", "abort", "abort", "exit"], [3])
    assert drive.state.status is RunStatus.ABORTED


def test_a_timeout_of_the_dag_fails_the_run_and_gives_its_handlers_a_fresh_start() -> None:
    drive = Drive(plan_of(*TWO, head=HANDLERS), {"failure": [replace(BAD, retry=AGAIN)]}).until(Phase.STEPS)
    assert drive.take(machine.TimedOut()) == (machine.StopRunning(),)
    drive.answer(ABORTED)
    assert drive.state.phase is Phase.OUTCOME
    assert drive.take(machine.TimedOut()) == (), "the handlers' time is their own"
    drive.finish()
    assert (drive.words(), drive.state.status) == ({"a": "aborted", "b": "aborted"}, RunStatus.FAILED)
    assert drive.handlers == ["init", "failure", "failure", "exit"], "and so are their retries"
    assert drive.state.error == "the DAG timed out"
    assert drive.state.handlers["failure"].status is StepStatus.SUCCEEDED


@pytest.mark.parametrize("phase", [Phase.NEW, Phase.PRECONDITIONS, Phase.INIT])
def test_a_timeout_before_the_steps_fails_the_run_and_no_step_starts(phase: Phase) -> None:
    drive = Drive(plan_of(*TWO, head=HANDLERS))
    if phase is not Phase.NEW:
        drive.until(phase)
    drive.take(machine.TimedOut())
    drive.finish()
    assert (drive.state.status, drive.state.error, drive.started) == (RunStatus.FAILED, "the DAG timed out", [])
    assert drive.handlers[-2:] == ["failure", "exit"]


def test_what_comes_first_of_stop_and_timeout_decides() -> None:
    """Cleaning up after a stop may take longer than the run's time; that does not make it a failure."""
    for first, second, status in (
        (machine.StopRequested(), machine.TimedOut(), RunStatus.ABORTED),
        (machine.TimedOut(), machine.StopRequested(), RunStatus.FAILED),
    ):
        drive = Drive(plan_of(*TWO), {"a": [ABORTED]}).until(Phase.STEPS)
        drive.take(first)
        drive.take(second)
        assert drive.finish().state.status is status


# ── lifecycle handlers ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["success", "exit"])
def test_a_handler_that_fails_turns_the_run_failed_and_later_ones_still_run(name: str) -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {name: [replace(BAD, exit_code=2)]}).finish()
    assert (drive.state.status, drive.words()) == (RunStatus.FAILED, {"a": "succeeded"})
    assert drive.handlers == ["init", "success", "exit"]
    assert drive.state.handlers[name].status is StepStatus.FAILED
    assert drive.state.error == f"handler {HANDLER_NODES[name]} failed: exit status 1"


def test_the_abort_handler_that_fails_turns_a_stopped_run_failed() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"abort": [BAD], "a": [ABORTED]}).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    assert drive.finish().state.status is RunStatus.FAILED


def test_the_first_error_of_a_run_stays_when_its_handler_fails_too() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"a": [BAD], "failure": [BAD]}).finish()
    assert drive.state.error == "a: exit status 1"


def test_a_handler_that_is_aborted_without_a_stop_has_failed() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"success": [ABORTED]}).finish()
    assert drive.state.status is RunStatus.FAILED


@pytest.mark.parametrize("outcome", [BAD, TIMED_OUT])
def test_a_handlers_failure_may_be_accepted(outcome: Outcome) -> None:
    def head(more: str) -> str:
        return f"handler_on: {{success: {{run: x, continue_on: {{failure: true{more}}}}}}}\n"

    drive = Drive(plan_of("name: a, run: x", head=head("")), {"success": [outcome]}).finish()
    assert (drive.state.status, drive.state.handlers["success"].status) == (RunStatus.SUCCEEDED, StepStatus.FAILED)
    drive = Drive(plan_of("name: a, run: x", head=head(", mark_success: true")), {"success": [outcome]}).finish()
    assert (drive.state.status, drive.state.handlers["success"].status) == (RunStatus.SUCCEEDED, StepStatus.SUCCEEDED)
    assert drive.state.handlers["success"].error == ""


def test_a_handler_whose_precondition_is_not_met_is_skipped() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"success": [SKIPPED]}).finish()
    assert (drive.state.status, drive.state.handlers["success"].status) == (RunStatus.SUCCEEDED, StepStatus.SKIPPED)


def test_a_handler_is_tried_again_without_its_preconditions() -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS), {"success": [replace(BAD, retry=AGAIN)]})
    drive.until(Phase.OUTCOME)
    assert drive.answer() == (machine.Pause("success", 3),)
    assert drive.answer() == (machine.StartHandler("success", is_first=False),)
    drive.finish()
    assert (drive.state.status, drive.state.handlers["success"].retry_count) == (RunStatus.SUCCEEDED, 1)


@pytest.mark.parametrize("outcome", [GOOD, BAD, ABORTED, None])
def test_a_waiting_run_is_not_finished_and_has_no_exit_handler(outcome: Outcome | None) -> None:
    plan = plan_of("name: a, run: x", head=HANDLERS)
    waiting = replace(new_run(plan), phase=Phase.OUTCOME, status=RunStatus.WAITING, running=1, started_at=NOW)
    ended = machine.advance(machine.handler_started(waiting, "wait", NOW), machine.HandlerEnded("wait", outcome), NOW)
    assert ended.commands == (machine.End(),)
    assert (ended.state.status, ended.state.finished_at, ended.state.running) == (RunStatus.WAITING, None, 0)


# ── a retry of a run ─────────────────────────────────────────────────────────────────────────────────────────────────

DIAMOND = plan_of(
    "name: a, run: x",
    "name: b, run: x, depends: a",
    "name: c, run: x, depends: a",
    "name: d, run: x, depends: [b, c]",
    "name: e, run: x",
)
OK, NO, SKIP, STOP, NEVER = (
    StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.ABORTED, StepStatus.NOT_STARTED
)  # fmt: skip


@pytest.mark.parametrize(
    ("previous", "options", "again"),
    [
        ((OK, NO, OK, STOP, OK), {}, {1, 3}),
        ((NO, OK, OK, OK, OK), {}, {0, 1, 2, 3}),
        ((OK, SKIP, StepStatus.PARTIALLY_SUCCEEDED, OK, OK), {}, set()),
        ((OK, OK, OK, OK, StepStatus.REJECTED), {}, {4}),
        ((OK, OK, StepStatus.RETRYING, NEVER, StepStatus.WAITING), {}, {2, 3, 4}),
        ((NEVER,) * 5, {}, {0, 1, 2, 3, 4}),
        ((OK, NO, OK, STOP, NO), {"step": "b"}, {1}),
        ((OK, NO, OK, STOP, NO), {"step": "b", "include_downstream": True}, {1, 3}),
        ((OK, OK, OK, OK, OK), {"step": "a", "include_downstream": True}, {0, 1, 2, 3}),
        ((OK, OK, OK, OK, OK), {"step": "d", "include_downstream": True}, {3}),
    ],
)
def test_which_steps_a_retry_of_a_run_executes_again(
    previous: Sequence[StepStatus], options: dict[str, Any], again: set[int]
) -> None:
    assert reset_positions(DIAMOND, previous, **options) == again


def retried(previous: Sequence[StepStatus], outcomes: Mapping[str, Outcome] | None = None, **options: Any) -> Drive:
    again = reset_positions(DIAMOND, previous, **options)
    kept = {
        position: NodeState(status=status, is_kept=True, finished_at=NOW, published={"outputValue": "before"})
        for position, status in enumerate(previous)
        if position not in again
    }
    return Drive(DIAMOND, {name: [outcome] for name, outcome in (outcomes or {}).items()}, kept=kept).finish()


def test_a_retry_executes_what_failed_and_what_is_behind_it() -> None:
    drive = retried((OK, NO, OK, STOP, OK))
    assert (drive.started, drive.state.status) == (["b", "d"], RunStatus.SUCCEEDED)
    assert drive.state.nodes[0].published == {"outputValue": "before"}
    assert [node.is_kept for node in drive.state.nodes] == [True, False, True, False, True]


def test_a_retry_of_one_step_keeps_the_rest_even_what_failed() -> None:
    drive = retried((OK, NO, OK, STOP, NO), step="b")
    assert (drive.started, drive.state.status) == (["b"], RunStatus.FAILED)
    assert drive.words() == {"a": "succeeded", "b": "succeeded", "c": "succeeded", "d": "aborted", "e": "failed"}


def test_a_kept_failure_holds_back_what_is_behind_it_as_ever() -> None:
    """Downstream of `b` is `d`, but `d` also waits for `c`, which keeps its failure."""
    drive = retried((OK, NO, NO, STOP, OK), step="b", include_downstream=True)
    assert (drive.started, drive.words()["d"]) == (["b"], "aborted")
    drive = retried((OK, NO, OK, STOP, OK), step="d")
    assert (drive.started, drive.words()["d"]) == ([], "aborted")


def test_a_kept_skip_skips_what_is_behind_it_as_ever() -> None:
    """After a worker's crash, a step may be `not_started` although what it waits for was skipped."""
    drive = retried((OK, OK, SKIP, NEVER, OK))
    assert (drive.started, drive.words()["d"], drive.state.status) == ([], "skipped", RunStatus.SUCCEEDED)


def test_a_retry_with_nothing_to_do_ends_well() -> None:
    drive = retried((OK,) * 5)
    assert (drive.started, drive.state.status, drive.handlers) == ([], RunStatus.SUCCEEDED, [])


def test_a_stop_of_a_retried_run_leaves_kept_results() -> None:
    kept = {0: NodeState(status=OK, is_kept=True), 4: NodeState(status=NO, is_kept=True, is_accepted=True)}
    drive = Drive(DIAMOND, kept=kept).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    assert drive.words() == {"a": "succeeded", "b": "running", "c": "running", "d": "aborted", "e": "failed"}


# ── late events ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", [Phase.NEW, Phase.PRECONDITIONS, Phase.INIT, Phase.OUTCOME, Phase.EXIT, Phase.ENDED])
@pytest.mark.parametrize(
    "event",
    [
        machine.StepEnded(0, BAD),
        machine.Changed(0, {"children": []}),
        machine.PauseOver(0),
        machine.PauseOver("wait"),
        machine.HandlerEnded("wait", BAD),
        machine.DelayOver(),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_answer_that_nobody_waits_for_changes_nothing(phase: Phase, event: machine.Event) -> None:
    drive = Drive(plan_of("name: a, run: x", head=HANDLERS))
    if phase is not Phase.NEW:
        drive.until(phase)
    assert machine.advance(drive.state, event, NOW) == machine.Transition(drive.state)


def test_an_event_after_the_end_changes_nothing() -> None:
    state = Drive(plan_of("name: a, run: x")).finish().state
    for late in (
        machine.Started(), machine.StopRequested(), machine.TimedOut(), machine.PreconditionsChecked(met=False),
        machine.HandlerEnded("exit", None),
    ):  # fmt: skip
        assert machine.advance(state, late, NOW) == machine.Transition(state)


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines_run(drive: Drive) -> int:
    """Return how many lines of the machine and the plan a run executes; a loop counts each time round."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if "/secure_dagu/" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        drive.finish()
    finally:
        sys.settrace(before)
    assert drive.state.status is RunStatus.SUCCEEDED
    return count


def chain(length: int) -> Plan:
    return plan_of(*(f"name: s{n}, run: x" for n in range(length)), head="type: chain\n")


def test_a_chain_costs_in_proportion_to_its_length() -> None:
    short, long = lines_run(Drive(chain(100))), lines_run(Drive(chain(1000)))
    assert long < 10.5 * short
    assert long < 100 * 1000, "a step of a chain is not a hundred lines' work"


def test_a_thousand_steps_side_by_side_cost_no_more_than_in_a_chain() -> None:
    def fan(count: int) -> Plan:
        last = f"name: last, run: x, depends: [{', '.join(f's{n}' for n in range(count))}]"
        return plan_of(*(f"name: s{n}, run: x" for n in range(count)), last)

    for max_active in (0, 10):
        short, long = (lines_run(Drive(fan(count), max_active=max_active)) for count in (100, 1000))
        assert long < 10.5 * short


def test_a_failure_at_the_head_of_a_long_chain_aborts_it_all_at_once() -> None:
    drive = Drive(chain(3000), {"s0": [BAD]}).until(Phase.STEPS)
    assert drive.answer() == (machine.StartHandler("failure"),)
    assert {node.status for node in drive.state.nodes[1:]} == {StepStatus.ABORTED}
