"""The index of this host's records against a plain scan, through histories, rotations, restarts and strangers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.operating import RunFilter
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus
from secure_dagu.store.records import JOURNAL, Attempt, Record, Records
from secure_dagu.store.run_index import RunIndex
from secure_dagu.store.run_journal import BEFORE, MAX_BYTES, Journal

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
EVERYTHING = RunFilter()


def current(_record: Record, attempt: Attempt) -> dict[str, Any]:
    return attempt.status()


def an_index(folder: Path, reader: str = "test") -> RunIndex:
    return RunIndex(folder, current, reader=reader)


def write(attempt: Attempt, status: RunStatus, *, noted: bool = True, **more: Any) -> None:
    """Write a status; not `noted`: as another program does, or a process that is killed right after."""
    document = json.dumps({"name": "etl", "status": int(status), "attemptId": attempt.attempt_id, **more})
    if noted:
        attempt.write(document)
    else:
        beside = attempt.path / "x"
        beside.write_text(document + "\n")
        beside.rename(attempt.path / "status.jsonl")


def add(
    folder: Path, run_id: str, status: RunStatus = RunStatus.SUCCEEDED, *, at: datetime = NOW, **more: Any
) -> Record:
    record = Records(folder).create(DagRunRef("etl", run_id), now=at)
    write(record.add_attempt(AttemptId("a1"), now=at), status, **more)
    return record


def shown(index: RunIndex, wanted: RunFilter = EVERYTHING) -> list[tuple[str, int]]:
    rows = index.find(wanted, limit=500, before=None)
    return [(row.ident.partition("/")[2], int(row.document.get("status", 0))) for row in rows]


def scanned(folder: Path) -> list[tuple[str, int]]:
    found = []
    for record in Records(folder).runs():
        if (attempt := record.latest()) is not None:
            found.append((record.run.run_id, int(attempt.status().get("status", 0))))
    return found


@pytest.fixture
def index(tmp_path: Path) -> Iterator[RunIndex]:
    made = an_index(tmp_path)
    yield made
    made.close()


# ── histories ────────────────────────────────────────────────────────────────────────────────────────────────────────

_ACTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "write", "write", "attempt", "hide", "remove", "stranger", "silent", "rotate",
                         "restart", "look"]),
        st.integers(0, 5),
        st.sampled_from([RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.FAILED, RunStatus.SUCCEEDED]),
    ),
    max_size=25,
)  # fmt: skip


@given(acts=_ACTS)
@settings(max_examples=60)
def test_after_any_history_the_index_says_what_a_plain_scan_says(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int, RunStatus]]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    indexes = [an_index(folder, "one"), an_index(folder, "two")]
    records: dict[int, Record] = {}
    attempts = 1
    for number, (act, which, status) in enumerate(acts):
        record = records.get(which)
        latest = record.latest() if record is not None else None
        if act in ("add", "stranger") and record is None:
            records[which] = add(folder, f"r{which}", status, at=NOW + timedelta(seconds=which), noted=act == "add")
        elif act in ("write", "silent") and latest is not None:
            write(latest, status, noted=act == "write", number=number)
        elif act == "attempt" and record is not None:
            attempts += 1
            new = record.add_attempt(AttemptId(f"a{attempts}"), now=NOW + timedelta(minutes=number))
            write(new, status, noted=status is not RunStatus.FAILED)
        elif act == "hide" and latest is not None:
            latest.hide()
        elif act == "remove" and record is not None:
            Records(folder).remove(records.pop(which))
        elif act == "rotate" and (folder / JOURNAL).exists():
            (folder / JOURNAL).replace(folder / BEFORE)
        elif act == "restart":
            indexes[which % 2].close()
            indexes[which % 2] = an_index(folder, ("one", "two")[which % 2])
        elif act == "look":
            indexes[which % 2].find(EVERYTHING, limit=1, before=None)
    for index in indexes:
        index.look_at_folders()
        assert shown(index) == scanned(folder)
        assert index.count(NOW - timedelta(days=1), None) == Counter(RunStatus(status) for _, status in scanned(folder))
        index.close()
    shutil.rmtree(folder)


def test_what_other_programs_wrote_is_right_as_it_is_shown(tmp_path: Path, index: RunIndex) -> None:
    record = add(tmp_path, "r1", RunStatus.QUEUED)
    assert shown(index) == [("r1", RunStatus.QUEUED)]
    attempt = record.latest()
    assert attempt is not None
    write(attempt, RunStatus.SUCCEEDED, noted=False)
    assert shown(index) == [("r1", RunStatus.SUCCEEDED)]
    write(record.add_attempt(AttemptId("a2"), now=NOW + timedelta(days=3)), RunStatus.FAILED, noted=False)
    assert shown(index) == [("r1", RunStatus.FAILED)]
    shutil.rmtree(record.path)
    assert shown(index) == []


def test_a_run_that_only_a_coordinator_shows_is_no_change_at_each_look_at_the_folders(
    tmp_path: Path, index: RunIndex
) -> None:
    """Else all runs of two days that workers executed are asked for every few seconds, and each asking is audited."""
    assert shown(index) == []
    record = add(tmp_path, "sent", RunStatus.QUEUED)
    assert index.refresh() == [DagRunRef("etl", "sent")]
    attempt = record.latest()
    assert attempt is not None
    attempt.hide()
    looks = []
    for _ in range(3):
        index.look_at_folders()
        looks.append(index.refresh())
    assert looks[1:] == [[], []]
    write(record.add_attempt(AttemptId("a2"), now=NOW), RunStatus.FAILED, noted=False)
    index.look_at_folders()
    assert index.refresh() == [DagRunRef("etl", "sent")]
    assert shown(index) == [("sent", RunStatus.FAILED)]


def test_an_attempt_that_had_no_status_at_the_first_look_is_found_at_the_next(tmp_path: Path, index: RunIndex) -> None:
    assert shown(index) == []
    record = Records(tmp_path).create(DagRunRef("etl", "r1"), now=NOW)
    attempt = record.add_attempt(AttemptId("a1"), now=NOW)
    index.look_at_folders()
    index.refresh()
    write(attempt, RunStatus.SUCCEEDED, noted=False)
    index.look_at_folders()
    assert shown(index) == [("r1", RunStatus.SUCCEEDED)]


def test_runs_of_one_second_stay_in_their_order_when_they_are_retried(tmp_path: Path, index: RunIndex) -> None:
    for number in (3, 1, 2):
        add(tmp_path, f"r{number}", at=NOW + timedelta(milliseconds=100 * number))
    assert [run for run, _ in shown(index)] == ["r3", "r2", "r1"]
    record = Records(tmp_path).find(DagRunRef("etl", "r1"))
    assert record is not None
    first = record.latest()
    assert first is not None
    first.hide()
    write(record.add_attempt(AttemptId("a2"), now=NOW + timedelta(hours=2)), RunStatus.FAILED, createdAt=1)
    assert [run for run, _ in shown(index)] == ["r3", "r2", "r1"]


@pytest.mark.parametrize(
    "more",
    [
        {"labels": 5}, {"labels": {"a": 1}}, {"labels": [None, ["x"], "a\nb\ud800"]}, {"tags": "x"}, {"name": 7},
        {"status": []}, {"status": "1"}, {"status": 77}, {"status": True}, {"nodes": 3}, {"error": "\ud800'\";--"},
    ],
)  # fmt: skip
def test_a_document_of_any_shape_can_be_listed(tmp_path: Path, index: RunIndex, more: dict[str, Any]) -> None:
    record = Records(tmp_path).create(DagRunRef("etl", "r1"), now=NOW)
    attempt = record.add_attempt(AttemptId("a1"), now=NOW)
    (attempt.path / "status.jsonl").write_text(json.dumps({"name": "etl", "dagRunId": "r1", "status": 2, **more}))
    index.look_at_folders()
    for wanted in (EVERYTHING, RunFilter(labels=("!zzz",)), RunFilter(run_id_part="r")):
        (row,) = index.find(wanted, limit=10, before=None)
        assert row.ident == "etl/r1"
    hostile = "'; DROP TABLE runs; --%_"
    for wanted in (RunFilter(name_part=hostile), RunFilter(run_id_part=hostile), RunFilter(name=hostile)):
        assert index.find(wanted, limit=5, before=None) == []
    assert index.find(RunFilter(labels=("a'=\"%_*[",)), limit=5, before=None) == []


def test_lines_that_name_no_run_of_the_folder_are_passed_over(tmp_path: Path, index: RunIndex) -> None:
    add(tmp_path, "r1")
    outside = tmp_path.parent / "etl" / "dag-runs" / "2026" / "01" / "01" / "dag-run_20260101_000000Z_x"
    with (tmp_path / JOURNAL).open("ab") as journal:
        for line in (
            f"../etl/dag-runs/2026/01/01/{outside.name}",
            "x",
            "/etc/passwd",
            "a/b/c/d/e/f",
            "\x00",
            "\xff" * 9,
        ):
            journal.write(line.encode("latin-1") + b"\n")
        journal.write(b"etl/torn")
    assert shown(index) == [("r1", RunStatus.SUCCEEDED)]


# ── hints and ends ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_that_ends_is_a_hint_though_lists_do_not_show_it(tmp_path: Path, index: RunIndex) -> None:
    record = add(tmp_path, "a-Z_b", RunStatus.RUNNING)
    attempt = record.latest()
    assert attempt is not None
    assert index.refresh() == []
    write(attempt, RunStatus.RUNNING, nodes=[{"status": 4}])
    assert index.refresh() == [DagRunRef("etl", "a-Z_b")]
    assert index.refresh() == []


def test_each_attempt_that_ends_is_told_once(tmp_path: Path, index: RunIndex) -> None:
    add(tmp_path, "before")
    told: list[tuple[str, int]] = []
    index.refresh()
    index.ended = lambda document: told.append((str(document["attemptId"]), document["status"]))
    record = add(tmp_path, "r1", RunStatus.RUNNING)
    attempt = record.latest()
    assert attempt is not None
    index.refresh()
    assert told == []
    write(attempt, RunStatus.FAILED)
    index.refresh()
    write(attempt, RunStatus.FAILED, error="told again")
    index.refresh()
    assert told == [("a1", RunStatus.FAILED)]
    write(record.add_attempt(AttemptId("a2"), now=NOW + timedelta(minutes=1)), RunStatus.FAILED)
    add(tmp_path, "r2", RunStatus.SUCCEEDED)
    index.refresh()
    assert sorted(told[1:]) == [("a1", RunStatus.SUCCEEDED), ("a2", RunStatus.FAILED)]
    index.close()
    again = an_index(tmp_path)
    again.ended = index.ended
    again.refresh()
    assert len(told) == 3
    again.close()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_each_process_that_shares_an_index_hears_of_each_end_whoever_takes_it_first(tmp_path: Path, first: int) -> None:
    """Or an end that a standby takes is counted by nobody."""
    add(tmp_path, "before")
    told: tuple[list[str], list[str]] = ([], [])
    indexes = [an_index(tmp_path) for _ in range(3)]  # the third has nobody who listens
    for index, heard in zip(indexes, told, strict=False):
        index.ended = lambda document, heard=heard: heard.append(str(document["dagRunId"]))
    for index in indexes:
        index.refresh()
    for number in range(20):
        attempt = add(tmp_path, f"r{number}", RunStatus.RUNNING, dagRunId=f"r{number}").latest()
        assert attempt is not None
        indexes[number % 3].refresh()
        write(attempt, RunStatus.SUCCEEDED, dagRunId=f"r{number}")
        for place in range(3):
            indexes[(first + place) % 3].refresh()
        write(attempt, RunStatus.SUCCEEDED, dagRunId=f"r{number}", error="told again")
    late = an_index(tmp_path)
    late.ended = lambda _document: told[0].append("late")
    for index in (late, *indexes, late):
        index.refresh()
        index.close()
    everything = [f"r{number}" for number in range(20)]
    assert told == (everything, everything)


def test_an_index_that_is_made_anew_by_another_process_keeps_telling(tmp_path: Path) -> None:
    add(tmp_path, "before")
    told: list[str] = []
    index = an_index(tmp_path)
    index.ended = lambda document: told.append(str(document["dagRunId"]))
    index.refresh()
    for number in range(3):
        add(tmp_path, f"r{number}", dagRunId=f"r{number}")
        index.refresh()
    (file,) = tmp_path.glob(".index-test-*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version = 1")  # as another release left it
    other = an_index(tmp_path)
    other.refresh()
    add(tmp_path, "r3", dagRunId="r3")
    other.refresh()
    index.refresh()
    assert told == ["r0", "r1", "r2", "r3"]
    other.close()
    index.close()


# ── the journal ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_journal_is_begun_anew_without_losing_a_line_of_any_reader(tmp_path: Path) -> None:
    readers = [Journal(tmp_path), Journal(tmp_path)]
    for reader in readers:
        reader.begin()
    seen: list[set[str]] = [set(), set()]
    count = 3 * MAX_BYTES // 40
    done = threading.Event()
    looked = threading.Event()
    half_a_journal = MAX_BYTES // 4_000 // 2

    def append() -> None:
        for place, number in enumerate(range(0, count, 100)):
            if place % half_a_journal == 0:  # readers that sleep over a whole journal must look at everything anew
                looked.clear()
                looked.wait()
            handle = os.open(tmp_path / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, b"".join(f"{one:039}\n".encode() for one in range(number, number + 100)))
            os.close(handle)
        done.set()

    writer = threading.Thread(target=append)
    writer.start()
    while True:
        is_last = done.is_set()
        for reader, found in zip(readers, seen, strict=True):
            found.update(reader.lines())
        looked.set()
        if is_last:
            break
    writer.join()
    assert (tmp_path / BEFORE).exists()
    assert (tmp_path / JOURNAL).stat().st_size < 2 * MAX_BYTES
    assert [len(found) for found in seen] == [len(range(0, count, 100)) * 100] * 2
    for reader in readers:
        reader.close()


def test_a_reader_goes_on_where_it_was_and_says_when_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    reader = Journal(tmp_path)
    reader.begin()
    path.write_text("one\n")
    assert reader.lines() == ["one"]
    place = reader.place
    reader.close()
    with path.open("a") as file:
        file.write("two\nhal")
    again = Journal(tmp_path)
    assert again.resume(place)
    assert again.lines() == ["two"]
    path.replace(tmp_path / BEFORE)
    path.write_text("three\n")
    assert again.resume(place)
    assert again.lines() == ["two", "three"]
    (tmp_path / BEFORE).unlink()
    path.write_text("another file, perhaps of the same number\n" * 5)
    assert not again.resume(place)
    for wrong in ("", "x", "1", "1:2", "1:2:zz", "::", "9" * 5000 + ":0:"):
        assert not again.resume(wrong)
    again.close()


def test_an_index_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    add(tmp_path, "r1")
    index = an_index(tmp_path)
    index.find(EVERYTHING, limit=1, before=None)
    index.close()
    (file,) = tmp_path.glob(".index-test-*.db")
    file.unlink()
    file.mkdir()
    again = an_index(tmp_path)
    assert shown(again) == [("r1", RunStatus.SUCCEEDED)]
    add(tmp_path, "r2", at=NOW + timedelta(seconds=1))
    assert len(shown(again)) == 2
    again.close()


def test_the_index_is_for_its_owner_only(tmp_path: Path, index: RunIndex) -> None:
    add(tmp_path, "r1")
    assert shown(index)
    files = list(tmp_path.glob(".index-*"))
    assert files
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_process_that_is_stopped_while_it_writes_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "dag-runs"
    add(folder, "before")
    index = an_index(folder)
    assert shown(index) == [("before", RunStatus.SUCCEEDED)]
    (file,) = folder.glob(".index-test-*.db")
    script = f"import sqlite3, time; d = sqlite3.connect({str(file)!r}, isolation_level=None)\n"
    script += "d.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(600)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            other.send_signal(signal.SIGSTOP)
            record = add(folder, "after", RunStatus.RUNNING)
            deadline = time.monotonic() + 20
            while len(shown(index)) < 2:
                assert time.monotonic() < deadline, "the index waits for a process that is stopped"
            write(record.attempts()[-1], RunStatus.SUCCEEDED)
            assert ("after", RunStatus.SUCCEEDED) in shown(index)
        finally:
            other.kill()
    index.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"status": 4, "x": NaN}', '{"status": 4, "x": "\\ud800"}', '{"status": 4, "status": 2}', '{"status": 4}\n\n',
        '{"status": 2}\n{"status": 4}\n', '{"status": 4, "nodes": [{"a": "\x01"}]}', '{"status": true}', "[4]", "{",
        '{"status": 4}\n{"status": 2', '{"status": 4, "labels": {"a": 1}}', '{"status": 4, "labels": ["É", 3]}', "",
        '{"status": 99}', '{"status": 4, "x": 1' + "0" * 400 + "}", '{"status": 4, "x": "\x7f\xff"}',
    ],
)  # fmt: skip
def test_documents_of_any_shape_are_indexed_as_they_would_be_read_whole(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "dag-runs"
    record = add(folder, "one")
    (record.attempts()[-1].path / "status.jsonl").write_bytes(text.encode("latin-1"))
    index = an_index(folder)
    (row,) = index.find(EVERYTHING, limit=9, before=None)
    whole = current(record, record.attempts()[-1])
    assert repr(dict(row.document)) == repr({key: value for key, value in whole.items() if key != "nodes"})
    index.close()
