"""A finished run is deleted with all that it left; nothing else goes with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.audit.events import Action, Outcome
from secure_dagu.dispatch.model import ArtifactPart, Caller, Claim, Operation, Role
from secure_dagu.errors import NotFound, OtherTenant, WrongState
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, attempt_key
from secure_dagu.security.grants import TENANT
from secure_dagu.store.blobs import LogPlace
from tests.coordinator.harness import DISPATCHER, House, Place, Witness, a_task, each, identity_of, log_part, worker

W1 = worker()
ADMIN = Caller(role=Role.ADMIN, name="root", proven=True)
RUN = DagRunRef("sales", "r1")


def files(place: Place) -> set[str]:
    """Return every file that the coordinator keeps for runs."""
    found = (path for folder in ("logs", "artifacts") for path in (place.folder / folder).rglob("*"))
    return {str(path.relative_to(place.folder)) for path in found if path.is_file()}


async def finished(house: House, run_id: str, **fields: Any) -> Claim:
    """Let a run write a log, an artifact and a child, and end."""
    claim = await house.started(W1, run_id, **fields)
    run = claim.task.run
    await house.upload(W1, claim, log_part(b"hello\n"))
    archive = f"/tmp/w/dag-run_20260102_030405Z_{run_id}"
    await house.report(W1, claim, 1, archiveDir=archive)
    part = ArtifactPart(path="a/b.txt", data=b"result", is_final=True)
    await house.service.reports.stream_artifacts(W1, identity_of(W1, claim), each(part))
    child = DagRunRef("child", f"c-{run_id}")
    document: dict[str, Any] = {
        "name": child.name, "dagRunId": child.run_id, "attemptId": child.run_id, "claimKey": claim.task.attempt_key,
        "attemptKey": attempt_key(root=run, run=child, attempt_id=AttemptId(child.run_id)),
        "root": {"name": run.name, "id": run.run_id}, "parent": {"name": run.name, "id": run.run_id},
    }  # fmt: skip
    assert (await house.report(W1, claim, 4, **document)).accepted
    assert (await house.report(W1, claim, 4, archiveDir=archive)).accepted
    return claim


async def test_all_of_a_run_goes_and_all_of_others_stays(tmp_path: Path) -> None:
    witness = Witness()
    place = Place(tmp_path, trail=witness)
    async with place.coordinator() as house:
        first, second = await finished(house, "r1"), await finished(house, "r2")
        before = files(place)
        assert {path.rsplit("/", 1)[-1] for path in before} == {"one.stdout.log", "b.txt"}
        await house.service.deleting.delete_run(ADMIN, run=first.task.run)
        left = files(place)
        assert left == {path for path in before if "/r1/" not in path and "Z_r1" not in path}
        assert len(left) == len(before) / 2
        assert not (tmp_path / "logs/sales/r1").exists()
        assert await house.store.attempts_of(RUN) == []
        assert await house.store.latest(run=DagRunRef("child", "c-r1"), root=RUN) is None
        assert len(await house.store.attempts_of(second.task.run)) == 2
        assert [run.run.run_id for run in await house.service.reports.runs(ADMIN, name=None, run_id=None, limit=9)] == [
            "r2"
        ]
        with pytest.raises(NotFound):
            await house.service.deleting.delete_run(ADMIN, run=first.task.run)
        await house.service.desk.dispatch(DISPATCHER, a_task("r1"))  # the id is free again
    told = [event for event in (*witness.recorded, *witness.noted) if event.action is Action.RUN_DELETED]
    assert [(event.outcome, event.target) for event in told] == [
        (Outcome.SUCCEEDED, "run:sales/r1"), (Outcome.FAILED, "run:sales/r1"),
    ]  # fmt: skip


async def test_a_run_that_goes_on_is_not_deleted(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place.coordinator() as house:
        deleting = house.service.deleting
        await house.beat(W1)
        await house.service.desk.dispatch(DISPATCHER, a_task())
        with pytest.raises(WrongState, match="stop or dequeue it before deleting"):
            await deleting.delete_run(ADMIN, run=RUN)  # it waits
        claim = await house.take(W1)
        await house.upload(W1, claim, log_part(b"hello\n"))
        for status in (RunStatus.RUNNING, RunStatus.WAITING):
            await house.report(W1, claim, status)
            with pytest.raises(WrongState, match="stop or dequeue it before deleting"):
                await deleting.delete_run(ADMIN, run=RUN)  # it runs, it waits for a person
        assert files(place)
        assert await house.document(RUN)


async def test_a_run_whose_child_goes_on_elsewhere_is_not_deleted(tmp_path: Path) -> None:
    async with Place(tmp_path).coordinator() as house:
        parent = await house.started(W1)
        child = DagRunRef("child", "c1")
        await house.service.desk.dispatch(DISPATCHER, a_task("c1", name="child", root=RUN, parent=RUN))
        claim = await house.take(W1)
        await house.report(W1, parent, 4)
        with pytest.raises(WrongState, match="has not ended"):
            await house.service.deleting.delete_run(ADMIN, run=RUN)
        with pytest.raises(NotFound):  # a child goes with its root only
            await house.service.deleting.delete_run(ADMIN, run=child)
        await house.report(W1, claim, 4)
        await house.service.deleting.delete_run(ADMIN, run=RUN)


async def test_every_attempt_goes(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place.coordinator() as house:
        first = await finished(house, "r1")
        await house.service.desk.dispatch(DISPATCHER, a_task(operation=Operation.RETRY))
        second = await house.take(W1)
        assert second.task.attempt_id != first.task.attempt_id
        await house.upload(W1, second, log_part(b"again\n"))
        await house.report(W1, second, 4)
        assert len([path for path in files(place) if path.endswith(".log")]) == 2
        await house.service.deleting.delete_run(ADMIN, run=RUN)
        assert not files(place)


async def test_a_deletion_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place.coordinator() as house:
        claim = await finished(house, "r1")
        house.place.blobs.remove_logs(
            LogPlace(claim.task.root, claim.task.attempt_id)
        )  # as far as a killed coordinator had come
        assert [run.status for run in await house.service.reports.runs(ADMIN, name="sales", run_id="r1", limit=1)] == [
            4
        ]
        await house.service.deleting.delete_run(ADMIN, run=RUN)
        assert not files(place)


async def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    async with Place(tmp_path).coordinator() as house:
        claim = await house.started(W1)
        await house.report(W1, claim, 4)
        logs = tmp_path / "logs/sales/r1"
        logs.mkdir(parents=True)
        os.symlink(outside, logs / claim.task.attempt_id)
        with pytest.raises(Exception, match="cannot be written"):
            await house.service.deleting.delete_run(ADMIN, run=RUN)
        assert (outside / "keep").exists()
        assert await house.document(RUN)


async def test_another_tenants_run_is_out_of_reach(tmp_path: Path) -> None:
    labels = {TENANT: "payments"}
    async with Place(tmp_path).coordinator() as house:
        await house.beat(W1, labels=labels)
        await house.service.desk.dispatch(ADMIN, a_task(worker_selector=labels))
        claim = await house.take(W1, labels)
        await house.report(W1, claim, 4)
        with pytest.raises(OtherTenant):
            await house.service.deleting.delete_run(Caller(role=Role.COORDINATOR, name="c2", proven=True), run=RUN)
        await house.service.deleting.delete_run(ADMIN, run=RUN)
