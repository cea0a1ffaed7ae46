"""Progress of a transfer: a bar on a terminal, one plain line at the end elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


class Progress:
    """Count bytes that pass through `count` and show how far they are."""

    def __init__(self, what: str, *, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._bar: rich.progress.Progress | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            # rich is only worth its memory and start-up time where somebody watches.
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is None:
            took = time.monotonic() - self._began
            print(f"{self._what}: {size(self._done)} in {took:.1f}s", file=sys.stderr, flush=True)

    async def count(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass pieces on and count them."""
        async for piece in pieces:
            yield piece
            self._done += len(piece)
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)


def size(count: int) -> str:
    """Return a number of bytes for people: `512 B`, `1.5 MiB`."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
