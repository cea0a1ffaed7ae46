"""The way out through an HTTP proxy: the same mutual TLS inside, and an answer for each way in which it fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from secure_dagu.errors import SecureDaguError
from secure_dagu.link import proxying
from secure_dagu.link.context import ClientPolicy, server_policy
from secure_dagu.link.proxying import Proxy, parse
from secure_dagu.security.verdict import LinkError, Reason
from tests.link.certs import Ca
from tests.link.conftest import client_of, open_dialer, open_edge, through

NAME = "coordinator.example.com"


@contextlib.asynccontextmanager
async def proxy_to(
    port: int, *, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
) -> AsyncIterator[Asked]:
    """Run an HTTP proxy that knows one coordinator, and keeps what it was asked."""
    asked = Asked()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)
        if b" 200 " not in answer:
            writer.close()
            return
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, outer))
            group.create_task(pump(inner, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        asked.port = server.sockets[0].getsockname()[1]
        yield asked


class Asked:
    """What a proxy was asked."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.port = 0


async def test_the_coordinator_is_proven_through_the_proxy_and_the_password_reaches_only_it(
    our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    pair = our_ca.coordinator(NAME)
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file)
    async with open_edge(policy, folder) as edge, proxy_to(edge.port) as asked:
        proxy = parse(f"http://ada:p%40ss@127.0.0.1:{asked.port}", ())
        assert "p@ss" not in repr(proxy)
        async with open_dialer(good_client, NAME, 50055, folder, proxy) as dialer:
            reader, writer = await through(dialer)
            opened = await edge.until("opened")
            assert opened.peer is not None
            assert str(opened.peer.identity).endswith("worker/w1")
            writer.write(b"hello")
            assert b"hello" in await reader.readexactly(9 + 5)
            writer.close()
    assert asked.heads[0].startswith(f"CONNECT {NAME}:50055 HTTP/1.1\r\nHost: {NAME}:50055\r\n")
    assert "Proxy-Authorization: Basic " + base64.b64encode(b"ada:p@ss").decode() in asked.heads[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "it answered 407 Proxy Authentication Required"),
        (b"HTTP/1.1 403 \x1b[31mno\r\n\r\n", "it answered 403 [31mno"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP proxy"),
        (b"", "no HTTP proxy"),
    ],
)
async def test_a_proxy_that_opens_no_way_is_named_with_its_words(
    good_client: ClientPolicy, folder: Path, answer: bytes, said: str
) -> None:
    async with proxy_to(0, answer=answer) as asked:
        error = await _refused(good_client, parse(f"127.0.0.1:{asked.port}", ()), folder)
    assert error.verdict.reason is Reason.PROXY_REFUSED
    assert said in str(error.as_dict())
    assert f"127.0.0.1:{asked.port}" in str(error.as_dict())


async def test_a_proxy_that_is_not_there_is_told_from_a_coordinator_that_is_not(
    good_client: ClientPolicy, folder: Path
) -> None:
    async with proxy_to(0) as asked:
        port = asked.port
    error = await _refused(good_client, parse(f"127.0.0.1:{port}", ()), folder)
    assert error.verdict.reason is Reason.PROXY_REFUSED
    assert "cannot be reached: refused" in str(error.as_dict())


async def test_a_proxy_that_opens_tls_itself_is_named_as_such(
    our_ca: Ca, other_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    pair = other_ca.coordinator(NAME)
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file)
    async with open_edge(policy, folder) as edge, proxy_to(edge.port) as asked:
        error = await _refused(client_of(our_ca.worker(), our_ca), parse(f"127.0.0.1:{asked.port}", ()), folder)
    assert error.verdict.reason is Reason.UNTRUSTED_SERVER
    assert "seems to open TLS itself" in str(error.as_dict())


async def _refused(policy: ClientPolicy, proxy: Proxy, folder: Path) -> LinkError:
    async with open_dialer(policy, NAME, 50055, folder, proxy) as dialer:
        with pytest.raises(SecureDaguError) as caught:
            await dialer.check()
    assert isinstance(caught.value, LinkError)
    return caught.value


@pytest.mark.parametrize(
    ("patterns", "host", "served"),
    [
        ((), "coordinator.example.com", True),
        ((), "localhost", False),
        ((), "127.0.0.7", False),
        ((), "::1", False),
        (("example.com",), "coordinator.example.com", False),
        ((".example.com",), "coordinator.example.com", False),
        (("*.example.com",), "COORDINATOR.example.com.", False),
        (("ample.com",), "coordinator.example.com", True),
        (("coordinator.example.com:50055",), "coordinator.example.com", False),
        (("coordinator.example.com:443",), "coordinator.example.com", True),
        (("10.0.0.0/8",), "10.1.2.3", False),
        (("10.0.0.0/8",), "11.1.2.3", True),
        (("fd00::/8",), "fd00::1", False),
        (("10.1.2.3",), "10.1.2.3", False),
        (("*",), "coordinator.example.com", False),
        (("", " ", "."), "coordinator.example.com", True),
    ],
)
def test_no_proxy_is_read_as_elsewhere(patterns: tuple[str, ...], host: str, served: bool) -> None:
    assert parse("http://proxy:3128", patterns).serves(host, 50055) is served


@pytest.mark.parametrize("url", ["https://proxy:1", "socks5://proxy:1", "http://", "http://proxy:99999", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT") as caught:
        parse(url.replace("://", "://u:secret@") if url != "http://" else url, ())
    assert "secret" not in str(caught.value)
    assert proxying.LIMIT_S > 0
