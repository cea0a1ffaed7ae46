"""A channel connects anew: new calls first, then the old connection ends, and no call notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from secure_dagu.errors import Unavailable
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from tests.wire.conftest import House
from tests.wire.fakes import CLAIM, WORKER, FakeLink
from tests.wire.test_wall import SERVICE, chunk


async def test_a_waiting_poll_moves_over_and_gets_its_task(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    poll = asyncio.create_task(RemoteCoordinator(channel).poll(WORKER, poller_id="p", labels={}))
    await house.desk.polls_are(1)
    assert await channel.renew() is None
    while len(house.desk.all("poll")) < 2:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0.005)
    await house.desk.polls_are(1)
    house.desk.claims.put_nowait(CLAIM)
    assert await poll == CLAIM
    assert len(house.desk.all("poll")) == 2, "asked once on each connection"


async def test_a_watch_ends_in_order_and_begins_again(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    watch = RemoteCoordinator(channel).cancellations(WORKER)
    await anext(watch)
    assert await channel.renew() is None
    assert [key async for key in watch] == []


async def test_an_upload_ends_on_the_old_connection(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield chunk().SerializeToString()
        await house.desk.parts_are(1)
        begun.set()
        await go_on.wait()
        yield chunk().SerializeToString()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        upload = group.create_task(channel.upload(SERVICE + "StreamLogs", chunks(), None))
        await begun.wait()
        renewal = group.create_task(channel.renew())
        await channel.call("/grpc.health.v1.Health/Check", b"", 5)
        assert not upload.done()
        go_on.set()
        await upload
        assert await renewal is None


async def test_calls_without_rest_do_not_notice(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    await channel.call("/grpc.health.v1.Health/Check", b"", 5)
    done = asyncio.Event()

    async def call() -> int:
        count = 0
        while not done.is_set():
            await channel.call("/grpc.health.v1.Health/Check", b"", 5)
            count += 1
        return count

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        callers = [group.create_task(call()) for _ in range(4)]
        for _ in range(10):
            assert await channel.renew() is None
        done.set()
    assert sum(caller.result() for caller in callers) > 10


async def test_a_connection_that_cannot_be_replaced_stays(house: House, channel_to: Callable[..., Channel]) -> None:
    channel = channel_to(house.path)
    await channel.call("/grpc.health.v1.Health/Check", b"", 5)
    channel._link = FakeLink("/nonexistent/socket", Unavailable("refused with the new certificate"))
    problem = await channel.renew()
    assert "refused with the new certificate" in str(problem)
    await channel.call("/grpc.health.v1.Health/Check", b"", 5)


async def test_a_channel_that_was_never_used_has_nothing_to_renew(
    house: House, channel_to: Callable[..., Channel]
) -> None:
    assert await channel_to(house.path).renew() is None
