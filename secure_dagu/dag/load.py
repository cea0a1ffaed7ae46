"""Text → Definition: a bounded parse, the base configuration underneath, every problem with file:line:column. Pure.

`load_definition` is the only door: the caller reads files and hands over text. Two levels of acceptance exist (language
reference, section 1.2): `strict` is what `validate` wants, the other what a run needs.
"""

from __future__ import annotations

import re
from typing import Any

from secure_dagu.dag import declarations, nodes, parts, reading, schema
from secure_dagu.dag.model import Artifacts, Dag, DagType, Definition, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.step import read_defaults
from secure_dagu.dag.steps import read_handlers, read_steps

MAX_NAME_LENGTH = 40
_DAG_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULTS = Dag(name="defaults")
_ARTIFACT_WORDS = ("DAG_RUN_ARTIFACTS_DIR", "paths.artifacts_dir")
"""Text that enables artifacts wherever it stands in the file (language reference, section 3.18)."""


def load_definition(
    text: str,
    *,
    file: str = "",
    name: str | None = None,
    base_config: str = "",
    strict: bool = False,
    is_child: bool = False,
) -> Definition:
    """Return the entry DAG and the local sub-DAGs of a workflow file.

    Args:
        text: the YAML stream.
        file: what to call it in messages; its stem is the DAG's default name. Empty for text from the wire.
        name: the DAG's name, over what the file says.
        base_config: the text of `base.yaml`, merged under every document.
        strict: accept only what `validate` accepts.
        is_child: the DAG runs as a sub-DAG, so handlers of the base configuration do not apply.

    Raises:
        DefinitionError: `why` lists every problem, one a line, each with file:line:column.
    """
    report = Report(file)
    base = _base_document(base_config)
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
            name=(name or _stem(file)) if is_main else "",
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
            report.problem(document, f"document {index}", f'the name "{dag.name}" must be unique')
        local[dag.name] = dag
    report.close()
    assert main is not None
    return Definition(main=main, locals=local, text=text, warnings=tuple(report.warnings))


def _stem(file: str) -> str:
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


# ---------------------------------------------------------------------------------------------- the base configuration

_REPLACED_WHOLE = frozenset({"mail_on", "retry_policy", "webhook"})
_APPENDED = frozenset({"labels", "dotenv", "preconditions"})
_KEYED_LISTS = {"consts": "", "secrets": "name"}
"""Lists whose entries have names: an entry of the DAG replaces the base's of the same name."""


def _base_document(text: str) -> Mapping | None:
    if not text.strip():
        return None
    for node in nodes.parse(text, file="base.yaml"):
        if isinstance(node, Mapping):
            return node
    return None


def _merged(base: Mapping, own: Mapping, *, without: frozenset[str] = frozenset()) -> Mapping:
    """Return `own` with what only `base` has below it (section 1.9); neither is changed."""
    merged = Mapping(own.file, own.line, own.column)
    for key in (*base.entries, *(key for key in own.entries if key not in base.entries)):
        below, above = base.get(key) if key not in without else None, own.get(key)
        if below is None and key in own.entries:
            merged.entries[key], merged.keys[key] = own.entries[key], own.keys[key]
        elif below is not None:
            merged.entries[key] = below if above is None else _merged_value(key, below, above)
            merged.keys[key] = base.keys[key] if above is None else own.keys[key]
    return merged


def _merged_value(key: str, below: Node, above: Node) -> Node:
    if key == "env" or key in _APPENDED:
        if isinstance(above, Sequence) and not above.items:
            return above  # an explicitly empty list resets what was inherited
        joined = Sequence(above.file, above.line, above.column)
        for node in (below, above):
            joined.items += node.items if isinstance(node, Sequence) else [node]
        return joined
    if key in _KEYED_LISTS and isinstance(below, Sequence) and isinstance(above, Sequence):
        field = _KEYED_LISTS[key]
        names = {_entry_name(item, field) for item in above.items}
        joined = Sequence(above.file, above.line, above.column)
        joined.items = [item for item in below.items if _entry_name(item, field) not in names] + above.items
        return joined
    if isinstance(below, Mapping) and isinstance(above, Mapping) and key not in _REPLACED_WHOLE and key != "params":
        return _merged(below, above)
    return above


def _entry_name(item: Node, field: str) -> str:
    """Return what names an entry of a keyed list: its only key, or the text of `field`."""
    if not isinstance(item, Mapping):
        return ""
    if not field:
        return next(iter(item.entries), "")
    named = item.entries.get(field)
    return named.text if isinstance(named, Scalar) else ""


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
    without = frozenset({"name", "handler_on"} if is_child else {"name"})
    root = own if base is None else _merged(base, own, without=without)
    reading.table(report, root, "", schema.ROOT)
    kind = _kind(report, root)
    defaults = read_defaults(report, root.get("defaults"), "defaults")
    steps = read_steps(report, root.get("steps"), "steps", kind, defaults)
    handlers = read_handlers(report, root.get("handler_on"), "handler_on", defaults)
    shell = parts.shell(report, root.get("shell"), root.get("shell_args"), None, "shell")
    selector, run_locally = parts.worker_selector(report, root.get("worker_selector"), "worker_selector")
    every_step = (*steps, *handlers.values())
    return Dag(
        name=_name(report, root, name, is_forced=is_forced),
        type=kind,
        steps=tuple(steps),
        handlers=handlers,
        shell=shell,
        worker_selector=selector,
        run_locally=run_locally,
        file_dependencies=tuple(dict.fromkeys(path for step in every_step for path in step.file_dependencies)),
        artifacts=_artifacts(report, root, every_step, named=names_artifacts),
        labels=_labels(report, root),
        extra=_extra(report, root),
        **_declared(report, root),
        **_settings(report, root),
    )


def _name(report: Report, root: Mapping, default: str, *, is_forced: bool) -> str:
    node = root.get("name")
    name = default if is_forced or node is None else reading.text(report, node, "name")
    if name and (not _DAG_NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH or name in (".", "..")):
        at = node if node is not None and not is_forced else root
        report.problem(
            at, "name", f'"{name[:80]}" is not a DAG name: at most {MAX_NAME_LENGTH} letters, digits, `_`, `-`, `.`'
        )
    return name


def _kind(report: Report, root: Mapping) -> DagType:
    node = root.get("type")
    word = reading.text(report, node, "type", DagType.GRAPH)
    if word in (DagType.GRAPH, DagType.CHAIN):
        return DagType(word)
    assert node is not None
    if word in ("build", "agent", "controller"):
        report.problem(node, "type", f'DAGs of type "{word}" are not supported by this version')
    else:
        report.problem(node, "type", "expected one of graph, chain")
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


def _settings(report: Report, root: Mapping) -> dict[str, Any]:
    """Read the plain settings; absent ones keep the defaults of `Dag`."""
    settings: dict[str, Any] = {
        key: reading.text(report, root.get(key), key)
        for key in ("group", "description", "working_dir", "queue", "log_dir")
        if root.get(key) is not None
    }
    for key, field in (
        ("timeout_sec", "timeout_s"),
        ("delay_sec", "delay_s"),
        ("restart_wait_sec", "restart_wait_s"),
        ("max_clean_up_time_sec", "max_clean_up_s"),
    ):
        if (node := root.get(key)) is not None:
            settings[field] = float(reading.integer(report, node, key))
    for key, field in (("max_active_steps", "max_active_steps"), ("max_output_size", "max_output_bytes")):
        if (node := root.get(key)) is not None:
            settings[field] = reading.integer(report, node, key)
    word = reading.choice(report, root.get("log_output"), "log_output", ("separate", "merged"), "separate")
    settings["merged_logs"] = word == "merged"
    return settings


def _artifacts(report: Report, root: Mapping, steps: tuple[Step, ...], *, named: bool) -> Artifacts:
    """Read `artifacts`; unset, they are enabled by use: a stream artifact, or the folder's name in the file."""
    entry = reading.table(report, root.get("artifacts"), "artifacts", schema.ARTIFACTS)
    enabled: bool | None = None
    folder = ""
    writes = any(step.stdout.artifact or step.stderr.artifact for step in steps)
    if entry is not None:
        if entry.get("enabled") is not None:
            enabled = reading.boolean(report, entry.get("enabled"), "artifacts.enabled")
        folder = reading.text(report, entry.get("dir"), "artifacts.dir")
        if enabled is False and writes:
            report.problem(entry, "artifacts.enabled", "a step writes an artifact, so artifacts cannot be disabled")
    return Artifacts(enabled=writes or named if enabled is None else enabled, dir=folder)


def _labels(report: Report, root: Mapping) -> tuple[str, ...]:
    labels, tags = root.get("labels"), root.get("tags")
    if tags is not None:
        report.warn(root.keys["tags"], "tags", "Deprecated DAG syntax: tags is deprecated; use `labels`")
        if labels is not None:
            report.problem(root.keys["tags"], "tags", "tags is the old name of labels: only one of them")
    return declarations.read_labels(report, labels or tags, "labels")


def _extra(report: Report, root: Mapping) -> dict[str, Any]:
    """Return the accepted keys that nothing acts on yet, as plain values."""
    if root.get("hist_retention_days") is not None and root.get("hist_retention_runs") is not None:
        report.problem(
            root.keys["hist_retention_runs"], "hist_retention_runs", "hist_retention_days and this exclude each other"
        )
    return {
        key: nodes.plain_value(node)
        for key, node in root.entries.items()
        if key in schema.ROOT and schema.ROOT[key].use is schema.Use.ACCEPTED and root.get(key) is not None
    }
