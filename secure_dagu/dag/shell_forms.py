"""Shell-style expansions of fields that the engine expands: `${N:-w}`, `${N#p}`, `${N:1:2}`, `${#N}`. Pure.

All of them need N to be defined; otherwise, and when malformed, the text is preserved (docs/reference/workflows.md,
"Shell-style forms"). Nothing here changes a scope.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_PATTERN = 1024
"""Characters of a glob pattern; longer ones leave the value unchanged."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_FORM = re.compile(rf"({_NAME})(:[-+?=]|[-+?=]|##?|%%?|//?|:)(.*)", re.DOTALL)
_WORD_REFERENCE = re.compile(rf"\$(?:({_NAME})|\{{({_NAME})\}})")
_OFFSETS = re.compile(r"\s*(-?\d{1,9})\s*(?::\s*(-?\d{1,9})\s*)?")

Find = Callable[[str], str | None]


def assigned_name(body: str) -> str:
    """Return N of `N:=w`, empty for every other form."""
    found = _FORM.fullmatch(body)
    return found[1] if found and found[2] == ":=" else ""


def expand(body: str, find: Find) -> str | None:
    """Return what `${body}` becomes, None to preserve it.

    Args:
        body: the text between the braces.
        find: looks a name up in the current environment; None when it is not defined.
    """
    if body.startswith("#"):
        counted = find(body[1:])
        return None if counted is None else str(len(counted))
    found = _FORM.fullmatch(body)
    if found is None:
        return None
    value = find(found[1])
    if value is None:
        return None
    operator, word = found[2], found[3]
    match operator:
        case ":-":
            return value or _word(word, find)
        case ":+":
            return _word(word, find) if value else ""
        case "+":
            return _word(word, find)
        case ":?" | ":=":
            return value or None
        case "-" | "?" | "=":
            return value
        case "#" | "##":
            return _without_prefix(value, _word(word, find), longest=operator == "##")
        case "%" | "%%":
            return _without_suffix(value, _word(word, find), longest=operator == "%%")
        case "/" | "//":
            return _replaced(value, word, find, every=operator == "//")
        case _:
            return _substring(value, word)


def _word(word: str, find: Find) -> str:
    """Return `w` with its own `$X` and `${X}` replaced; unknown ones stay."""

    def value(found: re.Match[str]) -> str:
        known = find(found[1] or found[2])
        return found[0] if known is None else known

    return _WORD_REFERENCE.sub(value, word)


def _substring(value: str, word: str) -> str | None:
    """Return the byte substring `off` or `off:len`; negative offsets count from the end, everything is clamped."""
    offsets = _OFFSETS.fullmatch(word)
    if offsets is None:
        return None
    data = value.encode("utf-8", "surrogateescape")
    start = int(offsets[1])
    if start < 0:
        start = max(0, len(data) + start)
    end = len(data)
    if offsets[2]:
        length = int(offsets[2])
        end = start + length if length >= 0 else len(data) + length
    return data[start : max(start, end)].decode("utf-8", "replace")


# ------------------------------------------------------------------------------------------------------------ globs

_Glob = list[str]
"""Pieces of a pattern: `*`, or a regular expression for exactly one character."""


def _pieces(pattern: str) -> _Glob | None:
    """Parse a shell glob; None when it is not one."""
    if len(pattern) > MAX_PATTERN:
        return None
    pieces: _Glob = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if not pieces or pieces[-1] != "*":
                pieces.append("*")
        elif char == "?":
            pieces.append(".")
        elif char == "[":
            end = pattern.find("]", at + (2 if pattern[at : at + 1] in ("!", "^") else 1))
            if end < 0:
                return None
            negated = pattern[at] in "!^"
            members = pattern[at + negated : end].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            piece = f"[{'^' if negated else ''}{members}]"
            try:
                re.compile(piece)
            except re.error:
                return None
            pieces.append(piece)
            at = end + 1
        elif char == "\\" and at < len(pattern):
            pieces.append(re.escape(pattern[at]))
            at += 1
        else:
            pieces.append(re.escape(char))
    return pieces


def _prefix_length(value: str, pieces: _Glob, *, longest: bool) -> int | None:
    """Return how long the shortest or longest prefix that matches is; None if none does.

    Every star but the deciding one is atomic, so matching never backtracks over more than one of them: a pattern of
    many stars costs no more than a few passes over the value.
    """
    groups: list[str] = [""]
    for piece in pieces:
        if piece == "*":
            groups.append("")
        else:
            groups[-1] += piece
    head, *rest = groups
    regex = head
    for index, group in enumerate(rest):
        is_last = index == len(rest) - 1
        regex += f".*{group}" if is_last and longest else f"(?>.*?{group})"
    found = re.compile(regex, re.DOTALL).match(value)
    return None if found is None else found.end()


def _without_prefix(value: str, pattern: str, *, longest: bool) -> str:
    pieces = _pieces(pattern)
    length = None if pieces is None else _prefix_length(value, pieces, longest=longest)
    return value if length is None else value[length:]


def _without_suffix(value: str, pattern: str, *, longest: bool) -> str:
    pieces = _pieces(pattern)
    length = None if pieces is None else _prefix_length(value[::-1], pieces[::-1], longest=longest)
    return value if length is None else value[: len(value) - length]


def _replaced(value: str, word: str, find: Find, *, every: bool) -> str | None:
    """Return `${N/a/b}`: the first, or every, match of the glob `a` replaced by `b`."""
    pattern, _, replacement = word.partition("/")
    pieces = _pieces(_word(pattern, find))
    if not pieces:
        return value
    regex = "".join("[^\\n]*?" if piece == "*" else piece for piece in pieces)
    if pieces.count("*") > 2:
        return value  # bounded: many lazy stars would backtrack without end
    text = _word(replacement, find)
    return re.compile(regex, re.DOTALL).sub(lambda _: text, value, count=0 if every else 1)
