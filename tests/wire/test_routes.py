"""Whom a call goes to, and what an unreachable, silent or foreign other end is called."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from secure_dagu.dispatch.model import LogPart, LogStream, Owner, Role, WorkerStats
from secure_dagu.dispatch.operating import RunFilter
from secure_dagu.errors import (
    ConfigError,
    NotFound,
    PreconditionFailed,
    Refused,
    SecureDaguError,
    Unavailable,
    WrongState,
)
from secure_dagu.telemetry.rpc_series import RpcSeries
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from secure_dagu.wire.routes import LEGACY_REJECTIONS, WireRoutes
from tests.wire.conftest import House, coordinator_at
from tests.wire.fakes import IDENTITY, NOW, RUN, TASK, WORKER, FakeLink, peer

STATS = WorkerStats()


class Town:
    """Some coordinators, one a port; a port without a socket is a dead address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dialled: list[tuple[str, int]] = []
        self.errors: dict[int, SecureDaguError] = {}

    async def connect(self, host: str, port: int) -> FakeLink:
        self.dialled.append((host, port))
        return FakeLink(str(self.folder / str(port)), self.errors.get(port))

    def routes(self, *ports: int, is_proven: bool = True) -> WireRoutes:
        targets = [("c.example", port) for port in ports]
        return WireRoutes(targets, connect=self.connect, recorder=RpcSeries("client"), is_proven=is_proven)

    @asynccontextmanager
    async def open(self, *ports: int) -> AsyncIterator[dict[int, House]]:
        async with AsyncExitStack() as stack:
            yield {
                port: await stack.enter_async_context(coordinator_at(str(self.folder / str(port)))) for port in ports
            }


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


async def test_anyone_finds_the_one_that_lives(town: Town) -> None:
    async with town.open(3) as houses:
        routes = town.routes(1, 2, 3)
        for _ in range(5):
            await routes.anyone().heartbeat(WORKER, labels={}, stats=STATS)
        assert len(houses[3].desk.asked) == 5
        await routes.close()


async def test_anyone_stops_at_a_lost_precondition(town: Town) -> None:
    async with town.open(1, 2) as houses:
        for house in houses.values():
            house.peer = peer(Role.DISPATCHER, "ci")
            house.desk.error = PreconditionFailed("no workers match the required selector")
        routes = town.routes(1, 2)
        with pytest.raises(PreconditionFailed, match="no workers match"):
            await routes.anyone().dispatch(WORKER, TASK)
        assert sum(len(house.desk.asked) for house in houses.values()) == 1
        await routes.close()


async def test_what_runs_there_are_is_asked_of_every_coordinator(town: Town) -> None:
    async with town.open(1, 2) as houses:
        for house in houses.values():
            house.peer = peer(Role.ADMIN, "root")
        houses[1].desk.document = None
        routes = town.routes(1, 2, 3)  # nobody is at 3
        anyone = routes.anyone()
        for _ in range(4):
            assert await anyone.run_status(WORKER, run=RUN, root=None) == '{"status":1}'
            assert [run.ident for run in await anyone.find_runs(WORKER, RunFilter(), limit=5, before=None)] == [
                "mydag/rrun1"
            ]
            assert await anyone.count_runs(WORKER, since=NOW, until=None) == {4: 4, 5: 2}
            assert len(await anyone.runs(WORKER, name=None, run_id=None, limit=5)) == 2
        houses[2].desk.document = None
        assert await anyone.run_status(WORKER, run=RUN, root=None) is None
        await routes.close()
    routes = town.routes(4, 5)
    with pytest.raises(Unavailable):
        await routes.anyone().run_status(WORKER, run=RUN, root=None)
    await routes.close()


async def test_a_run_is_deleted_where_it_is_kept(town: Town) -> None:
    async with town.open(1, 2) as houses:
        for house in houses.values():
            house.peer = peer(Role.ADMIN, "root")
        houses[1].desk.error = NotFound("no such run")
        routes = town.routes(1, 2)
        for _ in range(4):  # whoever is asked first
            await routes.anyone().delete_run(WORKER, run=RUN)
        assert len(houses[2].desk.all("delete_run")) == 4
        houses[2].desk.error = WrongState("it runs")
        with pytest.raises(WrongState):
            await routes.anyone().delete_run(WORKER, run=RUN)
        houses[2].desk.error = NotFound("no such run")
        with pytest.raises(NotFound):
            await routes.anyone().delete_run(WORKER, run=RUN)
        await routes.close()
        routes = town.routes(1, 3)  # nobody is at 3, who may have it
        with pytest.raises(Unavailable):
            await routes.anyone().delete_run(WORKER, run=RUN)
        await routes.close()


async def test_nobody_there_says_why_in_the_dialers_words(town: Town) -> None:
    town.errors[1] = Refused("the coordinator refused our certificate", why="it is revoked", fix="issue a new one")
    routes = town.routes(1)
    with pytest.raises(Refused, match="it is revoked"):
        await routes.listed()[0].heartbeat(WORKER, labels={}, stats=STATS)
    await routes.close()


async def test_a_task_goes_to_its_owner_and_then_to_whoever_answers(town: Town) -> None:
    async with town.open(1) as houses:
        routes = town.routes(1, 2)
        async with town.open(2) as others:
            route = routes.owned(Owner("c@2", "c.example", 2), served_by=routes.listed()[0])
            await route.run_heartbeat(WORKER, running=())
            assert (len(others[2].desk.asked), len(houses[1].desk.asked)) == (1, 0)
            assert route.problem == ""
        await route.run_heartbeat(WORKER, running=())
        assert len(houses[1].desk.asked) == 1
        assert "c.example:2" in route.problem
        await route.run_heartbeat(WORKER, running=())
        assert len(houses[1].desk.asked) == 2
        await routes.close()


async def test_an_answer_that_is_a_decision_is_final_for_an_owned_task(town: Town) -> None:
    async with town.open(1, 2) as houses:
        routes = town.routes(1, 2)
        route = routes.owned(Owner("c@1", "c.example", 1), served_by=routes.listed()[0])
        houses[1].desk.error = PreconditionFailed("stale attempt: superseded by newer attempt")
        with pytest.raises(PreconditionFailed):
            await route.run_heartbeat(WORKER, running=())
        assert houses[2].desk.asked == []
        await routes.close()


@pytest.mark.parametrize("rejection", LEGACY_REJECTIONS)
async def test_a_legacy_rejection_moves_on(town: Town, rejection: str) -> None:
    async with town.open(1, 2) as houses:
        routes = town.routes(1, 2)
        route = routes.owned(Owner("c@1", "c.example", 1), served_by=routes.listed()[0])
        houses[1].desk.error = PreconditionFailed(rejection)
        await route.run_heartbeat(WORKER, running=())
        assert len(houses[2].desk.asked) == 1
        await routes.close()


async def test_a_black_hole_is_known_within_five_seconds(town: Town) -> None:
    """The address takes the connection and never says a word."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(town.folder / "9"))
        silent.listen()
        async with town.open(1) as houses:
            routes = town.routes(1)
            route = routes.owned(Owner("c@9", "elsewhere.example", 9), served_by=routes.listed()[0])
            async with asyncio.timeout(60):
                await route.run_heartbeat(WORKER, running=())
            assert "elsewhere.example:9" in route.problem
            assert "1.5 s" in route.problem, "so long was waited"
            assert len(houses[1].desk.asked) == 1
            await routes.close()


class SlowToTell(Channel):
    """A way to a coordinator on which the second question of whom it stands for is answered late."""

    def __init__(self, path: str) -> None:
        async def connect(_host: str, _port: int) -> FakeLink:
            link = FakeLink(path)
            link.names = frozenset({"localhost"})
            return link

        super().__init__("forwarder.example", 1, connect=connect, recorder=RpcSeries("client"))
        self.asked = 0
        self.late = asyncio.Event()

    async def stands_for(self, owner: Owner) -> bool | None:
        self.asked += 1
        is_late = self.asked == 2
        stands = await super().stands_for(owner)
        if is_late:
            await self.late.wait()
        return stands


async def test_why_the_owners_address_is_not_used_stays_told_after_calls_at_the_same_time(town: Town) -> None:
    """A call that was asking meanwhile once looked at the address that had taken its place, and found nothing wrong."""
    owner = Owner("c@9", "localhost", 9)
    async with asyncio.timeout(60), coordinator_at(str(town.folder / "1"), advertise=[owner.address]) as house:
        forwarded = SlowToTell(house.path)
        routes = town.routes(2)
        route = routes.owned(owner, served_by=RemoteCoordinator(forwarded))
        async with asyncio.TaskGroup() as group:
            first = group.create_task(route.run_heartbeat(WORKER, running=()))
            second = group.create_task(route.run_heartbeat(WORKER, running=()))
            await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
            assert (first.done(), second.done()) == (True, False)
            assert owner.address in route.problem
            forwarded.late.set()
        assert owner.address in route.problem
        assert len(house.desk.all("run_heartbeat")) == 2
        await routes.close()
        await forwarded.close()


async def test_an_owner_outside_the_list_is_not_dialled_over_an_unproven_link(town: Town) -> None:
    """Threat T11: a task must not send us to an address of its choice."""
    async with town.open(1, 66) as houses:
        routes = town.routes(1, is_proven=False)
        route = routes.owned(Owner("evil", "attacker.example", 66), served_by=routes.listed()[0])
        await route.run_heartbeat(WORKER, running=())
        assert ("attacker.example", 66) not in town.dialled
        assert len(houses[1].desk.asked) == 1
        assert "attacker.example:66" in route.problem
        await routes.close()


async def test_a_task_without_an_owner_stays_with_the_one_that_served_it(town: Town) -> None:
    async with town.open(1, 2) as houses:
        routes = town.routes(1, 2)
        route = routes.owned(None, served_by=routes.listed()[1])
        await route.run_heartbeat(WORKER, running=())
        assert (len(houses[1].desk.asked), len(houses[2].desk.asked)) == (0, 1)
        assert route.problem == ""
        await routes.close()


async def test_an_upload_that_breaks_off_begins_again_at_the_next_candidate(town: Town) -> None:
    async def parts() -> AsyncIterator[LogPart]:
        yield LogPart(step="s", stream=LogStream.STDOUT, data=b"x", offset=0, is_final=False)

    async with town.open(1, 2) as houses:
        routes = town.routes(1, 2)
        route = routes.owned(Owner("c@1", "c.example", 1), served_by=routes.listed()[0])
        houses[1].desk.error = Unavailable("the store is away")
        with pytest.raises(Unavailable, match="the store is away"):
            await route.stream_logs(WORKER, IDENTITY, parts())
        houses[1].desk.error = None
        await route.stream_logs(WORKER, IDENTITY, parts())
        assert "the store is away" in route.problem or route.problem == ""
        await routes.close()


async def test_an_exception_of_the_senders_own_stream_comes_back_as_it_is(
    house: House, client: RemoteCoordinator
) -> None:
    async def parts() -> AsyncIterator[LogPart]:
        yield LogPart(step="s", stream=LogStream.STDOUT, data=b"x", offset=0, is_final=False)
        raise SecureDaguError("the log file is gone")

    with pytest.raises(SecureDaguError, match="the log file is gone"):
        await client.stream_logs(WORKER, IDENTITY, parts())


async def test_a_silent_coordinator_is_connected_anew_after_three_missed_deadlines(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    """A half-open connection: gRPC keeps it for ever, because a missed deadline says nothing about it."""
    channel = channel_to(house.path)
    gate = asyncio.Event()

    async def stuck(*_: object, **__: object) -> tuple[()]:
        await gate.wait()
        return ()

    house.desk.heartbeat = stuck  # type: ignore[method-assign]  # this desk hangs
    first = channel._grpc
    for _ in range(3):
        with pytest.raises(Unavailable, match="no answer in time"):
            await channel.call("/coordinator.v1.CoordinatorService/Heartbeat", b"\x0a\x02w1", 0.05)
    assert channel._grpc is None
    assert first is None
    gate.set()
    assert await channel.call("/coordinator.v1.CoordinatorService/Heartbeat", b"\x0a\x02w1", 5) == b""


async def test_calls_on_a_closed_channel_are_unavailable_not_cancelled(house: House, client: RemoteCoordinator) -> None:
    """A poller must be able to tell its own cancellation from a lost connection."""
    assert isinstance(client.transport, Channel)
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(_outcome(client))
        await house.desk.polls_are(1)
        await client.transport.close()
    assert isinstance(poll.result(), Unavailable)
    with pytest.raises(Unavailable):
        await client.run_status(WORKER, run=RUN, root=None)


async def _outcome(client: RemoteCoordinator) -> SecureDaguError | None:
    try:
        await client.poll(WORKER, poller_id="p", labels={})
    except SecureDaguError as error:
        return error
    return None


class Proxy(asyncio.Protocol):
    """Speaks just enough HTTP/2 to answer any request with a status and nothing else."""

    def __init__(self, code: bytes) -> None:
        self._code = code
        self._seen = b""
        self.is_closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send(4, 0, 0, b"")

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) >= 24 and self._seen.startswith(b"PRI"):
            self._seen = self._seen[24:]
        while len(self._seen) >= 9 and len(self._seen) >= 9 + (size := int.from_bytes(self._seen[:3], "big")):
            kind, flags, stream = self._seen[3], self._seen[4], int.from_bytes(self._seen[5:9], "big")
            self._seen = self._seen[9 + size :]
            if kind == 4 and not flags & 1:
                self._send(4, 1, 0, b"")
            if kind == 1:  # HEADERS: `:status` is entry 8 of the static table; its value as a literal
                self._send(1, 5, stream, b"\x08" + bytes([len(self._code)]) + self._code)

    def end(self) -> None:
        self._transport.close()

    def _send(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        head = struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
        self._transport.write(head + body)


@pytest.mark.parametrize("code", [b"404", b"502", b"302"])
async def test_an_http_reverse_proxy_is_named(tmp_path: Path, channel_to: Callable[..., Channel], code: bytes) -> None:
    """It speaks HTTP/2 and answers with a page: the fix is a raw TCP forward."""

    path = str(tmp_path / "proxy")
    connections: list[Proxy] = []

    def accept() -> Proxy:
        connections.append(Proxy(code))
        return connections[-1]

    server = await asyncio.get_running_loop().create_unix_server(accept, path)
    channel = channel_to(path)
    with pytest.raises(ConfigError, match="HTTP reverse proxy"):
        await channel.call("/coordinator.v1.CoordinatorService/GetDAG", b"", 5)
    await channel.close()
    server.close()
    for connection in connections:
        connection.end()
        async with asyncio.timeout(60):
            await connection.is_closed.wait()
