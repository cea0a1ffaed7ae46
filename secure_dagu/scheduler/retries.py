"""Retry failed runs whose DAG asks for that (`retry_policy`), high in their queue, after its pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from secure_dagu.dispatch.operating import Document, Launching, RunFilter, Runs
from secure_dagu.errors import SecureDaguError
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.telemetry import schedule_series

log = structlog.get_logger()

LOOK_EVERY_S: Final = 5.0
MANY_LOOK_EVERY_S: Final = 30.0
"""How often where one page does not hold all failed runs."""
PAGE: Final = 500
SOONEST_S: Final = 1.0
_FAILED: Final = frozenset({RunStatus.FAILED})


class Retries:
    """The scan for failed runs. Only the active scheduler runs it."""

    def __init__(
        self, runs: Runs, launching: Launching, *, window: timedelta, check: Callable[[], None] = lambda: None
    ) -> None:
        """Take what ran, what retries, how old a failed run may be, and what raises if we may not act."""
        self._runs, self._launching, self._window, self._check = runs, launching, window, check
        self._settled: set[tuple[str, str, str]] = set()
        self._seen = 0

    async def run_forever(self) -> None:
        """Scan until cancelled, often, and earlier where a retry is due earlier."""
        while True:
            try:
                next_at = await self.scan(datetime.now(UTC))
            except (OSError, SecureDaguError) as error:
                log.warning("retries.scan_failed", why=str(error))
                next_at = None
            every_s = LOOK_EVERY_S if self._seen < PAGE else MANY_LOOK_EVERY_S
            wait_s = (next_at - datetime.now(UTC)).total_seconds() if next_at is not None else every_s
            await asyncio.sleep(min(max(wait_s, SOONEST_S), every_s))

    async def scan(self, now: datetime) -> datetime | None:
        """Retry what is due; return when the next retry is due that is known now."""
        seen: set[tuple[str, str, str]] = set()
        coming: list[datetime] = []
        cursor = ""
        while True:
            page = await self._runs.find(
                RunFilter(statuses=_FAILED, since=now - self._window), limit=PAGE, cursor=cursor
            )
            for found in page.runs:
                key = _key(found.document)
                seen.add(key)
                if key not in self._settled and (at := await self._retry(key)) is not None and at > now:
                    coming.append(at)
            cursor = page.next_cursor
            if not cursor:
                break
        self._settled &= seen
        self._seen = len(seen)
        return min(coming, default=None)

    async def _retry(self, key: tuple[str, str, str]) -> datetime | None:
        self._check()
        run = DagRunRef(key[0], key[1])
        try:
            at = await self._launching.retry_automatically(run)
        except SecureDaguError as error:
            log.warning("run.not_retried", dag=run.name, run=run.run_id, why=str(error))
            return None
        if at is None:
            self._settled.add(key)
        elif at <= datetime.now(UTC):
            log.info("run.retried", dag=run.name, run=run.run_id)
            schedule_series.RETRIES.inc()
        return at


def _key(document: Document) -> tuple[str, str, str]:
    return tuple(str(document.get(name) or "") for name in ("name", "dagRunId", "attemptId"))  # type: ignore[return-value]
