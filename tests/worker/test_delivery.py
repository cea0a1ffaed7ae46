"""What a run leaves behind arrives in order: statuses, logs, artifacts, the final report."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dispatch.model import (
    ACCEPTED,
    ArtifactPart,
    BundleRef,
    Caller,
    LogStream,
    StreamIdentity,
    Uploaded,
    Verdict,
)
from secure_dagu.errors import InvalidRequest, SecureDaguError
from secure_dagu.run.model import RunStatus
from secure_dagu.worker.statuses import StatusReporter
from secure_dagu.worker.timings import Timings
from tests.worker.fakes import (
    CALLER,
    DEADLINE_S,
    QUICK,
    FakeCoordinator,
    FakeRun,
    FakeRunner,
    away,
    eventually,
    make_task,
    make_worker,
    working,
)

ARCHIVE = "/tmp/artifacts/dag-run_20260102_030405Z_r1"


@pytest.fixture
def coordinator() -> FakeCoordinator:
    return FakeCoordinator()


async def with_artifacts(run: FakeRun) -> None:
    """Play a run that leaves logs and artifacts."""
    run.status(RunStatus.RUNNING)
    run.write(b"hello\n")
    run.write(b"{}\n", "scheduler", LogStream.SCHEDULER)
    artifacts = run.request.folders.artifacts
    (artifacts / "b").mkdir()
    (artifacts / "b" / "two.bin").write_bytes(b"2" * 3000)
    (artifacts / "a.txt").write_bytes(b"one")
    (artifacts / "empty").touch()
    (artifacts / "link").symlink_to("/etc/passwd")
    (artifacts / "folder").symlink_to("/etc")
    os.mkfifo(artifacts / "pipe")
    await asyncio.sleep(0)
    run.status(RunStatus.SUCCEEDED, archiveDir=ARCHIVE)


async def test_everything_arrives_in_the_order_of_the_protocol(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    timings = replace(QUICK, artifact_chunk_bytes=1000)
    async with working(make_worker(FakeRunner(tmp_path, with_artifacts), coordinator, timings=timings)):
        coordinator.offer(make_task())
        await coordinator.until_ended()
    assert coordinator.order == [
        "status running",
        "end of s1 stdout",
        "status running",  # announces the artifact folder
        "artifact a.txt",
        "artifact b/two.bin",
        "artifact empty",
        "end of scheduler scheduler",
        "status succeeded",
    ]
    assert coordinator.artifacts_stored == {"a.txt": b"one", "b/two.bin": b"2" * 3000, "empty": b""}
    assert coordinator.reports[1]["archiveDir"] == ARCHIVE


@given(outages=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), max_size=5))
@settings(max_examples=25)
def test_a_run_comes_through_any_outages_whole(outages: list[tuple[int, int]]) -> None:
    """The coordinator goes away after any event, for any time: between claim and report, inside logs and artifacts."""

    async def talkative(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        for n in range(20):
            run.write(b"line %d\n" % n)
            run.write(b"error %d\n" % n, "s1", LogStream.STDERR)
            run.status(RunStatus.RUNNING, n=n)
            await asyncio.sleep(0.0005)
        (run.request.folders.artifacts / "f").write_bytes(b"x" * 5000)
        run.status(RunStatus.SUCCEEDED, archiveDir=ARCHIVE)

    async def disturb(coordinator: FakeCoordinator) -> None:
        for events, length in outages:
            seen = coordinator.events
            await coordinator.until(lambda until=seen + events: coordinator.events >= until)  # type: ignore[misc]
            coordinator.go_away()
            await asyncio.sleep(length / 1000)
            coordinator.come_back()

    async def scenario(folder: Path) -> None:
        coordinator = FakeCoordinator()
        timings = replace(QUICK, log_age_s=0.001, report_every_s=0.001, artifact_chunk_bytes=1000)
        runner = FakeRunner(folder, talkative)
        async with working(make_worker(runner, coordinator, timings=timings)), asyncio.TaskGroup() as group:
            disturbing = group.create_task(disturb(coordinator))
            coordinator.offer(make_task())
            final = await coordinator.until_ended()
            disturbing.cancel()
            coordinator.come_back()
        assert final["status"] == RunStatus.SUCCEEDED
        assert coordinator.log_text() == b"".join(b"line %d\n" % n for n in range(20))
        assert coordinator.log_text(stream=LogStream.STDERR) == b"".join(b"error %d\n" % n for n in range(20))
        assert coordinator.artifacts_stored == {"f": b"x" * 5000}
        assert len(runner.requests) == 1

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


async def test_an_announced_artifact_folder_is_not_announced_twice(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    async def announcing(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING, archiveDir=ARCHIVE)
        await coordinator.until(lambda: bool(coordinator.reports))
        (run.request.folders.artifacts / "f").write_bytes(b"x")
        run.status(RunStatus.SUCCEEDED, archiveDir=ARCHIVE)

    async with working(make_worker(FakeRunner(tmp_path, announcing), coordinator)):
        coordinator.offer(make_task())
        await coordinator.until_ended()
    assert coordinator.order == ["status running", "artifact f", "status succeeded"]


async def test_files_without_an_artifact_folder_in_the_status_stay_here(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    async def disabled(run: FakeRun) -> None:
        (run.request.folders.artifacts / "f").write_bytes(b"x")
        run.status(RunStatus.SUCCEEDED)

    async with working(make_worker(FakeRunner(tmp_path, disabled), coordinator)):
        coordinator.offer(make_task())
        await coordinator.until_ended()
    assert coordinator.artifacts_stored == {}


async def test_an_interrupted_artifact_upload_is_repeated(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    coordinator.artifact_error = away()
    async with working(make_worker(FakeRunner(tmp_path, with_artifacts), coordinator)):
        coordinator.offer(make_task())
        await coordinator.until(lambda: coordinator.order.count("status running") == 2)
        coordinator.artifact_error = None
        final = await coordinator.until_ended()
    assert final["status"] == RunStatus.SUCCEEDED
    assert set(coordinator.artifacts_stored) == {"a.txt", "b/two.bin", "empty"}


@pytest.mark.parametrize("error", [away(), SecureDaguError("disk full")])
async def test_artifacts_that_cannot_be_delivered_fail_the_run(
    coordinator: FakeCoordinator, tmp_path: Path, error: SecureDaguError
) -> None:
    coordinator.artifact_error = error
    timings = replace(QUICK, artifacts_for_s=0.1)
    async with working(make_worker(FakeRunner(tmp_path, with_artifacts), coordinator, timings=timings)):
        coordinator.offer(make_task())
        final = await coordinator.until_ended()
    assert final["status"] == RunStatus.FAILED
    assert final["error"].startswith("failed to upload artifacts: ")


async def test_a_refused_report_stops_the_run_which_reports_its_end_once_more(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    coordinator.report_answer = lambda _: Verdict(accepted=False, error="stale attempt: superseded by newer attempt")

    async def long(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        await run.stop.wait()
        run.write(b"last words\n")
        run.status(RunStatus.RUNNING, extra=1)
        run.status(RunStatus.ABORTED)

    async with working(make_worker(FakeRunner(tmp_path, long), coordinator)) as task:
        coordinator.offer(make_task())
        await coordinator.until_ended()
        assert not task.done()
    assert coordinator.order == ["status running", "end of s1 stdout", "status aborted"]


async def test_a_final_report_is_repeated_until_the_coordinator_is_back(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    async def short(run: FakeRun) -> None:
        coordinator.go_away()
        run.status(RunStatus.SUCCEEDED)

    runner = FakeRunner(tmp_path, short)
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task())
        await eventually(lambda: bool(runner.requests) and runner.active == 0)
        coordinator.come_back()
        await coordinator.until_ended()
    assert coordinator.order == ["status succeeded"]


async def test_a_final_error_ends_the_report_not_the_worker(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    def answer(document: dict[str, Any]) -> Verdict:
        if document["dagRunId"] == "r1":
            raise InvalidRequest("no")
        return ACCEPTED

    coordinator.report_answer = answer
    async with working(make_worker(FakeRunner(tmp_path), coordinator)):
        coordinator.offer(make_task("r1"))
        await coordinator.until_ended("r1")
        coordinator.offer(make_task("r2"))
        await coordinator.until_ended("r2")
    assert [r["dagRunId"] for r in coordinator.reports if r["status"] == RunStatus.SUCCEEDED] == ["r1", "r2"]


def make_reporter(coordinator: FakeCoordinator, timings: Timings = QUICK) -> StatusReporter:
    return StatusReporter(
        reports=coordinator,
        caller=CALLER,
        task=make_task(),
        timings=timings,
        is_hopeless=lambda: False,
        refused=lambda why: None,
    )


def document(n: int, padding: int = 0) -> str:
    return f'{{"dagRunId":"r1","status":1,"n":{n},"padding":"{"x" * padding}"}}'


async def test_the_newest_document_wins(coordinator: FakeCoordinator) -> None:
    reporter = make_reporter(coordinator)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(reporter.report_forever())
        reporter.changed(document(1))
        await coordinator.until(lambda: len(coordinator.reports) == 1)
        for n in range(2, 100):
            reporter.changed(document(n))
        await coordinator.until(lambda: coordinator.reports[-1]["n"] == 99)
        reporter.close()
    assert [report["n"] for report in coordinator.reports] == [1, 99]


async def test_a_run_that_is_over_at_once_reports_only_its_end(coordinator: FakeCoordinator) -> None:
    reporter = make_reporter(coordinator, replace(QUICK, report_first_s=60.0))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        reporting = group.create_task(reporter.report_forever())
        reporter.changed(document(1))
        reporter.close()
        await reporting
        await reporter.deliver(document(2))
    assert [report["n"] for report in coordinator.reports] == [2]


async def test_large_documents_are_reported_less_often(coordinator: FakeCoordinator) -> None:
    """Bytes on the wire grow with time, not with the number of changes."""
    reporter = make_reporter(coordinator, replace(QUICK, report_every_s=0.0, report_bytes_per_s=1_000_000.0))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(reporter.report_forever())
        started = loop.time()
        for n in range(4):
            reporter.changed(document(n, 50_000))  # 50 ms each
            await coordinator.until(lambda n=n: len(coordinator.reports) == n + 1)  # type: ignore[misc]
        took = loop.time() - started
        reporter.close()
    assert took >= 0.15


async def test_an_active_document_stays_due_while_the_coordinator_is_away(coordinator: FakeCoordinator) -> None:
    reporter = make_reporter(coordinator)
    coordinator.go_away()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(reporter.report_forever())
        reporter.changed(document(1))
        for _ in range(10):
            await asyncio.sleep(0)
        coordinator.come_back()
        await coordinator.until(lambda: len(coordinator.reports) == 1)
        reporter.close()


async def test_a_run_whose_folders_cannot_be_made_is_reported_as_failed(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    bundle = BundleRef(digest="0" * 64, size_bytes=10, dag_path="demo.yaml")
    async with working(make_worker(FakeRunner(tmp_path), coordinator)):
        coordinator.offer(make_task(bundle=bundle))
        final = await coordinator.until_ended()
    task = make_task()
    assert final["status"] == RunStatus.FAILED
    assert "workspace bundle not found" in final["error"]
    assert final["attemptKey"] == final["claimKey"] == task.attempt_key
    assert final["workerId"] == "w1"
    assert final["root"] == {"name": "demo", "id": "r1"}


@pytest.mark.parametrize(
    ("stored", "size", "problem"),
    [
        (b"good", 4, None),
        (b"goodbye", 4, "longer than the promised 4 bytes"),
        (b"goo", 4, "3 of 4 bytes came"),
        (b"evil", 4, "its digest is"),
    ],
)
async def test_a_bundle_is_only_used_when_it_is_what_the_task_promised(
    coordinator: FakeCoordinator, tmp_path: Path, stored: bytes, size: int, problem: str | None
) -> None:
    digest = hashlib.sha256(b"good").hexdigest()
    coordinator.bundles[digest] = stored
    runner = FakeRunner(tmp_path)
    async with working(make_worker(runner, coordinator)):
        coordinator.offer(make_task(bundle=BundleRef(digest=digest, size_bytes=size, dag_path="demo.yaml")))
        final = await coordinator.until_ended()
    if problem is None:
        archive = runner.requests[0].bundle
        assert archive is not None
        assert archive.read_bytes() == b"good"
        assert archive.stat().st_mode & 0o777 == 0o600
    else:
        assert final["status"] == RunStatus.FAILED
        assert problem in final["error"]
        assert runner.requests == []


async def test_an_artifact_upload_that_never_gets_to_its_end_is_given_up(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    class Interrupting(FakeCoordinator):
        async def stream_artifacts(
            self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]
        ) -> Uploaded:
            await anext(parts)
            await anext(parts)
            self.order.append("interrupted")
            raise away()

    coordinator = Interrupting()
    async with working(make_worker(FakeRunner(tmp_path, with_artifacts), coordinator)):
        coordinator.offer(make_task())
        final = await coordinator.until_ended()
    assert final["status"] == RunStatus.FAILED
    assert coordinator.order.count("interrupted") == 10
