"""The queue processor: start what may start, say why the rest waits, give up on what cannot be started.

One process runs it at a time (the scheduler's lock). It keeps nothing: what is queued and what runs is on the disk and
at the coordinator, so that it may be killed at any point. An item leaves its queue only after its run is on record as
running, here or there; an attempt starts at most once, whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog
from msgspec import Struct

from secure_dagu.dispatch.operating import Waiting
from secure_dagu.dispatch.queueing import QueuedRun, QueueState, decide
from secure_dagu.telemetry import queue_series

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
"""How often it looks although nobody rang: what another host put into a shared folder, what was killed."""
AGAIN_AFTER_S = (0.5, 5.0)
"""Pause after a start that failed, doubled up to the second number."""
TOLD_EVERY_S = 60.0
AT_ONCE = 16
"""Starts at the same time."""


class Line(Protocol):
    """The queues of a host and the way to start what stands in them."""

    def attended(self) -> AbstractAsyncContextManager[asyncio.Event]:
        """Attend to the queues for the time of the context; the event is set when one may have changed."""
        ...

    async def look(self) -> Sequence[QueueState]:
        """Return every queue that has items; damaged items are put aside, and what has started is left out."""
        ...

    async def start(self, item: QueuedRun) -> Waiting | None:
        """Start a run, or take out an item that asks for nothing any more; return why it cannot start now."""
        ...

    async def give_up(self, item: QueuedRun, why: Waiting) -> None:
        """End a queued run as failed with the reason, and take its item out."""
        ...

    async def tell(self, waits: Mapping[QueuedRun, Waiting]) -> None:
        """Note on the records why runs wait."""
        ...


class _Held(Struct):
    """An item that could not be started."""

    reason: Waiting
    failures: int
    pause_s: float
    until: float


_COUNTED = frozenset({Waiting.LAUNCH_FAILED, Waiting.RECORD_DAMAGED})
"""Reasons that time does not mend: so many in a row end the run. Workers may come, however late."""


class QueueProcessor:
    """Work on the queues. `run_forever` belongs to the one active scheduler."""

    def __init__(self, line: Line, *, failure_threshold: int, look_every_s: float = LOOK_EVERY_S) -> None:
        """Take the queues. `failure_threshold`: failed starts in a row that end a queued run."""
        self._line, self._look_every_s = line, look_every_s
        self._threshold = max(1, failure_threshold)
        self._held: dict[str, _Held] = {}
        self._told: dict[str, tuple[Waiting, float]] = {}
        self.is_settled = asyncio.Event()
        """Set after the first look: everything half-done was seen to."""

    async def run_forever(self) -> None:
        """Start runs until cancelled."""
        async with self._line.attended() as changed:
            while True:
                changed.clear()
                try:
                    started = await self.once()
                    self.is_settled.set()
                except OSError as error:
                    log.warning("queue.unreadable", why=str(error))
                    started = 0
                if started:
                    continue  # there may be more, and what has ended meanwhile has rung
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await changed.wait()

    async def once(self) -> int:
        """Look once and start what may start; return how many items were dealt with."""
        queues = await self._line.look()
        now = time.monotonic()
        present = {item.key for queue in queues for item in queue.items}
        for known in (self._held, self._told):
            for key in known.keys() - present:
                known.pop(key)
        held = {key: one.reason for key, one in self._held.items() if one.until > now}
        starts: list[QueuedRun] = []
        waits: dict[QueuedRun, Waiting] = {}
        for queue in queues:
            decision = decide(queue, held)
            starts += decision.start
            waits |= {item: decision.waits[item.key] for item in queue.items if item.key in decision.waits}
        queue_series.show_waits(waits.values())
        done = await self._start_all(starts)
        await self._tell(waits, now)
        return done

    async def _start_all(self, items: Sequence[QueuedRun]) -> int:
        slots = asyncio.Semaphore(AT_ONCE)
        done = 0

        async def one(item: QueuedRun) -> None:
            nonlocal done
            async with slots:
                reason = await self._line.start(item)
                if reason is None:
                    self._held.pop(item.key, None)
                    done += 1
                else:
                    await self._failed(item, reason)

        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(one(item), name=f"start {item.run}")
        return done

    async def _failed(self, item: QueuedRun, reason: Waiting) -> None:
        before = self._held.get(item.key)
        failures = (before.failures if before else 0) + (reason in _COUNTED)
        if failures >= self._threshold:
            log.error("queue.given_up", run=str(item.run), queue=item.queue, reason=str(reason), failures=failures)
            await self._line.give_up(item, reason)
            self._held.pop(item.key, None)
            return
        pause = min(before.pause_s * 2, AGAIN_AFTER_S[1]) if before else AGAIN_AFTER_S[0]
        self._held[item.key] = _Held(reason, failures, pause, time.monotonic() + pause)
        if before is None or before.reason is not reason:
            log.info("queue.waits", run=str(item.run), queue=item.queue, reason=str(reason))

    async def _tell(self, waits: Mapping[QueuedRun, Waiting], now: float) -> None:
        """Note what has changed since it was noted, at once; and the rest once a minute."""
        due = {}
        for item, reason in waits.items():
            told, at = self._told.get(item.key, (None, 0.0))
            if told is not reason or now - at >= TOLD_EVERY_S:
                due[item] = reason
                self._told[item.key] = (reason, now)
            if len(due) >= 100:  # the rest next time: starting goes first
                break
        if due:
            await self._line.tell(due)

    def _pause(self) -> float:
        next_try = min((one.until for one in self._held.values()), default=float("inf"))
        return max(0.01, min(self._look_every_s, next_try - time.monotonic()))
