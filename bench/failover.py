"""How soon work goes on at another coordinator when one dies, or its host vanishes without a word."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.cluster import run_to_end, task
from bench.runs import Row
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.link import context, dialer, private
from secure_dagu.telemetry import metrics
from secure_dagu.wire.routes import WireRoutes
from tests.system.conftest import Cluster
from tests.system.test_fleet import QUICK, forwarder, second_coordinator, serving

ROUNDS = 2


@asynccontextmanager
async def _anyone(cluster: Cluster, ports: Sequence[int]) -> AsyncIterator[Coordinator]:
    pki = cluster.host.home / "pki"
    policy = context.client_policy(cert=pki / "operator.crt", key=pki / "operator.key", ca=pki / "ca.crt")
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(dialer.dialers(policy=policy, directory=folder))
        routes = WireRoutes(
            [("localhost", port) for port in ports],
            connect=dialers.connect,
            recorder=metrics.RPC_CLIENT,
            is_proven=True,
        )
        stack.push_async_callback(routes.close)
        yield routes.anyone()


async def _measured(*, is_killed: bool) -> float:
    """Return the seconds from the fault to the end of a run that was dispatched at once, to either."""
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as name:
        cluster = Cluster(Path(name))
        host, port = second_coordinator(cluster)
        with serving(host, port), cluster.coordinator() as first, forwarder(cluster.port) as way:
            listed = f"--worker.coordinators=localhost:{way.port},localhost:{port}"
            with cluster.worker("w1", listed, "--worker.max-active-runs=1") as worker:
                worker.wait_for(f"coordinator.reached.*{port}")
                async with _anyone(cluster, (way.port, port)) as coordinator:
                    for number in range(6):
                        await run_to_end(coordinator, task("warm", f"w{number}", QUICK))
                    began = time.perf_counter()
                    if is_killed:
                        first.signal(signal.SIGKILL)
                    else:
                        way.freeze()
                    await run_to_end(coordinator, task("quick", "q1", QUICK))
                    return time.perf_counter() - began


async def failover() -> list[Row]:
    """A worker with one slot and two coordinators, a dispatcher that knows both; the worst of some rounds."""
    killed = max([await _measured(is_killed=True) for _ in range(ROUNDS)])
    vanished = max([await _measured(is_killed=False) for _ in range(ROUNDS)])
    return [
        (f"coordinator killed to next run over, worst of {ROUNDS}", killed, "s", "<= 2", killed <= 2),
        (f"its host vanished to next run over, worst of {ROUNDS}", vanished, "s", "<= 2", vanished <= 2),
    ]
