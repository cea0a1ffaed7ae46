"""Where tasks wait for pollers and pollers for tasks: presence, backlog, open polls, offers. Memory only.

The choice itself is `dispatch.match`, the rules of an offer are `dispatch.machine`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from secure_dagu.coordinator import intake
from secure_dagu.coordinator.ledger import Entry, Ledger, Presences
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import CLAIM_FOR, Clock
from secure_dagu.dispatch.machine import Offered, TaskState, Withdrawn, token_hash
from secure_dagu.dispatch.match import Backlog, Demand, Labels, Waiters, demand_of, label_set
from secure_dagu.dispatch.model import Claim, ClaimToken, Owner, Task, WorkerId
from secure_dagu.dispatch.operating import Waiting
from secure_dagu.errors import InvalidRequest, LimitExceeded, NoAuthorisedWorker, NoMatchingWorker, NoWorker
from secure_dagu.run.model import AttemptKey
from secure_dagu.security.identity import acts_as
from secure_dagu.telemetry import metrics

_NO_MATCH = "no workers match the required selector"
MAX_REFUSED = 1_000
REFUSED_FOR = timedelta(minutes=10)
"""How long a refused claim of labels is remembered."""


class _Waiter(Struct, eq=False):
    """One poll that waits."""

    claim: asyncio.Future[Claim | None]


class Board:
    """Bring tasks and pollers together."""

    def __init__(self, *, ledger: Ledger, clock: Clock, owner: Owner, max_polls: int) -> None:
        """Take the tasks in hand. `max_polls`: open polls of one worker id."""
        self._ledger = ledger
        self._clock = clock
        self._owner = owner
        self._max_polls = max_polls
        self._offers: dict[str, Entry] = {}
        self.presences = Presences()
        self.backlog = Backlog()
        self.waiters: Waiters[_Waiter] = Waiters()
        self.is_closing = False
        self.held: set[str] = set()
        """Workers, or names of certificates, that get no new task."""
        self._freed = asyncio.Event()
        """Wakes the polls of held workers; another one each time."""
        self._parked: Counter[WorkerId] = Counter()
        self._refused: dict[WorkerId, tuple[Labels, datetime]] = {}

    def close(self) -> None:
        """End every waiting poll: the coordinator is going away."""
        self.is_closing = True
        for waiter in self.waiters.take_all():
            if not waiter.claim.done():
                waiter.claim.set_result(None)
        self._freed.set()

    def hold(self, name: str) -> None:
        """Give a worker nothing from now on; its polls wait on."""
        self.held.add(name)
        for waiter in self.waiters.take_of(lambda worker: acts_as(name, worker)):
            if not waiter.claim.done():
                waiter.claim.set_result(None)

    def free(self, name: str) -> None:
        """Give a worker tasks again."""
        self.held.discard(name)
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

    def is_held(self, worker: WorkerId) -> bool:
        """Tell whether a worker gets no new task."""
        return bool(self.held) and any(acts_as(name, worker) for name in self.held)

    async def poll(self, worker: WorkerId, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        """Wait for a task; None when the coordinator goes away first."""
        if not poller_id:
            raise InvalidRequest("poller_id is required")
        intake.check_labels(dict(labels))
        offer = label_set(labels)
        while not self.is_closing:
            if self.waiters.polls_of(worker) + self._parked[worker] >= self._max_polls:
                raise LimitExceeded(
                    f"more than {self._max_polls} open polls of one worker", fix="lower its max_active_runs"
                )
            if self.is_held(worker):
                await self._park(worker)
                continue
            key = self.backlog.oldest_for(worker, offer)
            if key is not None:
                return self._offer(key, worker)
            if (claim := await self._wait(worker, offer)) is not None:
                return claim
        return None

    async def _park(self, worker: WorkerId) -> None:
        self._parked[worker] += 1
        try:
            await self._freed.wait()
        finally:
            self._parked[worker] -= 1
            if not self._parked[worker]:
                del self._parked[worker]

    async def _wait(self, worker: WorkerId, offer: Labels) -> Claim | None:
        """Wait for a task; None: look again, for the worker is held now or the coordinator goes away."""
        waiter = _Waiter(asyncio.get_running_loop().create_future())
        self.waiters.add(worker, offer, waiter)
        try:
            return await waiter.claim
        except asyncio.CancelledError:
            if waiter.claim.done() and not waiter.claim.cancelled() and (claim := waiter.claim.result()) is not None:
                self.withdraw(claim.token)
            raise
        finally:
            self.waiters.remove(worker, offer, waiter)

    def queue(self, entry: Entry, task: Task) -> None:
        """Put a task before the pollers: to one that waits, else into the backlog."""
        demand = demand_of(task)
        self.backlog.add(entry.key, demand, entry.place)
        while (picked := self.waiters.pick(demand, self._ledger.load)) is not None:
            worker, _, waiter = picked
            if not waiter.claim.done():
                waiter.claim.set_result(self._offer(entry.key, worker))
                break

    def _offer(self, key: AttemptKey, worker: WorkerId) -> Claim:
        entry = self._ledger.get(key)
        assert entry is not None, "a queued task is in hand"
        assert entry.task is not None, "a queued task is whole"
        now = self._clock.now()
        token = ClaimToken(secrets.token_urlsafe(24))
        hashed = token_hash(token)
        self._ledger.move(entry, machine.advance(entry.state, Offered(worker, hashed, now + CLAIM_FOR), now))
        self._offers[hashed] = entry
        self.backlog.remove(key)
        metrics.TASKS_CLAIMED.inc()
        metrics.DISPATCH_LATENCY.observe(max((now - entry.enqueued_at).total_seconds(), 0.0))
        return Claim(task=entry.task, worker=worker, token=token, owner=self._owner)

    def withdraw(self, token: ClaimToken) -> None:
        """Put an offered task back whose offer did not arrive."""
        entry = self._offers.get(token_hash(token))
        if entry is None or entry.writing.locked():  # unknown, or just being acknowledged: then it did arrive
            return
        self.put_back(entry, machine.advance(entry.state, Withdrawn(entry.state.token), self._clock.now()))

    def put_back(self, entry: Entry, state: TaskState) -> None:
        """Queue a task again that was offered."""
        self._offers.pop(entry.state.token, None)
        self._ledger.move(entry, state)
        assert entry.task is not None, "an offered task is whole"
        self.queue(entry, entry.task)

    def offered(self, token: str) -> Entry | None:
        """Return the task that is offered under a token hash."""
        return self._offers.get(token)

    def leave(self, entry: Entry) -> None:
        """Take a task off the board: it is leased, or over."""
        self.backlog.remove(entry.key)
        if entry.state.token:
            self._offers.pop(entry.state.token, None)

    def meets(self, demand: Demand, now: datetime) -> bool:
        """Tell whether a live worker could take such a task, busy or not."""
        live = self.presences.live(now)
        return self.waiters.meets(demand) or any(
            demand.is_met_by(worker, labels) and not self.is_held(worker) for worker, labels in live
        )

    def check_workers(self, demand: Demand) -> None:
        """Check that somebody live could take such a task, busy or not (protocol, section 3.2).

        Raises:
            NoAuthorisedWorker: whoever matches was refused its labels.
            NoWorker: nobody is there at all.
            NoMatchingWorker: nobody who is there matches.
        """
        now = self._clock.now()
        is_live = len(self.waiters) > 0
        for worker, labels in self.presences.live(now):
            if demand.is_met_by(worker, labels):
                return
            is_live = True
        if self.waiters.meets(demand):
            return
        if why := self.not_authorised(demand, now):
            raise NoAuthorisedWorker(_NO_MATCH, why=why, fix="issue that worker a certificate with these labels")
        if not is_live:
            raise NoWorker("no available workers", fix="start a worker")
        raise NoMatchingWorker(_NO_MATCH, why=f"nobody offers {demand}", fix="start a worker with these labels")

    def why_waits(self, entry: Entry) -> Waiting | None:
        """Say why a task has not been claimed yet; None: it has, or is over."""
        if entry.key not in self.backlog or entry.task is None:
            return None
        return self._why(demand_of(entry.task))

    def _why(self, demand: Demand) -> Waiting:
        try:
            self.check_workers(demand)
        except NoAuthorisedWorker:
            return Waiting.NOT_AUTHORISED
        except NoWorker:
            return Waiting.NO_WORKER
        except NoMatchingWorker:
            return Waiting.NO_MATCHING_WORKER
        return Waiting.NO_CAPACITY

    def claim_refused(self, worker: WorkerId, labels: Mapping[str, str]) -> None:
        """Count no longer on a worker that was refused the labels it claimed, and remember it for those who ask."""
        self.presences.forget(worker)
        self._refused.pop(worker, None)
        while len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[worker] = (label_set(labels), self._clock.now())

    def not_authorised(self, demand: Demand, now: datetime) -> str:
        """Say who would take such a task if its certificate granted what it claims; empty when nobody would."""
        for worker, (labels, at) in self._refused.items():
            if now - at <= REFUSED_FOR and demand.is_met_by(worker, labels):
                return f"worker {worker} claims {demand}, but its certificate does not grant all that it claims"
        return ""

    def refused(self, now: datetime) -> list[tuple[WorkerId, Labels, datetime]]:
        """Return the workers that claim more than their certificates grant, and when each was refused last."""
        return [(worker, labels, at) for worker, (labels, at) in self._refused.items() if now - at <= REFUSED_FOR]

    def waiting(self) -> Iterator[tuple[Demand, int, datetime, Waiting]]:
        """Yield what waits by demand: how many tasks, since when the oldest, and why."""
        for demand in self.backlog.demands():
            entry = self._ledger.get(self.backlog.oldest_of(demand))
            if entry is not None:
                yield demand, self.backlog.count(demand), entry.enqueued_at, self._why(demand)

    def held_by(self, worker: WorkerId) -> int:
        """Return how many tasks a worker was offered or holds."""
        return self._ledger.load(worker)

    def leases(self) -> int:
        """Return how many tasks are held by workers."""
        return len(self._ledger) - len(self.backlog) - len(self._offers)
