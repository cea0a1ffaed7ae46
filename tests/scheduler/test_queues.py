"""Queues with real processes: order, limits, kills at any point, damage."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from secure_dagu.assembly.launching import queue_book
from secure_dagu.dispatch.operating import StartRequest, Waiting
from secure_dagu.errors import Conflict, NotFound
from secure_dagu.run.model import RunStatus
from tests.scheduler.host import Host, children_of, damaged, document, lines, status, until

ONE = "queue: q\nsteps: [{{id: a, run: 'echo ${{context.run.id}} >> {out}'}}]\n"
SLOW = "queue: q\nsteps: [{{id: a, run: 'echo ${{context.run.id}} >> {out}; sleep 0.15'}}]\n"


async def test_queued_runs_run_once_each_and_at_once(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", ONE.format(out=tmp_path / "out"))
    async with host.launcher() as launcher:
        with host.scheduler(look_every_s=3600):  # it hears of each change, or would never look
            runs = [await launcher.enqueue(StartRequest(dag="flow")) for _ in range(11)]
            await until(lambda: all(status(launcher, run) is RunStatus.SUCCEEDED for run in runs))
    assert sorted(lines(tmp_path / "out")) == sorted(run.run_id for run in runs)


async def test_the_high_priority_goes_first_and_the_limit_holds(tmp_path: Path) -> None:
    host = Host(tmp_path / "home", limit=1)
    host.dag("flow", ONE.format(out=tmp_path / "out"))
    async with host.launcher() as launcher:
        low = [await launcher.enqueue(StartRequest(dag="flow")) for _ in range(3)]
        high = await launcher.enqueue(StartRequest(dag="flow", high_priority=True))
        with host.scheduler():
            await until(lambda: len(lines(tmp_path / "out")) == 4)
        assert lines(tmp_path / "out") == [run.run_id for run in (high, *low)]


async def test_a_run_starts_once_whoever_is_killed(tmp_path: Path) -> None:
    """Scheduler and fork server are killed at random points again and again; no run is lost, none runs twice."""
    host = Host(tmp_path / "home")
    host.dag("flow", SLOW.format(out=tmp_path / "out"))
    dice = random.Random(7)
    async with host.launcher() as launcher:
        runs = [await launcher.enqueue(StartRequest(dag="flow")) for _ in range(16)]
        for turn in range(4):
            with host.scheduler() as scheduler:
                await asyncio.sleep(dice.uniform(0.0, 0.3))  # the point of the kill, not a wait for an event
                victims = [scheduler.pid] if turn % 2 else children_of(scheduler.pid)
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                if turn % 2 == 0:
                    await asyncio.sleep(dice.uniform(0.0, 0.3))
        with host.scheduler():
            await until(lambda: all(status(launcher, run) is RunStatus.SUCCEEDED for run in runs))
    assert Counter(lines(tmp_path / "out")) == Counter(run.run_id for run in runs)


async def test_a_killed_run_is_not_started_again_and_frees_its_place(tmp_path: Path) -> None:
    host = Host(tmp_path / "home", limit=1)
    host.dag("flow", f"queue: q\nsteps: [{{id: a, run: 'echo $PPID >> {tmp_path / 'pids'}; sleep 30'}}]\n")
    host.dag("next", ONE.format(out=tmp_path / "out"))
    async with host.launcher() as launcher:
        first = await launcher.enqueue(StartRequest(dag="flow"))
        second = await launcher.enqueue(StartRequest(dag="next"))
        with host.scheduler():
            await until(lambda: len(lines(tmp_path / "pids")) == 1)
            os.kill(int(lines(tmp_path / "pids")[0]), signal.SIGKILL)
            await until(lambda: status(launcher, second) is RunStatus.SUCCEEDED)
        assert status(launcher, first) is RunStatus.RUNNING  # the scheduler's look for dead runs turns it into failed
        assert lines(tmp_path / "out") == [second.run_id]
        assert len(lines(tmp_path / "pids")) == 1
        marks = list(launcher.places.running.of("q"))
        assert [mark.run for mark in marks if not mark.is_alive()] == [first]


async def test_damaged_items_are_put_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", ONE.format(out=tmp_path / "out"))
    async with host.launcher() as launcher:
        damaged(launcher.places.queues / "q", 100)
        run = await launcher.enqueue(StartRequest(dag="flow"))
        with host.scheduler():
            await until(lambda: status(launcher, run) is RunStatus.SUCCEEDED)
        aside = launcher.places.queues / "q" / ".damaged"
        assert len(list(aside.iterdir())) == 100


async def test_a_run_whose_record_is_damaged_fails_with_the_reason(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", ONE.format(out=tmp_path / "out"))
    async with host.launcher() as launcher:
        run = await launcher.enqueue(StartRequest(dag="flow"))
        record = launcher.places.records.find(run)
        assert record is not None
        (record.attempts()[-1].path / "dag.json").write_text("{}")
        with host.scheduler():
            await until(lambda: status(launcher, run) is RunStatus.FAILED)
        assert "could not be started" in document(launcher, run)["error"]
        assert lines(tmp_path / "out") == []


async def test_the_book_says_why_runs_wait_and_holds_a_queue(tmp_path: Path) -> None:
    host = Host(tmp_path / "home", limit=1)
    host.dag("flow", f"queue: q\nsteps: [{{id: a, run: 'while [ ! -e {tmp_path / 'go'} ]; do sleep 0.02; done'}}]\n")
    async with host.launcher() as launcher:
        book = queue_book(host.loaded, launcher)
        await book.pause("q", actor="me")
        runs = [await launcher.enqueue(StartRequest(dag="flow")) for _ in range(3)]
        with host.scheduler():
            page = await book.items("q", limit=2)
            assert [found.document["dagRunId"] for found in page.runs] == [run.run_id for run in runs[:2]]
            assert {one.reason for found in page.runs for one in found.conditions} == {Waiting.PAUSED}
            rest = await book.items("q", limit=2, cursor=page.next_cursor)
            assert [found.document["dagRunId"] for found in rest.runs] == [runs[2].run_id]
            await book.resume("q", actor="me")
            await until(lambda: status(launcher, runs[0]) is RunStatus.RUNNING)
            (view,) = await book.queues()
            assert (view.name, view.is_global, view.max_concurrency, view.queued) == ("q", True, 1, 2)
            assert [found["dagRunId"] for found in view.running] == [runs[0].run_id]
            page = await book.items("q", limit=5)
            assert {one.reason for found in page.runs for one in found.conditions} == {Waiting.QUEUE_LIMIT}
            (tmp_path / "go").touch()
            await until(lambda: all(status(launcher, run) is RunStatus.SUCCEEDED for run in runs))
        with pytest.raises(NotFound):
            await book.items("nothing", limit=1)


async def test_a_dequeued_run_does_not_start(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", ONE.format(out=tmp_path / "out"))
    async with host.launcher() as launcher:
        gone, stays = [await launcher.enqueue(StartRequest(dag="flow")) for _ in range(2)]
        await launcher.dequeue(gone, actor="me")
        with pytest.raises(NotFound):
            await launcher.dequeue(gone, actor="me")
        with host.scheduler():
            await until(lambda: status(launcher, stays) is RunStatus.SUCCEEDED)
        with pytest.raises(Conflict):
            await launcher.dequeue(stays, actor="me")
    assert lines(tmp_path / "out") == [stays.run_id]


async def test_two_runs_of_one_id_and_one_moment_are_two_items(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    async with host.launcher() as launcher:
        for name in ("one", "two"):
            host.dag(name, ONE.format(out=tmp_path / "out"))
            await launcher.enqueue(StartRequest(dag=name, run_id="same"))
        with host.scheduler():
            await until(lambda: lines(tmp_path / "out") == ["same", "same"])
