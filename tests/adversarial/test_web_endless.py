"""Requests that never end: heads, fields, trailers, bodies, and silence. Each costs a bounded time and memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from secure_dagu.assembly.web_protocol import MAX_HEAD, Protocol
from secure_dagu.web.walls import Outside
from tests.web.site import open_site, serving

GOOD = b"GET / HTTP/1.1\r\nhost: a\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
PATIENCE_S = 30


class Hasty(Protocol):
    """Has less patience than we have."""

    headers_s = 0.3


async def told(scope: Any, receive: Any, send: Any) -> None:
    """Read a body and say how long it was."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@contextlib.asynccontextmanager
async def served(protocol: type[Protocol]) -> AsyncIterator[int]:
    """Serve `told` and yield the port."""
    config = uvicorn.Config(told, host="127.0.0.1", port=0, http=protocol, log_config=None, lifespan="off")
    async with serving(uvicorn.Server(config)) as port:
        yield port


async def sent_until_cut(port: int, first: bytes, again: bytes, *, most: int) -> tuple[int, bytes]:
    """Send `again` until the server ends the connection; return how many bytes went out, and the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(first)
            while sent < most:
                writer.write(again)
                await writer.drain()
                sent += len(again)
                if reader.at_eof():
                    break
            return sent, await reader.read()
    except ConnectionError:
        return sent, b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"GET /", b"a" * 4096),
        (GOOD + b"x: ", b"a" * 4096),
        (GOOD, b"x: " + b"a" * 1000 + b"\r\n"),
        (GOOD, b"a: b\r\n" * 100),
        (POST + b"0\r\n", b"x: " + b"a" * 1000 + b"\r\n"),
        (POST + b"0\r\nx: ", b"a" * 4096),
        (POST + b"1;", b"a" * 4096),
    ],
    ids=["path", "value", "fields", "many fields", "trailers", "trailer", "chunk extension"],
)
async def test_what_gives_no_body_has_an_end(first: bytes, again: bytes) -> None:
    async with served(Protocol) as port:
        sent, _ = await sent_until_cut(port, first, again, most=64 * MAX_HEAD)
        assert sent < 64 * MAX_HEAD, "it took everything"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GOOD + b"connection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200"), "everybody else is served"
        writer.close()


async def test_a_head_that_is_too_long_is_told_so() -> None:
    async with served(Protocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GOOD + b"x: " + b"a" * (MAX_HEAD + 1))
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_a_body_is_no_head_however_large_and_a_head_below_the_limit_is_taken() -> None:
    async with served(Protocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        size = 4 * MAX_HEAD
        for _ in range(2):  # on the same connection
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * (MAX_HEAD // 2) + b"\r\n")
            writer.write(f"content-length: {size}\r\n\r\n".encode() + b"a" * size)
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                body = await reader.readuntil(str(size).encode())
            assert body.endswith(str(size).encode())
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
        writer.close()


@pytest.mark.parametrize("first", [b"", b"GET / HT", GOOD], ids=["nothing", "half a line", "half a head"])
async def test_who_says_nothing_is_not_waited_for(first: bytes) -> None:
    async with served(Hasty) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    outside = Outside(hosts=frozenset({"localhost"}), body_limit_s=0.3)
    async with open_site(tmp_path / "home", outside=outside) as site:
        host, _, port = site.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        writer.write(b'content-length: 100\r\n\r\n{"')
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        writer.close()
