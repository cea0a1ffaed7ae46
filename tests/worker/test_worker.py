"""Polls, claims, capacity, drain and cancellation against a coordinator that comes and goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from secure_dagu.dispatch.model import NO_KEY, Owner, Verdict
from secure_dagu.errors import ConfigError, LeaseLost, Refused, Unauthenticated
from secure_dagu.run.model import RunStatus
from secure_dagu.worker.desk import Trouble
from secure_dagu.worker.worker import MAX_LINKS
from tests.worker.fakes import (
    DEADLINE_S,
    QUICK,
    FakeCoordinator,
    FakeRun,
    FakeRunner,
    away,
    eventually,
    make_task,
    make_worker,
    until_stopped,
    working,
)


@pytest.fixture
def coordinator() -> FakeCoordinator:
    return FakeCoordinator()


@pytest.fixture
def runner(tmp_path: Path) -> FakeRunner:
    return FakeRunner(tmp_path)


async def test_a_task_is_acknowledged_run_and_reported(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task())
        final = await coordinator.until_ended()
    assert final["status"] == RunStatus.SUCCEEDED
    assert coordinator.acknowledged == ["token-r1"]
    assert coordinator.reports[0]["status"] == RunStatus.RUNNING
    assert coordinator.log_text() == b"hello\n"
    assert runner.requests[0].host_env == {"PATH": "/usr/bin"}
    assert runner.requests[0].claim_key == runner.requests[0].attempt_key == make_task().attempt_key


async def test_a_claim_without_owner_and_token_is_run_without_acknowledgement_and_renewals(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    runner.script = until_stopped
    async with working(make_worker(runner, coordinator, timings=replace(QUICK, orphan_timeout_s=0.5))) as task:
        coordinator.offer(make_task(), owner=None)
        await coordinator.until(lambda: bool(coordinator.reports))
        before = len(coordinator.heartbeats)
        await coordinator.until(lambda: len(coordinator.heartbeats) > before + 30)  # longer than an orphan may live
        assert not task.done()
        assert coordinator.acknowledged == []
        assert coordinator.renewals == 0
        assert len(coordinator.reports) == 1
        coordinator.cancelled = {make_task().attempt_key}
        await coordinator.until_ended()


@pytest.mark.parametrize("answer", [Verdict(accepted=False, error="claim not found or expired"), LeaseLost("gone")])
async def test_a_refused_acknowledgement_drops_the_task_silently(
    coordinator: FakeCoordinator, runner: FakeRunner, answer: Verdict | LeaseLost
) -> None:
    coordinator.ack_answer = answer
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task("r1"))
        await coordinator.until(lambda: len(coordinator.acknowledged) == 1)
        coordinator.ack_answer = Verdict(accepted=True)
        coordinator.offer(make_task("r2"))
        await coordinator.until_ended("r2")
    assert {report["dagRunId"] for report in coordinator.reports} == {"r2"}
    assert len(runner.requests) == 1


async def test_an_acknowledgement_is_repeated_while_the_coordinator_is_away(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    coordinator.ack_answer = away()
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task())
        await coordinator.until(lambda: len(coordinator.acknowledged) == 3)
        coordinator.ack_answer = Verdict(accepted=True)
        await coordinator.until_ended()


async def test_a_task_that_was_cancelled_before_it_started_is_dropped_at_the_preflight(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    coordinator.has_cancellation_stream = False
    coordinator.cancelled = {make_task("r1").attempt_key}
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task("r1"))
        coordinator.offer(make_task("r2"))
        await coordinator.until_ended("r2")
    assert {report["dagRunId"] for report in coordinator.reports} == {"r2"}


async def test_no_preflight_where_cancellations_are_pushed(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    async with working(make_worker(runner, coordinator, timings=replace(QUICK, heartbeat_s=60.0))):
        coordinator.offer(make_task("r1"))
        await coordinator.until_ended("r1")
        await coordinator.until(lambda: bool(coordinator.watchers))
        before = coordinator.renewals
        coordinator.offer(make_task("r2"))
        await coordinator.until_ended("r2")
        assert coordinator.renewals == before


async def test_never_more_runs_than_slots_and_few_open_polls(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    gate = asyncio.Event()

    async def wait(run: FakeRun) -> None:
        await gate.wait()
        run.status(RunStatus.SUCCEEDED)

    runner.script = wait
    async with working(make_worker(runner, coordinator, max_active_runs=6)):
        for n in range(20):
            coordinator.offer(make_task(f"r{n}"))
        await coordinator.until(lambda: len(coordinator.acknowledged) == 6)
        assert coordinator.open_polls == 0, "a full worker does not poll"
        assert len(coordinator.queue) == 14
        gate.set()
        await coordinator.until(lambda: sum(r["status"] == RunStatus.SUCCEEDED for r in coordinator.reports) == 20)
    assert runner.most_active <= 6
    assert coordinator.most_open_polls <= 4


async def test_several_coordinators_share_a_single_slot(runner: FakeRunner) -> None:
    first, second = FakeCoordinator(), FakeCoordinator()
    timings = replace(QUICK, poll_turn_s=0.02)
    async with working(make_worker(runner, first, second, max_active_runs=1, timings=timings)):
        first.offer(make_task("r1"))
        await first.until_ended("r1")
        second.offer(make_task("r2"), owner=Owner("c2@50056", "127.0.0.1", 50056))
        await second.until_ended("r2")
        first.offer(make_task("r3"))
        await first.until_ended("r3")
    assert runner.most_active == 1


async def test_an_empty_poll_answer_does_not_make_the_worker_spin(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    for _ in range(1000):
        coordinator.queue.append(None)
    async with working(make_worker(runner, coordinator, max_active_runs=1, timings=replace(QUICK, poll_pause_s=0.2))):
        await coordinator.until(lambda: len(coordinator.heartbeats) >= 10)  # about 0.2 s
        assert coordinator.polls <= 3


async def test_a_restarted_coordinator_is_found_again(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    worker = make_worker(runner, coordinator)
    async with working(worker):
        await coordinator.until(lambda: coordinator.open_polls == 4)
        assert worker.is_ready
        coordinator.go_away()
        await eventually(lambda: not worker.is_ready)
        assert worker.health()["coordinators"] == {"c1:50055": "the coordinator cannot be reached: connection refused"}
        coordinator.come_back()
        coordinator.offer(make_task())
        await coordinator.until_ended()
        await eventually(lambda: worker.is_ready)


async def test_a_lasting_trouble_is_logged_once_and_then_now_and_then() -> None:
    trouble = Trouble("c1:50055", remind_s=0.05)
    with capture_logs() as lines:
        for _ in range(100):
            trouble.failed("heartbeat", away())
            trouble.failed("poll", away())
        trouble.failed("heartbeat", Refused("not a worker"))
        assert isinstance(trouble.error, Refused)
        refused_since = trouble.hopeless_since
        trouble.failed("heartbeat", away())
        waited_since = trouble.hopeless_since
        await asyncio.sleep(0.06)
        trouble.failed("heartbeat", away())
        trouble.ok("heartbeat")
        trouble.ok("poll")
        trouble.ok("poll")
    assert [line["event"] for line in lines] == [
        "coordinator.unreachable",
        "coordinator.refused",
        "coordinator.unreachable",
        "coordinator.reached",
    ]
    assert {"what", "why", "fix"} <= set(lines[0])
    assert refused_since is not None
    assert waited_since is None, "it may help to wait again"


async def test_a_silent_coordinator_has_its_open_polls_given_up(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    async with working(make_worker(runner, coordinator)):
        await coordinator.until(lambda: coordinator.open_polls == 4)
        polls = coordinator.polls
        coordinator.error = away()  # heartbeats fail, but open polls hang for ever
        await eventually(lambda: not coordinator.open_polls)
        coordinator.error = None
        await coordinator.until(lambda: coordinator.open_polls == 4)
        assert coordinator.polls > polls


@pytest.mark.parametrize(
    "error", [ConfigError("wrong CA"), Unauthenticated("certificate refused"), Refused("not a worker")]
)
async def test_a_worker_whom_nobody_will_ever_accept_ends_with_that_error(
    coordinator: FakeCoordinator, runner: FakeRunner, error: ConfigError | Unauthenticated | Refused
) -> None:
    coordinator.error = error
    with pytest.raises(type(error)) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await make_worker(runner, coordinator).run()
    assert caught.value.exit_code == error.exit_code


async def test_one_refusing_coordinator_does_not_end_a_worker_that_another_accepts(runner: FakeRunner) -> None:
    refusing, accepting = FakeCoordinator(), FakeCoordinator()
    refusing.error = Refused("not a worker of mine")
    worker = make_worker(runner, refusing, accepting)
    async with working(worker):
        accepting.offer(make_task())
        await accepting.until_ended()
        assert worker.is_ready
        assert worker.health()["coordinators"]["c1:50055"] == "not a worker of mine"


async def test_a_worker_that_was_accepted_bears_a_refusal_for_a_moment(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    worker = make_worker(runner, coordinator, timings=replace(QUICK, hopeless_for_s=30.0))
    async with working(worker) as task:
        await coordinator.until(lambda: worker.is_ready)
        coordinator.error = Unauthenticated("the new certificate is not there yet")
        await eventually(lambda: not worker.is_ready)
        coordinator.error = None
        coordinator.offer(make_task())
        await coordinator.until_ended()
        assert not task.done()


async def test_a_worker_that_stays_refused_ends(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    worker = make_worker(runner, coordinator)

    async def revoke() -> None:
        await coordinator.until(lambda: worker.is_ready)
        coordinator.error = Unauthenticated("revoked")

    async with asyncio.TaskGroup() as group:
        group.create_task(revoke())
        with pytest.raises(Unauthenticated):
            await worker.run()


async def test_heartbeats_tell_capacity_and_running_tasks(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    runner.script = until_stopped
    async with working(make_worker(runner, coordinator)):
        await coordinator.until(lambda: bool(coordinator.heartbeats))
        assert coordinator.heartbeats[0].total_pollers == 4
        assert coordinator.heartbeats[0].busy_pollers == 0
        coordinator.offer(make_task())
        await coordinator.until(lambda: coordinator.heartbeats[-1].busy_pollers == 1)
        assert coordinator.heartbeats[-1].running[0].attempt_key == make_task().attempt_key
        coordinator.cancelled = {make_task().attempt_key}
        await coordinator.until_ended()


async def test_a_pushed_cancellation_stops_the_run_without_waiting_for_a_heartbeat(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    runner.script = until_stopped
    async with working(make_worker(runner, coordinator, timings=replace(QUICK, heartbeat_s=60.0))):
        coordinator.offer(make_task())
        await coordinator.until(lambda: bool(coordinator.watchers) and bool(coordinator.reports))
        heard = len(coordinator.heartbeats)
        coordinator.watchers[0].put_nowait(make_task().attempt_key)
        final = await coordinator.until_ended()
        assert len(coordinator.heartbeats) == heard
    assert final["status"] == RunStatus.ABORTED


@pytest.mark.parametrize("key", [NO_KEY, make_task("other").attempt_key])
async def test_a_cancellation_of_somebody_elses_attempt_is_ignored(
    coordinator: FakeCoordinator, runner: FakeRunner, key: str
) -> None:
    runner.script = until_stopped
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task())
        await coordinator.until(lambda: bool(coordinator.watchers) and bool(coordinator.reports))
        coordinator.watchers[0].put_nowait(make_task("other").attempt_key)
        renewals = coordinator.renewals
        await coordinator.until(lambda: coordinator.renewals > renewals + 2)
        assert len(coordinator.reports) == 1
        coordinator.cancelled = {make_task().attempt_key}
        await coordinator.until_ended()


async def test_a_renewal_answer_cancels_where_there_is_no_stream(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    coordinator.has_cancellation_stream = False
    runner.script = until_stopped
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task())
        await coordinator.until(lambda: bool(coordinator.reports))
        coordinator.cancelled = {make_task().attempt_key}
        assert (await coordinator.until_ended())["status"] == RunStatus.ABORTED


async def test_a_run_that_nobody_renews_is_stopped(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    runner.script = until_stopped
    async with working(make_worker(runner, coordinator, timings=replace(QUICK, orphan_timeout_s=0.2))):
        coordinator.offer(make_task())
        await coordinator.until(lambda: bool(coordinator.reports))
        coordinator.go_away()
        await eventually(lambda: not runner.active)


async def test_an_unreachable_owner_address_is_warned_of_on_the_run(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    coordinator.problem = "10.0.0.7:50055 did not answer within 3 s; following up at c1:50055"
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task())
        final = await coordinator.until_ended()
    assert final["warnings"] == [f"owner.unreachable: {coordinator.problem}"]


async def test_owners_without_tasks_are_forgotten(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    """A coordinator that invents a new owner for each task costs no memory."""
    worker = make_worker(runner, coordinator)
    async with working(worker):
        for n in range(2 * MAX_LINKS):
            coordinator.offer(make_task(f"r{n}"), owner=Owner(f"c{n}", "127.0.0.1", 1024 + n))
            await coordinator.until_ended(f"r{n}")
        assert len(worker._links) <= MAX_LINKS
        await eventually(lambda: len(coordinator.watchers) <= MAX_LINKS)


async def test_a_draining_worker_takes_nothing_new_and_finishes_what_it_has(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    gate = asyncio.Event()

    async def wait(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        await gate.wait()
        run.write(b"late\n")
        run.status(RunStatus.SUCCEEDED)

    runner.script = wait
    worker = make_worker(runner, coordinator)
    async with working(worker) as task:
        coordinator.offer(make_task("r1"))
        await coordinator.until(lambda: bool(coordinator.reports))
        worker.drain()
        await coordinator.until(lambda: coordinator.open_polls == 0)
        coordinator.offer(make_task("r2"))
        await coordinator.until(lambda: coordinator.heartbeats[-1].total_pollers == 1)
        assert worker.health() == {
            "status": "draining",
            "ready": False,
            "coordinators": {"c1:50055": "connected"},
            "running": 1,
        }
        gate.set()
        await task
    assert [r["dagRunId"] for r in coordinator.reports if r["status"] == RunStatus.SUCCEEDED] == ["r1"]
    assert coordinator.log_text() == b"late\n"
    assert len(coordinator.queue) == 1


async def test_what_outlives_the_drain_timeout_is_stopped_and_reported_as_aborted(
    coordinator: FakeCoordinator, runner: FakeRunner
) -> None:
    runner.script = until_stopped
    worker = make_worker(runner, coordinator, timings=replace(QUICK, drain_timeout_s=0.05))
    async with working(worker) as task:
        coordinator.offer(make_task())
        await coordinator.until(lambda: bool(coordinator.reports))
        worker.drain()
        await task
    assert coordinator.reports[-1]["status"] == RunStatus.ABORTED


async def test_a_second_signal_stops_at_once(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    async def stubborn(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        await asyncio.Event().wait()

    runner.script = stubborn
    worker = make_worker(runner, coordinator, timings=replace(QUICK, drain_timeout_s=3600.0))
    async with working(worker) as task:
        coordinator.offer(make_task())
        await coordinator.until(lambda: bool(coordinator.reports))
        worker.drain()
        worker.drain()
        async with asyncio.timeout(DEADLINE_S):
            await task
    assert runner.active == 0


async def test_a_bug_in_one_run_is_a_failed_run_and_no_more(coordinator: FakeCoordinator, runner: FakeRunner) -> None:
    async def buggy(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        if run.request.task.run.run_id == "r1":
            raise ZeroDivisionError("secret text")
        run.status(RunStatus.SUCCEEDED)

    runner.script = buggy
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task("r1"))
        failed = await coordinator.until_ended("r1")
        coordinator.offer(make_task("r2"))
        await coordinator.until_ended("r2")
    assert failed["status"] == RunStatus.FAILED
    assert "internal error of worker w1 (incident " in failed["error"]
    assert "secret text" not in str(failed)
