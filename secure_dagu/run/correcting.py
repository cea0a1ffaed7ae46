"""Correct the status of a step of a run that is over; that of the run follows from its steps. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from secure_dagu.errors import InvalidRequest, NotFound, WrongState
from secure_dagu.run.model import RunStatus, StepStatus


def corrected(document: Mapping[str, Any], step: str, status: StepStatus) -> dict[str, Any]:
    """Return the document of a finished run with a step's status set.

    Raises:
        WrongState: the run is not over. NotFound: no such step. InvalidRequest: a step cannot end like that.
    """
    if not RunStatus(document.get("status", RunStatus.RUNNING)).is_terminal:
        raise WrongState(f"dag-run {document.get('dagRunId')} is still active", fix="wait for its end, or stop it")
    if not status.is_terminal:
        raise InvalidRequest(f"a step of a finished run cannot be {status.word}")
    changed = copy.deepcopy(dict(document))
    for node in changed.get("nodes") or ():
        if step in (node["step"].get("id"), node["step"]["name"]):
            node["status"] = int(status)
            if status not in (StepStatus.FAILED, StepStatus.ABORTED):
                node.pop("error", None)
            break
    else:
        raise NotFound(f"there is no step {step!r} in this run")
    changed["status"] = int(_overall([StepStatus(node["status"]) for node in changed["nodes"]]))
    if RunStatus(changed["status"]).is_success:
        changed.pop("error", None)
    return changed


def _overall(statuses: list[StepStatus]) -> RunStatus:
    if StepStatus.REJECTED in statuses:
        return RunStatus.REJECTED
    if StepStatus.FAILED in statuses:
        return RunStatus.FAILED
    if StepStatus.ABORTED in statuses or StepStatus.NOT_STARTED in statuses:
        return RunStatus.ABORTED
    return RunStatus.PARTIALLY_SUCCEEDED if StepStatus.PARTIALLY_SUCCEEDED in statuses else RunStatus.SUCCEEDED
