"""Read what a step does: `run`, or an action with its inputs. Pure.

The forms of earlier versions are in `legacy`.
"""

from __future__ import annotations

from typing import Any

from secure_dagu.dag import actions, nodes, parts, reading, schema
from secure_dagu.dag.model import Shell
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.waiting import HUMAN_TASK, check_human_task

_WITH_OPERATION = frozenset({"file", "artifact", "state", "s3", "sftp", "archive", "data"})
"""Actions whose last word is what a person reads in the summary of a run."""
_PREFIXES = {"dag.run": "dag", "dag.enqueue": "dag"}


def read_run(report: Report, entry: Mapping, path: str) -> dict[str, Any]:
    """Return the fields of a step with `run`, and the prefix of a generated name."""
    options = reading.table(report, entry.get("with"), f"{path}.with", schema.RUN_WITH)
    shell = Shell()
    if options is not None:
        if options.get("shell_args") is not None and options.get("shell") is None:
            report.problem(options, f"{path}.with", "shell_args needs shell")
        shell = read_shell(report, options, f"{path}.with.shell")
    return read_commands(report, entry.entries["run"], f"{path}.run", shell)


def read_shell(report: Report, options: Mapping, path: str) -> Shell:
    """Return the shell of a step; `direct` is none."""
    shell = parts.shell(report, options.get("shell"), options.get("shell_args"), options.get("shell_packages"), path)
    if shell.program == "direct":
        report.problem(options, path, "`direct` is not a shell for run steps; use `action: exec`")
    return shell


def read_commands(report: Report, node: Node, path: str, shell: Shell) -> dict[str, Any]:
    """Return a command line, a script (text with a line break), or a list of command lines."""
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
    if not lines and all(isinstance(item, Scalar) for item in node.items):
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


# ------------------------------------------------------------------------------------------------------------ actions


def read_action(
    report: Report, entry: Mapping, name: str, path: str, custom: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the fields of a step with `action: name`; `custom` are further names that it may have been meant to be."""
    node = entry.entries["action"]
    action = actions.action_named(name)
    if action is None:
        if name in actions.OUT_OF_SCOPE:
            text = f'the action "{name}" is not part of this edition'
        elif "@" in name or "/" in name or name.startswith("source:"):
            text = f'"{name[:80]}": actions of other repositories are not part of this edition'
        else:
            known = {**dict.fromkeys(actions.ACTIONS), **dict.fromkeys(custom)}
            near = schema.nearest(name, known) if name and not report.is_full else ""
            text = f'unknown action "{name[:80]}"' + (f' (did you mean "{near}"?)' if near else "")
        report.problem(node, f"{path}.action", text)
        return {"kind": "noop", "prefix": "step"}
    if name == HUMAN_TASK:
        check_human_task(report, entry, path)
    return read_inputs(report, entry.get("with"), entry, f"{path}.with", name, action)


def read_inputs(
    report: Report, node: Node | None, owner: Node, path: str, name: str, action: actions.Action
) -> dict[str, Any]:
    """Return the fields of a step that does `action` with the inputs `node`."""
    inputs = reading.table(report, node, path, action.keys)
    at = node or owner
    for key in action.required:
        if inputs is None or inputs.get(key) is None:
            report.problem(at, path, f"{name} needs {key}")
    values: dict[str, Any] = {}
    if inputs is not None:
        reading.fits(report, inputs, path, action.keys)
        values = nodes.plain_value(inputs)
        _check_values(report, inputs, path, name)
        values |= _special_inputs(report, inputs, path, name)
    for group in action.one_of:
        if sum(inputs is not None and key in inputs.entries for key in group) != 1:
            report.problem(at, path, f"{name} needs exactly one of {', '.join(group)}")
    first, _, rest = name.partition(".")
    return {
        "kind": name,
        "inputs": values,
        "operation": rest if first in _WITH_OPERATION else "",
        "prefix": _PREFIXES.get(name, first),
    }


def _check_values(report: Report, inputs: Mapping, path: str, name: str) -> None:
    for key, item in inputs.entries.items():
        allowed = actions.CHOICES.get(f"{name}.{key}")
        if allowed and isinstance(item, Scalar) and not item.is_null and "$" not in item.text:
            reading.choice(report, item, f"{path}.{key}", allowed, allowed[0])
    if name == "wait.duration":
        parts.check_duration(report, inputs.get("duration"), f"{path}.duration")
    elif name == "http.request" and inputs.get("body") is not None:
        for key in ("form", "files"):
            if inputs.get(key) is not None:
                report.problem(inputs.keys[key], f"{path}.{key}", "excludes body")
    elif name == "data.pick" and inputs.get("raw") is not None and inputs.get("to") is not None:
        report.problem(inputs.keys["to"], f"{path}.to", "raw and to exclude each other")
    elif name == "router.route":
        _check_routes(report, inputs.get("routes"), f"{path}.routes")


def _check_routes(report: Report, node: Node | None, path: str) -> None:
    if not isinstance(node, Mapping):
        return
    if not node.entries:
        report.problem(node, path, "routes must be a non-empty map")
    for pattern, targets in node.entries.items():
        where = f"{path}.{pattern[:80]}"
        if pattern.startswith("re:"):
            parts.check_regexp(report, node.keys[pattern], where, pattern[3:])
        if not reading.texts(report, targets, where, "a list of steps"):
            report.problem(node.keys[pattern], where, "a route names at least one step")


def _special_inputs(report: Report, inputs: Mapping, path: str, name: str) -> dict[str, Any]:
    """Return the inputs that are more than plain values."""
    if name == "exec":
        command = reading.text(report, inputs.get("command"), f"{path}.command")
        if inputs.get("command") is not None and not command.strip():
            report.problem(inputs, f"{path}.command", "command must not be empty")
        return {"command": command, "args": list(reading.texts(report, inputs.get("args"), f"{path}.args", "a list"))}
    if name == "outputs.write":
        block = inputs.get("values")
        if not isinstance(block, Mapping) or not block.entries:
            report.problem(block or inputs, f"{path}.values", "values must be a non-empty map")
    as_text = {"log.write": ("message",), "dag.run": ("dag",), "dag.enqueue": ("dag", "queue")}.get(name, ())
    return {
        key: reading.text(report, inputs.get(key), f"{path}.{key}") for key in as_text if inputs.get(key) is not None
    }
