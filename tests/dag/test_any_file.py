"""Whatever a file says, loading it ends with a definition or with a DefinitionError, never with a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dag import actions, legacy, schema
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from secure_dagu.errors import DefinitionError

WORDS = ["x", "a", "", "local", "direct", "re:(", "$X", "${", "${a.b}", "{{ .input.x }}", "a\nb", "json", "file", "1s"]
SCALARS = st.sampled_from([*WORDS, None, True, 5, -1, 1.5])
TABLES = [
    table
    for table in vars(schema).values()
    if isinstance(table, Mapping) and table and all(isinstance(key, schema.Key) for key in table.values())
]


def maps(table: Mapping[str, object], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted(table)), values, max_size=4) if table else st.just({})


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.sampled_from(TABLES).flatmap(lambda table: maps(table, inner))
    ),
    max_leaves=8,
)


@st.composite
def steps(draw: st.DrawFn, depth: int = 1) -> dict[str, Any]:
    body = draw(maps(schema.STEP, VALUES))
    form = draw(st.sampled_from(["run", "action", "type", "foreach", "any"]))
    if form == "run":
        return {**body, "run": "x"}
    if form == "action":
        name = draw(st.sampled_from([*sorted(actions.ACTIONS), "redis.get", "mine"]))
        action = actions.action_named(name) or actions.REDIS
        return {"id": draw(st.sampled_from("abc")), "action": name, "with": draw(maps(action.keys, VALUES))}
    if form == "type":
        action = draw(st.sampled_from(list(actions.ACTIONS.values())))
        kind = draw(st.sampled_from(sorted(legacy.TYPES)))
        config = draw(maps(action.keys, VALUES))
        return {"type": kind, "command": draw(VALUES), "config": config}
    if form == "foreach" and depth:
        return {"foreach": {**draw(maps(schema.FOREACH, VALUES)), "steps": [draw(steps(depth=depth - 1))]}}
    return body


@settings(max_examples=60)
@given(
    root=maps(schema.ROOT, VALUES),
    listed=st.lists(steps(), max_size=3),
    own=st.none() | steps(),
    base=st.none() | maps(schema.ROOT, VALUES),
    strict=st.booleans(),
)
def test_loading_never_crashes(
    root: dict[str, Any], listed: list[Any], own: dict[str, Any] | None, base: dict[str, Any] | None, strict: bool
) -> None:
    document = {**root, "steps": listed}
    if own is not None:
        document["actions"] = {"mine": {"input_schema": {"type": "object"}, "template": own}}
    try:
        loaded = load_definition(
            json.dumps(document), file="a.yaml", base_config="" if base is None else json.dumps(base), strict=strict
        )
        make_plan(loaded.main)
    except DefinitionError:
        pass
