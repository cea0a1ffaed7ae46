"""The accept loop: one owner of the port, limits before TLS, sessions that cannot be resumed, both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest
import uvloop

from secure_dagu.errors import ConfigError
from secure_dagu.link import private
from secure_dagu.link.context import ClientPolicy, ServerPolicy, UnsafePlaintext
from secure_dagu.link.listener import Limits, listen
from secure_dagu.link.register import Register
from secure_dagu.security.verdict import Reason
from tests import needs
from tests.link.certs import Ca
from tests.link.conftest import SETTINGS, Edge, open_dialer, open_edge, through


async def test_a_second_listener_on_the_port_is_refused_by_name(edge: Edge, good_server: ServerPolicy) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{edge.port}: Address already in use") as refused:
        async with listen(
            bind=[("127.0.0.1", edge.port)],
            policy=good_server,
            backends=["nowhere"],
            directory=edge.folder,
            register=Register(),
        ):
            pass
    assert f"another process listens on port {edge.port}" in refused.value.fix


@pytest.mark.parametrize(("host", "words"), [("192.0.2.1", "this host does not have"), ("no.invalid", "correct")])
async def test_an_address_that_is_not_ours_is_refused_by_name(
    host: str, words: str, good_server: ServerPolicy, folder: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot listen on") as refused:
        async with listen(
            bind=[(host, 0)], policy=good_server, backends=["nowhere"], directory=folder, register=Register()
        ):
            pass
    assert words in refused.value.fix


async def test_links_take_turns_among_the_backends(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    greetings = [bytes([number]) * len(SETTINGS) for number in range(3)]
    async with contextlib.AsyncExitStack() as stack:

        async def backend(greeting: bytes) -> str:
            async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(greeting)
                writer.close()

            path = f"{folder}/{greeting[0]}"
            await stack.enter_async_context(await asyncio.start_unix_server(greet, path))
            return path

        listener = await stack.enter_async_context(
            listen(
                bind=[("127.0.0.1", 0)],
                policy=good_server,
                backends=[await backend(greeting) for greeting in greetings],
                directory=folder,
                register=Register(),
            )
        )
        heard = []
        for _ in range(6):
            async with open_dialer(good_client, "localhost", listener.addresses[0][1], folder) as dialer:
                reader, writer = await through(dialer)
                heard.append(await reader.read())
                writer.close()
    assert heard == [*greetings, *greetings]


async def test_connections_beyond_a_limit_are_closed_before_tls(good_server: ServerPolicy, folder: Path) -> None:
    async with open_edge(good_server, folder, Limits(connections=3, per_address=2, handshakes=10)) as edge:
        held = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        assert await reader.read() == b""
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.OVER_LIMIT
        assert event.verdict.detail == "limit: 2 connections from 127.0.0.1"
        for _, other in [*held, (reader, writer)]:
            other.close()
        await edge.until("refused", 3)  # the held ones went away in their handshake
        assert edge.register.refused == {Reason.OVER_LIMIT: 1, Reason.PEER_CLOSED: 2}
        await edge.idle()


async def test_an_absent_backend_costs_the_connection_and_is_counted(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    async with open_edge(good_server, folder) as edge:
        (folder / "backend").unlink()
        async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
            reader, writer = await through(dialer)
            assert await reader.read() == b""
            writer.close()
        assert edge.register.refused == {Reason.BACKEND: 1}
        await edge.idle()
        assert len(edge.register) == 0


async def test_closing_the_port_leaves_live_links(edge: Edge, good_client: ClientPolicy, folder: Path) -> None:
    async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        assert await reader.readexactly(9) == SETTINGS
        edge.listener.stop_accepting()
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        late, other = await through(dialer)
        assert await late.read() == b""
        error = dialer.explain()
        assert error is not None
        assert error.verdict.reason is Reason.REFUSED
        assert error.verdict.waits
        for one in (writer, other):
            one.close()


async def test_no_session_can_be_resumed(edge: Edge, our_ca: Ca) -> None:
    """A resumed session is not verified again: a revoked certificate would come back in."""
    pair = our_ca.worker()

    def twice() -> list[bool]:
        context = ssl.create_default_context(cafile=str(our_ca.file))
        context.load_cert_chain(pair.cert, pair.key)
        context.set_alpn_protocols(["h2"])
        seen = []
        session: ssl.SSLSession | None = None
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", edge.port)) as raw,
                context.wrap_socket(raw, server_hostname="localhost", session=session) as wrapped,
            ):
                assert wrapped.recv(9) == SETTINGS  # after the tickets that OpenSSL always writes
                session = wrapped.session
                seen.append(bool(wrapped.session_reused))
        return seen

    assert await asyncio.to_thread(twice) == [False, False]


async def test_openssl_reports_every_reconnection_as_new(edge: Edge, our_ca: Ca) -> None:
    openssl = needs.program("openssl", package="openssl")
    pair = our_ca.worker()
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{edge.port}", "-cert", str(pair.cert)]
    command += ["-key", str(pair.key), "-CAfile", str(our_ca.file), "-alpn", "h2", "-tls1_3", "-reconnect"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(60):
        said, _ = await process.communicate(b"Q\n")
    assert said.count(b"New, TLSv1.3") == 6
    assert b"Reused" not in said


def test_the_edge_works_on_uvloop(good_server: ServerPolicy, good_client: ClientPolicy) -> None:
    """Its transports are of other classes than asyncio's."""

    async def scenario() -> None:
        with private.folder() as folder:
            for server, client in ((good_server, good_client), (UnsafePlaintext(), UnsafePlaintext())):
                (folder / "backend").unlink(missing_ok=True)
                async with (
                    asyncio.timeout(60),
                    open_edge(server, folder) as edge,
                    open_dialer(client, "localhost", edge.port, folder) as dialer,
                ):
                    reader, writer = await through(dialer)
                    assert await reader.readexactly(9) == SETTINGS
                    data = bytes(range(256)) * (1 << 13)
                    async with asyncio.TaskGroup() as group:
                        back = group.create_task(reader.readexactly(len(data)))
                        writer.write(data)
                        await writer.drain()
                    assert back.result() == data
                    writer.close()
                    await edge.until("closed")

    uvloop.run(scenario())
