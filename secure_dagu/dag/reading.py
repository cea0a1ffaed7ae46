"""Read typed values out of nodes, collecting every problem instead of stopping at the first. Pure.

A reader returns a harmless value of its type when the authored one is wrong: nobody sees it, because `Report.close`
raises before a Dag with problems leaves the room.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from secure_dagu.dag import nodes, schema
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.errors import DefinitionError

MAX_PROBLEMS = 50
"""Problems listed in one error; the rest is counted."""
MAX_WARNINGS = 200

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_INTEGER = r"[-+]?\d{1,18}"  # these are compiled when a file first needs them
_NUMBER = r"[-+]?(?:\d{1,18}(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_BOOLEAN = r"(?i:true|false)"


class Report:
    """The problems and warnings of one file, in the order found."""

    def __init__(self, file: str, read_schema: Callable[[str], str | None] = lambda _: None) -> None:
        self.file = file
        self.read_schema = read_schema
        """Return the text of a schema by its authored name, None when it cannot be had."""
        self.warnings: list[str] = []
        self._problems: list[str] = []
        self._uncounted = 0

    @property
    def is_full(self) -> bool:
        """Tell whether further problems are only counted: no hint is worth looking for."""
        return len(self._problems) >= MAX_PROBLEMS

    def problem(self, node: Node, path: str, text: str) -> None:
        """Note that something is wrong at `node`; `path` is the field, such as `steps[0].env`."""
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(f"{node.position}: {path}: {text}" if path else f"{node.position}: {text}")
        else:
            self._uncounted += 1

    def item_problem(self, node: Node, item: str, path: str, text: str) -> None:
        """Note that something is wrong with the item of a list that is the text `item`; lone text is its own item."""
        listed = node.items if isinstance(node, Sequence) and not self.is_full else ()
        said = (one for one in listed if isinstance(one, Scalar) and nodes.scalar_text(one) == item)
        self.problem(next(said, node), path, text)

    def warn(self, node: Node, path: str, text: str) -> None:
        """Note something that the author should know; each sentence once, at most `MAX_WARNINGS` of them."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(f"{node.position}: {path}: {text}")

    def close(self) -> None:
        """Raise what was found.

        Raises:
            DefinitionError: there is a problem; `why` has one line for each.
        """
        if not self._problems:
            return
        more = [f"and {self._uncounted} more"] if self._uncounted else []
        raise DefinitionError(
            f"{self.file or 'the definition'} is not a valid workflow",
            why="\n".join(self._problems + more),
            fix="correct the file and validate it again",
        )


def table(report: Report, node: Node | None, path: str, keys: schema.Table) -> Mapping | None:
    """Return `node` as a map with known keys only; None when it is absent or something else."""
    if node is None:
        return None
    if not isinstance(node, Mapping):
        report.problem(node, path, f"expected a map, found {kind_of(node)}")
        return None
    if not node.entries.keys() <= keys.keys():
        _unknown_keys(report, node, path, keys)
    return node


def _unknown_keys(report: Report, node: Mapping, path: str, keys: schema.Table) -> None:
    for name, key in node.keys.items():
        if name not in keys:
            hint = "" if report.is_full else schema.hint_for(name, keys)
            shown = name[:80]
            report.problem(key, path, f'invalid keys: "{shown}"' + (f" ({hint})" if hint else ""))


def fits(report: Report, node: Mapping, path: str, keys: schema.Table) -> None:
    """Check that each value is of one of its key's kinds; text with a reference may become any of them."""
    for name, item in node.entries.items():
        key = keys.get(name)
        if key is None or key.kinds == "any" or node.get(name) is None:
            continue
        kinds = key.kinds.split("|")
        if not any(_FITS[kind](item) for kind in kinds):
            expected = " or ".join(_KIND_NAMES[kind] for kind in kinds)
            report.problem(item, f"{path}.{name}", f"expected {expected}, found {kind_of(item)}")


def _is_scalar(node: Node, pattern: str) -> bool:
    if not isinstance(node, Scalar) or node.is_null:
        return False
    return not pattern or "$" in node.text or re.fullmatch(pattern, nodes.scalar_text(node).strip()) is not None


def _holds_reference(node: Node) -> bool:
    return isinstance(node, Scalar) and "$" in node.text


_FITS: dict[str, Callable[[Node], bool]] = {
    "text": lambda node: _is_scalar(node, ""),
    "int": lambda node: _is_scalar(node, _INTEGER),
    "number": lambda node: _is_scalar(node, _NUMBER),
    "bool": lambda node: _is_scalar(node, _BOOLEAN),
    "list": lambda node: isinstance(node, Sequence) or _holds_reference(node),
    "map": lambda node: isinstance(node, Mapping) or _holds_reference(node),
}
_KIND_NAMES = {
    "text": "text",
    "int": "an integer",
    "number": "a number",
    "bool": "true or false",
    "list": "a list",
    "map": "a map",
}


def kind_of(node: Node) -> str:
    """Return how to call a node in a message; never its content, which may be a secret."""
    if isinstance(node, Mapping):
        return "a map"
    if isinstance(node, Sequence):
        return "a list"
    assert isinstance(node, Scalar)
    value = nodes.scalar_value(node)
    if value is None:
        return "nothing"
    names = {bool: "a boolean", int: "an integer", float: "a number"}
    return names.get(type(value), "text")


def text(report: Report, node: Node | None, path: str, default: str = "") -> str:
    """Return a scalar as text."""
    if node is None:
        return default
    if isinstance(node, Scalar):
        return nodes.scalar_text(node)
    report.problem(node, path, f"expected text, found {kind_of(node)}")
    return default


def boolean(report: Report, node: Node | None, path: str, *, default: bool = False) -> bool:
    """Return a boolean; only YAML 1.2 booleans count."""
    if node is None:
        return default
    value = nodes.scalar_value(node) if isinstance(node, Scalar) else None
    if isinstance(value, bool):
        return value
    report.problem(node, path, f"expected true or false, found {kind_of(node)}")
    return default


def integer(report: Report, node: Node | None, path: str, *, minimum: int = 0) -> int:
    """Return an integer of at least `minimum` and below 2**53; 0 when absent."""
    if node is None:
        return 0
    value = nodes.scalar_value(node) if isinstance(node, Scalar) else None
    if isinstance(value, int) and not isinstance(value, bool) and minimum <= value < 2**53:
        return value
    report.problem(node, path, f"expected an integer of at least {minimum}, found {kind_of(node)}")
    return 0


def number(report: Report, node: Node | None, path: str) -> float | None:
    """Return a finite number, None when absent."""
    if node is None:
        return None
    value = nodes.scalar_value(node) if isinstance(node, Scalar) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    report.problem(node, path, f"expected a number, found {kind_of(node)}")
    return None


def choice(report: Report, node: Node | None, path: str, allowed: tuple[str, ...], default: str) -> str:
    """Return one of `allowed`."""
    value = text(report, node, path, default)
    if value in allowed:
        return value
    assert node is not None
    report.problem(node, path, f"expected one of {', '.join(allowed)}")
    return default


def items(report: Report, node: Node | None, path: str, expected: str = "text or a list") -> Iterator[tuple[Node, str]]:
    """Yield the items of a list with their paths, or a lone scalar as the only item."""
    if node is None:
        return
    if isinstance(node, Scalar):
        yield node, path
    elif isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            yield item, f"{path}[{index}]"
    else:
        report.problem(node, path, f"expected {expected}, found {kind_of(node)}")


def texts(report: Report, node: Node | None, path: str, expected: str = "text or a list") -> tuple[str, ...]:
    """Return text or a list of texts as texts."""
    return tuple(text(report, item, where) for item, where in items(report, node, path, expected))


def integers(report: Report, node: Node | None, path: str) -> tuple[int, ...]:
    """Return an integer or a list of integers."""
    return tuple(integer(report, item, where) for item, where in items(report, node, path, "an integer or a list"))


def text_map(report: Report, node: Node | None, path: str) -> dict[str, str]:
    """Return a map of texts."""
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        report.problem(node, path, f"expected a map, found {kind_of(node)}")
        return {}
    return {key: text(report, item, f"{path}.{key}") for key, item in node.entries.items()}
