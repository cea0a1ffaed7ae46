"""The run outputs of a finished run, as `outputs.json` keeps them (workflow language, sections 3.6 and 6.3). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from secure_dagu.run.model import RunStatus, StepStatus

_GOOD = (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED)
_CALLS = ("dag", "dag.enqueue", "foreach")
"""Steps whose published values are somebody else's outputs."""


def outputs_document(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of `outputs.json` from the final status document; None when the run published nothing.

    Secrets are masked in the document already.
    """
    outputs: dict[str, Any] = {}
    for node in document.get("nodes") or ():
        if node.get("status") not in _GOOD:
            continue
        for name, text in (node.get("outputVariables") or {}).items():
            outputs[lower_camel(name)] = str(text).partition("=")[2]
        if node.get("outputsValue") and not is_call(node["step"]):
            outputs.update(json.loads(node["outputsValue"]))
    if not outputs:
        return None
    metadata = {
        "dagName": document.get("name", ""),
        "dagRunId": document.get("dagRunId", ""),
        "attemptId": document.get("attemptId", ""),
        "status": RunStatus(document.get("status", 0)).word,
        "completedAt": document.get("finishedAt", ""),
        "params": document.get("params", ""),
    }
    return {"metadata": metadata, "outputs": outputs}


def is_call(step: Any) -> bool:
    """Tell whether a step of a status document runs others, whose values are theirs and not the run's."""
    kind = step.get("executorConfig") if isinstance(step, Mapping) else None
    return isinstance(kind, Mapping) and kind.get("type") in _CALLS


def lower_camel(name: str) -> str:
    """Return a variable's name the way outputs are named: `MY_RESULT` becomes `myResult`, `myResult` stays."""
    words = [word for word in re.split(r"[_\-\s]+", name) if word]
    words = [word.lower() if word.isupper() else word for word in words]
    head, *rest = words or [name]
    return head[:1].lower() + head[1:] + "".join(word[:1].upper() + word[1:] for word in rest)
