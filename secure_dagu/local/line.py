"""The queues of this host for the queue processor (`scheduler.queues.Line`): what stands in them, and how it starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from secure_dagu.dispatch.operating import Waiting
from secure_dagu.dispatch.queueing import QueuedRun, QueueState, as_fields, conditions
from secure_dagu.errors import (
    Conflict,
    DefinitionError,
    NoAuthorisedWorker,
    NotFound,
    PreconditionFailed,
    SecureDaguError,
    Unavailable,
)
from secure_dagu.local import bell
from secure_dagu.local.handing import is_over
from secure_dagu.local.launching import Launcher
from secure_dagu.local.queue import Damaged, Item, Queues
from secure_dagu.local.running import RunningRun
from secure_dagu.run.model import DagRunRef
from secure_dagu.telemetry import metrics, queue_series

log = structlog.get_logger()

AGAIN_S = 1.0
_NO_WORKER = "no available workers"
"""So `NoWorker` says it, and a coordinator of Dagu, whose errors have no code."""


class QueueLine:
    """Implements `scheduler.queues.Line`."""

    def __init__(self, launcher: Launcher, *, named: Mapping[str, int]) -> None:
        """Take who starts runs, and the queues of the configuration with how many runs each may have."""
        self._launcher = launcher
        self._named = named
        self._places = launcher.places
        self._queues = Queues(launcher.places.queues)
        self._group: asyncio.TaskGroup | None = None
        self._followed: set[Path] = set()
        self._handing: set[DagRunRef] = set()
        self._changed = asyncio.Event()
        self._errors: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[asyncio.Event]:
        """Attend to the queues (`Line.attended`)."""
        with bell.listening(self._places.queues, self._changed):
            async with asyncio.TaskGroup() as group:
                self._group = group
                nobody = group.create_task(asyncio.Event().wait(), name="queues attended")
                try:
                    yield self._changed
                finally:
                    self._group = None
                    nobody.cancel()
                    for task in tuple(self._tasks):
                        task.cancel()

    @property
    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for task in asyncio.all_tasks() if task.get_name().startswith("follow queued ")]

    # ── look ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def look(self) -> Sequence[QueueState]:
        """Return every queue that has items (`Line.look`)."""
        states, remote = await asyncio.to_thread(self._look)
        for mark in remote:
            self._follow(mark)
        return states

    def _look(self) -> tuple[list[QueueState], list[RunningRun]]:
        states: list[QueueState] = []
        remote: list[RunningRun] = []
        for name in sorted({*self._queues.names(), *self._places.running.queues()}):
            living = self._places.running.living(name)
            remote += [mark for mark in living if mark.is_remote]
            states.append(self._state(name, living))
        queue_series.show_queues(states, named=self._named)
        return [state for state in states if state.items], remote

    def _state(self, name: str, living: Sequence[RunningRun]) -> QueueState:
        items: list[Item] = []
        for found in self._queues.everything(name):
            if isinstance(found, Damaged):
                log.error("queue.item_damaged", queue=name, file=found.path.name, why=found.why)
                found.quarantine()
            else:
                items.append(found)
        return state_of(name, items, living, named=self._named, paused=self._queues.is_paused(name))

    def _follow(self, mark: RunningRun) -> None:
        """Hear of the end of a run that a coordinator has."""
        if mark.mark in self._followed or mark.run in self._handing or self._group is None:
            return
        self._followed.add(mark.mark)
        self._group.create_task(self._until_over(mark), name=f"follow queued {mark.run}")

    async def _until_over(self, mark: RunningRun) -> None:
        try:
            while not await self._is_over(mark.run):  # noqa: ASYNC110 - asked again after a failure
                await asyncio.sleep(AGAIN_S)
            mark.remove()
        finally:
            self._followed.discard(mark.mark)
            self._changed.set()

    async def _is_over(self, run: DagRunRef) -> bool:
        coordinator = self._launcher.way.coordinator
        if coordinator is None:
            return False  # nobody can tell
        try:
            async for event in coordinator.follow(self._launcher.way.caller, run=run, with_logs=False):
                if event.ended or (event.status and is_over(json.loads(event.status))):
                    return True
        except NotFound:
            return True  # it never got there: its item still stands in the queue
        except SecureDaguError as error:
            log.warning("queue.coordinator_silent", run=str(run), why=str(error))
        return False

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, item: QueuedRun) -> Waiting | None:
        """Start a run (`Line.start`)."""
        self._handing.add(item.run)
        try:
            if not await self._launcher.start_queued(item.run, queue=item.queue, item=item.key):
                await asyncio.to_thread(Path(item.key).unlink, missing_ok=True)
        except (SecureDaguError, OSError) as error:
            self._errors[item.key] = str(error)
            return _reason(error) if isinstance(error, SecureDaguError) else Waiting.LAUNCH_FAILED
        finally:
            self._handing.discard(item.run)
        self._errors.pop(item.key, None)
        waited_s = max((datetime.now(UTC) - item.queued_at).total_seconds(), 0.0)
        metrics.QUEUE_WAIT.observe(waited_s, dag=item.run.name)
        return None

    async def give_up(self, item: QueuedRun, why: Waiting) -> None:
        """End a queued run as failed (`Line.give_up`)."""
        error = self._errors.pop(item.key, str(why))
        await asyncio.to_thread(self._launcher.fail_waiting, item.run, f"the queued run could not be started: {error}")
        await asyncio.to_thread(Path(item.key).unlink, missing_ok=True)

    async def tell(self, waits: Mapping[QueuedRun, Waiting]) -> None:
        """Note on the records why runs wait (`Line.tell`)."""
        await asyncio.to_thread(self._tell, waits)

    def _tell(self, waits: Mapping[QueuedRun, Waiting]) -> None:
        now = datetime.now(UTC)
        for item, reason in waits.items():
            record = self._places.records.find(item.run)
            attempt = record.latest() if record else None
            if attempt is not None:
                with contextlib.suppress(Unavailable):  # it was dequeued just now
                    attempt.write_conditions([as_fields(one) for one in conditions(reason, now)])


def state_of(
    name: str, items: Sequence[Item], living: Sequence[RunningRun], *, named: Mapping[str, int], paused: bool
) -> QueueState:
    """Return a queue as it stands; what runs already is no item any more."""
    runs = {mark.run for mark in living}
    return QueueState(
        name=name,
        is_global=name in named,
        max_concurrency=named.get(name, 1),
        paused=paused,
        running=len(runs),
        items=tuple(
            QueuedRun(key=str(item.path), queue=name, run=item.run, queued_at=item.queued_at, high=item.high)
            for item in items
            if item.run not in runs
        ),
    )


def _reason(error: SecureDaguError) -> Waiting:
    """Return why a run waits that could not be started."""
    if isinstance(error, NoAuthorisedWorker):
        return Waiting.NOT_AUTHORISED
    if isinstance(error, PreconditionFailed):
        return Waiting.NO_MATCHING_WORKER
    if isinstance(error, Unavailable):
        if error.what == _NO_WORKER:
            return Waiting.NO_WORKER
        return Waiting.LAUNCH_FAILED if "no process" in error.what else Waiting.COORDINATOR_UNREACHABLE
    if isinstance(error, Conflict):
        return Waiting.ASSIGNMENT_PENDING
    if isinstance(error, NotFound | DefinitionError):
        return Waiting.RECORD_DAMAGED
    return Waiting.LAUNCH_FAILED
