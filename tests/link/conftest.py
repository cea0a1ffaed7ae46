"""Roles for the link tests: an authority, a listening edge in front of an echo or gRPC server, and a way out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from secure_dagu.link import private
from secure_dagu.link.context import (
    ClientPolicy,
    ServerPolicy,
    UnsafePlaintext,
    client_policy,
    server_policy,
)
from secure_dagu.link.dialer import Dialer, Dialers, dialers
from secure_dagu.link.listener import Limits, Listener, listen
from secure_dagu.link.proxy_header import Network
from secure_dagu.link.proxying import Proxy
from secure_dagu.link.register import LinkEvent, Register
from tests.link.certs import Ca, Pair

SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(scope="session")
def our_ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """Return the CA that both ends trust."""
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """Return a CA that nobody trusts."""
    return Ca(tmp_path_factory.mktemp("other"), "other CA")


@pytest.fixture(autouse=True)
async def settled() -> AsyncIterator[None]:
    """Let closed transports go before the loop does: otherwise their garbage is reported in somebody else's test."""
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a private folder for sockets."""
    with private.folder() as made:
        yield made


@dataclass
class Edge:
    """A listening edge whose backend greets like a gRPC server (an empty SETTINGS frame), then echoes."""

    listener: Listener
    register: Register
    folder: Path
    events: list[LinkEvent]
    changed: asyncio.Event

    @property
    def port(self) -> int:
        return self.listener.addresses[0][1]

    async def until(self, happening: str, count: int = 1) -> LinkEvent:
        """Wait for the nth event of a kind; return it."""
        async with asyncio.timeout(60):
            while True:
                found = [event for event in self.events if event.happening == happening]
                if len(found) >= count:
                    return found[count - 1]
                self.changed.clear()
                await self.changed.wait()

    async def idle(self) -> None:
        """Wait until no connection is left."""
        async with asyncio.timeout(60):
            while self.listener.connections:  # noqa: ASYNC110 - a number without an event of its own
                await asyncio.sleep(0.005)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(SETTINGS)
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def open_edge(
    policy: ServerPolicy | UnsafePlaintext,
    folder: Path,
    limits: Limits | None = None,
    *,
    forwarders: Sequence[Network] = (),
) -> AsyncIterator[Edge]:
    """Open an edge on a free port."""
    events: list[LinkEvent] = []
    changed = asyncio.Event()

    def note(event: LinkEvent) -> None:
        events.append(event)
        changed.set()

    register = Register(note)
    backend = str(folder / "backend")
    server = await asyncio.start_unix_server(_echo, backend)
    async with (
        server,
        listen(
            bind=[("127.0.0.1", 0)],
            policy=policy,
            backends=[backend],
            directory=folder,
            register=register,
            limits=limits,
            forwarders=forwarders,
        ) as listener,
    ):
        yield Edge(listener=listener, register=register, folder=folder, events=events, changed=changed)


@pytest.fixture
def good_server(our_ca: Ca) -> ServerPolicy:
    """Return a coordinator's policy."""
    pair = our_ca.coordinator()
    return server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file)


def client_of(pair: Pair, ca: Ca) -> ClientPolicy:
    """Return the policy of a client with these files."""
    return client_policy(cert=pair.cert, key=pair.key, ca=ca.file)


@pytest.fixture
def good_client(our_ca: Ca) -> ClientPolicy:
    """Return a worker's policy."""
    return client_of(our_ca.worker(), our_ca)


@pytest.fixture
async def edge(good_server: ServerPolicy, folder: Path) -> AsyncIterator[Edge]:
    """Return a mutual TLS edge."""
    async with open_edge(good_server, folder) as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_dialer(
    policy: ClientPolicy | UnsafePlaintext, host: str, port: int, folder: Path, proxy: Proxy | None = None
) -> AsyncIterator[Dialer]:
    """Open a dialer to one address."""
    async with dialers(policy=policy, directory=folder, proxy=proxy) as way_out:
        assert isinstance(way_out, Dialers)
        yield await way_out.connect(host, port)


async def through(dialer: Dialer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as gRPC would."""
    return await asyncio.open_unix_connection(dialer.target.removeprefix("unix:"))
