"""T20, T16: what peers say of themselves cannot forge, break or flood the audit log of a running coordinator."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secure_dagu.audit import journal
from secure_dagu.audit.chain import Record, read
from secure_dagu.dispatch.model import Caller, Role, WorkerId, WorkerStats
from secure_dagu.errors import InvalidRequest, Refused
from secure_dagu.link import context, dialer, private
from secure_dagu.telemetry import metrics
from secure_dagu.wire.routes import WireRoutes
from tests.system.conftest import Cluster

FORGED = (
    'w1@\n{"seq":1,"action":"audit.checkpoint"}',
    "w1@\x1b[2J\u202e",
    "gpu-9\r\nadmin",
    "other",
)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Return a cluster with certificates and nothing running."""
    return Cluster(tmp_path)


@contextmanager
def records_of(cluster: Cluster) -> Iterator[list[Record]]:
    """Run a coordinator; when the block is left, stop it and fill the list with what it recorded."""
    found: list[Record] = []
    with cluster.coordinator() as serving:
        yield found
        serving.stop()
    folder = cluster.host.home / "data" / "audit"
    for path in journal.files_of(folder):
        found += [read(line) for line in path.read_bytes().splitlines(True)]
    cluster.host.ok("audit", "verify", "--log", "coordinator")


async def claim_to_be(cluster: Cluster, pki: Path, names: tuple[str, ...]) -> None:
    """Call Heartbeat with the certificate of w1 in other names."""
    policy = context.client_policy(cert=pki / "w1.crt", key=pki / "w1.key", ca=pki / "ca.crt")
    with private.folder() as directory:
        async with dialer.dialers(policy=policy, directory=directory) as dialers:
            routes = WireRoutes(
                [("localhost", cluster.port)], connect=dialers.connect, recorder=metrics.RPC_CLIENT, is_proven=True
            )
            try:
                for name in names:
                    caller = Caller(role=Role.WORKER, name="w1", proven=True, worker=WorkerId(name))
                    with pytest.raises((Refused, InvalidRequest)):
                        await routes.listed()[0].heartbeat(caller, labels={}, stats=WorkerStats())
            finally:
                await routes.close()


def test_a_name_that_looks_like_a_record_stays_inside_one(cluster: Cluster) -> None:
    pki = cluster.worker_host("w1").home / "pki"
    with records_of(cluster) as found:
        asyncio.run(claim_to_be(cluster, pki, FORGED))
    denied = [record for record in found if record.action == "call.denied"]
    assert {record.actor for record in denied} == {"spiffe://secure-dagu/worker/w1"}
    assert {record.reason for record in denied} == {"worker_id_mismatch"}
    assert denied[0].serial
    assert denied[0].address.startswith("127.0.0.1:")
    assert sum(record.action == "audit.checkpoint" for record in found) <= 3
    assert all(text.isprintable() for record in denied for text in map(str, record.details.values()))


def test_a_stranger_who_knocks_for_ever_fills_nothing(cluster: Cluster) -> None:
    """Each refused handshake counts, and a thousand of one sort are two records."""
    knocks = 300
    with records_of(cluster) as found:
        for _ in range(knocks):
            with socket.create_connection(("127.0.0.1", cluster.port), 5) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                stranger.recv(4096)
    refused = [record for record in found if record.action == "link.refused"]
    assert len(refused) <= 4
    counted = Counter[str]()
    for record in refused:
        counted[record.reason] += int(record.details.get("repeats", 1))
    assert sum(counted.values()) == knocks
    assert {record.outcome for record in refused} == {"denied"}


def test_what_a_run_is_called_and_given_never_reaches_the_log(cluster: Cluster, tmp_path: Path) -> None:
    """Parameters, definitions and environment are inputs; the log holds names and reasons."""
    canary = "hunter2-canary"
    workflow = tmp_path / "a.yaml"
    workflow.write_text(f"env:\n  - PASSWORD: {canary}\nparams: KEY=none\nsteps:\n  - id: a\n    run: echo {canary}\n")
    with records_of(cluster) as found, cluster.worker("w1"):
        cluster.host.ok("dispatch", str(workflow), "--follow", cluster.operator, "--", f"KEY={canary}")
    assert {record.action for record in found} >= {"task.dispatched", "task.claimed", "run.ended"}
    assert canary not in json.dumps([[*record.details.items(), record.target, record.reason] for record in found])
