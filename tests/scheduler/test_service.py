"""The scheduler over real files: what is fired, once, whatever is killed and whatever the clock does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from secure_dagu.dispatch.operating import StartRequest
from secure_dagu.errors import Unavailable
from secure_dagu.local import deciding
from secure_dagu.local.launching import Launcher
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, TriggerType
from secure_dagu.scheduler.service import Fenced, Scheduler
from secure_dagu.store.records import Attempt
from tests.scheduler.home import NOW, Home, killed_at
from tests.scheduler.host import until

HOURLY = "schedule: '0 * * * *'"
HALF_HOURLY = "schedule: '*/30 * * * *'\ncatchup_window: 3h\noverlap_policy: "


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


# ── what is fired ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_due_time_is_fired_once_with_its_trigger_and_time(home: Home) -> None:
    home.dag("job", HOURLY)
    home.looked_at(NOW - minutes(1), "job")
    home.tick()
    home.tick()
    home.tick(NOW + minutes(1))
    assert home.fired() == ["sched 1200"]
    (document,) = home.recorded()
    assert document["triggerType"] == TriggerType.SCHEDULER
    assert document["scheduleTime"] == "2026-06-01T12:00:00Z"
    assert document["triggerActor"] == "scheduler"


def test_a_dag_that_is_seen_first_begins_with_its_next_time(home: Home) -> None:
    home.dag("job", "schedule: '*/30 * * * *'\ncatchup_window: 1d")
    home.looked_at(NOW - minutes(90))
    home.tick()
    assert home.fired() == []
    home.tick(NOW + minutes(30))
    assert home.fired() == ["sched 1230"]


def test_a_suspended_dag_is_not_scheduled_and_nothing_is_caught_up_on_later(home: Home) -> None:
    home.dag("job", "schedule: '* * * * *'\ncatchup_window: 1d")
    home.looked_at(NOW - minutes(9), "job")
    flag = home.places.suspend_dir / "job.suspend"
    flag.parent.mkdir(parents=True)
    flag.touch()
    home.tick()
    flag.unlink()
    home.tick(NOW + minutes(1))
    assert home.fired() == []
    home.tick(NOW + minutes(2))
    assert home.fired() == ["sched 1202"]


def test_a_file_that_does_not_load_for_a_while_goes_on_where_it_was(home: Home) -> None:
    home.dag("job", HALF_HOURLY + "all")
    home.looked_at(NOW - minutes(1), "job")
    good = (home.home / "dags" / "job.yaml").read_text()
    (home.home / "dags" / "job.yaml").write_text(good + "    runn: oops\n")
    home.tick()
    (home.home / "dags" / "job.yaml").write_text(good)
    home.tick(NOW + minutes(20))
    assert home.fired() == ["catchup 1200"]


def test_a_time_is_dropped_while_a_run_goes_on_but_a_named_queue_takes_it(home: Home) -> None:
    home.dag("job", HOURLY)
    home.dag("batch", HOURLY + "\nqueue: shared")
    home.looked_at(NOW - minutes(1), "job", "batch")
    home.tick()
    home.tick(NOW + minutes(60))
    assert home.fired() == ["sched 1200"]
    assert home.fired("batch") == ["sched 1200", "sched 1300"]
    home.end()
    home.tick(NOW + minutes(120))
    assert home.fired() == ["sched 1400"]


def test_skip_if_successful_looks_back_to_the_time_before(home: Home) -> None:
    home.dag("job", HOURLY + "\nskip_if_successful: true")
    began = datetime.now(NOW.tzinfo).replace(minute=0, second=1, microsecond=0)  # records are made now
    home.looked_at(began - minutes(1), "job")
    home.tick(began)
    home.end(status=RunStatus.FAILED)
    home.tick(began + minutes(60))
    assert len(home.fired()) == 1, "a failed run is no reason"
    home.end()
    home.tick(began + minutes(120))
    assert len(home.fired()) == (0 if datetime.now(NOW.tzinfo) >= began + minutes(60) else 1)
    home.dag("again", HOURLY + "\nskip_if_successful: true")
    home.looked_at(began - minutes(1), "again")
    home.tick(began)
    home.end("again")
    home.looked_at(began - minutes(1), "again")
    for record in home.places.records.runs("again"):
        home.places.records.remove(record)
    home.tick(began)
    assert len(home.fired("again")) == 1, "nothing is known to have succeeded"


# ── catching up ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_skip_fires_the_oldest_missed_time_and_drops_what_overlaps(home: Home) -> None:
    home.dag("job", HALF_HOURLY + "skip")
    home.looked_at(NOW - minutes(600), "job")
    home.tick()
    assert home.fired() == ["catchup 0930"]
    (document,) = home.recorded()
    assert document["triggerType"] == TriggerType.CATCHUP
    home.end()
    home.tick(NOW + minutes(1))
    assert home.fired() == []


def test_all_fires_every_missed_time_one_after_the_other_and_then_what_is_due(home: Home) -> None:
    home.dag("job", HALF_HOURLY + "all")
    home.looked_at(NOW - minutes(95), "job")
    seen: list[str] = []
    for step in range(6):
        home.tick(NOW + timedelta(seconds=step))
        home.tick(NOW + timedelta(seconds=step, milliseconds=500))
        seen += home.fired()
        home.end()
    assert seen == ["catchup 1030", "catchup 1100", "catchup 1130", "sched 1200"]


def test_latest_fires_the_newest_time_alone(home: Home) -> None:
    home.dag("job", HALF_HOURLY + "latest")
    home.looked_at(NOW - minutes(95), "job")
    home.tick(NOW - minutes(5))
    assert home.fired() == ["catchup 1130"]
    home.tick()
    home.tick(NOW + minutes(30))
    home.end()
    home.tick(NOW + minutes(31))
    assert home.fired() == ["sched 1230"]


def test_kept_times_are_looked_at_again_between_ticks(home: Home) -> None:
    home.dag("job", HALF_HOURLY + "all")
    home.looked_at(NOW - minutes(65), "job")

    async def use(scheduler: Scheduler) -> None:
        await scheduler.tick(NOW)
        home.end()
        await scheduler.go_on(NOW + timedelta(seconds=1))

    home.with_scheduler(use)
    assert home.fired() == ["catchup 1130"]


# ── clocks and disks ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clock_that_is_set_back_fires_nothing_twice_and_one_from_the_future_is_not_believed(home: Home) -> None:
    home.dag("job", "schedule: '* * * * *'\nqueue: q")
    home.looked_at(NOW - minutes(1), "job")
    home.tick()
    for step in range(3):
        home.tick(NOW - minutes(5 - step))
    assert home.fired() == ["sched 1200"]
    home.looked_at(NOW + timedelta(days=900), "job")
    home.tick(NOW + minutes(1))
    home.tick(NOW + minutes(2))
    assert home.fired() == ["sched 1200", "sched 1202"]


def test_what_cannot_be_queued_now_is_queued_as_soon_as_it_can(home: Home) -> None:
    home.dag("job", HOURLY)
    home.looked_at(NOW - minutes(1), "job")
    home.places.queues.mkdir(parents=True)
    (home.places.queues / "job").write_text("in the way")
    home.tick()
    assert home.fired() == []
    (home.places.queues / "job").unlink()
    home.tick(NOW + timedelta(seconds=20))
    assert home.fired() == ["sched 1200"]


def test_a_damaged_state_is_put_aside(home: Home) -> None:
    home.dag("job", "schedule: '* * * * *'")
    home.state.path.parent.mkdir(parents=True)
    home.state.path.write_text("{")
    home.tick()
    assert home.fired() == []
    assert home.state.path.with_name("state.json.damaged").read_text() == "{"
    home.tick(NOW + minutes(1))
    assert home.fired() == ["sched 1201"]


def test_who_is_not_active_any_more_does_nothing(home: Home) -> None:
    home.dag("job", HOURLY)
    home.looked_at(NOW - minutes(1), "job")
    before = home.state.path.read_bytes()
    with pytest.raises(Fenced):
        home.with_scheduler(lambda scheduler: scheduler.tick(NOW), active=False)
    assert home.fired() == []
    assert home.state.path.read_bytes() == before


@pytest.mark.parametrize(("policy", "later"), [("all", timedelta(seconds=20)), ("skip", timedelta(hours=1))])
def test_a_kill_at_any_change_of_a_file_neither_loses_nor_doubles_a_start(
    home: Home, tmp_path: Path, policy: str, later: timedelta
) -> None:
    home.dag("job", f"schedule: '0 12 * * *'\ncatchup_window: 6h\noverlap_policy: {policy}")
    home.dag("missed", f"schedule: '0 10 * * *'\ncatchup_window: 6h\noverlap_policy: {policy}")
    home.looked_at(NOW - minutes(180), "job", "missed")
    shutil.copytree(home.home, tmp_path / "before")
    kills = 0
    while killed_at(kills + 1, home.tick):
        kills += 1
        home.tick(NOW + later)
        home.tick(NOW + later + minutes(1))
        assert home.fired() in (["sched 1200"], ["catchup 1200"]), f"after {kills} changes"
        assert home.fired("missed") == ["catchup 1000"], f"after {kills} changes"
        assert len(home.recorded()) == len(home.recorded("missed")) == 1
        shutil.rmtree(home.home)
        shutil.copytree(tmp_path / "before", home.home)
    assert kills > 25
    assert home.fired() == ["sched 1200"]


# ── stop and restart ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _running(home: Home, *, began: datetime) -> Iterator[tuple[DagRunRef, Attempt]]:
    """Queue a run and pretend to execute it: hold its attempt as its process would."""
    run = next(item for item in home.items("job")).run
    home.items("job")[0].take()
    home.close(run, status=RunStatus.RUNNING, startedAt=f"{began:%Y-%m-%dT%H:%M:%SZ}", params="P=7")
    record = home.places.records.find(run)
    assert record is not None
    attempt = record.latest()
    assert attempt is not None
    with attempt.alive():
        yield run, attempt


def _started(home: Home) -> None:
    home.looked_at(NOW - minutes(1), "job")
    home.tick()


def test_a_stop_ends_the_run_that_began_before_it_and_no_other(home: Home) -> None:
    home.dag("job", "schedule: {start: '0 * * * *', stop: ['0 13 * * *', '30 13 * * *']}")
    _started(home)
    began = datetime.now(NOW.tzinfo)
    hour = began.replace(minute=0, second=1, microsecond=0)
    home.dag("job", f"schedule: {{stop: '{hour:%M} {(hour + minutes(60)).hour} * * *'}}")
    with _running(home, began=began) as (_, attempt):
        home.looked_at(hour - minutes(1), "job")
        home.tick(hour)
        assert not attempt.is_cancel_requested()
        home.looked_at(hour + minutes(59), "job")
        home.tick(hour + minutes(60))
        assert attempt.is_cancel_requested()


def test_a_restart_stops_waits_and_starts_with_the_same_parameters(home: Home) -> None:
    home.dag("job", "params: P=1\nschedule: {start: '0 12 * * *', restart: '0 * * * *'}")
    _started(home)
    began = datetime.now(NOW.tzinfo)
    at = (began + minutes(60)).replace(minute=0, second=1, microsecond=0)
    home.looked_at(at - minutes(1), "job")
    with _running(home, began=began) as (run, attempt):

        async def use(scheduler: Scheduler) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(_end_when_asked(home, run, attempt))
                await scheduler.tick(at)

        home.with_scheduler(use)
    (item,) = home.items("job")
    assert item.run.run_id.startswith("restart-job-")
    record = home.places.records.find(item.run)
    assert record is not None
    assert record.attempts()[0].definition()["params"] == "P=7"
    assert json.loads(home.state.path.read_bytes())["restarts"] == {}


async def _end_when_asked(home: Home, run: DagRunRef, attempt: Attempt) -> None:
    await until(attempt.is_cancel_requested)
    home.close(run, status=RunStatus.ABORTED)


def test_a_restart_that_was_killed_after_the_stop_is_finished_by_the_next_scheduler(home: Home) -> None:
    home.dag("job", "params: P=1\nschedule: {start: '0 12 * * *', restart: '0 * * * *'}")
    _started(home)
    began = datetime.now(NOW.tzinfo)
    at = (began + minutes(60)).replace(minute=0, second=1, microsecond=0)
    home.looked_at(at - minutes(1), "job")

    async def killed(scheduler: Scheduler) -> None:
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(scheduler.tick(at))
            await until(attempt.is_cancel_requested)
            ticking.cancel()
        assert ticking.cancelled()

    with _running(home, began=began) as (run, attempt):
        home.with_scheduler(killed)
        assert attempt.is_cancel_requested()
        home.close(run, status=RunStatus.ABORTED)
    home.tick(at + timedelta(hours=3, minutes=7))
    assert [item.run.run_id[:8] for item in home.items("job")] == ["restart-"]
    home.tick(at + timedelta(hours=3, minutes=8))
    assert len(home.items("job")) == 1


# ── what comes between two ticks, and what fails alone ───────────────────────────────────────────────────────────────


def written_at(home: Home, name: str, at: datetime) -> None:
    os.utime(home.home / "dags" / f"{name}.yaml", (at.timestamp(), at.timestamp()))


def test_a_dag_that_comes_between_two_ticks_starts_with_the_next_minute(home: Home) -> None:
    home.looked_at(NOW - minutes(1))
    for name, seconds in (("before", -20), ("after", 1)):
        home.dag(name, "schedule: '* * * * *'")
        written_at(home, name, NOW + timedelta(seconds=seconds))
    home.tick(NOW + timedelta(seconds=2))
    assert (home.fired("before"), home.fired("after")) == (["sched 1200"], [])


def test_a_dag_that_is_resumed_between_two_ticks_starts_with_the_next_minute(home: Home) -> None:
    home.dag("job", "schedule: '* * * * *'\ncatchup_window: 1d")
    written_at(home, "job", NOW - minutes(60))
    home.looked_at(NOW - minutes(9), "job")
    flag = home.places.suspend_dir / "job.suspend"
    flag.parent.mkdir(parents=True)
    flag.touch()
    home.tick()
    flag.unlink()
    home.tick(NOW + minutes(1))
    assert home.fired() == ["sched 1201"], "and what passed meanwhile is not caught up on"


def test_a_first_start_does_not_start_what_was_due_before_it(home: Home) -> None:
    home.dag("job", "schedule: '* * * * *'")
    written_at(home, "job", NOW - minutes(60))
    home.tick(NOW + timedelta(seconds=30))
    assert home.fired() == []


class Unlucky(Launcher):
    """One that cannot do everything: starts of `bad` meet a disk error, the first stops no coordinator."""

    stops = 2

    async def enqueue(self, request: StartRequest) -> DagRunRef:
        if request.dag == "bad":
            raise OSError(errno.EIO, "input/output error")
        return await super().enqueue(request)

    async def stop(self, run: DagRunRef, *, actor: str) -> None:
        type(self).stops -= 1
        if self.stops >= 0:
            raise Unavailable("the coordinator cannot be reached")
        attempt = deciding.latest(found) if (found := self.places.records.find(run)) is not None else None
        assert attempt is not None
        attempt.write(json.dumps({**attempt.status(), "status": int(RunStatus.ABORTED)}))


def test_a_disk_error_of_one_dag_keeps_no_other_from_starting(home: Home) -> None:
    for name in ("a", "bad", "c"):
        home.dag(name, HOURLY)
    home.looked_at(NOW - minutes(1), "a", "bad", "c")
    home.launcher_class = Unlucky
    home.tick()
    assert [len(home.fired(name)) for name in ("a", "bad", "c")] == [1, 0, 1]
    home.launcher_class = Launcher
    home.tick(NOW + timedelta(seconds=20))
    assert home.fired("bad") == ["sched 1200"], "it is tried again"


def test_a_restart_goes_on_when_the_coordinator_was_away_for_its_stop(home: Home) -> None:
    home.dag("job", "schedule: {restart: '0 * * * *'}")
    home.looked_at(NOW - minutes(1), "job")
    run = DagRunRef("job", "old")
    record = home.places.records.create(run, now=NOW - minutes(5))
    attempt = record.add_attempt(AttemptId("a1"), now=NOW - minutes(5))
    attempt.write(json.dumps({"name": "job", "dagRunId": "old", "status": 1, "startedAt": "2026-06-01T11:55:00Z"}))
    home.launcher_class = Unlucky
    home.tick()
    assert attempt.status()["status"] == RunStatus.ABORTED
    assert home.fired() == ["restart 1200"]
