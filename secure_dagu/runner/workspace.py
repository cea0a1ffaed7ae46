"""Private folders of an attempt (first cut)."""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from secure_dagu.dispatch.model import Task
from secure_dagu.run.model import AttemptId
from secure_dagu.runner.api import RunFolders


class Workspaces:
    """Make the folders of attempts below one base."""

    def __init__(self, base: Path, worker_id: str) -> None:
        self._base = base

    @asynccontextmanager
    async def __call__(self, task: Task, attempt_id: AttemptId) -> AsyncIterator[RunFolders]:
        """Make the folders; remove them at the end."""
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        top = Path(tempfile.mkdtemp(prefix="run-", dir=self._base))
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%SZ")
        folders = RunFolders(
            logs=top / "logs", work=top / "work", artifacts=top / "artifacts" / f"dag-run_{stamp}_{task.run.run_id}"
        )
        for folder in (folders.logs, folders.work, folders.artifacts):
            folder.mkdir(mode=0o700, parents=True)
        try:
            yield folders
        finally:
            await asyncio.to_thread(shutil.rmtree, top, True)


async def unpack_bundle(archive: Path, target: Path) -> None:
    """Unpack."""

    def unpack() -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")

    await asyncio.to_thread(unpack)
