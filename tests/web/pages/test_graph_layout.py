"""Where the steps of a graph stand: for every graph, no two on one place, every edge forward, always the same."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.web.pages.graph_layout import HEIGHT, WIDTH, Layout, layout

Depends = tuple[tuple[int, ...], ...]
WAYS = ("lr", "tb")


@st.composite
def graphs(draw: st.DrawFn) -> Depends:
    """Return a graph without cycles: each step waits for some of those before it."""
    size = draw(st.integers(1, 24))
    return tuple(
        tuple(draw(st.lists(st.integers(0, number - 1), unique=True, max_size=4))) if number else ()
        for number in range(size)
    )


def _overlaps(placed: Layout) -> list[tuple[int, int]]:
    return [
        (one, other)
        for (one, (x, y)), (other, (ox, oy)) in combinations(enumerate(placed.corners), 2)
        if abs(x - ox) < WIDTH and abs(y - oy) < HEIGHT
    ]


def _ends(path: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return where an edge begins and where its tip is: the middle of the three points behind the last `M`."""
    points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)]
    return points[0], points[-2]


@given(graphs(), st.integers(0, 6), st.sampled_from(WAYS))
def test_nothing_overlaps_and_everything_is_inside(depends: Depends, handlers: int, way: str) -> None:
    placed = layout(depends, handlers, way)
    assert len(placed.corners) == len(depends) + handlers
    assert _overlaps(placed) == []
    for x, y in placed.corners:
        assert 0 <= x <= placed.width - WIDTH
        assert 0 <= y <= placed.height - HEIGHT


@given(graphs(), st.sampled_from(WAYS))
def test_every_dependency_is_an_edge_that_runs_forward_from_its_box_to_its_box(depends: Depends, way: str) -> None:
    placed = layout(depends, 0, way)
    pairs = [(before, after) for after, named in enumerate(depends) for before in named]
    assert sorted(before for before, _ in placed.paths) == sorted(before for before, _ in pairs)
    for (before, after), (number, path) in zip(pairs, placed.paths, strict=True):
        assert number == before
        begin, tip = _ends(path)
        (x, y), (ox, oy) = placed.corners[before], placed.corners[after]
        if way == "lr":
            assert x + WIDTH < ox
            assert begin == pytest.approx((x + WIDTH, y + HEIGHT / 2), abs=0.1)
            assert tip == pytest.approx((ox, oy + HEIGHT / 2), abs=0.1)
        else:
            assert y + HEIGHT < oy
            assert begin == pytest.approx((x + WIDTH / 2, y + HEIGHT), abs=0.1)
            assert tip == pytest.approx((ox + WIDTH / 2, oy), abs=0.1)


@given(graphs(), st.sampled_from(WAYS))
def test_the_same_graph_has_the_same_places(depends: Depends, way: str) -> None:
    assert layout.__wrapped__(depends, 1, way) == layout.__wrapped__(depends, 1, way)


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=4), min_size=10, max_size=10), st.sampled_from(WAYS))
def test_steps_on_a_cycle_are_placed_too(named: list[list[int]], way: str) -> None:
    placed = layout(tuple(tuple(one) for one in named), 0, way)
    assert len(placed.corners) == 10
    assert _overlaps(placed) == []


def test_a_chain_is_a_straight_line() -> None:
    placed = layout(((), (0,), (1,), (2,)), 0, "lr")
    assert len({y for _, y in placed.corners}) == 1
    assert [x for x, _ in placed.corners] == sorted(x for x, _ in placed.corners)


def test_two_ways_that_need_not_cross_do_not() -> None:
    """0 → 3 and 1 → 2: the order of the second layer follows the first, not the file."""
    placed = layout(((), (), (1,), (0,)), 0, "lr")
    assert (placed.corners[0][1] < placed.corners[1][1]) == (placed.corners[3][1] < placed.corners[2][1])


@pytest.mark.parametrize(
    "depends",
    [
        ((), *((number,) for number in range(1999))),
        ((), *((0,) for _ in range(1998)), tuple(range(1, 1999))),
        tuple(tuple(range(max(0, number - 30), number)) for number in range(2000)),
    ],
    ids=["chain", "fan", "dense"],
)
def test_two_thousand_steps_are_placed(depends: Depends) -> None:
    placed = layout(depends, 1, "tb")
    assert len(set(placed.corners)) == 2001


def test_an_edge_that_follows_from_others_is_left_out_of_a_very_dense_graph() -> None:
    depends = tuple(tuple(range(number)) for number in range(60))
    assert [before for before, _ in layout(depends, 0, "lr").paths] == list(range(59))
