"""The writer thread: who waited is told when it is on disk; who did not wait is written soon."""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from secure_dagu.audit import folding, journal, log
from secure_dagu.audit.chain import Place, Record, read
from secure_dagu.audit.events import Action, Detail, Event, Outcome
from secure_dagu.audit.folding import Folder
from secure_dagu.audit.log import open_trail
from secure_dagu.errors import Unavailable
from tests.audit.conftest import an_event, check

REFUSED = Event(action=Action.HANDSHAKE_REFUSED, outcome=Outcome.DENIED, address="192.0.2.1:1", reason="untrusted_ca")


def records(folder: Path) -> list[Record]:
    return [read(line) for path in journal.files_of(folder) for line in path.read_bytes().splitlines(True)]


def targets(folder: Path) -> list[str]:
    return [record.target for record in records(folder) if record.action == "task.dispatched"]


class Batches:
    """What `on_written` was told."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, events: Sequence[Event], lines: Sequence[bytes], place: Place) -> None:
        if events:
            self.sizes.append(len(events))


async def test_a_recorded_event_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    async with open_trail(tmp_path / "a", host="ci", source="coordinator") as trail:
        await trail.record(an_event(7))
        assert targets(tmp_path / "a") == ["run:etl/7"]


async def test_a_hundred_concurrent_records_share_a_few_flushes(tmp_path: Path) -> None:
    batches = Batches()
    async with open_trail(tmp_path / "a", host="ci", source="coordinator", on_written=batches) as trail:
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(trail.record(an_event(number)))
        assert sum(batches.sizes) == 100
        assert len(batches.sizes) <= 10
    assert check(tmp_path / "a").bad is None


async def test_a_noted_event_is_on_disk_within_a_second(tmp_path: Path) -> None:
    """That long the writer waits for more; nothing else has to happen."""
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(events: Sequence[Event], _lines: Sequence[bytes], _place: Place) -> None:
        if events:
            loop.call_soon_threadsafe(written.set)

    async with open_trail(tmp_path / "a", host="ci", source="coordinator", on_written=told) as trail:
        trail.note(an_event(7))
        async with asyncio.timeout(60):
            await written.wait()
        assert log.FLUSH_S < 1
        assert targets(tmp_path / "a") == ["run:etl/7"]


async def test_what_was_noted_before_the_end_is_written_and_signed(tmp_path: Path) -> None:
    async with open_trail(tmp_path / "a", host="ci", source="coordinator") as trail:
        for number in range(log.MAX_BATCH + 10):
            trail.note(an_event(number))
    report = check(tmp_path / "a")
    assert (report.bad, report.unsigned) == (None, 0)
    assert len(targets(tmp_path / "a")) == log.MAX_BATCH + 10


async def test_after_the_end_nothing_can_be_recorded(tmp_path: Path) -> None:
    async with open_trail(tmp_path / "a", host="ci", source="coordinator") as trail:
        pass
    with pytest.raises(Unavailable, match="closing"):
        await trail.record(an_event(1))


async def test_a_caller_that_is_cancelled_leaves_its_record(tmp_path: Path) -> None:
    async with open_trail(tmp_path / "a", host="ci", source="coordinator") as trail, asyncio.TaskGroup() as group:
        task = group.create_task(trail.record(an_event(7)))
        group.create_task(asyncio.to_thread(lambda: None))
        await asyncio.sleep(0)
        task.cancel()
    assert targets(tmp_path / "a") == ["run:etl/7"]


# -- a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Make the kernel refuse every write beyond `size` bytes of a file, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_full_disk_refuses_whole_batches_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    folder, failures = tmp_path / "a", []
    trailing = open_trail(folder, host="ci", source="coordinator", on_failed=lambda: failures.append(1))
    async with trailing as trail:
        await trail.record(an_event(1))
        size = journal.files_of(folder)[0].stat().st_size
        with no_file_beyond(size + 100):  # a part of the next line fits
            trail.note(an_event(2))
            with pytest.raises(Unavailable, match="cannot be written"):
                await trail.record(an_event(3))
            assert journal.files_of(folder)[0].stat().st_size == size  # the part was taken back
        assert failures
        await trail.record(an_event(4))
    assert check(folder).bad is None
    assert targets(folder) == ["run:etl/1", "run:etl/2", "run:etl/4"]  # the noted one waited, the refused one is not


async def test_what_nobody_waited_for_and_did_not_fit_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_NOTED", 5)
    async with open_trail(tmp_path / "a", host="ci", source="coordinator") as trail:
        for number in range(2_000):
            trail.note(an_event(number))
    lost = [record for record in records(tmp_path / "a") if record.action == "audit.lost"]
    kept = targets(tmp_path / "a")
    assert sum(int(record.details["count"]) for record in lost) + len(kept) == 2_000
    assert lost


async def test_a_mistake_of_ours_refuses_rather_than_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda hooked: ended.append(hooked.exc_type.__name__))

    def mistaken(events: Sequence[Event], _lines: Sequence[bytes], _place: Place) -> None:
        if events:
            raise KeyError

    opening = open_trail(tmp_path / "a", host="ci", source="coordinator", on_written=mistaken)
    async with opening as trail, asyncio.timeout(60):
        await trail.record(an_event(1))  # it is on disk
        with pytest.raises(Unavailable, match="no more records"):
            await trail.record(an_event(2))
    assert ended == ["KeyError"]


# -- repetitions -------------------------------------------------------------------------------------------------------


def test_an_event_that_repeats_is_written_once_a_minute_with_its_count() -> None:
    folder = Folder()
    assert folder.take(REFUSED, 0.0) == REFUSED
    again = replace(REFUSED, address="192.0.2.1:2")  # another port of the same host
    assert [folder.take(again, 1.0) for _ in range(999)] == [None] * 999
    assert folder.due(59.0) == []
    assert [event.details[Detail.REPEATS] for event in folder.due(60.0)] == [999]
    assert folder.due(200.0) == []  # it stopped
    assert folder.take(REFUSED, 300.0) == REFUSED


def test_different_causes_and_hosts_are_told_apart() -> None:
    folder = Folder()
    others = [replace(REFUSED, reason="cert_expired"), replace(REFUSED, address="192.0.2.2:1"), REFUSED]
    assert [folder.take(event, 0.0) for event in others] == others


def test_what_is_open_at_the_end_is_counted() -> None:
    folder = Folder()
    folder.take(REFUSED, 0.0)
    folder.take(REFUSED, 0.0)
    assert [event.details[Detail.REPEATS] for event in folder.rest()] == [1]


def test_a_success_is_never_folded_unless_its_action_says_so() -> None:
    folder = Folder()
    done = Event(action=Action.RUN_ENDED)
    assert [folder.take(done, 0.0) for _ in range(3)] == [done] * 3
    denied = replace(Event(action=Action.SECRET_READ), outcome=Outcome.DENIED)
    assert [folder.take(denied, 0.0) for _ in range(2)] == [denied, None]


def test_a_million_hosts_do_not_fill_memory_or_disk() -> None:
    folder = Folder()
    written = sum(
        folder.take(replace(REFUSED, address=f"2001:db8::{number:x}:1"), 0.0) is not None
        for number in range(folding.MAX_KEYS + 5_000)
    )
    assert written == folding.MAX_KEYS + 1
    (rest,) = folder.rest()
    assert rest.details[Detail.REPEATS] == 4_999
    assert rest.target == "several"
