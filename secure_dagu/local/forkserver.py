"""The fork server: a small process with everything imported that a run needs, which forks children that execute runs.

A web server or scheduler starts it (`local.forks`), because a program that starts anew for each run takes a quarter of
a second and one that holds gRPC and a web server's threads cannot fork. It has one thread, no network and no secrets of
the configuration: its environment was filtered, and where things are it reads from standard input. Each child has a
session of its own, so that runs go on whoever dies: the fork server ends with its parent, its children do not.

Spoken over an inherited socket pair that nobody else can reach, one JSON message a packet:

    → {"id": 1, "dag": …, "run": …, "attempt": <folder>, "item": <file>}   with the lock of the attempt
    ← {"id": 1, "pid": 4711} or {"id": 1, "error": "…"}, and at its end {"ended": 1}
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.dag.load import load_definition
from secure_dagu.errors import SecureDaguError
from secure_dagu.local.places import Places
from secure_dagu.local.profiles import Profiles
from secure_dagu.local.queued import enqueue, retry_of
from secure_dagu.local.runs import LocalRuns, Retry, Start, start_of
from secure_dagu.local.sent_children import Remote
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.run.snapshot import time_text
from secure_dagu.security.shield import shield
from secure_dagu.store.records import Attempt, Record

MAX_MESSAGE = 64 * 1024
MAX_CHILDREN = 2000
RUNS_A_CHILD = 100
"""After so many runs a child ends: what little it may have lost of its memory goes with it."""
IDLE_S = 1.0
FOLDERS = (
    "dags_dir", "data_dir", "log_dir", "artifact_dir", "work_dir", "dag_runs_dir", "queues", "proc_dir", "suspend_dir",
    "state_dir",
)  # fmt: skip
WARM_RUNS = 10
_WARM = "steps: [{id: a, run: 'true'}]"


RemoteOf = Callable[[Mapping[str, Any]], Remote]


class Order(Struct, frozen=True):
    """One run to execute."""

    run: DagRunRef
    attempt: Attempt
    item: str
    root: DagRunRef | None
    """Set: a step of this child run of it is run again."""
    workers: bool = False
    """Sub-DAGs that select workers go to them."""


class Setup(Struct, frozen=True):
    """What the parent says once."""

    places: Places
    profiles: Path
    remote: Remote | None = None
    """The way to workers for sub-DAGs that select some."""


class _Child(Struct, eq=False):
    """One forked process. It executes runs of one DAG, one after the other: a fork costs more than such a run."""

    pid: int
    link: socket.socket
    dag: str
    number: int
    """The order that it works on; 0 while it is idle."""
    runs: int = 1
    idle_since: float = 0.0


class ForkServer:
    """Have each order executed by a child until the parent is gone."""

    def __init__(self, link: socket.socket, setup: Setup) -> None:
        """Take the way to the parent and what runs need to know."""
        self._link = link
        self._setup = setup
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()

    def serve(self) -> None:
        """Serve; returns when the parent is gone."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: self._reap())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the parent's to act on
        self._poll.register(self._link, select.POLLIN)
        while True:
            for handle, _ in self._poll.poll(IDLE_S * 1000):
                if handle != self._link.fileno():
                    self._heard(handle)
                    continue
                message, handles = _received(self._link)
                if not message:
                    return
                self._take(message, handles)
            self._let_go()

    def _take(self, message: bytes, handles: list[int]) -> None:
        number = 0
        try:
            found = json.loads(message)
            number = int(found["id"])
            order = _order(found)
            if len(handles) != 1:
                self._say({"id": number, "error": "the lock of the attempt is missing"})
            else:
                self._say({"id": number, "pid": self._given(number, order, message, handles[0])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._say({"id": number, "error": f"{type(error).__name__}: {error}"[:1000]})
        finally:
            for handle in handles:
                os.close(handle)

    def _given(self, number: int, order: Order, message: bytes, handle: int) -> int:
        """Give an order to an idle child of the same DAG, else to a new one; return its process id."""
        for child in self._children.values():
            if not child.number and child.dag == order.run.name:
                child.number = number
                child.runs += 1
                socket.send_fds(child.link, [message], [handle])
                return child.pid
        if len(self._children) >= MAX_CHILDREN:
            raise ValueError(f"more than {MAX_CHILDREN} runs")
        return self._fork(number, order, handle)

    def _fork(self, number: int, order: Order, handle: int) -> int:
        """Start a child, which keeps the descriptor that holds the attempt."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = os.fork()
            if pid == 0:
                for other in (self._link, ours, *(child.link for child in self._children.values())):
                    other.close()
                _child(theirs, self._setup, order, handle)
            self._children[pid] = _Child(pid, ours, order.run.name, number)
            self._poll.register(ours, select.POLLIN)
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return pid

    def _heard(self, handle: int) -> None:
        """Note that a child has done its run; one that has ended is reaped."""
        child = next((one for one in self._children.values() if one.link.fileno() == handle), None)
        if child is not None and _received(child.link)[0]:
            self._say({"ended": child.number})
            child.number, child.idle_since = 0, time.monotonic()
            if child.runs >= RUNS_A_CHILD:
                self._end(child)
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(handle)

    def _let_go(self) -> None:
        """End children that have been idle for long."""
        now = time.monotonic()
        for child in tuple(self._children.values()):
            if not child.number and now - child.idle_since >= IDLE_S:
                self._end(child)

    def _end(self, child: _Child) -> None:
        """Let an idle child end: it reads the end of its link."""
        child.number = -1
        if child.link.fileno() >= 0:
            with contextlib.suppress(KeyError):
                self._poll.unregister(child.link)
            child.link.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                if child.number > 0:
                    self._say({"ended": child.number})
                self._end(child)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, or too busy to hear: it looks by itself
            self._link.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _order(found: dict[str, Any]) -> Order:
    return Order(
        DagRunRef(found["dag"], found["run"]),
        Attempt(Path(str(found["attempt"]))),
        str(found["item"]),
        DagRunRef(*found["root"]) if found["root"] else None,
        bool(found["workers"]),
    )


def _received(link: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next message and the descriptors that came with it; an empty one when the other end is gone."""
    try:
        message, ancillary, flags, _ = link.recvmsg(MAX_MESSAGE, socket.CMSG_LEN(4 * 4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return b"", []
    handles = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            handles.frombytes(data[: len(data) - len(data) % handles.itemsize])
    return (b"{}" if flags & socket.MSG_TRUNC else message), list(handles)


def _child(link: socket.socket, setup: Setup, order: Order, handle: int) -> None:
    """Execute runs until there is nothing more to do; never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        while True:
            queue = str(order.attempt.status().get("procGroup") or order.run.name)
            asyncio.run(_run(setup, order))
            os.close(handle)
            setup.places.running.unmark(order.root.name if order.root else queue, order.run, order.attempt)
            link.send(b"done", socket.MSG_NOSIGNAL)
            message, handles = _received(link)
            if not message:
                break
            order, handle = _order(json.loads(message)), handles[0]
        code = 0
    except OSError:
        code = 0  # the fork server is gone
    except BaseException:  # the process edge: a forked child must not go on in its parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


async def _run(setup: Setup, order: Order) -> None:
    """Claim the attempt for good, then execute it: from here on it is running on record, and its item is gone."""
    attempt, places = order.attempt, setup.places
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    document = attempt.status()
    waited = document.get("status") in (RunStatus.QUEUED, RunStatus.NOT_STARTED)
    if waited:
        attempt.write(json.dumps({**document, **_claimed()}, ensure_ascii=False))
    if order.item:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(order.item)
    if not waited and order.root is None:
        return
    try:
        snapshot = attempt.definition()
        start = _with_profile(start_of(order.run, snapshot), setup.profiles)
    except SecureDaguError as error:
        failed = {**attempt.status(), "status": int(RunStatus.FAILED), "error": str(error), "finishedAt": _now()}
        attempt.write(json.dumps(failed, ensure_ascii=False), final=True)
        return
    runs = LocalRuns(
        places, echo=lambda _level, _message, _fields: None, remote=setup.remote if order.workers else None
    )
    record = Record(order.run, attempt.path.parent)
    if order.root is None:
        retry = retry_of(attempt, snapshot)
        await runs.run(record, start, stop=stop, retry=retry, attempt=attempt, is_held=True)
        return
    root = Record(order.root, record.path.parent.parent)
    retry = Retry(
        previous=attempt.document(), step=str(snapshot["retryStep"]), downstream=bool(snapshot["retryDownstream"])
    )
    await runs.retry_child(root, record, start, retry, stop=stop, is_held=True)


def _with_profile(start: Start, profiles: Path) -> Start:
    return start.with_profile(*Profiles(profiles).values(start.profile)) if start.profile else start


def _claimed() -> dict[str, Any]:
    return {"status": int(RunStatus.RUNNING), "startedAt": _now()}


def _now() -> str:
    return time_text(datetime.now(UTC))


def _setup(data: bytes, remote_of: RemoteOf | None) -> Setup:
    """Return what the parent wrote (`local.forks.setup_text`)."""
    found = json.loads(data)
    folders: dict[str, Any] = {name: Path(value) for name, value in found["folders"].items()}
    return Setup(
        Places(
            **folders,
            host_env=found["host_env"],
            default_shell=found["default_shell"],
            public_url=found["public_url"],
            beat_every_s=float(found["beat_every_s"]),
            silent_s=float(found["silent_s"]),
            process_env=dict(found["process_env"]),
        ),
        Path(found["profiles"]),
        remote_of(found["remote"]) if remote_of is not None and found["remote"] else None,
    )


def _warm_up(setup: Setup) -> None:
    """Execute runs that leave nothing behind, so that children find everything imported and the interpreter warm."""
    import secure_dagu.runner.executors.dag_run  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="secure-dagu-") as folder:
        home = Path(folder)
        folders: dict[str, Any] = {name: home / name for name in FOLDERS}
        places = Places(**folders, host_env=setup.places.host_env)
        for number in range(WARM_RUNS):
            run = DagRunRef("warm-up", str(number))
            start = Start(run=run, loaded=load_definition(_WARM, name=run.name), queue=run.name)
            record = enqueue(places, start)
            attempt = record.attempts()[-1]
            with attempt.alive():
                asyncio.run(_run(Setup(places, home), Order(run, attempt, "", None)))


def main(remote_of: RemoteOf | None = None) -> None:
    """Serve the parent at the other end of the descriptor that is named on the command line.

    `remote_of`: makes the way to workers of what the parent told about it.
    """
    shield()  # the runs that it forks inherit that
    link = socket.socket(fileno=int(sys.argv[1]))
    link.set_inheritable(False)
    setup = _setup(sys.stdin.buffer.read(), remote_of)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _warm_up(setup)
    gc.collect()
    gc.freeze()  # children share these pages as long as nobody writes to them
    ForkServer(link, setup).serve()


if __name__ == "__main__":
    main()
