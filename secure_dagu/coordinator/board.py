"""Where tasks wait for pollers and pollers for tasks: presence, backlog, open polls, offers. Memory only.

The choice itself is `dispatch.match`, the rules of an offer are `dispatch.machine`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from secure_dagu.coordinator import intake
from secure_dagu.coordinator.ledger import Entry, Ledger, Presences
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import CLAIM_FOR, Clock
from secure_dagu.dispatch.machine import Offered, TaskState, Withdrawn, token_hash
from secure_dagu.dispatch.match import Backlog, Demand, Waiters, demand_of, label_set
from secure_dagu.dispatch.model import Claim, ClaimToken, Owner, Task, WorkerId
from secure_dagu.errors import InvalidRequest, LimitExceeded, PreconditionFailed, Unavailable
from secure_dagu.run.model import AttemptKey
from secure_dagu.telemetry import metrics

NO_WORKER = "no available workers"
NO_MATCH = "no workers match the required selector"


@dataclass(eq=False, slots=True)
class _Waiter:
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

    def close(self) -> None:
        """End every waiting poll: the coordinator is going away."""
        self.is_closing = True
        for waiter in self.waiters.take_all():
            if not waiter.claim.done():
                waiter.claim.set_result(None)

    async def poll(self, worker: WorkerId, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        """Wait for a task; None when the coordinator goes away first."""
        if not poller_id:
            raise InvalidRequest("poller_id is required")
        intake.check_labels(dict(labels))
        if self.is_closing:
            return None
        offer = label_set(labels)
        key = self.backlog.oldest_for(worker, offer)
        if key is not None:
            return self._offer(key, worker)
        if self.waiters.polls_of(worker) >= self._max_polls:
            raise LimitExceeded(
                f"more than {self._max_polls} open polls of one worker", fix="lower its max_active_runs"
            )
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
        return self.waiters.meets(demand) or any(demand.is_met_by(worker, labels) for worker, labels in live)

    def check_workers(self, demand: Demand) -> None:
        """Check that somebody live could take such a task, busy or not (protocol, section 3.2).

        Raises:
            Unavailable: nobody is there at all.
            PreconditionFailed: nobody who is there matches.
        """
        now = self._clock.now()
        is_live = len(self.waiters) > 0
        for worker, labels in self.presences.live(now):
            if demand.is_met_by(worker, labels):
                return
            is_live = True
        if self.waiters.meets(demand):
            return
        if not is_live:
            raise Unavailable(NO_WORKER, fix="start a worker")
        raise PreconditionFailed(NO_MATCH, why=f"nobody offers {demand}", fix="start a worker with these labels")

    def leases(self) -> int:
        """Return how many tasks are held by workers."""
        return len(self._ledger) - len(self.backlog) - len(self._offers)
