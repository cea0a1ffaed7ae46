"""docs/reference/workflows.md is true: its examples load, its lists of keys are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secure_dagu.dag import nodes, params, schema, steps, values
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan

PAGE = (Path(__file__).parents[2] / "docs/reference/workflows.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_loads_without_a_warning_and_can_be_planned(text: str) -> None:
    definition = load_definition(text, file="example.yaml", strict=True)
    assert definition.warnings == ()
    for dag in (definition.main, *definition.locals.values()):
        make_plan(dag)


def keys(section: str, start: str) -> set[str]:
    body = PAGE.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    line = next(line for line in body.splitlines() if line.startswith(start))
    return set(re.findall(r"`([a-z0-9_]+)`", line))


@pytest.mark.parametrize(("section", "table"), [("Keys of a workflow", schema.ROOT), ("Keys of a step", schema.STEP)])
@pytest.mark.parametrize(
    ("start", "use"),
    [
        ("Acted on", schema.Use.ACTED_ON),
        ("Accepted", schema.Use.ACCEPTED),
        ("Refused", schema.Use.REFUSED),
    ],
)
def test_the_lists_of_keys_are_those_of_the_tables(
    section: str, table: schema.Table, start: str, use: schema.Use
) -> None:
    assert keys(section, start) == {name for name, key in table.items() if key.use is use}


def test_the_actions_are_those_of_the_table() -> None:
    body = PAGE.split("## Actions\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([a-z.]+)` \|(.*?)\|", body, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", inputs)) for name, inputs in rows} == {
        name: set(action.keys) for name, action in schema.ACTIONS.items()
    }


def test_the_limits_are_those_of_the_code() -> None:
    limits = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", PAGE.split("## Limits\n", 1)[1], re.MULTILINE))
    number = {
        "text": nodes.MAX_TEXT_BYTES // 2**20,
        "nesting": nodes.MAX_DEPTH,
        "nodes": nodes.MAX_NODES,
        "aliases": nodes.MAX_ALIASES,
        "size after expanding aliases (one a node, one more for each 32 characters)": nodes.MAX_EXPANDED,
        "documents": nodes.MAX_DOCUMENTS,
        "dependencies of one chain": steps.MAX_EDGES,
        "one field after its references were replaced": values.MAX_RESOLVED // 2**20,
        "parameters given by the caller": params.MAX_INPUT_BYTES // 2**20,
    }
    assert {name: int(limits[name].split()[0].replace(",", "")) for name in number} == number
