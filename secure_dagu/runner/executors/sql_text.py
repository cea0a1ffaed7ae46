"""Find statements and parameters in SQL text without ever putting a value into it. Pure.

A value travels beside the text, always: the text only changes where a placeholder is written in another dialect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct

from secure_dagu.errors import DefinitionError

Params = Mapping[str, Any] | Sequence[Any] | None


class Dialect(Enum):
    """Whose SQL it is."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"


# What is quoted is skipped whole; what is not closed lasts to the end, so that no text is scanned twice.
_COMMENT = r"(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"
_PLACE = r"(?P<semicolon>;)|(?P<mark>\?(?P<at>\d*))|(?<![\w$])\$(?P<number>\d+)|:(?P<name>[A-Za-z_]\w*)"
_TOKENS = {
    Dialect.SQLITE: re.compile(
        rf"{_COMMENT}|'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*\]|{_PLACE}", re.S
    ),
    Dialect.POSTGRES: re.compile(
        rf"{_COMMENT}|(?<!\w)[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)|'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|"
        rf"(?<!\w)\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)|::|{_PLACE}",
        re.S,
    ),
}


class Statement(Struct, frozen=True):
    """One statement as its driver takes it, and its values."""

    text: str
    params: Mapping[str, Any] | Sequence[Any] | None


def statements(text: str, params: Params, dialect: Dialect) -> list[Statement]:
    """Return the statements of a text, each with the values of its own placeholders.

    `:name` takes from a map, `?` and `$1` from a list (workflow language, section 4.5).

    Raises:
        DefinitionError: a placeholder has no value.
    """
    parts = split(text, dialect)
    if params is None:
        return [Statement(part, None) for part in parts]
    if isinstance(params, Mapping):
        return [_named(part, params, dialect) for part in parts]
    found: list[Statement] = []
    taken = 0
    for part in parts:
        statement, marks = _listed(part, params, dialect, taken=taken)
        taken += marks
        found.append(statement)
    if len(found) == 1 and isinstance(found[0].params, Sequence) and len(found[0].params) < len(params):
        raise DefinitionError(
            "with.params has more values than the query has placeholders",
            why=f"{len(params)} values for {len(found[0].params)} placeholders",
        )
    return found


def split(text: str, dialect: Dialect) -> list[str]:
    """Return the statements of a text without those that are empty or only a comment."""
    pieces: list[str] = []
    start = done = 0
    has_content = False
    for match in _TOKENS[dialect].finditer(text):
        has_content = has_content or bool(text[done : match.start()].strip())
        done = match.end()
        if match["semicolon"] is None:
            has_content = has_content or match["comment"] is None
            continue
        if has_content and _is_open_body(text[start : match.start()], dialect):
            continue
        if has_content:
            pieces.append(text[start : match.start()].strip())
        start, has_content = done, False
    if has_content or text[done:].strip():
        pieces.append(text[start:].strip())
    return pieces


_BODIES = {
    Dialect.SQLITE: re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*create\s+(?:temp(?:orary)?\s+)?trigger\b", re.S | re.I),
    Dialect.POSTGRES: re.compile(
        r"(?:\s|--[^\n]*\n|/\*.*?\*/)*create\s+(?:or\s+replace\s+)?(?:function|procedure)\b.*\bbegin\s+atomic\b",
        re.S | re.I,
    ),
}
"""How a statement begins whose body holds semicolons of its own."""
_BODY_END = re.compile(r"(?:;|\batomic)\s*end\s*\Z", re.I)


def _is_open_body(text: str, dialect: Dialect) -> bool:
    return _BODIES[dialect].match(text) is not None and _BODY_END.search(text[-200:]) is None


def quote(name: str) -> str:
    """Return a name, or dotted names, as quoted identifiers.

    Raises:
        DefinitionError: it holds a NUL character or an empty part.
    """
    parts = name.split(".")
    if "\0" in name or not all(parts):
        raise DefinitionError(f"{name[:80]!r} is no name of a table or column")
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def _named(text: str, params: Mapping[str, Any], dialect: Dialect) -> Statement:
    if dialect is Dialect.SQLITE:
        missing = sorted(_names(text) - params.keys())
        if missing:
            raise DefinitionError(f"with.params has no value for :{missing[0][:80]}")
        return Statement(text, params)
    order: list[str] = []

    def place(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None or name not in params:  # `a[1:n]` is a slice: no value of ours, the server decides
            return match[0]
        if name not in order:
            order.append(name)
        return f"${order.index(name) + 1}"

    changed = _TOKENS[dialect].sub(place, text)
    return Statement(changed, [params[name] for name in order])


def _names(text: str) -> set[str]:
    return {match["name"] for match in _TOKENS[Dialect.SQLITE].finditer(text) if match["name"] is not None}


def _listed(text: str, params: Sequence[Any], dialect: Dialect, *, taken: int) -> tuple[Statement, int]:
    """Return a statement with the values of its placeholders, and how many plain `?` it has."""
    matches = list(_TOKENS[dialect].finditer(text))
    numbers = [int(number[:9]) for match in matches if (number := match["number"] or match["at"])]
    if numbers:
        used = sorted(set(numbers))
        if used[0] < 1 or used[-1] > len(params):
            raise DefinitionError(f"with.params has no value for ${used[-1]}", why=f"it has {len(params)} values")
        sign = "?" if dialect is Dialect.SQLITE else "$"

        def place(match: re.Match[str]) -> str:
            number = match["number"] or match["at"]
            return f"{sign}{used.index(int(number[:9])) + 1}" if number else match[0]

        return Statement(_TOKENS[dialect].sub(place, text), [params[number - 1] for number in used]), 0
    marks = sum(match["mark"] is not None for match in matches)
    if dialect is Dialect.POSTGRES:
        if marks != len(params) - taken:  # `?` is also an operator of jsonb
            return Statement(text, []), 0
        counter = iter(range(1, marks + 1))
        text = _TOKENS[dialect].sub(lambda match: f"${next(counter)}" if match["mark"] else match[0], text)
    elif taken + marks > len(params):
        raise DefinitionError(
            "with.params has too few values", why=f"{taken + marks} placeholders, {len(params)} values"
        )
    return Statement(text, list(params[taken : taken + marks])), marks
