"""Report the status documents of one run: the newest wins, one report is on its way, the final one arrives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from secure_dagu.dispatch.api import RunReports
from secure_dagu.dispatch.model import Caller, Task, Verdict
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.worker.timings import Timings, half_jitter

log = structlog.get_logger()


class StatusReporter:
    """Send status documents in order. A document that a newer one overtakes is never sent."""

    def __init__(
        self,
        *,
        reports: RunReports,
        caller: Caller,
        task: Task,
        timings: Timings,
        is_hopeless: Callable[[], bool],
        refused: Callable[[str], None],
    ) -> None:
        """Take the way to the coordinator.

        Args:
            is_hopeless: tells when trying again has lost its sense.
            refused: told the reason when the coordinator no longer accepts this attempt.
        """
        self.newest = ""
        """The newest document of all, sent or not."""
        self.has_announced_archive = False
        """True once the coordinator has accepted a document that names an artifact folder."""
        self._reports = reports
        self._caller = caller
        self._task = task
        self._timings = timings
        self._is_hopeless = is_hopeless
        self._refused = refused
        self._unsent = ""
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()

    def changed(self, document: str) -> None:
        """Take an active document."""
        self.newest = self._unsent = document
        self._wake.set()

    def close(self) -> None:
        """Let `report_forever` return after the report that is on its way; what is unsent is overtaken."""
        self._closed.set()
        self._wake.set()

    async def report_forever(self) -> None:
        """Report active documents until `close`, at a pace that their size allows.

        The first one waits a moment: of a run that is over by then, only the final document is worth a call.
        """
        loop = asyncio.get_running_loop()
        next_at = loop.time() + self._timings.report_first_s
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            if (pause := next_at - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._closed.wait()
            if self._closed.is_set():
                return
            document, self._unsent = self._unsent, ""
            if not document:
                continue
            timings = self._timings
            next_at = loop.time() + max(timings.report_every_s, len(document) / timings.report_bytes_per_s)
            try:
                verdict = await self._send(document)
                failures = 0
            except Unavailable:
                # Nobody else tells the present state of a long step, so the newest document stays due.
                failures += 1
                next_at = loop.time() + half_jitter(failures, first_s=timings.first_retry_s, cap_s=timings.outage_cap_s)
                self._unsent = self._unsent or document
                self._wake.set()
            except SecureDaguError as error:
                log.warning("status.not_reported", run=str(self._task.run), **error.as_dict())
            else:
                if not verdict.accepted:
                    self._refused(verdict.error)
                    return

    async def deliver(self, document: str) -> bool:
        """Report a document that has to arrive; False when it was refused or could not be delivered.

        Only `Unavailable` is retried: until the run is hopeless, but no longer than an orphan may live.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timings.orphan_timeout_s
        failures = 0
        while True:
            try:
                verdict = await self._send(document)
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    log.warning("status.delayed", run=str(self._task.run), **error.as_dict())
                if self._is_hopeless() or loop.time() > until:
                    log.error("status.undelivered", run=str(self._task.run), **error.as_dict())  # noqa: TRY400  no bug, no trace
                    return False
                await asyncio.sleep(
                    half_jitter(failures, first_s=self._timings.retry_first_s, cap_s=self._timings.retry_cap_s)
                )
            except SecureDaguError as error:
                log.error("status.undelivered", run=str(self._task.run), **error.as_dict())  # noqa: TRY400  no bug, no trace
                return False
            else:
                if not verdict.accepted:
                    log.warning("status.refused", run=str(self._task.run), why=verdict.error)
                return verdict.accepted

    async def _send(self, document: str) -> Verdict:
        task = self._task
        verdict = await self._reports.report_status(
            self._caller, status=document, source_file=task.source_file, labels=task.labels
        )
        if verdict.accepted and not self.has_announced_archive:
            self.has_announced_archive = '"archiveDir":"' in document or '"archiveDir": "' in document
        return verdict
