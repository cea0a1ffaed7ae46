"""Logs arrive byte for byte, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dispatch.model import Caller, LogPart, LogStream, StreamIdentity, Uploaded
from secure_dagu.errors import InvalidRequest, PreconditionFailed, SecureDaguError
from secure_dagu.run.model import RunStatus
from secure_dagu.worker.logs import Goal, LogShipper
from secure_dagu.worker.timings import Timings
from tests.worker.fakes import (
    CALLER,
    DEADLINE_S,
    QUICK,
    W1,
    FakeCoordinator,
    FakeRun,
    FakeRunner,
    eventually,
    make_task,
    make_worker,
    working,
)

TASK = make_task()
IDENTITY = StreamIdentity(
    worker=W1, run=TASK.run, root=TASK.root, attempt_id=TASK.attempt_id, claim_key=TASK.attempt_key, owner_id="c1"
)


class Writer:
    """Writes a log file as a runner does and tells the shipper."""

    def __init__(self, folder: Path, shipper: LogShipper, step: str = "s1", stream: LogStream = LogStream.STDOUT):
        self.path = folder / f"{step}.{stream}.log"
        self.written = b""
        self._shipper = shipper
        self._step = step
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Append."""
        with self.path.open("ab") as file:
            file.write(data)
        self.written += data
        self._shipper.written(self._step, self._stream, self.path, len(self.written))


def make_shipper(coordinator: FakeCoordinator, timings: Timings = QUICK, *, is_hopeless: bool = False) -> LogShipper:
    return LogShipper(
        reports=coordinator, caller=CALLER, identity=IDENTITY, timings=timings, is_hopeless=lambda: is_hopeless
    )


@given(
    pieces=st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2"]), st.sampled_from([LogStream.STDOUT, LogStream.STDERR]), st.binary(max_size=40)
        ),
        max_size=12,
    ),
    breaks=st.lists(st.integers(0, 6), max_size=6),
    chunk=st.sampled_from([1, 7, 64]),
    checkpoint=st.sampled_from([1, 50, 10_000]),
    streams=st.sampled_from([1, 2, 64]),
)
@settings(max_examples=60)
def test_logs_are_byte_identical_after_any_outages(
    pieces: list[tuple[str, LogStream, bytes]], breaks: list[int], chunk: int, checkpoint: int, streams: int
) -> None:
    """A call may break after any part; pieces may come before, between and after the breaks."""

    async def scenario(folder: Path) -> None:
        coordinator = FakeCoordinator()
        coordinator.break_after_parts = list(breaks)
        timings = replace(
            QUICK,
            log_chunk_bytes=chunk,
            log_checkpoint_bytes=checkpoint,
            log_streams_per_call=streams,
            log_age_s=0.0,
            retry_first_s=0.0001,
            retry_cap_s=0.001,
        )
        shipper = make_shipper(coordinator, timings)
        writers: dict[tuple[str, LogStream], Writer] = {}
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(shipper.ship())
            for step, stream, data in pieces:
                writer = writers.setdefault((step, stream), Writer(folder, shipper, step, stream))
                if data:
                    writer.write(data)
                await asyncio.sleep(0)
            shipper.complete(Goal.ALL)
        assert shipper.lost == ""
        for (step, stream), writer in writers.items():
            assert coordinator.log_text(step, stream) == writer.written
            if writer.written:
                assert f"end of {step} {stream.name.lower()}" in coordinator.order

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


async def test_a_long_outage_costs_neither_bytes_nor_the_run(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    output = random.Random(1).randbytes(3_000_000)
    resume = asyncio.Event()

    async def chatty(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        run.write(output[:10_000])
        await coordinator.until(lambda: len(coordinator.log_text()) == 10_000)
        coordinator.go_away()
        for at in range(10_000, len(output), 100_000):
            run.write(output[at : at + 100_000])
            await asyncio.sleep(0)
        resume.set()
        run.status(RunStatus.SUCCEEDED)

    runner = FakeRunner(tmp_path, chatty)
    async with working(make_worker(runner, coordinator)) as task:
        coordinator.offer(make_task())
        await resume.wait()
        await eventually(lambda: runner.active == 0)
        coordinator.come_back()
        final = await coordinator.until_ended()
        assert not task.done()
    assert final["status"] == RunStatus.SUCCEEDED
    assert coordinator.log_text() == output
    assert coordinator.order[-1] == "status succeeded"


async def test_output_arrives_while_the_step_is_running(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    shipper = make_shipper(coordinator, replace(QUICK, log_idle_s=0.05))
    writer = Writer(tmp_path, shipper)
    async with asyncio.TaskGroup() as group:
        group.create_task(shipper.ship())
        for n in range(3):
            writer.write(b"line\n")
            await coordinator.until(lambda n=n: len(coordinator.log_text()) == 5 * (n + 1))  # type: ignore[misc]
        assert coordinator.log_calls == 1
        await eventually(lambda: shipper._call is None)  # idle: closed, hence acknowledged
        writer.write(b"more\n")
        await coordinator.until(lambda: len(coordinator.log_text()) == 20)
        shipper.complete(Goal.ALL)
    assert coordinator.log_calls == 2
    assert coordinator.order == ["end of s1 stdout"]


async def test_young_output_waits_for_company(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    shipper = make_shipper(coordinator, replace(QUICK, log_age_s=60.0, log_bytes=100))
    writer = Writer(tmp_path, shipper)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        shipping = group.create_task(shipper.ship())
        await asyncio.sleep(0)
        writer.write(b"x" * 99)
        for _ in range(20):
            await asyncio.sleep(0)
        # Output that was there before the first call is sent with it; what follows waits.
        await asyncio.sleep(0)
        sent = len(coordinator.log_text())
        assert sent == 0
        writer.write(b"y")
        await coordinator.until(lambda: len(coordinator.log_text()) == 100)
        shipper.complete(Goal.ALL)
        await shipping


async def test_a_coordinator_that_keeps_no_logs_is_not_asked_again(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    coordinator.log_error = PreconditionFailed("log streaming not configured: no log directory")
    shipper = make_shipper(coordinator)
    Writer(tmp_path, shipper).write(b"hello\n")
    shipper.complete(Goal.ALL)
    await shipper.ship()
    await shipper.ship()
    assert coordinator.log_calls == 1
    assert shipper.lost == ""


@pytest.mark.parametrize(
    "error", [PreconditionFailed("stale attempt: lease no longer active"), SecureDaguError("internal error")]
)
async def test_a_final_error_loses_the_log_but_not_the_run(tmp_path: Path, error: SecureDaguError) -> None:
    coordinator = FakeCoordinator()
    coordinator.log_error = error
    async with working(make_worker(FakeRunner(tmp_path), coordinator)):
        coordinator.offer(make_task())
        final = await coordinator.until_ended()
    assert final["status"] == RunStatus.SUCCEEDED
    assert coordinator.log_calls == 1


async def test_a_coordinator_that_came_back_with_less_gets_everything_again(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    shipper = make_shipper(coordinator, replace(QUICK, log_idle_s=0.01))
    writer = Writer(tmp_path, shipper)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(shipper.ship())
        writer.write(b"first\n")
        await coordinator.until(lambda: coordinator.log_text() == b"first\n")
        await eventually(lambda: shipper._call is None)
        coordinator.logs.clear()  # its disk was restored from a backup
        writer.write(b"second\n")
        shipper.complete(Goal.ALL)
    assert coordinator.log_text() == b"first\nsecond\n"


async def test_a_gap_that_repeats_gives_the_log_up(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    coordinator.log_error = InvalidRequest("failed to write data: log chunk byte offset exceeds current file size")
    shipper = make_shipper(coordinator)
    Writer(tmp_path, shipper).write(b"hello\n")
    shipper.complete(Goal.ALL)
    await shipper.ship()
    assert coordinator.log_calls == 2
    assert "exceeds current file size" in shipper.lost


async def test_an_orphan_gives_its_log_up_at_the_first_failure(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    coordinator.go_away()
    shipper = make_shipper(coordinator, is_hopeless=True)
    Writer(tmp_path, shipper).write(b"hello\n")
    shipper.complete(Goal.ALL)
    await shipper.ship()
    assert "connection refused" in shipper.lost


async def test_a_call_that_stands_still_is_cut_and_repeated(tmp_path: Path) -> None:
    class Stuck(FakeCoordinator):
        async def stream_logs(
            self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]
        ) -> Uploaded:
            if self.log_calls == 0:
                self.log_calls += 1
                await anext(parts)
                await asyncio.Event().wait()
            return await super().stream_logs(caller, identity, parts)

    coordinator = Stuck()
    shipper = make_shipper(coordinator, replace(QUICK, stall_s=0.05))
    Writer(tmp_path, shipper).write(b"hello\n")
    shipper.complete(Goal.ALL)
    async with asyncio.timeout(DEADLINE_S):
        await shipper.ship()
    assert coordinator.log_text() == b"hello\n"
    assert coordinator.log_calls == 2


async def test_an_answer_before_the_end_of_the_upload_acknowledges_nothing(tmp_path: Path) -> None:
    class Hasty(FakeCoordinator):
        async def stream_logs(
            self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]
        ) -> Uploaded:
            if self.log_calls == 0:
                self.log_calls += 1
                await anext(parts)
                return Uploaded(1, 1)
            return await super().stream_logs(caller, identity, parts)

    coordinator = Hasty()
    shipper = make_shipper(coordinator)
    Writer(tmp_path, shipper).write(b"hello\n")
    shipper.complete(Goal.ALL)
    await shipper.ship()
    assert coordinator.log_text() == b"hello\n"


async def test_the_run_log_ends_after_the_steps_logs(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    shipper = make_shipper(coordinator)
    Writer(tmp_path, shipper).write(b"hello\n")
    Writer(tmp_path, shipper, "scheduler", LogStream.SCHEDULER).write(b"{}\n")
    shipper.complete(Goal.STEPS)
    await shipper.ship()
    assert coordinator.order == ["end of s1 stdout"]
    shipper.complete(Goal.ALL)
    await shipper.ship()
    assert coordinator.order == ["end of s1 stdout", "end of scheduler scheduler"]
