"""What a successful execution leaves for others: captured text, files, and the forms in which they are published.

Workflow language, sections 3.5 (`stdout.outputs`) and 3.6 (`output`, string and mapping form).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.dag import nodes, schema_check
from secure_dagu.dag.model import Step
from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.errors import DefinitionError
from secure_dagu.run.snapshot import encode_published
from secure_dagu.runner import output
from secure_dagu.runner.files import path_below, read_bounded
from secure_dagu.runner.output import Capture

_ENTRY_KEYS = frozenset({"value", "from", "path", "decode", "select"})
_KEY = r'"(?:[^"\\]|\\.)*"'
_JQ_PATH = re.compile(rf"\.?(?:\.?[A-Za-z_]\w*|\.?{_KEY}|\.?\[(?:-?\d+|{_KEY}|-?\d*:-?\d*)?\]|\?)*")


class Captured(Struct, frozen=True, kw_only=True):
    """What one execution left to read: its streams as far as they are kept, and the files of its directory."""

    stdout: Capture | None
    stderr: Capture | None
    cwd: Path
    limit_bytes: int

    def text(self, source: str, path: str) -> str:
        """Return the text of `stdout`, `stderr` or the file `path`.

        Raises:
            DefinitionError: the file is missing or no plain file.
            LimitExceeded: there is more than `max_output_size`.
        """
        if source == "file":
            return read_output(path_below(self.cwd, path), self.limit_bytes, what=f"the output file {path!r}")
        capture = self.stderr if source == "stderr" else self.stdout
        assert capture is not None, "captured because the step has an output that reads it"
        return capture.text()


def publish(step: Step, scope: Scope, captured: Captured, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a successful step publishes, by status-document key.

    Raises:
        DefinitionError: stdout is not what `output_schema` or an entry says.
        LimitExceeded: there is more than `max_output_size`.
    """
    published: dict[str, Any] = {}
    if step.output_schema is not None:
        _check_schema(step.output_schema, captured.text("stdout", ""))
    values: dict[str, Any] = dict(outputs)
    if isinstance(step.output, str):
        text = captured.text("stdout", "")
        published["outputVariables"] = output.output_variables(step.output, text)
        published["outputValue"] = text
    elif isinstance(step.output, Mapping) and step.output:
        entries = {name: _entry(entry, scope, captured) for name, entry in step.output.items()}
        published["outputValue"] = encode_published(entries)
    if step.stdout.outputs is not None:
        values.update(_stdout_outputs(step.stdout.outputs, scope, captured))
    if values:
        published["outputsValue"] = encode_published(values)
    return published


def _stdout_outputs(spec: Any, scope: Scope, captured: Captured) -> dict[str, Any]:
    if isinstance(spec, str):
        return {spec: captured.text("stdout", "")}
    if "fields" in spec:
        return {name: _entry(entry, scope, captured) for name, entry in spec["fields"].items()}
    value = _decoded(spec, captured.text("stdout", ""))
    if "field" in spec:
        return {spec["field"]: value}
    if not isinstance(value, dict):
        raise DefinitionError("stdout.outputs without `field` needs an object", why="stdout decodes to something else")
    return value


def _entry(entry: Any, scope: Scope, captured: Captured) -> Any:
    """Return one entry of an `output` mapping or of `stdout.outputs.fields` (workflow language, section 3.6 b).

    A map that has none of an entry's own keys is a literal like any other.
    """
    if not isinstance(entry, Mapping) or not _ENTRY_KEYS.issuperset(entry) or not entry:
        return resolve_tree(entry, scope, FieldMode.FIELD)
    if "value" in entry:
        return resolve_tree(entry["value"], scope, FieldMode.FIELD)
    path = resolve(str(entry.get("path") or ""), scope, FieldMode.PATH)
    return _decoded(entry, captured.text(str(entry.get("from", "stdout")), path))


def _decoded(spec: Mapping[str, Any], text: str) -> Any:
    decode = spec.get("decode", "text")
    path = spec.get("select")
    if decode == "text":
        if path:
            raise DefinitionError("select needs data", why="the output is decoded as text", fix="add `decode: json`")
        return text
    value = nodes.data(text, name="the output") if decode == "yaml" else _from_json(text)
    return _selected(value, str(path)) if path else value


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DefinitionError("the output is not JSON", why=str(error)) from None


def _selected(value: Any, path: str) -> Any:
    """Return what a jq path picks: None when there is nothing, a list when it picks more than one value.

    Only paths: a jq program may run for ever, and this one runs where all runs of a worker do.
    """
    if not _JQ_PATH.fullmatch(path.strip()):
        raise DefinitionError(
            f"select {path!r} is no jq path", why="expected something like .a.b[0]", fix="compute with `jq.filter`"
        )
    import jq  # only steps that select need it

    try:
        found = jq.compile(path).input_value(value).all()
    except ValueError as error:
        raise DefinitionError("select cannot be applied to the output", why=str(error).partition("\n")[0]) from None
    return found[0] if len(found) == 1 else found or None


def _check_schema(schema: Mapping[str, Any], text: str) -> None:
    if found := schema_check.problem(schema, _from_json(text)):
        raise DefinitionError("the output does not fit output_schema", why=found)


def reads(step: Step, source: str) -> bool:
    """Tell whether a structured output of the step reads `source`."""
    spec = step.stdout.outputs
    fields = spec.get("fields") if isinstance(spec, Mapping) else None
    entries = [*(step.output.values() if isinstance(step.output, Mapping) else ()), *(fields or {}).values()]
    return any(isinstance(entry, Mapping) and entry.get("from") == source for entry in entries)


def needs_stdout(step: Step) -> bool:
    """Tell whether the step's stdout is read when it has ended."""
    return (
        step.output is not None
        or step.stdout.outputs is not None
        or step.output_schema is not None
        or bool(step.continue_on.outputs)
    )


def read_output(path: Path, limit: int, *, what: str = "the output file") -> str:
    """Return a file that a step wrote, which may be anything (`files.read_bounded`)."""
    return read_bounded(path, limit, what=what, limited_by="max_output_size")
