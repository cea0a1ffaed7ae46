"""The load of this host, sampled from /proc and kept in memory: CPU, memory, disk, load average."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

_MAX_SAMPLES = 20_000


class Sample(Struct, frozen=True, kw_only=True):
    """One look at the host. Percentages, but for `load`, which is the load average of one minute."""

    at: int
    """Unix seconds."""
    cpu: float
    memory: float
    disk: float
    load: float
    memory_total: int
    """Bytes, as for the rest."""
    memory_used: int
    disk_total: int
    disk_used: int


class HostLoad:
    """Samples, oldest first."""

    def __init__(self, folder: Path, *, interval_s: float, retention_s: float) -> None:
        """Make one; `folder` is on the disk that is looked at."""
        self._folder = folder
        self._interval_s = max(1.0, interval_s)
        self.retention_s = retention_s
        self._samples: deque[Sample] = deque(maxlen=min(_MAX_SAMPLES, int(retention_s / self._interval_s) + 1))
        self._times = _cpu_times()

    async def keep(self) -> None:
        """Sample until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._interval_s)

    def look(self) -> None:
        """Take one sample now."""
        busy, total = _cpu_times()
        busy_then, total_then = self._times
        self._times = busy, total
        memory_total, memory_free = _memory()
        disk = os.statvfs(_existing(self._folder))
        disk_total = disk.f_blocks * disk.f_frsize
        disk_used = disk_total - disk.f_bfree * disk.f_frsize
        self._samples.append(
            Sample(
                at=int(time.time()),
                cpu=_percent(busy - busy_then, total - total_then),
                memory=_percent(memory_total - memory_free, memory_total),
                disk=_percent(disk_used, disk_total),
                load=os.getloadavg()[0],
                memory_total=memory_total,
                memory_used=memory_total - memory_free,
                disk_total=disk_total,
                disk_used=disk_used,
            )
        )

    def since(self, seconds: float) -> Sequence[Sample]:
        """Return the samples of the last `seconds`."""
        after = time.time() - min(seconds, self.retention_s)
        return [sample for sample in self._samples if sample.at >= after]


def _cpu_times() -> tuple[int, int]:
    """Return jiffies that the host was busy, and all."""
    try:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(numbers) - numbers[3] - numbers[4], sum(numbers)


def _memory() -> tuple[int, int]:
    """Return bytes of memory, and those that are available."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        return 0, 0
    return found["MemTotal"], found["MemAvailable"]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents, Path("/")) if path.exists())


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole > 0 else 0.0
