"""Bind a caller's input to declared parameters. Pure; `eval` commands are run by the caller between two steps.

`bind_params` parses and checks the caller's text and fills in defaults. Declarations with `eval` and no caller value
stay pending: for each of `Binding.pending`, in order, the runner resolves the text (`values.resolve_dynamic`) with
`Binding.params()` as the parameter layer, runs the commands, and calls `supply` or `fail`. `finish` gives `Params`.
Section 2.5 of the workflow language.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dag import formats, go_regexp
from secure_dagu.dag.model import Dag, ParamDef
from secure_dagu.errors import DefinitionError

ALWAYS_ACCEPTED = frozenset({"WEBHOOK_PAYLOAD", "WEBHOOK_HEADERS"})
MAX_INPUT_BYTES = 1_048_576
"""Caller input in bytes; more is refused before it is parsed."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Params(Struct, frozen=True, kw_only=True):
    """Resolved parameters of one run, as text."""

    named: Mapping[str, str] = field(default_factory=dict)
    """What `${params.N}` sees."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What the environment gets: named ones, and positional ones as `1`, `2`, …."""
    json: str = ""
    """`DAG_PARAMS_JSON` and `${params}`: the caller's own JSON verbatim, or sorted; empty without parameters."""

    def as_list(self) -> tuple[str, ...]:
        """Return `name=value` for each parameter, in order: the status document's `paramsList`."""
        return tuple(f"{name}={value}" for name, value in self.env.items())


class Words(Struct, frozen=True):
    """A caller's input, parsed: named and positional values in the order given."""

    named: Mapping[str, Any]
    positional: tuple[Any, ...]
    positions: tuple[int, ...]
    """1-based place of each positional value in the whole input."""
    verbatim_json: str = ""


def parse_input(text: str) -> Words:
    """Parse caller input: words (`k=v`, `k="a b"`, positional), a JSON object, or a JSON array of values and objects.

    Raises:
        DefinitionError: more than `MAX_INPUT_BYTES`.
    """
    if len(text) > MAX_INPUT_BYTES:
        raise DefinitionError(
            "the parameters are too long", why=f"{len(text)} characters, at most {MAX_INPUT_BYTES}", fix="pass a file"
        )
    stripped = text.strip()
    data = formats.json_container(stripped)
    if isinstance(data, dict):
        return Words(data, (), (), stripped)
    named: dict[str, Any] = {}
    positional: list[Any] = []
    positions: list[int] = []
    if isinstance(data, list):
        for position, item in enumerate(data, 1):
            if isinstance(item, dict) and item and all(_KEY.fullmatch(key) for key in item):
                named.update(item)
            else:
                positional.append(item)
                positions.append(position)
        return Words(named, tuple(positional), tuple(positions), stripped)
    for position, word in enumerate(split_words(stripped), 1):
        key, equals, value = word.partition("=")
        if equals and _KEY.fullmatch(key):
            named[key] = value
        else:
            positional.append(word)
            positions.append(position)
    return Words(named, tuple(positional), tuple(positions))


def split_words(text: str) -> list[str]:
    """Split at unquoted white space; double quotes group, backticks group and are kept, single quotes do nothing."""
    words: list[str] = []
    word: list[str] = []
    is_started = False
    quote = ""
    chars = iter(text)
    for char in chars:
        if quote == '"' and char == "\\":
            following = next(chars, "")
            word.append(following if following in ('"', "\\") else char + following)
        elif quote:
            if char == quote:
                quote = ""
                if char == "`":
                    word.append(char)
            else:
                word.append(char)
        elif char in '"`':
            quote, is_started = char, True
            if char == "`":
                word.append(char)
        elif char.isspace():
            if is_started:
                words.append("".join(word))
            word, is_started = [], False
        else:
            word.append(char)
            is_started = True
    if is_started:
        words.append("".join(word))
    return words


class Binding(Struct, frozen=True, kw_only=True):
    """Parameters on their way: what is known, and which `eval`s are still to be run."""

    definitions: tuple[ParamDef, ...]
    values: Mapping[str, str]
    """By environment name, in declaration order."""
    pending: tuple[ParamDef, ...] = ()
    verbatim_json: str = ""
    from_caller: frozenset[str] = frozenset()

    def params(self) -> Params:
        """Return what is known now, as the next `eval` may see it: caller values and earlier parameters."""
        if not self.pending:
            return _published(self.values, self.verbatim_json)
        later = False
        hidden: set[str] = set()
        for index, definition in enumerate(self.definitions):
            later = later or definition is self.pending[0]
            name = env_name(definition, index)
            if later and name not in self.from_caller:
                hidden.add(name)
        return _published({name: value for name, value in self.values.items() if name not in hidden}, "")

    def supply(self, definition: ParamDef, value: str) -> Binding:
        """Return the binding with the evaluated value of the first pending definition, checked like any other.

        Raises:
            DefinitionError: the value does not fit the definition.
        """
        values = {**self.values, definition.name: checked(definition, value)}
        return replace(self, values=values, pending=self.pending[1:])

    def fail(self, definition: ParamDef, reason: str) -> Binding:
        """Return the binding with the default of a definition whose `eval` failed.

        Raises:
            DefinitionError: it has no default; no step may run.
        """
        if definition.default is None:
            raise DefinitionError(
                f"params: {definition.name}: eval failed",
                why=reason,
                fix="give the parameter a default, or pass a value when starting the run",
            )
        return self.supply(definition, definition.default)

    def check_required(self) -> None:
        """Check what can be known before an `eval` runs.

        Raises:
            DefinitionError: a required parameter has no value, and none is still to come.
        """
        coming = {item.name for item in self.pending}
        missing = [
            item.name
            for item in self.definitions
            if item.required and item.name not in self.values and item.name not in coming
        ]
        if missing:
            raise DefinitionError(
                f"missing required parameters: {', '.join(missing)}",
                why="they are declared `required` and have no value",
                fix=f"pass them, for example {missing[0]}=…",
            )

    def finish(self) -> Params:
        """Return the parameters of the run.

        Raises:
            DefinitionError: a required parameter has no value.
        """
        self.check_required()
        order = [env_name(item, index) for index, item in enumerate(self.definitions)]
        rest = [name for name in self.values if name not in set(order)]
        ordered = {name: self.values[name] for name in (*order, *rest) if name in self.values}
        return _published(ordered, self.verbatim_json)


def env_name(definition: ParamDef, index: int) -> str:
    """Return the environment name of the definition at 0-based `index`: its own, or its 1-based position."""
    return definition.name or str(index + 1)


def bind_params(dag: Dag, caller_text: str) -> Binding:
    """Bind caller input to the declarations of `dag`. Caller values are literal and win over defaults and `eval`.

    Raises:
        DefinitionError: unknown names, too many positional values, or a value that does not fit its type or bounds.
    """
    words = parse_input(caller_text)
    given = _by_name(dag.params, words)
    values: dict[str, str] = {}
    pending: list[ParamDef] = []
    for index, definition in enumerate(dag.params):
        name = env_name(definition, index)
        if name in given:
            values[name] = checked(definition, given[name])
        elif definition.eval:
            pending.append(definition)
        elif definition.default is not None:
            values[name] = checked(definition, definition.default)
    for name, value in given.items():
        if name not in values:
            values[name] = formats.as_text(value)
    return Binding(
        definitions=dag.params,
        values=values,
        pending=tuple(pending),
        verbatim_json=words.verbatim_json,
        from_caller=frozenset(given),
    )


def _by_name(definitions: tuple[ParamDef, ...], words: Words) -> dict[str, Any]:
    """Return caller values by environment name: positional ones by declaration order, named ones over them."""
    names = [env_name(definition, index) for index, definition in enumerate(definitions)]
    if definitions:
        known = {*names, *ALWAYS_ACCEPTED}
        unknown = [name for name in words.named if name not in known]
        if unknown:
            listed = ", ".join(f'"{name}"' for name in unknown)
            raise DefinitionError(
                f"unknown parameter(s): {listed}; accepted parameters are: {', '.join(sorted(names))}",
                fix="correct the name, or declare it under `params`",
            )
        if words.positional and any(definition.is_external for definition in definitions):
            raise DefinitionError(
                "positional params are not accepted: the parameters are declared by an external schema",
                fix=f"name them, for example {names[0]}=…",
            )
        if len(words.positional) > len(names):
            raise DefinitionError(
                f"too many positional params: expected at most {len(names)}, got {len(words.positional)}",
                fix="quote a value that contains spaces",
            )
    given: dict[str, Any] = {}
    for index, (position, value) in enumerate(zip(words.positions, words.positional, strict=True)):
        # Without declarations a named word takes up a number too: `x=1 y` gives `x` and `2`.
        given[names[index] if definitions else str(position)] = value
    given.update(words.named)
    return given


def _published(values: Mapping[str, str], verbatim_json: str) -> Params:
    named = {name: value for name, value in values.items() if not name.isdigit()}
    text = verbatim_json or (formats.sorted_json(values) if values else "")
    return Params(named=named, env=values, json=text)


# -------------------------------------------------------------------------------------------------- types and bounds


def checked(definition: ParamDef, value: Any) -> str:
    """Return the text of `value` coerced to the definition's type and held against its bounds.

    Raises:
        DefinitionError: it does not fit; the message names the parameter, and the value as the caller wrote it.
    """
    text = formats.as_text(value)
    match definition.type:
        case "integer":
            if not re.fullmatch(r"[+-]?\d{1,19}", text.strip()):
                raise _does_not_coerce(definition, text)
            number: float = int(text)
            text = str(int(text))
        case "number":
            try:
                number = float(text)
            except ValueError:
                raise _does_not_coerce(definition, text) from None
            if not math.isfinite(number) or "_" in text or not text.isascii():
                raise _does_not_coerce(definition, text)
            text = formats.float_text(number)
        case "boolean":
            if text.strip().lower() not in ("true", "false", "1", "0", "t", "f"):
                raise _does_not_coerce(definition, text)
            text = "true" if text.strip().lower() in ("true", "1", "t") else "false"
            number = 0
        case "array" | "object":
            number = 0
            text = _json_text(definition, text)
        case _:
            number = 0
            _check_text(definition, text)
    if definition.type in ("integer", "number"):
        if definition.minimum is not None and number < definition.minimum:
            raise _out_of_bounds(definition, text, f"must be at least {formats.as_text(definition.minimum)}")
        if definition.maximum is not None and number > definition.maximum:
            raise _out_of_bounds(definition, text, f"must be at most {formats.as_text(definition.maximum)}")
    if definition.enum and text not in [formats.as_text(item) for item in definition.enum]:
        allowed = ", ".join(formats.as_text(item) for item in definition.enum)
        raise _out_of_bounds(definition, text, f"must be one of {allowed}")
    if definition.schema is not None:
        from secure_dagu.dag import schema_check  # it brings a library; few parameters need it

        value = text if definition.type == "string" else json.loads(text)
        if problem := schema_check.problem(definition.schema, value):
            raise _out_of_bounds(definition, text, problem)
    return text


def _json_text(definition: ParamDef, text: str) -> str:
    data = formats.json_container(text)
    if not isinstance(data, dict if definition.type == "object" else list):
        raise _does_not_coerce(definition, text)
    return formats.compact_json(data)


def _check_text(definition: ParamDef, text: str) -> None:
    if definition.min_length is not None and len(text) < definition.min_length:
        raise _out_of_bounds(definition, text, f"must have at least {definition.min_length} characters")
    if definition.max_length is not None and len(text) > definition.max_length:
        raise _out_of_bounds(definition, text, f"must have at most {definition.max_length} characters")
    if definition.pattern and not go_regexp.compiled(definition.pattern).search(text):
        raise _out_of_bounds(definition, text, f"must match {definition.pattern}")


def _does_not_coerce(definition: ParamDef, text: str) -> DefinitionError:
    return DefinitionError(
        f'{definition.name}: cannot coerce "{text[:80]}" to {definition.type}',
        fix=f"pass a value of type {definition.type}",
    )


def _out_of_bounds(definition: ParamDef, text: str, why: str) -> DefinitionError:
    return DefinitionError(f'{definition.name}: "{text[:80]}" does not fit', why=why, fix="pass a value that fits")
