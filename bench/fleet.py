"""Be many workers at once, in a process of its own: `python -m bench.fleet` (started by `bench.load`, not by people).

The load speaks gRPC's own TLS, one connection a worker, so that nothing of ours but the messages is on its side.
One line a happening on standard output: `present`, `settled`, `claimed <monotonic s>`, and the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio

from secure_dagu.wire.pb import coordinator_pb2 as pb

SERVICE = "/coordinator.v1.CoordinatorService/"
CONNECT_S = 60.0
CONNECTING = 50
"""Handshakes begun at the same time."""
ANSWER_S = 10.0
Call = Callable[..., Awaitable[bytes]]


class SimulatedWorker:
    """One worker: a connection, its heartbeats, its polls, the run that it holds."""

    def __init__(self, name: str, *, port: int, folder: Path, ca: bytes, polls: int) -> None:
        credentials = grpc.ssl_channel_credentials(
            ca, (folder / f"{name}.key").read_bytes(), (folder / f"{name}.crt").read_bytes()
        )
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        channel = grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options)
        self.name = name
        self.beat_call: Call = channel.unary_unary(SERVICE + "Heartbeat")
        self.run_beat_call: Call = channel.unary_unary(SERVICE + "RunHeartbeat")
        self._poll_call: Call = channel.unary_unary(SERVICE + "Poll")
        self._ack_call: Call = channel.unary_unary(SERVICE + "AckTaskClaim")
        self.beat = pb.HeartbeatRequest(worker_id=name, stats=pb.WorkerStats(total_pollers=polls)).SerializeToString()
        self.run_beat = b""

    async def connect(self) -> None:
        """Appear at the coordinator."""
        await self.beat_call(self.beat, timeout=CONNECT_S, wait_for_ready=True)

    async def poll(self, nth: int) -> None:
        """Wait for a task and claim it; what is held is renewed from then on."""
        request = pb.PollRequest(worker_id=self.name, poller_id=f"p{nth}").SerializeToString()
        task = pb.PollResponse.FromString(await self._poll_call(request)).task
        print(f"claimed {time.monotonic()}", flush=True)
        ack = pb.AckTaskClaimRequest(
            worker_id=self.name, claim_token=task.claim_token, attempt_key=task.attempt_key
        ).SerializeToString()
        answer = pb.AckTaskClaimResponse.FromString(await self._ack_call(ack, timeout=30))
        assert answer.accepted, answer.error
        running = pb.RunningTask(
            dag_run_id=task.dag_run_id,
            dag_name=task.target,
            root_dag_run_name=task.root_dag_run_name,
            root_dag_run_id=task.root_dag_run_id,
            attempt_key=task.attempt_key,
            started_at=int(time.time()),
        )
        stats = pb.WorkerStats(total_pollers=1, busy_pollers=1, running_tasks=[running])
        self.beat = pb.HeartbeatRequest(worker_id=self.name, stats=stats).SerializeToString()
        self.run_beat = pb.RunHeartbeatRequest(worker_id=self.name, running_tasks=[running]).SerializeToString()


class Figures:
    """What was asked, answered and missed."""

    def __init__(self) -> None:
        self.times_ms: list[float] = []
        self.errors: dict[str, int] = {}
        self.expected = 0

    async def timed(self, call: Call, request: bytes) -> None:
        """Make one call and note how long it took."""
        self.expected += 1
        began = time.perf_counter()
        try:
            await call(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            what = f"{error.code().name}: {error.details()}"
            self.errors[what] = self.errors.get(what, 0) + 1
        else:
            self.times_ms.append((time.perf_counter() - began) * 1000)


async def be(count: int, *, port: int, folder: Path, polls: int, seconds: int, is_leased: bool) -> None:
    """Connect, poll, and beat once a second for `seconds`."""
    ca = (folder / "ca.crt").read_bytes()
    workers = [SimulatedWorker(f"l{n}", port=port, folder=folder, ca=ca, polls=polls) for n in range(count)]
    gate = asyncio.Semaphore(CONNECTING)

    async def connect(worker: SimulatedWorker) -> None:
        async with gate:
            await worker.connect()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(connect(worker))
    connected_s = time.perf_counter() - began
    figures = Figures()

    async def beat(worker: SimulatedWorker, first_at: float) -> None:
        at = first_at
        for _ in range(seconds):
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            await figures.timed(worker.beat_call, worker.beat)
            if worker.run_beat:
                await figures.timed(worker.run_beat_call, worker.run_beat)
            at += 1

    async with asyncio.TaskGroup() as group:
        polling = [group.create_task(worker.poll(nth)) for worker in workers for nth in range(polls)]
        print("present", flush=True)
        if is_leased:
            _, late = await asyncio.wait(polling, timeout=60)
            assert not late, f"{len(late)} polls were not answered"
        else:
            await asyncio.sleep(5)
        print("settled", flush=True)
        began, used = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as beating:
            for number, worker in enumerate(workers):
                # Evenly spread: real workers do not beat in step.
                beating.create_task(beat(worker, began + number / count))
        cpu = (time.process_time() - used) / (time.perf_counter() - began)
        held = sum(not item.done() for item in polling)
        found = {
            "times_ms": figures.times_ms,
            "errors": figures.errors,
            "expected": figures.expected,
            "held_polls": held,
            "connected_s": connected_s,
            "load_cpu": cpu,
        }
        print(json.dumps(found), flush=True)
        for item in polling:
            item.cancel()


def main() -> None:
    """Read the arguments and be the workers."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--polls", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--leased", action="store_true")
    args = parser.parse_args()
    import uvloop

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    uvloop.run(
        be(
            args.count, port=args.port, folder=args.folder, polls=args.polls, seconds=args.seconds,
            is_leased=args.leased,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
