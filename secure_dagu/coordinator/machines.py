"""Workers and links as an operator sees them, and workers that are given nothing new (`dispatch.api.Machines`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import chain

import structlog

from secure_dagu.audit.events import Action, Trail, by, recorded
from secure_dagu.coordinator.board import Board
from secure_dagu.coordinator.tenants import is_bound
from secure_dagu.dispatch.api import Announced, Clock, as_worker
from secure_dagu.dispatch.model import (
    Caller,
    Role,
    StateRef,
    StateSource,
    WorkerHealth,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.dispatch.operating import LinkView, WorkerState, WorkerView
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.security.identity import acts_as
from secure_dagu.security.peer import Peer
from secure_dagu.security.policy import reaches_tenant, tenant_of
from secure_dagu.store.api import Store
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

SCOPE, NAMESPACE = "fleet", "draining"
"""Where held workers are kept among the shared values; no caller reaches this scope (`coordinator.state`)."""
MAX_HELD = 1_000


class Machines:
    """Implement `dispatch.api.Machines`."""

    def __init__(
        self, *, board: Board, store: Store, clock: Clock, trail: Trail, peers: Callable[[], Iterable[Peer]]
    ) -> None:
        """Take the board. `peers`: who is connected now."""
        self._board = board
        self._store = store
        self._clock = clock
        self._trail = trail
        self._peers = peers

    async def load(self) -> None:
        """Hold again what was held before a restart."""
        for entry in await self._store.list_state(scope=SCOPE, namespace=NAMESPACE, prefix="", limit=0):
            self._board.hold(entry.ref.key)

    async def announce(self, caller: Caller, *, version: str, presence: Announced) -> None:
        """Take a worker's own word (`Machines.announce`)."""
        worker = as_worker(caller)
        presences = self._board.presences
        if presence is not Announced.LEAVING:
            presences.announced(worker, version=version, is_draining=presence is Announced.DRAINING)
        elif presences.left(worker):
            reason = "drained" if self._board.is_held(worker) else "shutdown"
            metrics.WORKERS_LOST.labels(reason).inc()
            metrics.forget_worker(worker)
            log.info("worker.left", worker=worker, why=reason)

    def state_of(self, worker: WorkerId) -> WorkerState:
        """Return whether a worker that is there is given work."""
        presence = self._board.presences.get(worker)
        if self._board.is_held(worker) or (presence is not None and presence.is_draining):
            return WorkerState.DRAINING
        return WorkerState.ACTIVE

    def quarantined(self, now: datetime) -> list[WorkerInfo]:
        """Return the workers that are refused because they claim more than their certificates grant."""
        present = {info.worker for info in self._board.presences.infos(now)}
        return [
            WorkerInfo(
                worker=worker,
                labels=dict(labels),
                stats=WorkerStats(),
                last_heartbeat_at=at,
                health=WorkerHealth.UNHEALTHY,
            )
            for worker, labels, at in self._board.refused(now)
            if worker not in present
        ]

    async def fleet(self, caller: Caller) -> Sequence[WorkerView]:
        """Return all known workers (`Machines.fleet`)."""
        self._trail.note(by(caller, Action.WORKERS_READ, "workers"))
        now = self._clock.now()
        newest: dict[str, Peer] = {}
        for peer in self._peers():
            if peer.identity is not None and peer.identity.role is Role.WORKER:
                newest[peer.identity.name] = peer  # oldest first, so the last one stays
        views: dict[WorkerId, WorkerView] = {}
        for info in self._board.presences.infos(now):
            views[info.worker] = self._view(info, newest.get(info.worker.partition("@")[0]))
        for info in self._board.presences.lost(now):
            views[info.worker] = WorkerView(
                info=info,
                is_lost=True,
                version=self._version(info.worker),
                held_tasks=self._board.held_by(info.worker),
            )
        for info in self.quarantined(now):
            views[info.worker] = self._view(info, newest.get(info.worker.partition("@")[0]), WorkerState.QUARANTINED)
        if is_bound(caller):
            views = {name: view for name, view in views.items() if reaches_tenant(caller, tenant_of(view.info.labels))}
        return [views[name] for name in sorted(views)]

    async def drain(self, caller: Caller, *, worker: WorkerId, draining: bool) -> None:
        """Hold a worker, or free it (`Machines.drain`)."""
        if not worker or len(worker) > 255:
            raise InvalidRequest("worker_id is required")
        held = worker in self._board.held
        now = self._clock.now()
        presences = self._board.presences
        known = chain(presences.infos(now), presences.lost(now), self.quarantined(now))
        if not held and not any(acts_as(worker, info.worker) for info in known):
            raise NotFound(f"worker {worker} is not known", fix="list them with `secure-dagu workers`")
        if draining == held:
            return
        if draining and len(self._board.held) >= MAX_HELD:
            raise InvalidRequest(f"more than {MAX_HELD} workers are held", fix="free some with `drain --undo`")
        ref = StateRef(SCOPE, NAMESPACE, worker)
        action = Action.WORKER_DRAINED if draining else Action.WORKER_FREED
        async with recorded(self._trail, by(caller, action, f"worker:{worker}")):
            if draining:
                await self._store.put_state(
                    ref,
                    b"true",
                    expected_version=None,
                    create_only=False,
                    by=StateSource(),
                    now_ns=int(now.timestamp() * 1e9),
                )
            else:
                await self._store.delete_state(ref)
        if draining:
            self._board.hold(worker)
        else:
            self._board.free(worker)
        log.info("worker.draining" if draining else "worker.freed", worker=worker)

    async def links(self, caller: Caller) -> Sequence[LinkView]:
        """Return the live connections (`Machines.links`)."""
        self._trail.note(by(caller, Action.WORKERS_READ, "links"))
        return [link_view(peer) for peer in self._peers()]

    def _view(self, info: WorkerInfo, peer: Peer | None, state: WorkerState | None = None) -> WorkerView:
        return WorkerView(
            info=info,
            state=state or self.state_of(info.worker),
            identity=peer.identity.uri if peer is not None and peer.identity is not None else "",
            serial=f"{peer.serial:x}" if peer is not None else "",
            issuer=peer.issuers[0] if peer is not None and peer.issuers else "",
            cert_not_after=peer.not_after if peer is not None else None,
            tls_version=peer.tls_version if peer is not None else "",
            cipher=peer.cipher if peer is not None else "",
            group=peer.group if peer is not None else "",
            remote_address=peer.address if peer is not None else "",
            connected_since=peer.opened_at if peer is not None else None,
            version=self._version(info.worker),
            held_tasks=self._board.held_by(info.worker),
        )

    def _version(self, worker: WorkerId) -> str:
        presence = self._board.presences.get(worker)
        return presence.version if presence is not None else ""


def link_view(peer: Peer) -> LinkView:
    """Return a live connection as an operator sees it."""
    return LinkView(
        identity=peer.identity.uri if peer.identity is not None else "",
        role=peer.identity.role.value if peer.identity is not None else Role.ANONYMOUS.value,
        address=peer.address,
        tls_version=peer.tls_version,
        cipher=peer.cipher,
        group=peer.group,
        serial=f"{peer.serial:x}" if peer.identity is not None else "",
        cert_not_after=peer.not_after,
        opened_at=peer.opened_at,
    )
