"""Whether the data directory can be written, looked at in the background: no answer of a probe waits for a disk."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from secure_dagu.assembly.looking import looking
from secure_dagu.errors import Unavailable

LOOK_EVERY_S: Final = 2.0
SILENT_S: Final = 20.0
"""A disk that has not answered for so long, as one of a network may, counts as one that cannot be written."""
_PROBE_BYTES: Final = 4096


class Disk:
    """The disk of one folder."""

    def __init__(self, folder: Path) -> None:
        """Look for the first time; blocks."""
        self._folder = folder
        self._problem = _problem(folder)
        self._looked_at = time.monotonic()

    def objection(self) -> str:
        """Return why it cannot be written; empty: it can."""
        if not self._problem and time.monotonic() - self._looked_at > SILENT_S:
            return f"the data directory has not answered for {SILENT_S:.0f} s"
        return self._problem

    def objections(self) -> list[Unavailable]:
        """Return the same as a health port wants it."""
        why = self.objection()
        return [Unavailable(why, fix="look at the disk of paths.data_dir")] if why else []

    def watched(self) -> AbstractAsyncContextManager[None]:
        """Look for the time of the context."""
        return looking(self._look, every_s=LOOK_EVERY_S, name="look at the disk")

    async def _look(self) -> None:
        self._problem = await asyncio.to_thread(_problem, self._folder)
        self._looked_at = time.monotonic()


def _problem(folder: Path) -> str:
    probe = folder / f".health-{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            with probe.open("xb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())  # a full disk may say so only now
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return f"the data directory cannot be written: {error.strerror}"
    return ""
