"""Shapes have the keys of the REST reference, whatever a worker's document holds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from secure_dagu.dispatch.operating import FoundRun
from secure_dagu.web.api import shapes_dags, shapes_machines, shapes_runs
from secure_dagu.web.api.shapes import Pagination, encoded, page_of

REFERENCE = """
Pagination: totalRecords currentPage totalPages nextPage prevPage
DAGFile: fileName dag latestDAGRun nextRun suspended errors
DAG: name group schedule description params defaultParams labels tags queue runConfig resources
Schedule: kind expression at profile
ParamDefShape: name type default description required enum minimum maximum minLength maxLength pattern
StepShape: name id description dir commands script stdout stderr output depends call params parallel repeatPolicy \
mailOnError preconditions timeoutSec executorConfig router approval humanTask
ConditionShape: condition eval expected negate error matched
DAGRunSummary: dagRunId name status statusLabel queuedAt scheduleTime startedAt finishedAt autoRetryCount \
autoRetryLimit artifactsAvailable params profileName workerId triggerType triggerActor conditions labels tags noReuse
DAGRunDetails: rootDAGRunName rootDAGRunId parentDAGRunName parentDAGRunId log nodes onInit onExit onSuccess \
onFailure onAbort onWait preconditions sourceFileName
Node: step stdout stderr startedAt finishedAt status statusLabel retryCount doneCount subRuns subRunsRepeated error
RunCondition: type status reason message checkedAt
Queue: name type maxConcurrency runningCount queuedCount running
Worker: id labels totalPollers busyPollers runningTasks lastHeartbeatAt healthStatus identity certNotAfter tlsVersion \
remoteAddress version connectedSince state
RunningTaskShape: dagRunId dagName startedAt rootDagRunName rootDagRunId parentDagRunName parentDagRunId
"""


@pytest.mark.parametrize("line", REFERENCE.strip().splitlines())
def test_shapes_have_the_keys_of_the_reference(line: str) -> None:
    name, _, keys = line.partition(": ")
    places: list[Any] = [shapes_runs, shapes_dags, shapes_machines]
    shape = Pagination if name == "Pagination" else next(getattr(p, name) for p in places if hasattr(p, name))
    assert set(keys.split()) <= set(TypeAdapter(shape).json_schema().get("properties") or {}) | set(
        shape.__annotations__
    )


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"status": "4", "labels": "a", "nodes": {"x": 1}, "root": 7, "params": [], "startedAt": 5},
        {"status": 99, "nodes": [1, None, {"status": -1, "step": "x"}], "onExit": {"step": None}, "triggerType": "x"},
        {"name": "\ud800", "dagRunId": "../x", "nodes": [{"step": {"name": "a/b?c", "timeout": "x"}, "stdout": "/p"}]},
    ],
)
def test_a_document_of_any_content_has_its_shape(document: dict[str, Any]) -> None:
    shape = shapes_runs.details(FoundRun(document=document), api="/api/v1")
    TypeAdapter(shapes_runs.DAGRunDetails).validate_python(shape)
    assert b"/p" not in encoded(shape).replace(b"/api", b"")


def test_a_page_behind_the_end_is_empty() -> None:
    items, pagination = page_of([1, 2, 3], page=9, per_page=2)
    assert list(items) == []
    assert pagination == {"totalRecords": 3, "currentPage": 9, "totalPages": 2, "nextPage": 2, "prevPage": 8}


def test_a_grid_has_a_row_for_each_step_and_a_column_for_each_run() -> None:
    def run(**steps: int) -> dict[str, Any]:
        return {"nodes": [{"step": {"name": name}, "status": status} for name, status in steps.items()]}

    assert shapes_runs.grid([run(a=4, b=2), run(a=1)]) == [
        {"name": "a", "history": [4, 1]},
        {"name": "b", "history": [2, 0]},
    ]
