"""Read what lets a step wait for a person: `approval`, and the form of a `human.task` (section 3.25). Pure."""

from __future__ import annotations

from secure_dagu.dag import nodes, reading, schema
from secure_dagu.dag.model import Approval
from secure_dagu.dag.nodes import Mapping, Node, Scalar
from secure_dagu.dag.reading import Report

HUMAN_TASK = "human.task"
DEFAULTS_OF_HUMAN_TASK = frozenset({"env", "preconditions", "continue_on"})
"""The fields of `defaults` that a human task takes over."""
_INVALID_ON_HUMAN_TASK = (
    *("retry_policy", "repeat_policy", "timeout_sec", "stdout", "stderr", "output", "output_schema", "outputs"),
    *("inputs", "foreach", "parallel", "approval", "container", "worker_selector", "signal_on_stop", "log_output"),
)
_SCALARS = ("string", "integer", "number", "boolean")


def read_approval(report: Report, node: Node | None, path: str) -> Approval | None:
    """Read `approval`; `rewind_to` is still what the author wrote."""
    entry = reading.table(report, node, path, schema.APPROVAL)
    if entry is None:
        return None
    names = reading.texts(report, entry.get("input"), f"{path}.input", "a list")
    required = reading.texts(report, entry.get("required"), f"{path}.required", "a list")
    for key, listed in (("input", names), ("required", required)):
        for name in listed:
            if not reading.ENV_NAME.fullmatch(name):
                report.item_problem(entry.entries[key], name, f"{path}.{key}", f'"{name[:80]}" is not a variable name')
    for name in required:
        if name not in names:
            text = f'"{name[:80]}" is not among input'
            report.item_problem(entry.entries["required"], name, f"{path}.required", text)
    return Approval(
        prompt=reading.text(report, entry.get("prompt"), f"{path}.prompt"),
        input=names,
        required=required,
        rewind_to=reading.text(report, entry.get("rewind_to"), f"{path}.rewind_to"),
    )


def check_human_task(report: Report, entry: Mapping, path: str) -> None:
    """Check a step whose action is `human.task`: an explicit id, nothing that executes, a flat form."""
    if entry.get("id") is None:
        report.problem(entry, path, "a human.task needs an explicit id")
    for key in _INVALID_ON_HUMAN_TASK:
        if key in entry.entries:
            report.problem(entry.keys[key], f"{path}.{key}", "is invalid on a human.task, which runs nothing")
    given = entry.get("with")
    if isinstance(given, Mapping) and (form := given.get("form")) is not None:
        _check_form(report, form, f"{path}.with.form")


def _check_form(report: Report, node: Node, path: str) -> None:
    form = reading.table(report, node, path, {**schema.FORM, "$schema": schema.Key("text")})
    if form is None:
        return
    reading.choice(report, form.get("type"), f"{path}.type", ("object",), "object")
    properties = form.get("properties")
    if properties is not None and not isinstance(properties, Mapping):
        report.problem(properties, f"{path}.properties", f"expected a map, found {reading.kind_of(properties)}")
    known = properties.entries if isinstance(properties, Mapping) else {}
    for name, rule in known.items():
        where = f"{path}.properties.{name[:80]}"
        if not reading.WORD.fullmatch(name):
            report.problem(rule, where, "a property's name is a letter, then letters, digits, _")
        if not isinstance(rule, Mapping):
            report.problem(rule, where, f"expected a map, found {reading.kind_of(rule)}")
        elif not _is_scalar(rule):
            report.problem(rule, where, f"a form is flat: type is one of {', '.join(_SCALARS)}")
    for name in reading.texts(report, form.get("required"), f"{path}.required", "a list"):
        if name not in known:
            text = f'"{name[:80]}" is not a property'
            report.item_problem(form.entries["required"], name, f"{path}.required", text)


def _is_scalar(rule: Mapping) -> bool:
    kind = rule.get("type")
    if kind is None:
        return "properties" not in rule.entries and "items" not in rule.entries
    return isinstance(kind, Scalar) and nodes.scalar_text(kind) in _SCALARS
