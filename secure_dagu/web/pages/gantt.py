"""The timeline of a run: where each step's bar lies. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from secure_dagu.web.api.shapes import mapping, text, time_text
from secure_dagu.web.api.shapes_runs import node_status

WIDTH = 960
"""Of the drawing; the page scales it."""
_LABELS = 200
_ROW = 28
_TOP = 30
_NARROWEST = 3.0
_LABEL_CHARS = 26
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_MOST_TICKS = 8


class Bar(Struct, frozen=True, kw_only=True):
    """One step. Lengths are units of the drawing."""

    name: str
    label: str
    """The name, shortened to fit."""
    status: str
    y: float
    x: float
    width: float
    """0 for a step that has not begun."""
    seconds: float


class Tick(Struct, frozen=True, kw_only=True):
    """One line of the time axis."""

    x: float
    label: str


class Timeline(Struct, frozen=True, kw_only=True):
    """All of it."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    height: float
    labels: int = _LABELS
    width: int = WIDTH


def timeline(nodes: Sequence[Mapping[str, Any]], *, now: datetime) -> Timeline:
    """Return the drawing; steps that run reach until `now`."""
    spans = [_span(node, now) for node in nodes]
    begins = [span[0] for span in spans if span]
    ends = [span[1] for span in spans if span]
    begin = min(begins, default=now)
    whole = max((max(ends, default=now) - begin).total_seconds(), 0.1)
    scale = (WIDTH - _LABELS - 60) / whole
    bars = []
    for row, (node, span) in enumerate(zip(nodes, spans, strict=True)):
        name = text(mapping(node.get("step")).get("name"))
        seconds = (span[1] - span[0]).total_seconds() if span else 0.0
        bars.append(
            Bar(
                name=name,
                label=name if len(name) <= _LABEL_CHARS else f"{name[: _LABEL_CHARS - 1]}…",
                status=node_status(node).word,
                y=_TOP + row * _ROW,
                x=_LABELS + (span[0] - begin).total_seconds() * scale if span else _LABELS,
                width=max(seconds * scale, _NARROWEST) if span else 0.0,
                seconds=seconds,
            )
        )
    return Timeline(bars=tuple(bars), ticks=_ticks(whole, scale), height=_TOP + len(nodes) * _ROW + 8)


def moment_of(value: Any) -> datetime | None:
    """Return a time of a document; None for not yet, or for what is no time."""
    try:
        found = datetime.fromisoformat(time_text(value))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _span(node: Mapping[str, Any], now: datetime) -> tuple[datetime, datetime] | None:
    begin = moment_of(node.get("startedAt"))
    if begin is None:
        return None
    end = moment_of(node.get("finishedAt")) or (begin if node_status(node).is_terminal else now)
    return begin, max(begin, end)


def _ticks(whole: float, scale: float) -> tuple[Tick, ...]:
    step = next((size for size in _STEPS_S if whole / size <= _MOST_TICKS), whole / _MOST_TICKS)
    count = int(whole / step) + 1
    return tuple(Tick(x=_LABELS + number * step * scale, label=_label(number * step)) for number in range(count))


def _label(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min" + (f" {rest:02d}" if rest else "")
