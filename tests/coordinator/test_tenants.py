"""Whose runs a dispatcher reaches (threat T07), on a whole coordinator with a real store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from secure_dagu.coordinator.tenants import Tenants
from secure_dagu.dispatch.model import Caller, Operation, Role
from secure_dagu.errors import OtherTenant, PreconditionFailed
from secure_dagu.run.model import DagRunRef
from secure_dagu.security.admission import Deny
from secure_dagu.security.grants import TENANT
from secure_dagu.security.policy import Mode, Policy
from tests.coordinator.harness import ManualClock, Place, a_task, worker

PAY = {TENANT: "payments"}
W = worker("w1")
RUN = DagRunRef("sales", "r1")


def dispatcher(*tenants: str) -> Caller:
    return Caller(role=Role.DISPATCHER, name="ci", proven=True, tenants=frozenset(tenants))


OURS, THEIRS = dispatcher("payments"), dispatcher("lab")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return the folders and the clock of one coordinator."""
    return Place(tmp_path, ManualClock())


async def test_a_run_belongs_to_the_tenant_of_its_selector_and_still_does_after_a_restart(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W, labels=PAY)
        with pytest.raises(OtherTenant):
            await house.service.desk.dispatch(THEIRS, a_task(worker_selector=PAY))
        await house.service.desk.dispatch(OURS, a_task(worker_selector=PAY))
    async with place.coordinator() as house, asyncio.timeout(60):
        reports = house.service.reports
        with pytest.raises(OtherTenant, match="'payments'"):
            await reports.run_status(THEIRS, run=RUN, root=None)
        assert await reports.run_status(OURS, run=RUN, root=None) is not None
        with pytest.raises(OtherTenant):
            await house.service.desk.cancel(THEIRS, run=RUN, root=None)
        assert [run.run for run in await reports.runs(OURS, name=None, run_id=None, limit=0)] == [RUN]
        assert await reports.runs(THEIRS, name=None, run_id=None, limit=0) == []
        with pytest.raises(OtherTenant):
            await anext(reports.follow(THEIRS, run=RUN, with_logs=True))
        with pytest.raises(OtherTenant):
            await reports.artifacts(THEIRS, run=RUN)


async def test_a_repeated_dispatch_shows_nobody_the_task_of_another_tenant(place: Place) -> None:
    """The answer to a dispatch of an active run is its task, definition and parameters included."""
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W, labels=PAY)
        await house.service.desk.dispatch(OURS, a_task(worker_selector=PAY, params="secret"))
        for selector in ({}, PAY, {TENANT: "lab"}):
            with pytest.raises(OtherTenant):
                await house.service.desk.dispatch(THEIRS, a_task(worker_selector=selector))
            with pytest.raises(OtherTenant):
                await house.service.desk.dispatch(THEIRS, a_task(worker_selector=selector, operation=Operation.RETRY))


async def test_a_label_of_a_workflow_cannot_say_whose_a_run_is(place: Place) -> None:
    definition = f"labels: ['{TENANT}=payments']\nsteps:\n  - name: one\n    run: echo hello\n"
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W)
        task = a_task(definition=definition, labels=f"{TENANT}=payments,team=x")
        accepted = await house.service.desk.dispatch(THEIRS, task)
        assert accepted.labels == "team=x"
        assert await house.service.reports.run_status(THEIRS, run=RUN, root=None) is not None


async def test_a_child_stays_in_the_tenant_of_its_root(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W, labels=PAY)
        await house.service.desk.dispatch(OURS, a_task(worker_selector=PAY))
        await house.take(W, PAY)
        child = a_task("c1", name="child", root=RUN, parent=RUN)
        accepted = await house.service.desk.dispatch(W, child)
        assert accepted.worker_selector == PAY, "a child without a selector does not leave the tenant's workers"
        with pytest.raises(OtherTenant):
            await house.service.desk.dispatch(
                W, a_task("c2", name="child", root=RUN, parent=RUN, worker_selector={TENANT: "lab"})
            )
        with pytest.raises(OtherTenant):
            await house.service.desk.dispatch(THEIRS, a_task("c3", name="child", root=RUN, parent=RUN))
        with pytest.raises(OtherTenant):
            await house.service.reports.run_status(THEIRS, run=DagRunRef("child", "c1"), root=RUN)


@pytest.mark.parametrize("asked", [{}, {"gpu": "true"}])
async def test_nothing_runs_on_a_tenants_worker_but_the_tenants_own_tasks(place: Place, asked: dict[str, str]) -> None:
    """A dispatcher of nobody's could otherwise run its code on that machine, by a selector or by naming the worker."""
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(worker("pay"), labels={**PAY, "gpu": "true"})
        for target in (None, worker("pay").worker):
            with pytest.raises(PreconditionFailed, match="no workers match"):
                await house.service.desk.dispatch(THEIRS, a_task(worker_selector=asked, target_worker=target))
        await house.service.desk.dispatch(OURS, a_task(worker_selector={**PAY, **asked}))
        await house.take(worker("pay"), {**PAY, "gpu": "true"})


async def test_a_run_without_a_tenant_cannot_call_into_one(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(worker("pay"), labels=PAY)
        await house.started(W)
        child = a_task("c1", name="child", root=RUN, parent=RUN, worker_selector=PAY)
        with pytest.raises(OtherTenant, match="may not run in the tenant 'payments'"):
            await house.service.desk.dispatch(W, child)


async def test_what_a_worker_reports_of_itself_moves_no_run_to_another_tenant(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W)
        verdict = await house.report(W, claim, 1, labels=[f"{TENANT}=lab", "team=x"])
        assert verdict.accepted
        document = json.dumps(await house.document(RUN))
        assert "lab" not in document
        assert await house.service.reports.run_status(dispatcher(), run=RUN, root=None) is not None


async def test_workers_of_other_tenants_are_not_shown(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(worker("pay"), labels=PAY)
        await house.beat(worker("free"))

        async def seen(caller: Caller) -> set[str]:
            return {info.worker for info in await house.service.desk.workers(caller)}

        assert await seen(THEIRS) == {"free"}
        assert await seen(OURS) == {"free", "pay"}
        assert await seen(Caller(role=Role.ADMIN, name="root", proven=True)) == {"free", "pay"}


async def test_dry_run_tells_of_other_tenants_and_lets_the_call_through(place: Place) -> None:
    told: list[tuple[str, str, Deny]] = []
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W, labels=PAY)
        await house.service.desk.dispatch(OURS, a_task(worker_selector=PAY))
        tenants = Tenants(
            house.store,
            policy=lambda: Policy(mode=Mode.DRY_RUN),
            would_deny=lambda caller, method, deny: told.append((caller.name, method, deny)),
        )
        await tenants.check_run(THEIRS, RUN, "RequestCancel")
        assert [(name, method, deny.reason.value) for name, method, deny in told] == [
            ("ci", "RequestCancel", "other_tenant")
        ]
