"""Resolve `${…}` references: one pass over a field, each token decided once. Pure.

Three rules hold everywhere (docs/reference/workflows.md, "Value resolution"): an inserted value is data and is never
looked at again; a reference without a value stays in the text byte for byte, silently; nothing is quoted or escaped on
the way in. What a field's owner lets the engine expand is its `FieldMode`.

`references` knows the grammar and finds tokens; this module gives them values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct

from secure_dagu.dag import formats, references, shell_forms
from secure_dagu.dag.model import EnvEntry
from secure_dagu.dag.references import Token, TokenKind
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.errors import LimitExceeded

MAX_RESOLVED = 16 * 2**20
"""Characters of one resolved field: a large value that is referred to many times must not eat the worker's memory."""


class FieldMode(Enum):
    """Who owns a field's text (workflow language, sections 2.1 and 2.9)."""

    SHELL = "shell"
    """Text for a shell: only strict and compatibility references and `$1`…`$9` are the engine's."""
    FIELD = "field"
    """Engine-expanded, current scope only: `with` strings, step env, working_dir, conditions with `expected`, …"""
    PATH = "path"
    """Like FIELD, but a backslash before `$NAME` is a path character: stdout, stderr and artifact paths."""
    HOST = "host"
    """Engine-expanded with host fallback: root env, dotenv paths, direct argv, `eval`."""


def resolve(text: str, scope: Scope, mode: FieldMode) -> str:
    """Return `text` with the references of `mode` replaced, whatever the text is.

    Raises:
        LimitExceeded: the result has more than `MAX_RESOLVED` characters. Nothing else is ever raised.
    """
    if "$" not in text:
        return text
    return "".join(part.text for part in resolve_parts(text, scope, mode))


def first_unresolved(text: str, scope: Scope, mode: FieldMode) -> str:
    """Return the first strict reference of `text` that has no value, empty when all have one."""
    for token in references.scan(text):
        if token.kind is TokenKind.STRICT and not token.is_escaped and _value_of(token, scope, mode) is None:
            return token.text
    return ""


def resolve_tree(value: Any, scope: Scope, mode: FieldMode) -> Any:
    """Return plain data with every string in it resolved; keys and other scalars stay as they are."""
    if isinstance(value, str):
        return resolve(value, scope, mode)
    if isinstance(value, Mapping):
        return {key: resolve_tree(item, scope, mode) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve_tree(item, scope, mode) for item in value]
    return value


def evaluate_env(entries: Iterable[EnvEntry], scope: Scope, *, layer: Layer) -> Scope:
    """Return `scope` with `layer` holding the evaluated declarations, top to bottom.

    An entry sees the outer scope and earlier entries, not itself or later ones. Root env (`Layer.ROOT_ENV`) falls back
    to the host; other layers do not (workflow language, section 2.6).
    """
    mode = FieldMode.HOST if layer is Layer.ROOT_ENV else FieldMode.FIELD
    values: dict[str, str] = {}
    seen = scope.with_env(layer, values)
    for entry in entries:
        # `values` is the live layer of `seen`: each entry is added after it was evaluated.
        values[entry.name] = resolve(entry.value, seen, mode)
    return seen


class Part(Struct, frozen=True):
    """A stretch of a resolved field: authored text, or an inserted value (`is_value`), which is never looked at again.

    `is_protected` marks authored text whose dollar was escaped.
    """

    text: str
    is_value: bool = False
    is_protected: bool = False


def resolve_parts(text: str, scope: Scope, mode: FieldMode) -> list[Part]:
    """Return the pieces of a resolved field in order; joined they are what `resolve` returns."""
    tokens = references.scan(text)
    use_shell_forms = mode is not FieldMode.SHELL and not _assigns_to_empty(tokens, scope, mode)
    parts: list[Part] = []
    done = 0
    size = len(text)
    for token in tokens:
        # In a path field a backslash before a plain name is a path character (section 2.3).
        is_plain_name = token.kind is TokenKind.NAME or (token.kind is TokenKind.PATH and not token.is_braced)
        is_escaped = token.is_escaped and not (mode is FieldMode.PATH and is_plain_name)
        if is_escaped:
            if _loses_escape(token, mode):
                parts.append(Part(text[done : token.start - 1]))
                parts.append(Part(token.text, is_protected=True))
                done = token.end
            continue
        value = _value_of(token, scope, mode, use_shell_forms=use_shell_forms)
        if value is None:
            continue
        parts.append(Part(text[done : token.start]))
        parts.append(Part(value, is_value=True))
        size += len(value)
        if size > MAX_RESOLVED:
            raise LimitExceeded(
                "a field is too large after its references were replaced",
                why=f"more than {MAX_RESOLVED} characters",
                fix="pass large values in a file",
            )
        done = token.end
    parts.append(Part(text[done:]))
    return parts


def _value_of(token: Token, scope: Scope, mode: FieldMode, *, use_shell_forms: bool = False) -> str | None:
    """Return what replaces `token`, None when its text stays."""
    host = mode is FieldMode.HOST
    match token.kind:
        case TokenKind.STRICT:
            return _strict(token.segments, scope, host=host)
        case TokenKind.PATH:
            if token.is_quoted and not token.is_braced:
                return None
            if mode is FieldMode.SHELL and token.segments[1].startswith("["):
                return None  # `${ARR[0]}` is the shell's own array, also when a variable of this name holds JSON
            value = _compatible(token, scope, host=host)
            if value is None and mode is not FieldMode.SHELL and not token.is_braced:
                # `$DIR/$NAME.log`: without JSON in NAME the dotted tail is ordinary text after a simple variable.
                plain = scope.env.find(token.segments[0], host=host)
                return None if plain is None else plain + token.text[1 + len(token.segments[0]) :]
            return _json_in_quotes(value, token, mode)
        case TokenKind.SLICE:
            return _slice(token, scope)
        case TokenKind.NAME:
            is_positional = token.segments[0].isdigit()
            if (mode is FieldMode.SHELL and not is_positional) or token.is_quoted:
                return None
            return _json_in_quotes(scope.env.find(token.segments[0], host=host), token, mode)
        case TokenKind.SHELL_FORM:
            if not use_shell_forms or token.is_quoted:
                return None
            return shell_forms.expand(token.body, lambda name: scope.env.find(name, host=host))
        case TokenKind.OTHER:
            return None


def _loses_escape(token: Token, mode: FieldMode) -> bool:
    """Tell whether the backslash before an escaped dollar is the engine's to remove (section 2.3)."""
    if mode is FieldMode.SHELL:
        # Shell text keeps `\$A`, `\$1` and `\$(cmd)` for the shell.
        return token.kind is TokenKind.STRICT or (
            token.kind in (TokenKind.PATH, TokenKind.SLICE) and references.is_step_form(token.segments)
        )
    return True


def _json_in_quotes(value: str | None, token: Token, mode: FieldMode) -> str | None:
    """Keep embedded quotes valid JSON where a field holds exactly `"${NAME}"` (section 2.3, quoted exact reference)."""
    if value is None or mode is not FieldMode.FIELD or not token.is_double_quoted:
        return value
    return formats.compact_json(value)[1:-1]


def _assigns_to_empty(tokens: Sequence[Token], scope: Scope, mode: FieldMode) -> bool:
    """Tell whether `${N:=w}` meets an empty N, which preserves every shell-style form of the field (section 2.9)."""
    host = mode is FieldMode.HOST
    for token in tokens:
        if token.kind is TokenKind.SHELL_FORM and not token.is_escaped and not token.is_quoted:
            name = shell_forms.assigned_name(token.body)
            if name and scope.env.find(name, host=host) == "":
                return True
    return False


# ----------------------------------------------------------------------------------------------------- strict forms


def _strict(segments: tuple[str, ...], scope: Scope, *, host: bool) -> str | None:
    """Return the value of a strict reference (section 2.2), None when it has none here."""
    match segments:
        case ("params",):
            return scope.params_json or None
        case ("consts", name):
            return _text_of(scope.consts.get(name))
        case ("params", name):
            return scope.params.get(name)
        case ("env", name):
            return scope.env.find(name, host=host)
        case ("steps", step_id, "outputs", name):
            return scope.declared.get(step_id, {}).get(name)
        case ("inputs", name):
            return (scope.build_inputs or {}).get(name)
        case ("outputs", name):
            return (scope.build_outputs or {}).get(name)
        case ("foreach", name):
            return _entry(scope.foreach, name)
        case ("foreach", name, key):
            return _entry((scope.foreach or {}).get(name), key)
        case ("context", *path):
            return scope.context.get(".".join(path))
        case _:
            return scope.context.get(references.FROZEN_ALIASES.get(".".join(segments), ""))


def _entry(item: Any, key: str) -> str | None:
    """Return an entry of a foreach item as text, None where there is none; one that is null is there."""
    return formats.as_text(item[key]) if isinstance(item, Mapping) and key in item else None


def _text_of(value: Any) -> str | None:
    return None if value is None else formats.as_text(value)


# ---------------------------------------------------------------------------------------------- compatibility forms


def _compatible(token: Token, scope: Scope, *, host: bool) -> str | None:
    """Return the value of `${ID.output…}` or `${VAR.path}` (section 2.10), None to preserve it."""
    first, rest = token.segments[0], token.segments[1:]
    if references.is_step_form(token.segments) and first in scope.steps:
        return _step_value(scope, first, rest)
    text = scope.env.find(first, host=host)
    data = formats.json_container(text)
    return None if data is None else formats.pick_text(data, rest)


def _step_value(scope: Scope, step_id: str, path: tuple[str, ...]) -> str | None:
    step = scope.steps[step_id]
    match path:
        case ("stdout",):
            return step.stdout or None
        case ("stderr",):
            return step.stderr or None
        case ("exit_code" | "exitCode",):
            return None if step.exit_code is None else str(step.exit_code)
        case ("output",):
            return _text_of(step.output)
        case ("output", *keys):
            data = formats.json_container(step.output) if isinstance(step.output, str) else step.output
            return None if data is None else formats.pick_text(data, tuple(keys))
        case ("outputs",):
            return None if step.outputs is None else formats.compact_json(step.outputs)
        case ("outputs", *keys):
            return None if step.outputs is None else formats.pick_text(step.outputs, tuple(keys))
        case _:
            return None


def _slice(token: Token, scope: Scope) -> str | None:
    """Return a slice by code points of a step's text: `${ID.output:off:len}`."""
    if token.segments[0] not in scope.steps:
        return None
    value = _step_value(scope, token.segments[0], token.segments[1:])
    if value is None:
        return None
    offset, _, length = token.body.partition(":")
    start = int(offset)
    return value[start : start + int(length)] if length else value[start:]


# ------------------------------------------------------------------------------------------------ dynamic evaluation


class DynamicText(Struct, frozen=True):
    """A dynamic field with its references resolved and its command substitutions still to be run.

    The caller runs each of `commands`, in order, in a shell of its own, and hands the trimmed outputs to `fill`.
    """

    pieces: tuple[str, ...]
    """Text before, between and after the commands: one more than there are commands."""
    commands: tuple[str, ...]

    def fill(self, results: Sequence[str]) -> str:
        """Return the field's value from one result a command."""
        texts = [self.pieces[0]]
        for result, piece in zip(results, self.pieces[1:], strict=True):
            texts += (result, piece)
        return "".join(texts)


def resolve_dynamic(text: str, scope: Scope) -> DynamicText:
    """Resolve a dynamic field (`params[].eval`, `preconditions[].eval`) up to its command substitutions.

    Backticks and `$( … )` end at the next unescaped delimiter and do not nest; an unclosed one is literal. A delimiter
    inside an inserted value, or behind an escaped dollar, opens and closes nothing (workflow language, section 2.11).
    """
    parts = resolve_parts(text, scope, FieldMode.HOST)
    return _substitutions(parts)


_OPENER = re.compile(r"\\`|`|\$\(")


def _substitutions(parts: Sequence[Part]) -> DynamicText:
    """Cut backtick and `$(…)` commands out of the authored stretches of `parts`."""
    # One flat text plus a map of what is authored: values may stand inside a command, but cannot start or end one.
    text = "".join(part.text for part in parts)
    authored = bytearray()
    for part in parts:
        authored += (b"\x00" if part.is_value or part.is_protected else b"\x01") * len(part.text)

    pieces: list[str] = []
    commands: list[str] = []
    piece: list[str] = []
    unclosed: set[str] = set()  # once a closer was not found it is not looked for again: no quadratic scan
    done = 0
    at = 0
    while (opener := _OPENER.search(text, at)) is not None:
        start, at = opener.span()
        if not authored[start]:
            at = start + 1
            continue
        if opener[0] == "\\`":
            piece += (text[done:start], "`")
            done = at
            continue
        closer = "`" if opener[0] == "`" else ")"
        end = -1 if closer in unclosed else _closing(text, authored, at, closer)
        if end < 0:
            unclosed.add(closer)
            continue
        piece.append(text[done:start])
        pieces.append("".join(piece))
        commands.append(text[at:end].replace("\\" + closer, closer))
        piece = []
        done = at = end + 1
    piece.append(text[done:])
    pieces.append("".join(piece))
    return DynamicText(tuple(pieces), tuple(commands))


def _closing(text: str, authored: bytearray, start: int, closer: str) -> int:
    """Return where the next authored, unescaped `closer` is, -1 if nowhere."""
    at = text.find(closer, start)
    while at >= 0 and (not authored[at] or text[at - 1] == "\\"):
        at = text.find(closer, at + 1)
    return at
