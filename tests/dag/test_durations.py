from __future__ import annotations

import pytest

from secure_dagu.dag.durations import seconds
from secure_dagu.errors import DefinitionError


@pytest.mark.parametrize(
    ("written", "expected"),
    [(5, 5.0), ("5", 5.0), (0.5, 0.5), ("1h30m", 5400.0), ("500ms", 0.5), ("1.5s", 1.5), (".5s", 0.5), ("0", 0.0)],
)
def test_a_duration_is_seconds_or_go_syntax(written: object, expected: float) -> None:
    assert seconds(written, field="timeout") == pytest.approx(expected)


@pytest.mark.parametrize("written", ["", "h", "-1s", -1, "5x", "1 s", True, None, float("nan"), "99999999999h"])
def test_what_is_no_duration_is_refused_by_the_name_of_its_field(written: object) -> None:
    with pytest.raises(DefinitionError, match="timeout is not a duration"):
        seconds(written, field="timeout")
