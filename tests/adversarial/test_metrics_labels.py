"""Threat T23: ten thousand invented names against a real coordinator do not grow its scrape, nor show up in it."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from prometheus_client import parser

from secure_dagu.link import context, private
from secure_dagu.telemetry.live import MAX_WORKERS
from secure_dagu.wire.pb import coordinator_pb2
from tests.link.conftest import open_dialer
from tests.system.conftest import Cluster

CANARY = "canary-5d1e7a"
SERVICE = "/coordinator.v1.CoordinatorService"
ACCEPTED, CLAIMS, METHODS = 8_000, 1_000, 1_000
AT_ONCE = 200
PER_WORKER = 13
"""Series of one worker without labels: heartbeat counter and moment, health, slots, pollers, tasks, age."""


def scrape(port: int) -> tuple[str, dict[str, int]]:
    """Return the text of a scrape and how many series each family has; a text that does not parse is an error."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return text, {family.name: len(family.samples) for family in parser.text_string_to_metric_families(text)}


async def all_of(calls: Iterable[Awaitable[Any]]) -> list[grpc.StatusCode]:
    """Await calls, a few at once; return how each ended."""
    codes: list[grpc.StatusCode] = []
    waiting = iter(calls)

    async def some() -> None:
        for call in waiting:
            try:
                await call
                codes.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())
    return codes


async def attack(pki: Path, port: int) -> None:
    policy = context.client_policy(cert=pki / "w1.crt", key=pki / "w1.key", ca=pki / "ca.crt")
    with private.folder() as folder:
        async with (
            open_dialer(policy, "localhost", port, folder) as dialer,
            grpc.aio.insecure_channel(
                dialer.target, options=[("grpc.default_authority", dialer.authority), ("grpc.enable_retries", 0)]
            ) as channel,
        ):
            heartbeat: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/Heartbeat")

            def unknown(number: int) -> Awaitable[Any]:
                method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    f"{SERVICE}/{CANARY}{number}"
                )
                return method(b"", timeout=30)

            def beat(worker_id: str, **labels: str) -> Awaitable[Any]:
                message = coordinator_pb2.HeartbeatRequest(worker_id=worker_id, labels=labels)
                return heartbeat(message.SerializeToString(), timeout=30)

            # What a stolen worker certificate can do: any number of ids of its own name …
            odd = '"} 1\nfake{x="'
            codes = await all_of(beat(f"w1@evil-{n}{odd if n % 4 == 0 else ''}") for n in range(ACCEPTED))
            assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
            assert codes.count(grpc.StatusCode.OK) > 2 * MAX_WORKERS
            # … ids of others, labels that nobody granted, and methods that do not exist.
            codes = await all_of(beat(f"{CANARY}-{n}") for n in range(CLAIMS // 2))
            codes += await all_of(beat("w1", **{f"{CANARY}-{n}": CANARY}) for n in range(CLAIMS // 2))
            assert set(codes) == {grpc.StatusCode.PERMISSION_DENIED}
            codes = await all_of(unknown(n) for n in range(METHODS))
            assert set(codes) == {grpc.StatusCode.UNIMPLEMENTED}


def test_ten_thousand_names_of_one_certificate_stay_within_the_bound(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    pki = cluster.worker_host("w1").home / "pki"
    with cluster.coordinator():
        _, before = scrape(cluster.health_port)
        asyncio.run(attack(pki, cluster.port))
        text, after = scrape(cluster.health_port)
    assert sum(after.values()) - sum(before.values()) < PER_WORKER * (MAX_WORKERS + 1) + 100
    assert after["secure_dagu_worker_heartbeats_received"] == MAX_WORKERS + 1
    assert CANARY not in text
    assert 'grpc_method="_other",reason="role_not_allowed"' in text
    assert 'secure_dagu_metric_label_overflow_total{metric="secure_dagu_worker_heartbeats_received_total"}' in text
    assert "evil" not in text.replace('worker_id="w1@evil', "")
