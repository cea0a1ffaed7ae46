"""Reports, logs, artifacts, and what is given back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.coordinator.service import Options
from secure_dagu.coordinator.uploads import UploadLimits
from secure_dagu.dispatch.model import ArtifactPart, LogPart, LogStream, Operation, RunEvent
from secure_dagu.errors import InvalidRequest, LimitExceeded, NotFound, PreconditionFailed
from secure_dagu.run.model import AttemptId, DagRunRef, attempt_key
from tests.coordinator.harness import (
    DISPATCHER,
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
ARCHIVE = "/tmp/worker/dag-run_20260102_030405Z_r1"


async def test_a_report_is_stored_with_our_paths_and_our_facts(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, trigger_actor="ci", labels="team=a")
        verdict = await house.report(
            W1, claim, 1, triggerActor="mallory", log="/etc/passwd", labels=["workspace=other"],
            onExit={"step": {"name": "onExit"}, "status": 0, "stdout": "x"}, onInit={"status": 0}, unknownKey={"a": 1},
        )  # fmt: skip
        assert verdict.accepted
        document = await house.document(RUN)
        logs = f"{place.folder}/logs/sales/r1/{claim.task.attempt_id}"
        assert document["nodes"][0]["stdout"] == f"{logs}/one.stdout.log"
        assert document["nodes"][0]["stderr"] == f"{logs}/one.stderr.log"
        assert document["onExit"]["stdout"] == f"{logs}/onExit.stdout.log"
        assert document["onInit"]["stdout"] == f"{logs}/on_init.stdout.log"
        assert document["log"] == f"{logs}/scheduler.log"
        assert (document["triggerActor"], document["labels"], document["unknownKey"]) == ("ci", ["team=a"], {"a": 1})


async def test_the_end_of_a_run_ends_its_lease(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        assert (await house.report(W1, claim, 1)).accepted
        assert (await house.report(W1, claim, 4)).accepted
        assert await house.renew(W1, claim) == [claim.task.attempt_key]
        assert await house.store.tasks() == []
        (summary,) = await house.service.reports.runs(DISPATCHER, name="sales", run_id=None, limit=5)
        assert (summary.status, summary.worker) == (4, "w1")
        assert summary.finished_at is not None
        with pytest.raises(PreconditionFailed, match="stale attempt: lease no longer active"):
            await house.upload(W1, claim, log_part(b"late"))


async def test_a_repeated_end_is_accepted_and_changes_nothing(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        assert (await house.report(W1, claim, 4)).accepted
        before = await house.document(RUN)
        assert (await house.report(W1, claim, 4, params="forged")).accepted
        assert await house.document(RUN) == before
        assert (await house.report(W1, claim, 2)).error == "stale attempt: run already terminal"
        assert not (await house.report(W1, claim, 1)).accepted
        assert not (await house.report(W2, claim, 4, workerId="w2")).accepted


async def test_a_waiting_run_leaves_its_worker_and_can_be_continued(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        assert (await house.report(W1, claim, 7)).accepted
        assert await house.renew(W1, claim) == [claim.task.attempt_key]
        again = await house.service.desk.dispatch(DISPATCHER, a_task(operation=Operation.RETRY))
        assert again.attempt_id != claim.task.attempt_id


async def test_a_waiting_run_can_be_cancelled(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        assert (await house.report(W1, claim, 7)).accepted
        assert (await house.service.desk.cancel(DISPATCHER, run=RUN, root=None)).accepted
        assert (await house.document(RUN))["status"] == 3


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"name":"sales","dagRunId":"r1"}', "[" * 100_000])
async def test_a_report_without_an_identity_is_an_error_and_nothing_dies(place: Place, text: str) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        with pytest.raises(InvalidRequest):
            await house.service.reports.report_status(W1, status=text, source_file="", labels="")
        assert (await house.report(W1, claim, 1)).accepted


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"status": 42}, "unknown"),
        ({"status": "4"}, "unknown"),
        ({"status": True}, "unknown"),
        ({"workerId": "w2"}, "another worker"),
        ({"attemptKey": "0000000000000000:x"}, "superseded"),
        ({"attemptId": "other"}, "superseded"),
        ({"dagRunId": "r2"}, "superseded"),
        ({"root": {"name": "sales", "id": "r2"}}, "superseded"),
        ({"claimKey": "unknown"}, "lease no longer active"),
    ],
)
async def test_a_report_that_contradicts_its_lease_is_refused_in_band(
    place: Place, fields: dict[str, Any], error: str
) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        verdict = await house.service.reports.report_status(
            W1, status=json.dumps(a_document(W1, claim, 1) | fields), source_file="", labels=""
        )
        assert not verdict.accepted
        assert error in verdict.error
        assert (await house.document(RUN))["status"] == 0


async def test_each_warning_is_kept_and_logged_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        for _ in range(3):
            await house.report(W1, claim, 1, warnings=["no image cache", 7])
        await house.report(W1, claim, 1, warnings=["no image cache", "second"])
        assert (await house.document(RUN))["warnings"] == ["no image cache", "second"]
    assert capsys.readouterr().out.count("run.warned") == 2


def child_document(claim_key: str, *, status: int = 1, **fields: Any) -> str:
    """Return the report of an in-process child of r1."""
    child = DagRunRef("load", "c1")
    key = attempt_key(root=RUN, run=child, attempt_id=AttemptId("c1"))
    document = {
        "root": {"name": "sales", "id": "r1"}, "parent": {"name": "sales", "id": "r1"}, "name": "load",
        "dagRunId": "c1", "attemptId": "c1", "attemptKey": key, "claimKey": claim_key, "status": status,
        "workerId": "w1", "nodes": [],
    }  # fmt: skip
    return json.dumps(document | fields)


async def test_a_child_inside_the_task_is_made_by_its_first_report(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        key = claim.task.attempt_key

        async def child(**fields: Any) -> str:
            text = child_document(key, **fields)
            verdict = await house.service.reports.report_status(W1, status=text, source_file="", labels="")
            return verdict.error or "accepted"

        early = identity_of(W1, claim, run=DagRunRef("load", "c1"), attempt_id=AttemptId("c1"))
        await house.service.reports.stream_logs(W1, early, each(log_part(b"hi")))
        assert await child() == "accepted"
        assert await child(status=2) == "accepted"
        assert await child(status=1) == "accepted", "its step is tried again"
        assert await child(status=4) == "accepted"
        assert await child(status=2) == "stale attempt: run already terminal"
        document = await house.document(DagRunRef("load", "c1"), RUN)
        assert document["log"].endswith("/logs/sales/r1/c1/scheduler.log")
        assert await child(dagRunId="c2", attemptId="chosen", attemptKey="") != "accepted"
        assert await child(dagRunId="../c2", attemptId="x", attemptKey="") != "accepted"
        assert await child(name="../x", attemptKey="", dagRunId="c3", attemptId="c3") != "accepted"
        # A child cannot take the folder of an attempt that exists.
        own = claim.task.attempt_id
        assert await child(dagRunId=own, attemptId=own, attemptKey="") != "accepted"
        (row,) = await house.service.reports.runs(DISPATCHER, name=None, run_id=None, limit=0)
        assert row.run == RUN, "children are not listed as runs of their own"


async def test_a_retried_task_runs_its_children_again_under_its_new_claim(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        reports = house.service.reports
        assert (
            await reports.report_status(
                W1, status=child_document(claim.task.attempt_key, status=4), source_file="", labels=""
            )
        ).accepted
        assert (await house.report(W1, claim, 2)).accepted
        await house.service.desk.dispatch(DISPATCHER, a_task(operation=Operation.RETRY))
        again = await house.take(W1)
        text = child_document(again.task.attempt_key)
        assert (await reports.report_status(W1, status=text, source_file="", labels="")).accepted
        assert (await house.document(DagRunRef("load", "c1"), RUN))["status"] == 1


async def test_children_inside_a_lost_task_are_lost_with_it_also_after_a_restart(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        text = child_document(claim.task.attempt_key)
        assert (await house.service.reports.report_status(W1, status=text, source_file="", labels="")).accepted
    async with place.coordinator() as house, asyncio.timeout(60):
        assert (await house.service.reports.report_status(W1, status=text, source_file="", labels="")).accepted
        await house.pass_time(32)
        assert (await house.document(DagRunRef("load", "c1"), RUN))["status"] == 2


# -- logs -------------------------------------------------------------------------------------------------------------


def log_file(place: Place, attempt_id: str, name: str = "one.stdout.log") -> Path:
    """Return where a log of r1 is."""
    return place.folder / "logs" / "sales" / "r1" / attempt_id / name


async def test_log_bytes_land_at_their_offsets_and_resending_is_idempotent(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        done = await house.upload(W1, claim, log_part(b"hello "), log_part(b"world", 6), log_part(b"", 11, final=True))
        assert (done.chunks, done.size_bytes) == (3, 11)
        await house.upload(W1, claim, log_part(b"hello world!!", 0), log_part(b"ignored", 12, final=True))
        path = log_file(place, claim.task.attempt_id)
        assert path.read_bytes() == b"hello world!"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o750


async def test_append_mode_appends(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        await house.upload(W1, claim, log_part(b"a", None), log_part(b"b", None), log_part(b"", None, final=True))
        await house.upload(W1, claim, log_part(b"c", None))
        assert log_file(place, claim.task.attempt_id).read_bytes() == b"abc"


async def test_gaps_and_mode_switches_are_errors(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        with pytest.raises(InvalidRequest, match="byte offset exceeds current file size"):
            await house.upload(W1, claim, log_part(b"a", 0), log_part(b"b", 2))
        with pytest.raises(InvalidRequest, match="byte offset exceeds current file size"):
            await house.upload(W1, claim, log_part(b"a", 0), log_part(b"", 2, final=True))
        with pytest.raises(InvalidRequest, match="write mode changed"):
            await house.upload(W1, claim, log_part(b"a", 0), log_part(b"b", None))
        with pytest.raises(LimitExceeded):
            await house.upload(W1, claim, log_part(b"a" * (4 * 1024 * 1024 + 1), 0))


async def test_nothing_written_makes_no_file(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        await house.upload(W1, claim, log_part(b"", 0), log_part(b"", 0, final=True))
        assert not log_file(place, claim.task.attempt_id).exists()


async def test_steps_whose_names_collide_keep_their_logs_apart(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        names = ["a_b", "a b", "a/b", "../../evil step", "x" * 150, "x" * 151, "é", "scheduler"]
        for name in names:
            await house.upload(W1, claim, log_part(name.encode(), 0, step=name))
            unspecified = LogPart(step=name, stream=LogStream.UNSPECIFIED, data=b"u", offset=0, is_final=False)
            await house.upload(W1, claim, unspecified)
        folder = log_file(place, claim.task.attempt_id).parent
        assert (folder / "a_b.stdout.log").read_bytes() == b"a_b"
        assert not (folder / "scheduler.log").exists(), "that is the run's own log"
        stored = sorted(path.read_bytes() for path in folder.glob("*.stdout.log"))
        assert stored == sorted(name.encode() for name in names)
        for name in names:
            pieces = [
                piece
                async for piece in house.service.reports.read_log(DISPATCHER, run=RUN, step=name, stream=1, offset=1)
            ]
            assert b"".join(pieces) == name.encode()[1:]


async def test_a_stream_ends_when_its_lease_does(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        gate = asyncio.Event()

        async def parts() -> Any:
            yield log_part(b"before")
            gate.set()
            await house.pass_time(32)
            yield log_part(b"after", 6)

        with pytest.raises(PreconditionFailed, match="lease no longer active"):
            await house.service.reports.stream_logs(W1, identity_of(W1, claim), parts())
        assert gate.is_set()
        assert log_file(place, claim.task.attempt_id).read_bytes() == b"before"


async def test_the_logs_of_a_run_are_bounded_also_after_a_restart(place: Place) -> None:
    place.options = Options(uploads=UploadLimits(log_bytes=10))
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        await house.upload(W1, claim, log_part(b"12345678"))
        await house.upload(W1, claim, log_part(b"12345678"))  # the same bytes again cost nothing
    async with place.coordinator() as house, asyncio.timeout(60):
        with pytest.raises(LimitExceeded):
            await house.upload(W1, claim, log_part(b"123", step="two"))


# -- artifacts --------------------------------------------------------------------------------------------------------


def piece(path: str, data: bytes = b"", *, final: bool = False) -> ArtifactPart:
    """Return a piece of an artifact."""
    return ArtifactPart(path=path, data=data, is_final=final)


async def test_artifacts_appear_when_they_are_complete(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        reports = house.service.reports
        with pytest.raises(PreconditionFailed, match="no artifact directory in the run status yet"):
            await reports.stream_artifacts(W1, identity_of(W1, claim), each(piece("a", b"x", final=True)))
        assert (await house.report(W1, claim, 1, archiveDir=ARCHIVE)).accepted
        folder = f"{place.folder}/artifacts/sales/dag-run_20260102_030405Z_r1"
        assert (await house.document(RUN))["archiveDir"] == folder
        done = await reports.stream_artifacts(
            W1, identity_of(W1, claim),
            each(
                piece("a/b.txt", b"he"), piece("a/b.txt", b"llo"), piece("a/b.txt", final=True),
                piece("/abs/empty", final=True), piece("never-ended", b"x"),
            ),
        )  # fmt: skip
        assert (done.chunks, done.size_bytes) == (5, 6)
        listed = await reports.artifacts(DISPATCHER, run=RUN)
        assert [(info.path, info.size_bytes) for info in listed] == [("a/b.txt", 5), ("abs/empty", 0)]
        read = [data async for data in reports.read_artifact(DISPATCHER, run=RUN, path="a/b.txt")]
        assert b"".join(read) == b"hello"
        with pytest.raises(NotFound):
            await anext(aiter(reports.read_artifact(DISPATCHER, run=RUN, path="a/missing")))
        names = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))  # noqa: ASYNC240
        assert names == ["a", "a/b.txt", "abs", "abs/empty"], "no temporary file is left"


async def test_a_run_cannot_take_the_artifact_folder_of_another(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        first = await house.started(W1)
        assert (await house.report(W1, first, 1, archiveDir=ARCHIVE)).accepted
        second = await house.started(W2, "r2")
        assert (await house.report(W2, second, 1, archiveDir=ARCHIVE)).accepted
        third = await house.started(W2, "r3")
        assert (await house.report(W2, third, 1, archiveDir="/../../..")).accepted
        folders = {(await house.document(DagRunRef("sales", run)))["archiveDir"] for run in ("r1", "r2", "r3")}
        assert len(folders) == 3
        assert all(folder.startswith(f"{place.folder}/artifacts/sales/dag-run_") for folder in folders)


# -- given back -------------------------------------------------------------------------------------------------------


async def test_status_lookups_follow_the_protocol(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
        status = house.service.reports.run_status
        assert await status(DISPATCHER, run=RUN, root=None) is not None
        assert await status(DISPATCHER, run=RUN, root=DagRunRef("", "")) is not None
        assert await status(DISPATCHER, run=RUN, root=RUN) is None, "a run is not its own child"
        assert await status(DISPATCHER, run=DagRunRef("sales", "r9"), root=None) is None
        with pytest.raises(InvalidRequest):
            await status(DISPATCHER, run=DagRunRef("", "r1"), root=None)


async def test_following_a_run_shows_every_byte_and_ends(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60), asyncio.TaskGroup() as group:
        claim = await house.started(W1)
        await house.report(W1, claim, 1)
        await house.upload(W1, claim, log_part(b"early "))
        events: list[RunEvent] = []
        seen = asyncio.Event()

        async def watch() -> None:
            async for event in house.service.reports.follow(DISPATCHER, run=RUN, with_logs=True):
                events.append(event)
                seen.set()

        watching = group.create_task(watch())
        await seen.wait()
        scheduler = LogPart(step="scheduler", stream=LogStream.SCHEDULER, data=b"{}\n", offset=0, is_final=False)
        await house.upload(W1, claim, log_part(b"late", 6), scheduler)
        assert (await house.report(W1, claim, 4)).accepted
        await watching
        logs = {
            step: b"".join(e.log.data for e in events if e.log is not None and e.log.step == step)
            for step in ("one", "scheduler")
        }
        assert logs == {"one": b"early late", "scheduler": b"{}\n"}
        assert events[-1].ended
        assert json.loads(events[-1].status)["status"] == 4, "the end is told after the last byte"


async def test_following_a_finished_run_replays_it(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        await house.upload(W1, claim, log_part(b"out"))
        await house.report(W1, claim, 4)
        events = [event async for event in house.service.reports.follow(DISPATCHER, run=RUN, with_logs=True)]
        assert [event.log.data for event in events if event.log is not None] == [b"out"]
        assert events[-1].ended
        with pytest.raises(NotFound):
            await anext(aiter(house.service.reports.follow(DISPATCHER, run=DagRunRef("sales", "no"), with_logs=True)))


async def test_followers_end_when_the_coordinator_does(place: Place) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        async with place.coordinator() as house:
            await house.started(W1)
            stream = aiter(house.service.reports.follow(DISPATCHER, run=RUN, with_logs=True))
            await anext(stream)

            async def rest() -> int:
                return len([event async for event in stream])

            waiting = group.create_task(rest())
            await asyncio.sleep(0)
        assert await waiting == 0
