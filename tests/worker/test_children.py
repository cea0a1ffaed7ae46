"""Sub-DAGs on other workers: dispatched once, waited for, cancelled with their parent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from secure_dagu.dispatch.model import Operation, Task
from secure_dagu.errors import PreconditionFailed, Unavailable
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.runner.api import ChildRequest, ChildRuns
from secure_dagu.worker.children import RemoteChildren
from tests.worker.fakes import CALLER, DEADLINE_S, QUICK, FakeCoordinator, away, make_task

PARENT = make_task(labels="team=a,workspace=ops")
CHILD = DagRunRef("child", "c1")


def request(**changes: Any) -> ChildRequest:
    values: dict[str, Any] = {
        "dag": "child",
        "definition": "steps: []",
        "run_id": "c1",
        "parent": PARENT.run,
        "root": PARENT.root,
        "params": "X=1",
        "worker_selector": {"gpu": "true"},
        "parallel_item": "item-1",
    }
    return ChildRequest(**(values | changes))


def document(status: RunStatus, **more: Any) -> str:
    return json.dumps({"name": "child", "dagRunId": "c1", "status": int(status)} | more)


@pytest.fixture
def coordinator() -> FakeCoordinator:
    return FakeCoordinator()


@pytest.fixture
def children(coordinator: FakeCoordinator) -> ChildRuns:
    return RemoteChildren(
        owner=coordinator,
        anyone=coordinator,
        caller=CALLER,
        task=PARENT,
        attempt_id=PARENT.attempt_id,
        timings=QUICK,
    )


async def test_a_child_is_dispatched_under_its_root_and_waited_for(
    coordinator: FakeCoordinator, children: ChildRuns
) -> None:
    def start(task: Task) -> None:
        coordinator.statuses[task.run] = document(RunStatus.RUNNING)
        asyncio.get_running_loop().call_later(
            0.1, coordinator.statuses.__setitem__, task.run, document(RunStatus.SUCCEEDED, params="X=1")
        )

    coordinator.on_dispatch = start
    result = await children.run(request())
    assert result.status is RunStatus.SUCCEEDED
    assert json.loads(result.document)["params"] == "X=1"
    (task,) = coordinator.dispatched
    assert task.operation is Operation.START
    assert (task.run, task.root, task.parent) == (CHILD, PARENT.root, PARENT.run)
    assert (task.params, task.parallel_item, dict(task.worker_selector)) == ("X=1", "item-1", {"gpu": "true"})


async def test_a_child_that_succeeded_for_an_earlier_attempt_is_reused(
    coordinator: FakeCoordinator, children: ChildRuns
) -> None:
    coordinator.statuses[CHILD] = document(RunStatus.SUCCEEDED)
    assert (await children.run(request())).status is RunStatus.SUCCEEDED
    assert coordinator.dispatched == []


async def test_a_child_that_is_still_running_is_waited_for(coordinator: FakeCoordinator, children: ChildRuns) -> None:
    coordinator.statuses[CHILD] = document(RunStatus.RUNNING)
    asyncio.get_running_loop().call_later(0.02, coordinator.statuses.__setitem__, CHILD, document(RunStatus.FAILED))
    assert (await children.run(request())).status is RunStatus.FAILED
    assert coordinator.dispatched == []


async def test_a_child_that_failed_is_retried_and_its_old_end_does_not_count(
    coordinator: FakeCoordinator, children: ChildRuns
) -> None:
    before = document(RunStatus.FAILED)
    coordinator.statuses[CHILD] = before
    asyncio.get_running_loop().call_later(0.2, coordinator.statuses.__setitem__, CHILD, document(RunStatus.SUCCEEDED))
    assert (await children.run(request())).status is RunStatus.SUCCEEDED
    (task,) = coordinator.dispatched
    assert task.operation is Operation.RETRY
    assert task.previous_status == before


async def test_a_child_that_no_worker_matches_fails_at_once(coordinator: FakeCoordinator, children: ChildRuns) -> None:
    def refuse(task: Task) -> None:
        raise PreconditionFailed("no workers match the required selector")

    coordinator.on_dispatch = refuse
    with pytest.raises(PreconditionFailed):
        await children.run(request())
    assert len(coordinator.dispatched) == 1


async def test_a_short_outage_while_waiting_is_borne(coordinator: FakeCoordinator, children: ChildRuns) -> None:
    def start(task: Task) -> None:
        coordinator.statuses[task.run] = document(RunStatus.SUCCEEDED)
        coordinator.error = away()
        asyncio.get_running_loop().call_later(0.1, setattr, coordinator, "error", None)

    coordinator.on_dispatch = start
    assert (await children.run(request())).status is RunStatus.SUCCEEDED


async def test_a_child_that_nobody_knows_after_its_dispatch_is_an_error(
    coordinator: FakeCoordinator, children: ChildRuns
) -> None:
    with pytest.raises(Unavailable, match="10 times in a row"):
        await children.run(request())


@pytest.mark.parametrize("ends", [True, False])
async def test_cancelling_the_parent_cancels_the_child_and_sees_its_end(
    coordinator: FakeCoordinator, ends: bool
) -> None:
    children = RemoteChildren(
        owner=coordinator,
        anyone=coordinator,
        caller=CALLER,
        task=PARENT,
        attempt_id=PARENT.attempt_id,
        timings=replace(QUICK, child_cancel_s=0.2),
    )
    coordinator.on_dispatch = lambda task: coordinator.statuses.update({task.run: document(RunStatus.RUNNING)})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        running = group.create_task(children.run(request()))
        await coordinator.until(lambda: bool(coordinator.dispatched))
        running.cancel()
        await coordinator.until(lambda: bool(coordinator.cancel_requests))
        if ends:
            coordinator.statuses[CHILD] = document(RunStatus.ABORTED)
        await asyncio.wait({running})
    assert running.cancelled()
    assert coordinator.cancel_requests == [CHILD]


async def test_definitions_and_secrets_are_asked_of_the_coordinator(
    coordinator: FakeCoordinator, children: ChildRuns
) -> None:
    coordinator.leases.add(PARENT.attempt_key)
    coordinator.secrets["db/password"] = "hunter2"
    assert await children.dag_text("known") == "steps: []"
    assert await children.dag_text("unknown") is None
    assert await children.resolve_secret(name="DB", ref="db/password") == "hunter2"
