"""Live updates: 200 readers of three topics each over HTTP, and how long a change of a run takes to reach them."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from secure_dagu.run.model import DagRunRef
from tests.web.api.conftest import HELLO
from tests.web.api.installation import Installation

READERS = 200
CHANGES = 30
_RUN = DagRunRef("hello", "r1")
_REQUEST = (
    "GET /api/v1/events/stream?topic=dagrun:hello/r1&topic=queues:&topic=dagslist: HTTP/1.1\r\n"
    "Host: 127.0.0.1\r\nAuthorization: Bearer admin\r\n\r\n"
)
_MARK = b'"error":"change '


async def sse() -> list[tuple[str, float, str, str, bool | None]]:
    """Change a run again and again; the readers are in this process too, so the CPU is that of both sides."""
    taken: list[float] = []
    changed_at: dict[int, float] = {}
    first = asyncio.Semaphore(0)
    with tempfile.TemporaryDirectory() as folder:
        site = Installation(Path(folder) / "home")
        (site.dags / "hello.yaml").write_text(HELLO)
        async with site.serving(), asyncio.TaskGroup() as group:
            async with httpx.AsyncClient(base_url=site.url, headers={"Authorization": "Bearer admin"}) as client:
                body = {"timeout": 60, "dagRunId": _RUN.run_id}
                (await client.post("/dags/hello/start-sync", json=body, timeout=90)).raise_for_status()
            port = int(site.url.split(":")[2].split("/")[0])

            async def read() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(_REQUEST.encode())
                while line := await reader.readline():
                    if b'"topic":"dagrun:' not in line:
                        continue
                    place = line.find(_MARK)
                    if place < 0:
                        first.release()
                    else:
                        number = int(line[place + len(_MARK) :].split(b'"', 1)[0])
                        taken.append(time.perf_counter() - changed_at[number])
                writer.close()

            readers = [group.create_task(read()) for _ in range(READERS)]
            for _ in readers:
                await first.acquire()
            record = site.runs.records.find(_RUN)
            attempt = record.latest() if record else None
            assert attempt is not None, "it has just run"
            cpu, wall = time.process_time(), time.perf_counter()
            for number in range(CHANGES):
                attempt.write(json.dumps({**attempt.status(), "error": f"change {number}"}), final=True)
                changed_at[number] = time.perf_counter()
                site.runs.tell(_RUN)
                await asyncio.sleep(0.5)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            for task in readers:
                task.cancel()
    cuts = statistics.quantiles(taken, n=100)
    return [
        ("a run's change to 200 readers, p50", cuts[49] * 1000, "ms", "≤ 1000", cuts[49] <= 1),
        ("a run's change to 200 readers, p95", cuts[94] * 1000, "ms", "≤ 1000", cuts[94] <= 1),
        ("frames delivered", len(taken), "", f"{READERS * CHANGES}", len(taken) == READERS * CHANGES),
        ("CPU of server and readers, 2 changes/s", 100 * cpu / wall, "% of a core", "", None),
    ]
