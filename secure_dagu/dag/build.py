"""Read what a step of a build workflow declares: its input and output files (workflow language, 3.17). Pure."""

from __future__ import annotations

import posixpath

from secure_dagu.dag import nodes, reading, schema
from secure_dagu.dag.model import PathInput, Step
from secure_dagu.dag.nodes import Mapping, Node, Sequence
from secure_dagu.dag.reading import Report

_HOST_KINDS = frozenset({"command", "script", "exec"})


def read_path_inputs(report: Report, node: Node, path: str) -> tuple[PathInput, ...]:
    """Read a step's `inputs`: a non-empty list of name and path."""
    if not isinstance(node, Sequence) or not node.items:
        report.problem(node, path, "inputs must be a non-empty sequence")
        return ()
    found: list[PathInput] = []
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        entry = reading.table(report, item, where, schema.PATH_INPUT)
        if entry is None:
            continue
        name = reading.text(report, entry.get("name"), f"{where}.name")
        source = reading.text(report, entry.get("path"), f"{where}.path")
        if not reading.WORD.fullmatch(name):
            report.problem(nodes.at(entry, "name"), where, f'name must match {reading.WORD.pattern}: "{name[:80]}"')
        elif any(known.name == name for known in found):
            report.problem(nodes.at(entry, "name"), where, f'duplicate input name "{name}"')
        if not source.strip():
            report.problem(nodes.at(entry, "path"), where, "path is required")
        found.append(PathInput(name=name, path=source))
    return tuple(found)


def check_declarations(
    report: Report, step: Step, entry: Mapping, path: str, *, is_build: bool, has_container: bool
) -> None:
    """Check a step that declares paths."""
    at = entry.entries["inputs"] if step.path_inputs else entry.entries["outputs"]
    targets = [output.path for output in step.outputs if output.path]
    if not is_build:
        report.problem(at, path, "inputs and path outputs belong to the steps of a DAG of type build")
        return
    if step.kind not in _HOST_KINDS or has_container:
        report.problem(at, path, "only a command or script on this host declares inputs and path outputs")
    if len(targets) > 1:
        report.problem(entry.entries["outputs"], f"{path}.outputs", "at most one path output per step")
    if targets and step.continue_on.mark_success:
        report.problem(at, f"{path}.continue_on", "mark_success is forbidden on a step with a path output")
    declared = {normal(target) for target in (*targets, *(item.path for item in step.path_inputs))}
    for key, stream in (("stdout", step.stdout), ("stderr", step.stderr)):
        if stream.path and normal(stream.path) in declared:
            report.problem(entry.entries[key], f"{path}.{key}", "must not be a path of inputs or outputs")


def normal(path: str) -> str:
    """Return a path without `.`, `..` and doubled slashes: the same file has the same text."""
    return posixpath.normpath(path.strip())
