"""What a scheduler takes for 2,000 workflows: a look at the unchanged directory, a tick, a tick that starts many."""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from bench.cluster import quantile
from bench.runs import Row
from secure_dagu.assembly.places import places_of, workflows_of
from secure_dagu.dispatch.way import Way
from secure_dagu.local.catalogue import Catalogue
from secure_dagu.scheduler.service import Options, Scheduler
from secure_dagu.scheduler.state import State, StateFile
from tests.scheduler.host import SOMEBODY, Host

DAGS = 2_000
DUE_AT_ONCE = 200
TICKS = 20
NOON = datetime(2026, 6, 1, 10, 0, 0, 200_000, tzinfo=UTC)
"""In UTC; 12 o'clock in Berlin."""


async def schedule() -> list[Row]:
    """Measure ticks, and how long the event loop is held up by them."""
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as folder:
        host = Host(Path(folder) / "home")
        for number in range(DAGS):
            when = "0 12" if number < DUE_AT_ONCE else f"{1 + number % 59} {number % 24}"
            host.dag(f"flow{number}", f"schedule: '{when} * * *'\nsteps: [{{id: a, run: 'true'}}]")
        runs = Catalogue(places_of(host.loaded), way=Way(None, SOMEBODY), reader="bench")
        try:
            async with host.launcher() as launcher:
                file = StateFile(host.home / "state.json")
                names = [f"flow{number}" for number in range(DUE_AT_ONCE)]
                before = NOON - timedelta(minutes=1)
                file.write(file.encode(State(last_tick=before, dags=dict.fromkeys(names, before))))
                zone = ZoneInfo("Europe/Berlin")
                scheduler = Scheduler(
                    workflows=(workflows := workflows_of(host.loaded)), runs=runs, launching=launcher, file=file,
                    options=Options(zone=lambda: zone),
                )  # fmt: skip
                first_s = await _timed(workflows.all())
                many_s, many_lag_s = await _with_lag(scheduler, NOON)
                quiet = [await _with_lag(scheduler, NOON + timedelta(seconds=1 + number)) for number in range(TICKS)]
        finally:
            runs.close()
    tick_ms = quantile([took for took, _ in quiet], 0.5) * 1000
    lag_ms = quantile([lag for _, lag in quiet], 0.5) * 1000
    return [
        (f"{DAGS:,} workflows read for the first time", first_s, "s", "", None),
        (f"tick of {DAGS:,} workflows, nothing due, p50", tick_ms, "ms", "≤ 500", tick_ms <= 500),
        ("event loop held up by it, longest of a tick, p50", lag_ms, "ms", "≤ 50", lag_ms <= 50),
        (f"tick that starts {DUE_AT_ONCE} of them", many_s, "s", "", None),
        ("event loop held up by that, longest", many_lag_s * 1000, "ms", "", None),
    ]


async def _timed(work: object) -> float:
    began = time.perf_counter()
    await work  # type: ignore[misc]
    return time.perf_counter() - began


async def _with_lag(scheduler: Scheduler, now: datetime) -> tuple[float, float]:
    """Return how long a tick takes, and the longest time that the event loop did nothing else meanwhile."""
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - began - 0.001)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(), name="watch")
        took = await _timed(scheduler.tick(now))
        watching.cancel()
    return took, worst
