"""Take back what a worker holds that may not hold it any more, and hand it on, once.

The lease is the fence: whatever the old holder still sends is refused, because the task is queued, or another's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

import structlog

from secure_dagu.audit.events import SYSTEM, Action, Detail, Event, Trail, run_target
from secure_dagu.coordinator import bodies
from secure_dagu.coordinator.board import Board
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.ledger import Entry, Ledger
from secure_dagu.coordinator.tasks import Desk
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.machine import Released
from secure_dagu.dispatch.model import Phase
from secure_dagu.errors import Conflict
from secure_dagu.security.identity import acts_as
from secure_dagu.store.api import Store
from secure_dagu.telemetry import metrics

log = structlog.get_logger()


class Releasing:
    """Release the tasks of revoked workers."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        desk: Desk,
        endings: Endings,
        clock: Clock,
        trail: Trail,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._desk = desk
        self._endings = endings
        self._clock = clock
        self._trail = trail

    @property
    def _board(self) -> Board:
        return self._desk.board

    async def release(self, *, serials: Collection[str], names: Collection[str]) -> int:
        """Hand on every task that was taken or last renewed under one of these certificates; return how many.

        Args:
            serials: lower-case hex, of certificates that are revoked.
            names: of workers that have no other certificate at work; tasks of theirs go too when it is not known by
                which certificate they are held (an offer under way, a lease from before a restart).
        """
        mine = [entry for entry in self._ledger if entry.state.worker and _is_theirs(entry, serials, names)]
        released = 0
        for entry in mine:
            released += await self._release(entry)
        for info in self._board.presences.infos(self._clock.now()):
            if any(acts_as(name, info.worker) for name in names):
                self._board.presences.forget(info.worker)
                metrics.forget_worker(info.worker)
                metrics.WORKERS_LOST.labels("revoked").inc()
                log.warning("worker.revoked", worker=info.worker)
        return released

    async def _release(self, entry: Entry) -> bool:
        async with entry.writing:
            before = entry.state
            if before.phase not in (Phase.OFFERED, Phase.LEASED) or self._ledger.get(entry.key) is not entry:
                return False  # it ended, or went back, while we waited for our turn
            state = machine.advance(before, Released(before.worker), self._clock.now())
            if before.phase is Phase.LEASED:
                await self._desk.cancel_children(entry)  # the next holder dispatches them anew
            why = f"the certificate of worker {before.worker}, which held it, is revoked"
            with contextlib.suppress(Conflict):
                if state.is_over:
                    await self._endings.end(entry, state, error=why)
                elif before.phase is Phase.OFFERED:
                    self._board.put_back(entry, state)
                else:
                    await self._store.release(entry.key, revision=entry.revision)
                    entry.revision += 1
                    body, _ = bodies.from_json(await self._store.task_body(entry.key) or "")
                    entry.task, entry.serial = body, ""
                    entry.attempts.clear()  # what they were judged on was the old holder's
                    self._ledger.move(entry, state)
                    self._board.queue(entry, body)
        self._trail.note(
            Event(
                action=Action.TASK_RELEASED, actor=SYSTEM, target=run_target(entry.run), reason="cert_revoked",
                details={Detail.WORKER: before.worker, Detail.ATTEMPT: entry.attempt_id},
            )
        )  # fmt: skip
        log.warning("task.released", run=str(entry.run), worker=before.worker, times=state.deliveries)
        return True


def _is_theirs(entry: Entry, serials: Collection[str], names: Collection[str]) -> bool:
    if entry.serial:
        return entry.serial in serials
    return any(acts_as(name, entry.state.worker) for name in names)
