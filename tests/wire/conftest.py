"""A real grpc.aio server on a unix socket in front of the fake coordinator, and clients to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secure_dagu.errors import SecureDaguError
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry.rpc_series import RpcSeries
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from secure_dagu.wire.interceptors import Denial, Gate
from secure_dagu.wire.server import WireServer, serve
from tests.wire.fakes import FakeCoordinator, FakeLink, peer


@dataclass
class House:
    """One coordinator: its desk, its wall, its sockets (`path`, and `path` with a 2)."""

    path: str
    desk: FakeCoordinator = field(default_factory=FakeCoordinator)
    peer: Peer | None = field(default_factory=peer)
    denied: list[Denial] = field(default_factory=list)
    calls: RpcSeries = field(default_factory=lambda: RpcSeries("server"))
    gate: Gate = field(init=False)
    server: WireServer = field(init=False)

    def __post_init__(self) -> None:
        self.gate = Gate(peer_of=lambda _name: self.peer, recorder=self.calls, denied=self.denied.append)


@asynccontextmanager
async def coordinator_at(path: str, *, advertise: Sequence[str] = ()) -> AsyncIterator[House]:
    house = House(path)
    async with (
        asyncio.timeout(60),
        serve(
            socket_paths=[path, f"{path}2"], desk=house.desk, gate=house.gate, grace_s=0.2, advertise=advertise
        ) as server,
    ):
        house.server = server
        yield house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with coordinator_at(str(tmp_path / "s")) as house:
        yield house


@pytest.fixture
async def channel_to() -> AsyncIterator[Callable[..., Channel]]:
    """Makes channels to a socket path; they are closed at the end."""
    made: list[Channel] = []

    def make(path: str, error: SecureDaguError | None = None, port: int = 50055) -> Channel:
        async def connect(_host: str, _port: int) -> FakeLink:
            return FakeLink(path, error)

        made.append(Channel("coordinator.example", port, connect=connect, recorder=RpcSeries("client")))
        return made[-1]

    yield make
    for channel in made:
        await channel.close()


@pytest.fixture
def client(house: House, channel_to: Callable[..., Channel]) -> RemoteCoordinator:
    return RemoteCoordinator(channel_to(house.path))
