"""Send records to a syslog server as they are written: a copy that whoever changes the log cannot reach.

TCP with octet counting, or a local socket such as /dev/log; for TLS, name a local relay (rsyslog, syslog-ng, stunnel).
Sending never holds up the log: while the server is away lines wait in a bounded queue, and what does not fit is
counted; the numbers in the records show which ones are missing there.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from secure_dagu.audit import export

MAX_QUEUED = 50_000
TIMEOUT_S = 5.0
RETRY_S = 5.0


class Target(Struct, frozen=True):
    """Where a server listens: a path of a local socket, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0


class _Line(Protocol):
    def send(self, message: bytes) -> None: ...
    def close(self) -> None: ...


class Shipper:
    """Take lines on any thread, send them on its own. Use `shipping`."""

    def __init__(self, target: Target, lost: Callable[[int], None]) -> None:
        self._target = target
        self._report_lost = lost
        self._queue: deque[bytes] = deque()
        self._more = threading.Condition(threading.Lock())
        self._stopping = False

    def offer(self, lines: Sequence[bytes]) -> None:
        """Queue lines; what does not fit is counted as lost."""
        with self._more:
            room = MAX_QUEUED - len(self._queue)
            self._queue.extend(lines[:room])
            self._more.notify()
        if len(lines) > room:
            self._report_lost(len(lines) - room)

    def run(self) -> None:
        """Send until `stop`; then what is queued, if the server is there."""
        line: _Line | None = None
        while True:
            with self._more:
                while not self._queue and not self._stopping:
                    self._more.wait()
                if not self._queue:
                    break
                first = self._queue[0]
            try:
                line = line or _connect(self._target)
                line.send(export.rfc5424(first))
                self._queue.popleft()
            except OSError:
                if line is not None:
                    line.close()
                    line = None
                with self._more:
                    if self._stopping or self._more.wait_for(lambda: self._stopping, RETRY_S):
                        break
        if line is not None:
            line.close()
        if self._queue:
            self._report_lost(len(self._queue))

    def stop(self) -> None:
        """Ask the thread to end."""
        with self._more:
            self._stopping = True
            self._more.notify()


@contextlib.contextmanager
def shipping(target: Target | None, lost: Callable[[int], None]) -> Iterator[Callable[[Sequence[bytes]], None]]:
    """Return what takes lines; None as the target: nothing is sent.

    Args:
        target: where to send.
        lost: told on any thread how many records were not sent.
    """
    if target is None:
        yield lambda _lines: None
        return
    shipper = Shipper(target, lost)
    thread = threading.Thread(target=shipper.run, name="audit syslog", daemon=True)
    thread.start()
    try:
        yield shipper.offer
    finally:
        shipper.stop()
        thread.join(2 * TIMEOUT_S)


class _Stream:
    def __init__(self, of: socket.socket) -> None:
        self._socket = of

    def send(self, message: bytes) -> None:
        # A server that went away is only noticed by reading; without this a record would be sent into nothing.
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            if not self._socket.recv(256):
                raise ConnectionResetError
        self._socket.settimeout(TIMEOUT_S)
        self._socket.sendall(export.framed(message))

    def close(self) -> None:
        self._socket.close()


class _Datagrams:
    def __init__(self, of: socket.socket) -> None:
        self._socket = of

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def close(self) -> None:
        self._socket.close()


def _connect(target: Target) -> _Line:
    if not target.path:
        return _Stream(socket.create_connection((target.host, target.port), TIMEOUT_S))
    local = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        local.settimeout(TIMEOUT_S)
        local.connect(target.path)
    except OSError:
        local.close()
        raise
    return _Datagrams(local)
