"""Sub-DAG calls: which child is asked for, what its end means, what the step publishes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from secure_dagu.errors import Unavailable
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.runner.api import ChildRequest, ChildResult
from secure_dagu.runner.executors.dag_run import child_id
from secure_dagu.runner.runner import execute
from tests.runner.harness import RUN, Children, Seen, child_result, make_request, run

KID = "params: [{name: p, default: d}]\nsteps: [{name: s, run: 'true'}]"


@pytest.mark.parametrize(
    ("step", "dag", "params", "expected"),
    [
        ("call1", "childdag", "", "4WygwDbUsbpUVumvuZ7t1K2i9Pf8bCZipThjRsQAoFtu"),
        ("call2", "inline-child", 'X="5"', "DD42qQVK9uLgGkRF6CzLFM2VWSSgNK55LiBZ2c35DT6X"),
    ],
)
def test_a_childs_id_is_derived_as_the_protocol_says(step: str, dag: str, params: str, expected: str) -> None:
    assert child_id(parent=DagRunRef("any", "rrun1"), step=step, dag=dag, params=params) == expected


async def test_a_child_is_asked_for_and_its_outputs_are_read(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID})
    children.end = lambda request: child_result(RunStatus.SUCCEEDED, RESULT="42")
    text = """
steps:
  - {name: a, id: a, action: dag.run, with: {dag: kid, params: p=1}}
  - {name: b, depends: a, run: 'echo ${a.outputs.RESULT}'}
"""
    seen = await run(text, tmp_path, children=children)
    assert seen.out("b") == "42\n"
    (request,) = children.requests
    assert (request.dag, request.params, request.definition) == ("kid", "p=1", KID)
    assert (request.parent, request.root) == (RUN, RUN)
    assert request.run_id == child_id(parent=RUN, step="a", dag="kid", params="p=1")
    printed = json.loads(seen.out("a"))
    assert printed == {
        "name": "kid",
        "dagRunId": request.run_id,
        "params": "p=1",
        "outputs": {"RESULT": "42"},
        "status": "succeeded",
    }
    (child,) = seen.details()["a"]["children"]
    assert child == {"dagRunId": request.run_id, "params": "p=1", "dagName": "kid"}


async def test_a_local_document_is_found_by_name_and_sent_with_those_that_it_may_call(tmp_path: Path) -> None:
    text = """
steps: [{name: a, action: dag.run, with: {dag: one}}]
---
name: two
steps: [{name: s, run: "true"}]
---
name: one
worker_selector: {gpu: "yes"}
steps: [{name: s, action: dag.run, with: {dag: two}}]
"""
    children = Children()
    seen = await run(text, tmp_path, children=children)
    assert seen.status is RunStatus.SUCCEEDED
    (request,) = children.requests
    assert request.definition.index("name: one") < request.definition.index("name: two")
    assert request.worker_selector == {"gpu": "yes"}


@pytest.mark.parametrize(
    ("child", "step"),
    [
        (RunStatus.SUCCEEDED, "succeeded"),
        (RunStatus.PARTIALLY_SUCCEEDED, "partially_succeeded"),
        (RunStatus.FAILED, "failed"),
        (RunStatus.ABORTED, "failed"),
    ],
)
async def test_a_childs_end_is_the_steps_end(tmp_path: Path, child: RunStatus, step: str) -> None:
    children = Children(texts={"kid": KID})
    children.end = lambda request: child_result(child)
    seen = await run("steps: [{name: a, action: dag.run, with: {dag: kid}}]", tmp_path, children=children)
    assert seen.nodes() == {"a": step}


async def test_a_child_that_cannot_be_dispatched_fails_its_step(tmp_path: Path) -> None:
    def unreachable(request: ChildRequest) -> ChildResult:
        raise Unavailable("no available workers")

    children = Children(texts={"kid": KID})
    children.end = unreachable
    text = "steps: [{name: a, action: dag.run, with: {dag: kid}}]"
    seen = await run(text, tmp_path, children=children)
    assert seen.nodes() == {"a": "failed"}
    assert "no available workers" in seen.details()["a"]["error"]


async def test_a_fan_out_has_a_child_for_each_distinct_item(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID})
    children.end = lambda request: child_result(RunStatus.SUCCEEDED, R=request.params)
    text = """
steps:
  - name: a
    action: dag.run
    with: {dag: kid, params: "p=${ITEM}"}
    parallel: {items: [x, y, x, z], max_concurrent: 2}
"""
    seen = await run(text, tmp_path, children=children)
    assert [request.params for request in children.requests] == ["p=x", "p=y", "p=z"]
    assert [request.parallel_item for request in children.requests] == ["x", "y", "z"]
    printed = json.loads(seen.out("a"))
    assert printed["summary"] == {"total": 3, "succeeded": 3, "failed": 0}
    assert printed["outputs"] == [{"R": "p=x"}, {"R": "p=y"}, {"R": "p=z"}]


async def test_the_result_of_a_call_is_printed_to_the_byte(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID})
    node = {"step": {"name": "s"}, "status": 4, "outputVariables": {"A": "A=<1>"}, "outputsValue": '{"n":[1]}'}
    children.end = lambda request: ChildResult(status=RunStatus.SUCCEEDED, document=json.dumps({"nodes": [node]}))
    text = "steps: [{name: a, action: dag.run, with: {dag: kid, params: {p: 'x y', q: 5}}}]"
    seen = await run(text, tmp_path, children=children)
    run_id = children.requests[0].run_id
    assert seen.out("a") == (
        '{\n  "name": "kid",\n  "dagRunId": "' + run_id + '",\n  "params": "p=\\"x y\\" q=\\"5\\"",\n'
        '  "outputs": {\n    "A": "\\u003c1\\u003e"\n  },\n  "outputValues": {\n    "n": [\n      1\n    ]\n  },\n'
        '  "status": "succeeded"\n}\n'
    )


async def test_calls_that_are_alike_share_a_child_whatever_their_items(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID})
    text = "steps: [{name: a, action: dag.run, with: {dag: kid, params: p=1}, parallel: [x, y, z]}]"
    seen = await run(text, tmp_path, children=children)
    assert len(children.requests) == 1
    assert json.loads(seen.out("a"))["summary"] == {"total": 1, "succeeded": 1, "failed": 0}


async def test_a_child_in_the_same_process_is_handed_what_its_parent_sees(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID}, secrets={"s": "hush-hush"})
    text = """
params: [{name: who, default: bob}]
env: [CITY: Oslo]
secrets: [{name: S, ref: s}]
steps: [{name: a, env: [OWN: o], action: dag.run, with: {dag: kid}}]
"""
    await run(text, tmp_path, children=children)
    (request,) = children.requests
    assert request.env == {"who": "bob", "CITY": "Oslo", "S": "hush-hush"}, "no host, no managed, no step variables"
    assert request.secrets == ("hush-hush",)
    assert "hush-hush" not in repr(request)


async def test_an_inherited_value_is_weaker_than_the_childs_own(tmp_path: Path) -> None:
    text = (
        "params: [{name: p, default: child}]\nenv: [E: child]\n"
        "steps: [{name: a, run: 'echo $p $E $OTHER ${params.p} $SECRET'}]"
    )
    inherited = {"p": "parent", "E": "parent", "OTHER": "parent", "SECRET": "hush-hush"}
    request = replace(make_request(text, tmp_path), inherited_env=inherited, inherited_secrets=("hush-hush",))
    await execute(request, Seen(), Children(), stop=asyncio.Event())
    assert (tmp_path / "logs" / "a.stdout.log").read_text() == "child child parent child *******\n"


async def test_children_are_put_into_a_queue_and_not_waited_for(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID})
    text = """
steps:
  - {name: one, action: dag.enqueue, with: {dag: kid, params: p=1, queue: q}}
  - {name: many, action: dag.enqueue, with: {dag: kid}, parallel: {items: [p=2]}}
"""
    seen = await run(text, tmp_path, children=children)
    assert seen.status is RunStatus.SUCCEEDED
    first, second = children.enqueued
    assert json.loads(seen.out("one")) == {
        "name": "kid", "dagRunId": first.run_id, "params": "p=1", "queue": "q", "status": "queued",
    }  # fmt: skip
    assert json.loads(seen.out("many")) == {
        "summary": {"total": 1, "queued": 1},
        "runs": [
            {
                "name": "kid", "dagRunId": second.run_id, "params": "p=2", "queue": "kid", "status": "queued",
                "parallelItem": "p=2",
            }
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "params"),
    [
        ("'[\"a b\", 2]'", ["a b", "2"]),
        ("'a, b;c'", ["a", "b", "c"]),
        ("'\"a b\" c'", ["a b", "c"]),
        ("'\"a,b\"|c d'", ["a,b", "c", "d"]),
        ("'{\"k\": 1}'", ['{"k":1}']),
    ],
)
async def test_a_fan_out_over_a_text(tmp_path: Path, source: str, params: list[str]) -> None:
    children = Children(texts={"kid": KID})
    text = f"env: [{{L: {source}}}]\nsteps: [{{name: a, action: dag.run, with: {{dag: kid}}, parallel: $L}}]"
    await run(text, tmp_path, children=children)
    assert [request.params for request in children.requests] == params


@pytest.mark.parametrize("source", ["''", "' '", "'[]'"])
async def test_a_fan_out_over_nothing_fails(tmp_path: Path, source: str) -> None:
    text = f"env: [{{L: {source}}}]\nsteps: [{{name: a, action: dag.run, with: {{dag: kid}}, parallel: $L}}]"
    seen = await run(text, tmp_path, children=Children(texts={"kid": KID}))
    assert seen.nodes() == {"a": "failed"}


async def test_a_stop_cancels_the_children(tmp_path: Path) -> None:
    children, stop, seen = Children(texts={"kid": KID}), asyncio.Event(), Seen()
    children.holds = True
    text = "steps: [{name: a, action: dag.run, with: {dag: kid}, parallel: [x, y]}]"
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(run(text, tmp_path, children=children, stop=stop, seen=seen))
        await children.started.wait()
        stop.set()
    assert len(children.cancelled) == len(children.requests)
    assert seen.nodes() == {"a": "aborted"}
    assert seen.status is RunStatus.ABORTED


async def test_a_steps_timeout_cancels_its_child(tmp_path: Path) -> None:
    children = Children(texts={"kid": KID})
    children.holds = True
    text = "steps: [{name: a, action: dag.run, with: {dag: kid}, timeout_sec: 1}]"
    seen = await run(text, tmp_path, children=children)
    assert (seen.nodes(), len(children.cancelled)) == ({"a": "failed"}, 1)
    assert "timed out" in seen.details()["a"]["error"]
