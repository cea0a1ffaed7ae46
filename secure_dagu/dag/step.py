"""Read one step: what it does and under which conditions. Pure.

What a step is called and what it waits for is settled in `steps`, where all of them are known.
"""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from secure_dagu.dag import nodes, parts, reading, schema, waiting
from secure_dagu.dag.entries import check_entries
from secure_dagu.dag.model import DagType, DeclaredOutput, Parallel, Position, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.work import read_action, read_run

if TYPE_CHECKING:
    from secure_dagu.dag.custom_actions import CustomAction, CustomActions

HOST_KINDS = frozenset({"command", "script", "exec"})
"""Steps that start a program, on this host unless a container or root `ssh` takes them."""
SUB_DAG_KINDS = frozenset({"dag.run", "dag.enqueue"})


class Defaults(Struct, frozen=True):
    """`defaults` of a document: fields that a step takes over, and declarations that go before its own."""

    fields: AbstractMapping[str, Any]


class Surroundings(Struct, frozen=True, kw_only=True):
    """What a step is read with: the document around it."""

    custom: CustomActions | None = None
    """The document's own actions."""
    defaults: Defaults | None = None
    type: DagType = DagType.GRAPH
    place: str = "steps"
    """`steps`, `handler_on` or `foreach`."""
    is_child: bool = False
    """The document runs as a sub-DAG."""
    has_container: bool = False
    """The root has a container."""


class Read(Struct, frozen=True, kw_only=True):
    """A step as read. `depends` and everything else that names a step is still what the author wrote."""

    step: Step
    prefix: str
    """Of a generated name."""
    entry: Mapping
    """Where its fields stand; of a custom action, the expanded step."""
    path: str


def read_defaults(report: Report, node: Node | None, path: str) -> Defaults | None:
    """Read `defaults` (section 1.8)."""
    entry = reading.table(report, node, path, schema.DEFAULTS)
    return None if entry is None else Defaults(_shared_fields(report, entry, path))


def _shared_fields(report: Report, entry: Mapping, path: str) -> dict[str, Any]:
    """Read the fields that `defaults` and steps have in common; only those that are written."""
    fields: dict[str, Any] = {}
    if (node := entry.get("continue_on")) is not None:
        fields["continue_on"] = parts.continue_on(report, node, f"{path}.continue_on")
    if (node := entry.get("retry_policy")) is not None:
        fields["retry"] = parts.retry_policy(report, node, f"{path}.retry_policy")
    if (node := entry.get("repeat_policy")) is not None:
        fields["repeat"] = parts.repeat_policy(report, node, f"{path}.repeat_policy")
    if (node := entry.get("timeout_sec")) is not None:
        fields["timeout_s"] = float(reading.integer(report, node, f"{path}.timeout_sec"))
    if (node := entry.get("signal_on_stop")) is not None:
        fields["signal_on_stop"] = parts.signal_name(report, node, f"{path}.signal_on_stop")
    if (node := entry.get("mail_on_error")) is not None:
        fields["mail_on_error"] = reading.boolean(report, node, f"{path}.mail_on_error")
    if (node := entry.get("env")) is not None:
        fields["env"] = parts.env(report, node, f"{path}.env")
    if (node := entry.get("preconditions")) is not None:
        fields["preconditions"] = parts.preconditions(report, node, f"{path}.preconditions")
    return fields


# --------------------------------------------------------------------------------------------------------- one step


def read_step(report: Report, node: Node, path: str, around: Surroundings) -> Read | None:
    """Read one step as authored; None when it was reported as wrong."""
    if isinstance(node, Scalar):
        if node.is_null or not node.text.strip():
            report.problem(node, path, "a step must not be empty")
            return None
        report.warn(node, path, f"Deprecated DAG syntax: {path} a text as a step is deprecated; use `run`")
        short = Mapping(node.file, node.line, node.column)
        short.entries["run"], short.keys["run"] = node, node
        node = short
    entry = reading.table(report, node, path, schema.STEP)
    prefix = ""
    if entry is not None and around.custom is not None:
        entry, prefix = _expanded(report, entry, path, around.custom)
    if entry is None:
        return None
    work = _work(report, entry, path, around)
    if work is None:
        return None
    kind = work["kind"]
    fields = _with_defaults(_shared_fields(report, entry, path), around.defaults, kind=kind)
    generic = work.pop("prefix")
    _plain_fields(report, entry, path, fields)
    if (target := entry.get("container")) is not None:
        from secure_dagu.dag.container import read_container  # few workflows have one

        fields["container"] = read_container(report, target, f"{path}.container")
        if kind not in HOST_KINDS:
            report.problem(target, f"{path}.container", "only a command or script runs in a container")
    _sub_dag_fields(report, entry, path, fields, kind=kind)
    _checked_approval(report, entry, path, fields, around)
    if (inputs := entry.entries.get("inputs")) is not None:
        from secure_dagu.dag.build import read_path_inputs  # only build DAGs have them

        fields["path_inputs"] = read_path_inputs(report, inputs, f"{path}.inputs")
    step = Step(
        name=reading.text(report, entry.get("name"), f"{path}.name").strip() if "name" in entry.entries else "",
        id=reading.text(report, entry.get("id"), f"{path}.id").strip() if "id" in entry.entries else "",
        position=Position(entry.file, entry.line, entry.column),
        **work,
        **fields,
    )
    _check_whole(report, step, entry, path, around)
    return Read(step=step, prefix=prefix or _prefix(step, generic), entry=entry, path=path)


def _expanded(report: Report, entry: Mapping, path: str, custom: CustomActions) -> tuple[Mapping | None, str]:
    """Return the step that a call of a custom action stands for, and the name of the outermost one."""
    prefix = ""
    depth = 0
    expanded: Mapping | None = entry
    while expanded is not None and (action := _called(custom, expanded)) is not None:
        prefix = prefix or action.name
        expanded = reading.table(report, custom.expand(report, action, expanded, path, depth=depth), path, schema.STEP)
        depth += 1
    return expanded, prefix


def _called(custom: CustomActions, entry: Mapping) -> CustomAction | None:
    for key in ("action", "type"):
        named = entry.get(key)
        if isinstance(named, Scalar) and (found := custom.find(named.text.strip())):
            return found
    return None


def _with_defaults(fields: dict[str, Any], defaults: Defaults | None, *, kind: str) -> dict[str, Any]:
    if defaults is None:
        return fields
    inherited = defaults.fields
    if kind == waiting.HUMAN_TASK:
        inherited = {key: value for key, value in inherited.items() if key in waiting.DEFAULTS_OF_HUMAN_TASK}
    return {
        **inherited,
        **fields,
        "env": (*inherited.get("env", ()), *fields.get("env", ())),
        "preconditions": (*inherited.get("preconditions", ()), *fields.get("preconditions", ())),
    }


def _prefix(step: Step, generic: str) -> str:
    """Return the first word of a generated name (section 1.6)."""
    if step.kind in HOST_KINDS and step.container is not None:
        return "docker"
    return "parallel" if step.parallel is not None else generic


def _work(report: Report, entry: Mapping, path: str, around: Surroundings) -> dict[str, Any] | None:
    """Return kind, commands, script, inputs, shell and name prefix of a step; None when it has no work."""
    if "run" not in entry.entries and "action" not in entry.entries:
        from secure_dagu.dag.legacy import read_legacy  # not needed by what is written today

        return read_legacy(report, entry, path)
    if "run" in entry.entries and "action" in entry.entries:
        report.problem(entry.keys["action"], path, "run and action exclude each other")
    for name in (*schema.EXCLUDED_BY_RUN_OR_ACTION, "foreach"):
        if name in entry.entries:
            report.problem(entry.keys[name], path, f"{name} cannot stand beside run or action")
    if "run" in entry.entries:
        return read_run(report, entry, path)
    name = reading.text(report, entry.get("action"), f"{path}.action").strip()
    if name == waiting.HUMAN_TASK:
        if around.place != "steps":
            report.problem(entry.keys["action"], path, f"human.task is not allowed in {around.place}")
        elif around.is_child:
            report.problem(entry.keys["action"], path, "human.task is for root runs only, not for sub-DAGs")
    elif name == "router.route" and (around.place == "handler_on" or around.type is DagType.CHAIN):
        where = "a handler" if around.place == "handler_on" else "a chain"
        report.problem(entry.keys["action"], path, f"router.route is not allowed in {where}")
    return read_action(report, entry, name, path, frozenset(around.custom.known if around.custom else ()))


def _plain_fields(report: Report, entry: Mapping, path: str, fields: dict[str, Any]) -> None:
    """Read the fields that stand alone; most steps have one or two of them, so each is looked for before it is read."""
    if (node := entry.get("description")) is not None:
        fields["description"] = reading.text(report, node, f"{path}.description")
    if (node := entry.get("depends")) is not None:
        fields["depends"] = _depends(report, node, f"{path}.depends")
    if (node := entry.get("working_dir")) is not None:
        fields["working_dir"] = reading.text(report, node, f"{path}.working_dir")
    if (node := entry.get("stdout")) is not None:
        fields["stdout"] = parts.stream(report, node, f"{path}.stdout", publishes=True)
    if (node := entry.get("stderr")) is not None:
        fields["stderr"] = parts.stream(report, node, f"{path}.stderr", publishes=False)
    if (node := entry.get("log_output")) is not None:
        word = reading.choice(report, node, f"{path}.log_output", ("separate", "merged"), "separate")
        fields["merged_logs"] = word == "merged"
    if (node := entry.get("output")) is not None:
        fields["output"] = _output(report, node, f"{path}.output")
    if (node := entry.get("output_schema")) is not None:
        if isinstance(node, Mapping):
            fields["output_schema"] = nodes.plain_value(node)
        else:
            report.problem(node, f"{path}.output_schema", f"expected a map, found {reading.kind_of(node)}")
    if "outputs" in entry.entries:
        fields["outputs"] = _declared_outputs(report, entry.entries["outputs"], f"{path}.outputs")
    if (node := entry.get("dependencies")) is not None:
        fields["file_dependencies"] = parts.file_dependencies(report, node, f"{path}.dependencies")


def _depends(report: Report, node: Node, path: str) -> tuple[str, ...]:
    is_list = isinstance(node, Sequence) and all(isinstance(item, Scalar) for item in node.items)
    if not is_list and not (isinstance(node, Scalar) and node.is_text):
        report.problem(node, path, "depends must be a string or array of strings")
        return ()
    return tuple(dict.fromkeys(reading.texts(report, node, path)))


def _output(report: Report, node: Node, path: str) -> Any:
    if isinstance(node, Mapping):
        check_entries(report, node, path)
        return nodes.plain_value(node)
    name = reading.text(report, node, path).removeprefix("$")
    if not reading.ENV_NAME.fullmatch(name):
        report.problem(node, path, "expected a variable name, or a map of values to publish")
    return name


def _declared_outputs(report: Report, node: Node, path: str) -> tuple[DeclaredOutput, ...]:
    if not isinstance(node, Sequence) or not node.items:
        report.problem(node, path, "outputs must be a non-empty sequence")
        return ()
    found: list[DeclaredOutput] = []
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        if not isinstance(item, Mapping):
            report.problem(item, where, f"expected a map, found {reading.kind_of(item)}")
            continue
        for key in item.entries:
            if key not in schema.DECLARED_OUTPUT:
                report.problem(item.keys[key], where, f'unknown field "{key[:80]}"')
        name = reading.text(report, item.get("name"), f"{where}.name")
        kind = reading.text(report, item.get("type"), f"{where}.type", "string")
        target = reading.text(report, item.get("path"), f"{where}.path")
        if not name:
            report.problem(nodes.at(item, "name"), where, "name is required")
        elif not reading.WORD.fullmatch(name):
            report.problem(nodes.at(item, "name"), where, f'name must match {reading.WORD.pattern}: "{name[:80]}"')
        elif any(known.name == name for known in found):
            report.problem(nodes.at(item, "name"), where, f'duplicate output name "{name}"')
        if kind not in ("string", "json"):
            report.problem(nodes.at(item, "type"), where, "type must be string or json")
        if "path" in item.entries:
            if not target.strip():
                report.problem(nodes.at(item, "path"), f"{where}.path", "must name a file")
            if "type" in item.entries:
                report.problem(item.keys["type"], where, "path and type exclude each other")
        found.append(DeclaredOutput(name=name, type=kind, path=target))
    return tuple(found)


def _sub_dag_fields(report: Report, entry: Mapping, path: str, fields: dict[str, Any], *, kind: str) -> None:
    """Read `parallel` and `worker_selector`, which only a sub-DAG step may have."""
    if (node := entry.get("worker_selector")) is not None:
        if kind not in SUB_DAG_KINDS:
            report.problem(node, f"{path}.worker_selector", "only a step that runs a DAG selects a worker")
        fields["worker_selector"], fields["run_locally"] = parts.worker_selector(
            report, node, f"{path}.worker_selector"
        )
    if (node := entry.get("parallel")) is not None:
        if kind not in SUB_DAG_KINDS:
            report.problem(node, f"{path}.parallel", "parallel is only for dag.run and dag.enqueue")
        fields["parallel"] = _parallel(report, node, f"{path}.parallel")


def _parallel(report: Report, node: Node, path: str) -> Parallel:
    items: Node | None = node
    max_concurrent = 10
    if isinstance(node, Mapping):
        reading.table(report, node, path, schema.PARALLEL)
        items = node.get("items")
        max_concurrent = parts.max_concurrent(report, node.get("max_concurrent"), f"{path}.max_concurrent")
    if items is None:
        report.problem(node, path, "items is required")
        return Parallel()
    if isinstance(items, Scalar):
        if not items.is_text:
            report.problem(items, path, "expected a text, a list, or a map with items")
        return Parallel(source=nodes.scalar_text(items), max_concurrent=max_concurrent)
    if not isinstance(items, Sequence) or not all(_is_flat(item) for item in items.items):
        report.problem(items, path, "items are texts, numbers, or flat maps of them")
        return Parallel()
    if len(items.items) > 1000:
        report.problem(items, path, "at most 1000 items")
    return Parallel(items=tuple(nodes.plain_value(item) for item in items.items), max_concurrent=max_concurrent)


def _is_flat(item: Node) -> bool:
    if isinstance(item, Scalar):
        return not item.is_null
    return isinstance(item, Mapping) and all(
        isinstance(value, Scalar) and not value.is_null for value in item.entries.values()
    )


def _checked_approval(report: Report, entry: Mapping, path: str, fields: dict[str, Any], around: Surroundings) -> None:
    if (node := entry.get("approval")) is None:
        return
    fields["approval"] = waiting.read_approval(report, node, f"{path}.approval")
    if around.place != "steps":
        report.problem(node, f"{path}.approval", f"approval is not allowed in {around.place}")
    if entry.get("worker_selector") is not None:
        report.problem(node, f"{path}.approval", "a step with approval must not use worker_selector")


def _check_whole(report: Report, step: Step, entry: Mapping, path: str, around: Surroundings) -> None:
    """Check what depends on several fields of a step."""
    if step.outputs and not step.id:
        report.problem(entry.entries["outputs"], f"{path}.outputs", "a step with outputs must define id")
    if step.stdout.path and step.stdout.path == step.stderr.path:
        report.problem(entry.entries["stderr"], f"{path}.stderr", "stdout and stderr must not be the same file")
    if step.path_inputs or any(output.path for output in step.outputs):
        from secure_dagu.dag.build import check_declarations

        check_declarations(
            report,
            step,
            entry,
            path,
            is_build=around.type is DagType.BUILD and around.place == "steps",
            has_container=around.has_container or step.container is not None,
        )
