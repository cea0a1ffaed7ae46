"""The author's own actions: `actions` and the older `step_types`, expanded where they are called. Pure.

Workflow language, section 1.10. An expansion is a step as if it had been written in place of the call: its nodes keep
their places in the file, and the reader of steps reads it like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as AbstractMapping
from typing import Any

from msgspec import Struct

from secure_dagu.dag import actions, formats, nodes, reading, schema
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.errors import DefinitionError

MAX_DEPTH = 8
"""Custom actions that call each other."""
MAX_WEIGHT = nodes.MAX_EXPANDED
"""Weight (see `nodes`) of all expansions of a document."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(?:\.[A-Za-z][A-Za-z0-9_-]*)*")
_FORBIDDEN_AT_CALL = (
    *("run", "command", "exec", "script", "shell", "shell_args", "shell_packages", "call", "params", "value", "routes"),
    *("llm", "messages", "container", "parallel", "foreach", "working_dir"),
)
_JOINED = ("env", "preconditions")


class CustomAction(Struct, frozen=True, kw_only=True):
    """One custom action. `executor` is the `type` of one from `step_types`, else empty."""

    name: str
    input_schema: AbstractMapping[str, Any]
    output_schema: Node | None
    template: Mapping
    executor: str = ""


class CustomActions:
    """The custom actions of a document, and how much their expansions have grown to."""

    def __init__(self, known: AbstractMapping[str, CustomAction]) -> None:
        self.known = known
        self._weight = 0

    def find(self, name: str) -> CustomAction | None:
        """Return the action called `name`."""
        return self.known.get(name)

    def expand(self, report: Report, action: CustomAction, entry: Mapping, path: str, *, depth: int) -> Mapping | None:
        """Return the step that the call `entry` stands for; None when it was reported as wrong."""
        if depth >= MAX_DEPTH:
            report.problem(entry, path, f"custom actions call each other more than {MAX_DEPTH} deep")
            return None
        inputs = _checked_inputs(report, action, entry, path)
        if inputs is None:
            return None
        try:
            template = _rendered(action.template, inputs)
        except DefinitionError as error:
            reason = f"{error.what}: {error.why}" if error.why else error.what
            report.problem(entry, path, f"{action.name}: {reason}")
            return None
        assert isinstance(template, Mapping)
        self._weight += template.weight
        if self._weight > MAX_WEIGHT:
            report.problem(entry, path, "the workflow grows too large when its custom actions are expanded")
            return None
        return _joined(action, template, entry)


def read_custom_actions(report: Report, root: Mapping) -> CustomActions:
    """Read `actions` and `step_types` of a document."""
    found: dict[str, CustomAction] = {}
    for key, table in (("actions", schema.ACTION), ("step_types", schema.STEP_TYPE)):
        node = root.get(key)
        if node is None:
            continue
        if key == "step_types":
            report.warn(root.keys[key], key, "Deprecated DAG syntax: step_types is deprecated; use `actions`")
        if not isinstance(node, Mapping):
            report.problem(node, key, f"expected a map, found {reading.kind_of(node)}")
            continue
        for name in node.entries:
            if action := _definition(report, node, name, f"{key}.{name[:80]}", table, is_type=key == "step_types"):
                if name in found:
                    report.problem(node.keys[name], key, f'"{name[:80]}" is defined twice')
                found[name] = action
    return CustomActions(found)


def _definition(
    report: Report, owner: Mapping, name: str, path: str, table: schema.Table, *, is_type: bool
) -> CustomAction | None:
    if not _NAME.fullmatch(name):
        report.problem(owner.keys[name], path, "a name is words of letters, digits, _ and -, joined by dots")
    elif actions.action_named(name) is not None or name in actions.OUT_OF_SCOPE:
        report.problem(owner.keys[name], path, "collides with the builtin action of this name")
    entry = reading.table(report, owner.entries[name], path, table)
    if entry is None:
        return None
    given, template = entry.get("input_schema"), entry.get("template")
    if not isinstance(given, Mapping):
        report.problem(entry, path, "input_schema is required: a JSON Schema of type object")
        return None
    if not isinstance(template, Mapping):
        report.problem(entry, path, "template is required: a step")
        return None
    if reading.text(report, given.get("type"), f"{path}.input_schema.type") != "object":
        report.problem(given, f"{path}.input_schema", "type must be object")
    if not is_type and ("run" in template.entries) == ("action" in template.entries):
        report.problem(template, f"{path}.template", "exactly one of run and action is needed")
    body = nodes.plain_value(given)
    if wrong := _schema_problem(body):
        report.problem(given, f"{path}.input_schema", wrong)
        return None
    output = entry.get("output_schema")
    if output is not None and not isinstance(output, Mapping):
        report.problem(output, f"{path}.output_schema", f"expected a map, found {reading.kind_of(output)}")
    executor = reading.text(report, entry.get("type"), f"{path}.type") if is_type else ""
    return CustomAction(name=name, input_schema=body, output_schema=output, template=template, executor=executor)


# ------------------------------------------------------------------------------------------------------------- inputs


def _checked_inputs(report: Report, action: CustomAction, entry: Mapping, path: str) -> dict[str, Any] | None:
    for key in _FORBIDDEN_AT_CALL:
        if key in entry.entries:
            report.problem(
                entry.keys[key], f"{path}.{key}", f"cannot stand where the custom action {action.name} is used"
            )
    given = entry.get("with") or entry.get("config")
    if given is not None and not isinstance(given, Mapping):
        report.problem(given, f"{path}.with", f"expected a map, found {reading.kind_of(given)}")
        return None
    inputs = nodes.plain_value(given) if given is not None else {}
    _apply_defaults(action.input_schema, inputs)
    if wrong := _input_problem(action.input_schema, inputs):
        report.problem(nodes.at(given or entry, *wrong[0]), f"{path}.with", f"{action.name}: {wrong[1]}")
        return None
    return dict(inputs)


def _apply_defaults(rule: Any, values: dict[str, Any]) -> None:
    properties = rule.get("properties") if isinstance(rule, dict) else None
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(inner, dict):
            continue
        if name not in values and "default" in inner:
            values[name] = inner["default"]
        if isinstance(values.get(name), dict):
            _apply_defaults(inner, values[name])


def _schema_problem(rule: AbstractMapping[str, Any]) -> str:
    from jsonschema import Draft202012Validator, exceptions  # costs more than a run; few files have own actions

    try:
        Draft202012Validator.check_schema(rule)
    except exceptions.SchemaError as error:
        return f"this is no JSON Schema: {error.message[:200]}"
    return ""


def _input_problem(
    rule: AbstractMapping[str, Any], values: AbstractMapping[str, Any]
) -> tuple[tuple[str | int, ...], str] | None:
    """Return where the inputs are wrong, and how. Text with a reference may become anything: only a run can tell."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        for error in Draft202012Validator(rule, registry=Registry()).iter_errors(values):
            if isinstance(error.instance, str) and "${" in error.instance:
                continue
            at = tuple(error.absolute_path)
            where = ".".join(str(part) for part in at)
            if error.validator in ("required", "additionalProperties"):
                return at, f"{where}: {error.message}" if where else str(error.message)
            return at, f"{where} does not fit the input_schema ({error.validator})"
    except (Unresolvable, RecursionError) as error:
        return (), f"the input_schema cannot be followed: {type(error).__name__}"
    return None


# ---------------------------------------------------------------------------------------------------------- expanding


def _rendered(node: Node, inputs: AbstractMapping[str, Any]) -> Node:
    """Return a copy of a template with the inputs in it.

    Raises:
        DefinitionError: a template is malformed, or an input is missing.
    """
    if isinstance(node, Scalar):
        if "{{" not in node.text:
            return node
        from secure_dagu.dag import gotemplate  # only files with own actions pay for it

        text = gotemplate.render(node.text, {"input": inputs}, {"json": formats.compact_json})
        return Scalar(node.file, node.line, node.column, text, is_plain=False)
    if isinstance(node, Sequence):
        listed = Sequence(node.file, node.line, node.column)
        listed.items = [_rendered(item, inputs) for item in node.items]
        listed.weight += sum(item.weight for item in listed.items)
        return listed
    assert isinstance(node, Mapping)
    if node.entries.keys() == {"$input"}:
        return _inserted(node, inputs)
    result = Mapping(node.file, node.line, node.column)
    for key, item in node.entries.items():
        result.entries[key], result.keys[key] = _rendered(item, inputs), node.keys[key]
        result.weight += result.entries[key].weight + 1
    return result


def _inserted(node: Mapping, inputs: AbstractMapping[str, Any]) -> Node:
    named = node.entries["$input"]
    path = nodes.scalar_text(named).strip().removeprefix(".") if isinstance(named, Scalar) else ""
    segments = path.split(".")
    if segments[0] == "input" and "input" not in inputs:
        segments = segments[1:]
    value: Any = inputs
    for segment in segments:
        if isinstance(value, dict) and segment in value:
            value = value[segment]
        elif isinstance(value, list) and segment.isdigit() and int(segment) < len(value):
            value = value[int(segment)]
        else:
            raise DefinitionError(f"the input {path[:80]!r} is missing")
    return _node_of(value, node)


def _node_of(value: Any, at: Node) -> Node:
    """Return plain data as nodes at the place of `at`."""
    if isinstance(value, dict):
        entry = Mapping(at.file, at.line, at.column)
        for key, item in value.items():
            entry.entries[key] = _node_of(item, at)
            entry.keys[key] = Scalar(at.file, at.line, at.column, key, is_plain=False)
            entry.weight += entry.entries[key].weight + 1
        return entry
    if isinstance(value, list):
        listed = Sequence(at.file, at.line, at.column)
        listed.items = [_node_of(item, at) for item in value]
        listed.weight += sum(item.weight for item in listed.items)
        return listed
    text = value if isinstance(value, str) else "null" if value is None else formats.as_text(value)
    return Scalar(at.file, at.line, at.column, text, is_plain=not isinstance(value, str))


def _joined(action: CustomAction, template: Mapping, call: Mapping) -> Mapping:
    """Return the template with the fields of the call over it; environment and preconditions are added up."""
    result = Mapping(call.file, call.line, call.column)
    result.entries, result.keys = dict(template.entries), dict(template.keys)
    if action.executor and action.executor not in ("command", "shell"):
        result.entries.setdefault("type", _node_of(action.executor, template))
        result.keys.setdefault("type", call.keys.get("type") or call.keys["action"])
    for key, node in call.entries.items():
        if key in ("action", "type", "with", "config"):
            continue
        below = template.get(key)
        if key in _JOINED and below is not None:
            both = Sequence(node.file, node.line, node.column)
            for part in (below, node):
                both.items += part.items if isinstance(part, Sequence) else [part]
            node = both
        result.entries[key], result.keys[key] = node, call.keys[key]
    if action.output_schema is not None and "output_schema" not in result.entries:
        result.entries["output_schema"] = action.output_schema
        result.keys["output_schema"] = Scalar(call.file, call.line, call.column, "output_schema", is_plain=True)
    return result
