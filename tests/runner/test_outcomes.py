"""What a workflow amounts to: the table of outcomes (workflow language, appendix A.4) and the rules around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.harness import Children, child_result, run, run_and_stop

DIAMOND = """
steps:
  - {name: a, run: "true"}
  - {name: b, run: exit 3, depends: a%s}
  - {name: c, run: "true", depends: b}
  - {name: d, run: "true"}
"""
HANDLERS = """
handler_on:
  init: {run: %s}
  success: {run: %s}
  failure: {run: "true"}
  abort: {run: "true"}
  exit: {run: "true"}
"""
UNMET = "preconditions: [{condition: x, expected: y}]"


@pytest.mark.parametrize(
    ("text", "nodes", "status"),
    [
        pytest.param(
            DIAMOND % "",
            {"a": "succeeded", "b": "failed", "c": "aborted", "d": "succeeded"},
            RunStatus.FAILED,
            id="a failure aborts what depends on it and nothing else",
        ),
        pytest.param(
            DIAMOND % ", continue_on: failed",
            {"a": "succeeded", "b": "failed", "c": "succeeded", "d": "succeeded"},
            RunStatus.PARTIALLY_SUCCEEDED,
            id="an accepted failure",
        ),
        pytest.param(
            DIAMOND % ", continue_on: {exit_code: [2, 3]}",
            {"a": "succeeded", "b": "failed", "c": "succeeded", "d": "succeeded"},
            RunStatus.PARTIALLY_SUCCEEDED,
            id="an accepted exit code",
        ),
        pytest.param(
            DIAMOND % ", continue_on: {exit_code: 4}",
            {"a": "succeeded", "b": "failed", "c": "aborted", "d": "succeeded"},
            RunStatus.FAILED,
            id="another exit code is not accepted",
        ),
        pytest.param(
            DIAMOND % ", continue_on: {failure: true, mark_success: true}",
            {"a": "succeeded", "b": "succeeded", "c": "succeeded", "d": "succeeded"},
            RunStatus.SUCCEEDED,
            id="a failure marked as success",
        ),
        pytest.param(
            "steps: [{name: a, run: exit 1, continue_on: failed}]",
            {"a": "failed"},
            RunStatus.FAILED,
            id="an accepted failure without any success",
        ),
        pytest.param(
            "steps: [{name: a, run: echo it is no use; exit 1, continue_on: {output: 're:no .se$'}}, "
            "{name: b, run: 'true', depends: a}]",
            {"a": "failed", "b": "succeeded"},
            RunStatus.PARTIALLY_SUCCEEDED,
            id="a failure accepted by what it printed",
        ),
        pytest.param(
            f"steps: [{{name: a, run: 'true', {UNMET}}}, {{name: b, run: 'true', depends: a}}]",
            {"a": "skipped", "b": "skipped"},
            RunStatus.SUCCEEDED,
            id="a skip is passed on",
        ),
        pytest.param(
            f"steps: [{{name: a, run: 'true', continue_on: skipped, {UNMET}}}, {{name: b, run: 'true', depends: a}}]",
            {"a": "skipped", "b": "succeeded"},
            RunStatus.SUCCEEDED,
            id="an accepted skip",
        ),
        pytest.param(
            f"{UNMET}{HANDLERS % ('echo', 'echo')}steps: [{{name: a, run: 'true'}}]",
            {"a": "not_started", "onAbort": "succeeded", "onExit": "succeeded"},
            RunStatus.ABORTED,
            id="an unmet precondition of the DAG",
        ),
        pytest.param(
            f"{HANDLERS % ('exit 1', 'echo')}steps: [{{name: a, run: 'true'}}]",
            {"a": "not_started", "onInit": "failed", "onAbort": "succeeded", "onExit": "succeeded"},
            RunStatus.ABORTED,
            id="a failed init handler",
        ),
        pytest.param(
            f"{HANDLERS % ('echo', 'exit 2')}steps: [{{name: a, run: 'true'}}]",
            {"a": "succeeded", "onInit": "succeeded", "onSuccess": "failed", "onExit": "succeeded"},
            RunStatus.FAILED,
            id="a failed success handler",
        ),
        pytest.param(
            f"{HANDLERS % ('echo', 'echo')}steps: [{{name: a, run: exit 1}}]",
            {"a": "failed", "onInit": "succeeded", "onFailure": "succeeded", "onExit": "succeeded"},
            RunStatus.FAILED,
            id="a failure has its handler",
        ),
        pytest.param("steps: []", {}, RunStatus.SUCCEEDED, id="no steps at all"),
        pytest.param(
            "steps: [{name: a, action: noop}, {name: b, action: log.write, with: {message: hi}}]",
            {"a": "succeeded", "b": "succeeded"},
            RunStatus.SUCCEEDED,
            id="actions without a process",
        ),
        pytest.param(
            "steps: [{name: a, run: kill -KILL $$}]", {"a": "failed"}, RunStatus.FAILED, id="a step killed by a signal"
        ),
    ],
)
async def test_a_workflow_amounts_to(tmp_path: Path, text: str, nodes: dict[str, str], status: RunStatus) -> None:
    seen = await run(text, tmp_path)
    assert seen.nodes() == nodes
    assert seen.status is status


async def test_a_stop_aborts_what_runs_and_what_waits(tmp_path: Path) -> None:
    seen = await run_and_stop(
        "handler_on: {abort: {run: echo $DAG_RUN_STATUS}, exit: {run: echo bye, preconditions: ['test 1 = 1']}}\n"
        "steps: [{name: a, run: echo ready; sleep 60}, {name: b, run: 'true', depends: a}]",
        tmp_path,
    )
    assert seen.nodes() == {"a": "aborted", "b": "aborted", "onAbort": "succeeded", "onExit": "succeeded"}
    assert seen.status is RunStatus.ABORTED
    assert seen.out("onAbort") == "aborted\n"


async def test_a_step_that_ends_well_in_spite_of_a_stop_has_succeeded(tmp_path: Path) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01 || :; done"
    seen = await run_and_stop(f'steps: [{{name: a, run: "{script}"}}, {{name: b, run: "true", depends: a}}]', tmp_path)
    assert seen.nodes() == {"a": "succeeded", "b": "aborted"}
    assert seen.status is RunStatus.ABORTED
    assert seen.out("a") == "ready\nbye\n"


async def test_a_step_may_choose_its_stop_signal(tmp_path: Path) -> None:
    script = "trap 'echo got-int; exit 0' INT; trap '' TERM; echo ready; while :; do sleep 0.01 || :; done"
    seen = await run_and_stop(
        f'max_clean_up_time_sec: 15\nsteps: [{{name: a, signal_on_stop: SIGINT, run: "{script}"}}]', tmp_path
    )
    assert seen.out("a").endswith("got-int\n")


async def test_a_stop_ends_a_handler_too_and_the_exit_handler_still_runs(tmp_path: Path) -> None:
    seen = await run_and_stop(
        "handler_on: {success: {run: echo ready; sleep 60}, exit: {run: echo bye}}\nsteps: [{name: a, run: 'true'}]",
        tmp_path,
        step="onSuccess",
    )
    assert seen.nodes() == {"a": "succeeded", "onSuccess": "aborted", "onExit": "succeeded"}
    assert seen.status is RunStatus.ABORTED


async def test_a_stop_ends_the_wait_before_a_retry(tmp_path: Path) -> None:
    text = "steps: [{name: a, run: echo ready; exit 1, retry_policy: {limit: 3, interval_sec: 3600}}]"
    seen = await run_and_stop(text, tmp_path)
    assert (seen.nodes(), seen.status) == ({"a": "aborted"}, RunStatus.ABORTED)


async def test_a_step_that_takes_too_long_fails_with_124_and_is_not_retried(tmp_path: Path) -> None:
    text = "steps: [{name: a, run: sleep 60, timeout_sec: 1, retry_policy: {limit: 3, interval_sec: 0}}]"
    seen = await run(text, tmp_path)
    node = seen.details()["a"]
    assert (node["word"], node.get("retryCount")) == ("failed", None)
    assert "timed out" in node["error"]


async def test_the_timeout_of_a_dag_spares_its_handlers(tmp_path: Path) -> None:
    seen = await run(
        "timeout_sec: 1\nhandler_on: {failure: {run: echo f}, exit: {run: echo x}}\n"
        "steps: [{name: a, run: sleep 60}, {name: b, run: 'true', depends: a}]",
        tmp_path,
    )
    assert seen.nodes() == {"a": "aborted", "b": "aborted", "onFailure": "succeeded", "onExit": "succeeded"}
    assert seen.status is RunStatus.FAILED


async def test_the_timeout_of_a_dag_ends_its_init_handler(tmp_path: Path) -> None:
    seen = await run("timeout_sec: 1\nhandler_on: {init: {run: sleep 60}}\nsteps: [{name: a, run: echo}]", tmp_path)
    assert seen.nodes() == {"a": "not_started", "onInit": "aborted"}
    assert seen.status is RunStatus.FAILED


async def test_a_failed_step_is_tried_again_and_its_log_is_appended_to(tmp_path: Path) -> None:
    text = (
        "steps: [{name: a, output: O, run: 'echo try; echo x >> n; test $(wc -l < n) -ge 3', "
        "retry_policy: {limit: 5, interval_sec: 0}}]"
    )
    seen = await run(text, tmp_path)
    node = seen.details()["a"]
    assert (node["word"], node["retryCount"], node["doneCount"]) == ("succeeded", 2, 1)
    assert seen.out("a") == "try\n" * 3
    assert node["outputVariables"] == {"O": "O=try"}, "what counts is the last attempt"


async def test_only_listed_exit_codes_are_tried_again(tmp_path: Path) -> None:
    text = "steps: [{name: a, run: echo t; exit 2, retry_policy: {limit: 5, interval_sec: 0, exit_code: [3]}}]"
    seen = await run(text, tmp_path)
    assert seen.out("a") == "t\n"


async def test_a_handler_is_tried_again(tmp_path: Path) -> None:
    text = (
        "handler_on: {exit: {run: 'test -f x || { touch x; exit 1; }', retry_policy: {limit: 1, interval_sec: 0}}}\n"
        "steps: [{name: a, run: 'true'}]"
    )
    seen = await run(text, tmp_path)
    assert seen.details()["onExit"]["retryCount"] == 1
    assert seen.status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("policy", "times"),
    [
        ("repeat: true, limit: 3", 3),
        ("repeat: until, exit_code: [0], limit: 9", 4),
        ("repeat: while, condition: 'test $(wc -l < n) -lt 5', exit_code: [0]", 5),
        ("repeat: until, condition: $O, expected: '2'", 2),
    ],
)
async def test_a_step_is_repeated(tmp_path: Path, policy: str, times: int) -> None:
    exit_code = "test $(wc -l < n) -ge 4" if "until, exit_code" in policy else "true"
    text = (
        f"steps: [{{name: a, output: O, run: 'echo x >> n; wc -l < n; {exit_code}', "
        f"repeat_policy: {{interval_sec: 0, {policy}}}}}]"
    )
    seen = await run(text, tmp_path)
    assert seen.details()["a"]["doneCount"] == times
    assert seen.status is RunStatus.SUCCEEDED


async def test_no_more_steps_run_than_the_dag_allows(tmp_path: Path) -> None:
    # Each step holds a lock while it runs; with one at a time nobody ever finds it taken.
    step = "mkdir held || exit 9; sleep 0.01; rmdir held"
    steps = ", ".join(f"{{name: s{n}, run: '{step}'}}" for n in range(6))
    seen = await run(f"max_active_steps: 1\nsteps: [{steps}]", tmp_path)
    assert set(seen.nodes().values()) == {"succeeded"}


async def test_steps_without_dependencies_run_side_by_side(tmp_path: Path) -> None:
    # Each waits for the other: one after the other, they would never end.
    text = (
        "steps: [{name: a, run: 'mkfifo p; echo x > p'}, {name: b, run: 'until test -p p; do sleep 0.01; done; cat p'}]"
    )
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("precondition", "word"),
    [
        ("test 1 = 1", "succeeded"),
        ("test 1 = 2", "skipped"),
        ("{condition: $WHO, expected: bob}", "succeeded"),
        ("{condition: $WHO, expected: 're:^b.b$'}", "succeeded"),
        ("{condition: $WHO, expected: alice}", "skipped"),
        ("{condition: $WHO, expected: alice, negate: true}", "succeeded"),
        ("{eval: '`echo bob`', expected: bob}", "succeeded"),
        ("{eval: '`exit 1`', expected: bob}", "failed"),
    ],
)
async def test_a_precondition_decides_whether_a_step_runs(tmp_path: Path, precondition: str, word: str) -> None:
    text = f"env: [WHO: bob]\nsteps: [{{name: a, run: 'true', preconditions: [{precondition}]}}]"
    seen = await run(text, tmp_path)
    assert seen.nodes() == {"a": word}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("steps: [{name: a, run: x, depends: b}, {name: b, run: x, depends: a}]", "cyclic"),
        ("steps: [", "yaml"),
        ("secrets: [{name: S, provider: env, key: NOPE}]\nsteps: [{name: a, run: x}]", "NOPE"),
        ("params: [{name: n, type: integer}]\nsteps: [{name: a, run: x}]", "cannot coerce"),
    ],
)
async def test_a_run_that_cannot_be_set_up_fails_before_any_step(tmp_path: Path, text: str, fragment: str) -> None:
    params = "n=x" if "integer" in text else ""
    seen = await run(text, tmp_path, params=params)
    assert seen.status is RunStatus.FAILED
    assert fragment in seen.final["error"]
    assert not [name for name in seen.logs if name.startswith("a.")]


@pytest.mark.parametrize(
    ("step", "fragment"),
    [
        ('{name: a, run: ["echo ${params.p}"]}', "line break"),
        ("{name: a, run: echo, with: {shell: sh, shell_args: [-cecho]}}", "-cecho"),
        ("{name: a, action: dag.run, with: {dag: nosuch}}", "failed to find DAG"),
        ("{name: a, run: 'echo x=1 > $DAGU_OUTPUT_FILE'}", "undeclared step output"),
        ("{name: a, id: a, run: 'true', outputs: [{name: v}]}", "not emitted"),
        ("{name: a, run: 'true', retry_policy: {limit: '${params.p}', interval_sec: 1}}", "retry_policy.limit"),
        ("{name: a, action: exec, with: {command: /nonexistent/program}}", "No such file"),
        ("{name: a, run: 'true', working_dir: /proc/nope}", ""),
        ("{name: a, run: 'rm $DAGU_OUTPUT_FILE; ln -s /etc/passwd $DAGU_OUTPUT_FILE'}", "output file"),
    ],
)
async def test_what_a_step_cannot_do_fails_the_step_and_not_the_run(tmp_path: Path, step: str, fragment: str) -> None:
    """An executor's error once ended the whole run as a crash, without its handlers."""
    text = f'params: [{{name: p, default: "x\\ny"}}]\nhandler_on: {{failure: {{run: echo}}}}\nsteps: [{step}]'
    seen = await run(text, tmp_path)
    assert seen.nodes() == {"a": "failed", "onFailure": "succeeded"}
    assert fragment in seen.details()["a"]["error"]


async def test_a_fan_out_with_one_bad_child_fails_after_all_have_ended(tmp_path: Path) -> None:
    children = Children(texts={"kid": "steps: [{name: s, run: echo}]"})
    children.end = lambda request: child_result(RunStatus.FAILED if request.params == "2" else RunStatus.SUCCEEDED)
    text = "steps: [{name: a, action: dag.run, with: {dag: kid}, parallel: ['1', '2', '3']}]"
    seen = await run(text, tmp_path, children=children)
    assert len(children.requests) == 3
    assert seen.nodes() == {"a": "failed"}
    assert "parallel execution failed with 1 errors" in seen.details()["a"]["error"]
