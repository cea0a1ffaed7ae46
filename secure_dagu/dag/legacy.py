"""Read what a step does in the forms of earlier versions: `command`, `script`, `exec`, `call`, `type`. Pure.

Workflow language, section 1.5. Each is turned into what it is called now, and a warning says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from collections.abc import Mapping as AbstractMapping
from typing import Any

from secure_dagu.dag import actions, nodes, reading, schema
from secure_dagu.dag.model import Shell
from secure_dagu.dag.nodes import Mapping, Node, Scalar
from secure_dagu.dag.reading import Report
from secure_dagu.dag.work import read_commands, read_inputs, read_shell

_COMMANDS = frozenset({"", "command", "shell"})
_CALLS = frozenset({"dag", "subworkflow", "parallel"})
_OUT_OF_SCOPE = frozenset({"kubernetes", "k8s", "chat", "harness", "action"})

_Inputs = tuple[str, dict[str, Node]]
"""An action, and inputs of it that did not stand in `config`."""


def read_legacy(report: Report, entry: Mapping, path: str) -> dict[str, Any] | None:
    """Return the fields of a step that has neither `run` nor `action`; None when it has no work."""
    kind = reading.text(report, entry.get("type"), f"{path}.type")
    if "config" in entry.entries and "with" in entry.entries:
        report.problem(entry.keys["config"], path, "config is the old name of with: only one of them")
    if kind and kind not in _COMMANDS | _CALLS | _TYPES.keys() | {"foreach"}:
        said = f'the type "{kind}" is not part of this edition' if kind in _OUT_OF_SCOPE else _unknown(kind)
        report.problem(entry.entries["type"], f"{path}.type", said)
        return None
    if "foreach" in entry.entries:
        return {"kind": "foreach", "prefix": "foreach"}
    if "call" in entry.entries or kind in _CALLS:
        return _call(report, entry, path)
    if kind in _TYPES:
        return _typed(report, entry, kind, path)
    if (node := entry.get("exec")) is not None:
        _deprecated(report, entry, path, "exec", "action: exec")
        return read_inputs(report, node, entry, f"{path}.exec", "exec", actions.ACTIONS["exec"])
    if entry.get("command") is not None or entry.get("script") is not None:
        return _command(report, entry, path)
    if isinstance(entry.get("output"), Mapping):
        return {"kind": "noop", "prefix": "step"}
    report.problem(entry, path, "a step needs run, action, foreach, or an output map")
    return None


def _unknown(kind: str) -> str:
    near = schema.nearest(kind, _TYPES)
    return f'unknown type "{kind[:80]}"' + (f' (did you mean "{near}"?)' if near else "")


def _command(report: Report, entry: Mapping, path: str) -> dict[str, Any]:
    options = entry.get("with") or entry.get("config")
    reading.table(report, options, f"{path}.with", schema.RUN_WITH)
    for key in schema.RUN_WITH:
        if key in entry.entries:
            _deprecated(report, entry, path, key, f"with.{key}")
    shell = read_shell(report, options if isinstance(options, Mapping) else entry, f"{path}.shell")
    command, script = entry.get("command"), entry.get("script")
    if script is None:
        assert command is not None
        _deprecated(report, entry, path, "command", "run")
        return read_commands(report, command, f"{path}.command", shell)
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


def _call(report: Report, entry: Mapping, path: str) -> dict[str, Any]:
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


# -------------------------------------------------------------------------------------------------------------- types


def _typed(report: Report, entry: Mapping, kind: str, path: str) -> dict[str, Any] | None:
    """Read a step whose `type` is the executor of an action."""
    config = entry.get("with") or entry.get("config")
    if config is not None and not isinstance(config, Mapping):
        report.problem(config, f"{path}.with", f"expected a map, found {reading.kind_of(config)}")
        return None
    given = config.entries if config is not None else {}
    name, moved = _TYPES[kind](entry, given)
    action = actions.action_named(name)
    if action is None:
        report.problem(
            entry.entries["type"], f"{path}.type", f'{kind} has no operation "{name.partition(".")[2][:80]}"'
        )
        return None
    _deprecated(report, entry, path, "type", f"action: {name}")
    at = config or entry
    inputs = Mapping(at.file, at.line, at.column)
    for key, node in given.items():
        if key not in _CONSUMED.get(kind, ()):
            inputs.entries[key] = node
            inputs.keys[key] = config.keys[key] if config is not None else entry.keys["type"]
    for key, node in moved.items():
        if key not in inputs.entries:
            inputs.entries[key] = node
            inputs.keys[key] = Scalar(node.file, node.line, node.column, key, is_plain=True)
    return {**read_inputs(report, inputs, entry, f"{path}.with", name, action), "prefix": kind}


def _word(node: Node | None) -> str:
    """Return what the node says as the name of an operation."""
    return nodes.scalar_text(node).strip().lower() if isinstance(node, Scalar) and not node.is_null else ""


def _found(**inputs: Node | None) -> dict[str, Node]:
    return {key: node for key, node in inputs.items() if node is not None}


def _http(entry: Mapping, given: AbstractMapping[str, Node]) -> _Inputs:
    """Read `command: METHOD url`."""
    moved = _found(body=entry.get("script"))
    command = entry.get("command")
    if isinstance(command, Scalar):
        method, _, url = command.text.strip().partition(" ")
        for key, text in (("method", method), ("url", url.strip())):
            moved[key] = Scalar(command.file, command.line, command.column, text, is_plain=False)
    return "http.request", moved


def _sftp(entry: Mapping, given: AbstractMapping[str, Node]) -> _Inputs:
    return f"sftp.{_word(given.get('direction')) or 'upload'}", {}


def _sql(kind: str) -> Callable[[Mapping, AbstractMapping[str, Node]], _Inputs]:
    def read(entry: Mapping, given: AbstractMapping[str, Node]) -> _Inputs:
        if "import" in given:
            return f"{kind}.import", {}
        return f"{kind}.query", _found(query=entry.get("script") or entry.get("command"))

    return read


def _redis(entry: Mapping, given: AbstractMapping[str, Node]) -> _Inputs:
    return f"redis.{_word(given.get('command')) or _word(entry.get('command')) or 'command'}", {}


def _operation(kind: str, default: str = "") -> Callable[[Mapping, AbstractMapping[str, Node]], _Inputs]:
    """Read an executor whose `command` is the last word of an action."""

    def read(entry: Mapping, given: AbstractMapping[str, Node]) -> _Inputs:
        return f"{kind}.{_word(given.get('operation')) or _word(entry.get('command')) or default}", {}

    return read


def _moved(name: str, **sources: tuple[str, ...]) -> Callable[[Mapping, AbstractMapping[str, Node]], _Inputs]:
    """Read an action whose inputs stood in keys of the step; the first key that is there counts."""

    def read(entry: Mapping, given: AbstractMapping[str, Node]) -> _Inputs:
        found = {
            target: next((entry.get(key) for key in keys if entry.get(key) is not None), None)
            for target, keys in sources.items()
        }
        return name, _found(**found)

    return read


_TYPES: AbstractMapping[str, Callable[[Mapping, AbstractMapping[str, Node]], _Inputs]] = {
    "http": _http,
    "jq": _moved("jq.filter", filter=("command",), data=("script",)),
    "ssh": _moved("ssh.run", command=("script", "command")),
    "sftp": _sftp,
    "mail": _moved("mail.send"),
    "archive": _operation("archive"),
    "sqlite": _sql("sqlite"),
    "postgres": _sql("postgres"),
    "redis": _redis,
    "s3": _operation("s3"),
    "git": _operation("git", "checkout"),
    "template": _moved("template.render", template=("script", "command")),
    "file": _operation("file"),
    "log": _moved("log.write", message=("command", "script")),
    "outputs": _moved("outputs.write"),
    "router": _moved("router.route", value=("value",), routes=("routes",)),
    "docker": _moved("docker.run", command=("command",)),
    "container": _moved("container.run", command=("command",)),
}
"""`type` → what reads its action and inputs."""

_CONSUMED: AbstractMapping[str, tuple[str, ...]] = {
    "redis": ("command",),
    "archive": ("operation",),
    "s3": ("operation",),
    "git": ("operation",),
    "file": ("operation",),
}
"""Keys of `config` that became part of the action's name."""

TYPES = frozenset(_TYPES) | _CALLS | {"command", "shell", "foreach"}
"""Every word that `type` of a step may be, besides the names of `step_types`."""
