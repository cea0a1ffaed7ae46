"""A run retried from its status document: what stays, what runs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.dispatch.model import Operation
from secure_dagu.run.model import RunStatus
from tests.runner.harness import run

TEXT = """
params: [{name: who, default: nobody}]
steps:
  - {name: a, id: a, output: O, run: "echo a >> ran; echo $who"}
  - {name: b, depends: a, run: "echo b >> ran; test -e fixed"}
  - {name: c, depends: b, run: "echo c:$O >> ran"}
  - {name: d, run: "echo d >> ran; test -e fixed"}
"""


async def first(base: Path) -> str:
    seen = await run(TEXT, base, params="who=bob")
    assert seen.nodes() == {"a": "succeeded", "b": "failed", "c": "aborted", "d": "failed"}
    (base / "work" / "ran").unlink()
    return seen.final_text


def ran(base: Path) -> list[str]:
    return sorted((base / "work" / "ran").read_text().split())


async def again(base: Path, before: str, **changes: Any) -> Any:
    return await run(TEXT, base, operation=Operation.RETRY, previous_status=before, attempt="a2", **changes)


async def test_what_failed_and_what_never_ran_is_run_again(tmp_path: Path) -> None:
    before = await first(tmp_path)
    (tmp_path / "work" / "fixed").touch()
    seen = await again(tmp_path, before)
    assert ran(tmp_path) == ["b", "c:bob", "d"], "parameters and outputs of the first attempt stay"
    assert seen.status is RunStatus.SUCCEEDED
    assert seen.details()["a"]["skippedByRetry"] is True
    assert seen.final["createdAt"] == json.loads(before)["createdAt"]
    assert seen.final["attemptId"] == "a2"


async def test_one_step_is_run_again_and_the_others_keep_their_results(tmp_path: Path) -> None:
    before = await first(tmp_path)
    (tmp_path / "work" / "fixed").touch()
    seen = await again(tmp_path, before, step="b")
    assert ran(tmp_path) == ["b"]
    assert seen.nodes() == {"a": "succeeded", "b": "succeeded", "c": "aborted", "d": "failed"}
    assert seen.status is RunStatus.FAILED


async def test_one_step_is_run_again_with_what_follows_it(tmp_path: Path) -> None:
    before = await first(tmp_path)
    (tmp_path / "work" / "fixed").touch()
    await again(tmp_path, before, step="b", include_downstream=True)
    assert ran(tmp_path) == ["b", "c:bob"]


async def test_a_retry_of_one_step_leaves_alone_what_never_started(tmp_path: Path) -> None:
    """After a worker's crash, steps are still `not_started` or `running` in the last document."""
    document = json.loads(await first(tmp_path))
    document["nodes"][2]["status"], document["nodes"][3]["status"] = 0, 1
    (tmp_path / "work" / "fixed").touch()
    await again(tmp_path, json.dumps(document), step="b")
    assert ran(tmp_path) == ["b"]


@pytest.mark.parametrize(
    "before",
    [
        "",
        "no json",
        "[]",
        '{"nodes": 5}',
        '{"nodes": [5, {"step": {"name": "a"}}, {"step": {"name": "a"}, "status": 99}]}',
    ],
)
async def test_a_document_that_makes_no_sense_keeps_nothing(tmp_path: Path, before: str) -> None:
    await again(tmp_path, before)
    assert ran(tmp_path) == ["a", "b", "d"]


async def test_published_values_of_the_wrong_form_are_dropped(tmp_path: Path) -> None:
    document = json.loads(await first(tmp_path))
    document["nodes"][0] |= {"outputVariables": [1], "outputsValue": "no json", "stepOutputsValue": "[]", "children": 3}
    (tmp_path / "work" / "fixed").touch()
    seen = await again(tmp_path, json.dumps(document))
    assert ran(tmp_path) == ["b", "c:", "d"]
    assert seen.status is RunStatus.SUCCEEDED


async def test_a_step_that_is_not_there_cannot_be_retried(tmp_path: Path) -> None:
    seen = await again(tmp_path, await first(tmp_path), step="nosuch")
    assert seen.status is RunStatus.FAILED
    assert "nosuch" in seen.final["error"]
