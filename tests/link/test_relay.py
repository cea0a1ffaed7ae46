"""Bytes through listener and dialer: whole, both ways, with back-pressure and half-close."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

from secure_dagu.link import relay
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from tests.link.conftest import SETTINGS, Edge, open_dialer, open_edge, through


async def test_bytes_come_back_whole_through_both_ends(edge: Edge, good_client: ClientPolicy, folder: Path) -> None:
    data = os.urandom(8 << 20)
    async with asyncio.timeout(60), open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        assert await reader.readexactly(9) == SETTINGS
        async with asyncio.TaskGroup() as group:
            back = group.create_task(reader.readexactly(len(data)))
            writer.write(data)
            await writer.drain()
        assert hashlib.sha256(back.result()).digest() == hashlib.sha256(data).digest()
        assert dialer.connected == 1
        assert dialer.peer is not None
        assert str(dialer.peer.identity) == "coordinator/main"
        (peer,) = edge.register.peers()
        assert str(peer.identity) == "worker/w1"
        assert peer.tls_version == "TLSv1.3"
        assert peer.group == "X25519MLKEM768"
        assert peer.not_after is not None
        assert edge.register.peer_of(peer.connection) is peer
        writer.close()
        await edge.until("closed")
    assert len(edge.register) == 0
    assert dialer.connected == 0


async def test_the_end_of_one_direction_lets_the_other_finish(
    edge: Edge, good_client: ClientPolicy, folder: Path
) -> None:
    async with asyncio.timeout(60), open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == SETTINGS + b"last words"
        writer.close()
        await edge.until("closed")


async def test_a_reader_that_stops_makes_the_writer_wait(edge: Edge, good_client: ClientPolicy, folder: Path) -> None:
    """Otherwise one slow peer would grow our memory without bound."""
    most = 4 * relay.HIGH + (4 << 20) + _held_by_the_kernel()
    async with asyncio.timeout(100), open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        writer.transport.set_write_buffer_limits(high=1 << 16)
        sent = 0
        while sent <= most and not await _is_stuck(writer):
            writer.write(bytes(1 << 18))
            sent += 1 << 18
        assert sent <= most
        got = await reader.readexactly(sent)  # and everything flows again
        assert len(got) == sent
        writer.transport.abort()


def _held_by_the_kernel() -> int:
    """Return how much may wait in its buffers on the way to the echo and back, which differs a lot between hosts."""
    tcp, local = Path("/proc/sys/net/ipv4"), Path("/proc/sys/net/core")
    one_link = sum(int((tcp / name).read_text().split()[-1]) for name in ("tcp_wmem", "tcp_rmem"))
    return 2 * one_link + 4 * int((local / "wmem_default").read_text())


async def _is_stuck(writer: asyncio.StreamWriter) -> bool:
    """Wait until more may be written, or nothing has moved for a second."""
    before = -1
    while (waiting := writer.transport.get_write_buffer_size()) != before:
        before = waiting
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()
                return False
    return True


async def test_cutting_a_peer_ends_its_links_only(edge: Edge, good_client: ClientPolicy, folder: Path) -> None:
    async with asyncio.timeout(60), open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        first = await through(dialer)
        assert await first[0].readexactly(9) == SETTINGS
        second = await through(dialer)
        assert await second[0].readexactly(9) == SETTINGS
        oldest = next(edge.register.peers())
        assert edge.register.cut(lambda peer: peer is oldest) == 1
        assert await first[0].read() == b""
        second[1].write(b"still here")
        assert await second[0].readexactly(10) == b"still here"
        for _, writer in (first, second):
            writer.close()
        await edge.until("closed", 2)


async def test_plaintext_by_its_name_goes_through_the_same_door(folder: Path) -> None:
    async with (
        asyncio.timeout(60),
        open_edge(UnsafePlaintext(), folder) as edge,
        open_dialer(UnsafePlaintext(), "127.0.0.1", edge.port, folder) as dialer,
    ):
        reader, writer = await through(dialer)
        writer.write(b"PRI * HTTP/2.0\r\n\r\n")
        assert await reader.readexactly(27) == SETTINGS + b"PRI * HTTP/2.0\r\n\r\n"
        (peer,) = edge.register.peers()
        assert not peer.is_proven
        assert peer.tls_version == "none"
        assert dialer.explain() is None
        assert dialer.attempts["ok"] == 1
        writer.close()
        await edge.until("closed")


async def test_a_swapped_policy_is_used_by_the_next_connection(
    edge: Edge, good_client: ClientPolicy, folder: Path
) -> None:
    async with asyncio.timeout(60), open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        assert await reader.readexactly(9) == SETTINGS
        edge.listener.policy = UnsafePlaintext()
        writer.write(b"old links go on")
        assert await reader.readexactly(15) == b"old links go on"
        refused, other = await through(dialer)
        assert await refused.read() == b""
        error = dialer.explain()
        assert error is not None
        assert error.verdict.reason == "plaintext_server"
        writer.close()
        other.close()


async def test_an_unknown_connection_name_finds_nobody(edge: Edge) -> None:
    assert edge.register.peer_of("unix:") is None
    assert edge.register.peer_of(f"unix:{edge.folder}/0123") is None
