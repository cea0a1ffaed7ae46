"""What a holder of one valid certificate tries against the coordinator (threats T01-T05, T17; gaps G1-G25)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from secure_dagu.coordinator.service import Options
from secure_dagu.dispatch.model import NO_KEY, ArtifactPart, Caller, Operation, Role, StateRef
from secure_dagu.errors import DefinitionError, InvalidRequest, LimitExceeded, PreconditionFailed, Refused
from secure_dagu.run.model import AttemptId, DagRunRef
from tests.coordinator.harness import (
    DISPATCHER,
    ManualClock,
    Place,
    a_document,
    a_task,
    each,
    identity_of,
    log_part,
    worker,
)

W1, W2 = worker("w1"), worker("w2")
RUN = DagRunRef("sales", "r1")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return the folders and the clock of one coordinator."""
    return Place(tmp_path, ManualClock())


async def test_a_captured_report_is_worth_nothing_to_another_worker(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        captured = json.dumps(a_document(W1, claim, 4))
        verdict = await house.service.reports.report_status(W2, status=captured, source_file="", labels="")
        assert not verdict.accepted
        relabelled = json.dumps(a_document(W1, claim, 4) | {"workerId": "w2"})
        verdict = await house.service.reports.report_status(W2, status=relabelled, source_file="", labels="")
        assert verdict.error == "stale attempt: superseded by newer attempt"
        assert (await house.document(RUN))["status"] == 0
        assert await house.renew(W1, claim) == []


async def test_nobody_reports_on_a_run_that_no_worker_has_taken(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.poll(W1)  # offered, not acknowledged
        assert not (await house.report(W1, claim, 4)).accepted
        assert not (await house.report(W2, claim, 4)).accepted
        assert (await house.document(RUN))["status"] == 0


async def test_nobody_else_writes_logs_or_artifacts_under_a_lease(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        await house.report(W1, claim, 1, archiveDir="dag-run_20260102_030405Z_r1")
        reports = house.service.reports
        for identity in (
            identity_of(W1, claim),
            identity_of(W2, claim),
            replace(identity_of(W2, claim), claim_key=NO_KEY),
        ):
            with pytest.raises(PreconditionFailed):
                await reports.stream_logs(W2, identity, each(log_part(b"evil")))
            part = ArtifactPart(path="x", data=b"evil", is_final=True)
            with pytest.raises(PreconditionFailed):
                await reports.stream_artifacts(W2, identity, each(part))
        assert await reports.artifacts(DISPATCHER, run=RUN) == []
        assert not (place.folder / "logs").exists()


async def test_under_one_lease_only_its_own_attempts_are_written(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        victim = await house.started(W2, "r2")
        claim = await house.started(W1)
        await house.service.desk.dispatch(W1, a_task("c1", name="load", root=RUN, parent=RUN))
        child = await house.take(W2)
        mine = claim.task.attempt_key
        for identity in (
            identity_of(W1, victim, claim_key=mine),
            identity_of(W1, child, claim_key=mine),
            identity_of(W1, claim, attempt_id=AttemptId("other")),
            identity_of(W1, claim, run=DagRunRef("load", "c9"), attempt_id=child.task.attempt_id),
            identity_of(W1, claim, run=DagRunRef("load", str(child.task.attempt_id)), attempt_id=child.task.attempt_id),
        ):
            with pytest.raises((PreconditionFailed, InvalidRequest)):
                await house.service.reports.stream_logs(W1, identity, each(log_part(b"evil")))
        assert not (place.folder / "logs").exists()


async def test_a_renewal_needs_the_lease_of_its_own_sender(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        for _ in range(4):  # w2 knows every id, and still keeps nothing alive
            await house.pass_time(8)
            assert await house.renew(W2, claim) == [claim.task.attempt_key]
            await house.beat(W2, claim)
        assert (await house.document(RUN))["status"] == 2


async def test_a_parallel_double_spend_of_a_token_by_its_own_worker_starts_the_run_once(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        claim = await house.poll(W1)
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(house.acknowledge(W1, claim)) for _ in range(100)]
        assert all(call.result().accepted for call in calls), "repeating it is the protocol's way"
        assert len(house.service.desk.board.backlog) == 0
        assert len(await house.store.tasks()) == 1


async def test_an_answer_to_a_token_that_is_no_longer_the_newest_is_refused(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        old = await house.poll(W1)
        await house.service.desk.withdraw(old.token)
        new = await house.poll(W1)
        assert not (await house.acknowledge(W1, old)).accepted
        assert (await house.acknowledge(W1, new)).accepted


async def test_tokens_are_not_in_the_store(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
    stored = b"".join(path.read_bytes() for path in place.folder.glob("store.db*"))
    assert claim.token.encode() not in stored


async def test_a_definition_is_never_evaluated_here(place: Place) -> None:
    mark = place.folder / "evaluated"
    text = (
        f"params:\n  - name: p\n    eval: \"$(touch {mark})\"\nenv:\n  - X: $(touch {mark})\n  - Y: '`touch {mark}`'\n"
        f"artifacts:\n  enabled: true\n  dir: {place.folder}/elsewhere\nsteps:\n  - name: one\n    run: 'true'\n"
    )
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, definition=text)
        await house.report(W1, claim, 1, archiveDir="dag-run_20260102_030405Z_r1")
        assert (await house.document(RUN))["archiveDir"].startswith(f"{place.folder}/artifacts/")
        assert not mark.exists()
        assert not (place.folder / "elsewhere").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"b{n}: &b{n} [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" for n in range(9)),
        "steps: " + "[" * 10_000,
        "steps: !!python/object/apply:os.system ['true']\n",
        "x" * (4 * 1024 * 1024 + 1),
    ],
)
async def test_yaml_that_explodes_is_refused_in_bounded_time(place: Place, text: str) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.beat(W1)
        with pytest.raises(DefinitionError):
            await house.service.desk.dispatch(DISPATCHER, a_task(definition=text))


async def test_messages_in_a_report_are_never_paths(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        node = {
            "step": {"name": "../../../evil"}, "status": 1, "chatMessages": [{"role": "user", "content": "x"}],
            "stdout": "/etc/cron.d/evil",
        }  # fmt: skip
        before = {path for path in place.folder.rglob("*") if path.suffix == ".json"}
        assert (await house.report(W1, claim, 1, nodes=[node, 7, {"step": 3}, {"status": "x"}])).accepted
        stored = (await house.document(RUN))["nodes"][0]
        assert stored["stdout"].startswith(f"{place.folder}/logs/sales/r1/{claim.task.attempt_id}/_________evil-")
        assert {path for path in place.folder.rglob("*") if path.suffix == ".json"} == before


@pytest.mark.parametrize(
    "text", ['{"status":NaN}', '{"nodes":[{"step":{"name":"\\ud800"}}]}', '{"error":"\\udc00"}', '{"x":Infinity}']
)
async def test_json_that_no_other_reader_would_take_is_refused(place: Place, text: str) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        document = json.dumps(a_document(W1, claim, 1)).removesuffix("}") + "," + text.removeprefix("{")
        with pytest.raises(InvalidRequest):
            await house.service.reports.report_status(W1, status=document, source_file="", labels="")
        assert (await house.report(W1, claim, 4, error="\0 \U0001f600 \ud83d\ude00")).accepted


async def test_a_worker_reaches_no_run_outside_its_trees(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
        other = await house.started(W2, "r2")
        reports, desk = house.service.reports, house.service.desk
        with pytest.raises(Refused):
            await reports.run_status(W1, run=other.task.run, root=None)
        with pytest.raises(Refused):
            await reports.run_status(W1, run=DagRunRef("sales", "unknown"), root=None)
        with pytest.raises(Refused):
            await desk.cancel(W1, run=other.task.run, root=None)
        with pytest.raises(Refused):
            await desk.cancel(W1, run=DagRunRef("load", "c1"), root=other.task.root)
        with pytest.raises(Refused):
            await desk.dispatch(W1, a_task("r2", operation=Operation.RETRY))
        assert await house.renew(W2, other) == []


async def test_a_worker_loses_its_reach_with_its_lease(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        assert await house.service.reports.run_status(W1, run=RUN, root=None) is not None
        assert (await house.report(W1, claim, 4)).accepted
        with pytest.raises(Refused):
            await house.service.reports.run_status(W1, run=RUN, root=None)
        with pytest.raises(Refused):
            await house.service.state.get_state(W1, StateRef("dag", "sales", "k"))
        with pytest.raises(Refused):
            await house.service.desk.dispatch(W1, a_task("c1", name="load", root=RUN, parent=RUN))


async def test_a_certificate_covers_the_ids_of_its_name_and_no_longer_name(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        caller = worker("gpu-1", "gpu-1@4711")
        await house.started(caller)
        plain = worker("gpu-1")  # messages without a worker id come in the certificate's name
        assert await house.service.reports.run_status(plain, run=RUN, root=None) is not None
        for name in ("gpu-10", "gpu"):
            with pytest.raises(Refused):
                await house.service.reports.run_status(worker(name), run=RUN, root=None)


async def test_open_polls_of_one_worker_are_bounded(place: Place) -> None:
    place.options = Options(polls_of_worker=3, pending_tasks=2)
    async with place.coordinator() as house, asyncio.timeout(60), asyncio.TaskGroup() as group:
        polls = [group.create_task(house.poll(W1, {"x": "y"})) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(LimitExceeded):
            await house.poll(W1)
        other = group.create_task(house.poll(W2, {"x": "y"}))
        await asyncio.sleep(0)
        assert not other.done()
        for poll in (*polls, other):
            poll.cancel()
        await house.beat(W1)
        for number in range(2):
            await house.service.desk.dispatch(DISPATCHER, a_task(f"r{number}"))
        with pytest.raises(LimitExceeded):
            await house.service.desk.dispatch(DISPATCHER, a_task("r3"))


async def test_a_message_without_a_worker_id_is_refused_where_one_is_needed(place: Place) -> None:
    nobody = Caller(role=Role.ANONYMOUS, name="", proven=False)
    async with place.coordinator() as house, asyncio.timeout(60):
        desk = house.service.desk
        claim = await house.started(W1)
        with pytest.raises(InvalidRequest):
            await house.poll(nobody)
        with pytest.raises(InvalidRequest):
            await house.beat(nobody)
        with pytest.raises(InvalidRequest):
            await house.renew(nobody, claim)
        with pytest.raises(InvalidRequest):
            await desk.poll(W1, poller_id="", labels={})
        assert (await house.acknowledge(nobody, claim)).error == "worker_id is required"
        with pytest.raises(InvalidRequest):
            await house.report(nobody, claim, 4)
        with pytest.raises(InvalidRequest):
            await house.upload(nobody, claim, log_part(b"x"))
