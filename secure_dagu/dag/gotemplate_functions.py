"""Template functions: Go's own, arithmetic, lists, maps, defaults and JSON, and the one table of all of them. Pure."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import cache, reduce
from typing import Any

from secure_dagu.dag import go_text, gotemplate_strings
from secure_dagu.dag.gotemplate_values import (
    Failure,
    bounded_list,
    equal,
    is_true,
    items,
    real,
    shown,
    size,
    table,
    text,
    whole,
    wrapped,
)

__all__ = ["FUNCTIONS", "Failure", "arity", "is_true"]


@cache
def arity(function: Callable[..., Any]) -> tuple[int, int | None]:
    """Return how many arguments a function takes: at least, and at most; None when there is no most."""
    kinds = inspect.Parameter
    parameters = [
        item for item in inspect.signature(function).parameters.values() if item.kind is not kinds.KEYWORD_ONLY
    ]
    fixed = [item for item in parameters if item.kind is not kinds.VAR_POSITIONAL]
    least = sum(item.default is kinds.empty for item in fixed)
    return least, None if len(fixed) < len(parameters) else len(fixed)


# ------------------------------------------------------------------------------------------------------------ Go's own


def _comparable(value: Any) -> None:
    if isinstance(value, dict | list):
        raise Failure(f"non-comparable type {go_text.type_name(value)}")


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise Failure("missing argument for comparison")
    for other in others:
        _same_kind(first, other)
        if equal(first, other):
            return True
    return False


def _same_kind(left: Any, right: Any) -> None:
    _comparable(left)
    _comparable(right)
    if left is None or right is None:
        return
    if isinstance(left, str) != isinstance(right, str) or isinstance(left, bool) != isinstance(right, bool):
        raise Failure("incompatible types for comparison")


def _lt(left: Any, right: Any) -> bool:
    _same_kind(left, right)
    if left is None or right is None or isinstance(left, bool):
        raise Failure("invalid type for comparison")
    return bool(left < right)


def _le(left: Any, right: Any) -> bool:
    return _lt(left, right) or _eq(left, right)


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list | dict):
        return len(value)
    raise Failure("len of nil pointer" if value is None else f"len of type {go_text.type_name(value)}")


def _count(value: Any) -> int:
    return 0 if value is None else _len(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(text(key))
        elif isinstance(value, list):
            position = size(key)
            if not 0 <= position < len(value):
                raise Failure(f"index out of range: {position}")
            value = value[position]
        elif isinstance(value, str):
            data, position = value.encode("utf-8", "surrogateescape"), size(key)
            if not 0 <= position < len(data):
                raise Failure(f"index out of range: {position}")
            value = data[position]
        else:
            raise Failure(
                "index of untyped nil" if value is None else f"can't index item of type {go_text.type_name(value)}"
            )
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, str | list):
        raise Failure(f"can't slice item of type {go_text.type_name(value)}")
    data: Any = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    start = size(bounds[0]) if bounds else 0
    end = size(bounds[1]) if len(bounds) > 1 else len(data)
    if not 0 <= start <= end <= len(data):
        raise Failure(f"index out of range: {start}:{end}")
    return data[start:end].decode("utf-8", "replace") if isinstance(value, str) else data[start:end]


def _printed(write: Callable[..., str]) -> Callable[..., str]:
    def function(*values: Any) -> str:
        try:
            return write(*values)
        except ValueError as problem:
            raise Failure(str(problem)) from problem

    return function


def _printf(pattern: Any, *values: Any) -> str:
    return go_text.printf(text(pattern), values)


# ---------------------------------------------------------------------------------------------------------- arithmetic


def _folded(whole_step: Callable[[int, int], int], real_step: Callable[[float, float], float]) -> Callable[..., Any]:
    """Return a function of numbers: on integers, or on floats as soon as one operand is a fraction."""

    def function(*values: Any) -> int | float:
        if any(isinstance(value, float) and not value.is_integer() for value in values):
            return reduce(real_step, map(real, values))
        return reduce(lambda one, other: wrapped(whole_step(one, other)), map(whole, values))

    return function


def _add(*values: Any) -> Any:
    return _folded(lambda one, other: one + other, lambda one, other: one + other)(0, *values)


def _sub(first: Any, second: Any) -> Any:
    return _folded(lambda one, other: one - other, lambda one, other: one - other)(first, second)


def _mul(first: Any, *values: Any) -> Any:
    return _folded(lambda one, other: one * other, lambda one, other: one * other)(first, *values)


def _div(first: Any, second: Any) -> int:
    divisor = whole(second)
    if divisor == 0:
        raise Failure("integer divide by zero")
    quotient = abs(whole(first)) // abs(divisor)
    return quotient if (whole(first) < 0) == (divisor < 0) else -quotient


def _mod(first: Any, second: Any) -> int:
    return whole(first) - whole(second) * _div(first, second)


def _reals(step: Callable[[float, float], float]) -> Callable[..., float]:
    def function(first: Any, *values: Any) -> float:
        try:
            return reduce(step, map(real, (first, *values)))
        except ZeroDivisionError:
            return math.inf

    return function


def _round(value: Any, places: Any, half: Any = 0.5) -> float:
    scale = 10.0 ** max(-15, min(15, size(places)))
    scaled = real(value) * scale
    fraction, _ = math.modf(scaled)
    limit = real(half)
    if scaled >= 0:
        return (math.ceil(scaled) if fraction >= limit else math.floor(scaled)) / scale
    return (math.floor(scaled) if -fraction >= limit else math.ceil(scaled)) / scale


def _floor(value: Any) -> float:
    return float(math.floor(real(value)))


def _ceil(value: Any) -> float:
    return float(math.ceil(real(value)))


def _until(count: Any) -> list[int]:
    end = size(count)
    return _until_step(0, end, 1 if end >= 0 else -1)


def _until_step(start: Any, stop: Any, step: Any) -> list[int]:
    if size(step) == 0:
        return []
    numbers = range(size(start), size(stop), size(step))
    bounded_list(len(numbers))
    return list(numbers)


def _seq(*bounds: Any) -> str:
    given = [size(bound) for bound in bounds]
    if len(given) == 1:
        start, step, end = 1, 1 if given[0] >= 1 else -1, given[0]
    elif len(given) == 2:
        start, step, end = given[0], 1 if given[1] >= given[0] else -1, given[1]
    elif len(given) == 3:
        start, step, end = given
    else:
        return ""
    return " ".join(map(str, _until_step(start, end + (1 if step > 0 else -1), step)))


# --------------------------------------------------------------------------------------------------------------- lists


def _first(values: Any) -> Any:
    data = items(values)
    return data[0] if data else None


def _last(values: Any) -> Any:
    data = items(values)
    return data[-1] if data else None


def _append(values: Any, item: Any) -> list[Any]:
    return [*items(values), item]


def _prepend(values: Any, item: Any) -> list[Any]:
    return [item, *items(values)]


def _concat(*lists: Any) -> list[Any]:
    parts = [items(values) for values in lists]
    bounded_list(sum(map(len, parts)))
    return [item for part in parts for item in part]


def _among(item: Any, values: list[Any]) -> bool:
    return any(equal(item, known) for known in values)


def _uniq(values: Any) -> list[Any]:
    data = items(values)
    if len(data) > 5000:
        raise Failure("the list is too long to compare each item with each other")
    found: list[Any] = []
    for item in data:
        if not _among(item, found):
            found.append(item)
    return found


def _chunk(count: Any, values: Any) -> list[list[Any]]:
    data, width = items(values), size(count)
    if width < 1:
        raise Failure("the size of a chunk is at least 1")
    return [data[at : at + width] for at in range(0, len(data), width)]


# ---------------------------------------------------------------------------------------------------------------- maps


def _dict(*pairs: Any) -> dict[str, Any]:
    return {shown(key): pairs[at * 2 + 1] if at * 2 + 1 < len(pairs) else "" for at, key in enumerate(pairs[::2])}


def _set(values: Any, key: Any, value: Any) -> dict[str, Any]:
    table(values)[text(key)] = value
    return table(values)


def _unset(values: Any, key: Any) -> dict[str, Any]:
    table(values).pop(text(key), None)
    return table(values)


def _get(values: Any, key: Any) -> Any:
    return table(values).get(text(key), "")


def _dig(*path_default_and_map: Any) -> Any:
    if len(path_default_and_map) < 3:
        raise Failure("dig needs at least three arguments")
    *path, default, value = path_default_and_map
    for key in path:
        value = table(value)
        if text(key) not in value:
            return default
        value = value[key]
    return value


def _keys(*maps: Any) -> list[str]:
    # Go gives map keys in no certain order; sorted ones are one of those orders, and the same every time.
    return [key for values in maps for key in sorted(table(values))]


def _values(values: Any) -> list[Any]:
    return [value for _, value in sorted(table(values).items())]


def _pick(values: Any, *names: Any) -> dict[str, Any]:
    wanted = set(map(text, names))
    return {key: value for key, value in table(values).items() if key in wanted}


def _omit(values: Any, *names: Any) -> dict[str, Any]:
    unwanted = set(map(text, names))
    return {key: value for key, value in table(values).items() if key not in unwanted}


def _pluck(name: Any, *maps: Any) -> list[Any]:
    return [table(values)[text(name)] for values in maps if text(name) in table(values)]


def _merge(into: Any, *sources: Any) -> dict[str, Any]:
    for source in sources:
        _merge_one(table(into), table(source), overwrites=False)
    return table(into)


def _merge_overwrite(into: Any, *sources: Any) -> dict[str, Any]:
    for source in sources:
        _merge_one(table(into), table(source), overwrites=True)
    return table(into)


def _merge_one(into: dict[str, Any], source: dict[str, Any], *, overwrites: bool) -> None:
    for key, value in list(source.items()):
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge_one(known, value, overwrites=overwrites)
        elif (is_true(value) or key not in into) if overwrites else not is_true(known):
            into[key] = value


def _copied(value: Any) -> Any:
    return json.loads(go_text.to_json(value))


# ------------------------------------------------------------------------------------------------ defaults, kinds, JSON


def _default(fallback: Any, *given: Any) -> Any:
    return given[0] if given and is_true(given[0]) else fallback


def _coalesce(*values: Any) -> Any:
    return next((value for value in values if is_true(value)), None)


def _ternary(yes: Any, no: Any, value: Any) -> Any:
    if not isinstance(value, bool):
        raise Failure(f"wrong type for value; expected bool; got {go_text.type_name(value)}")
    return yes if value else no


def _kind(value: Any) -> str:
    if value is None:
        return "invalid"
    if isinstance(value, dict):
        return "map"
    return "slice" if isinstance(value, list) else go_text.type_name(value)


def _fail(message: Any) -> Any:
    raise Failure(text(message))


def _from_json(value: Any) -> Any:
    try:
        # Go reads every number of JSON as a float.
        return json.loads(text(value), parse_int=float)
    except (ValueError, RecursionError):
        return None


def _must_from_json(value: Any) -> Any:
    try:
        return json.loads(text(value), parse_int=float)
    except (ValueError, RecursionError) as problem:
        raise Failure(f"invalid JSON: {problem}") from problem


def _atoi(value: Any) -> int:
    return whole(text(value))


def _to_decimal(value: Any) -> int:
    try:
        return int(shown(value)[:64], 8)
    except ValueError:
        return 0


_OWN: dict[str, Callable[..., Any]] = {
    "eq": _eq,
    "ne": lambda left, right: not _eq(left, right),
    "lt": _lt,
    "le": _le,
    "gt": lambda left, right: not _le(left, right),
    "ge": lambda left, right: not _lt(left, right),
    "not": lambda value: not is_true(value),
    "len": _len,
    "index": _index,
    "slice": _slice,
    "print": _printed(lambda *values: go_text.print_all(values)),
    "println": _printed(lambda *values: go_text.print_line(values)),
    "printf": _printed(_printf),
    "count": _count,
    "add": _add,
    "add1": lambda value: _add(value, 1),
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "mod": _mod,
    "addf": _reals(lambda one, other: one + other),
    "add1f": lambda value: real(value) + 1,
    "subf": _reals(lambda one, other: one - other),
    "mulf": _reals(lambda one, other: one * other),
    "divf": _reals(lambda one, other: one / other),
    "max": lambda first, *others: max(map(whole, (first, *others))),
    "biggest": lambda first, *others: max(map(whole, (first, *others))),
    "min": lambda first, *others: min(map(whole, (first, *others))),
    "maxf": lambda first, *others: max(map(real, (first, *others))),
    "minf": lambda first, *others: min(map(real, (first, *others))),
    "floor": _floor,
    "ceil": _ceil,
    "round": _round,
    "until": _until,
    "untilStep": _until_step,
    "seq": _seq,
    "int": whole,
    "int64": whole,
    "float64": real,
    "atoi": _atoi,
    "toDecimal": _to_decimal,
    "list": lambda *values: list(values),
    "tuple": lambda *values: list(values),
    "first": _first,
    "last": _last,
    "rest": lambda values: items(values)[1:],
    "initial": lambda values: items(values)[:-1],
    "append": _append,
    "push": _append,
    "prepend": _prepend,
    "concat": _concat,
    "reverse": lambda values: items(values)[::-1],
    "uniq": _uniq,
    "without": lambda values, *omitted: [item for item in items(values) if not _among(item, list(omitted))],
    "has": lambda item, values: values is not None and _among(item, items(values)),
    "compact": lambda values: [item for item in items(values) if is_true(item)],
    "chunk": _chunk,
    "dict": _dict,
    "get": _get,
    "set": _set,
    "unset": _unset,
    "hasKey": lambda values, key: text(key) in table(values),
    "pluck": _pluck,
    "dig": _dig,
    "merge": _merge,
    "mergeOverwrite": _merge_overwrite,
    "keys": _keys,
    "values": _values,
    "pick": _pick,
    "omit": _omit,
    "deepCopy": _copied,
    "default": _default,
    "empty": lambda value: not is_true(value),
    "coalesce": _coalesce,
    "all": lambda *values: all(map(is_true, values)),
    "any": lambda *values: any(map(is_true, values)),
    "ternary": _ternary,
    "kindOf": _kind,
    "kindIs": lambda kind, value: text(kind) == _kind(value),
    "typeOf": go_text.type_name,
    "typeIs": lambda name, value: text(name) == go_text.type_name(value),
    "typeIsLike": lambda name, value: text(name).lstrip("*") == go_text.type_name(value),
    "deepEqual": equal,
    "fail": _fail,
    "fromJson": _from_json,
    "mustFromJson": _must_from_json,
    "toJson": _printed(lambda value: go_text.to_json(value)),
    "toPrettyJson": _printed(lambda value: go_text.to_json(value, indent=2)),
    "toRawJson": _printed(lambda value: go_text.to_json(value, escapes_html=False)),
}

_ALSO_MUST = (
    "append", "chunk", "compact", "deepCopy", "first", "has", "initial", "last", "merge", "mergeOverwrite", "prepend",
    "push", "regexFind", "regexFindAll", "regexMatch", "regexReplaceAll", "regexReplaceAllLiteral", "regexSplit",
    "rest", "reverse", "slice", "toJson", "toPrettyJson", "toRawJson", "uniq", "without",
)  # fmt: skip
"""Functions that sprig has a second time as `mustX`, which fails instead of ending the program: ours always fail."""

FUNCTIONS: dict[str, Callable[..., Any]] = {**_OWN, **gotemplate_strings.FUNCTIONS}
"""Every function by name. It is never called with a count of arguments that `arity` forbids."""
FUNCTIONS |= {f"must{name[0].upper()}{name[1:]}": FUNCTIONS[name] for name in _ALSO_MUST}
