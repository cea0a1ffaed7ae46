"""Many workers: idle, with leases, with many polls. The load runs in processes of its own (`python -m bench.load`)."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cluster import OPERATOR, Cluster, client, cpu_s, new_cluster, quantile, rss_mib, task
from bench.runs import ONE_STEP, Row

SECONDS = 20


def issue(cluster: Cluster, count: int) -> Path:
    """Issue `count` worker certificates in this process; return their folder."""
    from secure_dagu.dispatch.model import Role
    from secure_dagu.pki import directory

    folder = cluster.root / "workers"
    for number in range(count):
        directory.issue(
            cluster.pki,
            role=Role.WORKER,
            name=f"l{number}",
            advertised=(),
            out=folder,
            days=None,
            force=False,
            now=datetime.now(UTC),
        )
    return folder


async def _measure(count: int, polls: int, *, leased: bool) -> list[Row]:
    with new_cluster() as cluster, cluster.coordinator() as serving:
        folder = issue(cluster, count)
        idle = rss_mib(serving.pid)
        loader = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.load", str(cluster.port), str(folder), str(count), str(polls),
            str(int(leased)), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert loader.stdout is not None
        if leased:
            assert (await loader.stdout.readline()).strip() == b"present"
            async with client(cluster) as operator, asyncio.TaskGroup() as group:
                gate = asyncio.Semaphore(16)

                async def one(number: int) -> None:
                    async with gate:
                        await operator.dispatch(OPERATOR, task("held", f"r{number}", ONE_STEP))

                for number in range(count):
                    group.create_task(one(number))
        assert (await loader.stdout.readline()).strip() == b"settled"
        before, began = cpu_s(serving.pid), time.perf_counter()
        found = json.loads(await loader.stdout.readline())
        took = time.perf_counter() - began
        cpu, rss = (cpu_s(serving.pid) - before) / took, rss_mib(serving.pid)
        await loader.wait()
    p99 = quantile(found["times_ms"], 0.99)
    answered = len(found["times_ms"])
    good = p99 <= 250 and not found["errors"]
    return [
        (f"{count} workers: calls answered a second", answered / SECONDS, "/s", f"{found['expected'] / SECONDS:.0f}",
         answered >= found["expected"] * 0.97),
        ("errors", float(found["errors"]), "", "0", found["errors"] == 0),
        ("answer, p50", quantile(found["times_ms"], 0.5), "ms", "", None),
        ("answer, p99", p99, "ms", "<= 250", good),
        ("coordinator CPU", cpu * 100, "%", "", None),
        ("coordinator CPU a worker", cpu * 1e6 / count, "us/s", "", None),
        ("coordinator memory a worker", (rss - idle) * 1024 / count, "KiB", "", None),
    ]  # fmt: skip


async def idle_workers() -> list[Row]:
    """2,000 idle workers, one heartbeat a second each and a pending poll."""
    return await _measure(2000, 1, leased=False)


async def leased() -> list[Row]:
    """1,000 workers, each with a leased run."""
    return await _measure(1000, 1, leased=True)


async def polls() -> list[Row]:
    """100 workers with 100 pending polls each."""
    return await _measure(100, 100, leased=False)


async def _load(port: int, folder: Path, count: int, poll_count: int, *, is_leased: bool) -> None:
    """Be `count` workers over gRPC's own TLS, and print what happened."""
    import grpc.aio

    from secure_dagu.wire.pb import coordinator_pb2 as pb

    base = "/coordinator.v1.CoordinatorService/"
    ca = (folder / "ca.crt").read_bytes()
    channels = []
    for number in range(count):
        credentials = grpc.ssl_channel_credentials(
            ca, (folder / f"l{number}.key").read_bytes(), (folder / f"l{number}.crt").read_bytes()
        )
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        channels.append(grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options))
    beats: list[Any] = [channel.unary_unary(base + "Heartbeat") for channel in channels]
    run_beats: list[Any] = [channel.unary_unary(base + "RunHeartbeat") for channel in channels]
    times: list[float] = []
    held: dict[int, bytes] = {}
    errors = expected = 0
    gate = asyncio.Semaphore(100)

    def heartbeat(number: int) -> bytes:
        stats = pb.WorkerStats(total_pollers=poll_count, busy_pollers=len(held) and 1)
        return pb.HeartbeatRequest(worker_id=f"l{number}", stats=stats).SerializeToString()

    async def connect(number: int) -> None:
        async with gate:
            await beats[number](heartbeat(number), timeout=60)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(connect(number))
    if is_leased:
        print("present", flush=True)

    async def poll(number: int, nth: int) -> None:
        call: Any = channels[number].unary_unary
        request = pb.PollRequest(worker_id=f"l{number}", poller_id=f"p{nth}").SerializeToString()
        answer = pb.PollResponse.FromString(await call(base + "Poll")(request))
        claim = answer.task
        ack = pb.AckTaskClaimRequest(
            worker_id=f"l{number}", claim_token=claim.claim_token, attempt_key=claim.attempt_key
        )
        await call(base + "AckTaskClaim")(ack.SerializeToString(), timeout=30)
        running = pb.RunningTask(
            dag_run_id=claim.dag_run_id, dag_name=claim.target, root_dag_run_name=claim.root_dag_run_name,
            root_dag_run_id=claim.root_dag_run_id, attempt_key=claim.attempt_key, started_at=int(time.time()),
        )  # fmt: skip
        held[number] = pb.RunHeartbeatRequest(worker_id=f"l{number}", running_tasks=[running]).SerializeToString()

    async def timed(call: Any, request: bytes) -> None:
        nonlocal errors
        began = time.perf_counter()
        try:
            await call(request, timeout=10)
        except grpc.aio.AioRpcError:
            errors += 1
        else:
            times.append((time.perf_counter() - began) * 1000)

    async def beat(number: int, began: float) -> None:
        nonlocal expected
        # Evenly spread: real workers do not beat in step.
        at = began + number / count
        for _ in range(SECONDS):
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            expected += 1
            await timed(beats[number], heartbeat(number))
            if number in held:
                expected += 1
                await timed(run_beats[number], held[number])
            at += 1

    async with asyncio.TaskGroup() as group:
        pending = [group.create_task(poll(number, nth)) for number in range(count) for nth in range(poll_count)]
        if is_leased:
            await asyncio.wait(pending, timeout=60)
        else:
            await asyncio.sleep(5)
        print("settled", flush=True)
        async with asyncio.TaskGroup() as beating:
            began = time.perf_counter()
            for number in range(count):
                beating.create_task(beat(number, began))
        print(json.dumps({"times_ms": times, "errors": errors, "expected": expected}), flush=True)
        for item in pending:
            item.cancel()


if __name__ == "__main__":
    from secure_dagu.wire import process

    process.prepare()
    import uvloop

    uvloop.run(
        _load(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), is_leased=sys.argv[5] == "1")
    )
