"""What happens when something is stopped or killed."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

from bench.cluster import OPERATOR, client, new_cluster, run_to_end, task
from bench.runs import Row


def _alive(marker: str) -> int:
    """Return how many processes have `marker` in their arguments."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += marker.encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found


async def cancel() -> list[Row]:
    """Time from the cancel call to the death of the whole process tree, a detached grandchild included."""
    times = []
    with new_cluster() as cluster, cluster.coordinator(), cluster.worker("w1"):
        async with client(cluster) as coordinator:
            for number in range(5):
                mark = f"98765.{number}"
                text = (
                    "steps:\n  - id: a\n    run: |\n"
                    f"      setsid sleep {mark} &\n      sleep {mark} &\n      sleep {mark}\n"
                )
                asked = task("tree", f"r{number}", text)
                await coordinator.dispatch(OPERATOR, asked)
                while _alive(mark) < 3:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.3)
                began = time.perf_counter()
                await coordinator.cancel(OPERATOR, run=asked.run, root=None)
                while _alive(mark):
                    await asyncio.sleep(0.005)
                times.append(time.perf_counter() - began)
    worst = max(times)
    return [("cancel to process tree dead, worst of 5", worst, "s", "<= 0.3", worst <= 0.3)]


async def outage() -> list[Row]:
    """Kill the coordinator during a run that logs, bring it back after 2, 15 and 45 s."""
    rows: list[Row] = []
    for away in (2, 15, 45):
        lines = (away + 6) * 50
        text = f"steps:\n  - id: a\n    run: for i in $(seq 1 {lines}); do echo line $i; sleep 0.02; done\n"
        with new_cluster() as cluster:
            with cluster.coordinator() as serving:
                worker = cluster.worker("w1")
                worker.__enter__()
                async with client(cluster) as coordinator:
                    await coordinator.dispatch(OPERATOR, task("out", "r", text))
                await asyncio.sleep(2)
                serving.kill()
                serving.wait()
            await asyncio.sleep(away)
            try:
                with cluster.coordinator():
                    async with client(cluster) as coordinator:
                        asked = task("out", "r", text)
                        document = ""
                        async for event in coordinator.follow(OPERATOR, run=asked.run, with_logs=False):
                            document = event.status or document
                        pieces = coordinator.read_log(OPERATOR, run=asked.run, step="a", stream=1, offset=0)
                        log = b"".join([piece async for piece in pieces])
            finally:
                worker.__exit__(None, None, None)
        good = json.loads(document)["status"] == 4 and log == b"".join(b"line %d\n" % n for n in range(1, lines + 1))
        rows.append((f"coordinator away {away} s: run succeeds, log identical", float(good), "", "1", good))
    return rows


async def kill_worker() -> list[Row]:
    """Time from `kill -9` of a worker to its run being failed."""
    with new_cluster() as cluster, cluster.coordinator(), cluster.worker("w1") as working:
        async with client(cluster) as coordinator:
            asked = task("lost", "r", "steps:\n  - run: sleep 300\n")
            await coordinator.dispatch(OPERATOR, asked)
            await asyncio.sleep(2)
            began = time.perf_counter()
            working.kill()
            document = ""
            async for event in coordinator.follow(OPERATOR, run=asked.run, with_logs=False):
                document = event.status or document
            took = time.perf_counter() - began
    found = json.loads(document)
    good = found["status"] == 2 and "stopped reporting" in found.get("error", "")
    return [("kill -9 of a worker to failed run with its reason", took, "s", "<= 33", took <= 33 and good)]


async def drain() -> list[Row]:
    """SIGTERM a worker with running work: everything arrives."""
    with new_cluster() as cluster, cluster.coordinator(), cluster.worker("w1") as working:
        async with client(cluster) as coordinator:
            text = "steps:\n  - id: a\n    run: sleep 2; echo done\n"

            async def one(number: int) -> int:
                return int(json.loads(await run_to_end(coordinator, task("drain", f"r{number}", text)))["status"])

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(20)]
                await asyncio.sleep(1)
                working.send_signal(signal.SIGTERM)
            ok = sum(item.result() == 4 for item in tasks)
            code = await asyncio.to_thread(working.wait, 20)
    good = ok == 20 and code == 0
    return [("SIGTERM with 20 running: succeeded", float(ok), "runs", "20", good)]
