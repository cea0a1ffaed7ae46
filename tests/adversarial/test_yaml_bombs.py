"""A definition is a stranger's text: it is refused quickly, or costs no more than what it says."""

from __future__ import annotations

import contextlib
import time

import pytest

from secure_dagu.dag import nodes
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.scope import Env, Layer, Scope
from secure_dagu.dag.values import FieldMode, resolve, resolve_dynamic
from secure_dagu.errors import DefinitionError, LimitExceeded

LEVELS = "abcdefghijklmnop"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{LEVELS[at]}: &{LEVELS[at]} [{', '.join(['*' + LEVELS[at - 1]] * 9)}]\n" for at in range(1, len(LEVELS))
)
MERGES = "a: &a {k: &t " + "x" * 4000 + "}\n" + "".join(f"m{at}: [{', '.join(['*a'] * 900)}]\n" for at in range(10))


def seconds(text: str, fragment: str) -> float:
    started = time.process_time()
    with pytest.raises(DefinitionError) as caught:
        load_definition(text, file="bomb.yaml")
    assert fragment in caught.value.why
    assert len(str(caught.value)) < 10_000
    return time.process_time() - started


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (LAUGHS, "aliases are expanded"),
        (MERGES, "aliases are expanded"),
        ("a: &a 1\nb: [" + "*a, " * (nodes.MAX_ALIASES + 1) + "]", "aliases"),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 10_000 + "x", "nested too deeply"),
        ("a: &a [*a]", "contains itself"),
        ("a: !!python/object:os.system x", "tags are not accepted"),
        ("steps: !include x", "tags are not accepted"),
        ("x: " + "y" * nodes.MAX_TEXT_BYTES, "too large"),
        ("x: " + "ä" * (nodes.MAX_TEXT_BYTES // 2), "too large"),
        ("---\na\n" * (nodes.MAX_DOCUMENTS + 1), "documents"),
        ("a: \x00", "yaml"),
        ("a: \ud800", "yaml"),
        ("steps: []\nsteps: []", "already defined"),
        ("? {a: b}\n: c", "key must be plain text"),
    ],
)
def test_an_exploding_text_is_refused_within_a_second(text: str, fragment: str) -> None:
    assert seconds(text, fragment) < 1.0


def test_more_nodes_than_the_limit_are_refused() -> None:
    with pytest.raises(DefinitionError) as caught:
        nodes.parse("[" + "a," * (nodes.MAX_NODES + 1) + "]", file="")
    assert "nodes" in caught.value.why


def test_a_chain_of_wide_groups_cannot_make_a_million_edges() -> None:
    group = "  - [" + ", ".join(["{run: x}"] * 1_000) + "]\n"
    assert seconds("type: chain\nsteps:\n" + group * 2, "dependencies") < 5.0


def test_thousands_of_mistakes_do_not_cost_thousands_of_searches() -> None:
    keys = "".join(f"sttep{at}: 1\n" for at in range(20_000))
    assert seconds(keys, "and 1995") < 5.0


def test_colliding_generated_names_are_settled_in_linear_time() -> None:
    count = 5_000
    authored = "".join(f"  - {{name: cmd_{at}, run: x}}\n" for at in range(1, count))
    started = time.process_time()
    loaded = load_definition("steps:\n" + "  - {run: x}\n" * count + authored)
    assert len({step.name for step in loaded.main.steps}) == 2 * count - 1
    assert time.process_time() - started < 5.0


HOSTILE = [
    "$" * 200_000,
    "\\" * 200_000 + "${params.x}",
    "\\$" * 50_000,
    "${" * 100_000,
    "${A:-" * 50_000 + "}" * 50_000,
    "${A:=" * 20_000 + "}",
    "'$A" * 20_000,
    "$A.b[0]" * 8_000,
    "`" * 99_999,
    "$(" * 100_000,
    "$(" + "\\)" * 100_000,
    "${A##" + "*a" * 400 + "}",
    "${A%%" + "*a" * 400 + "b}",
    "${A//*a*/b}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_references_resolve_in_bounded_time(text: str) -> None:
    scope = Scope(env=Env().with_layer(Layer.ROOT_ENV, {"A": "a" * 2_000}), params={"x": "1"})
    started = time.process_time()
    for mode in FieldMode:
        with contextlib.suppress(LimitExceeded):
            resolve(text, scope, mode)
    with contextlib.suppress(LimitExceeded):
        resolve_dynamic(text, scope)
    assert time.process_time() - started < 5.0


def test_a_field_that_grows_without_end_is_refused() -> None:
    scope = Scope(params={"x": "v" * 1_000_000})
    with pytest.raises(LimitExceeded):
        resolve("${params.x}" * 100, scope, FieldMode.SHELL)
