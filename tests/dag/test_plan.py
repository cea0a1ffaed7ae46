"""Plans: indexes, order, cycles."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from secure_dagu.errors import DefinitionError


def graph(edges: dict[str, list[str]]) -> str:
    return "steps:\n" + "".join(f"  - {{id: {name}, run: x, depends: {before}}}\n" for name, before in edges.items())


def test_a_plan_knows_both_directions() -> None:
    plan = make_plan(load_definition(graph({"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []})).main)
    assert plan.index == {"d": 0, "b": 1, "c": 2, "a": 3}
    assert plan.dependencies == ((1, 2), (3,), (3,), ())
    assert plan.dependents == ((), (0,), (0,), (1, 2))
    assert plan.order == (3, 1, 2, 0)


def test_ancestors_are_found_breadth_first_from_the_authored_order() -> None:
    plan = make_plan(
        load_definition(graph({"ancestor": [], "middle": ["ancestor"], "direct": [], "c": ["middle", "direct"]})).main
    )
    assert [plan.steps[at].name for at in plan.ancestors(plan.index["c"])] == ["middle", "direct", "ancestor"]
    assert [plan.steps[at].name for at in plan.descendants(plan.index["ancestor"])] == ["middle", "c"]


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": ["a"]}, "a → a"),
        ({"a": ["c"], "b": ["a"], "c": ["b"]}, "a → b → c → a"),
        ({"z": ["a"], "a": ["b"], "b": ["a"]}, "a → a"),
    ],
)
def test_a_cycle_loads_but_has_no_plan(edges: dict[str, list[str]], cycle: str) -> None:
    loaded = load_definition(graph(edges), strict=True)
    with pytest.raises(DefinitionError, match="cyclic plan detected") as caught:
        make_plan(loaded.main)
    names = caught.value.why.split(" → ")
    assert names[0] == names[-1]
    assert all(before in edges[after] for before, after in pairwise(names))
    if len(set(names)) > 1:
        assert set(names) <= set(edges)


@given(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=1, max_size=12))
def test_every_step_comes_after_all_that_it_waits_for(rows: list[list[int]]) -> None:
    names = [f"s{at}" for at in range(len(rows))]
    edges = {name: [names[at] for at in row if at < len(rows)] for name, row in zip(names, rows, strict=True)}
    try:
        plan = make_plan(load_definition(graph(edges)).main)
    except DefinitionError as error:
        cycle = error.why.split(" → ")
        assert all(before in edges[after] for before, after in pairwise(cycle))
        return
    place = {at: number for number, at in enumerate(plan.order)}
    assert sorted(place) == list(range(len(rows)))
    assert all(place[before] < place[at] for at in place for before in plan.dependencies[at])
