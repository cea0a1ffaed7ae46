"""End runs that no worker ends: cancelled before they started, lost with their worker, never claimed.

The end is written like a report: document, lists and the task's removal in one durable step, and only then let go.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from secure_dagu.coordinator import documents
from secure_dagu.coordinator.ledger import Entry, Ledger
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.machine import TaskState
from secure_dagu.errors import Conflict, SecureDaguError
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.store.api import AttemptRow, Report, Store
from secure_dagu.telemetry import metrics

log = structlog.get_logger()


class Endings:
    """Write ends and tell those who listen."""

    def __init__(
        self, *, store: Store, ledger: Ledger, clock: Clock, changed: Callable[[DagRunRef, DagRunRef], None]
    ) -> None:
        """Take the store. `changed(root, run)` is told of every new document."""
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._changed = changed
        self._listeners: list[Callable[[Entry], None]] = []

    def when_ended(self, listener: Callable[[Entry], None]) -> None:
        """Call `listener` with every task that has ended."""
        self._listeners.append(listener)

    def let_go(self, entry: Entry, state: TaskState) -> None:
        """Forget a task whose end is on disk."""
        assert state.status is not None, "an end has a status"
        for listener in self._listeners:
            listener(entry)
        self._ledger.move(entry, state)
        self._ledger.remove(entry)
        if state.status.is_terminal:
            metrics.TASKS_COMPLETED.labels(state.status.word).inc()
            metrics.run_ended(entry.run.name, state.status.word)

    async def end(self, entry: Entry, state: TaskState, *, error: str) -> None:
        """End a task and everything that runs inside it, and let go. The caller holds `entry.writing`."""
        assert state.status is not None, "an end has a status"
        for row in await self._store.attempts_under(entry.key):
            if row.key != entry.key and not RunStatus(row.status).is_terminal:
                await self.end_stored(row, state.status, error=error)
        row_of_task = await self._store.attempt(entry.key)
        if row_of_task is not None:
            await self.end_stored(row_of_task, state.status, error=error)
        self.let_go(entry, state)
        log.info("run.ended", run=str(entry.run), status=state.status.word, why=error)

    async def end_stored(self, row: AttemptRow, status: RunStatus, *, error: str) -> None:
        """Write the end of an attempt over its latest document.

        Raises:
            Conflict: somebody else has just written it.
        """
        now = self._clock.now()
        text = await self._store.document(row.key)
        try:
            document = documents.parse(text)
        except SecureDaguError:  # nothing readable is stored: the end is worth more than what it would end
            document = {"name": row.run.name, "dagRunId": row.run.run_id, "attemptId": row.attempt_id}
        documents.ended(document, status, error=error, now=now)
        try:
            await self._store.report(
                Report(
                    key=row.key, revision=row.revision, document=documents.text_of(document), claim_key=row.claim_key,
                    status=int(status), worker=row.worker, archive=row.archive, error=error[: documents.MAX_ERROR],
                    started_at=row.started_at, finished_at=int(now.timestamp() * 1000), ends_task=True,
                    summary=documents.summary_of(document),
                )
            )  # fmt: skip
        except Conflict:
            log.warning("run.end_overtaken", run=str(row.run))
            raise
        self._changed(row.root, row.run)
