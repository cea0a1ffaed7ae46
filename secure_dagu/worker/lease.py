"""Hold leases: renew them each second at their owner, hear of cancellations, give up runs that nobody renews."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from secure_dagu.dispatch.api import OwnedRoute
from secure_dagu.dispatch.model import Caller, RunningTask
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.run.model import AttemptKey
from secure_dagu.worker.timings import Timings, full_jitter

log = structlog.get_logger()


class Held:
    """One task that this worker runs: its lease and the signal that stops it."""

    def __init__(self, running: RunningTask, *, orphan_timeout_s: float) -> None:
        self.running = running
        self.stop = asyncio.Event()
        self.is_over = False
        """Set when the run has ended and only its delivery is left: there is nothing to stop any more."""
        self._orphan_timeout_s = orphan_timeout_s
        self._renewed_at = time.monotonic()

    def renewed(self) -> None:
        """Note that the coordinator knows of this task now."""
        self._renewed_at = time.monotonic()

    @property
    def is_orphaned(self) -> bool:
        """Tell whether nobody has renewed this lease for so long that nothing can be delivered under it any more."""
        return time.monotonic() - self._renewed_at > self._orphan_timeout_s

    def stop_because(self, reason: str) -> None:
        """Ask for the end of the run; the first reason stays."""
        if not self.stop.is_set() and not self.is_over:
            self.stop.set()
            log.info("run.stopping", run=str(self.running.run), attempt=self.running.attempt_key, reason=reason)


class OwnerLink:
    """The standing relation to one owner coordinator, shared by all tasks that it handed out."""

    def __init__(self, *, route: OwnedRoute, name: str, is_leasing: bool, caller: Caller, timings: Timings) -> None:
        """Take the route.

        Args:
            is_leasing: False for tasks without an owner: nobody expects renewals for those (protocol, section 14.1),
                so their leases follow the heartbeats.
        """
        self.route = route
        self.name = name
        self.is_leasing = is_leasing
        self.hears_cancellations = False
        self.held: dict[AttemptKey, Held] = {}
        self.task: asyncio.Task[None] | None = None
        """The task that runs `run`."""
        self._caller = caller
        self._timings = timings
        self._has_work = asyncio.Event()
        self._told = ""

    def note_problem(self) -> str:
        """Return why the owner's own address is not used, empty while it is; a new reason is logged at once."""
        problem = self.route.problem
        if problem != self._told:
            self._told = problem
            if problem:
                log.warning("owner.unreachable", owner=self.name, why=problem)
            else:
                log.info("owner.reached", owner=self.name)
        return problem

    def hold(self, held: Held) -> None:
        """Start renewing the lease of a task."""
        self.held[held.running.attempt_key] = held
        self._has_work.set()

    def release(self, held: Held) -> None:
        """Stop renewing it."""
        self.held.pop(held.running.attempt_key, None)

    def stop(self, keys: Sequence[AttemptKey], reason: str = "cancelled by the coordinator") -> None:
        """Stop those of our tasks that are named; others are ignored."""
        for key in keys:
            if (held := self.held.get(key)) is not None:
                held.stop_because(reason)

    def renewed(self) -> None:
        """Note that the coordinator knows of all our tasks."""
        for held in self.held.values():
            held.renewed()

    async def run(self) -> None:
        """Renew and listen until cancelled."""
        if not self.is_leasing:
            await self._watch_orphans()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew_forever(), name=f"renew leases at {self.name}")
            group.create_task(self._listen_forever(), name=f"cancellations of {self.name}")

    async def is_already_over(self, running: RunningTask) -> bool:
        """Ask whether a task that was just acknowledged has been cancelled meanwhile (protocol, section 3.6).

        Needed only where cancellations are not pushed to us; an error is no answer, so the task goes on.
        """
        if not self.is_leasing or self.hears_cancellations:
            return False
        try:
            return running.attempt_key in await self.route.run_heartbeat(self._caller, running=(running,))
        except SecureDaguError:
            return False

    async def _renew_forever(self) -> None:
        failing = False
        while True:
            if not self.held:
                self._has_work.clear()
                await self._has_work.wait()
            holding = tuple(self.held.values())
            try:
                stopped = await self.route.run_heartbeat(self._caller, running=tuple(held.running for held in holding))
            except SecureDaguError as error:
                if not failing:
                    log.warning("lease.not_renewed", owner=self.name, runs=len(holding), **error.as_dict())
                failing = True
                self._stop_orphans()
            else:
                if failing:
                    log.info("lease.renewed", owner=self.name, runs=len(holding))
                failing = False
                for held in holding:
                    held.renewed()
                self.note_problem()
                if stopped:
                    self.stop(stopped)
            await asyncio.sleep(self._timings.heartbeat_s)

    async def _listen_forever(self) -> None:
        """Keep the cancellation stream open; a coordinator without it costs one question now and then."""
        failures = 0
        while True:
            pause_cap = self._timings.outage_cap_s
            try:
                async for key in self.route.cancellations(self._caller):
                    failures = 0
                    self.hears_cancellations = True
                    if key:
                        self.stop((key,))
            except Unavailable:
                pass
            except SecureDaguError:
                pause_cap = self._timings.error_cap_s  # not offered there (a foreign coordinator): heartbeats tell
                failures = max(failures, 6)
            finally:
                self.hears_cancellations = False
            failures += 1
            await asyncio.sleep(full_jitter(failures, first_s=self._timings.first_retry_s * 2, cap_s=pause_cap))

    async def _watch_orphans(self) -> None:
        while True:
            await asyncio.sleep(self._timings.heartbeat_s)
            self._stop_orphans()

    def _stop_orphans(self) -> None:
        for held in tuple(self.held.values()):
            if held.is_orphaned:
                held.stop_because("no coordinator has renewed its lease for too long")
