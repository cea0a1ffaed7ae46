"""Runs of this host that wait in a queue: a new run, another attempt of one that ended, one that goes on.

A queued attempt is on record like any other, with the status `queued`; what it continues lies beside it
(`Attempt.previous`). Its item in the queue comes last: an item always has its attempt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from secure_dagu.dag.model import Step
from secure_dagu.errors import Conflict, NotFound, Unavailable, WrongState
from secure_dagu.local.places import Places
from secure_dagu.local.queue import Item, Queues, check_queue
from secure_dagu.local.runs import Retry, Start, new_attempt_id
from secure_dagu.run.machine import HANDLER_NODES
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, StepStatus, attempt_key
from secure_dagu.run.snapshot import step_text, time_text
from secure_dagu.store.records import Attempt, Record


def check_enabled(*, enabled: bool) -> None:
    """Check that runs may be queued on this host (`queues.enabled`).

    Raises:
        Conflict: they may not.
    """
    if not enabled:
        raise Conflict("queues are turned off", why="queues.enabled is false", fix="start the run instead")


def enqueue(places: Places, start: Start, *, high: bool = False) -> Record:
    """Record a run as queued and put it into its queue; both are on disk when this returns.

    Raises:
        Conflict: the DAG has a run of that id.
        InvalidRequest: the queue's name is malformed; nothing is recorded.
    """
    check_queue(start.queue)
    now = datetime.now(UTC)
    record = places.records.create(start.run, now=now)
    try:
        _queue_first(places, record, start, now, high=high)
    except Unavailable:
        places.records.remove(record)  # it stands nowhere, and the id is free again
        raise
    return record


def enqueue_once(places: Places, start: Start, *, high: bool = False) -> Record:
    """Do the same for an id that stands for this very start: what an earlier call left half-done is completed.

    Raises:
        Conflict: the run begins just now.
    """
    now = datetime.now(UTC)
    record = places.records.made(start.run, now=now)
    kept = record.kept()
    if kept is None or (not kept.path.name.startswith(".") and not kept.status()):
        _queue_first(places, record, start, now, high=high)
    elif not kept.path.name.startswith("."):
        put_back(places, start.run, start.queue, older_than=now, high=high)
    return record


def _queue_first(places: Places, record: Record, start: Start, now: datetime, *, high: bool) -> None:
    attempt = record.begin_attempt(new_attempt_id(record), start.snapshot(), now=now)
    attempt.write(json.dumps(document(start, attempt.attempt_id, now), ensure_ascii=False))
    Queues(places.queues).put(start.queue, start.run, now=now, high=high)
    attempt.sync()  # last: one write of the disk's journal covers all of it


def put_back(places: Places, run: DagRunRef, queue: str, *, older_than: datetime, high: bool = False) -> bool:
    """Put a run into its queue that is on record as queued since before a time, and has no item there.

    Raises:
        Conflict: the run begins just now.
    """
    record = places.records.find(run)
    attempt = record.latest() if record is not None else None
    if attempt is None:
        return False
    with attempt.alive():  # nobody starts or dequeues it meanwhile
        document = attempt.status()
        if (
            document.get("status") != RunStatus.QUEUED
            or (document.get("createdAt") or 0) > older_than.timestamp() * 1e3
        ):
            return False
        queues = Queues(places.queues)
        if any(item.run == run for item in queues.items(queue)):
            return False
        queues.put(queue, run, now=datetime.now(UTC), high=high)
    return True


def enqueue_again(places: Places, record: Record, start: Start, retry: Retry, *, high: bool = False) -> Attempt:
    """Put another attempt of a run into its queue: it does again what did not succeed, or goes on where it waited."""
    now = datetime.now(UTC)
    attempt = record.add_attempt(
        new_attempt_id(record), now=now, hidden=True
    )  # or a kill would leave an empty latest one
    attempt.write_definition({**start.snapshot(), "retryStep": retry.step, "retryDownstream": retry.downstream})
    attempt.write_previous(retry.previous)
    before = json.loads(retry.previous)
    queued = {**before, **document(start, attempt.attempt_id, now), "nodes": before.get("nodes") or []}
    for ended in ("finishedAt", "error"):
        queued.pop(ended, None)
    attempt.write(json.dumps(queued, ensure_ascii=False), final=True)
    attempt = attempt.show()
    Queues(places.queues).put(start.queue, start.run, now=now, high=high)
    return attempt


def retry_of(attempt: Attempt, snapshot: Mapping[str, Any]) -> Retry | None:
    """Return what a queued attempt continues; None when it is a run's first."""
    previous = attempt.previous()
    if not previous:
        return None
    return Retry(
        previous=previous,
        step=str(snapshot.get("retryStep") or ""),
        downstream=bool(snapshot.get("retryDownstream")),
    )


def resume(places: Places, record: Record, start: Start, decided: dict[str, Any]) -> bool:
    """Keep what somebody decided about a waiting run; put it into its queue when nothing waits for a person any more.

    Returns:
        Whether the run was put into its queue.
    """
    attempt = record.attempts()[-1]
    text = json.dumps(decided, ensure_ascii=False)
    if decided["status"] != RunStatus.QUEUED:
        attempt.write(text, final=True)
        return False
    enqueue_again(places, record, start, Retry(previous=text))
    return True


def dequeue(places: Places, run: DagRunRef) -> Item | None:
    """Take a queued run out of its queue: its queued attempt is not listed any more.

    Raises:
        NotFound: there is no such run. WrongState: it is not queued. Conflict: it begins just now.
    """
    record = places.records.find(run)
    attempt = record.latest() if record else None
    if attempt is None:
        raise NotFound(f"dag-run ID {run.run_id} not found for DAG {run.name}")
    _check_queued(run, attempt)
    try:
        with attempt.alive():  # nobody starts it meanwhile
            _check_queued(run, attempt)
            queue = str(attempt.status().get("procGroup") or run.name)
            attempt.hide()
    except Unavailable as error:
        if attempt.path.exists():
            raise
        raise NotFound(f"dag-run ID {run.run_id} not found for DAG {run.name}") from error  # hidden meanwhile
    found = next((item for item in Queues(places.queues).items(queue) if item.run == run), None)
    if found is not None:
        found.take()
    return found


def _check_queued(run: DagRunRef, attempt: Attempt) -> None:
    status = RunStatus(attempt.status().get("status", RunStatus.FAILED))
    if status is not RunStatus.QUEUED:
        raise WrongState(f"dag-run {run.run_id} is not queued", why=f"it is {status.word}")


def document(start: Start, attempt_id: AttemptId, now: datetime) -> dict[str, Any]:
    """Return the status document of a run that waits in a queue."""
    run = {"name": start.run.name, "id": start.run.run_id}
    key = attempt_key(root=start.run, run=start.run, attempt_id=attempt_id)
    optional = {
        "triggerActor": start.actor,
        "scheduleTime": start.schedule_time,
        "profileName": start.profile,
        "labels": list(start.labels),
        "autoRetryLimit": start.loaded.main.retry.limit if start.loaded.main.retry else 0,
    }
    dag = start.loaded.main
    return {
        "root": run,
        "name": start.run.name,
        "dagRunId": start.run.run_id,
        "attemptId": attempt_id,
        "attemptKey": key,
        "status": int(RunStatus.QUEUED),
        "triggerType": int(start.trigger),
        "workerId": start.worker,
        "createdAt": int(now.timestamp() * 1000),
        "queuedAt": time_text(now),
        "procGroup": start.queue,
        "params": start.params,
        "pendingStepRetries": None,
        "nodes": [_new_node(step) for step in dag.steps],
        **{HANDLER_NODES[name]: _new_node(step) for name, step in dag.handlers.items()},
        **{key: value for key, value in optional.items() if value},
    }


def _new_node(step: Step) -> dict[str, Any]:
    return {"step": json.loads(step_text(step)), "status": int(StepStatus.NOT_STARTED)}


def again(start: Start, **changes: Any) -> Start:
    """Return what a run was started with, for the queue that it was in, else that of its DAG."""
    changed = replace(start, **changes)
    name = changed.run.name
    own = changed.queue if changed.queue != name else ""
    return replace(changed, queue=own or changed.loaded.main.queue or name)
