"""A real grpc.aio server and channel through listener and dialer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from secure_dagu.link.context import ClientPolicy, ServerPolicy, UnsafePlaintext
from secure_dagu.link.listener import listen
from secure_dagu.link.register import Register
from tests.link.certs import Ca
from tests.link.conftest import open_dialer

CHUNK = 64 << 10


@contextlib.asynccontextmanager
async def grpc_edge(policy: ServerPolicy | UnsafePlaintext, folder: Path) -> AsyncIterator[tuple[int, Register]]:
    """Serve `Who` (the caller by the register) and `Sink` (count a stream) behind an edge."""
    register = Register()

    async def name_caller(request: bytes, call: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        peer = register.peer_of(call.peer())
        return str(peer).encode() if peer is not None else b"nobody"

    async def sink(requests: AsyncIterator[bytes], call: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        size = 0
        async for chunk in requests:
            size += len(chunk)
        return str(size).encode()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "test.Echo",
                {
                    "Who": grpc.unary_unary_rpc_method_handler(name_caller),
                    "Sink": grpc.stream_unary_rpc_method_handler(sink),
                },
            ),
        )
    )
    backend = str(folder / "backend")
    server.add_insecure_port(f"unix:{backend}")
    await server.start()
    try:
        async with listen(
            bind=[("127.0.0.1", 0)], policy=policy, backends=[backend], directory=folder, register=register
        ) as listener:
            yield listener.addresses[0][1], register
    finally:
        await server.stop(None)


def channel(target: str, authority: str) -> grpc.aio.Channel:
    """Dial as `wire.client` does."""
    return grpc.aio.insecure_channel(
        target, options=[("grpc.default_authority", authority), ("grpc.enable_retries", 0)]
    )


async def who(open_channel: grpc.aio.Channel) -> bytes:
    """Ask the server whom it sees."""
    ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = open_channel.unary_unary("/test.Echo/Who")
    return await ask(b"", timeout=5)


async def chunks(count: int) -> AsyncIterator[bytes]:
    """Yield `count` chunks of 64 KiB."""
    data = bytes(CHUNK)
    for _ in range(count):
        yield data


async def test_calls_and_a_large_upload_go_through_in_the_proven_callers_name(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    async with (
        asyncio.timeout(60),
        grpc_edge(good_server, folder) as (port, register),
        open_dialer(good_client, "localhost", port, folder) as dialer,
        channel(dialer.target, dialer.authority) as open_channel,
    ):
        assert (await who(open_channel)).startswith(b"worker/w1 at 127.0.0.1:")
        sink: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = open_channel.stream_unary("/test.Echo/Sink")
        assert await sink(chunks(1024), timeout=50) == str(64 << 20).encode()
        assert len(register) == 1


async def test_a_call_round_the_front_finds_nobody(good_server: ServerPolicy, folder: Path) -> None:
    """Whoever reaches the private socket without the listener is in no register, and the wall refuses it."""
    async with (
        asyncio.timeout(60),
        grpc_edge(good_server, folder),
        channel(f"unix:{folder}/backend", "localhost") as open_channel,
    ):
        assert await who(open_channel) == b"nobody"


async def test_plaintext_calls_come_from_an_unproven_peer(folder: Path) -> None:
    async with (
        asyncio.timeout(60),
        grpc_edge(UnsafePlaintext(), folder) as (port, _),
        open_dialer(UnsafePlaintext(), "localhost", port, folder) as dialer,
        channel(dialer.target, dialer.authority) as open_channel,
    ):
        assert (await who(open_channel)).startswith(b"unproven at 127.0.0.1:")


async def test_a_failed_call_can_be_explained(good_server: ServerPolicy, folder: Path) -> None:
    """gRPC says `Socket closed`; the dialer knows why before the call has failed."""
    async with (
        asyncio.timeout(60),
        grpc_edge(good_server, folder) as (port, _),
        open_dialer(UnsafePlaintext(), "localhost", port, folder) as dialer,
        channel(dialer.target, dialer.authority) as open_channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await who(open_channel)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        error = dialer.explain()
        assert error is not None
        assert error.verdict.reason == "plaintext_client"
        assert not error.verdict.waits


async def test_stock_grpc_tls_clients_work_with_the_edge(
    good_server: ServerPolicy, good_client: ClientPolicy, our_ca: Ca, folder: Path
) -> None:
    """It is plain gRPC over TLS on the wire."""
    pair = our_ca.worker("stock")
    credentials = grpc.ssl_channel_credentials(our_ca.file.read_bytes(), pair.key.read_bytes(), pair.cert.read_bytes())
    async with (
        asyncio.timeout(60),
        grpc_edge(good_server, folder) as (port, _),
        grpc.aio.secure_channel(f"localhost:{port}", credentials) as open_channel,
    ):
        answer = await who(open_channel)
        assert answer.startswith(b"worker/stock at ")
