"""Values as text: what references insert, and JSON with numbers as Go writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"), (-2.0, "-2"), (2.5, "2.5"), (1e15, "1000000000000000"), (9007199254740993.0, "9007199254740992"),
        (1e20, "100000000000000000000"), (0.00001, "0.00001"), (1e-7, "0.0000001"), (True, "true"), (None, "<nil>"),
    ],
)  # fmt: skip
def test_a_value_is_inserted_as_text(value: Any, text: str) -> None:
    assert formats.as_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1.0}, '{"a":1}'),
        ([1.0, 2.50, -0.5, 3], "[1,2.5,-0.5,3]"),
        (3.0, "3"),
        ([1e20, 1e21, 0.00001, 1e-7], "[100000000000000000000,1e+21,0.00001,1e-7]"),
        ({"a": "x: 1.0, [2.0", "b": 'q":3.0', "c": 4.0}, '{"a":"x: 1.0, [2.0","b":"q\\":3.0","c":4}'),
        ({"t": "2026-11-26T18:00:00.50Z"}, '{"t":"2026-11-26T18:00:00.50Z"}'),
        ([10**30], f"[{10**30}]"),
    ],
)
def test_json_has_numbers_as_go_writes_them(value: Any, text: str) -> None:
    assert formats.compact_json(value) == text
    assert json.loads(formats.pretty_json(value, 2)) == json.loads(text) == value


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none(), st.lists))
def test_json_says_what_the_value_is(value: Any) -> None:
    assert json.loads(formats.compact_json(value), parse_int=float) == value


@pytest.mark.parametrize(("value", "is_wrong"), [([1.5], False), ({"a": float("nan")}, True), ([float("inf")], True)])
def test_numbers_that_json_cannot_spell_are_found(value: Any, is_wrong: bool) -> None:
    assert formats.has_no_number(value) is is_wrong
