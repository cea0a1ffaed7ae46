"""What a scheduler has decided so far, on disk: `<data>/scheduler/state.json`.

Written whole and renamed, so a kill leaves the old one or the new one. Either is enough: what is decided again leads to
the same run, for its id is made of the DAG and the time.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct, field

from secure_dagu.store import whole

log = structlog.get_logger()

MAX_BYTES = 16 * 2**20


class Restart(Struct, kw_only=True, rename="camel"):
    """A restart that has begun: its DAG is stopped, and must be started again whoever does it."""

    at: datetime
    stopped: str = ""
    """Id of the run that is stopped; its parameters are used again."""


class State(Struct, kw_only=True, rename="camel"):
    """Everything. Times are aware."""

    last_tick: datetime | None = None
    """When a scheduler last looked: stops and restarts up to here are done."""
    dags: dict[str, datetime] = field(default_factory=dict)
    """By file: up to when every start of it was decided."""
    firing: dict[str, list[datetime]] = field(default_factory=dict)
    """By file: starts that were begun under the id of a scheduled run, and perhaps not completed."""
    restarts: dict[str, Restart] = field(default_factory=dict)


class StateFile:
    """The file. Methods block on the disk for a moment."""

    def __init__(self, path: Path) -> None:
        """Take where it is; made with the first write."""
        self.path = path
        self._written = b""

    def read(self) -> State:
        """Return what is on disk; nothing where there is none, or none that can be read.

        Raises:
            OSError: the disk refuses.
        """
        try:
            with self.path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=State)
        except FileNotFoundError:
            return State()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, aside)
            log.warning("scheduler.state_damaged", why=str(error), kept_as=str(aside), effect="nothing is caught up on")
            return State()

    @staticmethod
    def encode(state: State) -> bytes:
        """Return a state as it is written."""
        return msgspec.json.encode(state)

    def write(self, data: bytes) -> None:
        """Put an encoded state in the place of the one before; it is on disk when this returns.

        Raises:
            OSError: the disk refuses.
        """
        if data == self._written:
            return
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        whole.replace(self.path, data)
        self._written = data
