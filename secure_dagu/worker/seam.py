"""What a worker needs from the run engine, as Protocols: `runner/` provides it, `assembly` injects it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from secure_dagu.dispatch.model import Task
from secure_dagu.run.model import AttemptId
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
