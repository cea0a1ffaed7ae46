"""Runs: how long one takes, how many a second, how a chain grows, what history costs, what idling costs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.cluster import OPERATOR, client, cpu_s, new_cluster, quantile, rss_mib, run_to_end, task

ONE_STEP = "steps:\n  - id: a\n    run: 'true'\n"
Row = tuple[str, float, str, str, bool | None]


async def one_step() -> list[Row]:
    """Time one-step runs on an idle system, dispatch to recorded success."""
    with new_cluster() as cluster, cluster.coordinator(), cluster.worker("w1"):
        async with client(cluster) as coordinator:
            times = []
            for number in range(60):
                began = time.perf_counter()
                document = await run_to_end(coordinator, task("one", f"r{number}", ONE_STEP))
                times.append((time.perf_counter() - began) * 1000)
                assert json.loads(document)["status"] == 4, document
                await asyncio.sleep(0.05)
    times = times[10:]
    p50 = quantile(times, 0.5)
    return [
        ("one-step run, dispatch to recorded success, p50", p50, "ms", "<= 45", p50 <= 45),
        ("the same, p95", quantile(times, 0.95), "ms", "", None),
    ]


async def throughput() -> list[Row]:
    """Count runs a second at 16 and 64 concurrent dispatches."""
    rows: list[Row] = []
    for concurrent in (16, 64):
        with new_cluster() as cluster, cluster.coordinator() as serving, cluster.worker("w1") as working:
            async with client(cluster) as coordinator:
                count, next_id = 0, iter(range(10**9))
                for number in range(20):
                    await run_to_end(coordinator, task("one", f"warm{number}", ONE_STEP))
                before = cpu_s(serving.pid), cpu_s(working.pid)
                began = time.perf_counter()
                until = began + 10

                async def forever() -> None:
                    nonlocal count
                    while time.perf_counter() < until:
                        document = await run_to_end(coordinator, task("one", f"r{next(next_id)}", ONE_STEP))
                        assert json.loads(document)["status"] == 4, document
                        count += 1

                async with asyncio.TaskGroup() as group:
                    for _ in range(concurrent):
                        group.create_task(forever())
                took = time.perf_counter() - began
                rate = count / took
                rows.append((f"runs a second at {concurrent} concurrent", rate, "/s", ">= 120", rate >= 120))
                rows.append((f"coordinator CPU a run at {concurrent}", (cpu_s(serving.pid) - before[0]) / count * 1000,
                             "ms", "", None))  # fmt: skip
                rows.append((f"worker CPU a run at {concurrent}", (cpu_s(working.pid) - before[1]) / count * 1000,
                             "ms", "", None))  # fmt: skip
    return rows


async def chain() -> list[Row]:
    """Time a 100-step chain."""
    text = "type: chain\nsteps:\n" + "".join(f"  - id: s{n}\n    run: 'true'\n" for n in range(100))
    with new_cluster() as cluster, cluster.coordinator(), cluster.worker("w1"):
        async with client(cluster) as coordinator:
            times = []
            for number in range(5):
                began = time.perf_counter()
                document = await run_to_end(coordinator, task("chain", f"r{number}", text))
                times.append(time.perf_counter() - began)
                found = json.loads(document)
                assert (found["status"], len(found["nodes"])) == (4, 100), document[:500]
    took = quantile(times, 0.5)
    return [("100-step chain on a worker", took, "s", "<= 1.5", took <= 1.5)]


async def memory() -> list[Row]:
    """Weigh an idle coordinator and an idle worker after 20 s."""
    with new_cluster() as cluster, cluster.coordinator() as serving, cluster.worker("w1") as working:
        await asyncio.sleep(20)
        coordinator, worker = rss_mib(serving.pid), rss_mib(working.pid)
    return [
        ("idle coordinator", coordinator, "MiB", "<= 80", coordinator <= 80),
        ("idle worker", worker, "MiB", "<= 60", worker <= 60),
    ]


async def history() -> list[Row]:
    """Compare the cost of a dispatch with and without 50,000 past runs."""
    medians = []
    for past in (0, 50_000):
        with new_cluster() as cluster:
            with cluster.coordinator(), cluster.worker("w1"):
                async with client(cluster) as coordinator:
                    await run_to_end(coordinator, task("one", "first", ONE_STEP))
            if past:
                multiply(cluster.host.home / "data" / "coordinator.db", past)
            with cluster.coordinator(), cluster.worker("w1"):
                async with client(cluster) as coordinator:
                    times = []
                    for number in range(300):
                        asked = task("one", f"n{number}", ONE_STEP)
                        began = time.perf_counter()
                        await coordinator.dispatch(OPERATOR, asked)
                        times.append((time.perf_counter() - began) * 1000)
                        await asyncio.sleep(0.005)
                    medians.append(quantile(times[50:], 0.5))
    ratio = medians[1] / medians[0]
    return [
        ("Dispatch with no past runs, p50", medians[0], "ms", "", None),
        ("Dispatch with 50,000 past runs, p50", medians[1], "ms", "", None),
        ("ratio", ratio, "x", "<= 1.1", ratio <= 1.1),
    ]


Values = dict[str, Any]


def multiply(path: object, count: int, vary: Callable[[int], tuple[Values, Values]] = lambda _: ({}, {})) -> None:
    """Copy the one finished run of a stopped coordinator's database `count` times.

    Args:
        path: the database.
        count: how often.
        vary: what is different in a copy's rows of `runs` and of `attempts`.
    """
    with sqlite3.connect(str(path)) as db:
        columns = {
            table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in ("runs", "attempts")
        }
        run = dict(zip(columns["runs"], db.execute("SELECT * FROM runs").fetchone(), strict=True))
        attempt = dict(zip(columns["attempts"], db.execute("SELECT * FROM attempts").fetchone(), strict=True))
        first = run["id"] + 1

        def rows(table: str) -> Iterator[tuple[Any, ...]]:
            for number in range(count):
                key = f"{number:016x}:{number:032x}"
                if table == "runs":
                    values = {**run, "id": first + number, "run_id": f"old{number}", "root_run_id": f"old{number}",
                              "latest": key} | vary(number)[0]  # fmt: skip
                else:
                    values = {**attempt, "key": key, "attempt_id": f"{number:032x}", "run": first + number,
                              "claim_key": key} | vary(number)[1]  # fmt: skip
                    if "id" in values:
                        values["id"] = attempt["id"] + 1 + number
                yield tuple(values.values())

        for table in ("runs", "attempts"):
            marks = ",".join("?" * len(columns[table]))
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows(table))
