"""Check what a person enters into the form of a human task (workflow language, section 3.25). Pure.

A form is a flat JSON Schema: an object whose properties are scalars. A task without one takes no input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secure_dagu.dag import formats, schema_check
from secure_dagu.errors import DefinitionError, LimitExceeded


def checked(form: Mapping[str, Any] | None, given: Mapping[str, Any], *, limit_bytes: int) -> dict[str, Any]:
    """Return the canonical input: defaults filled in, text turned into the property's type.

    Args:
        given: values by property; text where somebody typed `name=value`.
        limit_bytes: `max_output_size` of the DAG, for the canonical input as JSON.

    Raises:
        DefinitionError: the task takes no input, or the input does not fit the form.
        LimitExceeded: it is too large.
    """
    if form is None:
        if given:
            raise DefinitionError("the human task does not accept input", why="it only waits to be acknowledged")
        return {}
    properties = form.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    values = {name: _coerced(properties.get(name), value) for name, value in given.items()}
    for name, rule in properties.items():
        if name not in values and isinstance(rule, Mapping) and "default" in rule:
            values[name] = rule["default"]
    unknown = [name for name in values if name not in properties]
    if unknown:
        raise DefinitionError(f"the form has no property {unknown[0]!r}", why="additional properties are not allowed")
    schema = {"additionalProperties": False, **form, "type": "object"}
    for name in schema.get("required") or ():
        if name not in values:
            raise DefinitionError(f"the property {name!r} is required")
    if found := schema_check.problem(schema, values):
        raise DefinitionError("the input does not fit the form", why=found)
    canonical = {name: values[name] for name in sorted(values)}
    if len(formats.compact_json(canonical).encode()) > limit_bytes:
        raise LimitExceeded("the input exceeds the maximum size", why=f"max_output_size is {limit_bytes} bytes")
    return canonical


def _coerced(rule: Any, value: Any) -> Any:
    """Return text as the type that the form asks for; what cannot be is left for the form to refuse."""
    kind = rule.get("type") if isinstance(rule, Mapping) else None
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return value
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), value)
    return value
