"""Look at something again and again beside what a process does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable


@contextlib.asynccontextmanager
async def looking(
    look: Callable[[], Awaitable[None]], *, every_s: float, name: str, first_after_s: float | None = None
) -> AsyncIterator[None]:
    """Call `look` for the time of the context, with a pause of `every_s` before each call.

    Args:
        look: raises only what should end the process.
        every_s: the pause between two looks.
        name: of the task.
        first_after_s: another pause before the first look; None: the same.
    """

    async def look_forever() -> None:
        await asyncio.sleep(every_s if first_after_s is None else first_after_s)
        while True:
            await look()
            await asyncio.sleep(every_s)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(look_forever(), name=name)
        try:
            yield
        finally:
            task.cancel()
