"""One writer thread with group commit: what was queued while the last transaction ran goes into the next one.

A job is a function of a session that may be run twice: when one job of a batch fails, the batch is rolled back and
its jobs run again one by one, so that only the guilty one fails. That spares every write the savepoint it almost never
needs. A job's future is resolved after COMMIT, so what was answered is on disk.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Engine

from secure_dagu.errors import Unavailable
from secure_dagu.store.driver import Session

T = TypeVar("T")
MAX_BATCH = 256
MAX_QUEUED = 20_000
"""Writes that may wait; beyond it a write is refused as `Unavailable`, which callers retry."""

_Job = tuple[Callable[[Session], Any], "asyncio.Future[Any]"]


class Writer:
    """Run write jobs on one thread. `start` before the first `write`, `stop` writes what is queued and returns."""

    def __init__(self, engine: Engine, failed: Callable[[], None]) -> None:
        """Take the engine; `failed` is told (on the writer thread) of each batch that the database refused."""
        self._engine = engine
        self._failed = failed
        self.driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._jobs: deque[_Job] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; results come back to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write what is queued, then end the thread."""
        if self._thread is None:
            return
        with self._ready:
            self._stopping = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    async def write(self, job: Callable[[Session], T]) -> T:
        """Queue a job and wait for its commit. A caller that is cancelled leaves the job to be written.

        Raises:
            Unavailable: the database refused the write, or too many wait.
        """
        assert self._loop is not None, "the store is not open"
        if self._stopping:
            raise Unavailable("the store is closing", fix="try again")
        if len(self._jobs) >= MAX_QUEUED:
            raise Unavailable("the store is overloaded", why=f"{MAX_QUEUED} writes wait", fix="try again later")
        future: asyncio.Future[T] = self._loop.create_future()
        with self._ready:
            self._jobs.append((job, future))
            self._ready.notify()
        return await future

    def _run(self) -> None:
        session = Session(self._engine)
        try:
            while True:
                with self._ready:
                    while not self._jobs:
                        if self._stopping:
                            return
                        self._ready.wait()
                    batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_BATCH))]
                results = _together(session, batch) or [self._alone(session, job) for job, _ in batch]
                assert self._loop is not None
                try:
                    self._loop.call_soon_threadsafe(_resolve, batch, results)
                except RuntimeError:  # the loop is closed: nobody is left to hear it
                    return
        finally:
            session.close()

    def _alone(self, session: Session, job: Callable[[Session], Any]) -> Any:
        try:
            return session.transact(job)
        except self.driver_error as error:
            self._failed()
            refused = Unavailable("the store did not take a write", why=type(error).__name__, fix="see the log")
            refused.__cause__ = error
            return refused
        except Exception as error:  # carried to the caller, who raises it
            return error


def _together(session: Session, batch: list[_Job]) -> list[Any] | None:
    """Run the batch in one transaction and return its results; None when a job failed and nothing is written."""
    try:
        return session.transact(lambda session: [job(session) for job, _ in batch])
    except Exception:  # whatever it was, running them one by one finds whose it is
        return None


def _resolve(batch: list[_Job], results: list[Any]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():  # cancelled; written all the same
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
