"""One listed coordinator as a worker sees it: presence, open polls, and why it does not work when it does not."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import structlog

from secure_dagu import __version__
from secure_dagu.dispatch.api import Announced, Coordinator
from secure_dagu.dispatch.model import Caller, Claim, WorkerStats
from secure_dagu.errors import (
    ConfigError,
    DefinitionError,
    IntegrityViolation,
    Refused,
    SecureDaguError,
    Unauthenticated,
    Unavailable,
)
from secure_dagu.run.model import AttemptKey
from secure_dagu.telemetry import metrics
from secure_dagu.worker.timings import Timings, full_jitter

log = structlog.get_logger()

OPEN_POLLS = 4
"""Polls held open at one coordinator: enough to claim the next task while one is being acknowledged."""

STANDS_AFTER_S = 1.0
MAX_TOLD = 16
ANNOUNCE_EVERY_S = 10.0

HOPELESS = (Refused, Unauthenticated, ConfigError, DefinitionError, IntegrityViolation)
"""Families where waiting cannot help: somebody has to change a certificate, a name or a setting."""


class Trouble:
    """What is wrong with one coordinator now, by activity; tells it once per change and then only now and then."""

    def __init__(self, name: str, *, remind_s: float) -> None:
        self.name = name
        self.ever_worked = False
        self.hopeless_since: float | None = None
        self._remind_s = remind_s
        self._errors: dict[str, SecureDaguError] = {}
        self._told: dict[tuple[str, str], float] = {}
        """When each trouble was last told: one outage may say two things in turn, and that is no news."""

    @property
    def error(self) -> SecureDaguError | None:
        """Return the present trouble, the hopeless one first; None while all is well."""
        return next(iter(sorted(self._errors.values(), key=lambda e: not isinstance(e, HOPELESS))), None)

    @property
    def works(self) -> bool:
        """Tell whether the coordinator has answered and nothing has failed since."""
        return self.ever_worked and not self._errors

    def ok(self, activity: str) -> None:
        """Note that `activity` works."""
        if self.works:
            return
        self.ever_worked = True
        self._errors.pop(activity, None)
        self._judge()
        if not self._errors:
            self._told.clear()
            log.info("coordinator.reached", coordinator=self.name)

    def failed(self, activity: str, error: SecureDaguError) -> None:
        """Note that `activity` failed."""
        self._errors[activity] = error
        self._judge()
        now = time.monotonic()
        said = (error.code, str(error))
        if now - self._told.get(said, float("-inf")) >= self._remind_s:
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told[said] = now
            log.warning(
                "coordinator.refused" if isinstance(error, HOPELESS) else "coordinator.unreachable",
                coordinator=self.name,
                activity=activity,
                **error.as_dict(),
            )

    def _judge(self) -> None:
        if not any(isinstance(error, HOPELESS) for error in self._errors.values()):
            self.hopeless_since = None
        elif self.hopeless_since is None:
            self.hopeless_since = time.monotonic()


class Desk:
    """Keep presence and a few open polls at one coordinator.

    Every listed coordinator gets its own heartbeats, although the protocol asks for one to any of them: presence is
    what makes a coordinator dispatch to us, and coordinators need not share what they know.
    """

    def __init__(
        self,
        *,
        name: str,
        coordinator: Coordinator,
        caller: Caller,
        labels: Mapping[str, str],
        timings: Timings,
        slots: asyncio.Semaphore,
        is_only_one: bool,
        stats: Callable[[], WorkerStats],
        claimed: Callable[[Desk, Claim], None],
        heard: Callable[[Desk, Sequence[AttemptKey]], None],
        noticed: Callable[[], None],
    ) -> None:
        """Take what the worker shares.

        Args:
            slots: one for each run that may be active; an open poll holds one, so that a claim always finds room.
            stats: returns the present load.
            claimed: takes over a claim together with the slot.
            heard: told of each heartbeat answer and the attempts that it cancels.
            noticed: called after each failure; raises when no coordinator is left to hope for.
        """
        self.name = name
        self.coordinator = coordinator
        self.trouble = Trouble(name, remind_s=timings.remind_s)
        self._caller = caller
        self._labels = dict(labels)
        self._timings = timings
        self._slots = slots
        self._turn_s = None if is_only_one else timings.poll_turn_s
        self._stats = stats
        self._claimed = claimed
        self._heard = heard
        self._noticed = noticed
        self._open: set[asyncio.Timeout] = set()
        self._connected = metrics.CLIENT_CONNECTED.labels(name)
        self._speaks = asyncio.Event()
        """Clear while its heartbeats are not answered."""
        self._speaks.set()
        self._presence = Announced.WORKING
        self._said_at: float | None = None
        self._is_understood = True
        self._news = asyncio.Event()

    async def be_present(self) -> None:
        """Send heartbeats for ever.

        Raises:
            SecureDaguError: no listed coordinator can work any more.
        """
        failures = 0
        while True:
            try:
                stopped = await self._heartbeat()
            except SecureDaguError as error:
                failures += 1
                code = error.grpc_status.title().replace("_", "")  # "PERMISSION_DENIED" → "PermissionDenied"
                metrics.HEARTBEAT_FAILURES.labels(code).inc()
                self._connected.set(0)
                self._said_at = None
                self.trouble.failed("heartbeat", error)
                self._noticed()
                if isinstance(error, Unavailable):
                    self._speaks.clear()
                self._reopen_polls()
                pause = full_jitter(failures, first_s=self._timings.heartbeat_s, cap_s=self._timings.outage_cap_s)
                await asyncio.sleep(max(pause, self._timings.first_retry_s))
            else:
                failures = 0
                self._speaks.set()
                self._connected.set(1)
                self.trouble.ok("heartbeat")
                self._heard(self, stopped)
                await self._announce()
                await self._rest()

    async def _heartbeat(self) -> Sequence[AttemptKey]:
        """Send one; while it is not answered, others get the slots of our polls. It may still be answered."""
        loop = asyncio.get_running_loop()
        silence = loop.call_later(self._timings.silent_s, self._fell_silent)
        try:
            return await self.coordinator.heartbeat(self._caller, labels=self._labels, stats=self._stats())
        finally:
            silence.cancel()

    def _fell_silent(self) -> None:
        if self._turn_s is None:
            return  # there is nobody else
        self._connected.set(0)
        self._speaks.clear()
        self._reopen_polls()

    def drain(self) -> None:
        """Say at once that we take no more tasks."""
        self._presence = Announced.DRAINING
        self._said_at = None
        self._news.set()

    async def leave(self) -> None:
        """Say that we go; nobody needs to hear it."""
        self._presence = Announced.LEAVING
        self._said_at = None
        await self._announce()

    async def _announce(self) -> None:
        """Say what a heartbeat has no words for: at first, at each change, and now and then, for they may forget."""
        now = time.monotonic()
        if not self._is_understood or (self._said_at is not None and now - self._said_at < ANNOUNCE_EVERY_S):
            return
        try:
            await self.coordinator.announce(self._caller, version=__version__, presence=self._presence)
        except Unavailable:
            return  # again with the next heartbeat
        except SecureDaguError:
            self._is_understood = False  # a coordinator without our extensions
        self._said_at = now

    async def _rest(self) -> None:
        """Wait for the next heartbeat, or until there is something to say."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timings.heartbeat_s):
                await self._news.wait()
        self._news.clear()

    async def poll_forever(self) -> None:
        """Poll for ever, one slot at a time; a claim takes its slot along.

        Raises:
            SecureDaguError: no listed coordinator can work any more.
        """
        failures = 0
        while True:
            if self._turn_s is not None:
                await self._speaks.wait()
            await self._slots.acquire()
            claim: Claim | None = None
            pause = 0.0
            try:
                claim = await self._poll_once()
                failures = 0
                pause = self._timings.poll_pause_s
            except TimeoutError:
                pass  # its turn is over, or the coordinator fell silent: ask again
            except SecureDaguError as error:
                failures += 1
                self.trouble.failed("poll", error)
                self._noticed()
                pause = self._pause_after(error, failures)
            finally:
                if claim is None:
                    self._slots.release()
            if claim is not None:
                self._claimed(self, claim)
            else:
                await asyncio.sleep(pause)

    async def _poll_once(self) -> Claim | None:
        metrics.LAST_POLL_AT.set_to_current_time()
        # A poll that is still open after a moment has been accepted, which is all the good news a long poll has.
        stands = asyncio.get_running_loop().call_later(STANDS_AFTER_S, self.trouble.ok, "poll")
        try:
            async with asyncio.timeout(self._turn_s) as turn:
                self._open.add(turn)
                try:
                    claim = await self.coordinator.poll(self._caller, poller_id=str(uuid.uuid4()), labels=self._labels)
                finally:
                    self._open.discard(turn)
        finally:
            stands.cancel()
        self.trouble.ok("poll")
        return claim

    def _pause_after(self, error: SecureDaguError, failures: int) -> float:
        timings = self._timings
        if isinstance(error, Unavailable):
            pause = full_jitter(failures, first_s=timings.first_retry_s, cap_s=timings.outage_cap_s)
        else:
            pause = full_jitter(failures, first_s=timings.heartbeat_s, cap_s=timings.error_cap_s)
        return max(pause, timings.first_retry_s / 2)

    def _reopen_polls(self) -> None:
        """Give up the open polls: a poll has no deadline, so only a failed heartbeat tells that nobody listens."""
        now = asyncio.get_running_loop().time()
        for turn in list(self._open):
            if not turn.expired():
                turn.reschedule(now)
