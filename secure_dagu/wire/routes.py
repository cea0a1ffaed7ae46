"""Whom to ask: a listed coordinator, anyone of them, or the owner of a task (protocol, section 1.8)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from msgspec import Struct

from secure_dagu.dispatch.api import Coordinator, OwnedRoute
from secure_dagu.dispatch.model import Caller, Owner, Task
from secure_dagu.errors import PreconditionFailed, SecureDaguError, Unavailable
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator
from secure_dagu.wire.gathering import GatheringCoordinator
from secure_dagu.wire.interceptors import Recorder
from secure_dagu.wire.link import Connect

LEGACY_REJECTIONS = tuple(
    f"{what} sent to non-owner coordinator"
    for what in ("run heartbeat", "status update", "log chunk", "artifact chunk")
)
"""What coordinators of older releases say instead of UNAVAILABLE when a task is not theirs."""
PER_CANDIDATE_S = 300.0
RENEW_AGAIN_S = 10.0
"""How long after a failed renewal of a connection it is tried again."""
MAX_OWNERS = 64
"""Owners outside the list that are dialled at once; more are only possible with a coordinator that invents them."""

T = TypeVar("T")
Discover = Callable[[], Awaitable[Sequence[tuple[str, int]]]]


class WireRoutes:
    """The coordinators of the configured list, and owners reached through them (`dispatch.api.Routes`)."""

    def __init__(
        self,
        targets: Sequence[tuple[str, int]],
        *,
        connect: Connect,
        recorder: Recorder,
        is_proven: bool,
        discover: Discover | None = None,
        retries: Retries | None = None,
    ) -> None:
        """Take the list; nothing is dialled before the first call.

        Args:
            is_proven: True behind mutual TLS, where an owner outside the list may be dialled, for its certificate
                must carry the coordinator role.
            discover: asked whom `anyone` asks; where it finds nobody, that is the list.
            retries: how a dispatch through `anyone` is tried again; None: it is not.
        """
        self._discover = discover
        self._retries = retries
        self._found: dict[tuple[str, int], Channel] = {}
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
        return _AnyCoordinator(self._present, self._retries)

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
        elsewhere = home if owner is not None and advertised is not None and home is not advertised else None
        return _OwnedCoordinator(
            _Owned(candidates, advertised=advertised, problem=problem, owner=owner, home=home, elsewhere=elsewhere)
        )

    async def renew(self, told: Callable[[str, SecureDaguError], None]) -> None:
        """Connect anew everywhere, as the present certificates and CAs want it (`Channel.renew`).

        It returns when the old connections are gone. An address that does not let us in is tried again until it does.

        `told` is called with each address that refused, and why.
        """

        async def renewed(channel: Channel) -> None:
            while (problem := await channel.renew()) is not None:
                told(channel.address, problem)
                await asyncio.sleep(RENEW_AGAIN_S)

        async with asyncio.TaskGroup() as group:
            for channel in self._all():
                group.create_task(renewed(channel))

    async def close(self) -> None:
        """Close every connection."""
        for channel in self._all():
            await channel.close()

    def _all(self) -> tuple[Channel, ...]:
        return (*self._channels.values(), *self._owners.values(), *self._found.values())

    async def _present(self) -> Sequence[Channel]:
        """Return whom `anyone` may ask now."""
        found = await self._discover() if self._discover is not None else ()
        if not found:
            return tuple(self._channels.values())
        return tuple(self._at(*target) for target in found[:MAX_OWNERS])

    def _at(self, host: str, port: int) -> Channel:
        key = (host, port)
        if (known := self._channels.get(key) or self._found.get(key)) is not None:
            return known
        if len(self._found) >= 4 * MAX_OWNERS:
            raise Unavailable("too many coordinators have come and gone", fix="start this process again")
        return self._found.setdefault(key, self._channel(host, port))

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

    def __init__(self, present: Callable[[], Awaitable[Sequence[Channel]]]) -> None:
        self._present = present

    async def call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        last: SecureDaguError = Unavailable("no coordinator is configured")
        channels = await self._shuffled()
        for channel, share_s in _shares(channels, timeout_s):
            if len(channels) > 1 and (absence := await channel.absence()) is not None:
                last = _worse(last, absence)
                continue
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
        channels = await self._shuffled()
        for channel in channels:
            got_any = False
            if len(channels) > 1 and (absence := await channel.absence()) is not None:
                last = _worse(last, absence)
                continue
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
        channels = await self._shuffled()
        for channel in channels:
            problem = await (channel.absence() if len(channels) > 1 else channel.problem())
            if problem is None:
                return channel
            last = _worse(last, problem)
        raise last

    async def _shuffled(self) -> list[Channel]:
        channels = await self._present()
        return sorted(random.sample(channels, len(channels)), key=lambda channel: channel.is_suspect)


class Retries(Struct, frozen=True, kw_only=True):
    """How often a dispatch is tried again, after which first pause; the pauses double up to 30 s, with full jitter."""

    most: int
    first_s: float


RETRY_CAP_S = 30.0


class _AnyCoordinator(GatheringCoordinator):
    """Anyone; a dispatch is tried again while nobody can take it. It names its run, so it is safe to repeat."""

    def __init__(self, present: Callable[[], Awaitable[Sequence[Channel]]], retries: Retries | None) -> None:
        super().__init__(_Anyone(present), present)
        self._retries = retries or Retries(most=0, first_s=1.0)

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        """Hand in a task, again after a while where nobody is reached or no worker is there."""
        for failures in range(self._retries.most):
            try:
                return await super().dispatch(caller, task, admission_token=admission_token)
            except Unavailable:
                longest = min(RETRY_CAP_S, self._retries.first_s * 2.0 ** min(failures, 30))
                await asyncio.sleep(random.uniform(0.0, longest))  # noqa: S311  jitter is no secret
        return await super().dispatch(caller, task, admission_token=admission_token)


class _AnotherCoordinator(Unavailable):
    """It answers, and keeps its own tasks only: coordinators of ours share no store, and say so by their addresses."""


class _Owned:
    """Ask the one that served last, then the advertised address, then the others; move on only when nobody is there."""

    def __init__(
        self,
        candidates: Sequence[Channel],
        *,
        advertised: Channel | None,
        problem: str,
        owner: Owner | None,
        home: Channel | None,
        elsewhere: Channel | None,
    ) -> None:
        """Take whom to ask.

        Args:
            home: where the task came from.
            elsewhere: where the task came from, when that is not the owner's address. Where the same certificate proves
                that it is the owner all the same, such as behind a forwarder, it is used in place of that address.
        """
        self._candidates = list(candidates)
        self._own = tuple(channel for channel in (advertised, home) if channel is not None)
        self._owner = owner
        self._elsewhere = elsewhere
        self._advertised = self._named = advertised
        self._last: Channel | None = None
        self.problem = problem
        self._unused = ""

    @property
    def trouble(self) -> str:
        """Say why the owner's address is not used, also where another way to the owner serves in its place."""
        return self.problem or self._unused

    async def call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        return await self._first(lambda channel, share_s: channel.call(path, request, share_s), timeout_s)

    async def upload(self, path: str, requests: AsyncIterator[bytes], timeout_s: float | None) -> bytes:
        last: SecureDaguError = Unavailable("the task has no coordinator")
        for channel in await self._in_order():
            problem = await self._missing(channel)
            if problem is None:
                self._served(channel)
                try:
                    return await channel.upload(path, requests, timeout_s)
                except SecureDaguError as error:
                    if _moves_on(error):
                        self._failed(channel, error)  # the sender begins again, and then with the next one
                    raise
            self._failed(channel, problem)
            last = last if isinstance(problem, _AnotherCoordinator) else problem
        raise last

    async def download(self, path: str, request: bytes, timeout_s: float | None) -> AsyncIterator[bytes]:
        last: SecureDaguError = Unavailable("the task has no coordinator")
        for channel in await self._in_order():
            problem = await self._missing(channel)
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
            last = last if isinstance(problem, _AnotherCoordinator) else problem
        raise last

    async def _first(self, ask: Callable[[Channel, float | None], Awaitable[T]], timeout_s: float | None) -> T:
        last: SecureDaguError = Unavailable("the task has no coordinator")
        for channel, share_s in _shares(await self._in_order(), timeout_s):
            problem = await self._missing(channel)
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
            last = last if isinstance(problem, _AnotherCoordinator) else problem
        raise last

    async def _missing(self, channel: Channel) -> SecureDaguError | None:
        if len(self._candidates) == 1:
            return await channel.problem()
        problem = await channel.absence()
        said, owner = channel.advertised, self._owner
        if problem is None and channel not in self._own and owner is not None and said and owner.address not in said:
            return _AnotherCoordinator(f"coordinator {channel.address} knows nothing of {owner.address}")
        return problem

    async def _in_order(self) -> list[Channel]:
        elsewhere = self._elsewhere
        if elsewhere is not None and self._owner is not None:
            stands = await elsewhere.stands_for(self._owner)
            if stands:
                self._unused = await _silence_of(self._named)  # the same for each call that comes here meanwhile
                self._advertised = elsewhere
                self._candidates = [elsewhere, *(channel for channel in self._candidates if channel is not elsewhere)]
            if stands is not None:
                self._elsewhere = None  # settled, by whichever call came first
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
        return self._owned.trouble


async def _silence_of(channel: Channel | None) -> str:
    """Say why nobody answers at an address; empty for one that serves, and for a name of another network.

    A name that means nothing on this host is meant for others: so it is behind a forwarder, by intention.
    """
    if channel is None:
        return ""
    try:
        await asyncio.get_running_loop().getaddrinfo(channel.host, channel.port)
    except OSError:
        return ""
    missing = await channel.absence()
    return "" if missing is None else str(missing)


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
