"""What people decide about waiting steps, applied to the run's status document (workflow language, 3.25). Pure.

Each function takes the parsed document of the newest attempt and returns a new one, with `status` 5 (queued) when
nothing waits for a person any more: whoever keeps the run stores it and lets the run go on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from secure_dagu.dag import formats
from secure_dagu.dag.plan import Plan
from secure_dagu.errors import Conflict, DefinitionError, NotFound
from secure_dagu.run.model import RunStatus, StepStatus

Document = dict[str, Any]


def approve(document: Mapping[str, Any], step: str, inputs: Mapping[str, str], *, by: str, at: str) -> Document:
    """Approve a waiting step; its inputs become variables of later steps.

    Raises:
        NotFound: no such step. Conflict: it does not wait for an approval. DefinitionError: an input is missing or
            unknown.
    """
    changed, node = _waiting(document, step, "approval")
    _check_inputs(node["step"]["approval"], inputs)
    node |= {"status": int(StepStatus.SUCCEEDED), "approvedAt": at, "approvedBy": by, "finishedAt": at}
    if inputs:
        node["approvalInputs"] = dict(inputs)
    return _settled(changed)


def reject(document: Mapping[str, Any], step: str, reason: str, *, by: str, at: str) -> Document:
    """Reject a waiting step: it ends the run as rejected, and nothing behind it runs."""
    changed, node = _waiting(document, step, "approval")
    node |= {"status": int(StepStatus.REJECTED), "rejectedAt": at, "rejectedBy": by, "finishedAt": at}
    if reason:
        node["rejectionReason"] = reason
    return _settled(changed)


def push_back(
    document: Mapping[str, Any], plan: Plan, step: str, inputs: Mapping[str, str], *, by: str, at: str
) -> Document:
    """Let the run go back: `rewind_to` of the step's approval, or the step itself, and all that follows run again."""
    changed, node = _waiting(document, step, "approval")
    _check_inputs({"input": node["step"]["approval"].get("input")}, inputs)
    iteration = int(node.get("approvalIteration") or 0) + 1
    entry = {"iteration": iteration, "by": by, "at": at, "inputs": dict(inputs)}
    history = [*(node.get("pushBackHistory") or []), entry]
    target = node["step"]["approval"].get("rewindTo") or node["step"]["name"]
    first = plan.index.get(target)
    if first is None:
        raise NotFound(f"there is no step {target!r} to go back to")
    again = {plan.steps[position].name for position in (first, *plan.descendants(first))}
    for other in changed["nodes"]:
        if other["step"]["name"] in again:
            before = other.get("stdout", "")
            other_step = other["step"]
            other.clear()
            other |= {
                "step": other_step, "stdout": "", "stderr": "", "startedAt": "", "finishedAt": "",
                "status": int(StepStatus.NOT_STARTED), "approvalIteration": iteration, "pushBackHistory": history,
            }  # fmt: skip
            if inputs:
                other["pushBackInputs"] = dict(inputs)
            if before:
                other["pushBackPreviousStdout"] = before
    return _settled(changed)


def complete(document: Mapping[str, Any], step: str, values: Mapping[str, Any], *, by: str, at: str) -> Document:
    """Complete a human task with values that `run.forms` has checked; they become the step's declared outputs.

    Raises:
        NotFound: no such human task. Conflict: it does not wait, or was completed with a different input.
    """
    node = _node(document, step)
    if node is None or "humanTask" not in node["step"]:
        raise NotFound(f"the step {step!r} is no human task of this run")
    if node.get("status") == StepStatus.SUCCEEDED:
        if node.get("humanTaskInput", {}) == values:
            return copy.deepcopy(dict(document))
        raise Conflict(f"the step {step!r} was completed with different input")
    changed, node = _waiting(document, step, "humanTask")
    outputs = {name: formats.as_text(value) for name, value in values.items()}
    node |= {"status": int(StepStatus.SUCCEEDED), "humanTaskInput": dict(values), "finishedAt": at}
    node |= {"humanTaskCompletedBy": by} if by else {}
    if outputs:
        node["stepOutputsValue"] = formats.compact_json(outputs)
    return _settled(changed)


def pushback_variables(published: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a step that runs again after a push-back; none otherwise."""
    iteration = published.get("approvalIteration")
    history = published.get("pushBackHistory") or []
    if not iteration:
        return {}
    last = history[-1] if history and isinstance(history[-1], Mapping) else {}
    inputs = published.get("pushBackInputs") or {}
    told = {"iteration": iteration, "by": last.get("by", ""), "at": last.get("at", ""), "inputs": inputs}
    values = {
        **inputs,
        "DAG_PUSHBACK": formats.compact_json({**told, "history": history}),
        "DAG_PUSHBACK_ITERATION": str(iteration),
    }
    if published.get("pushBackPreviousStdout"):
        values["DAG_PUSHBACK_PREVIOUS_STDOUT_FILE"] = published["pushBackPreviousStdout"]
    return values


def pushback_context(published: Mapping[str, Any]) -> dict[str, str]:
    """Return `context.pushback.…` of a step that runs again after a push-back."""
    values = pushback_variables(published)
    names = {
        "pushback.iteration": "DAG_PUSHBACK_ITERATION",
        "pushback.previous_stdout_file": "DAG_PUSHBACK_PREVIOUS_STDOUT_FILE",
    }
    return {path: values[name] for path, name in names.items() if name in values}


def waiting_steps(document: Mapping[str, Any]) -> list[str]:
    """Return the names of the steps that wait for a person."""
    return [node["step"]["name"] for node in document.get("nodes") or () if node["status"] == StepStatus.WAITING]


def _node(document: Mapping[str, Any], step: str) -> Document | None:
    for node in document.get("nodes") or ():
        if step in (node["step"].get("id"), node["step"]["name"]):
            return dict(node)
    return None


def _waiting(document: Mapping[str, Any], step: str, what: str) -> tuple[Document, Document]:
    """Return a copy of the document and, in it, the node that waits."""
    changed = copy.deepcopy(dict(document))
    for node in changed.get("nodes") or ():
        if step in (node["step"].get("id"), node["step"]["name"]):
            break
    else:
        raise NotFound(f"there is no step {step!r} in this run")
    if changed.get("status") != RunStatus.WAITING:
        raise Conflict(f"the run {changed.get('dagRunId')} is not waiting")
    if node["status"] != StepStatus.WAITING or what not in node["step"]:
        raise Conflict(f"the step {step!r} is not waiting")
    return changed, node


def _check_inputs(approval: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    for name in approval.get("required") or ():
        if not inputs.get(name):
            raise DefinitionError(f"the input {name!r} is required")
    for name in inputs:
        if name not in (approval.get("input") or ()):
            raise DefinitionError(f"the approval has no input {name!r}")


def _settled(document: Document) -> Document:
    if not waiting_steps(document):
        document["status"] = int(RunStatus.QUEUED)
        document.pop("finishedAt", None)
    return document
