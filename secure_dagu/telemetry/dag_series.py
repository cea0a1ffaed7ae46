"""Series that tell DAGs apart where `metrics_per_dag` asks for it (metrics reference, C.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from secure_dagu.telemetry.labels import OTHER, bounded_label
from secure_dagu.telemetry.prometheus import (
    Counter,
    CounterMetricFamily,
    GaugeMetricFamily,
    Histogram,
    Metric,
)

MAX_DAGS: Final = 200


class DagLabels:
    """Whether DAGs are told apart, and which of them have a label: the first that something happened to."""

    def __init__(self, overflow: Counter) -> None:
        """Take the counter of values beyond the cap."""
        self.is_wanted = False
        self._overflow = overflow
        self._known: set[str] = set()

    def of(self, dag: str, metric: str) -> str:
        """Return the label of a DAG; `metric` is who asks."""
        label = bounded_label(dag)
        if label not in self._known:
            if len(self._known) >= MAX_DAGS:
                self._overflow.labels(metric).inc()
                return OTHER
            self._known.add(label)
        return label


class Spans:
    """A histogram of seconds, with the label `dag` where DAGs are told apart."""

    def __init__(self, name: str, text: str, *, buckets: Sequence[float], labels: DagLabels) -> None:
        self._name = name
        self._labels = labels
        self._together = Histogram(name, text, buckets=buckets, registry=None)
        self._apart = Histogram(name, text, ("dag",), buckets=buckets, registry=None)

    def observe(self, seconds: float, *, dag: str) -> None:
        """Count one span."""
        if self._labels.is_wanted:
            self._apart.labels(self._labels.of(dag, self._name)).observe(seconds)
        else:
            self._together.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the one that is in use."""
        yield from (self._apart if self._labels.is_wanted else self._together).collect()


class Ends:
    """Runs that reached their end by DAG and status; nothing where DAGs are not told apart."""

    NAME: Final = "secure_dagu_dag_runs_by_dag"

    def __init__(self, labels: DagLabels) -> None:
        self._labels = labels
        self._counts: dict[tuple[str, str], int] = {}

    def inc(self, *, dag: str, status: str) -> None:
        """Count one end."""
        if self._labels.is_wanted:
            key = self._labels.of(dag, f"{self.NAME}_total"), status
            self._counts[key] = self._counts.get(key, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        family = CounterMetricFamily(
            self.NAME, "Runs that reached their end, where metrics_per_dag is on.", labels=("dag", "status")
        )
        for key, count in tuple(self._counts.items()):
            family.add_metric(key, count)
        yield family


class Present:
    """How many runs of each DAG are in one state now; nothing where DAGs are not told apart."""

    def __init__(self, name: str, text: str, labels: DagLabels) -> None:
        self._name = name
        self._text = f"{text}, where metrics_per_dag is on."
        self._labels = labels
        self._counts: dict[str, int] = {}

    def show(self, counts: Mapping[str, int]) -> None:
        """Show these numbers, by DAG, and no others."""
        shown: dict[str, int] = {}
        if self._labels.is_wanted:
            for dag, count in counts.items():
                label = self._labels.of(dag, self._name)
                shown[label] = shown.get(label, 0) + count
        self._counts = shown

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers."""
        family = GaugeMetricFamily(self._name, self._text, labels=("dag",))
        for label, count in self._counts.items():
            family.add_metric((label,), count)
        yield family
