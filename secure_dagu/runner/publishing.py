"""What a successful execution leaves for others: captured text, files, and the forms in which they are published.

Workflow language, sections 3.5 (`stdout.outputs`) and 3.6 (`output`, string and mapping form).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_dagu.dag.model import Step
from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.errors import DefinitionError
from secure_dagu.run.snapshot import encode
from secure_dagu.runner import output
from secure_dagu.runner.files import path_below, read_bounded
from secure_dagu.runner.output import Capture


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
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
        if source == "stderr" and self.stderr is None:
            raise DefinitionError("stderr cannot be read", why="this step's logs are merged", fix="use stdout")
        capture = self.stderr if source == "stderr" else self.stdout
        assert capture is not None, "captured because the step has an output that reads it"
        return capture.text()


def publish(step: Step, scope: Scope, captured: Captured, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a successful step publishes, by status-document key."""
    published: dict[str, Any] = {}
    values: dict[str, Any] = dict(outputs)
    if isinstance(step.output, str):
        text = captured.text("stdout", "")
        published["outputVariables"] = output.output_variables(step.output, text)
        published["outputValue"] = text
    elif isinstance(step.output, Mapping):
        entries = {name: _entry(entry, scope, captured) for name, entry in step.output.items()}
        published["outputValue"] = encode(entries)
    if step.stdout.outputs is not None:
        values.update(_stdout_outputs(step.stdout.outputs, scope, captured))
    if values:
        published["outputsValue"] = encode(values)
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
    """Return one entry of an `output` mapping or of `stdout.outputs.fields` (workflow language, section 3.6 b)."""
    if not isinstance(entry, Mapping):
        return resolve(entry, scope, FieldMode.FIELD) if isinstance(entry, str) else entry
    if "value" in entry:
        value = entry["value"]
        return resolve(value, scope, FieldMode.FIELD) if isinstance(value, str) else value
    path = resolve(str(entry.get("path") or ""), scope, FieldMode.PATH)
    return _decoded(entry, captured.text(str(entry.get("from", "stdout")), path))


def _decoded(spec: Mapping[str, Any], text: str) -> Any:
    decode = spec.get("decode", "text")
    if decode == "text":
        return text
    if decode != "json":
        raise DefinitionError(f"`decode: {decode}` is not supported by this version", fix="use text or json")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DefinitionError("the output is not JSON", why=str(error)) from None
    for key in re.findall(r"[^.\[\]]+", spec.get("select", "") or ""):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def reads(step: Step, source: str) -> bool:
    """Tell whether a structured output of the step reads `source`."""
    spec = step.stdout.outputs
    fields = spec.get("fields") if isinstance(spec, Mapping) else None
    entries = [*(step.output.values() if isinstance(step.output, Mapping) else ()), *(fields or {}).values()]
    return any(isinstance(entry, Mapping) and entry.get("from") == source for entry in entries)


def needs_stdout(step: Step) -> bool:
    return step.output is not None or step.stdout.outputs is not None or bool(step.continue_on.outputs)


def read_output(path: Path, limit: int, *, what: str = "the output file") -> str:
    """Return a file that a step wrote, which may be anything (`files.read_bounded`)."""
    return read_bounded(path, limit, what=what, limited_by="max_output_size")
