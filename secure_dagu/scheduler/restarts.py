"""Restarts by schedule: stop, wait for the end, wait `restart_wait_sec`, start again; one after the other a DAG.

That takes a while, so it is kept in the state before the stop: whoever is active next goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import structlog

from secure_dagu.dispatch.operating import Document, Launching, RunFilter, Runs, Workflow
from secure_dagu.errors import Conflict, NotFound, SecureDaguError
from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType
from secure_dagu.scheduler.state import Restart
from secure_dagu.scheduler.ticks import Kind

log = structlog.get_logger()

PATIENCE_S = 600.0
"""How long a run that is asked to stop may take; then it is started again all the same."""
LOOK_EVERY_S = 0.25
AGAIN_S = 5.0
_ACTOR = "scheduler"
_RUNNING = frozenset({RunStatus.RUNNING})

Begin = Callable[[Workflow, datetime, Kind, TriggerType, str], Awaitable[bool]]


class Restarts:
    """Those that are under way."""

    def __init__(
        self, runs: Runs, launching: Launching, begin: Begin, save: Callable[[], Awaitable[None]],
        check: Callable[[], None],
    ) -> None:  # fmt: skip
        """Take what ran, what stops, what starts, what keeps the state, and what ends everything if we may not act."""
        self._runs, self._launching = runs, launching
        self._begin, self._save, self._check = begin, save, check
        self._left: dict[str, Restart] = {}
        self.group: asyncio.TaskGroup | None = None
        """Where restarts run; None: each is done before `begin` returns."""

    def resume(self, file: str, restart: Restart) -> None:
        """Note a restart that another process began; the next tick goes on with it."""
        self._left[file] = restart

    async def begin(self, kept: dict[str, Restart], item: Workflow, at: datetime) -> None:
        """Restart a DAG for a time, unless that is under way."""
        if item.file in kept and item.file not in self._left:
            return
        restart = self._left.pop(item.file, None) or kept.get(item.file)
        if restart is None or restart.at < at:
            stopping = await running(self._runs, item.name, before=at)
            restart = Restart(at=at, stopped=str(stopping[0]["dagRunId"]) if stopping else "")
        kept[item.file] = restart
        await self._save()
        if self.group is None:
            await self._restart(kept, item, restart)
        else:
            self.group.create_task(self._restart(kept, item, restart), name=f"restart {item.file}")

    async def go_on(self, kept: dict[str, Restart], found: dict[str, Workflow]) -> None:
        """Go on with what another process began; forget those whose DAG is gone."""
        for file, restart in list(self._left.items()):
            if file in found:
                await self.begin(kept, found[file], restart.at)
            else:
                self._left.pop(file)
                kept.pop(file, None)

    async def _restart(self, kept: dict[str, Restart], item: Workflow, restart: Restart) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while stopping := await running(self._runs, item.name, before=restart.at):
                    await self._stop(item, stopping)
                    await asyncio.sleep(LOOK_EVERY_S)
        dag = item.definition.main if item.definition is not None else None
        await asyncio.sleep(dag.restart_wait_s if dag is not None else 0.0)
        params = await self._params(item, restart)
        while not await self._begin(item, restart.at, Kind.RESTARTED, TriggerType.SCHEDULER, params):  # noqa: ASYNC110 - tried again
            await asyncio.sleep(AGAIN_S)
        kept.pop(item.file, None)
        await self._save()

    async def _stop(self, item: Workflow, stopping: list[Document]) -> None:
        for document in stopping:
            self._check()
            try:
                await self._launching.stop(DagRunRef(item.name, str(document["dagRunId"])), actor=_ACTOR)
            except (Conflict, NotFound):
                pass  # it has ended meanwhile
            except (OSError, SecureDaguError) as error:  # asked again as long as it runs
                log.warning("restart.not_stopped", dag=item.name, run=document["dagRunId"], why=str(error))

    async def _params(self, item: Workflow, restart: Restart) -> str:
        """Return the parameters of the run that was stopped."""
        if not restart.stopped:
            return ""
        try:
            found: Any = (await self._runs.get(DagRunRef(item.name, restart.stopped))).document.get("params")
        except SecureDaguError as error:
            log.warning("restart.parameters_lost", dag=item.name, run=restart.stopped, why=str(error))
            return ""
        return found if isinstance(found, str) else ""


async def running(runs: Runs, name: str, *, before: datetime) -> list[Document]:
    """Return the runs of a DAG that run, and began before a time: what is started at that time is none of them."""
    page = await runs.find(RunFilter(name=name, statuses=_RUNNING, until=before + timedelta(seconds=1)), limit=100)
    return [found.document for found in page.runs if _began(found.document, before)]


def _began(document: Document, before: datetime) -> bool:
    try:
        return datetime.fromisoformat(str(document.get("startedAt"))) < before
    except (ValueError, TypeError):
        return True
