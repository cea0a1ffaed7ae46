"""A line over time as points of a drawing. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

WIDTH, HEIGHT = 320, 80
_MOST_POINTS = 240


class Chart(Struct, frozen=True, kw_only=True):
    """What an SVG draws."""

    line: str
    """Points of a polyline."""
    area: str
    """Points of the surface below it."""
    width: int = WIDTH
    height: int = HEIGHT


def chart(samples: Sequence[tuple[int, float]], *, top: float = 0.0) -> Chart:
    """Return the line of (Unix seconds, value), oldest first; `top` 0 fits the scale to the values."""
    step = max(1, -(-len(samples) // _MOST_POINTS))
    kept = [*samples[::step]]
    if samples and kept[-1] != samples[-1]:
        kept.append(samples[-1])
    highest = top or max([1.0, *(value * 1.2 for _, value in kept)])
    begin, end = (kept[0][0], kept[-1][0]) if kept else (0, 0)
    span = max(1, end - begin)
    points = [
        (WIDTH * (at - begin) / span, HEIGHT - HEIGHT * min(max(value, 0.0), highest) / highest) for at, value in kept
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = f"{points[0][0]:.1f},{HEIGHT} {line} {points[-1][0]:.1f},{HEIGHT}" if points else ""
    return Chart(line=line, area=area)
