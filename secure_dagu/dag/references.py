"""The grammar of `${…}` and `$…`: find the tokens of a field, decide what each one is. Pure.

Two systems of references coexist (docs/reference/workflows.md, "References"). Strict ones name a namespace and are
recognised only in braces and only in the exact forms of `_STRICT`; compatibility ones read a step's results or a path
into a variable that holds JSON. Strict wins. What is neither may still be a plain name or a shell-style form, if the
field lets the engine expand those. A `${` runs to the next `}`; one that is never closed swallows the rest of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from enum import Enum, auto
from typing import NamedTuple

_N = r"[A-Za-z][A-Za-z0-9_]*"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"

FROZEN_ALIASES = {
    **{
        path: path
        for path in (
            "dag.name",
            "run.id",
            "run.status",
            "run.scheduled_at",
            "run.root_name",
            "run.root_id",
            "attempt.id",
            "step.id",
            "step.name",
            "trigger.type",
            "trigger.actor",
            "paths.log_file",
            "paths.work_dir",
            "paths.artifacts_dir",
            "paths.step_stdout_file",
            "paths.step_stderr_file",
            "paths.step_output_file",
            "profile.name",
            "profile.resolved_at",
            "pushback.iteration",
            "pushback.previous_stdout_file",
        )
    },
    "run.started_at": "attempt.started_at",
}
"""Short forms of context references, exactly these, and their path below `context.`."""

STEP_FIELDS = frozenset({"output", "outputs", "stdout", "stderr", "exit_code", "exitCode"})
"""What follows a step id in a compatibility reference."""

_STRICT = re.compile(
    rf"params|consts\.{_N}|params\.{_N}|env\.{_NAME}|steps\.{_N}\.outputs\.{_N}|foreach\.{_N}(?:\.{_N})?"
    rf"|inputs\.{_N}|outputs\.{_N}|context(?:\.{_N})+|" + "|".join(re.escape(alias) for alias in FROZEN_ALIASES)
)
_STRICT_ROOTS = frozenset({"consts", "params", "env", "steps", "foreach", "context"})
_BRACED_NAME = re.compile(rf"{_NAME}|[1-9][0-9]{{0,2}}")
_BRACED_PATH = re.compile(rf"({_NAME})((?:\.[A-Za-z_][A-Za-z0-9_-]*|\[\d{{1,9}}\])+)")
_BRACED_SLICE = re.compile(rf"({_N})\.(output|stdout|stderr):(\d{{1,9}}(?::\d{{1,9}})?)")
_BARE = re.compile(rf"\$(?:({_NAME})((?:\.{_NAME}|\[\d{{1,9}}\])*)|([1-9]))")
_SEGMENT = re.compile(r"\.([^.\[]+)|(\[\d+\])")
_SHELL_FORM = re.compile(rf"#{_NAME}\}}|{_NAME}[-:+?=#%/]")


_OPENERS = "{(_"
"""What may follow the dollar of a token besides letters and digits."""


class TokenKind(Enum):
    """What a dollar token is."""

    STRICT = auto()
    PATH = auto()
    """`${ID.output.a}`, `${VAR.a.b[0]}`, `$VAR.a.b`."""
    SLICE = auto()
    """`${ID.output:off:len}`."""
    NAME = auto()
    """`$NAME`, `${NAME}`, `$1`."""
    SHELL_FORM = auto()
    """`${NAME:-w}` and its relatives."""
    OTHER = auto()
    """Ordinary text; only reported when it is escaped."""


class Token(NamedTuple):
    """One dollar token: `text[start:end]` of the field, without any backslash before it.

    A tuple and not a frozen dataclass: a step start makes several, and eleven guarded assignments each are felt.
    """

    kind: TokenKind
    start: int
    end: int
    text: str
    segments: tuple[str, ...] = ()
    body: str = ""
    """SHELL_FORM: what is between the braces. SLICE: `off` or `off:len`."""
    is_braced: bool = True
    is_escaped: bool = False
    is_quoted: bool = False
    """It starts inside a single-quoted span of the field."""
    is_double_quoted: bool = False
    """A double quote stands right before and right after it."""


def is_step_form(segments: tuple[str, ...]) -> bool:
    """Tell whether a path reads a step's results rather than a variable."""
    return len(segments) > 1 and segments[1] in STEP_FIELDS


def scan(text: str) -> list[Token]:
    """Return the tokens of `text` in order; they never overlap."""
    marks = [at for at, char in enumerate(text) if char == "'"] if "'" in text else []
    if len(marks) % 2:
        marks.pop()  # an unbalanced quote opens no span
    tokens: list[Token] = []
    at = text.find("$")
    while at >= 0:
        following = text[at + 1 : at + 2]
        is_opened = following in _OPENERS or following.isalnum()
        if not following or not is_opened or (following == "(" and text[at - 1 : at] != "\\"):
            at = text.find("$", at + 1)  # nothing to replace and nothing to protect
            continue
        token = _token_at(text, at, marks)
        if token is None:
            break
        if token.kind is not TokenKind.OTHER or token.is_escaped:
            tokens.append(token)
        at = text.find("$", token.end)
    return tokens


def _token_at(text: str, at: int, marks: list[int]) -> Token | None:
    """Return the token whose dollar is at `at`; None when an unclosed brace swallows the rest of the text."""
    kind, end, segments, body = _classify(text, at)
    if end < 0:
        return None
    slashes = at
    while slashes and text[slashes - 1] == "\\":
        slashes -= 1
    # A lone dollar has nothing to protect: `\$ 5` keeps its backslash.
    is_token = kind is not TokenKind.OTHER or end > at + 1
    return Token(
        kind=kind,
        start=at,
        end=end,
        text=text[at:end],
        segments=segments,
        body=body,
        is_braced=text.startswith("{", at + 1),
        is_escaped=is_token and (at - slashes) % 2 == 1,
        is_quoted=bisect_left(marks, at) % 2 == 1,
        is_double_quoted=text.startswith("{", at + 1) and text[at - 1 : at] == '"' and text.startswith('"', end),
    )


_Found = tuple[TokenKind, int, tuple[str, ...], str]


def _classify(text: str, at: int) -> _Found:
    """Return kind, end, segments and body of the token at `at`; end -1 for a brace that is never closed."""
    if not text.startswith("{", at + 1):
        bare = _BARE.match(text, at)
        if bare is None:
            return TokenKind.OTHER, at + (2 if text.startswith("(", at + 1) else 1), (), ""
        if bare[2] and bare[1] not in _STRICT_ROOTS:
            return TokenKind.PATH, bare.end(), (bare[1], *_segments(bare[2])), ""
        if bare[2]:
            return TokenKind.OTHER, bare.end(), (), ""
        return TokenKind.NAME, bare.end(), (bare[1] or bare[3],), ""

    close = text.find("}", at + 2)
    if close < 0:
        return TokenKind.OTHER, -1, (), ""
    inner = text[at + 2 : close]
    path = inner.strip(" ")
    if _STRICT.fullmatch(path):
        return TokenKind.STRICT, close + 1, tuple(path.split(".")), ""
    if _BRACED_NAME.fullmatch(inner):
        return TokenKind.NAME, close + 1, (inner,), ""
    if found := _BRACED_SLICE.fullmatch(inner):
        return TokenKind.SLICE, close + 1, (found[1], found[2]), found[3]
    if (found := _BRACED_PATH.fullmatch(inner)) and found[1] not in _STRICT_ROOTS:
        return TokenKind.PATH, close + 1, (found[1], *_segments(found[2])), ""
    if _SHELL_FORM.match(text, at + 2):
        close = _balanced_close(text, at + 2, close)
        return TokenKind.SHELL_FORM, close + 1, (), text[at + 2 : close]
    return TokenKind.OTHER, close + 1, (), ""


def _segments(path: str) -> tuple[str, ...]:
    return tuple(found[1] or found[2] for found in _SEGMENT.finditer(path))


def _balanced_close(text: str, start: int, close: int) -> int:
    """Return the brace that closes a shell-style form whose word holds `${…}` itself; the next one if none balances.

    One level only: a word may hold `$X` and `${X}`, which do not nest (workflow language, section 2.9).
    """
    opened = text.count("${", start, close)
    at = close
    while opened and at >= 0:
        at = text.find("}", at + 1)
        opened -= 1
    return at if at >= 0 else close
