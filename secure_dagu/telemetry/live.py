"""Series that are read at the moment of a scrape: which workers live, who is connected.

A source is a callback that answers from memory; what it no longer names has no series any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from secure_dagu.dispatch.match import Demand
from secure_dagu.dispatch.model import Role, WorkerHealth, WorkerId, WorkerInfo
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry.labels import (
    GROUPS,
    OTHER,
    bounded_label,
    connection_labels,
    demand_label,
    key_exchange_group,
)
from secure_dagu.telemetry.prometheus import GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from secure_dagu.dispatch.operating import Waiting

MAX_WORKERS: Final = 1000
"""Distinct worker ids with series of their own."""
MAX_WORKER_LABELS: Final = 16
MAX_DEMANDS: Final = 200
"""Distinct selectors with series of their own."""
CONNECTION: Final = ("tls", "tls_version", "peer_class")


class Workers:
    """What a scrape says about workers, made from the coordinator's list at that moment."""

    def __init__(self, workers: Callable[[], Iterable[WorkerInfo]]) -> None:
        self.workers = workers
        self.is_draining: Callable[[WorkerId], bool] = lambda _worker: False
        self.quarantined: Callable[[], int] = lambda: 0

    def collect(self) -> Iterator[Metric]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=labels)

        counts = gauge("secure_dagu_workers", "Workers by health.", "state")
        registered = GaugeMetricFamily("dagu_workers_registered", "Workers known, unhealthy ones included.")
        seen = gauge("dagu_worker_heartbeat_timestamp_seconds", "Time of the last heartbeat.", "worker_id")
        health = gauge("dagu_worker_health_status", "1 for the present health.", "worker_id", "status")
        slots = gauge("secure_dagu_worker_slots", "Slots of a worker.", "worker_id", "state")
        pollers = gauge("dagu_worker_pollers", "Slots of a worker.", "worker_id", "state")
        tasks = gauge("dagu_worker_running_tasks", "Tasks that a worker runs.", "worker_id")
        oldest = gauge(
            "dagu_worker_oldest_running_task_age_seconds", "Age of the oldest running task, 0 if none.", "worker_id"
        )
        info = gauge(
            "dagu_worker_info", "One series for each label of a worker.", "worker_id", "label_name", "label_value"
        )
        now = datetime.now(UTC).timestamp()
        states = dict.fromkeys(("healthy", "warning", "unhealthy", "draining", "quarantined"), 0)
        total = 0
        shown: set[str] = set()
        for worker in self.workers():
            total += 1
            state = worker.health.name.lower() if worker.health is not WorkerHealth.UNSPECIFIED else "unhealthy"
            states["draining" if self.is_draining(worker.worker) else state] += 1
            name, stats = bounded_label(worker.worker), worker.stats
            if total > MAX_WORKERS or name in shown:  # two ids may become one label; a scrape may not show it twice
                continue
            shown.add(name)
            idle = max(stats.total_pollers - stats.busy_pollers, 0)
            seen.add_metric([name], worker.last_heartbeat_at.timestamp())
            for status in ("healthy", "warning", "unhealthy"):
                health.add_metric([name, status], float(status == state))
            for family in (slots, pollers):
                family.add_metric([name, "busy"], stats.busy_pollers)
                family.add_metric([name, "idle"], idle)
            pollers.add_metric([name, "total"], stats.total_pollers)
            tasks.add_metric([name], len(stats.running))
            first = min((task.started_at.timestamp() for task in stats.running), default=now)
            oldest.add_metric([name], max(now - first, 0.0))
            few = list(worker.labels.items())[:MAX_WORKER_LABELS]
            for key, value in {bounded_label(key): bounded_label(value) for key, value in few}.items():
                info.add_metric([name, key, value], 1)
        states["quarantined"] = self.quarantined()
        for state, count in states.items():
            counts.add_metric([state], count)
        registered.add_metric([], total)
        yield from (counts, registered, seen, health, slots, pollers, tasks, oldest, info)


Backlogged = tuple[Demand, int, datetime, "Waiting"]
"""What tasks ask of a worker, how many ask that, since when the oldest, and why they wait."""


class WaitingTasks:
    """What a scrape says about tasks that wait for a worker: by what they ask of one, and by reason."""

    def __init__(self, waiting: Callable[[], Iterable[Backlogged]]) -> None:
        self.waiting = waiting

    def collect(self) -> Iterator[Metric]:
        from secure_dagu.dispatch.operating import Waiting  # only a coordinator is asked

        counts: dict[str, int] = {}
        oldest: dict[str, datetime] = {}
        shown = (Waiting.NO_WORKER, Waiting.NO_MATCHING_WORKER, Waiting.NOT_AUTHORISED, Waiting.NO_CAPACITY)
        reasons = dict.fromkeys(shown, 0)
        for demand, count, since, reason in self.waiting():
            reasons[reason] += count
            label = demand_label(demand)
            if label not in counts and len(counts) >= MAX_DEMANDS:
                label = OTHER
            counts[label] = counts.get(label, 0) + count
            oldest[label] = min(oldest.get(label, since), since)
        now = datetime.now(UTC)
        backlog = GaugeMetricFamily(
            "secure_dagu_selector_backlog", "Tasks that wait for a worker, by selector.", labels=("selector",)
        )
        waits = GaugeMetricFamily(
            "secure_dagu_selector_oldest_wait_seconds", "How long the oldest of them has waited.", labels=("selector",)
        )
        for label, count in counts.items():
            backlog.add_metric((label,), count)
            waits.add_metric((label,), max((now - oldest[label]).total_seconds(), 0.0))
        blocked = GaugeMetricFamily(
            "secure_dagu_tasks_waiting", "Tasks that wait for a worker, by reason.", labels=("reason",)
        )
        for reason, count in reasons.items():
            blocked.add_metric((reason.value,), count)
        yield from (backlog, waits, blocked)


class Connections:
    """What a scrape says about live connections, counted at that moment."""

    def __init__(self, counts: Callable[[], Mapping[tuple[Role, str, str], int]]) -> None:
        self.counts = counts

    def collect(self) -> Iterator[Metric]:
        by_peer: dict[tuple[str, str, str], int] = {}
        by_group = dict.fromkeys((*GROUPS, "other"), 0)
        for (role, tls_version, group), count in self.counts().items():
            labels = connection_labels(role, tls_version)
            by_peer[labels] = by_peer.get(labels, 0) + count
            if tls_version != "none":
                by_group[key_exchange_group(group)] += count
        peers = GaugeMetricFamily("secure_dagu_peer_connections", "Open peer connections.", labels=CONNECTION)
        groups = GaugeMetricFamily(
            "secure_dagu_peer_key_exchange_connections",
            "Open TLS connections by key exchange group.",
            labels=("group",),
        )
        for labels, count in by_peer.items():
            peers.add_metric(labels, count)
        for group, count in by_group.items():
            groups.add_metric((group,), count)
        yield from (peers, groups)


class PeerCertificates:
    """When the certificates of connected workers end; the latest where a worker has just renewed."""

    def __init__(self, peers: Callable[[], Iterable[Peer]]) -> None:
        self.peers = peers

    def collect(self) -> Iterator[Metric]:
        ends: dict[str, float] = {}
        for peer in self.peers():
            if peer.identity is None or peer.identity.role is not Role.WORKER or peer.not_after is None:
                continue
            name = bounded_label(peer.identity.name)
            if name in ends or len(ends) < MAX_WORKERS:
                ends[name] = max(ends.get(name, 0.0), peer.not_after.timestamp())
        family = GaugeMetricFamily(
            "secure_dagu_peer_certificate_not_after_timestamp_seconds", "End of the certificate of a live worker.",
            labels=("worker_id",),
        )  # fmt: skip
        for name, end in ends.items():
            family.add_metric((name,), end)
        yield family
