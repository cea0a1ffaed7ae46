"""Series of the queues of a host (metrics reference, C.6). Queues of single DAGs are one series, `_dag`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from secure_dagu.dispatch.operating import Waiting
from secure_dagu.dispatch.queueing import QueueState
from secure_dagu.telemetry.labels import OTHER, bounded_label
from secure_dagu.telemetry.prometheus import CollectorRegistry, Gauge

QUEUES = CollectorRegistry()
OF_DAGS = "_dag"
MAX_QUEUES = 200

DEPTH = Gauge("secure_dagu_queue_depth", "Runs that wait in a queue.", ("queue",), registry=QUEUES)
RUNNING = Gauge("secure_dagu_queue_running", "Runs of a queue that are executed.", ("queue",), registry=QUEUES)
CAPACITY = Gauge(
    "secure_dagu_queue_capacity", "Runs that a queue may have at a time; _dag has one a DAG, and says 1.", ("queue",),
    registry=QUEUES,
)  # fmt: skip
OLDEST = Gauge(
    "secure_dagu_queue_oldest_item_timestamp_seconds", "Since when the oldest run of a queue waits; 0: none does.",
    ("queue",), registry=QUEUES,
)  # fmt: skip
BLOCKED = Gauge("secure_dagu_queue_blocked", "Runs that wait, by reason.", ("reason",), registry=QUEUES)
for _reason in Waiting:
    BLOCKED.labels(_reason.value).set(0)


def show_queues(states: Sequence[QueueState], *, named: Mapping[str, int]) -> None:
    """Show the queues as they stand."""
    labels = {name: bounded_label(name) if place < MAX_QUEUES else OTHER for place, name in enumerate(sorted(named))}
    depth = dict.fromkeys((*labels.values(), OF_DAGS), 0)
    running, oldest = dict(depth), dict.fromkeys(depth, 0.0)
    for state in states:
        label = labels.get(state.name, OF_DAGS)
        depth[label] += len(state.items)
        running[label] += state.running
        if state.items:
            first = min(item.queued_at for item in state.items).timestamp()
            oldest[label] = min(oldest[label] or first, first)
    for label in depth:
        DEPTH.labels(label).set(depth[label])
        RUNNING.labels(label).set(running[label])
        OLDEST.labels(label).set(oldest[label])
    for name, label in labels.items():
        CAPACITY.labels(label).set(named[name])
    CAPACITY.labels(OF_DAGS).set(1)


def show_waits(reasons: Iterable[Waiting]) -> None:
    """Show why runs wait."""
    counts = dict.fromkeys(Waiting, 0)
    for reason in reasons:
        counts[reason] += 1
    for reason, count in counts.items():
        BLOCKED.labels(reason.value).set(count)
