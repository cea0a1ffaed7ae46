"""The health port answers two questions and puts up with everything else."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from secure_dagu.errors import ConfigError, Unavailable
from secure_dagu.telemetry import health, metrics

FACTS: dict[str, Any] = {"status": "healthy", "peer": "mtls"}


@asynccontextmanager
async def port(
    *, port: int = 0, timeout_s: float = health.TIMEOUT_S, **changes: Any
) -> AsyncIterator[health.HealthPort]:
    site: dict[str, Any] = {
        "facts": lambda: FACTS, "exposition": lambda accept: metrics.exposition(accept, metrics.COMMON),
        "guard": health.anybody, **changes,
    }  # fmt: skip
    serving = health.serve(
        health.Site(**site), host="127.0.0.1", port=port, key="coordinator.health_port", timeout_s=timeout_s
    )
    async with asyncio.timeout(60), serving as opened:
        yield opened


async def say(at: health.HealthPort, request: bytes) -> bytes:
    """Send bytes, return everything until the other end closes."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_health_tells_the_facts() -> None:
    async with port() as at:
        answer = await say(at, get("/health?probe=1"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"cache-control: no-store" in answer
    assert json.loads(body(answer)) == {**FACTS, "ready": True}
    assert body(answer).startswith(b'{"status":"healthy"'), "probes look for these bytes"


async def test_who_cannot_work_is_alive_but_not_ready_and_says_why() -> None:
    """Or an orchestrator would restart every worker, and end its runs, when the coordinator is away."""
    away = Unavailable("cannot reach the coordinator", why="nothing listens on that port", fix="start it")
    async with port(objections=lambda: [away]) as at:
        alive, ready = await say(at, get("/health")), await say(at, get("/ready"))
    assert alive.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body(alive))["ready"] is False
    assert ready.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body(ready)) == {"ready": False, "because": [away.as_dict()]}
    async with port() as at:
        assert (await say(at, get("/ready"))).startswith(b"HTTP/1.1 200 ")


async def test_metrics_are_negotiated_by_accept() -> None:
    async with port() as at:
        plain = await say(at, get("/metrics"))
        open_metrics = await say(at, get("/metrics", "Accept: application/openmetrics-text; version=1.0.0"))
    assert b"process_resident_memory_bytes" in plain
    assert b"content-type: text/plain; version=0.0.4" in plain
    assert b"content-type: application/openmetrics-text" in open_metrics


async def test_private_metrics_stay_shut_or_ask_for_a_token() -> None:
    async with port(guard=health.nobody) as at:
        assert (await say(at, get("/metrics"))).startswith(b"HTTP/1.1 403 ")
    async with port(guard=health.bearer(b"canary")) as at:
        assert (await say(at, get("/metrics"))).startswith(b"HTTP/1.1 401 ")
        assert (await say(at, get("/metrics", "Authorization: Bearer no"))).startswith(b"HTTP/1.1 401 ")
        assert (await say(at, get("/metrics", "Authorization: bearer canary"))).startswith(b"HTTP/1.1 200 ")
        assert (await say(at, get("/health"))).startswith(b"HTTP/1.1 200 ")


async def test_head_has_no_body_and_others_are_refused() -> None:
    async with port() as at:
        head = await say(at, get("/health", method="HEAD"))
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body(head) == b""
        assert (await say(at, get("/health", method="POST"))).startswith(b"HTTP/1.1 405 ")
        assert (await say(at, get("/../etc/passwd"))).startswith(b"HTTP/1.1 404 ")


async def test_several_requests_use_one_connection() -> None:
    async with port() as at:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await say(at, request + request + get("/health"))
    assert answer.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9,
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000,
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"\x00" * 100,
    ],
    ids=["tls", "grpc", "endless header", "body", "zeros"],
)
async def test_a_client_that_speaks_something_else_is_closed_at_once(junk: bytes) -> None:
    async with port(timeout_s=3600) as at:
        assert not (await say(at, junk)).startswith(b"HTTP/1.1 200")
        assert (await say(at, get("/health"))).startswith(b"HTTP/1.1 200 ")


async def test_a_silent_or_slow_client_is_closed_in_time() -> None:
    async with port(timeout_s=0.2) as at:
        reader, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(b"GET /health HT")
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_crowd_beyond_the_limit_is_turned_away_and_leaves_no_trace() -> None:
    async with port() as at:
        held = [await asyncio.open_connection(at.host, at.port) for _ in range(health.MAX_CONNECTIONS)]
        for reader, writer in held:  # an answer proves that the connection is counted
            writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"/metrics\n")
        reader, writer = await asyncio.open_connection(at.host, at.port)
        assert await until_closed(reader) == b""
        writer.close()
        for _, one in held:
            one.close()
            await one.wait_closed()
        while True:  # the server hears of the closes one by one
            try:
                assert (await say(at, get("/health"))).startswith(b"HTTP/1.1 200 ")
                break
            except (ConnectionResetError, AssertionError):
                await asyncio.sleep(0)


async def test_a_port_in_use_names_the_port_and_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{number}") as caught:
            async with port(port=number):
                pass
    assert "coordinator.health_port" in caught.value.fix
