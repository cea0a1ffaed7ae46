"""Blocking work of a step, in a thread that is interrupted when the step is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T], interrupt: Callable[[], object]) -> T:
    """Run blocking work in a thread; when cancelled, call `interrupt` and wait until the thread has ended.

    `interrupt` makes `work` return or raise soon, and may be called from another thread.
    """
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        interrupt()
        # A second cancel must not leave the thread behind either: the loop's executor is joined at its end anyway.
        await asyncio.wait({running})
        running.exception()  # looked at, so that nobody complains about it
        raise
