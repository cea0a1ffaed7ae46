"""Text → Definition: a bounded parse, the base configuration underneath, every problem with file:line:column. Pure.

`load_definition` is the only door: the caller reads files and hands over text. Two levels of acceptance exist (workflow
language, section 1.2): `strict` is what `validate` wants, the other what a run needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from secure_dagu.dag import base_configuration, declarations, nodes, parts, reading, schema
from secure_dagu.dag.model import Dag, DagType, Definition, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.root import read_artifacts, read_extra, read_labels, read_settings
from secure_dagu.dag.step import Surroundings, read_defaults
from secure_dagu.dag.steps import read_handlers, read_steps

if TYPE_CHECKING:
    from secure_dagu.dag.custom_actions import CustomActions

MAX_NAME_LENGTH = 40
_DAG_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULTS = Dag(name="defaults")
_TYPES = tuple(DagType)
_ARTIFACT_WORDS = ("DAG_RUN_ARTIFACTS_DIR", "paths.artifacts_dir")
"""Text that enables artifacts wherever it stands in the file (workflow language, section 3.18)."""


def load_definition(
    text: str,
    *,
    file: str = "",
    name: str | None = None,
    base_config: str = "",
    strict: bool = False,
    is_child: bool = False,
    read_schema: Callable[[str], str | None] = lambda _: None,
) -> Definition:
    """Return the entry DAG and the local sub-DAGs of a workflow file.

    Args:
        text: the YAML stream.
        file: what to call it in messages; its stem is the DAG's default name. Empty for text from the wire.
        name: the DAG's name, over what the file says.
        base_config: the text of `base.yaml`, merged under every document.
        strict: accept only what `validate` accepts.
        is_child: the DAG runs as a sub-DAG, so handlers of the base configuration do not apply.
        read_schema: returns the text of a parameter schema by its authored name, None when it cannot be had.

    Raises:
        DefinitionError: `why` lists every problem, one a line, each with file:line:column.
    """
    report = Report(file, read_schema)
    base = base_configuration.document(base_config)
    documents = _documents(report, nodes.parse(text, file=file), strict=strict)
    names_artifacts = any(word in text for word in _ARTIFACT_WORDS)
    main: Dag | None = None
    local: dict[str, Dag] = {}
    for index, document in documents:
        is_main = main is None
        dag = _read(
            report,
            document,
            base,
            name=(name or name_by_file(file)) if is_main else "",
            is_forced=is_main and bool(name),
            is_child=is_child or not is_main,
            names_artifacts=names_artifacts,
        )
        if main is None:
            main = dag
            continue
        if not dag.name:
            report.problem(document, f"document {index}", "a local DAG must have a name")
        elif dag.name in local or dag.name == main.name:
            report.problem(nodes.at(document, "name"), f"document {index}", f'the name "{dag.name}" must be unique')
        local[dag.name] = dag
    report.close()
    assert main is not None
    return Definition(main=main, locals=local, text=text, warnings=tuple(report.warnings))


def is_dag_name(text: str) -> bool:
    """Tell whether a DAG may be called so (section 1.3)."""
    return bool(_DAG_NAME.fullmatch(text)) and len(text) <= MAX_NAME_LENGTH and text not in (".", "..")


def name_by_file(file: str) -> str:
    """Return the name that a DAG has by its file: the last part of the path without `.yaml` or `.yml`."""
    return re.sub(r"\.ya?ml$", "", re.split(r"[/\\]", file)[-1])


# ------------------------------------------------------------------------------------------------ the document stream


def _documents(report: Report, stream: list[Node], *, strict: bool) -> list[tuple[int, Mapping]]:
    """Return the non-empty documents with their 1-based numbers, the entry document first (section 1.2)."""
    found: list[tuple[int, Mapping]] = []
    for index, node in enumerate(stream, 1):
        if isinstance(node, Scalar) and node.is_null:
            if strict and len(stream) > 1:
                report.problem(node, f"document {index}", "is empty")
        elif isinstance(node, Mapping):
            found.append((index, node))
        else:
            report.problem(node, f"document {index}", f"expected a map, found {reading.kind_of(node)}")
    if not found:
        if all(isinstance(node, Scalar) and node.is_null for node in stream):
            report.problem(Scalar(report.file, 1, 1, "", is_plain=True), "", "the file is empty: it has no workflow")
        report.close()
    if strict:
        _check_strictly(report, found)
    return found


def _check_strictly(report: Report, documents: list[tuple[int, Mapping]]) -> None:
    entry = documents[0][1]
    if "name" in entry.entries:
        report.problem(
            entry.keys["name"], "name", "the entrypoint document takes its name from the file, not from name"
        )
    for _, document in documents:
        steps = document.get("steps")
        if steps is None:
            report.problem(document, "steps", "steps is required")
        elif not isinstance(steps, Sequence):
            report.problem(steps, "steps", "steps must be a sequence")
        elif not steps.items:
            report.problem(steps, "steps", "steps must be a non-empty sequence")


# --------------------------------------------------------------------------------------------------------- one document


def _read(
    report: Report,
    own: Mapping,
    base: Mapping | None,
    *,
    name: str,
    is_forced: bool,
    is_child: bool,
    names_artifacts: bool,
) -> Dag:
    """Read one document over the base configuration."""
    root = own if base is None else base_configuration.merged(report, base, own, is_child=is_child)
    reading.table(report, root, "", schema.ROOT)
    around = Surroundings(
        custom=_custom_actions(report, root),
        defaults=read_defaults(report, root.get("defaults"), "defaults"),
        type=_type(report, root),
        is_child=is_child,
        has_container=root.get("container") is not None,
    )
    steps = read_steps(report, root.get("steps"), "steps", around)
    handlers = read_handlers(report, root.get("handler_on"), "handler_on", around)
    shell = parts.shell(report, root.get("shell"), root.get("shell_args"), None, "shell")
    selector, run_locally = parts.worker_selector(report, root.get("worker_selector"), "worker_selector")
    if shell.program == "direct":
        report.problem(root.entries["shell"], "shell", "`direct` is not a shell for run steps; use `action: exec`")
    every_step = _with_bodies((*steps, *handlers.values()))
    return Dag(
        name=_name(report, root, name, is_forced=is_forced),
        type=around.type,
        steps=tuple(steps),
        handlers=handlers,
        shell=shell,
        worker_selector=selector,
        run_locally=run_locally,
        file_dependencies=tuple(dict.fromkeys(path for step in every_step for path in step.file_dependencies)),
        artifacts=read_artifacts(report, root, every_step, named=names_artifacts),
        labels=read_labels(report, root),
        extra=read_extra(report, root),
        **_declared(report, root),
        **read_settings(report, root),
    )


def _custom_actions(report: Report, root: Mapping) -> CustomActions | None:
    if root.get("actions") is None and root.get("step_types") is None:
        return None
    from secure_dagu.dag.custom_actions import read_custom_actions  # few workflows have any

    return read_custom_actions(report, root)


def _with_bodies(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps and those of their `foreach` bodies."""
    bodies = [step.foreach.steps for step in steps if step.foreach is not None]
    return steps + tuple(inner for body in bodies for inner in body)


def _name(report: Report, root: Mapping, default: str, *, is_forced: bool) -> str:
    node = root.get("name")
    name = default if is_forced or node is None else reading.text(report, node, "name")
    if name and not is_dag_name(name):
        at = node if node is not None and not is_forced else root
        report.problem(
            at, "name", f'"{name[:80]}" is not a DAG name: at most {MAX_NAME_LENGTH} letters, digits, `_`, `-`, `.`'
        )
    return name


def _type(report: Report, root: Mapping) -> DagType:
    node, tasks = root.get("type"), root.entries.get("tasks")
    if tasks is not None:
        report.problem(root.keys["tasks"], "tasks", "belongs to agent DAGs, which are not part of this edition")
    word = reading.text(report, node, "type", DagType.GRAPH)
    if word in _TYPES:
        return DagType(word)
    assert node is not None
    if word in ("agent", "controller"):
        report.problem(node, "type", f'DAGs of type "{word}" are not part of this edition')
    else:
        report.problem(node, "type", f"expected one of {', '.join(_TYPES)}")
    return DagType.GRAPH


def _declared(report: Report, root: Mapping) -> dict[str, Any]:
    dotenv = root.get("dotenv")
    return {
        "params": declarations.read_params(report, root.get("params"), "params"),
        "consts": declarations.read_consts(report, root.get("consts"), "consts"),
        "secrets": declarations.read_secrets(report, root.get("secrets"), "secrets"),
        "env": parts.env(report, root.get("env"), "env"),
        "dotenv": _DEFAULTS.dotenv if dotenv is None else reading.texts(report, dotenv, "dotenv"),
        "preconditions": parts.preconditions(report, root.get("preconditions"), "preconditions"),
    }
