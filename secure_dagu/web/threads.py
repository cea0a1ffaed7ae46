"""Run what blocks on a thread, so that the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_PIECES = 256


async def on_thread(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises."""
    return await asyncio.to_thread(work)


async def stepwise(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what an iterator that blocks yields, many pieces at once."""

    def some() -> bytes:
        taken = []
        for piece in pieces:
            taken.append(piece)
            if len(taken) == _PIECES:
                break
        return b"".join(taken)

    while piece := await on_thread(some):
        yield piece
