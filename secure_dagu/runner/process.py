"""The only door to child processes: a clean environment, a group of its own, limits, and an end that reaches all.

Children are started with `subprocess.Popen` and `start_new_session`, which takes the vfork path (0.5 ms instead of a
copy of a process with gRPC threads in it). Their end is a pidfd and their output a pipe, both watched by the event
loop: no thread a child.

The end of a process is not the end of what it started. A step's processes carry a marker in their environment, so that
those which left the group (setsid, double fork) are found in /proc and stopped too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARKER = "_DAGU_INTERNAL_RUN"
"""Variable that names the run and step in every process of a step; it never comes from a host environment."""
READ_BYTES = 256 * 1024
STRAGGLERS_S = 0.2
"""How long output is still read after the process has ended: a detached grandchild may hold the pipe for ever."""
RESIGNAL_S = 5.0
"""A process that ignores its stop signal is asked again (workflow language, section 3.12)."""

Sink = Callable[[bytes], None]


class CannotStart(Exception):
    """The program is missing, not executable, or its working directory is unusable."""


@dataclass(slots=True)
class Stopping:
    """How a child is stopped: by `ask`, again every 5 s, and by SIGKILL after `grace_s`."""

    ask: signal.Signals = signal.SIGTERM
    grace_s: float = 5.0


@dataclass(slots=True)
class Child:
    """One running process and everything that it started."""

    process: subprocess.Popen[bytes]
    marker: str
    _streams: list[int] = field(default_factory=list)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: asyncio.Event = field(default_factory=asyncio.Event)

    def signal_all(self, number: signal.Signals) -> None:
        """Signal the process group and every process that carries the marker."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
        signal_marked(self.marker, number, besides=self.process.pid)


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
        stop: when set, the process and everything that it started are stopped.

    Raises:
        CannotStart: it could not be started; the text does not repeat the arguments.
    """
    loop = asyncio.get_running_loop()
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC) if stderr is not None else (-1, out_write)
    try:
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - vfork returns at once; running it is our purpose
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out_write,
                stderr=err_write,
                env={**env, MARKER: marker},
                cwd=cwd,
                start_new_session=True,
                restore_signals=True,
            )
        finally:
            os.close(out_write)
            if stderr is not None:
                os.close(err_write)
    except OSError as error:
        os.close(out_read)
        if stderr is not None:
            os.close(err_read)
        raise CannotStart(_reason(error, argv[0])) from None
    except ValueError as error:  # a NUL byte in an argument or a variable
        os.close(out_read)
        if stderr is not None:
            os.close(err_read)
        raise CannotStart(f"{Path(argv[0]).name}: {error}") from None
    child = Child(process, marker)
    _watch_end(loop, child)
    _watch_stream(loop, child, out_read, stdout)
    if stderr is not None:
        _watch_stream(loop, child, err_read, stderr)
    try:
        await _until_end(child, stop, stopping)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STRAGGLERS_S):
                await child._closed.wait()
    except BaseException:
        child.signal_all(signal.SIGKILL)
        raise
    finally:
        for fd in child._streams:
            loop.remove_reader(fd)
            os.close(fd)
        if process.returncode is None:  # cancelled: killed above, so this does not wait long
            process.wait()
    return process.returncode


async def _until_end(child: Child, stop: asyncio.Event, stopping: Stopping) -> None:
    """Wait for the end; stop the process when asked to, for as long as it takes but no longer."""
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(_stop_when_asked(child, stop, stopping))
        await child._ended.wait()
        if stop.is_set():
            # The shell is gone; what it left behind goes with it.
            child.signal_all(signal.SIGKILL)
        asked.cancel()


async def _stop_when_asked(child: Child, stop: asyncio.Event, stopping: Stopping) -> None:
    loop = asyncio.get_running_loop()
    await stop.wait()
    until = loop.time() + stopping.grace_s
    while (left := until - loop.time()) > 0:
        child.signal_all(stopping.ask)
        await asyncio.sleep(min(left, RESIGNAL_S))
    child.signal_all(signal.SIGKILL)


def _watch_end(loop: asyncio.AbstractEventLoop, child: Child) -> None:
    pidfd = os.pidfd_open(child.process.pid)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        child.process.wait()  # it has ended, so this only collects it
        child._ended.set()

    loop.add_reader(pidfd, ended)


def _watch_stream(loop: asyncio.AbstractEventLoop, child: Child, fd: int, sink: Sink) -> None:
    os.set_blocking(fd, False)
    child._streams.append(fd)

    def readable() -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            sink(data)
            return
        loop.remove_reader(fd)
        os.close(fd)
        child._streams.remove(fd)
        if not child._streams:
            child._closed.set()

    loop.add_reader(fd, readable)


def signal_marked(marker: str, number: signal.Signals, *, besides: int = 0) -> int:
    """Signal every process whose marker begins with `marker`; return how many there were.

    Processes of other users cannot be read and are passed over. `besides` is a process that was signalled already.
    """
    wanted = f"{MARKER}={marker}".encode()
    found = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == besides:
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as file:
                environment = file.read(READ_BYTES)
        except OSError:
            continue
        if environment.startswith(wanted) or b"\0" + wanted in environment:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(entry.name), number)
                found += 1
    return found


def _reason(error: OSError, program: str) -> str:
    name = error.filename if isinstance(error.filename, str) else program
    return f"{Path(name).name}: {error.strerror}"


def error_text(code: int) -> str:
    """Return how a step's error names an exit: `exit status 3`, `signal: SIGKILL`."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal: {signal.Signals(-code).name}"
    except ValueError:
        return f"signal: {-code}"


def signal_named(name: str) -> signal.Signals:
    """Return the signal of a name such as `SIGINT` or `INT`; SIGTERM for an unknown or empty one."""
    word = name.upper()
    return getattr(signal.Signals, word if word.startswith("SIG") else f"SIG{word}", signal.SIGTERM)
