"""Queued runs that a coordinator gets: under the same id, once, and the queue counts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import Struct

from secure_dagu.assembly.coordinator import _Everything
from secure_dagu.assembly.launching import launching, queue_book, queue_processor
from secure_dagu.coordinator.service import Service
from secure_dagu.dag.load import load_definition
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller
from secure_dagu.dispatch.operating import Placement, StartRequest, Waiting
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import Conflict, NotFound, NotRunning, Unavailable, UnknownCall, WrongState
from secure_dagu.local.launching import Launcher
from secure_dagu.local.queue_book import LocalQueueBook
from secure_dagu.local.runs import LocalRuns, Start
from secure_dagu.local.sent_children import Remote
from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType
from secure_dagu.scheduler.queues import QueueProcessor
from tests.coordinator.harness import DISPATCHER, House, Place, worker
from tests.scheduler.host import Host, until

GPU = {"gpu": "true"}
ON_WORKERS = "queue: q\nworker_selector: {gpu: 'true'}\nsteps: [{name: one, run: echo hello}]\n"


class Site(Struct):
    """A coordinator and a host beside it."""

    house: House
    launcher: Launcher
    book: LocalQueueBook
    processor: QueueProcessor
    host: Host

    async def waits_for(self) -> set[str]:
        """Return why the runs of the queue wait."""
        return {one.reason for found in (await self.book.items("q", limit=9)).runs for one in found.conditions}

    async def until_it_waits_for(self, reason: Waiting) -> None:
        """Wait until the queue says so."""
        async with asyncio.timeout(60):
            while reason not in await self.waits_for():  # noqa: ASYNC110 - a file tells it
                await asyncio.sleep(0.01)

    async def status(self, run: DagRunRef) -> RunStatus:
        """Return how a run stands at the coordinator."""
        return RunStatus((await self.house.document(run))["status"])


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Yield a site whose queue has one place."""
    host = Host(tmp_path / "home", limit=1)
    host.dag("flow", ON_WORKERS)
    (tmp_path / "coordinator").mkdir()
    async with (
        Place(tmp_path / "coordinator").coordinator() as house,
        launching(host.loaded, way=Way(_Everything(house.service), DISPATCHER)) as launcher,
    ):
        yield Site(house, launcher, queue_book(host.loaded, launcher), queue_processor(host.loaded, launcher), host)


@contextlib.asynccontextmanager
async def working(site: Site) -> AsyncIterator[None]:
    """Run the queue processor."""
    task = asyncio.create_task(site.processor.run_forever())
    await site.processor.is_settled.wait()
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_queued_run_waits_for_workers_and_says_so(site: Site) -> None:
    run = await site.launcher.enqueue(StartRequest(dag="flow"))
    async with working(site):
        await site.until_it_waits_for(Waiting.NO_WORKER)
        assert (await site.launcher.outlook("flow")).waits_for is Waiting.NO_WORKER
        await site.house.beat(worker(), labels={"cpu": "true"})
        await site.until_it_waits_for(Waiting.NO_MATCHING_WORKER)
        await site.house.beat(worker(), labels=GPU)
        claim = await asyncio.wait_for(site.house.poll(worker(), GPU), 10)
        assert claim.task.run == run
        assert claim.task.queue_name == "q"


async def test_the_queue_counts_what_workers_run(site: Site) -> None:
    await site.house.beat(worker(), labels=GPU)
    first, second = [await site.launcher.enqueue(StartRequest(dag="flow")) for _ in range(2)]
    async with working(site):
        claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
        assert claim.task.run == first
        assert site.launcher.places.records.find(first) is None  # its record is the coordinator's
        (view,) = await site.book.queues()
        assert (view.queued, [found["dagRunId"] for found in view.running]) == (1, [first.run_id])
        assert await site.waits_for() == {Waiting.QUEUE_LIMIT}
        await site.house.report(worker(), claim, 4)
        claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
        assert claim.task.run == second
        await site.house.report(worker(), claim, 4)
        await until(lambda: not list(site.launcher.places.running.everywhere()))


async def test_a_run_of_workers_is_deleted_at_its_coordinator_and_here(site: Site) -> None:
    await site.house.beat(worker(), labels=GPU)
    run = await site.launcher.start(StartRequest(dag="flow"))
    records = site.launcher.places.records
    claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
    with pytest.raises(WrongState, match="stop or dequeue it before deleting"):
        await site.launcher.delete(run)
    await site.house.report(worker(), claim, 4)
    assert records.find_any(run) is not None  # its definition, for retries
    await site.launcher.delete(run)
    assert records.find_any(run) is None
    assert await site.house.store.attempts_of(run) == []
    with pytest.raises(NotFound):
        await site.launcher.delete(run)


class _OtherRelease(_Everything):
    """A coordinator without our extensions."""

    def __init__(self, of: Service) -> None:
        super().__init__(of)
        self.delete_run = self._unknown

    async def _unknown(self, caller: Caller, *, run: DagRunRef) -> None:
        raise UnknownCall("the other end does not know this call")


async def test_a_coordinator_that_cannot_delete_keeps_its_runs(site: Site) -> None:
    await site.house.beat(worker(), labels=GPU)
    run = await site.launcher.start(StartRequest(dag="flow"))
    claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
    await site.house.report(worker(), claim, 4)
    site.launcher.way.open(_OtherRelease(site.house.service), DISPATCHER)
    with pytest.raises(Conflict, match="cannot be deleted") as caught:
        await site.launcher.delete(run)
    assert caught.value.http_status == 409
    assert site.launcher.places.records.find_any(run) is not None


async def test_a_child_of_a_local_run_goes_to_the_workers_that_its_step_selects(site: Site) -> None:
    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[tuple[Coordinator, Caller]]:
        yield _Everything(site.house.service), DISPATCHER

    await site.house.beat(worker(), labels=GPU)
    text = (
        "steps: [{id: call, action: dag.run, with: {dag: child}, worker_selector: {gpu: 'true'}}]\n---\nname: child\n"
    )
    loaded = load_definition(text + "steps: [{name: one, run: echo hello}]", name="parent")
    runs = LocalRuns(site.launcher.places, echo=lambda *_: None, remote=Remote(connect=connect))
    for run_id, end in (("p1", 4), ("p2", None)):
        start = Start(run=DagRunRef("parent", run_id), loaded=loaded)
        stop = asyncio.Event()
        record = runs.record(start)
        task = asyncio.create_task(runs.run(record, start, stop=stop))
        claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
        assert claim.task.run.name == "child"
        if end is None:  # stopping the parent reaches the child
            stop.set()
            while not await site.house.renew(worker(), claim):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await site.house.report(worker(), claim, end or 3)
        final = await asyncio.wait_for(task, 10)
        assert final["status"] == (end or 3)
        child = record.child(claim.task.run).latest()
        assert child is not None
        assert child.status()["status"] == (end or 3)


async def test_a_half_done_hand_over_is_completed_and_not_repeated(site: Site) -> None:
    """Killed after the coordinator had the run and before the item was gone: it is not dispatched twice."""
    await site.house.beat(worker(), labels=GPU)
    run = await site.launcher.enqueue(StartRequest(dag="flow"))
    places = site.launcher.places
    record = places.records.find(run)
    assert record is not None
    attempt, item = record.attempts()[-1], next(iter((places.queues / "q").glob("item_*")))
    kept = item.read_bytes()
    async with working(site):
        claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
        await site.house.report(worker(), claim, 4)
        await until(lambda: not list(places.running.everywhere()))
    item.write_bytes(kept)  # as it was when the process was killed
    attempt.path.with_name("." + attempt.path.name).rename(attempt.path)
    async with working(site):
        await until(lambda: not item.exists())
        assert places.records.find(run) is None
        assert await site.status(run) is RunStatus.SUCCEEDED
        assert (await site.house.document(run))["attemptId"] == claim.task.attempt_id
        await until(lambda: not list(places.running.everywhere()))


async def test_a_run_for_workers_is_dispatched_stopped_and_retried(site: Site) -> None:
    with pytest.raises(Unavailable):
        await site.launcher.start(StartRequest(dag="flow", run_id="r0"))
    assert site.launcher.places.records.find_any(DagRunRef("flow", "r0")) is None
    await site.house.beat(worker(), labels=GPU)
    assert (await site.launcher.outlook("flow")).placement is Placement.WORKERS
    run = await site.launcher.start(StartRequest(dag="flow", run_id="r1"))
    document = await site.house.document(run)
    assert {one["reason"] for one in document["conditions"]} == {Waiting.NO_CAPACITY}  # nobody polls
    with pytest.raises(Conflict):
        await site.launcher.start(StartRequest(dag="flow", run_id="r1"))
    claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
    assert "conditions" not in await site.house.document(run)
    with pytest.raises(Conflict):
        await site.launcher.retry(run, actor="me")
    await site.launcher.stop(run, actor="me")
    assert list(await site.house.renew(worker(), claim)) == [claim.task.attempt_key]
    await site.house.report(worker(), claim, 3)
    await site.launcher.retry(run, actor="me")  # its DAG names a queue
    async with working(site):
        again = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
        assert again.task.run == run
        assert again.task.attempt_id != claim.task.attempt_id
        await site.house.report(worker(), again, 4)
        assert await site.status(run) is RunStatus.SUCCEEDED


async def test_a_stop_cancels_the_automatic_retry_of_a_run_that_workers_executed(site: Site) -> None:
    site.host.dag("again", "retry_policy: {limit: 2, interval_sec: 1}\n" + ON_WORKERS)
    await site.house.beat(worker(), labels=GPU)
    run = await site.launcher.start(StartRequest(dag="again", trigger=TriggerType.CATCHUP))
    claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
    assert json.loads(claim.task.previous_status)["triggerType"] == TriggerType.CATCHUP
    ended = "2026-01-01T00:00:00Z"
    await site.house.report(worker(), claim, 2, autoRetryLimit=2, finishedAt=ended)
    await site.launcher.stop(run, actor="me")
    assert await site.status(run) is RunStatus.ABORTED
    assert await site.launcher.retry_automatically(run) is None
    with pytest.raises(NotRunning):
        await site.launcher.stop(run, actor="me")


async def test_a_failed_run_without_a_further_try_cannot_be_stopped(site: Site) -> None:
    await site.house.beat(worker(), labels=GPU)
    run = await site.launcher.start(StartRequest(dag="flow"))
    claim = await asyncio.wait_for(site.house.take(worker(), GPU), 10)
    await site.house.report(worker(), claim, 2, autoRetryLimit=2, autoRetryCount=2)
    with pytest.raises(NotRunning):
        await site.launcher.stop(run, actor="me")
    assert (await site.house.service.desk.cancel(DISPATCHER, run=run, root=None)).accepted
    assert await site.status(run) is RunStatus.FAILED
