"""Regular expressions in Go's syntax: what an author may write, in terms of ours. Pure.

Go's engine has no look-around and no back references, so neither have workflows (workflow language, section 8, note
4). What it writes otherwise (`[[:alpha:]]`, `(?<name>…)`, `\\z`) is written as ours.
"""

from __future__ import annotations

import re

MAX_PATTERN = 4096

_POSIX = {
    "[:alpha:]": "a-zA-Z", "[:digit:]": "0-9", "[:alnum:]": "0-9A-Za-z", "[:space:]": r"\s", "[:upper:]": "A-Z",
    "[:lower:]": "a-z", "[:punct:]": r"!-/:-@\[-`{-~", "[:word:]": r"\w", "[:xdigit:]": "0-9A-Fa-f",
}  # fmt: skip
_NOT_IN_GO = re.compile(r"\(\?(?:[=!>]|<[=!]|P=|\()|\\[1-9]")


def compiled(pattern: str) -> re.Pattern[str]:
    """Return `pattern` ready for use.

    Raises:
        ValueError: it is no regexp, or not one that Go has; the text says why.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the regexp has more than {MAX_PATTERN} characters")
    if _NOT_IN_GO.search(pattern.replace("\\\\", "")):
        raise ValueError("the regexp uses look-around or a back reference")
    for name, members in _POSIX.items():
        pattern = pattern.replace(name, members)
    try:
        return re.compile(re.sub(r"\(\?<(\w)", r"(?P<\1", pattern).replace(r"\z", r"\Z"), re.ASCII)
    except (re.error, OverflowError, RecursionError) as problem:
        raise ValueError(f"error parsing regexp: {problem}") from problem
