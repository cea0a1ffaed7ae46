"""Runs that wait: for a person, for a child, for the scheduler; how they go on (workflow language, 3.25)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from secure_dagu.dispatch.model import Operation
from secure_dagu.errors import Conflict, DefinitionError, NotFound
from secure_dagu.run import forms, people
from secure_dagu.run.model import RunStatus
from tests.runner.harness import Children, Seen, child_result, run

AT = "2026-01-02T03:04:05Z"
TASK = """
handler_on:
  wait: {run: 'echo $DAG_WAITING_STEPS $DAG_RUN_STATUS'}
  exit: {run: "true"}
steps:
  - name: ask
    id: ask
    action: human.task
    with:
      prompt: Check ${context.run.id}
      form: {type: object, properties: {n: {type: integer}, who: {type: string, default: me}}, required: [n]}
  - {name: use, depends: ask, run: 'echo ${steps.ask.outputs.n} ${steps.ask.outputs.who}'}
  - {name: side, run: echo side}
"""
APPROVAL = """
handler_on: {failure: {run: echo no}, success: {run: echo yes}}
steps:
  - {name: draft, id: draft, output: D, run: 'echo "draft $DAG_PUSHBACK_ITERATION $note"'}
  - name: review
    depends: draft
    run: echo reviewed $D
    approval: {prompt: "Ok?", input: [ticket, note], required: [ticket], rewind_to: draft}
  - {name: ship, depends: review, run: echo shipped $ticket}
"""


def plan_of(text: str) -> Any:
    return make_plan(load_definition(text).main)


async def go_on(text: str, base: Path, document: dict[str, Any]) -> Seen:
    return await run(
        text, base, operation=Operation.RETRY, previous_status=json.dumps(document), attempt=f"a{len(str(document))}"
    )


async def test_a_run_waits_for_a_person_while_its_other_branches_finish(tmp_path: Path) -> None:
    seen = await run(TASK, tmp_path)
    assert seen.nodes() == {"ask": "waiting", "use": "not_started", "side": "succeeded", "onWait": "succeeded"}
    assert seen.status is RunStatus.WAITING
    assert seen.out("onWait") == "ask waiting\n"
    assert seen.details()["ask"]["step"]["humanTask"]["prompt"] == "Check run-1"
    assert people.waiting_steps(seen.final) == ["ask"]
    again = await go_on(TASK, tmp_path, seen.final)
    assert again.details()["ask"]["step"]["humanTask"] == seen.details()["ask"]["step"]["humanTask"], "asked as before"


async def test_a_completed_task_lets_the_run_go_on(tmp_path: Path) -> None:
    seen = await run(TASK, tmp_path)
    form = seen.details()["ask"]["step"]["humanTask"]["form"]
    values = forms.checked(form, {"n": "7"}, limit_bytes=100)
    document = people.complete(seen.final, "ask", values, by="ann", at=AT)
    assert document["status"] == RunStatus.QUEUED
    assert people.complete(document, "ask", values, by="bob", at=AT) == document, "twice the same is once"
    with pytest.raises(Conflict, match="different input"):
        people.complete(document, "ask", {"n": 8}, by="bob", at=AT)
    seen = await go_on(TASK, tmp_path, document)
    assert seen.nodes() == {"ask": "succeeded", "use": "succeeded", "side": "succeeded", "onExit": "succeeded"}
    assert seen.out("use") == "7 me\n"
    assert seen.out("side") == "side\n", "what has run does not run again"


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        ({}, "'n' is required"),
        ({"n": "x"}, "integer"),
        ({"n": 1, "z": 2}, "additional properties"),
        ({"n": 1, "who": "x" * 200}, "maximum size"),
    ],
)
def test_a_form_refuses_what_does_not_fit(given: dict[str, Any], fragment: str) -> None:
    form = {"type": "object", "properties": {"n": {"type": "integer"}, "who": {"type": "string"}}, "required": ["n"]}
    with pytest.raises(Exception, match=fragment):
        forms.checked(form, given, limit_bytes=100)


def test_a_task_without_a_form_takes_no_input() -> None:
    assert forms.checked(None, {}, limit_bytes=10) == {}
    with pytest.raises(DefinitionError, match="does not accept input"):
        forms.checked(None, {"a": "b"}, limit_bytes=10)


def test_typed_text_becomes_what_the_form_asks_for() -> None:
    form = {"properties": {"i": {"type": "integer"}, "f": {"type": "number"}, "b": {"type": "boolean"}, "s": {}}}
    given = {"i": "-3", "f": "2.5", "b": "true", "s": "1"}
    assert forms.checked(form, given, limit_bytes=100) == {"b": True, "f": 2.5, "i": -3, "s": "1"}


async def test_an_approved_step_gives_its_inputs_to_those_behind_it(tmp_path: Path) -> None:
    seen = await run(APPROVAL, tmp_path)
    assert seen.nodes() == {"draft": "succeeded", "review": "waiting", "ship": "not_started"}
    with pytest.raises(DefinitionError, match="'ticket' is required"):
        people.approve(seen.final, "review", {}, by="ann", at=AT)
    document = people.approve(seen.final, "review", {"ticket": "T-1"}, by="ann", at=AT)
    seen = await go_on(APPROVAL, tmp_path, document)
    assert seen.nodes() == {
        "draft": "succeeded", "review": "succeeded", "ship": "succeeded", "onSuccess": "succeeded",
    }  # fmt: skip
    assert seen.out("ship") == "shipped T-1\n"
    assert seen.details()["review"]["approvedBy"] == "ann"


async def test_a_rejected_step_ends_the_run(tmp_path: Path) -> None:
    document = people.reject((await run(APPROVAL, tmp_path)).final, "review", "ugly", by="ann", at=AT)
    seen = await go_on(APPROVAL, tmp_path, document)
    assert seen.nodes() == {"draft": "succeeded", "review": "rejected", "ship": "aborted", "onFailure": "succeeded"}
    assert seen.status is RunStatus.REJECTED
    assert seen.details()["review"]["rejectionReason"] == "ugly"


async def test_a_push_back_runs_the_steps_again_that_led_there(tmp_path: Path) -> None:
    document = (await run(APPROVAL, tmp_path)).final
    for iteration, note in ((1, "shorter"), (2, "longer")):
        document = people.push_back(document, plan_of(APPROVAL), "review", {"note": note}, by="ann", at=AT)
        seen = await go_on(APPROVAL, tmp_path, document)
        assert seen.nodes() == {"draft": "succeeded", "review": "waiting", "ship": "not_started"}
        assert seen.out("draft").splitlines()[-1] == f"draft {iteration} {note}"
        document = seen.final
    node = seen.details()["review"]
    assert node["approvalIteration"] == 2
    assert [entry["inputs"] for entry in node["pushBackHistory"]] == [{"note": "shorter"}, {"note": "longer"}]
    assert node["pushBackPreviousStdout"].endswith("review.stdout.log")


def test_what_a_pushed_back_step_is_told() -> None:
    history = [{"iteration": 1, "by": "ann", "at": AT, "inputs": {"k": "v"}}]
    published = {"approvalIteration": 1, "pushBackInputs": {"k": "v"}, "pushBackHistory": history}
    told = people.pushback_variables(published)
    assert told["k"] == "v"
    assert json.loads(told["DAG_PUSHBACK"]) == {**history[0], "history": history}
    assert people.pushback_context(published) == {"pushback.iteration": "1"}
    assert people.pushback_variables({}) == {}


@pytest.mark.parametrize(("step", "error"), [("nosuch", NotFound), ("draft", Conflict), ("ship", Conflict)])
async def test_only_a_step_that_waits_can_be_decided(tmp_path: Path, step: str, error: type[Exception]) -> None:
    document = (await run(APPROVAL, tmp_path)).final
    with pytest.raises(error, match=step):
        people.approve(document, step, {}, by="ann", at=AT)
    with pytest.raises(Conflict, match="not waiting"):
        people.approve({**document, "status": int(RunStatus.SUCCEEDED)}, "review", {}, by="ann", at=AT)


async def test_a_step_waits_with_its_child(tmp_path: Path) -> None:
    children = Children(texts={"kid": "steps: [{name: s, run: echo}]"})
    children.end = lambda request: child_result(RunStatus.WAITING)
    text = "steps: [{name: a, action: dag.run, with: {dag: kid}}, {name: b, depends: a, run: echo}]"
    seen = await run(text, tmp_path, children=children)
    assert (seen.nodes(), seen.status) == ({"a": "waiting", "b": "not_started"}, RunStatus.WAITING)
    children.end = lambda request: child_result(RunStatus.SUCCEEDED)
    document = {**seen.final, "status": int(RunStatus.QUEUED)}
    seen = await run(
        text, tmp_path, children=children, operation=Operation.RETRY, previous_status=json.dumps(document), attempt="a2"
    )
    assert seen.nodes() == {"a": "succeeded", "b": "succeeded"}


async def test_a_retry_may_be_left_to_the_scheduler(tmp_path: Path) -> None:
    text = """
handler_on: {exit: {run: "true"}}
steps:
  - {name: a, run: 'echo x >> n; test $(wc -l < n) -ge 3', retry_policy: {limit: 5, interval_sec: 60, backoff: 2}}
  - {name: b, depends: a, run: "true"}
  - {name: c, run: echo c >> m}
"""
    seen = await run(text, tmp_path, external_step_retry=True)
    assert seen.nodes()["a"] == "retrying"
    assert seen.status is RunStatus.QUEUED
    assert seen.final["pendingStepRetries"] == [{"stepName": "a", "interval": "1m0s"}]
    for interval in ("2m0s", None):
        seen = await run(
            text, tmp_path, external_step_retry=True, operation=Operation.RETRY, previous_status=seen.final_text,
            attempt=f"a{interval}",
        )  # fmt: skip
        pending = seen.final["pendingStepRetries"]
        assert pending == ([{"stepName": "a", "interval": interval}] if interval else None)
    assert seen.nodes() == {"a": "succeeded", "b": "succeeded", "c": "succeeded", "onExit": "succeeded"}
    assert seen.details()["a"]["retryCount"] == 2
    assert (tmp_path / "work" / "m").read_text() == "c\n"
