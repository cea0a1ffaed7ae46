"""Look at the queues of this host, and hold them: `dispatch.operating.QueueBook`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from secure_dagu.dispatch.operating import Document, FoundRun, QueueView, RunPage, Waiting
from secure_dagu.dispatch.queueing import conditions, decide, from_fields
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import NotFound, SecureDaguError
from secure_dagu.local.line import state_of
from secure_dagu.local.places import Places
from secure_dagu.local.queue import Item, Queues
from secure_dagu.local.running import RunningRun
from secure_dagu.run.model import DagRunRef, RunStatus

log = structlog.get_logger()


class LocalQueueBook:
    """Implements `dispatch.operating.QueueBook`."""

    def __init__(self, places: Places, *, named: Mapping[str, int], way: Way) -> None:
        """Take where queues are, those of the configuration, and who has the runs that workers execute."""
        self._places = places
        self._named = named
        self._queues = Queues(places.queues)
        self._way = way

    async def queues(self) -> Sequence[QueueView]:
        """Return the configured queues and those that have runs (`QueueBook.queues`)."""
        views = []
        for name, items, living in await asyncio.to_thread(self._all):
            running = [await self._document(mark) for mark in living]
            views.append(
                QueueView(
                    name=name,
                    is_global=name in self._named,
                    max_concurrency=self._named.get(name, 1),
                    paused=self._queues.is_paused(name),
                    queued=len(items),
                    running=tuple(running),
                    oldest_queued_at=min((item.queued_at for item in items), default=None),
                )
            )
        return views

    def _all(self) -> list[tuple[str, list[Item], list[RunningRun]]]:
        found = []
        for name in sorted({*self._named, *self._queues.names(), *self._places.running.queues()}):
            items, living = self._one(name)
            if items or living or name in self._named:
                found.append((name, items, living))
        return found

    def _one(self, name: str) -> tuple[list[Item], list[RunningRun]]:
        living = self._places.running.living(name)
        runs = {mark.run for mark in living}
        return [item for item in self._queues.items(name) if item.run not in runs], living

    async def items(self, queue: str, *, limit: int, cursor: str = "") -> RunPage:
        """Return waiting runs in their order (`QueueBook.items`)."""
        await self._check(queue)
        return await asyncio.to_thread(self._page, queue, limit, cursor)

    def _page(self, queue: str, limit: int, cursor: str) -> RunPage:
        items, living = self._one(queue)
        state = state_of(queue, items, living, named=self._named, paused=self._queues.is_paused(queue))
        waits = decide(state, {}).waits
        after = [item for item in items if item.path.name > cursor] if cursor else items
        now = datetime.now(UTC)
        runs = tuple(self._found(item, waits.get(str(item.path)), now) for item in after[:limit])
        return RunPage(runs=runs, next_cursor=after[limit - 1].path.name if len(after) > limit else "")

    def _found(self, item: Item, waiting: Waiting | None, now: datetime) -> FoundRun:
        record = self._places.records.find(item.run)
        attempt = record.latest() if record else None
        document: Document = attempt.status() if attempt else {}
        if not document:
            return FoundRun(document=_bare(item), conditions=conditions(Waiting.RECORD_DAMAGED, now))
        if waiting is not None:
            return FoundRun(document=document, conditions=conditions(waiting, now))
        noted = [found for one in (attempt.conditions() if attempt else ()) if (found := from_fields(one))]
        stale = (Waiting.QUEUE_LIMIT, Waiting.PAUSED)
        told = tuple(one for one in noted if one.reason not in stale)
        return FoundRun(document=document, conditions=told or conditions(Waiting.ASSIGNMENT_PENDING, now))

    async def pause(self, queue: str, *, actor: str) -> None:
        """Start nothing from this queue (`QueueBook.pause`)."""
        await self._hold(queue, actor, paused=True)

    async def resume(self, queue: str, *, actor: str) -> None:
        """Start from it again (`QueueBook.resume`)."""
        await self._hold(queue, actor, paused=False)

    async def _hold(self, queue: str, actor: str, *, paused: bool) -> None:
        await self._check(queue)
        await asyncio.to_thread(self._queues.pause, queue, paused=paused)
        log.info("queue.paused" if paused else "queue.resumed", queue=queue, actor=actor)

    async def _check(self, queue: str) -> None:
        def is_known() -> bool:
            return queue in {*self._named, *self._queues.names(), *self._places.running.queues()}

        if not await asyncio.to_thread(is_known):
            raise NotFound(f'Queue "{queue[:64]}" not found')

    async def _document(self, mark: RunningRun) -> Document:
        if not mark.is_remote:
            return await asyncio.to_thread(mark.attempt.status) or _running(mark)
        if self._way.coordinator is not None:
            with contextlib.suppress(SecureDaguError, ValueError):
                text = await self._way.coordinator.run_status(self._way.caller, run=mark.run, root=None)
                found = json.loads(text) if text else None
                if isinstance(found, dict):
                    return found
        return _running(mark)


def _bare(item: Item) -> Document:
    return {**_ref(item.run), "status": int(RunStatus.QUEUED), "queuedAt": item.queued_at.isoformat()}


def _running(mark: RunningRun) -> Document:
    return {**_ref(mark.run), "status": int(RunStatus.RUNNING)}


def _ref(run: DagRunRef) -> dict[str, object]:
    return {"name": run.name, "dagRunId": run.run_id}
