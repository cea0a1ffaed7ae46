"""Write a service's trail: one thread with group commit; whoever waited is told after the flush.

What was recorded while the last batch was being written goes into the next one, so a hundred concurrent actions share
one flush. Events that nobody waits for travel with them, or are written within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from secure_dagu.audit import journal
from secure_dagu.audit.chain import Place
from secure_dagu.audit.events import SYSTEM, Action, Detail, Event, Outcome
from secure_dagu.audit.folding import Folder
from secure_dagu.audit.journal import SIGN_AFTER_S, Journal, Stamped
from secure_dagu.errors import SecureDaguError, Unavailable

MAX_BATCH = 512
MAX_WAITING = 20_000
"""Records that may wait for the disk; one more is refused as `Unavailable`."""
MAX_NOTED = 20_000
"""Events that nobody waits for and that may wait for the disk; beyond it the newest are counted as lost."""
FLUSH_S = 0.5
"""Seconds after which noted events are written if no record takes them along."""

OnWritten = Callable[[Sequence[Event], Sequence[bytes], Place], None]
"""Told on the writer's thread of each batch on disk: its events, its lines, where the chain stands."""

_Waiting = tuple[Event, datetime, "asyncio.Future[None]"]


class AuditLog:
    """Implement `events.Trail`. Use `open_trail`."""

    def __init__(
        self, log: Journal, loop: asyncio.AbstractEventLoop, *, on_written: OnWritten, on_failed: Callable[[], None]
    ) -> None:
        self._log = log
        self.checked, self.checked_at = log.place, datetime.now(UTC)
        """Where the chain stood when it was last checked."""
        self.is_checked_whole = False
        """That was every record; False: of its newest file only, which opening it does."""
        self.damage = ""
        """What the last verification found; empty: nothing. Writing goes on: what happens now is still recorded."""
        self._loop = loop
        self._on_written = on_written
        self._on_failed = on_failed
        self._waiting: deque[_Waiting] = deque()
        self._noted: deque[Stamped] = deque()
        self._folder = Folder()
        self._lost = 0
        self._is_refused = False
        self._more = threading.Condition(threading.Lock())
        self._stopping = False

    async def record(self, event: Event) -> None:
        """Write an event (`Trail.record`). A caller that is cancelled leaves it to be written."""
        future: asyncio.Future[None] = self._loop.create_future()
        with self._more:
            if self._stopping:
                raise _closing()
            if len(self._waiting) >= MAX_WAITING:
                raise Unavailable("the audit log is behind", why=f"{MAX_WAITING} records wait for the disk")
            self._waiting.append((event, datetime.now(UTC), future))
            self._more.notify()
        await future

    def note(self, event: Event) -> None:
        """Take an event for later (`Trail.note`); one that repeats is counted (`audit.folding`)."""
        with self._more:
            kept = self._folder.take(event, monotonic())
            if kept is not None:
                self._keep(kept)

    def _keep(self, event: Event) -> None:
        if len(self._noted) >= MAX_NOTED:
            self._lost += 1
        else:
            self._noted.append((event, datetime.now(UTC)))

    @property
    def place(self) -> Place:
        """Return where the chain stands."""
        return self._log.place

    def problem(self) -> str:
        """Return why nothing can be recorded; empty: it can."""
        if not self._log.is_whole:
            return "the audit log is not what was written to it"
        return "the audit log cannot be written" if self._is_refused else ""

    @property
    def is_whole(self) -> bool:
        """Tell whether the log is still what was written here."""
        return self._log.is_whole

    def verified(self, place: Place, at: datetime, *, damage: str = "") -> None:
        """Take what a verification of every record found that began at `at` and ended at `place`."""
        self.damage = damage
        if not damage:
            self.checked, self.checked_at, self.is_checked_whole = place, at, True

    def stop(self) -> None:
        """Ask the thread to write what it has and end."""
        with self._more:
            self._stopping = True
            self._more.notify()

    # -- the writer's thread -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Write until `stop`; then write the rest and sign."""
        try:
            while not self._turn():
                pass
        finally:  # even a mistake of ours must not leave anybody waiting, nor let anything happen unrecorded
            with self._more:
                self._stopping = True
                left = [future for _, _, future in self._waiting]
            self._tell(left, _closing())

    def _turn(self) -> bool:
        """Write one batch; tell whether it was the last."""
        with self._more:
            if not self._waiting and not self._stopping:
                self._more.wait(FLUSH_S)
            waiting = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            is_last = self._stopping and not self._waiting
            for event in self._folder.rest() if is_last else self._folder.due(monotonic()):
                self._keep(event)
            noted = [self._noted.popleft() for _ in range(min(len(self._noted), MAX_BATCH))]
            if self._lost:
                noted.append((_lost(self._lost), datetime.now(UTC)))
                self._lost = 0
        self._write(waiting, noted)
        with contextlib.suppress(Unavailable):
            if self._log.sign(only_after_s=0.0 if is_last else SIGN_AFTER_S):
                self._on_written((), self._log.written, self._log.place)
        return is_last and not self._noted

    def _write(self, waiting: Sequence[_Waiting], noted: list[Stamped]) -> None:
        if not waiting and not noted:
            return
        batch: list[Stamped] = [*noted, *((event, at) for event, at, _ in waiting)]
        refused: SecureDaguError | None = _closing()  # what a mistake of ours would tell
        try:
            self._log.append(batch)
            refused, self._is_refused = None, False
            self._on_written([event for event, _ in batch], self._log.written, self._log.place)
        except Unavailable as error:
            refused, self._is_refused = error, True
            self._on_failed()
            with self._more:
                if self._stopping:
                    self._noted.clear()
                else:
                    self._noted.extendleft(reversed(noted))
        finally:
            self._tell([future for _, _, future in waiting], refused)

    def _tell(self, futures: Sequence[asyncio.Future[None]], refused: SecureDaguError | None) -> None:
        if futures:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                self._loop.call_soon_threadsafe(_resolve, futures, refused)


@contextlib.asynccontextmanager
async def open_trail(
    folder: Path,
    *,
    host: str,
    source: str,
    on_written: OnWritten = lambda _events, _lines, _place: None,
    on_failed: Callable[[], None] = lambda: None,
    max_file: int = journal.MAX_FILE,
    wait_s: float = 5.0,
) -> AsyncIterator[AuditLog]:
    """Open the log of a folder and its writer thread; what was noted is on disk and signed when this ends.

    Args:
        folder: made with mode 0700 if there is none.
        host: this host's name.
        source: which part of the program writes.
        on_written: told on the writer's thread of every batch on disk.
        on_failed: told there of every batch that the disk refused.
        max_file: bytes of one file.
        wait_s: how long another writer may hold the folder.

    Raises:
        Unavailable: another process writes this log, or the disk refuses.
        IntegrityViolation: the log is damaged.
        ConfigError: the folder or its key cannot be used.
    """
    opening = journal.opened(folder, host=host, source=source, wait_s=wait_s, max_file=max_file)
    log = await asyncio.to_thread(opening.__enter__)
    if log.written:
        on_written((), log.written, log.place)
    trail = AuditLog(log, asyncio.get_running_loop(), on_written=on_written, on_failed=on_failed)
    thread = threading.Thread(target=trail.run, name="audit writer", daemon=True)
    thread.start()
    try:
        yield trail
    finally:
        trail.stop()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(opening.__exit__, None, None, None)


def _resolve(futures: Sequence[asyncio.Future[None]], refused: SecureDaguError | None) -> None:
    for future in futures:
        if future.done():  # cancelled; written all the same
            continue
        if refused is not None:
            future.set_exception(refused)
        else:
            future.set_result(None)


def _closing() -> Unavailable:
    return Unavailable("the audit log takes no more records", why="it is closing", fix="try again")


def _lost(count: int) -> Event:
    return Event(
        action=Action.AUDIT_LOST, outcome=Outcome.FAILED, actor=SYSTEM, reason="the disk refused writes",
        details={Detail.COUNT: count},
    )  # fmt: skip
