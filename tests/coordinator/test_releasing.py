"""The tasks of a revoked worker: handed on once; whatever the revoked one still says is refused."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from secure_dagu.dispatch.machine import MAX_DELIVERIES
from secure_dagu.dispatch.model import LogPart, LogStream
from secure_dagu.errors import PreconditionFailed
from secure_dagu.run.model import DagRunRef, RunStatus
from tests.coordinator.harness import DISPATCHER, Place, a_task, worker

RUN = DagRunRef("sales", "r1")
STOLEN, GOOD = "aa", "bb"
LATE = LogPart(step="one", stream=LogStream.STDOUT, data=b"late", offset=0, is_final=False)
THIEF = replace(worker("w1"), serial=STOLEN)
OTHER = replace(worker("w2"), serial=GOOD)


async def test_a_lease_goes_to_another_worker_and_late_reports_are_refused(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.take(THIEF)
        assert await house.service.releasing.release(serials={STOLEN}, names={"w1"}) == 1
        assert await house.renew(THIEF, claim) == [claim.task.attempt_key], "the old holder must stop"
        again = await house.take(OTHER)
        assert again.task.attempt_key == claim.task.attempt_key
        assert again.token != claim.token
        late = await house.report(THIEF, claim, RunStatus.SUCCEEDED)
        assert not late.accepted
        assert "stale attempt" in late.error
        assert (await house.report(OTHER, again, RunStatus.SUCCEEDED)).accepted
        assert (await house.document(RUN))["status"] == int(RunStatus.SUCCEEDED)


async def test_it_is_handed_on_once_however_often_the_list_is_read(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        await house.take(THIEF)
        release = house.service.releasing.release
        counts = await asyncio.gather(*(release(serials={STOLEN}, names={"w1"}) for _ in range(10)))
        assert sum(counts) == 1
        assert len(house.service.desk.board.backlog) == 1
        await house.take(OTHER)
        assert await release(serials={STOLEN}, names={"w1"}) == 0, "its new holder is somebody else"


async def test_a_renewed_certificate_of_the_same_name_keeps_its_leases(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.take(THIEF)
        assert await house.renew(replace(THIEF, serial="cc"), claim) == []
        assert await house.service.releasing.release(serials={STOLEN}, names=()) == 0


async def test_what_was_released_survives_a_restart(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        await house.take(THIEF)
        await house.service.releasing.release(serials={STOLEN}, names={"w1"})
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(OTHER)
        claim = await house.take(OTHER)
        assert claim.task.run == RUN


async def test_an_offer_under_way_goes_back(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.poll(THIEF)
        assert await house.service.releasing.release(serials={STOLEN}, names={"w1"}) == 1
        assert not (await house.acknowledge(THIEF, claim)).accepted
        assert (await house.take(OTHER)).task.run == RUN


async def test_a_run_that_was_to_stop_is_ended_instead_of_handed_on(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        await house.take(THIEF)
        await house.service.desk.cancel(DISPATCHER, run=RUN, root=None)
        await house.service.releasing.release(serials={STOLEN}, names={"w1"})
        assert (await house.document(RUN))["status"] == int(RunStatus.ABORTED)


async def test_a_task_does_not_circle_for_ever(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        for turn in range(MAX_DELIVERIES):
            caller = replace(worker(f"v{turn}"), serial=f"{turn:02x}")
            await house.take(caller)
            await house.service.releasing.release(serials={caller.serial}, names={caller.name})
        document = await house.document(RUN)
        assert document["status"] == int(RunStatus.FAILED)
        assert "revoked" in str(document)


async def test_a_revoked_worker_is_gone_from_the_list_at_once(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.releasing.release(serials={STOLEN}, names={"w1"})
        assert not await house.service.desk.workers(DISPATCHER)


async def test_nobody_writes_logs_under_a_lease_that_was_taken_back(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(THIEF)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.take(THIEF)
        await house.service.releasing.release(serials={STOLEN}, names={"w1"})
        with pytest.raises(PreconditionFailed):
            await house.upload(THIEF, claim, LATE)
