"""The audit log: what a record costs, how concurrent ones share a flush, how long a million take to verify."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.cluster import quantile
from secure_dagu.audit import journal
from secure_dagu.audit.checkpoints import public_of, read_public
from secure_dagu.audit.events import Action, Detail, Event, Trail
from secure_dagu.audit.log import open_trail
from secure_dagu.audit.verify import verify

Row = tuple[str, float, str, str, bool | None]
MILLION = 1_000_000
EVENT = Event(
    action=Action.TASK_DISPATCHED, actor="spiffe://secure-dagu/dispatcher/cron", address="192.0.2.7:40000",
    serial="29ba9dfedd2f8c34c5e92dcc17856c487f413b87", target="run:etl/0353sCBCE95jh4XWmJnARX",
    details={Detail.ATTEMPT: "a603147e7c9f22bc6efd5f1e9cc5196c"},
)  # fmt: skip


async def audit() -> list[Row]:
    """Measure recording, noting and verifying."""
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as name:
        folder = Path(name) / "audit"
        flushes = 0

        def count(*_: object) -> None:
            nonlocal flushes
            flushes += 1

        async with open_trail(folder, host="bench", source="coordinator", on_written=count) as trail:
            alone = []
            for _ in range(200):
                began = time.perf_counter()
                await trail.record(EVENT)
                alone.append((time.perf_counter() - began) * 1000)
            flushes, began = 0, time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(trail.record(EVENT))
            hundred, shared = (time.perf_counter() - began) * 1000, flushes
            busy = await _rate(trail)
            noted = _noted(trail.note)
        rows: list[Row] = [
            ("one record on disk, alone, p50", quantile(alone, 0.5), "ms", "", None),
            ("the same, p95", quantile(alone, 0.95), "ms", "", None),
            ("100 concurrent records, all on disk", hundred, "ms", "", None),
            ("flushes that these shared", float(shared), "", "<= 10", shared <= 10),
            ("records a second, 100 at a time", busy, "/s", "", None),
            ("noting an event, on the loop", noted, "µs", "", None),
        ]
        return rows + await asyncio.to_thread(_million, Path(name) / "million")


async def _rate(trail: Trail) -> float:
    async def forever() -> int:
        done = 0
        while time.perf_counter() < until:
            await trail.record(EVENT)
            done += 1
        return done

    began = time.perf_counter()
    until = began + 3
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(forever()) for _ in range(100)]
    return sum(task.result() for task in tasks) / (time.perf_counter() - began)


def _noted(note: Callable[[Event], None]) -> float:
    began = time.perf_counter()
    for number in range(5_000):
        note(
            Event(
                action=Action.LINK_OPENED, actor="spiffe://secure-dagu/worker/gpu-1", address=f"192.0.2.7:{number}",
                target="listener", details={Detail.TLS: "TLSv1.3"},
            )
        )  # fmt: skip
    return (time.perf_counter() - began) / 5_000 * 1e6


def _million(folder: Path) -> list[Row]:
    now = datetime.now(UTC)
    with journal.opened(folder, host="bench", source="coordinator") as log:
        for _ in range(MILLION // 500):
            log.append([(EVENT, now)] * 500)
    key = read_public(public_of(folder))
    began = time.perf_counter()
    report = verify(folder, key=key)
    took = time.perf_counter() - began
    assert report.bad is None, report
    assert report.records > MILLION
    size = sum(path.stat().st_size for path in journal.files_of(folder))
    return [
        ("verifying 1,000,000 records", took, "s", "< 60", took < 60),
        ("bytes a record", size / report.records, "B", "", None),
    ]
