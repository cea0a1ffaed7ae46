"""Ports of 127.0.0.1 for servers that a test starts later, in another process, perhaps more than once.

A port that the kernel picked and that was given back may be anybody's next: an outgoing connection's, another test's.
So ours lie outside of what the kernel picks from, and all test processes of a host take turns.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

_KERNEL_PICKS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 12_000
"""Browsers refuse to open some lower ones."""
_FEWEST = 4_000
"""Less would come round while somebody still uses them."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on; thousands of others come before it is returned again."""
    ports = _ours()
    path = Path(tempfile.gettempdir(), f"secure-dagu-test-port-{os.geteuid()}")
    turn = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        last = int(os.pread(turn, 16, 0) or random.choice(ports))
        for step in range(1, len(ports) + 1):
            port = ports[(last - ports.start + step) % len(ports)]
            if _is_free(port):
                os.pwrite(turn, f"{port:<16}".encode(), 0)
                return port
    finally:
        os.close(turn)
    raise AssertionError(f"every port of {ports} is in use")


def _ours() -> range:
    lowest, highest = map(int, _KERNEL_PICKS.read_text().split())
    outside = max(range(_FIRST, lowest), range(highest + 1, 1 << 16), key=len)
    return (
        outside if len(outside) >= _FEWEST else range(_FIRST, 1 << 16)
    )  # all are the kernel's: nothing better is left


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
