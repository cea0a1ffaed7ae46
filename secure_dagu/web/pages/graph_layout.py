"""Where the steps of a graph stand: layers by the longest path, few crossings, curves between. Pure.

Steps on a cycle are placed too, for a definition that somebody is still writing may have one: the dependency that
closes it bends backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from msgspec import Struct

WIDTH, HEIGHT = 208.0, 48.0
"""Of a box, in units of the drawing."""
_BETWEEN_LAYERS, _BETWEEN, _BEND = 56.0, 18.0, 14.0
_MARGIN = 12.0
_HEAD = 4.5
"""Of the tip of an arrow, both ways."""
_SWEEPS = 8
_MOST_EDGES = 600
"""With more of them, those that follow from others are not drawn."""
_MOST_BENDS = 3000
"""Places where edges pass a layer; with more of them, edges run straight from step to step."""

_Item = tuple[int, int]
"""A step and -1, or the number of an edge and the layer where it passes."""


class Layout(Struct, frozen=True, kw_only=True):
    """Where things are; it does not depend on statuses, so it is the same for every look at a run."""

    corners: tuple[tuple[float, float], ...]
    """Upper left, in the order of the steps and then the handlers."""
    paths: tuple[tuple[int, str], ...]
    """Of each edge: the step it comes from, and how it runs."""
    width: float
    height: float


@lru_cache(maxsize=64)
def layout(depends: tuple[tuple[int, ...], ...], handlers: int, direction: str) -> Layout:
    """Return the places.

    Args:
        depends: for each step, the ones that it waits for.
        handlers: how many boxes stand below all others.
        direction: `lr`, left to right, or `tb`, top to bottom.
    """
    layers = _layers(depends)
    pairs = _pairs(depends, layers)
    chains = _chains(pairs, layers)
    rows = _ordered(_rows(layers, chains), chains)
    is_flat = direction == "lr"
    across = _places(rows, chains, HEIGHT if is_flat else WIDTH)
    depth, size = (WIDTH, HEIGHT) if is_flat else (HEIGHT, WIDTH)
    along = [_MARGIN + layer * (depth + _BETWEEN_LAYERS) for layer in range(len(rows))]

    def center(item: _Item) -> tuple[float, float]:
        layer = layers[item[0]] if item[1] < 0 else item[1]
        return along[layer] + depth / 2, across[item]

    corners = [_corner(center((number, -1)), is_flat=is_flat) for number in range(len(depends))]
    end = max((at + size / 2 for at in across.values()), default=0.0) + _MARGIN
    reach = (along[-1] + depth if along else 0.0) + _MARGIN
    corners += _below(handlers, *((reach, end) if is_flat else (end, reach)))
    return Layout(
        corners=tuple(corners),
        paths=tuple(
            (before, _path([center(item) for item in chain], depth / 2, is_flat=is_flat))
            for (before, _), chain in zip(pairs, chains, strict=True)
        ),
        width=max(max(x + WIDTH for x, _ in corners) + _MARGIN, reach if is_flat else end),
        height=max(max(y + HEIGHT for _, y in corners) + _MARGIN, end if is_flat else reach),
    )


def _pairs(depends: Sequence[Sequence[int]], layers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the edges; of very many, only those that do not follow from others."""
    pairs = [(before, after) for after, named in enumerate(depends) for before in named]
    if len(pairs) <= _MOST_EDGES:
        return pairs
    behind = [0] * len(depends)  # bit masks: all that a step waits for, directly or not
    kept = []
    for after in sorted(range(len(depends)), key=layers.__getitem__):
        for before in sorted(depends[after], key=layers.__getitem__, reverse=True):
            if not behind[after] >> before & 1:
                kept.append((before, after))
            behind[after] |= behind[before] | 1 << before
    return kept


def _layers(depends: Sequence[Sequence[int]]) -> list[int]:
    """Return the layer of each step: one behind the last of those it waits for."""
    layers = [-1] * len(depends)
    missing = [len(set(named)) for named in depends]
    followers: list[list[int]] = [[] for _ in depends]
    for after, named in enumerate(depends):
        for before in set(named):
            followers[before].append(after)
    ready = [number for number, count in enumerate(missing) if not count]
    on_cycles = iter(range(len(depends)))  # taken, in order, when nothing else is ready
    while True:
        if not ready:
            stuck = next((number for number in on_cycles if layers[number] < 0), None)
            if stuck is None:
                return layers
            ready.append(stuck)
        number = ready.pop()
        layers[number] = max((layers[before] for before in depends[number]), default=-1) + 1
        for after in followers[number]:
            missing[after] -= 1
            if not missing[after] and layers[after] < 0:
                ready.append(after)


def _chains(pairs: Sequence[tuple[int, int]], layers: Sequence[int]) -> list[list[_Item]]:
    """Return for each edge what it passes: its steps, and between them a bend in every layer."""
    bends = sum(max(0, layers[after] - layers[before] - 1) for before, after in pairs)
    return [
        [(before, -1), *((number, layer) for layer in range(layers[before] + 1, layers[after])), (after, -1)]
        if bends <= _MOST_BENDS
        else [(before, -1), (after, -1)]
        for number, (before, after) in enumerate(pairs)
    ]


def _rows(layers: Sequence[int], chains: Sequence[Sequence[_Item]]) -> list[list[_Item]]:
    rows: list[list[_Item]] = [[] for _ in range(max(layers, default=-1) + 1)]
    for number, layer in enumerate(layers):
        rows[layer].append((number, -1))
    for chain in chains:
        for item in chain[1:-1]:
            rows[item[1]].append(item)
    return rows


def _ordered(rows: list[list[_Item]], chains: Sequence[Sequence[_Item]]) -> list[list[_Item]]:
    """Return the rows with each item near the median of its neighbours; the best of several sweeps."""
    before, after = _neighbours(chains)
    best, fewest = rows, _crossings(rows, before)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        is_down = sweep % 2 == 0
        rows = [list(row) for row in rows]
        order = range(1, len(rows)) if is_down else range(len(rows) - 2, -1, -1)
        for number in order:
            beside = {item: at for at, item in enumerate(rows[number - 1 if is_down else number + 1])}
            near = before if is_down else after
            middle = {
                item: _median([beside[one] for one in near.get(item, ()) if one in beside], at)
                for at, item in enumerate(rows[number])
            }
            rows[number].sort(key=middle.__getitem__)
        crossings = _crossings(rows, before)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _neighbours(
    chains: Sequence[Sequence[_Item]],
) -> tuple[dict[_Item, list[_Item]], dict[_Item, list[_Item]]]:
    before: dict[_Item, list[_Item]] = {}
    after: dict[_Item, list[_Item]] = {}
    for chain in chains:
        for one, other in pairwise(chain):
            before.setdefault(other, []).append(one)
            after.setdefault(one, []).append(other)
    return before, after


def _median(places: list[int], otherwise: int) -> float:
    if not places:
        return otherwise
    places.sort()
    middle = len(places) // 2
    return places[middle] if len(places) % 2 else (places[middle - 1] + places[middle]) / 2


def _crossings(rows: Sequence[Sequence[_Item]], before: Mapping[_Item, Sequence[_Item]]) -> int:
    """Count crossings between neighbouring rows: pairs of edges whose ends are in opposite order."""
    crossings = 0
    for upper, lower in pairwise(rows):
        place = {item: at for at, item in enumerate(upper)}
        passed = [0] * (len(upper) + 1)  # a Fenwick tree over the places of upper ends seen so far
        seen = 0
        for item in lower:
            ends = [place[one] for one in before.get(item, ()) if one in place]
            for end in ends:
                at, not_behind = end + 1, 0
                while at:
                    not_behind += passed[at]
                    at &= at - 1
                crossings += seen - not_behind
            for end in ends:
                at = end + 1
                while at <= len(upper):
                    passed[at] += 1
                    at += at & -at
                seen += 1
    return crossings


def _places(rows: Sequence[Sequence[_Item]], chains: Sequence[Sequence[_Item]], size: float) -> dict[_Item, float]:
    """Return the place of each item across the layers: near its neighbours, in order, and apart."""
    before, after = _neighbours(chains)
    place: dict[_Item, float] = {}
    gaps = [_gaps(row, size) for row in rows]
    for row, gap in zip(rows, gaps, strict=True):
        place |= dict(zip(row, gap, strict=True))
    for sweep in range(2 * _SWEEPS):
        is_down = sweep % 2 == 0
        near = before if is_down else after
        numbers = range(len(rows)) if is_down else reversed(range(len(rows)))
        for number in numbers:
            row = rows[number]
            wanted = [_mean([place[one] for one in near.get(item, ())], place[item]) for item in row]
            place |= dict(zip(row, _apart(wanted, gaps[number]), strict=True))
    first = min((at - (size if item[1] < 0 else _BEND) / 2 for item, at in place.items()), default=0.0)
    return {item: at - first + _MARGIN for item, at in place.items()}


def _gaps(row: Sequence[_Item], size: float) -> list[float]:
    """Return where the items of a row stand when they stand as close as they may."""
    places, at = [], 0.0
    for item in row:
        half = (size if item[1] < 0 else _BEND) / 2
        places.append(at + half)
        at += 2 * half + _BETWEEN
    return places


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _apart(wanted: Sequence[float], closest: Sequence[float]) -> list[float]:
    """Return the places next to `wanted`, by least squares, that keep the order and distances of `closest`.

    Without the distances that is a sequence that never falls: neighbours that would are pooled at their mean.
    """
    pools: list[tuple[float, int]] = []
    for want, least in zip(wanted, closest, strict=True):
        mean, count = want - least, 1
        while pools and pools[-1][0] > mean:
            other, number = pools.pop()
            mean, count = (mean * count + other * number) / (count + number), count + number
        pools.append((mean, count))
    shifts = [mean for mean, count in pools for _ in range(count)]
    return [shift + least for shift, least in zip(shifts, closest, strict=True)]


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _corner(center: tuple[float, float], *, is_flat: bool) -> tuple[float, float]:
    x, y = center if is_flat else (center[1], center[0])
    return x - WIDTH / 2, y - HEIGHT / 2


def _path(centers: Sequence[tuple[float, float]], half: float, *, is_flat: bool) -> str:
    """Return the curve of an edge: out of a box, straight past other layers, into a box; and the tip there."""
    (along, level), *others = centers
    leave = along + half
    parts = [f"M{_point(leave, level, is_flat=is_flat)}"]
    for number, (along, across) in enumerate(others, start=1):
        middle, enter = (leave + along - half) / 2, along - half
        bend, unbend = _point(middle, level, is_flat=is_flat), _point(middle, across, is_flat=is_flat)
        parts.append(f"C{bend} {unbend} {_point(enter, across, is_flat=is_flat)}")
        if number < len(others):
            parts.append(f"L{_point(along + half, across, is_flat=is_flat)}")
        leave, level = along + half, across
    tip, wings = along - half, (across - _HEAD, across + _HEAD)
    parts += [
        f"{command}{_point(tip - depth, side, is_flat=is_flat)}"
        for command, depth, side in (("M", _HEAD, wings[0]), ("L", 0, across), ("L", _HEAD, wings[1]))
    ]
    return "".join(parts)


def _point(along: float, across: float, *, is_flat: bool) -> str:
    x, y = (along, across) if is_flat else (across, along)
    return f"{x:.1f},{y:.1f}"


def _below(handlers: int, width: float, height: float) -> list[tuple[float, float]]:
    """Return the corners of the handlers: in rows below everything else."""
    room = max(width - 2 * _MARGIN, 2 * WIDTH + _BETWEEN)
    a_row = int((room + _BETWEEN) // (WIDTH + _BETWEEN))
    places = (divmod(number, a_row) for number in range(handlers))
    return [
        (_MARGIN + column * (WIDTH + _BETWEEN), height + _BETWEEN + row * (HEIGHT + _BETWEEN)) for row, column in places
    ]
