"""What the run page says of a document: steps, reasons for waiting, what people are asked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dispatch.operating import Condition, FoundRun, Waiting
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.web.pages.run_views import reasons, run_view

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def _condition(kind: str, reason: str, message: str) -> Condition:
    return Condition(type=kind, status="False", reason=reason, message=message, checked_at=NOW)


def test_a_pair_of_conditions_becomes_one_sentence_with_what_to_do() -> None:
    found = reasons(
        [
            _condition("Runnable", Waiting.NO_MATCHING_WORKER, "The DAG-run cannot start because …"),
            _condition("WorkerReady", Waiting.NO_MATCHING_WORKER, "No healthy worker matches gpu=true."),
        ]
    )
    assert [reason.message for reason in found] == ["No healthy worker matches gpu=true."]
    assert "worker_selector" in found[0].next_step


def test_every_reason_has_a_next_step() -> None:
    for waiting in Waiting:
        assert reasons([_condition("Runnable", waiting, "x")])[0].next_step


def test_a_waiting_approval_asks_for_its_inputs() -> None:
    document = {
        "name": "d", "dagRunId": "r", "status": int(RunStatus.WAITING),
        "nodes": [{"step": {"name": "ok?", "approval": {"prompt": "Go?", "input": ["a", "b"], "required": ["b"]}},
                   "status": int(StepStatus.WAITING)}],
    }  # fmt: skip
    asked = run_view(FoundRun(document=document)).steps[0].asked
    assert asked is not None
    assert asked.kind == "approval"
    assert [(field.name, field.is_required) for field in asked.fields] == [("a", False), ("b", True)]


def test_a_human_task_is_a_typed_form() -> None:
    form = {
        "type": "object", "required": ["n"],
        "properties": {"n": {"type": "integer", "title": "How many"}, "ok": {"type": "boolean", "default": True},
                       "c": {"enum": ["x", "y"]}},
    }  # fmt: skip
    document = {
        "name": "d", "dagRunId": "r", "status": int(RunStatus.WAITING),
        "nodes": [{"step": {"name": "t", "humanTask": {"prompt": "?", "form": form}},
                   "status": int(StepStatus.WAITING)}],
    }  # fmt: skip
    asked = run_view(FoundRun(document=document)).steps[0].asked
    assert asked is not None
    assert [(field.label, field.kind) for field in asked.fields] == [
        ("How many", "number"), ("ok", "boolean"), ("c", "choice")
    ]  # fmt: skip
    assert asked.fields[1].default == "true"


def test_a_step_is_told_by_its_first_line() -> None:
    nodes = [
        {"step": {"name": "a", "commands": [{"cmdWithArgs": "\n  echo hi\nexit 1"}]}},
        {"step": {"name": "b", "childDag": {"name": "other"}}, "children": [{"dagRunId": "c1"}]},
    ]
    view = run_view(FoundRun(document={"name": "d", "dagRunId": "r", "status": 4, "nodes": nodes}))
    assert [step.execution for step in view.steps] == ["echo hi", "calls other"]
    assert view.steps[1].children[0].name == "other"


_ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["step", "status", "nodes", "name", "approval", "humanTask", "form", "properties", "children", "startedAt",
         "commands", "executorConfig", "preconditions", "parent", "root", "labels", "input"]), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["nodes", "status", "root", "parent", "onExit", "labels", "name"]), _ANY))
def test_a_document_of_any_shape_is_shown(document: dict[str, Any]) -> None:
    run_view(FoundRun(document=document))
