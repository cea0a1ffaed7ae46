"""Finish what must not stop half way: a write and what follows from it, even when the caller has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")
log = structlog.get_logger()


class Finisher:
    """Run pieces of work in a task group of ours. A caller that is cancelled leaves; the work goes on to its end."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, raise what it raises."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._group.create_task(_carry(work, outcome))
        return await outcome


async def _carry(work: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        result = await work
    except Exception as error:
        if outcome.done():
            log.warning("work.failed_unheard", error=type(error).__name__, why=str(error))
        else:
            outcome.set_exception(error)
    except BaseException:
        outcome.cancel()
        raise
    else:
        if not outcome.done():
            outcome.set_result(result)
