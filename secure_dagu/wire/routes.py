"""Whom to ask: a listed coordinator, anyone of them, or the owner of a task (protocol, section 1.8)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from secure_dagu.dispatch.api import Coordinator, OwnedRoute
from secure_dagu.dispatch.model import Owner
from secure_dagu.errors import PreconditionFailed, SecureDaguError, Unavailable
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from secure_dagu.wire.interceptors import Recorder
from secure_dagu.wire.link import Connect

LEGACY_REJECTIONS = tuple(
    f"{what} sent to non-owner coordinator"
    for what in ("run heartbeat", "status update", "log chunk", "artifact chunk")
)
"""What coordinators of older releases say instead of UNAVAILABLE when a task is not theirs."""
PER_CANDIDATE_S = 300.0
MAX_OWNERS = 64
"""Owners outside the list that are dialled at once; more are only possible with a coordinator that invents them."""

T = TypeVar("T")


class WireRoutes:
    """The coordinators of the configured list, and owners reached through them (`dispatch.api.Routes`)."""

    def __init__(
        self, targets: Sequence[tuple[str, int]], *, connect: Connect, recorder: Recorder, is_proven: bool
    ) -> None:
        """Take the list; nothing is dialled before the first call.

        Args:
            is_proven: True behind mutual TLS, where an owner outside the list may be dialled, for its certificate
                must carry the coordinator role.
        """
        self._connect = connect
        self._recorder = recorder
        self._is_proven = is_proven
        self._channels = {(host, port): self._channel(host, port) for host, port in targets}
        self._listed = tuple(RemoteCoordinator(channel) for channel in self._channels.values())
        self._owners: dict[tuple[str, int], Channel] = {}

    def listed(self) -> Sequence[Coordinator]:
        """Return the configured ones, in order."""
        return self._listed

    def anyone(self) -> Coordinator:
        """Return a coordinator that asks the listed ones in random order until one answers."""
        return RemoteCoordinator(_Anyone(tuple(self._channels.values())))

    def owned(self, owner: Owner | None, *, served_by: Coordinator) -> OwnedRoute:
        """Return the route of a task."""
        home = self._home(served_by)
        advertised = home if owner is None else self._advertised(owner)
        others = sorted(self._channels.values(), key=lambda channel: channel.address)
        candidates: list[Channel] = []
        for channel in (advertised, home, *others):
            if channel is not None and channel not in candidates:
                candidates.append(channel)
        problem = ""
        if owner is not None and advertised is None:
            problem = f"{owner.address} is not in the configured list, and without TLS nobody proves that it is one"
        return _OwnedCoordinator(_Owned(candidates, advertised=advertised, problem=problem))

    async def close(self) -> None:
        """Close every connection."""
        for channel in (*self._channels.values(), *self._owners.values()):
            await channel.close()

    def _channel(self, host: str, port: int) -> Channel:
        return Channel(host, port, connect=self._connect, recorder=self._recorder)

    def _home(self, served_by: Coordinator) -> Channel | None:
        if isinstance(served_by, RemoteCoordinator) and isinstance(served_by.transport, Channel):
            return served_by.transport
        return None

    def _advertised(self, owner: Owner) -> Channel | None:
        key = (owner.host, owner.port)
        if (listed := self._channels.get(key)) is not None:
            return listed
        if not self._is_proven:
            return None
        if (known := self._owners.get(key)) is not None:
            return known
        if len(self._owners) >= MAX_OWNERS:
            return None
        return self._owners.setdefault(key, self._channel(owner.host, owner.port))


class _Anyone:
    """Ask in random order; the first success wins, a lost precondition is final (section 1.8)."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels

    async def call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        last: SecureDaguError = Unavailable("no coordinator is configured")
        for channel, share_s in _shares(self._shuffled(), timeout_s):
            try:
                return await channel.call(path, request, share_s)
            except PreconditionFailed:
                raise
            except SecureDaguError as error:
                last = _worse(last, error)
        raise last

    async def upload(self, path: str, requests: AsyncIterator[bytes], timeout_s: float | None) -> bytes:
        # What was sent cannot be sent again, so the choice is made before the first byte.
        return await (await self._reachable()).upload(path, requests, timeout_s)

    async def download(self, path: str, request: bytes, timeout_s: float | None) -> AsyncIterator[bytes]:
        last: SecureDaguError = Unavailable("no coordinator is configured")
        for channel in self._shuffled():
            got_any = False
            try:
                async for answer in channel.download(path, request, timeout_s):
                    got_any = True
                    yield answer
                return
            except SecureDaguError as error:
                if got_any or isinstance(error, PreconditionFailed):
                    raise
                last = _worse(last, error)
        raise last

    async def _reachable(self) -> Channel:
        last: SecureDaguError = Unavailable("no coordinator is configured")
        for channel in self._shuffled():
            problem = await channel.problem()
            if problem is None:
                return channel
            last = _worse(last, problem)
        raise last

    def _shuffled(self) -> list[Channel]:
        return random.sample(self._channels, len(self._channels))


class _Owned:
    """Ask the one that served last, then the advertised address, then the others; move on only when nobody is there."""

    def __init__(self, candidates: Sequence[Channel], *, advertised: Channel | None, problem: str) -> None:
        self._candidates = candidates
        self._advertised = advertised
        self._last: Channel | None = None
        self.problem = problem

    async def call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        return await self._first(lambda channel, share_s: channel.call(path, request, share_s), timeout_s)

    async def upload(self, path: str, requests: AsyncIterator[bytes], timeout_s: float | None) -> bytes:
        last: SecureDaguError = Unavailable("the task has no coordinator")
        for channel in self._in_order():
            problem = await channel.problem()
            if problem is None:
                self._served(channel)
                try:
                    return await channel.upload(path, requests, timeout_s)
                except SecureDaguError as error:
                    if _moves_on(error):
                        self._failed(channel, error)  # the sender begins again, and then with the next one
                    raise
            self._failed(channel, problem)
            last = problem
        raise last

    async def download(self, path: str, request: bytes, timeout_s: float | None) -> AsyncIterator[bytes]:
        last: SecureDaguError = Unavailable("the task has no coordinator")
        for channel in self._in_order():
            problem = await channel.problem()
            if problem is None:
                self._served(channel)
                try:
                    async for answer in channel.download(path, request, timeout_s):
                        yield answer
                except SecureDaguError as error:
                    if _moves_on(error):
                        self._failed(channel, error)
                    raise
                return
            self._failed(channel, problem)
            last = problem
        raise last

    async def _first(self, ask: Callable[[Channel, float | None], Awaitable[T]], timeout_s: float | None) -> T:
        last: SecureDaguError = Unavailable("the task has no coordinator")
        for channel, share_s in _shares(self._in_order(), timeout_s):
            problem = await channel.problem()
            if problem is None:
                try:
                    answer = await ask(channel, share_s)
                except SecureDaguError as error:
                    if not _moves_on(error):
                        raise
                    problem = error
                else:
                    self._served(channel)
                    return answer
            self._failed(channel, problem)
            last = problem
        raise last

    def _in_order(self) -> list[Channel]:
        if self._last is None:
            return list(self._candidates)
        return [self._last, *(channel for channel in self._candidates if channel is not self._last)]

    def _served(self, channel: Channel) -> None:
        self._last = channel
        if channel is self._advertised:
            self.problem = ""

    def _failed(self, channel: Channel, error: SecureDaguError) -> None:
        if channel is self._last:
            self._last = None
        if channel is self._advertised:
            self.problem = str(error)


class _OwnedCoordinator(RemoteCoordinator):
    """`OwnedRoute`: a coordinator that also tells why the advertised address is not used."""

    def __init__(self, transport: _Owned) -> None:
        super().__init__(transport)
        self._owned = transport

    @property
    def problem(self) -> str:
        """Say why the advertised address was not used; empty while it works."""
        return self._owned.problem


def _moves_on(error: SecureDaguError) -> bool:
    if isinstance(error, PreconditionFailed):
        return any(rejection in str(error) for rejection in LEGACY_REJECTIONS)
    return isinstance(error, Unavailable)


def _worse(last: SecureDaguError, error: SecureDaguError) -> SecureDaguError:
    """Return the one that says more: a refusal rather than an absence."""
    return last if isinstance(error, Unavailable) and not isinstance(last, Unavailable) else error


def _shares(channels: Sequence[Channel], timeout_s: float | None) -> Iterator[tuple[Channel, float | None]]:
    """Yield each channel with its share of the time that is left: what remains ÷ how many remain, at most 5 minutes."""
    loop = asyncio.get_running_loop()
    ends = None if timeout_s is None else loop.time() + timeout_s
    for done, channel in enumerate(channels):
        if ends is None:
            yield channel, None
            continue
        yield channel, min(PER_CANDIDATE_S, max((ends - loop.time()) / (len(channels) - done), 0.1))
