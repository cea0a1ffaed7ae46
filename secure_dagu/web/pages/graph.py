"""The drawing of a DAG, as a definition has it or as a run went. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from secure_dagu.dag.model import Dag, Step
from secure_dagu.run.model import StepStatus
from secure_dagu.web.pages.graph_layout import HEIGHT, WIDTH, Layout, layout
from secure_dagu.web.pages.run_views import StepView

MOST_STEPS = 2000
"""Of one drawing; a larger DAG has only its table."""
_BOTH_WAYS = 150
"""Steps up to which a page has both directions; a larger graph has the narrower one."""
_LABEL, _MORE = 20, 26
"""Characters that fit into a box."""

HANDLER_WORDS: Mapping[str, str] = {
    "init": "onInit", "success": "onSuccess", "failure": "onFailure", "abort": "onAbort", "wait": "onWait",
    "exit": "onExit",
}  # fmt: skip
"""What the node of each handler is called."""


class Vertex(Struct, frozen=True, kw_only=True):
    """One step, before it has a place."""

    name: str
    row: int
    """Its number in the table that stands with the graph."""
    told: str = ""
    """What it does, in a line."""
    status: StepStatus | None = None
    """None in a definition."""
    depends: tuple[str, ...] = ()
    has_log: bool = False
    is_handler: bool = False
    """It depends on nothing: it stands below the others."""


class Box(Struct, frozen=True, kw_only=True):
    """One step, drawn. Lengths are units of the drawing."""

    vertex: Vertex
    label: str
    more: str
    x: float
    y: float


class Edge(Struct, frozen=True, kw_only=True):
    """One dependency."""

    path: str
    """SVG path data."""
    status: StepStatus | None
    """That of the step it comes from."""


class Drawing(Struct, frozen=True, kw_only=True):
    """All of it in one direction."""

    direction: str
    """`lr`: left to right, `tb`: top to bottom."""
    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]


class Graph(Struct, frozen=True, kw_only=True):
    """One drawing, or both directions of it: then the page shows one."""

    key: str
    """Tells the graphs of one page apart."""
    drawings: tuple[Drawing, ...]
    told: str
    """What it shows, in a sentence."""
    counts: tuple[tuple[StepStatus, int], ...]
    """How many steps have which status; empty in a definition."""
    width: float = WIDTH
    """Of a box."""
    height: float = HEIGHT


def graph(vertices: Sequence[Vertex], *, key: str = "main") -> Graph | None:
    """Return the drawings; None when there is nothing to draw, or too much."""
    if not vertices or len(vertices) > MOST_STEPS:
        return None
    steps = [vertex for vertex in vertices if not vertex.is_handler]
    shown = [*steps, *(vertex for vertex in vertices if vertex.is_handler)]
    depends = _known(steps)
    layouts = {way: layout(depends, len(shown) - len(steps), way) for way in ("lr", "tb")}
    if len(vertices) > _BOTH_WAYS:
        narrower = min(layouts, key=lambda way: layouts[way].width)
        layouts = {narrower: layouts[narrower]}
    counted = Counter(vertex.status for vertex in vertices if vertex.status is not None)
    return Graph(
        key=key,
        drawings=tuple(_drawing(shown, way, placed) for way, placed in layouts.items()),
        told=f"{len(steps)} step{'s' if len(steps) != 1 else ''} and what each waits for",
        counts=tuple((status, counted[status]) for status in StepStatus if counted[status]),
    )


def of_dag(dag: Dag, *, key: str = "main") -> Graph | None:
    """Return the graph of a definition."""
    steps = [
        Vertex(name=step.name, row=row, told=_does(step), depends=step.depends)
        for row, step in enumerate(dag.steps, start=1)
    ]
    handlers = [
        Vertex(name=HANDLER_WORDS[name], row=row, told=_does(step), is_handler=True)
        for row, (name, step) in enumerate(dag.handlers.items(), start=len(steps) + 1)
    ]
    return graph(steps + handlers, key=key)


def of_run(steps: Sequence[StepView]) -> Graph | None:
    """Return the graph of a run, with the status of each step."""
    return graph(
        [
            Vertex(
                name=step.name, row=row, told=step.execution, status=step.status, depends=step.depends,
                has_log=step.has_stdout, is_handler=step.is_handler,
            )
            for row, step in enumerate(steps, start=1)
        ]
    )  # fmt: skip


def _drawing(shown: Sequence[Vertex], direction: str, placed: Layout) -> Drawing:
    return Drawing(
        direction=direction,
        width=placed.width,
        height=placed.height,
        boxes=tuple(
            Box(vertex=one, label=_short(one.name, _LABEL), more=_short(_more(one), _MORE), x=x, y=y)
            for one, (x, y) in zip(shown, placed.corners, strict=True)
        ),
        edges=tuple(Edge(path=path, status=shown[before].status) for before, path in placed.paths),
    )


def _known(steps: Sequence[Vertex]) -> tuple[tuple[int, ...], ...]:
    """Return for each step the ones that it waits for, as numbers; what is not there is left out."""
    index = {step.name: number for number, step in enumerate(steps)}
    return tuple(
        tuple(index[name] for name in dict.fromkeys(step.depends) if name in index and index[name] != number)
        for number, step in enumerate(steps)
    )


def _does(step: Step) -> str:
    text = step.commands[0] if step.commands else step.script
    return next((line.strip() for line in text.splitlines() if line.strip()), step.kind)


def _more(vertex: Vertex) -> str:
    """Return the second line of a box: how it stands in a run, what it does in a definition."""
    return vertex.told if vertex.status is None else vertex.status.word.replace("_", " ")


def _short(told: str, most: int) -> str:
    return told if len(told) <= most else f"{told[: most - 1]}…"
