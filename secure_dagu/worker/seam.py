"""What a worker needs from others, as Protocols: `runner/` provides the run engine, `assembly` injects it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, Task
from secure_dagu.run.model import AttemptId
from secure_dagu.worker.timings import Timings

if TYPE_CHECKING:
    from secure_dagu.runner.api import ChildRuns, RunFolders, RunObserver, RunRequest


class Execute(Protocol):
    """Execute one attempt to its end."""

    async def __call__(
        self, request: RunRequest, observer: RunObserver, children: ChildRuns, *, stop: asyncio.Event
    ) -> object:
        """Run all steps; when `stop` is set, stop them, end as aborted and return normally.

        The observer has got the final document when this returns. Cancelling this call kills every process.
        """
        ...


class Workspaces(Protocol):
    """Make the private folders of one attempt."""

    def __call__(self, task: Task, attempt_id: AttemptId) -> AbstractAsyncContextManager[RunFolders]:
        """Return a context that makes the folders (mode 0700) on entry and removes what it made on exit."""
        ...


class Tools(Struct, frozen=True, kw_only=True):
    """What every job of a worker uses."""

    caller: Caller
    execute: Execute
    workspaces: Workspaces
    anyone: Coordinator
    timings: Timings
    host_env: Mapping[str, str]
    default_shell: str
    public_url: str
