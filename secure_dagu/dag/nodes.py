"""YAML text → nodes with positions, bounded before anything is expanded. Pure.

The events of libyaml are composed here, by hand, for three reasons: every node keeps its line and column; a stranger's
text must not be able to make us allocate (size, depth, count and alias expansion are counted while composing, and an
alias shares its node instead of copying it); and scalars follow the rules of YAML 1.2, which no stock resolver has in
this form. libyaml's events cost 0.2 s for 5,000 steps, the pure parser 4 s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

from ruamel.yaml.cyaml import CParser  # type: ignore[attr-defined]  # re-exported without __all__
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from secure_dagu.dag import formats
from secure_dagu.dag.model import Position
from secure_dagu.errors import DefinitionError

MAX_TEXT_BYTES = 4 * 2**20
"""UTF-8 bytes of one definition."""
MAX_DEPTH = 64
"""Nested collections; the language itself needs about twelve."""
MAX_NODES = 400_000
"""Written nodes; 5,000 steps of ordinary size have about 85,000."""
MAX_ALIASES = 10_000
MAX_EXPANDED = 1_000_000
"""Weight after expansion of aliases and merge keys: one a node plus one for each 32 characters of text."""
MAX_DOCUMENTS = 1_000
MAX_SLOW_TEXT = 128 * 2**10
"""Characters that the pure parser may get: about two seconds."""


class Node:
    """Where something was written; `weight` counts everything below it with aliases expanded."""

    __slots__ = ("column", "file", "line", "weight")

    def __init__(self, file: str, line: int, column: int, weight: int) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.weight = weight

    @property
    def position(self) -> Position:
        """Return the 1-based place in the file."""
        return Position(self.file, self.line, self.column)


class Scalar(Node):
    """A scalar as authored; what a plain one means is decided when it is read."""

    __slots__ = ("is_plain", "text")

    def __init__(self, file: str, line: int, column: int, text: str, *, is_plain: bool) -> None:
        # Written out, not inherited: of 5,000 steps there are 80,000 of these.
        self.file = file
        self.line = line
        self.column = column
        self.weight = 1 + (len(text) >> 5)
        self.text = text
        self.is_plain = is_plain

    @property
    def is_null(self) -> bool:
        """Tell whether this is `null`, `~` or nothing."""
        return self.is_plain and self.text in _NULLS

    @property
    def is_text(self) -> bool:
        """Tell whether this is text, not a number, a boolean or nothing."""
        return isinstance(scalar_value(self), str)


class Sequence(Node):
    """A list."""

    __slots__ = ("items",)

    def __init__(self, file: str, line: int, column: int) -> None:
        super().__init__(file, line, column, 1)
        self.items: list[Node] = []


class Mapping(Node):
    """A map: entries in source order, keys as text, merge keys already applied."""

    __slots__ = ("entries", "keys")

    def __init__(self, file: str, line: int, column: int) -> None:
        super().__init__(file, line, column, 1)
        self.entries: dict[str, Node] = {}
        self.keys: dict[str, Scalar] = {}
        """The key nodes, for positions."""

    def get(self, key: str) -> Node | None:
        """Return the value of `key`; None when it is absent or null."""
        node = self.entries.get(key)
        return None if node is None or (isinstance(node, Scalar) and node.is_null) else node


def at(node: Node, *steps: str | int) -> Node:
    """Return what lies below `node` by keys and indexes, as far as it was written: where a mistake is shown."""
    for step in steps:
        if isinstance(node, Mapping) and step in node.entries:
            node = node.entries[str(step)]
        elif isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        else:
            break
    return node


# ------------------------------------------------------------------------------------------------------ scalar rules

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INTEGER = re.compile(r"([-+]?)(?:0x([0-9a-fA-F_]+)|0o([0-7_]+)|0b([01_]+)|0([0-7_]+)|([1-9][0-9_]*|0))")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]{1,3})?")  # 1e3 is text
_MAX_DIGITS = 40  # a longer run of digits is text: nobody counts that far, and conversion is quadratic


def scalar_value(node: Scalar) -> Any:
    """Return what a scalar means under YAML 1.2: null, boolean, integer, float or text; dates stay text."""
    text = node.text
    if not node.is_plain:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in "+-.0123456789" or len(text) > _MAX_DIGITS:
        return text
    if found := _INTEGER.fullmatch(text):
        sign = -1 if found[1] == "-" else 1
        for digits, base in ((found[2], 16), (found[3], 8), (found[4], 2), (found[5], 8), (found[6], 10)):
            plain = (digits or "").replace("_", "")
            if plain:
                return sign * int(plain, base)
        return text
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _SPECIAL.fullmatch(text):
        return math.nan if "n" in text[-1].lower() and "a" in text.lower() else float(text.replace(".", "", 1))
    return text


def scalar_text(node: Scalar) -> str:
    """Return a scalar as text: `1.10` → `1.1`, `0x10` → `16`, `1e3` stays, null → `<nil>` (section 1.1)."""
    if not node.is_plain:
        return node.text
    return formats.as_text(scalar_value(node))


def plain_value(node: Node) -> Any:
    """Return nested plain data: dicts, lists and scalars."""
    if isinstance(node, Scalar):
        return scalar_value(node)
    if isinstance(node, Sequence):
        return [plain_value(item) for item in node.items]
    assert isinstance(node, Mapping)
    return {key: plain_value(item) for key, item in node.entries.items()}


# --------------------------------------------------------------------------------------------------------- composing


def parse(text: str, *, file: str) -> list[Node]:
    """Return the documents of a stream.

    Raises:
        DefinitionError: not YAML, a duplicate key, a tag, an unknown or recursive alias, or past one of the limits; the
            message starts with file:line:column.
    """
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise _refused(Position(file, 1, 1), f"the yaml text is too large: at most {MAX_TEXT_BYTES} bytes")
    try:
        return _composed(text, file)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file, 1, 1)
        problem = ", ".join(part for part in (error.problem, error.context) if part)
        raise _refused(at, f"this is not valid yaml: {problem}") from error
    except (YAMLError, UnicodeError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, YAMLError) else "a lone surrogate is not UTF-8"
        raise _refused(Position(file, 1, 1), f"this is not valid yaml: {reason}") from error


def data(text: str, *, name: str) -> Any:
    """Return what a document that a step read or printed means, within the limits of a definition; None when empty.

    Raises:
        DefinitionError: as `parse`, or there is more than one document; `name` is what the text is called.
    """
    try:
        documents = parse(text, file=name)
    except DefinitionError as error:
        raise DefinitionError(f"{name} is not YAML", why=error.why) from None
    if len(documents) > 1:
        raise DefinitionError(f"{name} is not one YAML document", why=f"it holds {len(documents)}")
    return plain_value(documents[0]) if documents else None


_FLOW_STYLE_PROBLEMS = ("found unexpected ':'", "did not find expected ',' or")


def _composed(text: str, file: str) -> list[Node]:
    try:
        return list(_Composer(CParser(text).get_event, file).documents())
    except MarkedYAMLError as error:
        # libyaml follows YAML 1.1 here: no colon and no question mark in plain text of the flow style, as in
        # `{url: http://host:80}` and `{prompt: Deploy?}`.
        if len(text) > MAX_SLOW_TEXT or not (error.problem or "").startswith(_FLOW_STYLE_PROBLEMS):
            raise
    from ruamel.yaml import YAML  # the slow parser, which few files need

    _, parser = YAML(typ="safe", pure=True).get_constructor_parser(StringIO(text))
    return list(_Composer(parser.get_event, file).documents())


def _refused(at: Position, why: str) -> DefinitionError:
    return DefinitionError(
        f"{at.file or 'the definition'} is not a valid workflow",
        why=f"{at}: {why}",
        fix="correct the file and validate it again",
    )


class _Composer:
    """One pass over the events. An explicit stack, so that no input can exhaust ours."""

    def __init__(self, get_event: Callable[[], Any], file: str) -> None:
        self._next = get_event
        self._file = file
        self._nodes = 0
        self._aliases = 0

    def documents(self) -> Iterator[Node]:
        count = 0
        while (event := self._next()) is not None:
            if type(event) is DocumentStartEvent:
                count += 1
                if count > MAX_DOCUMENTS:
                    raise _refused(self._at(event), f"the yaml stream has more than {MAX_DOCUMENTS} documents")
                yield self._document()

    def _at(self, event: Any) -> Position:
        return Position(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _document(self) -> Node:
        anchors: dict[str, Node] = {}
        file = self._file
        following = self._next
        count = self._nodes
        # Each open collection with its anchor and, for a map, the key that waits for its value.
        stack: list[tuple[Sequence | Mapping, str | None]] = []
        waiting: list[Scalar | None] = []
        while True:
            event = following()
            kind = type(event)
            anchor: str | None = None
            if kind is ScalarEvent:
                mark = event.start_mark
                if event.ctag is not None:
                    raise _refused(self._at(event), f"yaml tags are not accepted: {str(event.ctag)[:40]}")
                node: Node = Scalar(file, mark.line + 1, mark.column + 1, event.value, is_plain=not event.style)
                anchor = event.anchor
            elif kind is MappingStartEvent or kind is SequenceStartEvent:
                mark = event.start_mark
                if event.ctag is not None:
                    raise _refused(self._at(event), f"yaml tags are not accepted: {str(event.ctag)[:40]}")
                if len(stack) >= MAX_DEPTH:
                    raise _refused(self._at(event), f"the yaml is nested too deeply: at most {MAX_DEPTH} levels")
                opened = (Mapping if kind is MappingStartEvent else Sequence)(file, mark.line + 1, mark.column + 1)
                if stack and waiting[-1] is None and isinstance(stack[-1][0], Mapping):
                    raise _refused(self._at(event), "a yaml key must be plain text, not a list or a map")
                stack.append((opened, event.anchor))
                waiting.append(None)
                continue
            elif kind is MappingEndEvent or kind is SequenceEndEvent:
                node, anchor = stack.pop()
                waiting.pop()
            elif kind is AliasEvent:
                self._aliases += 1
                known = anchors.get(event.anchor)
                if known is None:
                    raise _refused(self._at(event), f"yaml alias *{event.anchor[:40]} is unknown or contains itself")
                if self._aliases > MAX_ALIASES:
                    raise _refused(self._at(event), f"the yaml has more than {MAX_ALIASES} aliases")
                node = known
            else:  # DocumentEndEvent never comes before the document's root is complete
                raise _refused(self._at(event), "this is not valid yaml: the document has no content")

            count += 1
            if count > MAX_NODES:
                raise _refused(node.position, f"the yaml has more than {MAX_NODES} nodes")
            if anchor is not None:
                anchors[anchor] = node
            if not stack:
                following()  # the end of the document
                self._nodes = count
                return node

            parent = stack[-1][0]
            if isinstance(parent, Sequence):
                parent.items.append(node)
                parent.weight += node.weight
            elif (key := waiting[-1]) is None:
                if not isinstance(node, Scalar):
                    raise _refused(node.position, "a yaml key must be plain text, not a list or a map")
                waiting[-1] = node
            else:
                waiting[-1] = None
                parent.weight += node.weight + 1
                self._put(parent, key, node)
            if parent.weight > MAX_EXPANDED:
                raise _refused(node.position, "the yaml grows too large when its aliases are expanded")

    def _put(self, parent: Mapping, key: Scalar, value: Node) -> None:
        name = key.text
        if name == "<<" and key.is_plain:
            self._merge(parent, value)
            return
        known = parent.keys.get(name)
        if known is not None and known.weight >= 0:
            raise _refused(key.position, f'the key "{name[:80]}" is already defined at line {known.line}')
        parent.entries[name] = value
        parent.keys[name] = key

    def _merge(self, parent: Mapping, value: Node) -> None:
        """Take over the entries of a map, or of each map in a list; what is written in `parent` itself wins."""
        sources = value.items if isinstance(value, Sequence) else [value]
        for source in sources:
            if not isinstance(source, Mapping):
                raise _refused(value.position, "a yaml merge key (<<) takes a map or a list of maps")
            for name, item in source.entries.items():
                if name not in parent.entries:
                    parent.entries[name] = item
                    parent.keys[name] = _merged(source.keys[name])


def _merged(key: Scalar) -> Scalar:
    """Return a key that a written one may replace: its weight is negative."""
    copy = Scalar(key.file, key.line, key.column, key.text, is_plain=key.is_plain)
    copy.weight = -1
    return copy
