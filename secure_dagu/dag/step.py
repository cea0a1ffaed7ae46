"""Read one step: what it does, in its current and legacy forms, and under which conditions. Pure.

What a step is called and what it waits for is settled in `steps`, where all of them are known.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass
from typing import Any

from secure_dagu.dag import nodes, parts, reading, schema
from secure_dagu.dag.model import DeclaredOutput, Parallel, Position, Shell, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report

_PREFIXES = {"command": "cmd", "dag.run": "dag", "log.write": "log", "outputs.write": "outputs"}


@dataclass(frozen=True, slots=True)
class Defaults:
    """`defaults` of a document: fields that a step takes over, and declarations that go before its own."""

    node: Mapping
    fields: AbstractMapping[str, Any]


def read_defaults(report: Report, node: Node | None, path: str) -> Defaults | None:
    """Read `defaults` (section 1.8)."""
    entry = reading.table(report, node, path, schema.DEFAULTS)
    return None if entry is None else Defaults(entry, _shared_fields(report, entry, path))


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


def read_step(report: Report, node: Node, path: str, defaults: Defaults | None) -> tuple[Step, str] | None:
    """Read one step as authored; return it with the prefix of a generated name. `depends` is still unresolved."""
    if isinstance(node, Scalar):
        if node.is_null or not node.text.strip():
            report.problem(node, path, "a step must not be empty")
            return None
        report.warn(node, path, "Deprecated DAG syntax: a text as a step is deprecated; use `run`")
        entry = Mapping(node.file, node.line, node.column)
        entry.entries["run"], entry.keys["run"] = node, node
        node = entry
    entry_or_none = reading.table(report, node, path, schema.STEP)
    if entry_or_none is None:
        return None
    entry = entry_or_none
    fields = _shared_fields(report, entry, path)
    if defaults is not None:
        inherited = defaults.fields
        fields = {
            **inherited,
            **fields,
            "env": (*inherited.get("env", ()), *fields.get("env", ())),
            "preconditions": (*inherited.get("preconditions", ()), *fields.get("preconditions", ())),
        }
    work = _work(report, entry, path)
    if work is None:
        return None
    prefix = work.pop("prefix")
    _plain_fields(report, entry, path, fields)
    _sub_dag_fields(report, entry, path, fields, kind=work["kind"])
    if fields.get("parallel") is not None:
        prefix = "parallel"
    step = Step(
        name=reading.text(report, entry.get("name"), f"{path}.name").strip() if "name" in entry.entries else "",
        id=reading.text(report, entry.get("id"), f"{path}.id").strip() if "id" in entry.entries else "",
        position=Position(entry.file, entry.line, entry.column),
        **work,
        **fields,
    )
    if step.outputs and not step.id:
        report.problem(entry.entries["outputs"], f"{path}.outputs", "a step with outputs must define id")
    if step.stdout.path and step.stdout.path == step.stderr.path:
        report.problem(entry.entries["stderr"], f"{path}.stderr", "stdout and stderr must not be the same file")
    return step, prefix


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
    if isinstance(node, Mapping) or (
        isinstance(node, Sequence) and not all(isinstance(item, Scalar) for item in node.items)
    ):
        report.problem(node, path, "depends must be a string or array of strings")
        return ()
    return tuple(dict.fromkeys(reading.texts(report, node, path)))


def _output(report: Report, node: Node, path: str) -> Any:
    if isinstance(node, Mapping):
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
            if key == "path":
                report.problem(
                    item.keys[key], where, "path outputs belong to build DAGs: not supported by this version"
                )
            elif key not in schema.DECLARED_OUTPUT:
                report.problem(item.keys[key], where, f'unknown field "{key[:80]}"')
        name = reading.text(report, item.get("name"), f"{where}.name")
        kind = reading.text(report, item.get("type"), f"{where}.type", "string")
        if not name:
            report.problem(item, where, "name is required")
        elif not reading.WORD.fullmatch(name):
            report.problem(item, where, f'name must match {reading.WORD.pattern}: "{name[:80]}"')
        elif any(known.name == name for known in found):
            report.problem(item, where, f'duplicate output name "{name}"')
        if kind not in ("string", "json"):
            report.problem(item, where, "type must be string or json")
        found.append(DeclaredOutput(name=name, type=kind))
    return tuple(found)


def _sub_dag_fields(report: Report, entry: Mapping, path: str, fields: dict[str, Any], *, kind: str) -> None:
    """Read `parallel` and `worker_selector`, which only a sub-DAG step may have."""
    if (node := entry.get("worker_selector")) is not None:
        if kind != "dag.run":
            report.problem(node, f"{path}.worker_selector", "only a step that runs a DAG selects a worker")
        fields["worker_selector"], fields["run_locally"] = parts.worker_selector(
            report, node, f"{path}.worker_selector"
        )
    if (node := entry.get("parallel")) is not None:
        if kind != "dag.run":
            report.problem(node, f"{path}.parallel", "parallel is only for dag.run and dag.enqueue")
        fields["parallel"] = _parallel(report, node, f"{path}.parallel")


def _parallel(report: Report, node: Node, path: str) -> Parallel:
    items: Node | None = node
    max_concurrent = 10
    if isinstance(node, Mapping):
        reading.table(report, node, path, schema.PARALLEL)
        items = node.get("items")
        if (limit := node.get("max_concurrent")) is not None:
            value = nodes.scalar_value(limit) if isinstance(limit, Scalar) else None
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
                report.problem(limit, "parallel.max_concurrent", f"{path}: must be an integer from 1 to 1000")
            else:
                max_concurrent = value
    if items is None:
        report.problem(node, path, "items is required")
        return Parallel()
    if isinstance(items, Scalar):
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


# --------------------------------------------------------------------------------------------------- what a step does


def _work(report: Report, entry: Mapping, path: str) -> dict[str, Any] | None:
    """Return kind, commands, script, inputs, shell and name prefix of a step; None when it has no work."""
    run, action = entry.get("run"), entry.get("action")
    if "run" in entry.entries or "action" in entry.entries:
        if "run" in entry.entries and "action" in entry.entries:
            report.problem(entry.keys["action"], path, "run and action exclude each other")
        for name in schema.EXCLUDED_BY_RUN_OR_ACTION:
            if name in entry.entries:
                report.problem(entry.keys[name], path, f"{name} cannot stand beside run or action")
        if "run" in entry.entries:
            return _run(report, entry, run, path)
        return _action(report, entry, action, path)
    return _legacy(report, entry, path)


def _run(report: Report, entry: Mapping, run: Node | None, path: str) -> dict[str, Any]:
    options = reading.table(report, entry.get("with"), f"{path}.with", schema.RUN_WITH)
    shell = Shell()
    if options is not None:
        if options.get("shell_args") is not None and options.get("shell") is None:
            report.problem(options, f"{path}.with", "shell_args needs shell")
        shell = _shell(report, options, f"{path}.with.shell")
    return _commands(report, run or entry.entries["run"], f"{path}.run", shell)


def _shell(report: Report, options: Mapping, path: str) -> Shell:
    shell = parts.shell(report, options.get("shell"), options.get("shell_args"), options.get("shell_packages"), path)
    if shell.program == "direct":
        report.problem(options, path, "`direct` is not a shell for run steps; use `action: exec`")
    return shell


def _commands(report: Report, node: Node, path: str, shell: Shell) -> dict[str, Any]:
    """Read a command line, a script (text with a line break), or a list of command lines."""
    work: dict[str, Any] = {"kind": "command", "shell": shell, "prefix": "cmd"}
    if isinstance(node, Scalar):
        # The decoded value decides, before any trimming: one line is a command, more are a script.
        if not isinstance(nodes.scalar_value(node), str):
            report.problem(node, path, f"expected text or a list, found {reading.kind_of(node)}")
        elif not node.text.strip():
            report.problem(node, path, "must not be empty")
        elif "\n" in node.text:
            return {**work, "kind": "script", "script": node.text, "prefix": "script"}
        return {**work, "commands": (node.text,)}
    if not isinstance(node, Sequence):
        report.problem(node, path, f"expected text or a list, found {reading.kind_of(node)}")
        return work
    lines: list[str] = []
    for index, item in enumerate(node.items):
        line = _command_entry(item)
        if line is None:
            report.problem(item, f"{path}[{index}]", "expected one line of text, or one key with a plain value")
        elif line.strip():
            lines.append(line)
    if not lines and node.items == [item for item in node.items if isinstance(item, Scalar)]:
        report.problem(node, path, "must have at least one command")
    return {**work, "commands": tuple(lines)}


def _command_entry(node: Node) -> str | None:
    """Return one entry of a command list as text; None when it has no such form."""
    if isinstance(node, Scalar):
        line = "" if node.is_null else nodes.scalar_text(node)
    elif isinstance(node, Mapping) and len(node.entries) == 1:
        [(key, value)] = node.entries.items()
        if not isinstance(value, Scalar):
            return None
        line = f"{key}: {nodes.scalar_text(value)}"
    else:
        return None
    return None if "\n" in line.rstrip("\n") else line.rstrip("\n")


def _action(report: Report, entry: Mapping, node: Node | None, path: str) -> dict[str, Any]:
    name = reading.text(report, node, f"{path}.action").strip()
    where = node or entry.keys["action"]
    action = schema.ACTIONS.get(name)
    if action is None:
        if name in schema.KNOWN_ACTIONS or name.startswith("redis."):
            text = f'the action "{name}" is not supported by this version'
        else:
            near = (
                schema.nearest(name, schema.KNOWN_ACTIONS | schema.ACTIONS.keys())
                if name and not report.is_full
                else ""
            )
            text = f'unknown action "{name[:80]}"' + (f' (did you mean "{near}"?)' if near else "")
        report.problem(where, f"{path}.action", text)
        return {"kind": "noop", "prefix": "step"}
    return _inputs(report, entry.get("with"), entry, f"{path}.with", name, action)


def _inputs(
    report: Report, node: Node | None, owner: Node, path: str, name: str, action: schema.Action
) -> dict[str, Any]:
    """Read the inputs of an action against its table."""
    inputs = reading.table(report, node, path, action.keys)
    for key in action.required:
        if inputs is None or inputs.get(key) is None:
            report.problem(node or owner, path, f"{name} needs {key}")
    values = nodes.plain_value(inputs) if inputs is not None else {}
    if inputs is not None:
        if name == "exec":
            values = _exec_inputs(report, inputs, path)
        elif name == "outputs.write":
            block = inputs.get("values")
            if not isinstance(block, Mapping) or not block.entries:
                report.problem(block or inputs, f"{path}.values", "values must be a non-empty map")
        elif name in ("log.write", "dag.run"):
            for key in ("message", "dag"):
                if inputs.get(key) is not None:
                    values[key] = reading.text(report, inputs.get(key), f"{path}.{key}")
    return {"kind": name, "inputs": values, "prefix": _PREFIXES.get(name, name)}


def _exec_inputs(report: Report, inputs: Mapping, path: str) -> dict[str, Any]:
    command = reading.text(report, inputs.get("command"), f"{path}.command")
    if inputs.get("command") is not None and not command.strip():
        report.problem(inputs, f"{path}.command", "command must not be empty")
    return {"command": command, "args": list(reading.texts(report, inputs.get("args"), f"{path}.args", "a list"))}


# ------------------------------------------------------------------------------------------------------- legacy forms


def _legacy(report: Report, entry: Mapping, path: str) -> dict[str, Any] | None:
    """Read `command`, `script`, `exec`, `call` and `type`, or a step that only publishes values."""
    kind = reading.text(report, entry.get("type"), f"{path}.type")
    if kind and kind not in schema.LEGACY_TYPES:
        is_known = kind in schema.LEGACY_TYPES_UNSUPPORTED
        said = f'the type "{kind}" is not supported by this version' if is_known else f'unknown type "{kind[:80]}"'
        report.problem(entry.entries["type"], f"{path}.type", said)
        return None
    if "config" in entry.entries and "with" in entry.entries:
        report.problem(entry.keys["config"], path, "config is the old name of with: only one of them")
    action = schema.LEGACY_TYPES.get(kind, "")
    if "call" in entry.entries or action == "dag.run":
        return _legacy_call(report, entry, path)
    if action:
        _deprecated(report, entry, path, "type", f"action: {action}")
        config = entry.get("with") or entry.get("config")
        return _inputs(report, config, entry, f"{path}.with", action, schema.ACTIONS[action])
    if (node := entry.get("exec")) is not None:
        _deprecated(report, entry, path, "exec", "action: exec")
        return _inputs(report, node, entry, f"{path}.exec", "exec", schema.ACTIONS["exec"])
    if entry.get("command") is not None or entry.get("script") is not None:
        return _legacy_command(report, entry, path)
    if isinstance(entry.get("output"), Mapping):
        return {"kind": "noop", "prefix": "step"}
    if not any(
        key.use is schema.Use.REFUSED and name in entry.entries for name, key in schema.STEP.items()
    ):  # those were reported already, by name
        report.problem(entry, path, "a step needs run, action, or an output map")
    return None


def _legacy_command(report: Report, entry: Mapping, path: str) -> dict[str, Any]:
    shell = _shell(report, entry, f"{path}.shell")
    command, script = entry.get("command"), entry.get("script")
    if script is None:
        assert command is not None
        _deprecated(report, entry, path, "command", "run")
        return _commands(report, command, f"{path}.command", shell)
    _deprecated(report, entry, path, "script", "run")
    if command is not None:
        # The command is the interpreter line of the script.
        try:
            program, *args = shlex.split(reading.text(report, command, f"{path}.command"))
            shell = Shell(program=program, args=tuple(args))
        except ValueError:
            report.problem(command, f"{path}.command", "expected the interpreter of the script")
    text = reading.text(report, script, f"{path}.script")
    if not text.strip():
        report.problem(script, f"{path}.script", "must not be empty")
    return {"kind": "script", "script": text, "shell": shell, "prefix": "script"}


def _legacy_call(report: Report, entry: Mapping, path: str) -> dict[str, Any]:
    _deprecated(report, entry, path, "call" if "call" in entry.entries else "type", "action: dag.run")
    target = entry.get("call") or entry.get("command")
    name = reading.text(report, target, f"{path}.call")
    if not name:
        report.problem(entry, path, "call must name a DAG")
    inputs: dict[str, Any] = {"dag": name}
    if (given := entry.get("params")) is not None:
        inputs["params"] = nodes.plain_value(given)
    return {"kind": "dag.run", "inputs": inputs, "prefix": "dag"}


def _deprecated(report: Report, entry: Mapping, path: str, key: str, instead: str) -> None:
    report.warn(entry.keys[key], path, f"Deprecated DAG syntax: {path} {key} is deprecated; use `{instead}`")
