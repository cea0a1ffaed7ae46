"""End remote work at once when its step is stopped or out of time (workflow language, section 4.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from secure_dagu.run.machine import Result
from secure_dagu.runner.context import Done


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Done]) -> Done:
    """Return how `work` ended; when `stop` is set it is cancelled, which closes what it has open, and ends aborted."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_outcome(work), name="remote work")
        watch = group.create_task(_cancel_when(stop, task), name="stop remote work")
        await asyncio.wait({task})
        watch.cancel()
    if task.cancelled():
        return Done(result=Result.ABORTED)
    outcome = task.result()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _outcome(work: Coroutine[Any, Any, Done]) -> Done | Exception:
    """Keep an error out of the task group, which would wrap it."""
    try:
        return await work
    except Exception as error:
        return error


async def _cancel_when(stop: asyncio.Event, task: asyncio.Task[Any]) -> None:
    await stop.wait()
    task.cancel()
