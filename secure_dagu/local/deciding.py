"""What people decide about steps of runs on this host: approvals, human tasks, corrections."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from secure_dagu.dag.plan import make_plan
from secure_dagu.dispatch.operating import Document
from secure_dagu.dispatch.retrying import is_pending
from secure_dagu.errors import Conflict, NotFound
from secure_dagu.local.places import Places
from secure_dagu.local.queued import again, resume
from secure_dagu.local.runs import Start, start_of
from secure_dagu.run import forms, people
from secure_dagu.run.correcting import corrected
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.snapshot import time_text
from secure_dagu.store.records import Attempt, Record

Decide = Callable[[Document, Start, str], dict[str, Any]]
"""From the status document, what the run was started with, and the time, to the next document."""


def approval(step: str, inputs: Mapping[str, str], *, actor: str) -> Decide:
    """Approve a waiting step."""
    return lambda document, _start, at: people.approve(document, step, inputs, by=actor, at=at)


def rejection(step: str, reason: str, *, actor: str) -> Decide:
    """Reject a waiting step."""
    return lambda document, _start, at: people.reject(document, step, reason, by=actor, at=at)


def push_back(step: str, inputs: Mapping[str, str], *, actor: str) -> Decide:
    """Let a waiting step and what led to it run again."""
    return lambda document, start, at: people.push_back(
        document, make_plan(start.loaded.main), step, inputs, by=actor, at=at
    )


def completion(step: str, fields: Mapping[str, Any], *, actor: str) -> Decide:
    """Complete a human task.

    Raises:
        NotFound: the step is none. DefinitionError: the fields do not fit its form.
    """

    def decide(document: Document, start: Start, at: str) -> dict[str, Any]:
        dag = start.loaded.main
        found = next((one for one in dag.steps if step in (one.id, one.name)), None)
        if found is None or found.kind != "human.task":
            raise NotFound(f"the step {step!r} is no human task of this run")
        values = forms.checked(found.inputs.get("form"), dict(fields), limit_bytes=dag.max_output_bytes)
        return people.complete(document, step, values, by=actor, at=at)

    return decide


def decide(places: Places, record: Record, how: Decide) -> tuple[dict[str, Any], bool]:
    """Apply a decision to a run; return its document, and whether it is queued to go on.

    Raises:
        Conflict: the run goes on just now, or is not waiting for this.
    """
    attempt = latest(record)
    with attempt.alive():  # two people decide one after the other
        if latest(record).path != attempt.path:
            raise Conflict(f"dag-run {record.run.run_id} has gone on meanwhile", fix="read it again")
        start = start_of(record.run, attempt.definition())
        before = attempt.status()
        changed = how(before, start, time_text(datetime.now(UTC)))
        goes_on = changed != before and resume(places, record, again(start), changed)
    return changed, goes_on


def correct(attempt: Attempt, step: str, status: StepStatus) -> None:
    """Set the status of a step of a finished run."""
    corrected(attempt.status(), step, status)  # what still runs is held: say that it does, not by whom
    with attempt.alive():
        changed = corrected(attempt.status(), step, status)
        attempt.write(json.dumps(changed, ensure_ascii=False), final=True)


def latest(record: Record) -> Attempt:
    """Return the newest attempt.

    Raises:
        NotFound: there is none.
    """
    attempt = record.latest()
    if attempt is None:
        raise NotFound(f"dag-run ID {record.run.run_id} not found for DAG {record.run.name}")
    return attempt


def applied(
    kept: Callable[[Record, str], Start], record: Record, document: Document, how: Decide, actor: str
) -> dict[str, Any]:
    """Apply a decision to a run that a coordinator has; return its next document."""
    return how(document, kept(record, actor), time_text(datetime.now(UTC)))


def stop(attempt: Attempt) -> bool:
    """Ask for the end of an attempt; of a failed one that waits for its automatic retry: there is none any more."""
    document = attempt.status()
    if attempt.is_alive() or document.get("status") == RunStatus.WAITING:
        attempt.request_cancel()
        return True
    if is_pending(document):
        attempt.write(json.dumps({**document, "status": int(RunStatus.ABORTED)}, ensure_ascii=False), final=True)
        return True
    return False
