"""Logs and artifacts of one simulated worker, as fast as they go.

The uploads go over gRPC's own TLS with messages packed beforehand, so that the load costs as little as it can.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.cluster import OPERATOR, Cluster, client, cpu_s, new_cluster, rss_mib, task
from bench.runs import ONE_STEP, Row
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import (
    Caller,
    LogStream,
    Role,
    RunningTask,
    StreamIdentity,
    WorkerId,
    WorkerStats,
)
from secure_dagu.run.snapshot import encode
from secure_dagu.wire.pb import coordinator_pb2 as pb

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


def _upload(cluster: Cluster, folder: Path, method: str) -> tuple[grpc.aio.Channel, Callable[..., Any]]:
    """Open a connection of gRPC's own as the worker `sim`; return it and a client-streaming method."""
    credentials = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in ("ca.crt", "sim.key", "sim.crt"))
    )
    channel = grpc.aio.secure_channel(f"localhost:{cluster.port}", credentials)
    return channel, channel.stream_unary("/coordinator.v1.CoordinatorService/" + method)


def _identity(identity: StreamIdentity) -> dict[str, Any]:
    return {
        "worker_id": identity.worker, "dag_run_id": identity.run.run_id, "dag_name": identity.run.name,
        "root_dag_run_name": identity.root.name, "root_dag_run_id": identity.root.run_id,
        "attempt_id": identity.attempt_id, "attempt_key": identity.claim_key,
    }  # fmt: skip


def _offset(value: int) -> bytes:
    """Return the field `byte_offset` (14, a varint) on the wire: fields may follow each other in any order."""
    packed = bytearray(b"\x70")
    while value > 0x7F:
        packed.append(value & 0x7F | 0x80)
        value >>= 7
    packed.append(value)
    return bytes(packed)


async def logs() -> list[Row]:
    """Stream 1 GiB in parts of 32 KiB."""
    total, piece = 1024 * MIB, bytes(range(256)) * 128
    with new_cluster() as cluster, cluster.coordinator() as serving:
        folder = cluster.worker_host("sim").home / "pki"
        async with client(cluster, "sim", folder) as worker:
            identity = await claimed(cluster, worker, "sim", "logs")
            channel, upload = _upload(cluster, folder, "StreamLogs")
            head: dict[str, Any] = {**_identity(identity), "step_name": "a", "stream_type": int(LogStream.STDOUT)}
            chunk = pb.LogChunk(**head, data=piece).SerializeToString()

            async def parts() -> AsyncIterator[bytes]:
                for offset in range(0, total, len(piece)):
                    yield chunk + _offset(offset)
                yield pb.LogChunk(**head, byte_offset=total, is_final=True).SerializeToString()

            async with channel, asyncio.TaskGroup() as group:
                beat = group.create_task(keep_alive(worker, identity))
                highest = before = rss_mib(serving.pid)
                used, began = (cpu_s(serving.pid), time.process_time()), time.perf_counter()
                done = pb.StreamLogsResponse.FromString(await upload(parts()))
                rate = total / MIB / (time.perf_counter() - began)
                highest = max(highest, rss_mib(serving.pid))
                cpu = cpu_s(serving.pid) - used[0], time.process_time() - used[1]
                beat.cancel()
            assert done.bytes_written == total, done
            grown = highest - before
    return [
        ("log stream, 32 KiB chunks", rate, "MiB/s", ">= 238", rate * 1.048576 >= 250),
        ("coordinator CPU a GiB", cpu[0], "s", "", None),
        ("load CPU a GiB", cpu[1], "s", "", None),
        ("coordinator growth meanwhile", grown, "MiB", "", None),
    ]


async def artifact() -> list[Row]:
    """Upload an artifact of 1 GiB."""
    total, piece = 1024 * MIB, bytes(range(256)) * 4096
    with new_cluster() as cluster, cluster.coordinator() as serving:
        folder = cluster.worker_host("sim").home / "pki"
        async with client(cluster, "sim", folder) as worker:
            identity = await claimed(cluster, worker, "sim", "art")
            channel, upload = _upload(cluster, folder, "StreamArtifacts")
            head: dict[str, Any] = {**_identity(identity), "relative_path": "big.bin"}
            chunk = pb.ArtifactChunk(**head, data=piece).SerializeToString()
            highest = before = rss_mib(serving.pid)

            async def parts() -> AsyncIterator[bytes]:
                nonlocal highest
                for number in range(total // len(piece)):
                    yield chunk
                    if number % 32 == 0:
                        highest = max(highest, rss_mib(serving.pid))
                yield pb.ArtifactChunk(**head, is_final=True).SerializeToString()

            async with channel, asyncio.TaskGroup() as group:
                beat = group.create_task(keep_alive(worker, identity))
                used, began = (cpu_s(serving.pid), time.process_time()), time.perf_counter()
                done = pb.StreamArtifactsResponse.FromString(await upload(parts()))
                rate = total / MIB / (time.perf_counter() - began)
                cpu = cpu_s(serving.pid) - used[0], time.process_time() - used[1]
                beat.cancel()
            assert done.bytes_written == total, done
            (stored,) = Path(cluster.host.home / "data" / "artifacts").rglob("big.bin")
            assert stored.stat().st_size == total
    grown = highest - before
    return [
        ("1 GiB artifact", rate, "MiB/s", ">= 286", rate * 1.048576 >= 300),
        ("coordinator CPU a GiB", cpu[0], "s", "", None),
        ("load CPU a GiB", cpu[1], "s", "", None),
        ("coordinator growth meanwhile", grown, "MiB", "<= 32", grown <= 32),
    ]
