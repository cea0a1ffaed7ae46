"""Runs on one host: what the engine costs a step, what a whole `start` takes, what a large definition takes to load."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.cluster import quantile
from bench.runs import Row
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from tests.system.hosts import PROGRAM

STEPS = 1000


def _many(kind: str, count: int) -> str:
    return f"type: {kind}\nsteps:\n" + "".join(f"  - {{id: s{n}, run: 'true'}}\n" for n in range(count))


def _bare_s() -> float:
    """Return what as many processes take that nobody looks after."""
    began = time.perf_counter()
    for _ in range(STEPS):
        subprocess.run(["sh", "-e", "-c", "true"], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


def _start(home: Path, text: str) -> float:
    """Return how long `start` takes in all."""
    file = home / "flow.yaml"
    file.write_text(text)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "DAGU_HOME": str(home / "home")}
    began = time.perf_counter()
    subprocess.run([str(PROGRAM), "start", "-q", str(file)], env=env, check=True)
    return time.perf_counter() - began


async def local() -> list[Row]:
    """Measure runs on this host."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as folder:
        home = Path(folder)
        one = [_start(home, "steps: [{id: a, run: 'true'}]") for _ in range(12)][2:]
        total = quantile(one, 0.5) * 1000
        rows.append(("start of a one-step DAG, all in all, p50", total, "ms", "<= 350", total <= 350))
        bare = min(_bare_s() for _ in range(2))
        rows.append(("bare cost of a process", bare, "ms", "", None))
        for kind in ("chain", "graph"):
            took = min(_start(home, _many(kind, STEPS)) for _ in range(2))
            cost = (took - total / 1000 - bare) / STEPS * 1000
            rows.append((f"engine's cost of a step, {STEPS} steps, {kind}", cost, "ms", "<= 2", cost <= 2))
    text = _many("chain", 5000)
    loads = []
    for _ in range(3):
        began = time.perf_counter()
        make_plan(load_definition(text, file="flow.yaml").main)
        loads.append(time.perf_counter() - began)
    slowest = max(loads)
    rows.append(("5,000 steps loaded and planned", slowest, "s", "<= 1.5", slowest <= 1.5))
    return rows
