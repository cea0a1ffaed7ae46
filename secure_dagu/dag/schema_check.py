"""Check a value against a JSON Schema of the author's. Pure: no reference leads out of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def problem(schema: Mapping[str, Any], value: Any) -> str:
    """Return what is wrong with `value`, named by its path; empty when nothing is. A schema that is none is a problem.

    The library is imported here: it costs more than a run, and few steps have a schema.
    """
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        checker = validators.validator_for(schema, default=validators.Draft202012Validator)
        checker.check_schema(dict(schema))
        found = exceptions.best_match(checker(dict(schema), registry=Registry()).iter_errors(value))
    except exceptions.SchemaError as error:
        return f"the schema is invalid: {error.message}"
    except (Unresolvable, RecursionError) as error:
        return f"the schema cannot be followed: {type(error).__name__}"
    if found is None:
        return ""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found.absolute_path)
    return f"{where.lstrip('.')}: {found.message}" if where else found.message
