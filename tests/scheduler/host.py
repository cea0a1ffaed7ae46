"""A host with queues: real folders, a real fork server, the real processor in a process that can be killed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from secure_dagu.assembly.launching import launching
from secure_dagu.config.load import Loaded, load
from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.dispatch.way import Way
from secure_dagu.local.launching import Launcher
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.scheduler.queues import LOOK_EVERY_S

SOMEBODY = Caller(role=Role.ADMIN, name="test", proven=True)
SCHEDULER = """
import argparse, asyncio, sys
from secure_dagu.assembly.launching import launching, queue_processor
from secure_dagu.dispatch.way import Way
from tests.scheduler.host import SOMEBODY, settings
from pathlib import Path

async def main():
    loaded = settings(Path(sys.argv[1]))
    async with launching(loaded, way=Way(None, SOMEBODY)) as launcher:
        processor = queue_processor(loaded, launcher, look_every_s=float(sys.argv[2]))
        async with asyncio.TaskGroup() as group:
            group.create_task(processor.run_forever())
            await processor.is_settled.wait()
            print("ready", flush=True)

asyncio.run(main())
"""


def settings(home: Path) -> Loaded:
    """Return the settings of a home directory."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "DAGU_HOME": str(home)}
    return load(argparse.Namespace(), environ)


class Host:
    """One home directory."""

    def __init__(self, home: Path, *, limit: int = 4) -> None:
        self.home = home
        (home / "dags").mkdir(parents=True)
        (home / "config.yaml").write_text(f"queues: {{config: [{{name: q, max_concurrency: {limit}}}]}}\n")
        self.loaded = settings(home)

    def dag(self, name: str, text: str) -> None:
        """Write a definition."""
        (self.home / "dags" / f"{name}.yaml").write_text(text)

    @contextlib.asynccontextmanager
    async def launcher(self) -> AsyncIterator[Launcher]:
        """Yield what starts runs."""
        async with launching(self.loaded, way=Way(None, SOMEBODY)) as launcher:
            yield launcher

    @contextlib.contextmanager
    def scheduler(self, *, look_every_s: float = LOOK_EVERY_S) -> Iterator[subprocess.Popen[str]]:
        """Run the queue processor in a process of its own; it may be killed meanwhile."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DAGU_")}
        process = subprocess.Popen(
            [sys.executable, "-c", SCHEDULER, str(self.home), str(look_every_s)], stdout=subprocess.PIPE, text=True,
            env=environ,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert "ready\n" in iter(process.stdout.readline, ""), "it has ended"
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def document(launcher: Launcher, run: DagRunRef) -> dict[str, Any]:
    """Return how a run stands."""
    record = launcher.places.records.find(run)
    attempt = record.latest() if record else None
    return attempt.status() if attempt else {}


def status(launcher: Launcher, run: DagRunRef) -> RunStatus:
    """Return the status of a run."""
    return RunStatus(document(launcher, run).get("status", 0))


async def until(condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def children_of(pid: int, *, running: str = "") -> list[int]:
    """Return the processes that a process started, those with a word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and running in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
    return found


def lines(path: Path) -> list[str]:
    """Return what steps have written."""
    return path.read_text().split() if path.exists() else []


def damaged(folder: Path, count: int) -> None:
    """Write items that are none between good ones."""
    folder.mkdir(parents=True, exist_ok=True)
    bodies = [b"", b"{", b"[1]", b'{"name": 1}', b"\xff\xfe", json.dumps({"name": "../x", "runId": "r"}).encode()]
    for number in range(count):
        path = folder / f"item_high_20200101_000000_{number:03d}Z_bad{number}.json"
        path.write_bytes(bodies[number % len(bodies)])
