"""The shared folder: what an instance writes, and whom a reader finds."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from secure_dagu.discovery.registry import Instance, Registry, Service, Status, registered

HERE = Instance(id="host1@50055", host="host1", port=50055, pid=7, started_at=datetime(2026, 1, 2, tzinfo=UTC))


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_file_has_the_names_keys_and_modes_of_the_protocol(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    registry.write(Service.COORDINATOR, HERE)
    path = tmp_path / "r" / "coordinator" / "host1_50055.json"
    told = json.loads(path.read_text())
    assert told == {
        "id": "host1@50055", "host": "host1", "port": 50055, "pid": 7, "status": 1, "startedAt": "2026-01-02T00:00:00Z",
    }  # fmt: skip
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o750)
    assert registry.read(Service.COORDINATOR) == (HERE,)
    assert registry.read(Service.SCHEDULER) == ()


def test_a_file_of_the_reference_is_read(tmp_path: Path) -> None:
    place = tmp_path / "coordinator"
    place.mkdir()
    (place / "host1_50055.json").write_text(
        '{"id":"host1@50055","host":"host1","port":50055,"pid":19635,"status":1,'
        '"startedAt":"2026-01-02T03:04:05.481362153Z"}'
    )
    (found,) = Registry(tmp_path).read(Service.COORDINATOR)
    assert (found.address, found.pid) == ("host1:50055", 19635)


def test_one_without_a_word_for_30_seconds_is_not_there_and_is_collected(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write(Service.COORDINATOR, HERE)
    path = tmp_path / "coordinator" / "host1_50055.json"
    aged(path, 31)
    left = path.with_name("other.json.gc.12.34.1")
    left.write_text("{}")
    assert registry.read(Service.COORDINATOR) == ()
    registry.collect(Service.COORDINATOR)
    assert not path.exists()
    assert not left.exists()
    registry.beat(Service.COORDINATOR, HERE)
    assert Registry(tmp_path).read(Service.COORDINATOR) == (HERE,), "its next word makes the file again"


def test_of_one_address_the_newest_counts(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    later = Instance(id="other@1", host="host1", port=50055, pid=8, started_at=HERE.started_at + timedelta(hours=1))
    registry.write(Service.COORDINATOR, HERE)
    registry.write(Service.COORDINATOR, later)
    assert registry.read(Service.COORDINATOR) == (later,)


def test_what_was_found_is_believed_for_a_moment_and_nothing_is_asked_again(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.read(Service.COORDINATOR) == ()
    registry.write(Service.COORDINATOR, HERE)
    assert registry.read(Service.COORDINATOR) == (HERE,)
    registry.remove(Service.COORDINATOR, HERE)
    assert registry.read(Service.COORDINATOR) == (HERE,)


async def test_an_instance_is_there_for_the_time_of_its_context_and_tells_its_status(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    async with registered(registry, Service.SCHEDULER, HERE) as tell:
        assert Registry(tmp_path).read(Service.SCHEDULER) == (HERE,)
        tell(Status.INACTIVE)
        async with asyncio.timeout(60):
            while Registry(tmp_path).read(Service.SCHEDULER)[0].status != Status.INACTIVE:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
    assert Registry(tmp_path).read(Service.SCHEDULER) == ()
