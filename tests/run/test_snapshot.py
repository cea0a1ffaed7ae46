"""Status documents: complete, incremental, and readable back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from secure_dagu.run import machine, snapshot
from secure_dagu.run.machine import NodeState
from secure_dagu.run.model import StepStatus
from secure_dagu.run.snapshot import Snapshots, kept_nodes, step_text

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DAG = load_definition("steps: [{name: a, run: x}, {name: b, run: y, depends: a}]").main


def snapshots() -> Snapshots:
    return Snapshots(
        head={"name": "demo", "dagRunId": "r1"},
        steps=[step_text(step) for step in DAG.steps],
        logs=[("/l/a.stdout.log", "/l/a.stderr.log"), ("/l/b.stdout.log", "/l/b.stderr.log")],
    )


texts = st.text(max_size=20)
terminal = st.sampled_from([status for status in StepStatus if status.is_terminal])
published = st.fixed_dictionaries(
    {},
    optional={
        "outputVariables": st.dictionaries(texts, texts, max_size=3),
        "outputValue": texts,
        "outputsValue": st.dictionaries(texts, texts | st.integers(), max_size=3).map(snapshot.encode),
        "stepOutputsValue": st.dictionaries(texts, texts, max_size=3).map(snapshot.encode),
    },
)
nodes = st.builds(
    NodeState,
    status=terminal,
    started_at=st.just(NOW),
    finished_at=st.none() | st.just(NOW),
    error=texts,
    retry_count=st.integers(0, 3),
    done_count=st.integers(0, 3),
    published=published,
)


@given(st.lists(nodes, min_size=2, max_size=2))
def test_what_a_document_says_of_its_nodes_is_read_back(states: list[NodeState]) -> None:
    state = replace(machine.new_run(make_plan(DAG)), nodes=tuple(states))
    kept = kept_nodes(snapshots().document(state), ["a", "b"])
    for position, before in enumerate(states):
        after = kept[position]
        assert (after.status, after.error, after.retry_count) == (before.status, before.error, before.retry_count)
        assert (after.started_at, after.finished_at) == (before.started_at, before.finished_at)
        assert dict(after.published) == dict(before.published)


@given(
    st.text()
    | st.recursive(st.none() | st.integers() | texts, lambda x: st.lists(x) | st.dictionaries(texts, x)).map(json.dumps)
)
def test_reading_a_document_never_raises(text: str) -> None:
    kept_nodes(text, ["a", "b"])


def test_only_what_changed_is_encoded_again() -> None:
    calls: list[str] = []
    made = snapshots()
    made.mask = lambda text: calls.append(text) or text  # type: ignore[func-returns-value]  # append, then the text
    first = NodeState(status=StepStatus.SUCCEEDED, started_at=NOW, published={"outputValue": "one"})
    other = NodeState(status=StepStatus.RUNNING, started_at=NOW, published={"outputValue": "two"})
    state = replace(machine.new_run(make_plan(DAG)), nodes=(first, other))
    made.document(state)
    state = replace(state, nodes=(first, replace(other, published={"outputValue": "three"})))
    assert json.loads(made.document(state))["nodes"][1]["outputValue"] == "three"
    assert calls == ["one", "two", "three"]
