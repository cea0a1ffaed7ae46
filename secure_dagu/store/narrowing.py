"""Patterns for SQL's LIKE that let through at least what a filter wants, so that few rows are left for Python to judge.

`dispatch.operating.matches` has the last word. Columns are compared in lower case, of ASCII; other words narrow
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

_UNFIT = frozenset("[\\\n")


def part_pattern(part: str) -> str | None:
    """Return what a text that contains `part` is like; None: anything."""
    return f"%{part.lower()}%" if part and part.isascii() else None


def label_lines(labels: Iterable[str]) -> str:
    """Return labels as a column: each between two line feeds, in lower case."""
    return "\n" + "".join(f"{label}\n" for label in labels).lower().encode(errors="replace").decode()


def label_patterns(labels: Iterable[str]) -> list[str]:
    """Return what the `label_lines` of a run that has all of these are like."""
    found = []
    for label in labels:
        word = label.strip().lower()
        if not word or word.startswith("!") or not word.isascii() or _UNFIT & set(word):
            continue
        pattern = word.replace("*", "%").replace("?", "_")
        found.append(f"%\n{pattern}\n%" if "=" in word else f"%\n{pattern}%")
    return found
