"""Tell the scheduler of this host at once that a queue has changed: a named pipe that everybody may write a byte to.

Where it cannot be made or heard (a shared folder of another host), the scheduler looks by itself every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_NAME = ".bell"


def ring(folder: Path) -> None:
    """Wake whoever listens on the queues in `folder`; nothing happens when nobody does."""
    with contextlib.suppress(OSError):  # nobody listens, or it rings already
        handle = os.open(folder / _NAME, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(handle, b"!")
        finally:
            os.close(handle)


@contextlib.contextmanager
def listening(folder: Path, event: asyncio.Event) -> Iterator[None]:
    """Set `event` at every ring."""
    loop = asyncio.get_running_loop()
    handle = -1
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(folder / _NAME, 0o600)
        handle = os.open(folder / _NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)

    def heard() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(handle, 65536)
        event.set()

    try:
        if handle >= 0:
            loop.add_reader(handle, heard)
        yield
    finally:
        if handle >= 0:
            loop.remove_reader(handle)
            os.close(handle)
