"""What the coordinator knows in memory: tasks in hand, who holds them, who is there.

Durable facts (dispatch, acknowledgement, cancel flag, documents, end) are in the store; deadlines, offers, polls and
presence are only here, so that a heartbeat never touches the disk. One event loop owns all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dispatch.api import LEASE_FOR
from secure_dagu.dispatch.machine import TaskState
from secure_dagu.dispatch.match import Labels
from secure_dagu.dispatch.model import BundleRef, Caller, Role, Task, WorkerHealth, WorkerId, WorkerInfo, WorkerStats
from secure_dagu.errors import LimitExceeded, PreconditionFailed
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.security.identity import acts_as

HEALTHY_FOR = timedelta(seconds=5)
WARNING_FOR = timedelta(seconds=15)
_K = TypeVar("_K")
MAX_WORKERS = 10_000
MAX_LOST = 1_000
REMEMBER_LOST = timedelta(days=1)
MAX_WARNINGS = 100


class KnownAttempt(Struct, kw_only=True):
    """An attempt that reports under a task: what the next report is judged on, without reading the store."""

    key: AttemptKey
    attempt_id: AttemptId
    run: DagRunRef
    claim_key: AttemptKey
    status: int
    worker: str
    archive: str
    labels: tuple[str, ...]
    revision: int
    warned: set[str] = field(default_factory=set)


class Entry(Struct, kw_only=True, eq=False):
    """One task that has not ended."""

    key: AttemptKey
    attempt_id: AttemptId
    run: DagRunRef
    root: DagRunRef
    parent: DagRunRef | None
    state: TaskState
    revision: int
    place: int
    enqueued_at: datetime
    bundle: BundleRef | None = None
    trigger_actor: str = ""
    definition_id: str = ""
    task: Task | None = None
    """The whole task while it waits for a worker; afterwards only the store has it."""
    attempts: dict[AttemptKey, KnownAttempt] = field(default_factory=dict)
    """Its own attempt and the children that run inside it."""
    children: int = 0
    serial: str = ""
    """Of the certificate that took or last renewed the lease; empty after a restart, until it is renewed."""
    log_bytes: int | None = None
    """Size of all its logs; None until first needed."""
    artifact_bytes: int = 0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its durable state changes: reports, cancellation and expiry take turns."""

    def is_held_by(self, worker: WorkerId, now: datetime) -> bool:
        """Tell whether this worker holds a fresh lease of the task."""
        return self.state.is_leased_to(worker, now)


class Ledger:
    """The tasks in hand, by key, by worker and by tree."""

    def __init__(self) -> None:
        self._entries: dict[AttemptKey, Entry] = {}
        self._by_worker: dict[WorkerId, dict[AttemptKey, Entry]] = {}
        self._by_root: dict[DagRunRef, dict[AttemptKey, Entry]] = {}
        self._by_run: dict[tuple[DagRunRef, DagRunRef], Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, key: AttemptKey) -> Entry | None:
        """Return the task of that key, None when it has ended or never was."""
        return self._entries.get(key)

    def of_run(self, *, run: DagRunRef, root: DagRunRef) -> Entry | None:
        """Return the task that is in hand for a run."""
        return self._by_run.get((root, run))

    def of_worker(self, worker: WorkerId) -> Mapping[AttemptKey, Entry]:
        """Return what a worker was offered or holds."""
        return self._by_worker.get(worker, {})

    def of_tree(self, root: DagRunRef) -> tuple[Entry, ...]:
        """Return the tasks in hand of one tree of runs."""
        return tuple(self._by_root.get(root, {}).values())

    def load(self, worker: WorkerId) -> int:
        """Return how many tasks a worker was offered or holds."""
        return len(self._by_worker.get(worker, ()))

    def add(self, entry: Entry) -> None:
        """Take a task in hand."""
        self._entries[entry.key] = entry
        self._by_root.setdefault(entry.root, {})[entry.key] = entry
        self._by_run[(entry.root, entry.run)] = entry
        if entry.state.worker:
            self._by_worker.setdefault(entry.state.worker, {})[entry.key] = entry

    def move(self, entry: Entry, state: TaskState) -> None:
        """Give a task its next state."""
        before = entry.state.worker
        entry.state = state
        if before != state.worker:
            if before:
                _drop(self._by_worker, before, entry.key)
            if state.worker:
                self._by_worker.setdefault(state.worker, {})[entry.key] = entry

    def remove(self, entry: Entry) -> None:
        """Let go of a task that has ended."""
        if self._entries.pop(entry.key, None) is None:
            return
        _drop(self._by_root, entry.root, entry.key)
        if self._by_run.get((entry.root, entry.run)) is entry:
            del self._by_run[(entry.root, entry.run)]
        if entry.state.worker:
            _drop(self._by_worker, entry.state.worker, entry.key)

    def held(self, caller: Caller, key: AttemptKey, now: datetime) -> Entry:
        """Return the task under `key` if the caller holds a fresh lease of it.

        Raises:
            PreconditionFailed: it does not; the text is the protocol's (section 1.7).
        """
        entry = self._entries.get(key)
        worker = caller.worker or WorkerId("")
        if (
            entry is None
            or not entry.state.worker
            or (entry.state.worker == worker and not entry.is_held_by(worker, now))
        ):
            raise PreconditionFailed("stale attempt: lease no longer active", fix="stop the run")
        if not entry.is_held_by(worker, now):
            raise PreconditionFailed("stale attempt: superseded by newer attempt", fix="stop the run")
        return entry

    def held_in_tree(self, caller: Caller, root: DagRunRef, now: datetime) -> list[Entry]:
        """Return what the caller's workers hold of one tree."""
        return [entry for entry in self.of_tree(root) if _is_callers(caller, entry, now)]

    def held_by(self, caller: Caller, now: datetime) -> list[Entry]:
        """Return what the caller's workers hold."""
        return [
            entry
            for worker, entries in tuple(self._by_worker.items())
            if acts_as(caller.name, worker)
            for entry in tuple(entries.values())
            if _is_callers(caller, entry, now)
        ]


def _is_callers(caller: Caller, entry: Entry, now: datetime) -> bool:
    # Messages that carry no worker id come in the certificate's name, which covers every `name@…` of it.
    return acts_as(caller.name, entry.state.worker) and entry.is_held_by(entry.state.worker, now)


def is_limited(caller: Caller) -> bool:
    """Tell whether the caller reaches only the trees that it holds leases in.

    Workers do. Over an unproven link nobody can be told from anybody, so a caller without a worker id is not limited
    there: choosing plaintext chose that.
    """
    return caller.role is Role.WORKER


def _drop(index: dict[_K, dict[AttemptKey, Entry]], at: _K, key: AttemptKey) -> None:
    entries = index.get(at)
    if entries is not None:
        entries.pop(key, None)
        if not entries:
            del index[at]


class Presence(Struct, kw_only=True):
    """A worker as it was last heard of."""

    labels: Labels
    stats: WorkerStats
    heartbeat_at: datetime
    version: str = ""
    is_draining: bool = False
    """It said so itself."""


class Presences:
    """Who is there: memory only, and gone LEASE_FOR after the last word (protocol, section 10)."""

    def __init__(self) -> None:
        self._known: dict[WorkerId, Presence] = {}
        self._lost: dict[WorkerId, Presence] = {}

    def heard(self, worker: WorkerId, labels: Mapping[str, str], stats: WorkerStats, now: datetime) -> datetime | None:
        """Note a heartbeat and return when the one before came; None for a worker that was not there.

        Raises:
            LimitExceeded: too many different workers.
        """
        known = self._known.get(worker)
        pairs = labels.items()
        if known is None:
            if len(self._known) >= MAX_WORKERS:
                raise LimitExceeded(
                    f"more than {MAX_WORKERS} workers", fix="stop some, or wait until old ones are gone"
                )
            self._known[worker] = Presence(labels=frozenset(pairs), stats=stats, heartbeat_at=now)
            self._lost.pop(worker, None)
            return None
        before = known.heartbeat_at
        if len(known.labels) != len(pairs) or not known.labels.issuperset(pairs):
            known.labels = frozenset(pairs)
        known.stats = stats
        known.heartbeat_at = now
        return before

    def live(self, now: datetime) -> Iterator[tuple[WorkerId, Labels]]:
        """Yield the workers whose last heartbeat is fresh."""
        for worker, presence in self._known.items():
            if now - presence.heartbeat_at <= LEASE_FOR:
                yield worker, presence.labels

    def forget(self, worker: WorkerId) -> None:
        """Drop a worker whose heartbeats are refused, or that may not come back."""
        self._known.pop(worker, None)

    def forget_silent(self, now: datetime) -> list[WorkerId]:
        """Drop workers that have been silent for too long and return them."""
        gone = [worker for worker, presence in self._known.items() if now - presence.heartbeat_at > LEASE_FOR]
        for worker in gone:
            self._lose(worker)
        for worker in [worker for worker, last in self._lost.items() if now - last.heartbeat_at > REMEMBER_LOST]:
            del self._lost[worker]
        return gone

    def announced(self, worker: WorkerId, *, version: str, is_draining: bool) -> None:
        """Note what a worker says of itself; nothing happens when it is not there."""
        if (known := self._known.get(worker)) is not None:
            known.version, known.is_draining = version, is_draining

    def left(self, worker: WorkerId) -> bool:
        """Note that a worker went in an orderly way; False when it was not there."""
        if worker not in self._known:
            return False
        self._lose(worker)
        return True

    def get(self, worker: WorkerId) -> Presence | None:
        """Return a worker that is there, or was within a day."""
        return self._known.get(worker) or self._lost.get(worker)

    def _lose(self, worker: WorkerId) -> None:
        while len(self._lost) >= MAX_LOST:
            del self._lost[next(iter(self._lost))]
        self._lost[worker] = self._known.pop(worker)

    def shift(self, by: timedelta) -> None:
        """Move every last word: the coordinator itself was away for that long."""
        for presence in self._known.values():
            presence.heartbeat_at += by

    def infos(self, now: datetime) -> list[WorkerInfo]:
        """Return everybody with health by age."""
        return [_info(worker, presence, now) for worker, presence in self._known.items()]

    def lost(self, now: datetime) -> list[WorkerInfo]:
        """Return who is not there any more, as last heard of."""
        return [
            replace(_info(worker, presence, now), health=WorkerHealth.UNHEALTHY, stats=WorkerStats())
            for worker, presence in self._lost.items()
        ]


def _info(worker: WorkerId, presence: Presence, now: datetime) -> WorkerInfo:
    return WorkerInfo(
        worker=worker,
        labels=dict(presence.labels),
        stats=presence.stats,
        last_heartbeat_at=presence.heartbeat_at,
        health=_health(now - presence.heartbeat_at),
    )


def _health(age: timedelta) -> WorkerHealth:
    if age < HEALTHY_FOR:
        return WorkerHealth.HEALTHY
    return WorkerHealth.WARNING if age < WARNING_FOR else WorkerHealth.UNHEALTHY
