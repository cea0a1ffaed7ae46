"""What template functions ask of their arguments: kinds, truth, numbers, bounded sizes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secure_dagu.dag import go_text

MAX_TEXT = 16 * 2**20
"""Characters that one function may make."""

MAX_LIST = 200_000
"""Items that one function may make."""

MAX_SUBJECT = 2**20
"""Characters that a regular expression is matched against."""


class Failure(Exception):
    """A template function refuses its arguments; the text becomes the `why` of an error that names the line."""


def is_true(value: Any) -> bool:
    """Return whether Go templates take `value` for true: not nil, false, zero, or empty."""
    return bool(value)


def text(value: Any) -> str:
    """Return an argument that must be a string."""
    if isinstance(value, str):
        return value
    raise Failure(f"wrong type for value; expected string; got {go_text.type_name(value)}")


def shown(value: Any) -> str:
    """Return any argument as text, as `%v` writes it; nil is empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return go_text.show(value)
    except ValueError as problem:
        raise Failure(str(problem)) from problem


def items(value: Any) -> list[Any]:
    """Return an argument that must be a list."""
    if isinstance(value, list | tuple):
        return list(value)
    raise Failure(f"expected a list; got {go_text.type_name(value)}")


def table(value: Any) -> dict[str, Any]:
    """Return an argument that must be a map; it is the map itself, not a copy."""
    if isinstance(value, dict):
        return value
    raise Failure(f"expected a map; got {go_text.type_name(value)}")


def whole(value: Any) -> int:
    """Return an argument as a 64-bit integer as sprig casts it: text is parsed, what is not a number is 0."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return wrapped(value)
    if isinstance(value, float):
        return wrapped(int(value)) if abs(value) < 2**63 else 0
    if isinstance(value, str):
        found = re.fullmatch(r"([+-]?\d{1,19})(?:\.0*)?", value.strip())
        return wrapped(int(found[1])) if found else 0
    return 0


def real(value: Any) -> float:
    """Return an argument as a float; what is not a number is 0."""
    if isinstance(value, bool | int | float):
        return float(value)
    try:
        return float(value) if isinstance(value, str) and len(value) < 400 else 0.0
    except ValueError:
        return 0.0


def size(value: Any) -> int:
    """Return an argument that must be an integer: a count or a position."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    raise Failure(f"wrong type for value; expected int; got {go_text.type_name(value)}")


def wrapped(number: int) -> int:
    """Return `number` as a 64-bit integer holds it."""
    return (number + 2**63) % 2**64 - 2**63


def bounded(length: int) -> None:
    """Refuse to make a text of `length` characters when that is too long."""
    if length > MAX_TEXT:
        raise Failure(f"the text would be longer than {MAX_TEXT} characters")


def bounded_list(length: int) -> None:
    """Refuse to make a list of `length` items when that is too long."""
    if length > MAX_LIST:
        raise Failure(f"the list would be longer than {MAX_LIST} items")


def equal(left: Any, right: Any) -> bool:
    """Return deep equality; a boolean never equals a number."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(equal(one, other) for one, other in zip(left, right, strict=True))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
