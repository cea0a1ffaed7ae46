"""A home directory with a scheduler over its real files, driven by a clock that the test holds."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from secure_dagu.assembly.places import places_of, workflows_of
from secure_dagu.dispatch.way import Way
from secure_dagu.local.catalogue import Catalogue
from secure_dagu.local.forks import Forks
from secure_dagu.local.launching import Launcher, Options
from secure_dagu.local.queue import Queues
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.scheduler.retries import Retries
from secure_dagu.scheduler.service import Options as ScheduleOptions
from secure_dagu.scheduler.service import Scheduler
from secure_dagu.scheduler.state import State, StateFile
from tests.scheduler.host import SOMEBODY, settings

NOW = datetime(2026, 6, 1, 12, 0, 1, tzinfo=UTC)
STEPS = "\nsteps:\n  - id: a\n    run: echo\n"


class Home:
    """Runs are put into queues, and nobody works on these: what is there is what was fired."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "dags").mkdir(parents=True)
        self.loaded = settings(home)
        self.places = places_of(self.loaded)
        self.state = StateFile(home / "data" / "scheduler" / "state.json")
        self.launcher_class = Launcher

    def dag(self, name: str, text: str) -> None:
        """Write a definition; its one step is added."""
        (self.home / "dags" / f"{name}.yaml").write_text(text + STEPS)

    def looked_at(self, at: datetime, *dags: str) -> None:
        """Say that a scheduler looked last at a time."""
        self.state.write(self.state.encode(State(last_tick=at, dags=dict.fromkeys(dags, at))))

    def with_scheduler(self, use: Callable[[Scheduler], Awaitable[object]], *, active: bool = True) -> None:
        """Let a new scheduler do something."""

        async def main() -> None:
            runs = Catalogue(self.places, way=Way(None, SOMEBODY), reader="test")
            try:
                await use(
                    Scheduler(
                        workflows=workflows_of(self.loaded), runs=runs, launching=self.launcher(), file=self.state,
                        options=ScheduleOptions(zone=lambda: UTC), is_active=lambda: active,
                    )
                )  # fmt: skip
            finally:
                runs.close()

        asyncio.run(main())

    def launcher(self) -> Launcher:
        """Return what puts runs into queues. It has no fork server, for nothing is executed here."""
        options = Options(profiles=self.home / "profiles")
        return self.launcher_class(self.places, cast(Forks, None), options, way=Way(None, SOMEBODY))

    def tick(self, at: datetime = NOW) -> None:
        """Let a new scheduler tick once."""
        self.with_scheduler(lambda scheduler: scheduler.tick(at))

    def retry_scan(self, at: datetime) -> datetime | None:
        """Let the scan for failed runs look once."""

        async def main() -> datetime | None:
            runs = Catalogue(self.places, way=Way(None, SOMEBODY), reader="test")
            try:
                return await Retries(runs, self.launcher(), window=timedelta(days=1)).scan(at)
            finally:
                runs.close()

        return asyncio.run(main())

    def fired(self, name: str = "job") -> list[str]:
        """Return the runs of a DAG that stand in its queue, by their ids without its name; each has one item."""
        queued = [item.run for queue in Queues(self.places.queues).names() for item in self.items(queue)]
        assert len(queued) == len(set(queued)), "a run stands twice in its queue"
        return sorted(
            f"{run.run_id.partition('-')[0]} {run.run_id[-6:-2]}" for run in queued if run.name == name
        )  # fmt: skip

    def items(self, queue: str) -> list[Any]:
        """Return the items of a queue."""
        return Queues(self.places.queues).items(queue)

    def recorded(self, name: str = "job") -> list[dict[str, Any]]:
        """Return the status documents of all runs of a DAG that can be seen."""
        return [
            attempt.status() for record in self.places.records.runs(name) if (attempt := record.latest()) is not None
        ]

    def end(self, name: str = "job", *, status: RunStatus = RunStatus.SUCCEEDED, at: datetime | None = None) -> None:
        """Let what waits in the queue of a DAG have run."""
        for item in self.items(name):
            self.close(item.run, status=status, at=at)
            item.take()

    def close(self, run: DagRunRef, *, status: RunStatus, at: datetime | None = None, **more: Any) -> None:
        """Write the status of a run."""
        record = self.places.records.find(run)
        attempt = record.latest() if record is not None else None
        assert attempt is not None
        found = {
            **attempt.status(),
            "status": int(status),
            "finishedAt": f"{at or datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        attempt.write(json.dumps({**found, **more}), final=True)


_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.link", "os.rmdir", "os.truncate"}
_countdown = [0]


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _countdown[0] <= 0 or event not in _CHANGES:
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    _countdown[0] -= 1
    if _countdown[0] == 0:
        os._exit(9)


_hooked: list[bool] = []


def killed_at(change: int, work: Callable[[], None]) -> bool:
    """Do some work in a process that is killed at its n-th change of a file; tell whether it was.

    The process dies as with `kill -9`: nothing is cleaned up, and what it wrote stays written.
    """
    child = os.fork()
    if child == 0:
        if not _hooked:
            sys.addaudithook(_hook)
        _countdown[0] = change
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), "the work failed by itself"
    return code == 9
