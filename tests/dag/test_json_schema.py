"""The JSON Schema of workflow files: a valid schema, that agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from secure_dagu.dag import actions, nodes, schema
from secure_dagu.dag.json_schema import DESCRIPTIONS, dag_schema

SCHEMA = dag_schema()


def fits(text: str) -> bool:
    validator = Draft202012Validator(SCHEMA)
    return all(validator.is_valid(nodes.plain_value(node)) for node in nodes.parse(text, file="a.yaml"))


def test_it_is_a_schema_and_plain_json() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_every_workflow_that_comes_with_the_program_fits() -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("secure_dagu/local/examples/*.yaml"), *root.glob("examples/**/*.yaml")]
    assert len(files) > 10
    assert [file.name for file in files if not fits(file.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "stepz: []",
        "steps: text",
        "steps: [{runn: x}]",
        "steps: [{run: x, with: {shel: bash}}]",
        "steps: [{action: http.request, with: {method: GET}}]",
        "steps: [{action: jq.filter, with: {filter: ., data: 1, input: x}}]",
        "steps: [{action: redis.get, with: {keyy: a}}]",
        "steps: [{action: wait.file, with: {path: x, state: nope}}]",
        "type: agent",
        "steps: [{run: x, retry_policy: {limit: 1}}]",
        "tasks: []",
    ],
)
def test_what_the_loader_refuses_does_not_fit(text: str) -> None:
    assert not fits(text)


def test_every_key_of_the_tables_is_in_it() -> None:
    def keys(table: schema.Table) -> set[str]:
        return {name for name, key in table.items() if key.use is not schema.Use.REFUSED}

    assert set(SCHEMA["properties"]) == keys(schema.ROOT)
    assert set(SCHEMA["$defs"]["step"]["properties"]) == keys(schema.STEP)
    for name, action in actions.ACTIONS.items():
        assert set(SCHEMA["$defs"][f"with.{name}"]["properties"]) == set(action.keys)


def test_descriptions_are_of_keys_that_exist() -> None:
    assert set(DESCRIPTIONS) <= schema.ROOT.keys() | schema.STEP.keys()


def test_references_lead_somewhere() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/$defs/") in SCHEMA["$defs"]
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    check(SCHEMA)
