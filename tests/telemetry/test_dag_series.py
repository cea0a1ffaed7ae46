"""DAGs have labels only where that is asked for, and never more than the cap."""

from __future__ import annotations

import pytest

from secure_dagu.telemetry.dag_series import MAX_DAGS, DagLabels, Ends, Present, Spans
from secure_dagu.telemetry.prometheus import CollectorRegistry, Counter

NAME = "dagu_queue_wait_seconds"


class Series:
    """One of each, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.labels = DagLabels(Counter("overflow", "beyond the cap", ("metric",), registry=self.registry))
        self.spans = Spans(NAME, "waits", buckets=(1, 5), labels=self.labels)
        self.ends = Ends(self.labels)
        self.present = Present("dagu_dag_runs_queued_by_dag", "wait", self.labels)
        for one in (self.spans, self.ends, self.present):
            self.registry.register(one)

    def value(self, name: str, **labels: str) -> float | None:
        """Return one series; None where it is not shown."""
        return self.registry.get_sample_value(name, labels)

    def label_values(self) -> set[str]:
        """Return every DAG that is named anywhere."""
        found = (sample.labels.get("dag") for family in self.registry.collect() for sample in family.samples)
        return {label for label in found if label is not None}


@pytest.fixture
def series() -> Series:
    return Series()


def test_without_being_asked_no_dag_is_named(series: Series) -> None:
    series.spans.observe(2, dag="etl")
    series.ends.inc(dag="etl", status="failed")
    series.present.show({"etl": 3})
    assert series.value(f"{NAME}_count") == 1
    assert series.label_values() == set()


def test_each_dag_has_series_of_its_own(series: Series) -> None:
    series.labels.is_wanted = True
    series.spans.observe(2, dag="etl")
    series.spans.observe(7, dag="etl")
    series.spans.observe(0, dag="mail")
    series.ends.inc(dag="etl", status="failed")
    series.ends.inc(dag="etl", status="failed")
    series.present.show({"etl": 3, "mail": 1})
    series.present.show({"mail": 2})
    assert series.value(f"{NAME}_count") is None
    assert series.value(f"{NAME}_bucket", dag="etl", le="5.0") == 1
    assert series.value(f"{NAME}_sum", dag="etl") == 9
    assert series.value(f"{NAME}_count", dag="mail") == 1
    assert series.value("secure_dagu_dag_runs_by_dag_total", dag="etl", status="failed") == 2
    assert series.value("dagu_dag_runs_queued_by_dag", dag="mail") == 2
    assert series.value("dagu_dag_runs_queued_by_dag", dag="etl") is None


def test_beyond_the_cap_dags_share_a_label_and_are_counted(series: Series) -> None:
    series.labels.is_wanted = True
    for number in range(MAX_DAGS + 50):
        series.spans.observe(1, dag=f"dag{number}")
        series.ends.inc(dag=f"dag{number}", status="failed")
    series.present.show({f"dag{number}": 1 for number in range(MAX_DAGS + 50)})
    assert len(series.label_values()) == MAX_DAGS + 1
    assert series.value(f"{NAME}_count", dag="_other") == 50
    assert series.value("secure_dagu_dag_runs_by_dag_total", dag="_other", status="failed") == 50
    assert series.value("dagu_dag_runs_queued_by_dag", dag="_other") == 50
    assert series.value("overflow_total", metric=NAME) == 50


def test_a_name_is_made_harmless(series: Series) -> None:
    series.labels.is_wanted = True
    series.spans.observe(1, dag='x"} 1\nevil{a="' + "y" * 100)
    (label,) = series.label_values()
    assert len(label) == 64
    assert not set(label) & set('"{}\n\\ ')
