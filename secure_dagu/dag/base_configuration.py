"""The base configuration underneath a document: who wins, what is appended, what is replaced whole. Pure.

Workflow language, section 1.9; for `defaults` also section 1.8.
"""

from __future__ import annotations

import re

from secure_dagu.dag import nodes
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report

_REPLACED_WHOLE = frozenset({"mail_on", "retry_policy", "webhook", "steps"})
"""Root maps of which the document's own replaces the base's as one."""
_APPENDED = frozenset({"env", "labels", "dotenv", "preconditions", "shell_args"})
"""Lists, wherever they stand, whose own entries come after the base's; an explicitly empty one resets them."""
_KEYED_LISTS = {"consts": "", "secrets": "name"}
"""Lists whose entries have names: an entry of the DAG replaces the base's of the same name."""
_NAMED_PARAM = re.compile(r"([A-Za-z]\w*)=", re.ASCII)
_OTHER_CHOICE = {
    "hist_retention_days": "hist_retention_runs",
    "hist_retention_runs": "hist_retention_days",
    "labels": "tags",
    "tags": "labels",
}
"""Keys that exclude each other in one file: what the document chooses takes the place of what the base chose."""


def document(text: str) -> Mapping | None:
    """Return the document of `base.yaml`; None when there is none.

    Raises:
        DefinitionError: it is not YAML.
    """
    if not text.strip():
        return None
    return next((node for node in nodes.parse(text, file="base.yaml") if isinstance(node, Mapping)), None)


def merged(report: Report, base: Mapping, own: Mapping, *, is_child: bool) -> Mapping:
    """Return `own` with what only `base` has below it; neither is changed.

    Handlers of the base apply to root runs only: `is_child` leaves them out.
    """
    _check_actions(report, base.get("actions"), own.get("actions"))
    without = {"name", "handler_on"} if is_child else {"name"}
    below = Mapping(base.file, base.line, base.column)
    for key, node in base.entries.items():
        other = _OTHER_CHOICE.get(key)
        if other in ("labels", "tags") and other is not None and other in own.entries:
            below.entries[other], below.keys[other] = node, base.keys[key]
        elif key not in without and not (other and other in own.entries):
            below.entries[key], below.keys[key] = node, base.keys[key]
    return _merged(below, own, depth=0)


def _check_actions(report: Report, below: Node | None, own: Node | None) -> None:
    if isinstance(below, Mapping) and isinstance(own, Mapping):
        for name in below.entries.keys() & own.entries.keys():
            report.problem(own.keys[name], f"actions.{name[:80]}", "the base configuration has an action of this name")


def _merged(base: Mapping, own: Mapping, *, depth: int) -> Mapping:
    result = Mapping(own.file, own.line, own.column)
    for key in (*base.entries, *(key for key in own.entries if key not in base.entries)):
        below, above = base.get(key), own.get(key)
        if below is None and key in own.entries:
            result.entries[key], result.keys[key] = own.entries[key], own.keys[key]
        elif below is not None:
            result.entries[key] = below if above is None else _merged_value(key, below, above, depth=depth)
            result.keys[key] = base.keys[key] if above is None else own.keys[key]
    return result


def _merged_value(key: str, below: Node, above: Node, *, depth: int) -> Node:
    if key in _APPENDED:
        if isinstance(above, Sequence) and not above.items:
            return above
        joined = Sequence(above.file, above.line, above.column)
        for node in (below, above):
            joined.items += node.items if isinstance(node, Sequence) else [node]
        return joined
    if depth == 0 and key in _KEYED_LISTS and isinstance(below, Sequence) and isinstance(above, Sequence):
        field = _KEYED_LISTS[key]
        names = {_entry_name(item, field) for item in above.items}
        joined = Sequence(above.file, above.line, above.column)
        joined.items = [item for item in below.items if _entry_name(item, field) not in names] + above.items
        return joined
    if depth == 0 and key == "params":
        return _merged_params(below, above)
    if isinstance(below, Mapping) and isinstance(above, Mapping) and not _is_replaced(key, below, above, depth=depth):
        if depth == 0 and key == "handler_on":
            return _over(below, above)  # each handler is one step: two of them do not mix
        return _merged(below, above, depth=depth + 1)
    return above


def _merged_params(below: Node, above: Node) -> Node:
    """Return the base's parameters with the DAG's after them; the DAG's take the place of those of the same name.

    Only parameters that are listed by name mix; a text, a place in a list and a schema stand for all parameters.
    """
    listed, own = _named_params(below), _named_params(above)
    if listed is None or own is None:
        return above
    names = {name for name, _ in own}
    joined = Sequence(above.file, above.line, above.column)
    joined.items = [item for name, item in listed if name not in names] + [item for _, item in own]
    return joined


def _named_params(node: Node) -> list[tuple[str, Node]] | None:
    """Return a node for each parameter; None when one has no name, or a schema says what there is."""
    if isinstance(node, Mapping):
        is_schema = "schema" in node.entries or "properties" in node.entries
        return None if is_schema else [(name, _single(node, name)) for name in node.entries]
    found: list[tuple[str, Node]] = []
    for item in node.items if isinstance(node, Sequence) else [node]:
        if isinstance(item, Mapping) and "name" in item.entries and len(item.entries) > 1:
            found.append((_entry_name(item, "name"), item))
        elif isinstance(item, Mapping):
            found += ((name, _single(item, name)) for name in item.entries)
        elif isinstance(item, Scalar) and isinstance(node, Sequence) and (named := _NAMED_PARAM.match(item.text)):
            found.append((named[1], item))
        else:
            return None
    return found


def _single(node: Mapping, name: str) -> Mapping:
    """Return a map with only this entry of `node`."""
    single = Mapping(node.file, node.line, node.column)
    single.entries, single.keys = {name: node.entries[name]}, {name: node.keys[name]}
    return single


def _is_replaced(key: str, below: Mapping, above: Mapping, *, depth: int) -> bool:
    if depth != 0:
        return False
    return key in _REPLACED_WHOLE or (key == "smtp" and ("oauth" in below.entries or "oauth" in above.entries))


def _over(below: Mapping, above: Mapping) -> Mapping:
    result = Mapping(above.file, above.line, above.column)
    result.entries = {**below.entries, **above.entries}
    result.keys = {**below.keys, **above.keys}
    return result


def _entry_name(item: Node, field: str) -> str:
    """Return what names an entry of a keyed list: its only key, or the text of `field`."""
    if not isinstance(item, Mapping):
        return ""
    if not field:
        return next(iter(item.entries), "")
    named = item.entries.get(field)
    return named.text if isinstance(named, Scalar) else ""
