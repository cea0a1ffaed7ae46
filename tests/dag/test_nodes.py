"""The YAML dialect: scalar rules of section 1.1, anchors, merge keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag import nodes
from secure_dagu.errors import DefinitionError


def only(text: str) -> nodes.Node:
    [document] = nodes.parse(text, file="t.yaml")
    return document


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        ("true", True, "true"),
        ("FALSE", False, "false"),
        ("yes", "yes", "yes"),
        ("on", "on", "on"),
        ("~", None, "<nil>"),
        ("null", None, "<nil>"),
        ("0x10", 16, "16"),
        ("0o17", 15, "15"),
        ("010", 8, "8"),
        ("08", "08", "08"),
        ("1_000", 1000, "1000"),
        ("-5", -5, "-5"),
        ("1.10", 1.1, "1.1"),
        ("1.0", 1.0, "1"),
        (".inf", float("inf"), "+Inf"),
        ("-.inf", float("-inf"), "-Inf"),
        ("1e3", "1e3", "1e3"),
        ("1.0e3", 1000.0, "1000"),
        ("2024-01-01", "2024-01-01", "2024-01-01"),
        ("12:30", "12:30", "12:30"),
        ("1.2.3", "1.2.3", "1.2.3"),
        ("'0x10'", "0x10", "0x10"),
        ('"true"', "true", "true"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: Any, shown: str) -> None:
    node = only(f"k: {text}")
    assert isinstance(node, nodes.Mapping)
    scalar = node.entries["k"]
    assert isinstance(scalar, nodes.Scalar)
    assert (nodes.scalar_value(scalar), nodes.scalar_text(scalar)) == (value, shown)
    assert type(nodes.scalar_value(scalar)) is type(value)


def test_merge_keys_fill_in_what_is_not_written() -> None:
    text = "b: &b {x: 1, y: 2}\na: {<<: *b, x: 9}\nc: {z: 0, <<: [*b, {y: 5, w: 6}]}"
    assert nodes.plain_value(only(text)) == {
        "b": {"x": 1, "y": 2},
        "a": {"x": 9, "y": 2},
        "c": {"z": 0, "x": 1, "y": 2, "w": 6},
    }


def test_a_key_written_twice_is_refused_even_beside_a_merge_key() -> None:
    with pytest.raises(DefinitionError, match=r"t\.yaml:1:24: the key \"x\" is already defined at line 1"):
        only("{<<: {x: 0}, x: 1,     x: 2}")


def test_positions_are_one_based_lines_and_columns() -> None:
    node = only("a:\n  - b\n  -   c\n")
    assert isinstance(node, nodes.Mapping)
    items = node.entries["a"]
    assert isinstance(items, nodes.Sequence)
    assert [str(item.position) for item in items.items] == ["t.yaml:2:5", "t.yaml:3:7"]


@given(st.text(max_size=80) | st.text(alphabet="-:[]{}&*a!|>'\"\n #?,<%@`", max_size=80))
def test_arbitrary_text_is_parsed_or_refused_and_nothing_else(text: str) -> None:
    try:
        for node in nodes.parse(text, file="t.yaml"):
            nodes.plain_value(node)
    except DefinitionError:
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: {u: http://x:80/p, v: 1}", {"a": {"u": "http://x:80/p", "v": 1}}),
        ("a: [http://x:80, 10:30, b]", {"a": ["http://x:80", "10:30", "b"]}),
        ("a: {t: 2026-01-01T10:00:00Z}\nb: &x 'q'\nc: *x", {"a": {"t": "2026-01-01T10:00:00Z"}, "b": "q", "c": "q"}),
    ],
)
def test_plain_text_of_the_flow_style_may_hold_colons(text: str, value: object) -> None:
    assert nodes.plain_value(nodes.parse(text, file="")[0]) == value


def test_the_slow_parser_keeps_the_rules_of_the_fast_one() -> None:
    for text, said in (("a: [x:1]\na: 2", "already defined"), ("a: [x:1]\nb: !t 1", "tags"), ("a: [x:1", "yaml")):
        with pytest.raises(DefinitionError) as caught:
            nodes.parse(text, file="")
        assert said in str(caught.value)
