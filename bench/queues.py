"""Queues of one host: how many one-step runs a second they drain, how soon a run is claimed, what history costs."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.cluster import quantile
from bench.runs import Row
from secure_dagu.assembly.launching import queue_book
from secure_dagu.dispatch.operating import StartRequest
from secure_dagu.local.launching import Launcher
from secure_dagu.run.model import AttemptId, DagRunRef
from tests.scheduler.host import Host

RUNS = 1000
CLAIMS = 40
STARTS = 30
HISTORY = (100, 50_000)


async def queue_rate() -> list[Row]:
    """Measure queues with the queue processor in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as folder:
        host = _host(folder)
        async with host.launcher() as launcher:
            with host.scheduler():
                await _drained(host, launcher, 50)
                return [*await _rate(host, launcher), await _claims(launcher)]


async def queue_history() -> list[Row]:
    """Measure what past runs add to a start."""
    costs = []
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as folder:
        async with _host(folder).launcher() as launcher:
            for count in HISTORY:
                await asyncio.to_thread(_remember, launcher, count)
                costs.append(await _starts(launcher))
    few, many = costs
    is_met = many <= few * 1.25 + 1
    return [
        (f"start of a run, {HISTORY[0]} past runs, p50", few, "ms", "", None),
        (f"the same, {HISTORY[1]:,} past runs, p50", many, "ms", "the same", is_met),
    ]


def _host(folder: str) -> Host:
    host = Host(Path(folder) / "home", limit=12)
    for name in ("flow", "direct"):
        host.dag(name, "queue: q\nsteps: [{id: a, run: 'true'}]")
    return host


async def _rate(host: Host, launcher: Launcher) -> list[Row]:
    began = time.perf_counter()
    await _enqueued(launcher, RUNS)
    enqueued = time.perf_counter() - began
    await _empty(launcher)
    whole = RUNS / (time.perf_counter() - began)
    book = queue_book(host.loaded, launcher)
    await book.pause("q", actor="bench")
    await _enqueued(launcher, RUNS)
    began = time.perf_counter()
    await book.resume("q", actor="bench")
    await _empty(launcher)
    drained = RUNS / (time.perf_counter() - began)
    return [
        ("queued one-step runs, end to end", whole, "/s", ">= 100", whole >= 100),
        ("enqueued meanwhile", RUNS / enqueued, "/s", "", None),
        ("the same from a full queue", drained, "/s", ">= 100", drained >= 100),
    ]


async def _drained(host: Host, launcher: Launcher, count: int) -> None:
    await _enqueued(launcher, count)
    await _empty(launcher)


async def _enqueued(launcher: Launcher, count: int) -> None:
    slots = asyncio.Semaphore(8)

    async def one() -> None:
        async with slots:
            await launcher.enqueue(StartRequest(dag="flow"))

    await asyncio.gather(*(one() for _ in range(count)))


async def _empty(launcher: Launcher) -> None:
    """Wait until nothing waits and nothing runs."""
    while launcher.places.running.living("q") or any((launcher.places.queues / "q").glob("item_*")):
        await asyncio.sleep(0.02)


async def _claims(launcher: Launcher) -> Row:
    took = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        run = await launcher.enqueue(StartRequest(dag="flow"))
        record = launcher.places.records.find(run)
        assert record is not None
        attempt = record.attempts()[-1]
        while not attempt.is_alive() and attempt.status().get("status") == 5:
            await asyncio.sleep(0.0005)
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.05)
    found = quantile(took, 0.5)
    return ("enqueue call to claimed, p50", found, "ms", "<= 50", found <= 50)


async def _starts(launcher: Launcher) -> float:
    took = []
    for _ in range(STARTS):
        began = time.perf_counter()
        run = await launcher.start(StartRequest(dag="direct"))
        took.append((time.perf_counter() - began) * 1000)
        record = launcher.places.records.find(run)
        assert record is not None
        while record.attempts()[-1].is_alive():
            await asyncio.sleep(0.005)
    return quantile(took, 0.5)


def _remember(launcher: Launcher, count: int) -> None:
    """Write records of past runs, spread over 28 days."""
    now = datetime.now(UTC)
    for number in range(count):
        at = now - timedelta(days=28) * ((number + 1) / count)
        run = DagRunRef("direct", f"p{count}-{number}")
        record = launcher.places.records.create(run, now=at)
        attempt = record.add_attempt(AttemptId("abcdef"), now=at)
        document = {"name": run.name, "dagRunId": run.run_id, "status": 4, "nodes": []}
        (attempt.path / "status.jsonl").write_text(json.dumps(document) + "\n")
    os.sync()
