"""Ship the log files of one run: the files are the spool, one positioned upload stream carries them all.

The runner writes every byte of output to a file before it tells us, and bytes once written never change. So a file
and three numbers are the whole state of a stream: how much is there, how much was sent in the open call, how much a
response has acknowledged. When a call breaks, sending goes back to the acknowledged offset; the coordinator writes at
offsets, so repeating bytes changes nothing (protocol, section 5.4). An outage of any length costs no memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from enum import IntEnum
from pathlib import Path

import structlog

from secure_dagu.dispatch.api import RunReports
from secure_dagu.dispatch.model import Caller, LogPart, LogStream, StreamIdentity
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.telemetry import metrics
from secure_dagu.worker.timings import Timings, half_jitter

log = structlog.get_logger()

_SENT = {stream: metrics.LOG_BYTES.labels(stream.name.lower()) for stream in LogStream if stream}


class Goal(IntEnum):
    """How far the shipper goes before it returns."""

    LIVE = 0
    """The run is going on: ship what comes, for ever."""
    STEPS = 1
    """Every step's stream is complete: send the rest, end each stream."""
    ALL = 2
    """The run log too."""


class _Spool:
    """One (step, stream) pair."""

    __slots__ = ("acknowledged", "ended", "path", "size", "step", "stream")

    def __init__(self, step: str, stream: LogStream, path: Path) -> None:
        self.step = step
        self.stream = stream
        self.path = path
        self.size = 0
        self.acknowledged = 0
        self.ended = False

    def may_end(self, goal: Goal) -> bool:
        return not self.ended and goal >= (Goal.ALL if self.stream is LogStream.SCHEDULER else Goal.STEPS)


class _Call:
    """What one StreamLogs call has sent. Kept apart from the spools, so that a broken call is simply forgotten."""

    __slots__ = ("began", "ended", "is_whole", "queue", "sent", "total")

    def __init__(self, queue: dict[_Spool, None]) -> None:
        self.began = asyncio.get_running_loop().time()
        self.queue = queue
        """Spools that have something to send, in the order in which they take turns."""
        self.sent: dict[_Spool, int] = {}
        self.ended: set[_Spool] = set()
        self.total = 0
        self.is_whole = False
        """True once we have said all that we had to say; an answer before that acknowledges nothing."""

    def is_full(self, timings: Timings) -> bool:
        return (
            self.total >= timings.log_checkpoint_bytes
            or len(self.sent) >= timings.log_streams_per_call
            or asyncio.get_running_loop().time() - self.began >= timings.log_call_s
        )

    def may_end(self, spool: _Spool, goal: Goal) -> bool:
        return spool.size > 0 and spool.may_end(goal) and spool not in self.ended


class LogShipper:
    """Upload the logs of one run while it goes on, and complete them at its end."""

    def __init__(
        self,
        *,
        reports: RunReports,
        caller: Caller,
        identity: StreamIdentity,
        timings: Timings,
        is_hopeless: Callable[[], bool],
    ) -> None:
        """Take the way to the coordinator; `is_hopeless` tells when trying again has lost its sense."""
        self.lost = ""
        """Why output could not be delivered; empty while everything could."""
        self._reports = reports
        self._caller = caller
        self._identity = identity
        self._timings = timings
        self._is_hopeless = is_hopeless
        self._spools: dict[tuple[str, LogStream], _Spool] = {}
        self._call: _Call | None = None
        self._goal = Goal.LIVE
        self._unsent = 0
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._guard: asyncio.Timeout | None = None
        self._is_off = False
        self._has_started_over = False

    def written(self, step: str, stream: LogStream, path: Path, size: int) -> None:
        """Take notice of output; it is sent when it is large or no longer young."""
        spool = self._spools.get((step, stream))
        if spool is None:
            spool = self._spools[step, stream] = _Spool(step, stream, path)
        if size <= spool.size or self._is_off:
            return
        self._unsent += size - spool.size
        spool.size = size
        if self._call is not None:
            self._call.queue[spool] = None
        if self._unsent >= self._timings.log_bytes:
            self._wake.set()
        elif self._timer is None and not self._wake.is_set():
            self._timer = asyncio.get_running_loop().call_later(self._timings.log_age_s, self._wake.set)

    def complete(self, goal: Goal) -> None:
        """Let `ship` return once everything up to `goal` is acknowledged. Nothing may be written there afterwards."""
        self._goal = goal
        self._wake.set()

    async def ship(self) -> None:
        """Upload until the goal is reached, output is given up (see `lost`), or the coordinator wants no logs."""
        failures = 0
        loop = asyncio.get_running_loop()
        give_up_at = 0.0
        while not self._is_off:
            if not self._pending():
                if self._goal is not Goal.LIVE:
                    return
                await self._wait_for_output(None)
                continue
            try:
                await self._one_call()
                failures, give_up_at = 0, 0.0
            except (Unavailable, TimeoutError) as error:
                if failures == 0:
                    log.info(
                        "logs.interrupted", run=str(self._identity.run), why=str(error) or "the upload stood still"
                    )
                failures += 1
                if self._goal is Goal.LIVE or not give_up_at:
                    give_up_at = loop.time() + self._timings.orphan_timeout_s
                if self._is_hopeless() or loop.time() > give_up_at:
                    self._give_up(str(error) or "the upload stood still", reason="unavailable")
                    return
                timings = self._timings
                await asyncio.sleep(half_jitter(failures, first_s=timings.retry_first_s, cap_s=timings.retry_cap_s))
            except SecureDaguError as error:
                if "log streaming not configured" in str(error):
                    self._is_off = True  # the coordinator keeps no logs: nothing is lost that anybody wanted
                elif "offset exceeds current file size" in str(error) and not self._has_started_over:
                    self._has_started_over = True  # its disk came back older than what it acknowledged: send all again
                    for spool in self._spools.values():
                        spool.acknowledged, spool.ended = 0, False
                else:
                    self._give_up(str(error))

    def _pending(self) -> dict[_Spool, None]:
        goal = self._goal
        return {s: None for s in self._spools.values() if s.size > s.acknowledged or (s.size and s.may_end(goal))}

    def _give_up(self, why: str, *, reason: str = "refused") -> None:
        """Lose the output, not the run (protocol, section 1.8)."""
        metrics.LOG_CHUNKS_DROPPED.labels(reason).inc()
        self._is_off = True
        self.lost = why
        log.warning("logs.lost", run=str(self._identity.run), why=why)

    async def _one_call(self) -> None:
        call = self._call = _Call(self._pending())
        try:
            async with asyncio.timeout(None) as self._guard:
                await self._reports.stream_logs(self._caller, self._identity, self._parts(call))
        finally:
            self._guard = None
            self._call = None
        if not call.is_whole:
            raise Unavailable("the coordinator ended the upload before its end")
        for spool, offset in call.sent.items():
            spool.acknowledged = max(spool.acknowledged, offset)
        for spool in call.ended:
            spool.ended = True

    async def _parts(self, call: _Call) -> AsyncIterator[LogPart]:
        """Yield what there is, then what comes, until the goal, a checkpoint or an idle moment ends the call."""
        timings = self._timings
        # A call that was given up may not act any more, hence the comparison.
        while self._call is call and not call.is_full(timings):
            if call.queue:
                part = self._next_part(call)
                if part is not None:
                    self._guard_in(timings.stall_s)
                    yield part
                    _SENT[part.stream].inc(len(part.data))
                    del part  # a hundred runs with a backlog: one chunk each in memory, not two
            elif self._goal is not Goal.LIVE:
                call.queue.update((spool, None) for spool in self._spools.values() if call.may_end(spool, self._goal))
                if not call.queue:
                    break
            else:
                self._guard_in(None)
                if not await self._wait_for_output(timings.log_idle_s):
                    break
        call.is_whole = True
        self._guard_in(timings.stall_s)

    def _next_part(self, call: _Call) -> LogPart | None:
        """Take the next spool's turn: its next chunk, else its end, else nothing."""
        spool = next(iter(call.queue))
        del call.queue[spool]
        offset = call.sent.setdefault(spool, spool.acknowledged)
        if offset < spool.size:
            data = self._read(spool, offset)
            call.sent[spool] = offset + len(data)
            call.total += len(data)
            self._unsent = max(0, self._unsent - len(data))
            if call.sent[spool] < spool.size:
                call.queue[spool] = None  # to the back: streams take turns
            return LogPart(step=spool.step, stream=spool.stream, data=data, offset=offset, is_final=False)
        if call.may_end(spool, self._goal):
            call.ended.add(spool)
            return LogPart(step=spool.step, stream=spool.stream, data=b"", offset=offset, is_final=True)
        return None

    def _read(self, spool: _Spool, offset: int) -> bytes:
        # On the loop: a chunk comes from the page cache in about 20 µs, which is less than a thread hop costs.
        return _read_at(spool.path, offset, min(self._timings.log_chunk_bytes, spool.size - offset))

    async def _wait_for_output(self, timeout_s: float | None) -> bool:
        """Wait until output is worth sending or the goal has changed; False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def _guard_in(self, seconds: float | None) -> None:
        """Cut the open call unless the coordinator takes something within that time; None: we have nothing to send."""
        guard = self._guard
        if guard is not None and not guard.expired():
            guard.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


def _read_at(path: Path, offset: int, size: int) -> bytes:
    """Read exactly `size` bytes.

    Raises:
        SecureDaguError: the file is shorter than announced or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SecureDaguError("a log file cannot be read", why=f"{path.name}: {error.strerror}") from error
    if len(data) != size:
        raise SecureDaguError(
            "a log file is shorter than announced", why=f"{path.name} at {offset}: {len(data)}/{size}"
        )
    return data
