"""What is logged of a run that waits: each reason once, however often its start is tried."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime

from structlog.testing import capture_logs

from secure_dagu.dispatch.operating import Waiting
from secure_dagu.dispatch.queueing import QueuedRun, QueueState
from secure_dagu.run.model import DagRunRef
from secure_dagu.scheduler.queues import QueueProcessor


class Stubborn:
    """A queue with one run, whose starts fail for the given reasons, one after the other."""

    def __init__(self, *reasons: Waiting) -> None:
        run = DagRunRef("flow", "r1")
        self.item = QueuedRun(key="k", queue="q", run=run, queued_at=datetime.now(UTC))
        self.reasons = list(reasons)
        self.is_done = asyncio.Event()

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[asyncio.Event]:
        yield asyncio.Event()

    async def look(self) -> Sequence[QueueState]:
        if not self.reasons:
            self.is_done.set()  # what follows from the last start has happened
            return ()
        return (
            QueueState(
                name="q", is_global=True, max_concurrency=1, paused=False, running=0, items=(self.item,)
            ),
        )  # fmt: skip

    async def start(self, item: QueuedRun) -> Waiting | None:
        return self.reasons.pop(0)

    async def give_up(self, item: QueuedRun, why: Waiting) -> None:
        raise AssertionError("nothing fails often enough")

    async def tell(self, waits: Mapping[QueuedRun, Waiting]) -> None:
        """Nobody reads it here."""


async def test_a_reason_is_logged_when_it_changes_and_not_at_each_try() -> None:
    line = Stubborn(Waiting.NO_WORKER, Waiting.NO_WORKER, Waiting.NO_MATCHING_WORKER)
    with capture_logs() as logs:
        working = asyncio.create_task(QueueProcessor(line, failure_threshold=3).run_forever())
        async with asyncio.timeout(60):
            await line.is_done.wait()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    told = [entry["reason"] for entry in logs if entry["event"] == "queue.waits"]
    assert told == [Waiting.NO_WORKER, Waiting.NO_MATCHING_WORKER]
