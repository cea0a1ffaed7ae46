"""Series of the scheduler (metrics reference, C.6)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from secure_dagu.run.model import RunStatus, TriggerType
from secure_dagu.telemetry import metrics
from secure_dagu.telemetry.prometheus import CollectorRegistry, Counter, Gauge, Histogram

SCHEDULER = CollectorRegistry()

RUNNING = Gauge("dagu_scheduler_running", "1 while this process's scheduler is the active one.", registry=SCHEDULER)
FIRED = Counter(
    "secure_dagu_schedule_starts_total", "Starts by schedule: started, failed, or delayed until they can be.",
    ("trigger", "result"), registry=SCHEDULER,
)  # fmt: skip
SKIPPED = Counter(
    "secure_dagu_schedule_skips_total", "Start times that were dropped: a run goes on, or succeeded already.",
    ("trigger",), registry=SCHEDULER,
)  # fmt: skip
TICK = Histogram(
    "secure_dagu_schedule_tick_seconds", "Looking at every schedule once.", registry=SCHEDULER,
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)  # fmt: skip
TICK_FAILURES = Counter("secure_dagu_schedule_tick_failures_total", "Ticks that did not end well.", registry=SCHEDULER)
TICKED_AT = Gauge(
    "secure_dagu_schedule_last_tick_timestamp_seconds", "When the last tick ended well.", registry=SCHEDULER
)
SCHEDULED_DAGS = Gauge("secure_dagu_scheduled_dags", "DAGs with a schedule that are not suspended.", registry=SCHEDULER)
KEPT = Gauge("secure_dagu_schedule_kept_dags", "DAGs with starts that wait to be caught up on.", registry=SCHEDULER)
RETRIES = Counter("secure_dagu_dag_retries_total", "Automatic retries of whole runs.", registry=SCHEDULER)
SCHEDULER.register(metrics.ZOMBIE_RUNS)
SCHEDULER.register(metrics.ZOMBIE_SWEEP_AT)
SCHEDULER.register(metrics.QUEUE_WAIT)
SCHEDULER.register(metrics.DAG_RUNS)
SCHEDULER.register(metrics.DAG_RUN_DURATION)
SCHEDULER.register(metrics.DAG_RUNS_BY_DAG)

_WORDS: Final = {TriggerType.SCHEDULER: "scheduler", TriggerType.CATCHUP: "catchup"}
for _word in _WORDS.values():
    SKIPPED.labels(_word)
    for _result in ("started", "failed", "delayed"):
        FIRED.labels(_word, _result)
TICKED_AT.set(float("nan"))


def run_ended(document: Mapping[str, Any]) -> None:
    """Count the end of a run of this host, and how long it took."""
    with contextlib.suppress(ValueError, TypeError):
        dag = str(document.get("name"))
        metrics.run_ended(dag, RunStatus(document.get("status", 0)).word)
        began, ended = (datetime.fromisoformat(str(document.get(key))) for key in ("startedAt", "finishedAt"))
        metrics.DAG_RUN_DURATION.observe(max((ended - began).total_seconds(), 0.0), dag=dag)


def fired(trigger: TriggerType, *, result: str) -> None:
    """Count a start."""
    FIRED.labels(_WORDS[trigger], result).inc()


def skipped(*, is_missed: bool) -> None:
    """Count a start time that was dropped."""
    SKIPPED.labels("catchup" if is_missed else "scheduler").inc()


def ticked(took_s: float, *, dags: int, kept: int) -> None:
    """Note a tick that ended well."""
    TICK.observe(took_s)
    TICKED_AT.set(time.time())
    SCHEDULED_DAGS.set(dags)
    KEPT.set(kept)
