"""See what did not happen: offers not taken, leases not renewed, tasks nobody can run (protocol, section 3.16).

One look a second. A worker killed with -9 is noticed LEASE_FOR plus one look after its last word.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from secure_dagu.audit.events import SYSTEM, Action, Detail, Event, Trail, run_target
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.ledger import Entry, Ledger
from secure_dagu.coordinator.tasks import Desk
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.machine import Expired, GivenUp
from secure_dagu.dispatch.match import Demand
from secure_dagu.dispatch.model import Phase, WorkerId
from secure_dagu.errors import Conflict, SecureDaguError
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=1)
STALL = timedelta(seconds=2)
"""A look that comes this much too late, or early, means that this process stood still or the clock jumped: every
deadline is moved by that much, for the workers could not be heard meanwhile."""


class Sweeper:
    """Look every second; `look` is one look, for whoever moves the clock by hand."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        desk: Desk,
        endings: Endings,
        clock: Clock,
        trail: Trail,
        task_wait: timedelta,
        gone: Callable[[WorkerId], None],
    ) -> None:
        """Take what it watches.

        Args:
            task_wait: how long a task may wait while no live worker matches it.
            gone: told of every worker that has been silent for too long.
        """
        self._ledger = ledger
        self._desk = desk
        self._endings = endings
        self._clock = clock
        self._trail = trail
        self._task_wait = task_wait
        self._gone = gone
        self._last_look = clock.now()
        self._unmet_since: dict[Demand, datetime] = {}

    async def look_forever(self, closing: asyncio.Event) -> None:
        """Look until `closing`."""
        while not closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await closing.wait()
                    return
            try:
                await self.look()
            except SecureDaguError as error:  # the store may be away for a while; the next look tries again
                log.error("sweep.failed", **error.as_dict())  # noqa: TRY400  no bug, no trace

    async def look(self) -> None:
        """Do what time demands."""
        now = self._clock.now()
        stall = now - self._last_look - LOOK_EVERY
        self._last_look = now
        if abs(stall) >= STALL:
            log.warning("coordinator.stalled", seconds=round(stall.total_seconds(), 1))
            self._forgive(stall)
        for entry in self._ledger:
            if entry.state.until is not None and now >= entry.state.until and not entry.writing.locked():
                await self._expire(entry)
        await self._give_up_unmatched(now)
        for worker in self._desk.board.presences.forget_silent(now):
            log.warning("worker.lost", worker=worker)
            metrics.WORKERS_LOST.labels("heartbeat_timeout").inc()
            metrics.forget_worker(worker)
            self._gone(worker)
        metrics.ZOMBIE_SWEEP_AT.set(now.timestamp())

    def _forgive(self, by: timedelta) -> None:
        for entry in self._ledger:
            entry.state = machine.shifted(entry.state, by)
        self._desk.board.presences.shift(by)
        self._unmet_since = {demand: since + by for demand, since in self._unmet_since.items()}

    async def _expire(self, entry: Entry) -> None:
        async with entry.writing:
            now = self._clock.now()
            before = entry.state
            if before.until is None or now < before.until or self._ledger.get(entry.key) is not entry:
                return  # something happened while we waited for our turn
            state = machine.advance(before, Expired(), now)
            if before.phase is Phase.OFFERED:
                metrics.CLAIM_ACKS.labels("timeout").inc()
                log.warning("task.not_acknowledged", run=str(entry.run), worker=before.worker, times=state.deliveries)
            if not state.is_over:
                self._desk.board.put_back(entry, state)
                return
            if before.phase is Phase.OFFERED:
                metrics.TASKS_LOST.labels("claim_timeout").inc()
                error = f"task was offered {state.deliveries} times and never acknowledged, last to {before.worker}"
            else:
                metrics.TASKS_LOST.labels("lease_expired").inc()
                metrics.ZOMBIE_RUNS.labels("distributed").inc()
                error = (
                    f"distributed run lease expired: worker {before.worker} accepted the task claim but stopped "
                    "reporting to the owner coordinator"
                )
            with contextlib.suppress(Conflict):  # written by somebody else: the next look reads it again
                await self._endings.end(entry, state, error=error)
        if before.phase is Phase.LEASED:
            self._trail.note(
                Event(
                    action=Action.TASK_RELEASED, actor=SYSTEM, target=run_target(entry.run), reason="lease_expired",
                    details={Detail.ATTEMPT: entry.attempt_id, Detail.WORKER: before.worker},
                )
            )  # fmt: skip
            await self._desk.cancel_children(entry)

    async def _give_up_unmatched(self, now: datetime) -> None:
        unmet: dict[Demand, datetime] = {}
        for demand in self._desk.board.backlog.demands():
            if self._desk.board.meets(demand, now):
                continue
            since = unmet[demand] = self._unmet_since.get(demand, now)
            if now - since < self._task_wait:
                continue
            for key in tuple(self._desk.board.backlog.waiting_for(demand)):
                entry = self._ledger.get(key)
                if entry is not None and now - entry.enqueued_at >= self._task_wait:
                    await self._give_up(entry, demand)
        self._unmet_since = unmet

    async def _give_up(self, entry: Entry, demand: Demand) -> None:
        async with entry.writing:
            if entry.state.phase is not Phase.QUEUED or self._ledger.get(entry.key) is not entry:
                return
            state = machine.advance(entry.state, GivenUp(), self._clock.now())
            metrics.TASKS_LOST.labels("worker_lost").inc()
            seconds = int(self._task_wait.total_seconds())
            error = f"no worker that matches {demand} polled within {seconds} s"
            if why := self._desk.board.not_authorised(demand, self._clock.now()):
                error = f"no authorised worker matches {demand}: {why}"
            with contextlib.suppress(Conflict):
                await self._endings.end(entry, state, error=error)
