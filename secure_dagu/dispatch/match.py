"""Who may take which task, and who gets it first. Pure.

Tasks wait in buckets of equal demand (selector and target worker), pollers in groups of equal offer (worker and
labels), so that a choice costs the number of different demands or offers and never the number of tasks or polls.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, Generic, TypeVar

from msgspec import Struct

from secure_dagu.dispatch.model import Task, WorkerId
from secure_dagu.run.model import AttemptKey

Labels = frozenset[tuple[str, str]]
TENANT_LABEL: Final = "secure-dagu/tenant"
"""The label that says whose machine a worker is: such a worker takes the tasks of that tenant and no other."""


def label_set(labels: Mapping[str, str]) -> Labels:
    """Return labels or a selector as a set of pairs."""
    return frozenset(labels.items())


class Demand(Struct, frozen=True):
    """What a task asks of a worker: every selector pair among its labels, its tenant, and its id if one is named."""

    selector: Labels
    target: WorkerId | None

    def is_met_by(self, worker: WorkerId, labels: Labels) -> bool:
        """Tell whether this worker may take the task (protocol, section 3.4, "Matching"): exact, case-sensitive.

        A worker of a tenant takes only tasks that name it: one without a tenant could run anybody's code there (T07).
        """
        if self.target is not None and self.target != worker:
            return False
        return self.selector <= labels and _tenants(labels) <= self.selector

    def __str__(self) -> str:
        pairs = [f"{key}={value}" for key, value in sorted(self.selector)]
        return ", ".join(pairs + ([f"worker {self.target}"] if self.target is not None else [])) or "any labels"


@lru_cache(maxsize=4096)
def _tenants(labels: Labels) -> Labels:
    return frozenset(pair for pair in labels if pair[0] == TENANT_LABEL)


def demand_of(task: Task) -> Demand:
    """Return what a task asks of a worker."""
    return Demand(label_set(task.worker_selector), task.target_worker)


class Backlog:
    """Tasks that wait for a poller, oldest first within each demand. A task put back keeps its place."""

    def __init__(self) -> None:
        self._heaps: dict[Demand, list[tuple[int, AttemptKey]]] = {}
        self._places: dict[AttemptKey, tuple[int, Demand]] = {}
        self._counts: dict[Demand, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._places

    def add(self, key: AttemptKey, demand: Demand, place: int) -> None:
        """Queue a task. `place` orders it: smaller is older, and no two tasks share one."""
        if key in self._places:
            return
        self._places[key] = (place, demand)
        self._counts[demand] = self._counts.get(demand, 0) + 1
        heapq.heappush(self._heaps.setdefault(demand, []), (place, key))

    def remove(self, key: AttemptKey) -> None:
        """Take a task out, wherever it stands; nothing happens when it is not queued."""
        found = self._places.pop(key, None)
        if found is None:
            return
        demand = found[1]
        self._counts[demand] -= 1
        if not self._counts[demand]:
            del self._counts[demand], self._heaps[demand]

    def oldest_for(self, worker: WorkerId, labels: Labels) -> AttemptKey | None:
        """Return the longest waiting task that this worker may take; it stays queued."""
        best: tuple[int, AttemptKey] | None = None
        for demand, heap in self._heaps.items():
            if demand.is_met_by(worker, labels):
                head = self._head(heap, demand)
                if best is None or head < best:
                    best = head
        return None if best is None else best[1]

    def count(self, demand: Demand) -> int:
        """Return how many tasks of one demand wait."""
        return self._counts.get(demand, 0)

    def oldest_of(self, demand: Demand) -> AttemptKey:
        """Return the longest waiting task of a demand, which must be one of `demands`."""
        return self._head(self._heaps[demand], demand)[1]

    def demands(self) -> Iterable[Demand]:
        """Return the different demands of the queued tasks."""
        return tuple(self._heaps)

    def waiting_for(self, demand: Demand) -> Iterator[AttemptKey]:
        """Yield the tasks of one demand, in no order."""
        # A task that was taken out and put back may stand in its heap twice.
        for place, key in dict.fromkeys(self._heaps.get(demand, ())):
            if self._places.get(key) == (place, demand):
                yield key

    def _head(self, heap: list[tuple[int, AttemptKey]], demand: Demand) -> tuple[int, AttemptKey]:
        while True:  # removed tasks stay in the heap until they surface; a live one exists, else the bucket were gone
            place, key = heap[0]
            if self._places.get(key) == (place, demand):
                return heap[0]
            heapq.heappop(heap)


W = TypeVar("W")


class Waiters(Generic[W]):
    """Polls that wait for a task, grouped by worker and labels; `W` is whatever the shell wakes."""

    def __init__(self) -> None:
        self._groups: dict[tuple[WorkerId, Labels], dict[W, None]] = {}
        self._polls: dict[WorkerId, int] = {}
        self._served: dict[WorkerId, int] = {}
        self._turn = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def polls_of(self, worker: WorkerId) -> int:
        """Return how many polls of this worker wait."""
        return self._polls.get(worker, 0)

    def add(self, worker: WorkerId, labels: Labels, waiter: W) -> None:
        """Let a poll wait."""
        self._groups.setdefault((worker, labels), {})[waiter] = None
        self._polls[worker] = self._polls.get(worker, 0) + 1
        self._size += 1

    def remove(self, worker: WorkerId, labels: Labels, waiter: W) -> None:
        """Take a poll out; nothing happens when it does not wait."""
        group = self._groups.get((worker, labels))
        if group is None or waiter not in group:
            return
        del group[waiter]
        self._size -= 1
        self._polls[worker] -= 1
        if not group:
            del self._groups[(worker, labels)]
        if not self._polls[worker]:
            del self._polls[worker]
            self._served.pop(worker, None)

    def pick(self, demand: Demand, load: Callable[[WorkerId], int]) -> tuple[WorkerId, Labels, W] | None:
        """Take out and return the poll that should get a task of this demand, None when nobody fits.

        The worker with the least `load` (tasks in hand) wins, among equals the one served longest ago, and of its
        polls the one that has waited longest.
        """
        best: tuple[tuple[int, int], WorkerId, Labels] | None = None
        for worker, labels in self._groups:
            if demand.is_met_by(worker, labels):
                rank = (load(worker), self._served.get(worker, 0))
                if best is None or rank < best[0]:
                    best = (rank, worker, labels)
        if best is None:
            return None
        _, worker, labels = best
        waiter = next(iter(self._groups[(worker, labels)]))
        self.remove(worker, labels, waiter)
        self._turn += 1
        if worker in self._polls:
            self._served[worker] = self._turn
        return worker, labels, waiter

    def meets(self, demand: Demand) -> bool:
        """Tell whether a waiting poll could take a task of this demand."""
        return any(demand.is_met_by(worker, labels) for worker, labels in self._groups)

    def take_of(self, of: Callable[[WorkerId], bool]) -> list[W]:
        """Take out the polls of some workers."""
        taken = [(*group, waiter) for group, waiters in self._groups.items() if of(group[0]) for waiter in waiters]
        for worker, labels, waiter in taken:
            self.remove(worker, labels, waiter)
        return [waiter for _, _, waiter in taken]

    def take_all(self) -> list[W]:
        """Take out every poll: the coordinator is going away."""
        waiters = [waiter for group in self._groups.values() for waiter in group]
        self._groups.clear()
        self._polls.clear()
        self._served.clear()
        self._size = 0
        return waiters
