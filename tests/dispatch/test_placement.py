"""The one decision where a run is executed."""

from __future__ import annotations

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dispatch.operating import Placement
from secure_dagu.dispatch.placement import placement_of


@pytest.mark.parametrize(
    ("selector", "has_coordinator", "by_default", "expected"),
    [
        ("", False, False, Placement.LOCAL),
        ("", True, False, Placement.LOCAL),
        ("", True, True, Placement.WORKERS),
        ("", False, True, Placement.LOCAL),
        ("worker_selector: local\n", True, True, Placement.LOCAL),
        ("worker_selector: {gpu: 'true'}\n", True, False, Placement.WORKERS),
        ("worker_selector: {gpu: 'true'}\n", False, True, Placement.LOCAL),
    ],
)
def test_the_first_match_wins(selector: str, *, has_coordinator: bool, by_default: bool, expected: Placement) -> None:
    dag = load_definition(f"{selector}steps: [{{id: a, run: 'true'}}]", name="flow").main
    assert placement_of(dag, has_coordinator=has_coordinator, distributed_by_default=by_default) is expected
