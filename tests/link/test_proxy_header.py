"""PROXY protocol: the true source of forwarded connections, from listed forwarders and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.link.context import ClientPolicy, ServerPolicy, UnsafePlaintext
from secure_dagu.link.proxy_header import Network, is_listed
from secure_dagu.security.tls_signs import PROXY_HEADER
from secure_dagu.security.verdict import Reason
from tests.link.conftest import Edge, open_dialer, open_edge, through

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]


def header(source: str, port: int, *, command: int = 0x21, extra: bytes = b"") -> bytes:
    """Write a header of version 2 as a forwarder does."""
    address = ipaddress.ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    rest = address.packed * 2 + struct.pack("!HH", port, 50055) + extra
    return PROXY_HEADER + struct.pack("!BBH", command, family, len(rest)) + rest


@contextlib.asynccontextmanager
async def forwarder(to: int, first: bytes) -> AsyncIterator[int]:
    """Forward TCP and say `first` before the client's bytes."""
    async with contextlib.AsyncExitStack() as stack:

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner, outer = await asyncio.open_connection("127.0.0.1", to)
            outer.write(first)
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(reader, outer))
                group.create_task(pump(inner, writer))

        server = await stack.enter_async_context(await asyncio.start_server(carry, "127.0.0.1", 0))
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("source", ["203.0.113.7", "2001:db8::7"])
async def test_the_true_source_is_what_is_recorded(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path, source: str
) -> None:
    first = header(source, 4711, extra=b"\x04\x00\x01x")
    async with (
        open_edge(good_server, folder, forwarders=LOOPBACK) as edge,
        forwarder(edge.port, first) as port,
        open_dialer(good_client, "localhost", port, folder) as dialer,
    ):
        reader, writer = await through(dialer)
        opened = await edge.until("opened")
        assert opened.address == (f"[{source}]:4711" if ":" in source else f"{source}:4711")
        writer.write(b"hello")
        assert (await reader.readexactly(9 + 5)).endswith(b"hello")
        writer.close()


async def test_a_health_check_of_the_forwarder_itself_counts_as_the_forwarder(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    local = PROXY_HEADER + struct.pack("!BBH", 0x20, 0, 0)
    async with (
        open_edge(good_server, folder, forwarders=LOOPBACK) as edge,
        forwarder(edge.port, local) as port,
        open_dialer(good_client, "localhost", port, folder) as dialer,
    ):
        _, writer = await through(dialer)
        assert (await edge.until("opened")).address.startswith("127.0.0.1:")
        writer.close()


BAD = {
    "none at all": b"",
    "version 1": b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 50055\r\n",
    "another command": header("203.0.113.7", 1, command=0x2F),
    "too long": PROXY_HEADER + struct.pack("!BBH", 0x21, 0x11, 60_000) + bytes(60_000),
    "cut short": PROXY_HEADER + struct.pack("!BBH", 0x21, 0x21, 4) + bytes(4),
}


@pytest.mark.parametrize("first", BAD.values(), ids=BAD)
async def test_a_listed_forwarder_that_does_not_say_it_is_refused(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path, first: bytes
) -> None:
    async with (
        open_edge(good_server, folder, forwarders=LOOPBACK) as edge,
        forwarder(edge.port, first) as port,
        open_dialer(good_client, "localhost", port, folder) as dialer,
    ):
        _, writer = await through(dialer)
        event = await edge.until("refused")
        writer.close()
    assert event.verdict is not None
    assert event.verdict.reason is Reason.PROXY_HEADER
    assert "203.0.113" not in event.address


@pytest.mark.parametrize("policy", ["tls", "plaintext"])
async def test_nobody_else_may_say_where_it_comes_from(good_server: ServerPolicy, folder: Path, policy: str) -> None:
    used = good_server if policy == "tls" else UnsafePlaintext()
    listed: list[Network] = [ipaddress.ip_network("192.0.2.0/24")]
    async with open_edge(used, folder, forwarders=listed) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(header("203.0.113.7", 4711))
        assert b"hello" not in await _read(reader)
        writer.close()
        assert "203.0.113" not in str(edge.events)
        if policy == "tls":
            event = await edge.until("refused")
            assert event.verdict is not None
            assert event.verdict.reason is Reason.PROXY_HEADER


async def _read(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(0.5):
            return await reader.read(100)
    return b""


async def test_a_forwarder_that_says_nothing_holds_no_place_for_ever(
    good_server: ServerPolicy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secure_dagu.link.proxy_header.LIMIT_S", 0.1)  # the deadline is a setting of time, not a rule
    async with open_edge(good_server, folder, forwarders=LOOPBACK) as edge:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        event = await edge.until("refused")
        assert event.verdict is not None
        assert "in time" in event.verdict.detail
        await _gone(edge)
        writer.close()


async def _gone(edge: Edge) -> None:
    await edge.idle()
    assert edge.listener.handshakes == 0


@given(st.ip_addresses(v=4), st.integers(8, 32))
def test_an_address_is_listed_when_a_network_has_it_mapped_or_not(address: ipaddress.IPv4Address, prefix: int) -> None:
    networks = [ipaddress.ip_network(f"{address}/{prefix}", strict=False)]
    assert is_listed(str(address), networks)
    assert is_listed(f"::ffff:{address}", networks)
    assert not is_listed("not an address", networks)
    assert not is_listed(str(address), [])
