"""YAML as pieces with a kind each, for colours: a page shows them, and reads as the text itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Piece = tuple[str, str]
"""A kind (`key`, `text`, `value`, `note`, `ref`, `mark`, or none) and characters."""

_MOST = 200_000
"""Characters that are looked at; the rest is plain."""
_LONGEST = 2000
"""Characters of a line that is looked at."""
_LINE = re.compile(
    r"(?P<lead>\s*(?:- +)*)"
    r"(?P<key>(?:\"[^\"]*\"|'[^']*'|[^\s#:'\"{}\[\],&*!|>%@-][^:#{}\[\]]*?|-[^\s:]+):)(?=\s|$)"
)
_PIECES = re.compile(
    r"(?P<note>(?:^|(?<=\s))#.*)|(?P<ref>\$\{[^}]*\}|\$[A-Za-z_]\w*)"
    r"|(?P<key>(?<=[{,])\s*[A-Za-z_][\w.-]*:(?=\s|$))"
    r"|(?P<text>\"(?:\\.|[^\"\\])*\"|'(?:''|[^'])*')"
    r"|(?P<value>(?<![\w.-])(?:true|false|null|~|-?\d+(?:\.\d+)?)(?![\w.-]))|(?P<mark>[\[\]{},]|[|>](?=[\s+-]|$))"
)


def painted(text: str) -> list[list[Piece]]:
    """Return the lines of a text as pieces; put together they are the text."""
    looked = text[:_MOST]
    lines = [list(_of_line(line)) for line in looked.split("\n")]
    if len(text) > _MOST:
        rest = text[_MOST:].split("\n")
        lines[-1].append(("", rest[0]))
        lines += [[("", line)] for line in rest[1:]]
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines


def _of_line(line: str) -> Iterator[Piece]:
    if len(line) > _LONGEST:
        yield "", line
        return
    rest = line
    if found := _LINE.match(line):
        if found["lead"]:
            yield "", found["lead"]
        yield "key", found["key"]
        rest = line[found.end() :]
    yield from _values(rest)


def _values(text: str) -> Iterator[Piece]:
    at = 0
    for found in _PIECES.finditer(text):
        if found.start() > at:
            yield "", text[at : found.start()]
        yield found.lastgroup or "", found[0]
        at = found.end()
    if at < len(text):
        yield "", text[at:]


def plain(lines: Sequence[Sequence[Piece]]) -> str:
    """Return the text of pieces."""
    return "\n".join("".join(part for _, part in line) for line in lines)
