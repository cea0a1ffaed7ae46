"""The wall between network and gRPC port under abuse, with good traffic beside it (threats T06, T15, T16)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.link.context import ClientPolicy, ServerPolicy, UnsafePlaintext
from secure_dagu.security.tls_signs import from_error, from_first_bytes, from_verify_code, told_in
from secure_dagu.security.verdict import FAULTS, Reason, Side
from tests.link.certs import DAY, Ca, uri
from tests.link.conftest import SETTINGS, client_of, open_dialer, open_edge, through
from tests.link.conftest import folder as folder
from tests.link.conftest import good_client as good_client
from tests.link.conftest import good_server as good_server
from tests.link.conftest import other_ca as other_ca
from tests.link.conftest import our_ca as our_ca
from tests.link.conftest import settled as settled
from tests.link.test_faults import faulty_client, raw_context


def descriptors() -> int:
    """Count this process's open descriptors."""
    return len(os.listdir("/proc/self/fd"))


async def send(port: int, data: bytes, *, reset: bool = False) -> None:
    """Connect, say something, and leave: politely after the answer, or with a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()


async def test_faults_are_counted_exactly_and_good_traffic_does_not_notice(
    good_server: ServerPolicy, good_client: ClientPolicy, our_ca: Ca, other_ca: Ca, folder: Path
) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    stranger = faulty_client(good_client, raw_context(other_ca.worker(), our_ca))
    nobody = faulty_client(good_client, raw_context(None, our_ca))
    expired = our_ca.issue([uri("worker", "old")], begins=-2 * DAY, ends=-DAY)
    late = faulty_client(good_client, raw_context(expired, our_ca))
    faults: list[tuple[Reason, Callable[[int], Awaitable[object]]]] = [
        (Reason.HTTP_CLIENT, lambda port: send(port, b"GET / HTTP/1.1\r\n\r\n")),
        (Reason.PLAINTEXT_CLIENT, lambda port: send(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        (Reason.PLAINTEXT_CLIENT, lambda port: send(port, (b"\x01" + os.urandom(2)) * 200)),
        (Reason.TRUNCATED, lambda port: send(port, hello)),
        (Reason.TRUNCATED, lambda port: send(port, hello[:3], reset=True)),
        (Reason.PEER_CLOSED, lambda port: send(port, b"")),
    ]

    async def dial(policy: ClientPolicy, port: int) -> None:
        async with open_dialer(policy, "localhost", port, folder) as dialer:
            reader, writer = await through(dialer)
            assert await reader.read() == b""
            writer.close()

    faults += [
        (Reason.UNTRUSTED_CA, lambda port: dial(stranger, port)),
        (Reason.NO_CLIENT_CERT, lambda port: dial(nobody, port)),
        (Reason.CERT_EXPIRED, lambda port: dial(late, port)),
    ]
    mix = random.Random(7)
    injected: Counter[Reason] = Counter()
    good_calls = 0

    async def keep_calling(port: int, done: asyncio.Event) -> None:
        nonlocal good_calls
        async with open_dialer(good_client, "localhost", port, folder) as dialer:
            reader, writer = await through(dialer)
            assert await reader.readexactly(9) == SETTINGS
            while not done.is_set():
                data = os.urandom(2000)
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
                good_calls += 1
                await asyncio.sleep(0)
            assert dialer.attempts == {"ok": 1}
            writer.close()

    async def abuse(port: int) -> None:
        for _ in range(40):
            reason, inject = mix.choice(faults)
            injected[reason] += 1
            await inject(port)

    before = descriptors()
    async with asyncio.timeout(60), open_edge(good_server, folder) as edge:
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_calling(edge.port, done))
            async with asyncio.TaskGroup() as attackers:
                for _ in range(5):
                    attackers.create_task(abuse(edge.port))
            await edge.until("refused", injected.total())
            done.set()
        await edge.idle()
        assert edge.register.refused == injected
        assert edge.register.opened == 1
        assert len(edge.register) == 0
        assert edge.listener.handshakes == 0
        assert good_calls > 20
    gc.collect()
    assert descriptors() <= before
    assert set(os.listdir(folder)) <= {"backend"}


async def test_a_flood_of_silent_connections_leaves_room_for_workers(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-open handshakes do not delay a proven peer meanwhile."""
    monkeypatch.setattr("secure_dagu.link.handshake.HANDSHAKE_LIMIT_S", 3600.0)  # a setting of time, not a rule
    async with asyncio.timeout(60), open_edge(good_server, folder) as edge:
        silent = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(150)]
        async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
            peer = await dialer.check()
            assert peer.is_proven
        assert edge.listener.handshakes >= 150, "it did not wait for any of them"
        for _, writer in silent:
            writer.close()
        await edge.idle()
        assert edge.register.refused[Reason.PEER_CLOSED] >= 150


async def test_garbage_inside_an_open_link_ends_that_link_only(
    good_server: ServerPolicy, our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    async with asyncio.timeout(60), open_edge(good_server, folder) as edge:
        async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
            reader, writer = await through(dialer)
            assert await reader.readexactly(9) == SETTINGS

            async def forward(inner: asyncio.StreamReader, outer: asyncio.StreamWriter) -> None:
                up, out = await asyncio.open_connection("127.0.0.1", edge.port)
                async with asyncio.TaskGroup() as group:

                    async def back() -> None:
                        while data := await up.read(1 << 16):
                            outer.write(data)
                        outer.close()

                    group.create_task(back())
                    seen = 0
                    while data := await inner.read(1 << 16):
                        seen += 1
                        # The third message is the first one after the handshake: spoil its last byte.
                        out.write(data if seen < 3 else data[:-1] + bytes([data[-1] ^ 1]))
                    out.close()

            middle = await asyncio.start_server(forward, "127.0.0.1", 0)
            async with middle:
                port = middle.sockets[0].getsockname()[1]
                async with open_dialer(client_of(our_ca.worker("w2"), our_ca), "localhost", port, folder) as spoiled:
                    broken, pen = await through(spoiled)
                    assert await broken.readexactly(9) == SETTINGS
                    pen.write(b"a call")
                    assert await broken.read() == b""
                    pen.close()
                    await edge.until("closed")
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            writer.close()
        await edge.idle()


async def test_a_client_hello_on_a_plaintext_port_never_reaches_grpc(folder: Path) -> None:
    async with asyncio.timeout(60), open_edge(UnsafePlaintext(), folder) as edge:
        await send(edge.port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert edge.register.opened == 0
        assert edge.register.refused == {Reason.PLAINTEXT_SERVER: 1}


@given(st.sampled_from(list(Side)), st.text(max_size=40), st.binary(max_size=40), st.integers(0, 200))
def test_whatever_the_library_says_has_a_reason_with_words(side: Side, word: str, first: bytes, code: int) -> None:
    """A reason without words on its side would fail while reporting a failure."""
    for said in (word, f"tlsv1 alert {word}", "wrong version number"):
        assert FAULTS[from_error(side, said, first)].words(side)
    if code:
        assert FAULTS[from_verify_code(side, code)].words(side)
    found = from_first_bytes(first)
    assert found is None or FAULTS[found].words(Side.CLIENT)
    told = told_in(first)
    assert told is None or FAULTS[told].words(Side.CLIENT)
