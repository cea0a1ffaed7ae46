"""The only door to child processes: a clean environment, a group of its own, limits, and an end that reaches all.

Children are started with `subprocess.Popen` and `start_new_session`, which takes the vfork path (0.5 ms instead of a
copy of a process with gRPC threads in it). Their end is a pidfd and their output a pipe, both watched by the event
loop: no thread a child.

The end of a process is not the end of what it started. Whoever belongs to a step is found in /proc by three signs: the
session that we made for it, a marker in the environment, and descent. A process that leaves the session (setsid) keeps
the marker; one that also clears its environment is still somebody's child. Only one that does both *and* is orphaned at
once (double fork) is not found; that takes a cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from msgspec import Struct, field

MARKER = "_DAGU_INTERNAL_RUN"
"""Variable that names the run and step in every process of a step; it never comes from a host environment."""
READ_BYTES = 256 * 1024
PROC_BYTES = 8 * 1024
"""What one read of a file below /proc asks for; nearly always all there is, and a large buffer costs more than it."""
STRAGGLERS_S = 0.2
"""How long output is still read after the process has ended: a detached grandchild may hold the pipe for ever."""
STRANGER_S = (1.0, 10.0)
"""How long a process must have been seen without a marker, and how long that is believed."""
RESIGNAL_S = 5.0
"""A process that ignores its stop signal is asked again (workflow language, section 3.12)."""
KILLED_S = 2.0
"""How long the kernel may take to end what was killed; longer means stuck in a system call, and nobody can help."""

MOST_FILES = 65536
FILES_A_CHILD = 8
"""Pipes, process descriptor, logs and copies of one running step."""
FILES_OF_OUR_OWN = 100
"""What else may be open: connections, run logs, the event loop."""

_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

Sink = Callable[[bytes], None]


class CannotStart(Exception):
    """The program is missing, not executable, or its working directory is unusable."""


class Stopping(Struct):
    """How a child is stopped: by `ask`, again every 5 s, and by SIGKILL after `grace_s`."""

    ask: signal.Signals = signal.SIGTERM
    grace_s: float = 5.0


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: Sink,
    stderr: Sink | None,
    marker: str,
    stop: asyncio.Event,
    stopping: Stopping,
) -> int:
    """Run a program to its end; return its exit code, negative for the signal that ended it.

    Args:
        env: all that it sees; nothing of this process's environment is added.
        stderr: None sends it where stdout goes, interleaved as written.
        stop: when set, the process and everything that it started are stopped, and gone when this returns.

    Raises:
        CannotStart: it could not be started; the text does not repeat the arguments.
        OSError: a sink could not take the output (a full disk); the process has ended all the same.
    """
    loop = asyncio.get_running_loop()
    if loop not in _slots:
        _slots[loop] = asyncio.Semaphore(_most_children())
    async with _slots[loop]:
        if stop.is_set():  # it was asked for while others had all slots
            return -stopping.ask
        return await _run(argv, env, cwd, (stdout, stderr), marker, stop, stopping)


async def _run(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    sinks: tuple[Sink, Sink | None],
    marker: str,
    stop: asyncio.Event,
    stopping: Stopping,
) -> int:
    stdout, stderr = sinks
    child, reads = _spawn(argv, env={**env, MARKER: marker}, cwd=cwd, merged=stderr is None)
    watched = _Child(asyncio.get_running_loop(), child, reads, (stdout, stderr or stdout))
    try:
        await _until_end(watched, marker, stop, stopping)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STRAGGLERS_S):
                await watched.closed.wait()
    except BaseException:  # cancelled: nothing may outlive us
        _Tree(child.pid, marker).signal(signal.SIGKILL)
        raise
    finally:
        watched.release()
    if watched.problem is not None:
        raise watched.problem
    assert child.returncode is not None, "it has ended"
    return child.returncode


def start_companion(
    argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, handles: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start a program of our own that works beside this process, in a session of its own.

    Args:
        env: all that it sees.
        stdin: what it reads there.
        handles: descriptors that it inherits, under the same numbers.

    Raises:
        CannotStart: it could not be started.
    """
    given = os.memfd_create("companion", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(given), "wb") as file:
            file.write(stdin)
        os.lseek(given, 0, os.SEEK_SET)
        return subprocess.Popen(  # noqa: S603 - our own program
            list(argv), stdin=given, stdout=subprocess.DEVNULL, env=env, pass_fds=handles, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise CannotStart(_reason(error, argv[0])) from None
    finally:
        os.close(given)


def _most_children() -> int:
    """Return how many processes may run at a time under our limit of open files.

    A thousand steps without dependencies all start at once; with the usual 1024 files most would fail to. The limit is
    not raised: steps would inherit it.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (min(soft, MOST_FILES) - FILES_OF_OUR_OWN) // FILES_A_CHILD) if soft > 0 else MOST_FILES


async def stop_marked(marker: str, stopping: Stopping) -> int:
    """Stop every process that still carries a marker beginning with `marker`; return how many there were."""
    tree = _Tree(0, marker)
    found = len(tree.find())
    if found:  # almost never: one look at /proc is the dearest part of a short run's end, two would be twice that
        await _stop_tree(tree, stopping)
    return found


def kill_marked(marker: str) -> None:
    """Kill every process that carries a marker beginning with `marker`, at once and without waiting."""
    _Tree(0, marker).signal(signal.SIGKILL)


def _spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, merged: bool
) -> tuple[subprocess.Popen[bytes], tuple[int, ...]]:
    """Start a program; return it and the reading ends of its output."""
    pipes: list[tuple[int, int]] = []
    try:
        for _ in range(1 if merged else 2):
            pipes.append(os.pipe2(os.O_CLOEXEC))
        child = subprocess.Popen(  # noqa: S603 - running the author's program is our purpose
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=pipes[0][1],
            stderr=pipes[-1][1],
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in an argument or a variable
        for read, _ in pipes:
            os.close(read)
        raise CannotStart(_reason(error, argv[0])) from None
    finally:
        for _, write in pipes:
            os.close(write)
    with contextlib.suppress(ProcessLookupError):  # it is that quick
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))  # a core file would hold the step's secrets
    return child, tuple(read for read, _ in pipes)


class _Child:
    """One process and its pipes, watched by the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: subprocess.Popen[bytes],
        reads: tuple[int, ...],
        sinks: tuple[Sink, Sink],
    ) -> None:
        self.process = process
        self.ended = asyncio.Event()
        self.closed = asyncio.Event()
        self.problem: OSError | None = None
        """The first thing that a sink could not do."""
        self._loop = loop
        self._streams = set(reads)
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:  # no descriptor left to watch it with
            os.killpg(process.pid, signal.SIGKILL)
            self._pidfd = -1
            self.release()
            raise
        loop.add_reader(self._pidfd, self._has_ended)
        for fd, sink in zip(reads, sinks, strict=False):
            os.set_blocking(fd, False)
            loop.add_reader(fd, self._readable, fd, sink)

    def release(self) -> None:
        """Watch no longer; collect the process, which has ended or was killed."""
        for fd in (*self._streams, *([self._pidfd] if self._pidfd >= 0 else [])):
            self._loop.remove_reader(fd)
            os.close(fd)
        self._streams.clear()
        self._pidfd = -1
        if self.process.returncode is None:
            self.process.wait()

    def _has_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self.process.wait()  # it has ended, so this only collects it
        self.ended.set()

    def _readable(self, fd: int, sink: Sink) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            if self.problem is None:
                try:
                    sink(data)
                except OSError as error:
                    self.problem = error  # go on reading: a writer with a full pipe would never end
            return
        self._loop.remove_reader(fd)
        os.close(fd)
        self._streams.discard(fd)
        if not self._streams:
            self.closed.set()


async def _until_end(child: _Child, marker: str, stop: asyncio.Event, stopping: Stopping) -> None:
    """Wait for the end of the process; when asked to stop, for the end of everything that it started too."""
    async with asyncio.TaskGroup() as group:
        stopper = group.create_task(_stop_when_asked(child.process.pid, marker, stop, stopping))
        await child.ended.wait()
        if not stop.is_set():
            stopper.cancel()


async def _stop_when_asked(pid: int, marker: str, stop: asyncio.Event, stopping: Stopping) -> None:
    await stop.wait()
    await _stop_tree(_Tree(pid, marker), stopping)


async def _stop_tree(tree: _Tree, stopping: Stopping) -> None:
    """Ask everybody in the tree to end, and in the end make them; return when they are gone."""
    loop = asyncio.get_running_loop()
    until = loop.time() + stopping.grace_s
    while tree.find():
        left = until - loop.time()
        if left < -KILLED_S:
            return
        tree.signal(stopping.ask if left > 0 else signal.SIGKILL)
        await _all_gone(tree.members, min(left, RESIGNAL_S) if left > 0 else KILLED_S)


async def _all_gone(pids: Mapping[int, int], timeout_s: float) -> None:
    """Wait until these processes have ended, at most so long."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    open_fds: set[int] = set()

    def ended(fd: int) -> None:
        loop.remove_reader(fd)
        os.close(fd)
        open_fds.discard(fd)
        if not open_fds:
            gone.set()

    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            open_fds.add(fd)
            loop.add_reader(fd, ended, fd)
    try:
        if open_fds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await gone.wait()
    finally:
        for fd in tuple(open_fds):
            loop.remove_reader(fd)
            os.close(fd)


class _Tree(Struct):
    """Everybody who belongs to a step: by session, by marker, by descent."""

    session: int
    """The session's id, which is its first process; 0: only the marker counts."""
    marker: str
    members: dict[int, int] = field(default_factory=dict)
    """Process id → its start time, which tells it from a later process of the same number."""

    def find(self) -> Mapping[int, int]:
        """Look again; members of a former look whose parents are gone stay members."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        likely = pids if self.session or self.members else _without_strangers(pids)
        signed = {pid for pid in likely if self._is_signed(pid)}
        if not signed and not self.members:
            return self.members  # nobody to descend from: the rule at the end of a run, and five times cheaper
        births: dict[int, int] = {}
        children: dict[int, list[int]] = {}
        for pid in pids:
            stat = _stat(pid)
            if stat is not None:
                parent, births[pid] = stat
                children.setdefault(parent, []).append(pid)
        found = {pid for pid in births if pid in signed or self.members.get(pid) == births[pid]}
        unseen = list(found)
        while unseen:
            for pid in children.get(unseen.pop(), ()):
                if pid not in found:
                    found.add(pid)
                    unseen.append(pid)
        found.discard(os.getpid())
        self.members = {pid: births[pid] for pid in found}
        return self.members

    def _is_signed(self, pid: int) -> bool:
        """Tell whether a process has the session or carries the marker. Cheap: 1 µs and 6 µs, against 35 of a stat."""
        try:
            if self.session and os.getsid(pid) == self.session:
                return True
        except ProcessLookupError:
            return False
        return f"\0{MARKER}={self.marker}".encode() in _environment(pid)

    def signal(self, number: signal.Signals) -> None:
        """Signal everybody once: the group as one, then those who left it, parents before children.

        The order matters: a shell whose command dies first ends with its status before its own signal arrives.
        """
        if not self.members:
            self.find()
        others = []
        for pid in sorted(self.members, key=self.members.__getitem__):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if not self.session or os.getpgid(pid) != self.session:
                    others.append(pid)
        if self.session and len(others) < len(self.members):  # its number is in use as long as somebody is in it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.session, number)
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


_strangers: dict[int, float] = {}
"""Process id → when it was seen without any marker."""


def _without_strangers(pids: list[int]) -> list[int]:
    """Return the processes that may carry a marker: looking at all of a host at the end of each run would cost a lot.

    A marker comes with the program, so who had none a second ago has none now. A second, because a process that was
    just made shows its parent's environment for a moment; and not for ever, because numbers come back.
    """
    now = time.monotonic()
    if len(_strangers) > 2 * len(pids) + 64:
        _strangers.clear()
    likely = []
    for pid in pids:
        seen = _strangers.get(pid)
        if seen is None or now - seen > STRANGER_S[1]:
            if f"\0{MARKER}=".encode() in _environment(pid):
                likely.append(pid)
            else:
                _strangers[pid] = now
        elif now - seen < STRANGER_S[0]:
            likely.append(pid)
    return likely


def _stat(pid: int) -> tuple[int, int] | None:
    """Return parent and start time of a living process, None when it is gone or a zombie."""
    # The name in brackets may hold anything, so count from the last bracket.
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split(None, 20)
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), int(fields[19])


def _environment(pid: int) -> bytes:
    """Return a process's environment with a leading NUL; of another user's process there is nothing to see."""
    return b"\0" + _read(f"/proc/{pid}/environ")


def _read(path: str) -> bytes:
    """Return a file below /proc, empty when it cannot be read, in bare calls: a file object costs twice as much."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        data = piece = os.read(fd, PROC_BYTES)
        while len(piece) == PROC_BYTES and len(data) < READ_BYTES:
            piece = os.read(fd, PROC_BYTES)
            data += piece
    except OSError:
        return b""
    finally:
        os.close(fd)
    return data


def _reason(error: OSError | ValueError, program: str) -> str:
    if not isinstance(error, OSError):
        return f"{Path(program).name}: {error}"
    name = error.filename if isinstance(error.filename, str) else program
    return f"{Path(name).name}: {error.strerror}"


def error_text(code: int) -> str:
    """Return how a step's error names an exit: `exit status 3`, `signal: killed (SIGKILL)`."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal: {(signal.strsignal(-code) or '').lower()} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal: {-code}"


def signal_named(name: str) -> signal.Signals:
    """Return the signal of a name such as `SIGINT` or `INT`; SIGTERM for an unknown or empty one."""
    word = name.upper()
    return getattr(signal.Signals, word if word.startswith("SIG") else f"SIG{word}", signal.SIGTERM)
