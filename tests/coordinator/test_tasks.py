"""The task desk: dispatch, poll, claim, renewal, expiry, cancellation, restart."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from secure_dagu.coordinator.service import Options
from secure_dagu.dispatch.model import NO_KEY, ClaimToken, Operation, WorkerId, WorkerStats
from secure_dagu.errors import DefinitionError, InvalidRequest, NotFound, PreconditionFailed, Refused, Unavailable
from secure_dagu.run.model import AttemptKey, DagRunRef
from tests.coordinator.harness import DISPATCHER, OWNER, Place, a_task, worker

W1, W2 = worker("w1"), worker("w2")
RUN = DagRunRef("sales", "r1")
LOST = "distributed run lease expired: worker w1 accepted the task claim but stopped reporting to the owner coordinator"


async def test_a_dispatched_task_reaches_a_waiting_poller_and_becomes_a_lease(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60), asyncio.TaskGroup() as group:
        await house.beat(W1)
        waiting = group.create_task(house.poll(W1))
        await asyncio.sleep(0)
        sent = await house.service.desk.dispatch(DISPATCHER, a_task(trigger_actor="ci"))
        claim = await waiting
        assert claim.task == sent
        assert claim.owner == OWNER
        assert claim.task.attempt_key.endswith(":" + claim.task.attempt_id)
        assert len(claim.task.attempt_id) == 32
        assert await house.renew(W1, claim) == [sent.attempt_key], "no lease before the acknowledgement"
        assert (await house.acknowledge(W1, claim)).accepted
        assert await house.renew(W1, claim) == []
        document = await house.document(RUN)
        assert (document["status"], document["attemptId"], document["triggerActor"]) == (0, sent.attempt_id, "ci")


async def test_the_fleet_tells_at_once_what_a_worker_was_given_whatever_its_last_heartbeat_said(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):

        async def held() -> int:
            (view,) = await house.service.machines.fleet(DISPATCHER)
            assert not view.info.stats.running, "its heartbeat does not know yet"
            return view.held_tasks

        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        assert await held() == 0
        claim = await house.poll(W1)
        assert await held() == 1
        await house.acknowledge(W1, claim)
        await house.report(W1, claim, 1)
        assert await held() == 1
        await house.report(W1, claim, 4)
        assert await held() == 0


async def test_repeating_a_dispatch_while_the_run_is_active_changes_nothing(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        first = await house.service.desk.dispatch(DISPATCHER, a_task())
        assert await house.service.desk.dispatch(DISPATCHER, a_task()) == first
        claim = await house.take(W1)
        again = await house.service.desk.dispatch(DISPATCHER, a_task())
        assert again.attempt_id == claim.task.attempt_id == first.attempt_id
        assert len(house.service.desk.board.backlog) == 0


async def test_parallel_dispatches_of_one_run_make_one_task(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(house.service.desk.dispatch(DISPATCHER, a_task())) for _ in range(20)]
        assert len({call.result().attempt_id for call in calls}) == 1
        assert len(house.service.desk.board.backlog) == 1


async def test_without_workers_nothing_is_accepted(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        with pytest.raises(Unavailable, match="no available workers"):
            await house.service.desk.dispatch(DISPATCHER, a_task())
        await house.beat(W1, labels={"gpu": "false"})
        with pytest.raises(PreconditionFailed, match="no workers match the required selector"):
            await house.service.desk.dispatch(DISPATCHER, a_task(worker_selector={"gpu": "true"}))
        with pytest.raises(PreconditionFailed, match="no workers match"):
            await house.service.desk.dispatch(DISPATCHER, a_task(target_worker=WorkerId("w9")))
        assert await house.service.reports.runs(DISPATCHER, name=None, run_id=None, limit=0) == []


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"definition": ""}, "task.Definition is required"),
        ({"definition": "steps: ["}, "failed to prepare attempt"),
        ({"operation": Operation.UNSPECIFIED}, "operation"),
        ({"run": DagRunRef("../x", "r1")}, "DAG name"),
        ({"run": DagRunRef("..", "r1")}, "DAG name"),
        ({"run": DagRunRef("sales", "../../x")}, "run id"),
        ({"run": DagRunRef("sales", "r" * 65)}, "run id"),
        ({"root": DagRunRef("other", "r9")}, "its own root"),
        ({"trigger_actor": 'x\n{"level":"audit"}'}, "trigger_actor"),
    ],
)  # fmt: skip
async def test_a_malformed_task_is_refused(place: Place, fields: dict[str, Any], error: str) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        with pytest.raises(DefinitionError, match=error):
            await house.service.desk.dispatch(DISPATCHER, a_task(**({"root": DagRunRef("", "")} | fields)))
        assert len(house.service.desk.board.backlog) == 0


async def test_a_finished_run_is_not_started_again_but_can_be_retried(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        assert (await house.report(W1, claim, 2, error="exit status 3")).accepted
        with pytest.raises(PreconditionFailed, match="is over"):
            await house.service.desk.dispatch(DISPATCHER, a_task())
        retried = await house.service.desk.dispatch(DISPATCHER, a_task(operation=Operation.RETRY))
        assert retried.attempt_id != claim.task.attempt_id
        assert '"status":2' in retried.previous_status, "the stored status goes along when the request brings none"
        with pytest.raises(NotFound):
            await house.service.desk.dispatch(DISPATCHER, a_task("r2", operation=Operation.RETRY))


async def test_a_stale_queue_dispatch_is_named_as_such(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        for status, reason in (
            ('{"status":5}', "queued attempt ID is missing"),
            ('{"status":5,"attemptId":"a"}', "dag-run is no longer queued"),
        ):
            with pytest.raises(PreconditionFailed, match=f"stale queue dispatch: {reason}"):
                await house.service.desk.dispatch(DISPATCHER, a_task(operation=Operation.RETRY, previous_status=status))
        with pytest.raises(PreconditionFailed, match="dispatch admission not found"):
            await house.service.desk.dispatch(DISPATCHER, a_task(), admission_token="t")


async def test_only_a_poller_that_matches_gets_the_task(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60), asyncio.TaskGroup() as group:
        await house.beat(W2, labels={"gpu": "true"})
        wrong = group.create_task(house.poll(W1, {"gpu": "false"}))
        await asyncio.sleep(0)
        await house.service.desk.dispatch(DISPATCHER, a_task(worker_selector={"gpu": "true"}))
        claim = await house.poll(W2, {"gpu": "true", "zone": "a"})
        assert claim.worker == "w2"
        assert not wrong.done()
        wrong.cancel()


async def test_tasks_go_to_the_worker_with_the_fewest(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60), asyncio.TaskGroup() as group:
        await house.beat(W1)
        await house.beat(W2)
        polls = [group.create_task(house.poll(caller)) for caller in (W1, W1, W1, W2, W2, W2)]
        await asyncio.sleep(0)
        for number in range(4):
            await house.service.desk.dispatch(DISPATCHER, a_task(f"r{number}"))
        await asyncio.sleep(0)
        taken = sorted(poll.result().worker for poll in polls if poll.done())
        assert taken == ["w1", "w1", "w2", "w2"]
        for poll in polls:
            poll.cancel()


async def test_a_poll_that_is_cancelled_loses_no_task(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60), asyncio.TaskGroup() as group:
        await house.beat(W1)
        poll = group.create_task(house.poll(W1))
        await asyncio.sleep(0)
        dispatch = group.create_task(house.service.desk.dispatch(DISPATCHER, a_task()))
        while len(house.service.desk.board.waiters):  # noqa: ASYNC110  the very turn of the loop is what is tested
            await asyncio.sleep(0)
        poll.cancel()  # the offer is made, and nobody will receive it
        await dispatch
        assert (await house.take(W1)).task.run == RUN


async def test_an_offer_that_is_not_acknowledged_goes_to_somebody_else(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        lost = await house.poll(W1)
        await house.pass_time(30)
        claim = await house.take(W2)
        assert claim.task.attempt_id == lost.task.attempt_id
        assert claim.token != lost.token
        assert (await house.acknowledge(W1, lost)).error == "claim not found or expired"


async def test_after_five_offers_the_run_fails_and_says_why(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        for _ in range(5):
            await house.poll(W1)
            await house.pass_time(30)
        document = await house.document(RUN)
        assert document["status"] == 2
        assert "offered 5 times and never acknowledged" in document["error"]
        assert await house.store.tasks() == []


async def test_acknowledgements_name_what_is_wrong(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.poll(W1)
        desk = house.service.desk
        key = claim.task.attempt_key
        with pytest.raises(InvalidRequest, match="claim_token is required"):
            await desk.acknowledge(W1, token=ClaimToken(""), attempt_key=key)
        wrong = await desk.acknowledge(W1, token=ClaimToken("x"), attempt_key=key)
        assert wrong.error == "claim not found or expired"
        assert (await house.acknowledge(W2, claim)).error == "claim belongs to a different worker"
        other = await desk.acknowledge(W1, token=claim.token, attempt_key=AttemptKey("other"))
        assert other.error == "claim belongs to a different attempt"
        assert (await desk.acknowledge(W1, token=claim.token, attempt_key=NO_KEY)).accepted
        assert (await house.acknowledge(W1, claim)).accepted, "the answer may have got lost"
        assert not (await house.acknowledge(W2, claim)).accepted


async def test_a_hundred_parallel_acknowledgements_of_one_token_make_one_lease(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.poll(W1)
        callers = [worker(f"w{number}") for number in range(100)]
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(house.acknowledge(caller, claim)) for caller in callers]
        assert [call.result().accepted for call in calls].count(True) == 1


async def test_a_worker_killed_with_9_fails_its_run_within_32_seconds(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        nodes = [
            {"step": {"name": "done"}, "status": 4, "startedAt": "2026-01-02T03:04:05Z", "finishedAt": "x"},
            {"step": {"name": "going"}, "status": 1, "startedAt": "2026-01-02T03:04:05Z"},
            {"step": {"name": "next"}, "status": 0, "startedAt": ""},
        ]
        assert (await house.report(W1, claim, 1, nodes=nodes)).accepted
        await house.pass_time(5)
        await house.renew(W1, claim)
        await house.pass_time(29)
        assert (await house.document(RUN))["status"] == 1
        await house.pass_time(3)
        document = await house.document(RUN)
        assert (document["status"], document["error"]) == (2, LOST)
        assert [(node["status"], node.get("error")) for node in document["nodes"]] == [(4, None), (2, LOST), (2, LOST)]
        late = await house.report(W1, claim, 4)
        assert not late.accepted
        assert late.error == "stale attempt: run already terminal"
        assert await house.renew(W1, claim) == [claim.task.attempt_key]
        assert await house.store.tasks() == []


async def test_a_heartbeat_that_lists_the_task_keeps_it(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        for _ in range(8):
            await house.pass_time(10)
            assert await house.beat(W1, claim) == []
        assert await house.renew(W1, claim) == []


async def test_a_coordinator_that_stood_still_does_not_blame_the_workers(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        place.clock.advance(600)  # suspended, or starved
        await house.service.sweeper.look()
        assert await house.renew(W1, claim) == []
        assert [info.worker for info in await house.service.desk.workers(DISPATCHER)] == ["w1"]


async def test_a_task_nobody_matches_any_more_fails_after_the_wait_and_says_why(place: Place) -> None:
    place.options = Options(task_wait=timedelta(seconds=60))
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1, labels={"gpu": "true"})
        await house.service.desk.dispatch(DISPATCHER, a_task(worker_selector={"gpu": "true"}))
        for _ in range(10):  # the worker is busy but there: the task waits
            await house.pass_time(20)
            await house.beat(W1, labels={"gpu": "true"})
        assert (await house.document(RUN))["status"] == 0
        await house.pass_time(32 + 61)
        document = await house.document(RUN)
        assert document["status"] == 2
        assert document["error"] == "no worker that matches gpu=true polled within 60 s"


async def test_cancelling_a_waiting_task_ends_it_at_once(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        assert (await house.service.desk.cancel(DISPATCHER, run=RUN, root=None)).accepted
        document = await house.document(RUN)
        assert (document["status"], document["error"]) == (3, "context canceled")
        assert len(house.service.desk.board.backlog) == 0
        assert (await house.service.desk.cancel(DISPATCHER, run=RUN, root=None)).accepted, "idempotent"


async def test_cancelling_an_offered_task_makes_its_token_worthless(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.poll(W1)
        await house.service.desk.cancel(DISPATCHER, run=RUN, root=None)
        assert not (await house.acknowledge(W1, claim)).accepted


async def test_cancelling_a_running_task_is_pushed_and_told_in_every_heartbeat(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        stream = house.service.desk.cancellations(W1)
        assert await anext(stream) == NO_KEY
        assert (await house.service.desk.cancel(DISPATCHER, run=RUN, root=RUN)).accepted
        key = claim.task.attempt_key
        assert await anext(stream) == key
        assert await house.renew(W1, claim) == [key]
        assert await house.beat(W1, claim) == [key]
        assert await house.beat(W2, claim) == [], "nobody else learns of it"
        assert (await house.report(W1, claim, 3)).accepted
        assert (await house.document(RUN))["status"] == 3
        unknown = await house.service.desk.cancel(DISPATCHER, run=DagRunRef("sales", "r9"), root=None)
        assert unknown.error.startswith("failed to find DAG run")


async def test_a_restart_loses_neither_queue_nor_leases_nor_cancellations(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        held = await house.started(W1, "held")
        doomed = await house.started(W1, "doomed")
        await house.service.desk.cancel(DISPATCHER, run=doomed.task.run, root=None)
        await house.service.desk.dispatch(DISPATCHER, a_task("waits-1"))
        await house.service.desk.dispatch(DISPATCHER, a_task("waits-2"))
        offered = await house.poll(W1)
    place.clock.advance(3600)
    async with place.coordinator() as house, asyncio.timeout(60):
        assert await house.renew(W1, held) == []
        assert await house.renew(W1, doomed) == [doomed.task.attempt_key]
        assert (await house.report(W1, held, 4)).accepted
        assert (await house.acknowledge(W1, held)).error == "claim not found or expired"
        assert not (await house.acknowledge(W1, offered)).accepted, "an offer is memory only; its task waits again"
        assert (await house.take(W1)).task.run.run_id == "waits-1"
        assert (await house.take(W1)).task.run.run_id == "waits-2"


async def test_after_a_restart_a_silent_worker_still_has_a_whole_lease(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
    place.clock.advance(3600)
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.pass_time(29)
        assert (await house.document(RUN))["status"] == 0
        await house.pass_time(2)
        assert (await house.document(RUN))["error"] == LOST


async def test_closing_ends_waiting_polls_and_streams(place: Place) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        async with place.coordinator() as house:
            await house.beat(W1)
            poll = group.create_task(house.service.desk.poll(W1, poller_id="p", labels={}))
            stream = house.service.desk.cancellations(W1)
            await anext(stream)
        assert await poll is None
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_workers_are_listed_and_vanish_when_silent(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.service.desk.heartbeat(W1, labels={"gpu": "true"}, stats=WorkerStats(total_pollers=3))
        (info,) = await house.service.desk.workers(DISPATCHER)
        assert (info.worker, info.labels, info.stats.total_pollers, info.health) == ("w1", {"gpu": "true"}, 3, 1)
        await house.pass_time(6)
        assert (await house.service.desk.workers(DISPATCHER))[0].health == 2
        await house.pass_time(10)
        assert (await house.service.desk.workers(DISPATCHER))[0].health == 3
        await house.pass_time(20)
        assert await house.service.desk.workers(DISPATCHER) == []


async def test_children_are_dispatched_by_the_holder_of_their_parent_only(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
        await house.beat(W2)
        child = a_task("c1", name="load", root=RUN, parent=RUN)
        desk = house.service.desk
        with pytest.raises(Refused):
            await desk.dispatch(W2, child)
        with pytest.raises(Refused):
            await desk.dispatch(W1, a_task("r2"))
        with pytest.raises(Refused):
            await desk.dispatch(W1, a_task("c2", root=RUN, parent=DagRunRef("load", "unknown")))
        await desk.dispatch(W1, child)
        claim = await house.take(W2)
        assert claim.task.run == child.run
        status = await house.service.reports.run_status(W1, run=child.run, root=RUN)
        assert status is not None
        assert (await house.report(W2, claim, 4)).accepted
        assert (await house.document(child.run, RUN))["parent"] == {"name": "sales", "id": "r1"}
        with pytest.raises(NotFound):
            await desk.dispatch(DISPATCHER, a_task("c3", root=DagRunRef("x", "y"), parent=DagRunRef("x", "y")))


async def test_when_a_parent_is_lost_its_children_are_cancelled(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
        await house.service.desk.dispatch(W1, a_task("c1", name="load", root=RUN, parent=RUN))
        await house.service.desk.dispatch(W1, a_task("c2", name="load", root=RUN, parent=RUN))
        running = await house.take(W2)
        for _ in range(32):
            await house.pass_time(1)
            await house.beat(W2, running)
        assert (await house.document(RUN))["status"] == 2
        assert await house.renew(W2, running) == [running.task.attempt_key]
        assert (await house.document(DagRunRef("load", "c2"), RUN))["status"] == 3
