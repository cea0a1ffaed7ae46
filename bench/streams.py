"""Logs and artifacts of one simulated worker, as fast as they go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.cluster import OPERATOR, Cluster, client, new_cluster, rss_mib, task
from bench.runs import ONE_STEP, Row
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import (
    ArtifactPart,
    Caller,
    LogPart,
    LogStream,
    Role,
    RunningTask,
    StreamIdentity,
    WorkerId,
    WorkerStats,
)
from secure_dagu.run.snapshot import encode

MIB = 2**20


async def claimed(cluster: Cluster, worker: Coordinator, name: str, run_id: str) -> StreamIdentity:
    """Dispatch a run and claim it as the simulated worker `name`."""
    caller = Caller(role=Role.WORKER, name=name, proven=True, worker=WorkerId(name))
    await worker.heartbeat(caller, labels={}, stats=WorkerStats(total_pollers=1))
    async with client(cluster) as operator:
        await operator.dispatch(OPERATOR, task("sim", run_id, "artifacts:\n  enabled: true\n" + ONE_STEP))
    claim = await worker.poll(caller, poller_id="p", labels={})
    assert claim is not None
    verdict = await worker.acknowledge(caller, token=claim.token, attempt_key=claim.task.attempt_key)
    assert verdict.accepted, verdict.error
    asked = claim.task
    head = {
        "name": asked.run.name, "dagRunId": asked.run.run_id, "attemptId": asked.attempt_id,
        "attemptKey": asked.attempt_key, "claimKey": asked.attempt_key, "status": 1, "workerId": name,
        "root": {"name": asked.root.name, "id": asked.root.run_id}, "startedAt": "2026-01-02T03:04:05Z",
        "archiveDir": f"/tmp/dag-run_20260102_030405Z_{run_id}", "nodes": [],
    }  # fmt: skip
    verdict = await worker.report_status(caller, status=encode(head), source_file="", labels="")
    assert verdict.accepted, verdict.error
    return StreamIdentity(
        worker=WorkerId(name), run=asked.run, root=asked.root, attempt_id=asked.attempt_id, claim_key=asked.attempt_key
    )


async def keep_alive(worker: Coordinator, identity: StreamIdentity) -> None:
    """Renew the lease once a second."""
    from datetime import UTC, datetime

    caller = Caller(role=Role.WORKER, name=identity.worker, proven=True, worker=identity.worker)
    running = RunningTask(
        run=identity.run, root=identity.root, parent=None, attempt_key=identity.claim_key, started_at=datetime.now(UTC)
    )
    while True:
        await worker.run_heartbeat(caller, running=[running])
        await asyncio.sleep(1)


async def logs() -> list[Row]:
    """Stream 1 GiB in parts of 32 KiB."""
    total, piece = 1024 * MIB, bytes(range(256)) * 128
    with new_cluster() as cluster, cluster.coordinator() as serving:
        folder = cluster.worker_host("sim").home / "pki"
        async with client(cluster, "sim", folder) as worker:
            identity = await claimed(cluster, worker, "sim", "logs")
            caller = Caller(role=Role.WORKER, name="sim", proven=True, worker=identity.worker)

            async def parts() -> AsyncIterator[LogPart]:
                for offset in range(0, total, len(piece)):
                    yield LogPart(step="a", stream=LogStream.STDOUT, data=piece, offset=offset, is_final=False)
                yield LogPart(step="a", stream=LogStream.STDOUT, data=b"", offset=total, is_final=True)

            async with asyncio.TaskGroup() as group:
                beat = group.create_task(keep_alive(worker, identity))
                before = rss_mib(serving.pid)
                began = time.perf_counter()
                done = await worker.stream_logs(caller, identity, parts())
                rate = total / MIB / (time.perf_counter() - began)
                beat.cancel()
            assert done.size_bytes == total
            grown = rss_mib(serving.pid) - before
    return [
        ("log stream, 32 KiB chunks", rate, "MiB/s", ">= 238", rate * 1.048576 >= 250),
        ("coordinator growth meanwhile", grown, "MiB", "", None),
    ]


async def artifact() -> list[Row]:
    """Upload an artifact of 1 GiB."""
    total, piece = 1024 * MIB, bytes(range(256)) * 4096
    with new_cluster() as cluster, cluster.coordinator() as serving:
        folder = cluster.worker_host("sim").home / "pki"
        async with client(cluster, "sim", folder) as worker:
            identity = await claimed(cluster, worker, "sim", "art")
            caller = Caller(role=Role.WORKER, name="sim", proven=True, worker=identity.worker)
            highest = before = rss_mib(serving.pid)

            async def parts() -> AsyncIterator[ArtifactPart]:
                nonlocal highest
                for number in range(total // len(piece)):
                    yield ArtifactPart(path="big.bin", data=piece, is_final=False)
                    if number % 32 == 0:
                        highest = max(highest, rss_mib(serving.pid))
                yield ArtifactPart(path="big.bin", data=b"", is_final=True)

            async with asyncio.TaskGroup() as group:
                beat = group.create_task(keep_alive(worker, identity))
                began = time.perf_counter()
                done = await worker.stream_artifacts(caller, identity, parts())
                rate = total / MIB / (time.perf_counter() - began)
                beat.cancel()
            assert done.size_bytes == total
            (stored,) = Path(cluster.host.home / "data" / "artifacts").rglob("big.bin")
            assert stored.stat().st_size == total
    grown = highest - before
    return [
        ("1 GiB artifact", rate, "MiB/s", ">= 286", rate * 1.048576 >= 300),
        ("coordinator growth meanwhile", grown, "MiB", "<= 32", grown <= 32),
    ]
