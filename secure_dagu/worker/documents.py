"""Status documents that the worker itself writes: a run that never started, an upload that failed. Pure."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from secure_dagu.dispatch.model import Task
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus


def failed(
    task: Task, *, attempt_id: AttemptId, attempt_key: AttemptKey, worker: str, error: str, now: datetime
) -> str:
    """Return the document of a run that failed before its first step (protocol, section 3.7)."""
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    document: dict[str, Any] = {
        "root": _ref(task.root),
        **({"parent": _ref(task.parent)} if task.parent else {}),
        "name": task.run.name,
        "dagRunId": task.run.run_id,
        "attemptId": attempt_id,
        "attemptKey": attempt_key,
        **({"claimKey": task.attempt_key} if task.attempt_key else {}),
        "status": int(RunStatus.FAILED),
        "triggerActor": task.trigger_actor,
        "workerId": worker,
        "startedAt": at,
        "finishedAt": at,
        "definitionId": task.definition_id,
        "error": error,
        "params": task.params,
        "pendingStepRetries": None,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def with_failure(document: str, error: str) -> str:
    """Return the final document with `error` added; a success becomes a failure, anything else keeps its status."""
    values = json.loads(document)
    if values.get("status") in (RunStatus.SUCCEEDED, RunStatus.PARTIALLY_SUCCEEDED):
        values["status"] = int(RunStatus.FAILED)
    values["error"] = f"{values['error']}; {error}" if values.get("error") else error
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def as_failed(document: str, error: str, *, now: datetime) -> str:
    """Return an active document as a final, failed one: the run engine broke down."""
    values = json.loads(document)
    values.update(status=int(RunStatus.FAILED), error=error, finishedAt=now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def as_running(document: str) -> str:
    """Return a final document as the active one that precedes it: it announces the artifact folder."""
    values = json.loads(document)
    values["status"] = int(RunStatus.RUNNING)
    values.pop("finishedAt", None)
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def archive_dir(document: str) -> str:
    """Return the artifact folder that a document announces, empty when it has none."""
    return str(json.loads(document).get("archiveDir") or "")


def status_of(document: str) -> RunStatus | None:
    """Return the run status of a document that came over the wire; None when it is not one."""
    try:
        return RunStatus(json.loads(document)["status"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _ref(run: DagRunRef) -> dict[str, str]:
    return {"name": run.name, "id": run.run_id}
