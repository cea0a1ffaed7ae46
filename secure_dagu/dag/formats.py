"""Turn values into the text that a reference inserts, and back into data. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from msgspec import Struct

NIL = "<nil>"
"""What a missing key or a null becomes when a path into a JSON value ends there."""

_MAYBE_FLOAT = re.compile(r"[:\[,]\s*-?\d+[.e]")
_TEXT_OR_FLOAT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+(?:e[+-]\d+)?|e[+-]\d+)')
_INDEX = re.compile(r"\[(\d{1,9})\]")


def as_text(value: Any) -> str:
    """Return the inserted form: text as is, numbers in decimal without exponent, containers as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return NIL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return float_text(value)
    return compact_json(value)


def float_text(value: float) -> str:
    """Return the shortest decimal that reads back as `value`, without exponent: 1.10 → `1.1`, 1.0 → `1`."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    if value.is_integer() and abs(value) < 1e16:
        return str(int(value))
    text = repr(value)
    return format(Decimal(text), "f") if "e" in text else text


def compact_json(value: Any) -> str:
    """Return JSON without spaces, keys in their own order, numbers as Go writes them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return _with_numbers(text) if _MAYBE_FLOAT.search(text) or isinstance(value, float) else text


def pretty_json(value: Any, indent: int) -> str:
    """Return JSON in lines, keys in their own order, numbers as Go writes them."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)
    return _with_numbers(text) if _MAYBE_FLOAT.search(text) or isinstance(value, float) else text


def _with_numbers(text: str) -> str:
    """Return JSON with the floats that Python wrote as Go writes them: `1` for 1.0, exponents only from 1e21 on."""
    return _TEXT_OR_FLOAT.sub(lambda found: found[0] if found[0][0] == '"' else _json_number(float(found[0])), text)


def _json_number(value: float) -> str:
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return float_text(value)
    return re.sub(r"e([+-])0(\d)$", r"e\1\2", repr(value))


def has_no_number(value: Any) -> bool:
    """Tell whether a number in `value` is none, which JSON cannot spell."""
    try:
        json.dumps(value, allow_nan=False, default=_plain)
    except ValueError:
        return True
    return False


def sorted_json(value: Mapping[str, str]) -> str:
    """Return JSON without spaces, keys sorted: the form of `DAG_PARAMS_JSON`."""
    return json.dumps(dict(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def json_container(text: str | None) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or array that `text` holds; None for anything else."""
    if text is None or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict | list) else None


def pick_text(data: Any, path: tuple[str, ...]) -> str:
    """Return the text at `path` (`key` or `[0]` a segment) below `data`; a missing key or null gives `<nil>`."""
    for depth, segment in enumerate(path, 1):
        index = _INDEX.fullmatch(segment)
        if index is None:
            data = data.get(segment) if isinstance(data, Mapping) else None
        elif isinstance(data, list | tuple) and int(index[1]) < len(data):
            data = data[int(index[1])]
        else:
            return NIL
        if isinstance(data, str) and depth < len(path):
            data = json_container(data)  # an entry may itself hold JSON text
    return as_text(data)


def _plain(value: Any) -> Any:
    """Let frozen mappings and tuples be written as JSON."""
    return dict(value) if isinstance(value, Mapping) else list(value)


def shown_without(value: Struct, *hidden: str) -> str:
    """Return what `repr` says of a value, with `…` for fields that hold secrets: traces print what they get hold of."""
    shown = (f"{name}={'…' if name in hidden else repr(getattr(value, name))}" for name in value.__struct_fields__)
    return f"{type(value).__name__}({', '.join(shown)})"
