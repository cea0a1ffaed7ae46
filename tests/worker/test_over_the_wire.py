"""A worker and a coordinator with real gRPC between them, and a restart in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from secure_dagu.dispatch.model import Owner
from secure_dagu.run.model import RunStatus
from secure_dagu.telemetry.rpc_series import RpcSeries
from secure_dagu.wire.interceptors import Gate
from secure_dagu.wire.routes import WireRoutes
from secure_dagu.wire.server import serve
from secure_dagu.worker import Worker
from tests.wire.fakes import FakeLink, peer
from tests.worker.fakes import CALLER, QUICK, FakeCoordinator, FakeRun, FakeRunner, make_task, until_stopped, working

OWNER = Owner("c1@50055", "coordinator.example", 50055)


@asynccontextmanager
async def worker_of(path: str, runner: FakeRunner) -> AsyncIterator[Worker]:
    """Run a worker whose only coordinator is behind the socket `path`."""

    async def connect(_host: str, _port: int) -> FakeLink:
        return FakeLink(path)

    routes = WireRoutes([("coordinator.example", 50055)], connect=connect, recorder=RpcSeries("client"), is_proven=True)
    worker = Worker(
        caller=CALLER,
        routes=routes,
        names=["coordinator.example:50055"],
        labels={"gpu": "true"},
        max_active_runs=4,
        execute=runner.execute,
        workspaces=runner.workspace,
        host_env={},
        timings=QUICK,
    )
    try:
        async with working(worker, deadline_s=30.0):
            yield worker
    finally:
        await routes.close()


@asynccontextmanager
async def serving(path: str, coordinator: FakeCoordinator) -> AsyncIterator[None]:
    """Serve the coordinator until the end of the block, then cut every call."""
    gate = Gate(peer_of=lambda _name: peer(), recorder=RpcSeries("server"), denied=lambda _denial: None)
    async with serve(socket_paths=[path], desk=coordinator, gate=gate, grace_s=0.0):
        yield


async def test_a_run_with_logs_and_artifacts_over_grpc(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    output = bytes(range(256)) * 4000

    async def script(run: FakeRun) -> None:
        run.status(RunStatus.RUNNING)
        run.write(output)
        (run.request.folders.artifacts / "f.bin").write_bytes(output)
        await asyncio.sleep(0.05)
        run.status(RunStatus.SUCCEEDED, archiveDir="/tmp/dag-run_20260102_030405Z_r1")

    path = str(tmp_path / "s")
    async with serving(path, coordinator), worker_of(path, FakeRunner(tmp_path, script)):
        coordinator.offer(make_task(), owner=OWNER)
        final = await coordinator.until_ended()
    assert final["status"] == RunStatus.SUCCEEDED
    assert final["warnings"] == []
    assert coordinator.log_text() == output
    assert coordinator.artifacts_stored == {"f.bin": output}
    assert coordinator.acknowledged == ["token-r1"]


async def test_a_pushed_cancellation_arrives_over_grpc(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    path = str(tmp_path / "s")
    async with serving(path, coordinator), worker_of(path, FakeRunner(tmp_path, until_stopped)):
        coordinator.offer(make_task(), owner=OWNER)
        await coordinator.until(lambda: bool(coordinator.watchers) and bool(coordinator.reports))
        coordinator.watchers[0].put_nowait(make_task().attempt_key)
        assert (await coordinator.until_ended())["status"] == RunStatus.ABORTED


async def test_a_coordinator_that_is_restarted_twice_gets_one_whole_run(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    restarts = asyncio.Semaphore(0)
    written = b""

    async def script(run: FakeRun) -> None:
        nonlocal written
        run.status(RunStatus.RUNNING)
        for part in range(3):
            for n in range(100):
                line = b"part %d line %d\n" % (part, n)
                run.write(line)
                written += line
            if part < 2:
                await restarts.acquire()
        run.status(RunStatus.SUCCEEDED)

    path = str(tmp_path / "s")
    runner = FakeRunner(tmp_path, script)
    async with worker_of(path, runner):
        async with serving(path, coordinator):
            coordinator.offer(make_task(), owner=OWNER)
            await coordinator.until(lambda: b"part 0 line 99\n" in coordinator.log_text())
        restarts.release()
        async with serving(path, coordinator):
            await coordinator.until(lambda: b"part 1 line 99\n" in coordinator.log_text())
        restarts.release()
        async with serving(path, coordinator):
            final = await coordinator.until_ended()
    assert final["status"] == RunStatus.SUCCEEDED
    assert coordinator.log_text() == written
    assert len(runner.requests) == 1
