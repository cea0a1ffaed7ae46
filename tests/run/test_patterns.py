"""Values matched exactly or by a regex."""

from __future__ import annotations

import pytest

from secure_dagu.errors import DefinitionError
from secure_dagu.run import patterns


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("a", "a", True), ("a", "x\na\ny", True), ("a", "ab", False), ("re:^a.$", "xx\nab", True), ("re:A", "a", False),
        ("", "", True), ("", "x", False), ("re:x*", "", True),
    ],
)  # fmt: skip
def test_an_expected_value_matches_a_line(pattern: str, text: str, matches: bool) -> None:
    assert patterns.line_equals(pattern, text) is matches


def test_a_regex_that_is_none_is_an_error_and_a_route_that_takes_nothing() -> None:
    with pytest.raises(DefinitionError, match="regexp"):
        patterns.equals("re:(", "x")
    assert not patterns.routes(["re:("], "x")
    assert patterns.routes(["re:(", "x"], "x")
