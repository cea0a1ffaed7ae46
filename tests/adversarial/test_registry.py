"""Somebody who can write to the shared folder: nothing is followed, nothing is loaded whole, nobody is believed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from secure_dagu.discovery import registry as subject
from secure_dagu.discovery.registry import Instance, Registry, Service

GOOD = {"id": "h@1", "host": "h", "port": 1, "pid": 1, "status": 1, "startedAt": "2026-01-02T03:04:05Z"}


def text(**change: object) -> str:
    return json.dumps({**GOOD, **change})


def link(path: Path) -> None:
    target = path.parent.parent / "elsewhere.json"
    target.write_text(text())
    path.symlink_to(target)


def second_name(path: Path) -> None:
    target = path.parent.parent / "elsewhere.json"
    target.write_text(text())
    os.link(target, path)


def open_to_all(path: Path) -> None:
    path.write_text(text())
    path.chmod(0o666)


def from_the_future(path: Path) -> None:
    path.write_text(text())
    os.utime(path, (time.time() + 3600,) * 2)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link": link,
    "a second name of a file": second_name,
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "writable by everybody": open_to_all,
    "from the future": from_the_future,
    "huge": lambda path: path.write_text(text() + " " * 10_000_000),
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[" * 3000),
    "a port as text": lambda path: path.write_text(text(port="1")),
    "a port too large": lambda path: path.write_text(text(port=70000)),
    "a host that is a URL": lambda path: path.write_text(text(host="http://evil/")),
    "a host with a line break": lambda path: path.write_text(text(host="h\nx")),
    "a host as a socket": lambda path: path.write_text(text(host="unix:/tmp/x")),
    "no host": lambda path: path.write_text(text(host="")),
    "another's id": lambda path: path.write_text(text(id="other@1")),
    "a number for a time": lambda path: path.write_text(text(startedAt=5)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_entry_is_ignored_and_named_and_the_good_one_is_found(tmp_path: Path, what: str) -> None:
    registry = Registry(tmp_path)
    good = Instance(id="good@2", host="good", port=2, pid=3)
    registry.write(Service.COORDINATOR, good)
    HOSTILE[what](tmp_path / "coordinator" / "h_1.json")
    with structlog.testing.capture_logs() as logged:
        assert registry.read(Service.COORDINATOR) == (good,)
    assert [entry["event"] for entry in logged] == ["registry.entry_ignored"]
    registry.collect(Service.COORDINATOR)
    assert (tmp_path / "coordinator" / "good_2.json").exists()


def test_a_flood_of_entries_costs_a_bounded_look(tmp_path: Path) -> None:
    place = tmp_path / "coordinator"
    place.mkdir()
    for number in range(2000):
        (place / f"x{number}.json").write_text("{}")
    began = time.process_time()
    with structlog.testing.capture_logs() as logged:
        assert Registry(tmp_path).read(Service.COORDINATOR) == ()
    assert time.process_time() - began < 2
    assert len(logged) <= subject.MAX_FILES + 1


def test_a_link_in_place_of_our_own_file_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    mine = Instance(id="h@1", host="h", port=1, pid=1)
    registry.write(Service.COORDINATOR, mine)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "r" / "coordinator" / "h_1.json"
    path.unlink()
    path.symlink_to(victim)
    registry.beat(Service.COORDINATOR, mine)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert registry.read(Service.COORDINATOR) == (mine,)
