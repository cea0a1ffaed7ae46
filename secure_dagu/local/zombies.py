"""Runs of this host that nobody looks after any more: their process was killed, or their place in a queue was lost.

Cheap: what runs is known by its marks (`local.running`), and only queued runs are looked up in their queues.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from secure_dagu.dispatch.operating import Document
from secure_dagu.errors import Conflict, SecureDaguError, Unavailable
from secure_dagu.local import bell, history
from secure_dagu.local.places import Places
from secure_dagu.local.queue import Queues
from secure_dagu.local.queued import put_back
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.store.records import Attempt, Record

QUEUED_FOR: Final = timedelta(seconds=60)
"""How long a run may be on record as queued before its place in the queue must be there."""


def sweep(places: Places) -> list[DagRunRef]:
    """Turn runs whose process is gone into failed ones; return them. Their places in the queues are free again."""
    found: list[DagRunRef] = []
    for mark in list(places.running.everywhere()):
        if mark.is_alive() or mark.attempt.lives_elsewhere():
            continue
        record = places.records.find(mark.run)
        attempt = record.latest() if record is not None else None
        is_latest = attempt is not None and attempt.attempt_id == mark.mark.name.rsplit("~", 1)[-1]
        if record is not None and attempt is not None and is_latest and _ended(record, attempt):
            found.append(mark.run)
        mark.remove()
    if found:
        bell.ring(places.queues)
    return found


def _ended(record: Record, attempt: Attempt) -> bool:
    """Turn an attempt into a failed one; False when it had ended, or somebody holds it after all."""
    if attempt.status().get("status") == RunStatus.RUNNING:
        return bool(history.current(record, attempt).get("status") == RunStatus.FAILED)
    with contextlib.suppress(Conflict, Unavailable), attempt.alive():
        document = attempt.status()
        if document.get("status") == RunStatus.NOT_STARTED:
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            ended = {**document, "status": int(RunStatus.FAILED), "finishedAt": at, "error": history.GONE}
            attempt.write(json.dumps(ended, ensure_ascii=False), final=True)
            return True
    return False


def requeue(places: Places, queued: Sequence[Document], now: datetime) -> list[DagRunRef]:
    """Give queued runs without an item in their queue one again: who queued them was killed before. Return them."""
    queues = Queues(places.queues)
    items: dict[str, set[DagRunRef]] = {}
    put: list[DagRunRef] = []
    for document in queued:
        run = DagRunRef(str(document.get("name")), str(document.get("dagRunId")))
        queue = str(document.get("procGroup") or run.name)
        with contextlib.suppress(SecureDaguError, OSError):
            if queue not in items:
                items[queue] = {item.run for item in queues.items(queue)}
            if run not in items[queue] and put_back(places, run, queue, older_than=now - QUEUED_FOR):
                put.append(run)
    return put
