"""Status documents: complete, incremental, and readable back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from secure_dagu.run import machine, snapshot
from secure_dagu.run.machine import HANDLER_NODES, NodeState, Phase
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.snapshot import Snapshots, encode, kept_nodes, step_text, time_text
from tests.run.driver import ABORTED, BAD, GOOD, Drive, plan_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(seconds=9)
DAG = load_definition(
    """
handler_on: {success: {run: s}, failure: {run: f}, abort: {run: o}, exit: {run: e}, init: {run: i}}
steps: [{name: a, run: x}, {name: b, run: y, depends: a}]
"""
).main
PLAN = make_plan(DAG)


def snapshots() -> Snapshots:
    return Snapshots(
        head={"name": "demo", "dagRunId": "r1"},
        steps=[step_text(step) for step in DAG.steps],
        logs=[("/l/a.stdout.log", "/l/a.stderr.log"), ("/l/b.stdout.log", "/l/b.stderr.log")],
        handler_steps={name: step_text(step) for name, step in DAG.handlers.items()},
        handler_logs={name: (f"/l/{node}.stdout.log", f"/l/{node}.stderr.log") for name, node in HANDLER_NODES.items()},
    )


def document(state: machine.RunState, **extra: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(snapshots().document(state, extra=extra))
    return value


# ── shape and types (protocol, section 4) ────────────────────────────────────────────────────────────────────────────

NODE_TYPES: dict[str, type] = {
    "step": dict, "stdout": str, "stderr": str, "startedAt": str, "finishedAt": str, "status": int, "retriedAt": str,
    "retryCount": int, "doneCount": int, "skippedByRetry": bool, "error": str, "children": list,
    "outputVariables": dict, "outputValue": str, "outputsValue": str, "stepOutputsValue": str,
}  # fmt: skip
ALWAYS = {"step", "stdout", "stderr", "startedAt", "finishedAt", "status"}


def has_the_form_of_a_node(node: Mapping[str, Any]) -> None:
    assert set(node) >= ALWAYS
    for key, value in node.items():
        assert type(value) is NODE_TYPES[key], key
        assert key in ALWAYS or value, f"{key} is left out when it is empty"
    assert isinstance(node["step"]["name"], str)


def test_a_run_that_has_not_started_says_so_little() -> None:
    seen = document(machine.new_run(PLAN))
    blank = {"stdout": "", "stderr": "", "startedAt": "", "finishedAt": "", "status": 0}
    assert seen == {
        "name": "demo",
        "dagRunId": "r1",
        "status": 1,
        "pendingStepRetries": None,
        "nodes": [
            {"step": {"name": "a", "commands": [{"command": "x", "cmdWithArgs": "x"}]}, **blank},
            {"step": {"name": "b", "commands": [{"command": "y", "cmdWithArgs": "y"}], "depends": ["a"]}, **blank},
        ],
        **{HANDLER_NODES[name]: {"step": json.loads(step_text(step)), **blank} for name, step in DAG.handlers.items()},
    }


def test_a_finished_run_says_how_each_step_and_handler_ended() -> None:
    drive = Drive(PLAN, {"a": [replace(BAD, exit_code=3, error="exit status 3", published={"outputsValue": "{}"})]})
    seen = document(drive.finish().state, workingDir="/w")
    for node in (*seen["nodes"], seen["onInit"], seen["onFailure"], seen["onExit"]):
        has_the_form_of_a_node(node)
    assert (seen["status"], seen["error"], seen["workingDir"]) == (RunStatus.FAILED, "a: exit status 3", "/w")
    assert (seen["startedAt"], seen["finishedAt"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z")
    failed, aborted = seen["nodes"]
    assert (failed["status"], failed["error"], failed["doneCount"]) == (2, "exit status 3", 1)
    assert (failed["stdout"], failed["stderr"]) == ("/l/a.stdout.log", "/l/a.stderr.log")
    assert (aborted["status"], aborted["stdout"], aborted["stderr"]) == (3, "", ""), "what never ran has no log"
    assert (aborted["startedAt"], aborted["finishedAt"]) == ("", "2026-01-02T03:04:05Z")
    assert seen["onFailure"]["stdout"] == "/l/onFailure.stdout.log"
    idle = {name: node["status"] for name, node in seen.items() if name.startswith("on") and not node["startedAt"]}
    assert idle == {"onSuccess": 0, "onAbort": 0}, "handlers that are defined are there, whether they ran or not"


def test_a_stopped_run_says_what_was_aborted() -> None:
    drive = Drive(PLAN).until(Phase.STEPS)
    drive.take(machine.StopRequested())
    drive.answer(ABORTED)
    seen = document(drive.finish().state)
    assert [node["status"] for node in seen["nodes"]] == [3, 3]
    assert (seen["status"], "error" in seen) == (RunStatus.ABORTED, False)


def test_a_run_whose_init_failed_says_that_no_step_started() -> None:
    seen = document(Drive(PLAN, {"init": [BAD]}).finish().state)
    assert [node["status"] for node in seen["nodes"]] == [0, 0]
    assert (seen["status"], seen["onInit"]["status"]) == (RunStatus.ABORTED, StepStatus.FAILED)


def test_a_run_is_running_until_its_last_handler_has_ended() -> None:
    """A report that says more ends the lease."""
    drive = Drive(PLAN).until(Phase.EXIT)
    assert drive.state.status is RunStatus.SUCCEEDED
    assert document(drive.state)["status"] == RunStatus.RUNNING
    assert document(drive.finish().state)["status"] == RunStatus.SUCCEEDED


def test_a_node_tells_its_tries_and_what_it_keeps() -> None:
    node = NodeState(
        status=StepStatus.SUCCEEDED, started_at=NOW, finished_at=LATER, retry_count=2, retried_at=NOW, done_count=3,
        is_kept=True, published={"outputVariables": {"O": "O=1"}, "outputValue": "1", "children": [{"dagRunId": "c"}]},
    )  # fmt: skip
    seen = document(replace(machine.new_run(PLAN), nodes=(node, machine.NEW_NODE)))["nodes"][0]
    has_the_form_of_a_node(seen)
    assert (seen["retryCount"], seen["retriedAt"], seen["doneCount"]) == (2, "2026-01-02T03:04:05Z", 3)
    assert (seen["skippedByRetry"], seen["finishedAt"]) == (True, "2026-01-02T03:04:14Z")
    assert (seen["outputVariables"], seen["children"]) == ({"O": "O=1"}, [{"dagRunId": "c"}])


STEPS = [
    ("name: a, id: i, description: d, run: echo hi", {
        "id": "i", "description": "d", "commands": [{"command": "echo", "cmdWithArgs": "echo hi"}]}),
    ('name: a, run: "x\\ny\\n"', {}),
    ("name: a, run: x, output: O, timeout_sec: 2", {
        "commands": [{"command": "x", "cmdWithArgs": "x"}], "output": "O", "timeout": 2_000_000_000}),
    ("name: a, run: x, continue_on: {failure: true, skipped: true, mark_success: true}", {
        "commands": [{"command": "x", "cmdWithArgs": "x"}],
        "continueOn": {"failure": True, "skipped": True, "markSuccess": True}}),
    ("name: a, run: x, preconditions: [c, {condition: d, expected: e}, {eval: f, expected: g, negate: true}]", {
        "commands": [{"command": "x", "cmdWithArgs": "x"}],
        "preconditions": [
            {"condition": "c"}, {"condition": "d", "expected": "e"}, {"eval": "f", "expected": "g", "negate": True}]}),
    ("name: a, action: dag.run, with: {dag: child}, worker_selector: {gpu: 'yes'}", {
        "executorConfig": {"type": "dag"}, "childDag": {"name": "child"}, "workerSelector": {"gpu": "yes"}}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "form"), STEPS)
def test_the_step_object_of_a_node(text: str, form: dict[str, Any]) -> None:
    step = plan_of(text).steps[0]
    assert json.loads(step_text(step)) == {"name": "a", **form}


def test_a_blank_command_has_no_first_word() -> None:
    step = replace(DAG.steps[0], commands=(" ",))
    assert json.loads(step_text(step))["commands"] == [{"command": "", "cmdWithArgs": " "}]


@pytest.mark.parametrize(
    ("moment", "text"),
    [(None, ""), (NOW, "2026-01-02T03:04:05Z"), (NOW.replace(microsecond=999_999), "2026-01-02T03:04:05Z"),
     (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z")],
)  # fmt: skip
def test_times_are_whole_seconds_in_utc(moment: datetime | None, text: str) -> None:
    assert time_text(moment) == text


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_changed_is_encoded_again() -> None:
    calls: list[str] = []
    made = snapshots()
    made.mask = lambda text: calls.append(text) or text  # type: ignore[func-returns-value]  # append, then the text
    first = NodeState(status=StepStatus.SUCCEEDED, started_at=NOW, published={"outputValue": "one"})
    other = NodeState(status=StepStatus.RUNNING, started_at=NOW, published={"outputValue": "two"})
    state = replace(machine.new_run(PLAN), nodes=(first, other))
    made.document(state)
    state = replace(state, nodes=(first, replace(other, published={"outputValue": "three"})))
    assert json.loads(made.document(state))["nodes"][1]["outputValue"] == "three"
    assert calls == ["one", "two", "three"]


def test_a_chain_encodes_each_node_as_often_as_it_changes() -> None:
    count = 200
    drive = Drive(plan_of(*(f"name: s{n}, run: x" for n in range(count)), head="type: chain\n"))
    encoded: list[str] = []

    class Text(str):
        """A step's JSON that notes when it is put into a node."""

        __slots__ = ()

        def __format__(self, spec: str) -> str:
            encoded.append(self)
            return str(self)

    texts = [Text(step_text(step)) for step in drive.plan.steps]
    made = Snapshots(head={"name": "demo"}, steps=texts, logs=[("", "")] * count)
    while drive.state.phase is not Phase.ENDED:
        if drive.owed:
            drive.answer(replace(GOOD, published={"outputValue": "x"}))
        else:
            drive.take(machine.Started())
        text = made.document(drive.state)
    assert len(encoded) == 3 * count, "not started, running, succeeded"
    assert [node["status"] for node in json.loads(text)["nodes"]] == [StepStatus.SUCCEEDED] * count


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def hidden(**published: Any) -> dict[str, Any]:
    made = snapshots()
    made.mask = lambda text: text.replace('pa"ss', "***").replace("123456", "***")
    node = NodeState(status=StepStatus.SUCCEEDED, published=published)
    found: dict[str, Any] = json.loads(made.document(replace(machine.new_run(PLAN), nodes=(node, node))))["nodes"][0]
    return found


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ('the pa"ss word', "the *** word"),
        ('{"a":"pa\\"ss"}', '{"a":"***"}'),
        ('["x",{"b":["pa\\"ss"]}]', '["x",{"b":["***"]}]'),
        ('{"pin":123456}', '{"pin":"***"}'),
        ('{"pin":123456.5}', '{"pin":"***.5"}'),
        ('{"123456":1}', '{"***":1}'),
        ('{"a":"123456","a":"x"}', '{"a":"x"}'),
        ('{no json 123456', "{no json ***"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_wherever_a_step_publishes_it(value: str, seen: str) -> None:
    assert hidden(outputValue=value)["outputValue"] == seen


def test_a_secret_is_hidden_in_variables_and_children() -> None:
    node = hidden(outputVariables={"O": 'O=pa"ss'}, children=[{"params": 'P=pa"ss'}])
    assert (node["outputVariables"], node["children"]) == ({"O": "O=***"}, [{"params": "P=***"}])


@pytest.mark.parametrize(
    "value",
    ['{ "price": 1.10, "n": 1e3 }', "[1,\n 2]", '{"ok": true, "no": null}', "[" * 10_000, "{", '{"a": "\\u00e4"}'],
)
def test_a_captured_text_without_a_secret_stays_to_the_letter(value: str) -> None:
    assert hidden(outputValue=value)["outputValue"] == value


# ── read back ────────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(max_size=20)
terminal = st.sampled_from([status for status in StepStatus if status.is_terminal])
published = st.fixed_dictionaries(
    {},
    optional={
        "outputVariables": st.dictionaries(texts, texts, max_size=3),
        "outputValue": texts,
        "outputsValue": st.dictionaries(texts, texts | st.integers(), max_size=3).map(snapshot.encode),
        "stepOutputsValue": st.dictionaries(texts, texts, max_size=3).map(snapshot.encode),
        "children": st.lists(st.dictionaries(texts, texts, max_size=2), max_size=2),
    },
)
nodes = st.builds(
    NodeState,
    status=terminal,
    started_at=st.just(NOW),
    finished_at=st.none() | st.just(LATER),
    error=texts,
    retry_count=st.integers(0, 3),
    retried_at=st.none() | st.just(NOW),
    done_count=st.integers(0, 3),
    is_kept=st.just(True),
    published=published,
)


@settings(max_examples=30)
@given(st.lists(nodes, min_size=2, max_size=2))
def test_what_a_document_says_of_its_nodes_is_read_back(states: list[NodeState]) -> None:
    text = snapshots().document(replace(machine.new_run(PLAN), nodes=tuple(states)))
    kept = kept_nodes(text, ["a", "b"])
    for position, before in enumerate(states):
        code = 0 if before.status is StepStatus.SUCCEEDED else None
        assert replace(kept[position], shown=None) == replace(before, exit_code=code)
    again = snapshots().document(replace(machine.new_run(PLAN), nodes=(kept[0], kept[1])))
    assert json.loads(again) == json.loads(text)


def kept_of(**node: Any) -> NodeState | None:
    return kept_nodes(json.dumps({"nodes": [{"step": {"name": "a"}, "status": 4, **node}]}), ["a"]).get(0)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("", None),
        ("-", None),
        (5, None),
        ("2026-01-02T03:04:05Z", NOW),
        ("2026-01-02T05:04:05+02:00", NOW),
        ("2026-01-02T03:04:05", NOW),
    ],
)
def test_a_time_may_come_in_any_form_of_the_protocol(text: Any, moment: datetime | None) -> None:
    node = kept_of(startedAt=text)
    assert node is not None
    assert node.started_at == moment
    assert time_text(node.started_at) == time_text(moment), "what is read is written in UTC"


@pytest.mark.parametrize(
    "node",
    [
        {"status": 99},
        {"status": None},
        {"status": [4]},
        {"startedAt": "yesterday"},
        {"startedAt": "9999-12-31T23:59:59-23:00"},
        {"finishedAt": "0001-01-01T00:00:00+23:00"},
        {"retryCount": "many"},
        {"retryCount": float("inf")},
        {"doneCount": float("nan")},
        {"doneCount": [1]},
        {"step": {"name": ["a"]}},
        {"step": {"name": "gone"}},
        {"step": {}},
        {"step": "a"},
    ],
)
def test_a_node_that_makes_no_sense_is_left_out(node: dict[str, Any]) -> None:
    assert kept_of(**node) is None


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "5", "null", '{"nodes": 5}', '{"nodes": {"a": 1}}', "[" * 100_000]
)
def test_a_document_that_makes_no_sense_keeps_nothing(text: str) -> None:
    assert kept_nodes(text, ["a"]) == {}


@pytest.mark.parametrize(
    "published",
    [
        {"outputVariables": [1]},
        {"outputVariables": {"O": 1}},
        {"outputValue": 5},
        {"outputsValue": {"a": 1}},
        {"outputsValue": "no json"},
        {"stepOutputsValue": "[]"},
        {"stepOutputsValue": "[" * 100_000},
        {"children": {}},
        {"error": ["x"]},
        {"stranger": "x"},
    ],
)
def test_a_published_value_of_the_wrong_form_is_dropped(published: dict[str, Any]) -> None:
    node = kept_of(**published)
    assert node is not None
    assert (node.published, node.error) == ({}, "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3),
    max_leaves=5,
)
strange_nodes = st.fixed_dictionaries(
    {"step": st.just({"name": "a"}) | json_values},
    optional={
        key: json_values | st.just("2026-01-02T03:04:05Z") | st.integers(0, 9)
        for key in (*NODE_TYPES, "stranger")
        if key != "step"
    },
)


@given(
    st.text()
    | json_values.map(json.dumps)
    | st.lists(strange_nodes, max_size=3).map(lambda x: json.dumps({"nodes": x}))
)
def test_reading_a_document_never_raises_and_what_is_read_can_be_written(text: str) -> None:
    kept = kept_nodes(text, ["a", "b"])
    state = replace(machine.new_run(PLAN), nodes=(kept.get(0, machine.NEW_NODE), kept.get(1, machine.NEW_NODE)))
    snapshots().document(state).encode()


def test_half_a_surrogate_pair_does_not_break_a_document() -> None:
    """JSON can spell it, UTF-8 cannot carry it: one step's output must not end the worker's reports."""
    node = NodeState(status=StepStatus.SUCCEEDED, published={"outputValue": json.loads('"ä\\ud800"')})
    text = snapshots().document(replace(machine.new_run(PLAN), nodes=(node, node)))
    assert json.loads(text.encode())["nodes"][0]["outputValue"] == "ä\ufffd"
    assert encode({"a": "😀"}) == '{"a":"😀"}'
