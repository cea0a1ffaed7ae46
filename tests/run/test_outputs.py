"""The run outputs of a finished run."""

from __future__ import annotations

from typing import Any

import pytest

from secure_dagu.run.outputs import lower_camel, outputs_document

RUN: dict[str, Any] = {
    "name": "demo", "dagRunId": "r1", "attemptId": "a1", "status": 6, "finishedAt": "2026-01-02T03:04:05Z",
    "params": "who=bob",
}  # fmt: skip


def node(status: int = 4, kind: str = "", **published: Any) -> dict[str, Any]:
    return {
        "step": {"name": "s", **({"executorConfig": {"type": kind}} if kind else {})},
        "status": status,
        **published,
    }


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("RESULT", "result"), ("MY_RESULT", "myResult"), ("result", "result"), ("myResult", "myResult"),
        ("A1_B", "a1B"), ("_X", "x"), ("_", "_"),
    ],
)  # fmt: skip
def test_a_variable_becomes_an_output_in_lower_camel_case(name: str, key: str) -> None:
    assert lower_camel(name) == key


def test_outputs_are_those_of_steps_that_succeeded() -> None:
    nodes = [
        node(outputVariables={"MY_RESULT": "MY_RESULT=a=b"}),
        node(outputsValue='{"n": [1], "myResult": "later"}'),
        node(2, outputVariables={"FAILED": "FAILED=x"}),
        node(kind="dag", outputsValue='{"OF_THE_CHILD": "x"}', outputVariables={"R": "R={}"}),
    ]
    document = outputs_document({**RUN, "nodes": nodes})
    assert document == {
        "metadata": {
            "dagName": "demo", "dagRunId": "r1", "attemptId": "a1", "status": "partially_succeeded",
            "completedAt": "2026-01-02T03:04:05Z", "params": "who=bob",
        },
        "outputs": {"myResult": "later", "n": [1], "r": "{}"},
    }  # fmt: skip


def test_a_run_without_outputs_has_no_document() -> None:
    assert outputs_document({**RUN, "nodes": [node(), node(2, outputVariables={"A": "A=1"})]}) is None
