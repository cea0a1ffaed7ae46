"""Many workers: idle, with leases, with many polls. The load is `bench.fleet`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.cluster import OPERATOR, Cluster, client, cpu_s, new_cluster, quantile, rss_mib, task
from bench.runs import ONE_STEP, Row

SECONDS = 30


def issue(cluster: Cluster, count: int) -> Path:
    """Issue `count` worker certificates in this process; return their folder."""
    from secure_dagu.dispatch.model import Role
    from secure_dagu.pki import directory

    folder = cluster.root / "workers"
    for number in range(count):
        directory.issue(
            cluster.pki,
            role=Role.WORKER,
            name=f"l{number}",
            advertised=(),
            out=folder,
            lifetime=None,
            force=False,
            now=datetime.now(UTC),
        )
    return folder


async def _measure(count: int, polls: int, *, leased: bool, delivery: bool = False) -> list[Row]:
    with new_cluster() as cluster, cluster.coordinator() as serving:
        folder = issue(cluster, count)
        idle = rss_mib(serving.pid)
        loader = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.fleet", f"--port={cluster.port}", f"--folder={folder}", f"--count={count}",
            f"--polls={polls}", f"--seconds={SECONDS}", *(["--leased"] if leased else []),
            stdout=asyncio.subprocess.PIPE, limit=2**26,
        )  # fmt: skip
        try:
            assert loader.stdout is not None
            await _line(loader.stdout, "present")
            if leased:
                await _dispatch(cluster, count)
            await _line(loader.stdout, "settled")
            before, began = cpu_s(serving.pid), time.perf_counter()
            delivered_ms = 0.0
            if delivery:
                await asyncio.sleep(SECONDS / 2)
                asked_at = await _dispatch(cluster, 1)
                delivered_ms = (float((await _line(loader.stdout, "claimed")).split()[1]) - asked_at) * 1000
            found = json.loads(await _line(loader.stdout, "{"))
            took = time.perf_counter() - began
            cpu, rss = (cpu_s(serving.pid) - before) / took, rss_mib(serving.pid)
            assert await loader.wait() == 0, "the load did not end in order"
        finally:
            if loader.returncode is None:
                loader.kill()
                await loader.wait()
    errors = sum(found["errors"].values())
    for what, times in found["errors"].items():
        print(f"  {times} x {what}", file=sys.stderr)
    p99 = quantile(found["times_ms"], 0.99)
    answered = len(found["times_ms"])
    rows: list[Row] = [
        (f"{count} workers: calls answered a second", answered / SECONDS, "/s", f"{found['expected'] / SECONDS:.0f}",
         answered >= found["expected"] * 0.97),
        ("errors", float(errors), "", "0", errors == 0),
        ("answer, p50", quantile(found["times_ms"], 0.5), "ms", "", None),
        ("answer, p99", p99, "ms", "<= 250", p99 <= 250 and not errors),
        ("time to connect them all", found["connected_s"], "s", "", None),
        ("coordinator CPU", cpu * 100, "%", "", None),
        ("coordinator CPU a worker", cpu * 1e6 / count, "us/s", "", None),
        ("coordinator memory a worker", (rss - idle) * 1024 / count, "KiB", "", None),
        ("coordinator memory", rss, "MiB", "", None),
        ("load CPU", found["load_cpu"] * 100, "%", "", None),
    ]  # fmt: skip
    if not leased:
        wanted = count * polls - int(delivery)
        held = found["held_polls"]
        rows.append(("polls still held", float(held), "", f"{wanted}", held == wanted))
    if delivery:
        rows.append(("one dispatch to its delivery", delivered_ms, "ms", "", None))
    return rows


async def _line(output: asyncio.StreamReader, beginning: str) -> str:
    """Return the next line that begins so."""
    while line := (await output.readline()).decode():
        if line.startswith(beginning):
            return line
    raise RuntimeError("the load ended too early; see its error above")


async def _dispatch(cluster: Cluster, count: int) -> float:
    """Dispatch some runs; return when the last call began, on the clock that all processes share."""
    asked_at = 0.0
    async with client(cluster) as operator, asyncio.TaskGroup() as group:
        await operator.workers(OPERATOR)  # connected before anything is timed
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            nonlocal asked_at
            async with gate:
                asked_at = time.monotonic()
                await operator.dispatch(OPERATOR, task("held", f"r{number}", ONE_STEP))

        for number in range(count):
            group.create_task(one(number))
    return asked_at


async def idle_workers() -> list[Row]:
    """2,000 idle workers, one heartbeat a second each and a pending poll."""
    return await _measure(2000, 1, leased=False)


async def leased() -> list[Row]:
    """1,000 workers, each with a leased run."""
    return await _measure(1000, 1, leased=True)


async def polls() -> list[Row]:
    """100 workers with 100 pending polls each; then one dispatch."""
    return await _measure(100, 100, leased=False, delivery=True)
