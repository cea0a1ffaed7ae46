"""The fork server's other end: start it, hand it runs, hear of their ends, start it again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from secure_dagu.errors import Unavailable
from secure_dagu.local.forkserver import FOLDERS, MAX_MESSAGE
from secure_dagu.local.places import Places
from secure_dagu.run.model import DagRunRef
from secure_dagu.runner import process
from secure_dagu.store.records import Attempt

log = structlog.get_logger()

ANSWER_S = 10.0
"""How long a fork may take; longer means that the host is out of memory or of processes."""
AT_ONCE = 32
"""Orders that wait for their answer: so many always fit into the socket."""


def setup_text(places: Places, *, profiles: Path, remote: Mapping[str, Any] | None) -> bytes:
    """Return what the fork server reads at its start. The base configuration comes with each run."""
    told = {
        "folders": {name: str(getattr(places, name)) for name in FOLDERS},
        "host_env": dict(places.host_env),
        "default_shell": places.default_shell,
        "public_url": places.public_url,
        "beat_every_s": places.beat_every_s,
        "silent_s": places.silent_s,
        "process_env": dict(places.process_env),
        "profiles": str(profiles),
        "remote": remote,
    }
    return json.dumps(told).encode()


class Forks:
    """Start runs in processes of their own. Make it with `forking`."""

    def __init__(
        self,
        places: Places,
        *,
        profiles: Path,
        ended: Callable[[], None],
        program: str,
        remote: Mapping[str, Any] | None,
        has_workers: Callable[[], bool],
    ) -> None:
        """Take where things are, who is told when a run has ended, how runs reach workers, and whether they may."""
        self._program = program
        self._remote = remote
        self._has_workers = has_workers
        self._places = places
        self._profiles = profiles
        self._ended = ended
        self._link: socket.socket | None = None
        self._server: Any = None
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._number = 0
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def start(
        self, run: DagRunRef, attempt: Attempt, handle: int, *, item: str = "", root: DagRunRef | None = None
    ) -> int:
        """Execute an attempt in a process of its own; return its process id.

        Args:
            handle: the descriptor that holds the attempt (`Attempt.hold`); the child keeps a copy. The caller's is
                closed here, whatever happens.
            item: the file in a queue that the child takes away once it runs on record.
            root: the attempt is a child run's of this one, which is retried; `handle` holds the root's.

        Raises:
            Unavailable: no process could be made.
        """
        try:
            async with self._slots:
                return await self._start(run, attempt, handle, item, root)
        finally:
            os.close(handle)

    async def _start(self, run: DagRunRef, attempt: Attempt, handle: int, item: str, root: DagRunRef | None) -> int:
        self._number += 1
        number = self._number
        order = {
            "id": number, "dag": run.name, "run": run.run_id, "attempt": str(attempt.path), "item": item,
            "root": [root.name, root.run_id] if root else [], "workers": self._has_workers(),
        }  # fmt: skip
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            socket.send_fds(self._linked(), [json.dumps(order).encode()], [handle])
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise _cannot("it did not answer") from None
        except OSError as error:
            self._lost()
            raise _cannot(os.strerror(error.errno or 0)) from error
        finally:
            self._answers.pop(number, None)

    def _linked(self) -> socket.socket:
        """Return the way to the fork server, which is started if there is none."""
        if self._link is not None:
            return self._link
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._server = process.start_companion(
                [sys.executable, "-P", "-m", self._program, str(theirs.fileno())],
                env=dict(self._places.process_env),
                stdin=setup_text(self._places, profiles=self._profiles, remote=self._remote),
                handles=[theirs.fileno()],
            )
        except process.CannotStart as error:
            ours.close()
            raise _cannot(str(error)) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self._link = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._heard)
        return ours

    def _heard(self) -> None:
        while self._link is not None:
            try:
                message = self._link.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                log.warning("forkserver.died", pid=self._server.pid)
                self._lost()
                return
            self._told(json.loads(message))

    def _told(self, message: Mapping[str, Any]) -> None:
        if "ended" in message:
            self._ended()
            return
        answer = self._answers.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if "pid" in message:
            answer.set_result(int(message["pid"]))
        else:
            answer.set_exception(_cannot(str(message.get("error", ""))))

    def _lost(self) -> None:
        """Let go of a fork server; the next order starts another one. Its children live on."""
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._link.close()
            self._link = None
            with contextlib.suppress(OSError):
                self._server.terminate()
            self._server.wait()
        for answer in tuple(self._answers.values()):
            if not answer.done():
                answer.set_exception(_cannot("it died"))
        self._ended()

    def close(self) -> None:
        """End the fork server; runs go on."""
        self._lost()

    def warm_up(self) -> None:
        """Start it before the first run asks for it."""
        self._linked()


@contextlib.asynccontextmanager
async def forking(
    places: Places,
    *,
    profiles: Path,
    ended: Callable[[], None],
    program: str = "secure_dagu.local.forkserver",
    remote: Mapping[str, Any] | None = None,
    has_workers: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Forks]:
    """Yield the way to start runs; leaving it ends the fork server and lets runs go on.

    Args:
        places, profiles: where things are.
        ended: told when a run has ended.
        program, remote: the module that is the fork server, and what it is told about the way to workers.
        has_workers: whether that way leads somewhere; asked for each run.
    """
    forks = Forks(places, profiles=profiles, ended=ended, program=program, remote=remote, has_workers=has_workers)
    try:
        yield forks
    finally:
        forks.close()


def _cannot(why: str) -> Unavailable:
    return Unavailable(
        "no process could be made for the run", why=f"the fork server: {why}", fix="look at the host's load and limits"
    )
