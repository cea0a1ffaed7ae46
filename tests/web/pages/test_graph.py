"""What a graph shows of a definition and of a run."""

from __future__ import annotations

from secure_dagu.dag.load import load_definition
from secure_dagu.dispatch.operating import FoundRun
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.web.pages import graph
from secure_dagu.web.pages.run_views import run_view

TEXT = """
steps:
  - {id: a, run: echo a}
  - {id: b, run: "echo b\\necho c", depends: a}
handler_on:
  exit: {run: echo bye}
"""


def _node(name: str, status: StepStatus, *depends: str, stdout: str = "") -> dict[str, object]:
    return {"step": {"name": name, "depends": list(depends)}, "status": int(status), "stdout": stdout}


def test_a_definition_has_both_directions_and_its_handlers_below() -> None:
    drawn = graph.of_dag(load_definition(TEXT).main)
    assert drawn is not None
    assert [drawing.direction for drawing in drawn.drawings] == ["lr", "tb"]
    assert drawn.counts == ()
    assert drawn.told == "2 steps and what each waits for"
    for drawing in drawn.drawings:
        assert [box.vertex.name for box in drawing.boxes] == ["a", "b", "onExit"]
        assert [box.more for box in drawing.boxes] == ["echo a", "echo b", "echo bye"]
        assert [box.vertex.row for box in drawing.boxes] == [1, 2, 3]
        assert len(drawing.edges) == 1
        assert drawing.boxes[2].y > max(box.y for box in drawing.boxes[:2])


def test_a_run_says_the_status_of_each_step_in_a_word_and_counts_them() -> None:
    document = {
        "name": "d", "dagRunId": "r", "status": int(RunStatus.RUNNING),
        "nodes": [_node("a", StepStatus.SUCCEEDED, stdout="/x"), _node("b", StepStatus.NOT_STARTED, "a", "gone")],
        "onExit": _node("onExit", StepStatus.RUNNING),
        "onFailure": _node("onFailure", StepStatus.NOT_STARTED),  # it is shown once it runs
    }  # fmt: skip
    drawn = graph.of_run(run_view(FoundRun(document=document)).steps)
    assert drawn is not None
    boxes = drawn.drawings[0].boxes
    assert [(box.vertex.name, box.more, box.vertex.has_log, box.vertex.is_handler) for box in boxes] == [
        ("a", "succeeded", True, False), ("b", "not started", False, False), ("onExit", "running", False, True),
    ]  # fmt: skip
    assert [edge.status for edge in drawn.drawings[0].edges] == [StepStatus.SUCCEEDED]
    assert drawn.counts == ((StepStatus.NOT_STARTED, 1), (StepStatus.RUNNING, 1), (StepStatus.SUCCEEDED, 1))


def test_a_long_name_is_cut_in_its_box() -> None:
    drawn = graph.graph([graph.Vertex(name="x" * 100, row=1)])
    assert drawn is not None
    assert drawn.drawings[0].boxes[0].label == "x" * 19 + "…"
    assert drawn.drawings[0].boxes[0].vertex.name == "x" * 100


def test_a_large_graph_has_only_the_narrower_direction() -> None:
    chain = [graph.Vertex(name=f"s{n}", row=n + 1, depends=(f"s{n - 1}",)) for n in range(1000)]
    drawn = graph.graph(chain)
    assert drawn is not None
    assert [drawing.direction for drawing in drawn.drawings] == ["tb"]
    fan = [graph.Vertex(name="s0", row=1), *(graph.Vertex(name=f"s{n}", row=n, depends=("s0",)) for n in range(1, 999))]
    drawn = graph.graph(fan)
    assert drawn is not None
    assert [drawing.direction for drawing in drawn.drawings] == ["lr"]


def test_what_is_not_there_and_what_is_too_large_is_not_drawn() -> None:
    assert graph.graph([]) is None
    assert graph.graph([graph.Vertex(name=f"s{n}", row=n) for n in range(graph.MOST_STEPS + 1)]) is None
    assert graph.graph([graph.Vertex(name="a", row=1, depends=("a", "gone"))]) is not None
