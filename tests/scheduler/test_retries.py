"""Automatic retries of whole runs, and what becomes of runs that nobody looks after."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_dagu.dag.model import DagRetry
from secure_dagu.dispatch.retrying import due_at, is_pending
from secure_dagu.local import zombies
from secure_dagu.run.model import DagRunRef, RunStatus
from tests.scheduler.home import NOW, Home, killed_at

POLICY = "retry_policy: {limit: 2, interval_sec: 60, backoff: 2}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def queued(home: Home, text: str) -> DagRunRef:
    """Put one run of a DAG into its queue."""
    home.dag("job", text + "\nschedule: '0 12 * * *'")
    home.looked_at(NOW - timedelta(minutes=1), "job")
    home.tick()
    return DagRunRef("job", home.items("job")[0].run.run_id)


def test_a_failed_run_is_queued_again_after_its_pause_up_to_the_limit(home: Home) -> None:
    run = queued(home, POLICY)
    now = datetime.now(UTC).replace(microsecond=0)
    for count, pause_s in ((1, 60), (2, 120)):
        home.end(status=RunStatus.FAILED, at=now)
        due = now + timedelta(seconds=pause_s)
        assert home.retry_scan(now) == (due if due > datetime.now(UTC) else None)
        assert home.items("job") == []
        assert is_pending(home.recorded()[0])
        home.close(run, status=RunStatus.FAILED, at=now - timedelta(seconds=pause_s))
        home.retry_scan(datetime.now(UTC))
        (item,) = home.items("job")
        assert (item.run, item.high) == (run, True)
        document = home.recorded()[0]
        assert (document["status"], document["autoRetryCount"], document["autoRetryLimit"]) == (5, count, 2)
        assert not is_pending(document)
    home.end(status=RunStatus.FAILED, at=now - timedelta(hours=1))
    assert home.retry_scan(datetime.now(UTC)) is None
    assert home.items("job") == []


@pytest.mark.parametrize("status", [RunStatus.SUCCEEDED, RunStatus.ABORTED, RunStatus.REJECTED])
def test_only_failed_runs_are_retried(home: Home, status: RunStatus) -> None:
    queued(home, POLICY)
    home.end(status=status, at=datetime.now(UTC) - timedelta(hours=1))
    home.retry_scan(datetime.now(UTC))
    assert home.items("job") == []


def test_a_run_without_a_policy_is_left_alone(home: Home) -> None:
    queued(home, "")
    home.end(status=RunStatus.FAILED, at=datetime.now(UTC) - timedelta(hours=1))
    home.retry_scan(datetime.now(UTC))
    assert home.items("job") == []
    assert not is_pending(home.recorded()[0])


def test_a_stop_cancels_the_retry_that_a_failed_run_waits_for(home: Home) -> None:
    run = queued(home, POLICY)
    home.end(status=RunStatus.FAILED, at=datetime.now(UTC))
    asyncio.run(home.launcher().stop(run, actor="ann"))
    assert home.recorded()[0]["status"] == RunStatus.ABORTED
    home.retry_scan(datetime.now(UTC))
    assert home.items("job") == []


def test_pauses_grow_up_to_their_cap() -> None:
    policy = DagRetry(limit=9, interval_s=10, backoff=3, max_interval_s=100)
    ended = datetime(2026, 1, 1, tzinfo=UTC)
    found = [
        due_at({"status": 2, "autoRetryCount": count, "finishedAt": "2026-01-01T00:00:00Z"}, policy)
        for count in range(4)
    ]
    assert [at and (at - ended).total_seconds() for at in found] == [10, 30, 90, 100]
    assert due_at({"status": 2, "autoRetryCount": 9, "finishedAt": "2026-01-01T00:00:00Z"}, policy) is None
    assert due_at({"status": 2, "finishedAt": "-"}, policy) is None


def test_a_queued_run_whose_place_was_lost_gets_one_again_and_no_second_one(home: Home) -> None:
    run = queued(home, "")
    later = datetime.now(UTC) + timedelta(minutes=5)
    assert zombies.requeue(home.places, home.recorded(), later) == []
    home.items("job")[0].take()
    assert zombies.requeue(home.places, home.recorded(), datetime.now(UTC)) == [], "who queues it may be about to"
    assert zombies.requeue(home.places, home.recorded(), later) == [run]
    assert zombies.requeue(home.places, home.recorded(), later) == []
    assert [item.run for item in home.items("job")] == [run]


def test_marks_of_killed_processes_are_swept_and_living_ones_stay(home: Home) -> None:
    dead, living = queued(home, ""), DagRunRef("job", "living")
    home.items("job")[0].take()
    record = home.places.records.find(dead)
    assert record is not None
    attempt = record.attempts()[-1]
    with attempt.alive():
        home.places.running.mark("job", dead, attempt)
    home.close(dead, status=RunStatus.RUNNING)
    other = home.places.records.create(living, now=datetime.now(UTC)).add_attempt(
        attempt.attempt_id, now=datetime.now(UTC)
    )
    other.write('{"name": "job", "dagRunId": "living", "status": 1}')
    with other.alive():
        home.places.running.mark("job", living, other)
        assert zombies.sweep(home.places) == [dead]
        assert zombies.sweep(home.places) == []
        assert [one.run for one in home.places.running.everywhere()] == [living]
    assert attempt.status()["status"] == RunStatus.FAILED


def test_a_scheduler_that_is_killed_anywhere_in_a_retry_loses_none_and_makes_no_second_one(
    home: Home, tmp_path: Path
) -> None:
    run = queued(home, POLICY)
    now = datetime.now(UTC)
    home.end(status=RunStatus.FAILED, at=now - timedelta(minutes=2))
    shutil.copytree(home.home, tmp_path / "before")

    def scan() -> None:
        home.retry_scan(now)

    kills = 0
    while killed_at(kills + 1, scan):
        kills += 1
        scan()
        zombies.requeue(home.places, home.recorded(), now + timedelta(minutes=5))
        assert [item.run for item in home.items("job")] == [run], f"after {kills} changes"
        (document,) = home.recorded()
        assert (document["status"], document["autoRetryCount"]) == (RunStatus.QUEUED, 1), f"after {kills} changes"
        shutil.rmtree(home.home)
        shutil.copytree(tmp_path / "before", home.home)
    assert kills > 5


@pytest.mark.parametrize(
    ("host", "silent_s", "lives"),
    [
        ("elsewhere", 5, True),
        ("elsewhere", 600, False),
        ("elsewhere\n3600", 600, True),
        ("elsewhere\n2.5", 5, False),
        ("elsewhere\nnonsense", 5, True),
        ("elsewhere\nnonsense", 600, False),
        ("", 5, False),
    ],
)
def test_a_run_of_another_host_is_judged_by_its_last_word(home: Home, host: str, silent_s: int, lives: bool) -> None:
    run = queued(home, "")
    record = home.places.records.find(run)
    assert record is not None
    attempt = record.attempts()[-1]
    with attempt.alive():
        home.places.running.mark("job", run, attempt)
    home.close(run, status=RunStatus.RUNNING)
    said = attempt.path / "alive"
    assert said.read_text() == socket.gethostname()
    if host:
        said.write_text(host)
    os.utime(said, (at := time.time() - silent_s, at))
    found = home.recorded()[0]["status"]
    assert zombies.sweep(home.places) == ([] if lives else [run])
    assert (found, attempt.status()["status"]) == (1, 1 if lives else 2)
    assert len(list(home.places.running.everywhere())) == int(lives)
