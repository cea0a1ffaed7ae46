"""Match values the way a workflow's author writes it: exactly, or as a regex after `re:`. Pure.

Workflow language, sections 3.7 (`expected`), 3.8 (`continue_on.output`) and 3.27 (routes).
"""

from __future__ import annotations

from collections.abc import Sequence

from secure_dagu.dag import go_regexp
from secure_dagu.errors import DefinitionError

REGEX = "re:"


def equals(pattern: str, value: str) -> bool:
    """Tell whether `value` is `pattern`, or has a part that its regex matches.

    Raises:
        DefinitionError: the regex is none.
    """
    if not pattern.startswith(REGEX):
        return pattern == value
    try:
        return go_regexp.compiled(pattern[len(REGEX) :]).search(value) is not None
    except ValueError as error:
        raise DefinitionError(f"the regexp {pattern[len(REGEX) :]!r} is invalid", why=str(error)) from None


def line_equals(pattern: str, text: str) -> bool:
    """Tell whether a line of `text` matches; a text without lines is one empty line."""
    return any(equals(pattern, line) for line in text.splitlines() or [""])


def line_holds(patterns: Sequence[str], text: str) -> bool:
    """Tell whether a line of `text` contains one of `patterns`, or is matched by its regex."""
    return any(
        equals(pattern, line) if pattern.startswith(REGEX) else pattern in line
        for line in text.splitlines()
        for pattern in patterns
    )


def routes(patterns: Sequence[str], value: str) -> bool:
    """Tell whether one of a branch's patterns takes the router's value; a regex that is none takes nothing."""
    for pattern in patterns:
        try:
            if equals(pattern, value):
                return True
        except DefinitionError:
            continue
    return False
