"""Which attempts run on this host, by queue: one link an attempt, so that counting them reads no records.

    <proc_dir>/<queue>/<dag>~<run id>~<attempt id> → the attempt's folder
    <proc_dir>/<queue>/<dag>~<run id>~@ → .        a run of that queue which a coordinator has

Whether one still lives says the lock in its folder (`store.records.Attempt.is_alive`). A link whose process is gone
stays until somebody has turned its run into failed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from secure_dagu.local import bell
from secure_dagu.run.model import DagRunRef
from secure_dagu.store.records import Attempt

_REMOTE = "~@"


class RunningRun(Struct, frozen=True):
    """One attempt that runs, or whose process was killed."""

    mark: Path
    queue: str
    run: DagRunRef

    @property
    def attempt(self) -> Attempt:
        """Return its attempt; the folder may be gone."""
        with contextlib.suppress(OSError):
            return Attempt(Path(os.readlink(self.mark)))
        return Attempt(self.mark)

    @property
    def is_remote(self) -> bool:
        """Tell whether a coordinator has it; then whoever handed it over removes the mark at its end."""
        return self.mark.name.endswith(_REMOTE)

    def is_alive(self) -> bool:
        """Tell whether a process holds it, or a coordinator has it."""
        return self.is_remote or self.attempt.is_alive()

    def remove(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            os.unlink(self.mark)


class RunningRuns:
    """All attempts that run on this host."""

    def __init__(self, folder: Path, *, queues: Path) -> None:
        """Take `<data>/proc`, made with the first run, and the folder of queues, whose bell rings at an end."""
        self._folder = folder
        self._queues = queues

    def mark(self, queue: str, run: DagRunRef, attempt: Attempt) -> RunningRun:
        """Note that an attempt runs. The caller holds it already."""
        return self._mark(queue, run, f"~{attempt.attempt_id}", attempt.path)

    def mark_remote(self, queue: str, run: DagRunRef) -> RunningRun:
        """Note that a coordinator is about to get a run."""
        return self._mark(queue, run, _REMOTE, Path())

    def _mark(self, queue: str, run: DagRunRef, end: str, target: Path) -> RunningRun:
        folder = self._folder / queue
        found = RunningRun(folder / f"{run.name}~{run.run_id}{end}", queue, run)
        with contextlib.suppress(FileExistsError):
            try:
                os.symlink(target, found.mark)
            except FileNotFoundError:
                folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                os.symlink(target, found.mark)
        return found

    def unmark(self, queue: str, run: DagRunRef, attempt: Attempt) -> None:
        """Note that an attempt has ended: its queue has a place more."""
        RunningRun(self._folder / queue / f"{run.name}~{run.run_id}~{attempt.attempt_id}", queue, run).remove()
        bell.ring(self._queues)

    def queues(self) -> list[str]:
        """Return the queues that have marks."""
        return sorted(_listed(self._folder))

    def of(self, queue: str) -> Iterator[RunningRun]:
        """Yield the marks of a queue, those of killed processes too."""
        for name in sorted(_listed(self._folder / queue)):
            parts = name.split("~")
            if len(parts) == 3:
                yield RunningRun(self._folder / queue / name, queue, DagRunRef(parts[0], parts[1]))

    def living(self, queue: str) -> list[RunningRun]:
        """Return those of a queue that run now."""
        return [one for one in self.of(queue) if one.is_alive()]

    def everywhere(self) -> Iterator[RunningRun]:
        """Yield the marks of all queues."""
        for queue in self.queues():
            yield from self.of(queue)


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
