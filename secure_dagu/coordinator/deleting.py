"""Delete finished runs with all that they left: rows, logs, artifacts. Bundles and shared state belong to no run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from secure_dagu.audit.events import Action, Outcome, Trail, by, recorded, run_target
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.ledger import Ledger
from secure_dagu.coordinator.tenants import Tenants
from secure_dagu.dispatch.model import Caller
from secure_dagu.errors import NotFound, SecureDaguError, WrongState
from secure_dagu.run.model import AttemptKey, DagRunRef, RunStatus
from secure_dagu.store.api import AttemptRow, Store
from secure_dagu.store.blobs import Blobs, LogPlace

log = structlog.get_logger()


class Deleting:
    """Implement `dispatch.api.RunReports.delete_run`."""

    def __init__(
        self, *, store: Store, blobs: Blobs, ledger: Ledger, finisher: Finisher, trail: Trail, tenants: Tenants
    ) -> None:
        """Take what holds the runs."""
        self._store = store
        self._blobs = blobs
        self._ledger = ledger
        self._finisher = finisher
        self._trail = trail
        self._tenants = tenants

    async def delete_run(self, caller: Caller, *, run: DagRunRef) -> None:
        """Delete a finished root run (`RunReports.delete_run`)."""
        await self._tenants.check_run(caller, run, "DeleteRun")
        await self._finisher.finish(self._delete(caller, run))

    async def _delete(self, caller: Caller, run: DagRunRef) -> None:
        event = by(caller, Action.RUN_DELETED, run_target(run))
        try:
            latest = await self._finished(run)
        except SecureDaguError as error:
            self._trail.note(replace(event, outcome=Outcome.FAILED, reason=error.code))
            raise
        async with recorded(self._trail, event):
            attempts = await self._store.attempts_of(run)
            # Files first: when this is cut short, the run is still listed and can be deleted again. Each attempt has
            # folders of its own, so one that begins meanwhile loses nothing, and its row keeps the run.
            await asyncio.to_thread(self._remove_files, attempts)
            await self._store.remove(run, latest=latest)
        log.info("run.deleted", run=str(run), attempts=len(attempts))

    async def _finished(self, run: DagRunRef) -> AttemptKey:
        """Return the latest attempt of a root run of which nothing is going on."""
        row = await self._store.latest(run=run, root=run)
        if row is None:
            raise NotFound(f"run {run} is unknown", fix="list the runs")
        status = RunStatus(row.status)
        if not status.is_terminal or self._ledger.of_tree(run):
            raise WrongState(
                f"dag-run {run.run_id} is running; stop or dequeue it before deleting",
                why="a run that it called has not ended" if status.is_terminal else f"it is {status.word}",
            )
        return row.key

    def _remove_files(self, attempts: Sequence[AttemptRow]) -> None:
        for row in attempts:
            self._blobs.remove_logs(LogPlace(row.root, row.attempt_id))
            if row.archive:
                self._blobs.remove_artifacts(row.archive)
