"""One coordinator address over gRPC: a channel on a link, exact errors, and a fresh connection when it falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import grpc
import grpc.aio

from secure_dagu.dispatch.address import host_port
from secure_dagu.dispatch.model import Owner
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.security.verdict import Reason, Side, Verdict
from secure_dagu.security.verdict import error_of as link_error
from secure_dagu.wire import status
from secure_dagu.wire.fields import ADVERTISE_KEY, MAX_MESSAGE
from secure_dagu.wire.interceptors import Recorder, Series
from secure_dagu.wire.link import Connect, Link

ANSWER_S = 1.5
"""How long an address may take to say that it serves, where there is another one to ask."""
FRESH_S = 1.0
"""Who answered so recently need not be asked whether it is there."""
SUSPECT_S = 10.0
"""How long an address that did not answer is asked last."""
CONNECT_S = 3.0
"""How long an address may take to answer before the next one is asked."""
RENEW_S = 10.0
"""How long a fresh connection may take before the old one is kept."""
DRAIN_S = 300.0
"""How long calls may end on the old connection after a renewal."""
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
"""The answer of a coordinator that takes calls."""
OWN_FAILURE = "Internal error from Core"
"""What gRPC says when a call of ours is written to while its connection goes away: nobody answered anything."""
_TOO_LARGE = "message larger than max"
"""What gRPC says of a message of 16 MiB and more, whichever end refuses it."""
SILENT_AFTER = 3
"""Deadlines missed in a row before the connection counts as half-open and is replaced: gRPC itself keeps it."""

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 500),
    # In spite of its name the core takes this one as the time that a connection attempt may last, TLS included.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.enable_retries", 0),  # who may be asked again, and how often, is decided above
    ("grpc.enable_http_proxy", 0),  # or lower-case proxy variables of the host would be obeyed
    ("grpc.http2.bdp_probe", 0),  # as on the server: no ping for every message
    ("grpc.http2.lookahead_bytes", 4 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),  # or a replaced channel would get the old, half-open connection
)


class Channel:
    """The way to one address. Connects when first used; safe to use from many tasks of one loop."""

    def __init__(self, host: str, port: int, *, connect: Connect, recorder: Recorder) -> None:
        self.host = host
        self.port = port
        self.address = host_port(host, port)
        self._connect = connect
        self._recorder = recorder
        self._link: Link | None = None
        self._grpc: grpc.aio.Channel | None = None
        self._lock = asyncio.Lock()
        self._misses = 0
        self._is_closed = False
        self.advertised: tuple[str, ...] | None = None
        """The addresses that it writes into tasks; empty for one that does not say, None while it was not asked."""
        self._answered_at = float("-inf")
        self._suspect_until = float("-inf")
        self._endless: set[grpc.aio.Call] = set()
        self._moved: set[grpc.aio.Call] = set()

    async def problem(self) -> SecureDaguError | None:
        """Connect if need be; return why that does not work, within 3 s, or None when the connection stands."""
        return await self._ready(await self._open(), CONNECT_S)

    async def absence(self) -> SecureDaguError | None:
        """Return why nobody serves there, within 1.5 s; None where somebody does.

        For a choice among several addresses: an open connection alone does not tell that the host at its other end
        still lives.
        """
        loop = asyncio.get_running_loop()
        if loop.time() - self._answered_at < FRESH_S and self.advertised is not None:
            return None
        problem = await self._ready(await self._open(), ANSWER_S)
        if problem is None:
            try:
                if await self._health() != SERVING:
                    problem = Unavailable(f"coordinator {self.address} is stopping")
            except Unavailable as error:
                problem = error
            except SecureDaguError:
                self.advertised = self.advertised or ()  # it is there, and says itself what is wrong
        self._suspect_until = float("-inf") if problem is None else loop.time() + SUSPECT_S
        return problem

    @property
    def is_suspect(self) -> bool:
        """Tell whether nobody served there a moment ago."""
        return asyncio.get_running_loop().time() < self._suspect_until

    async def stands_for(self, owner: Owner) -> bool | None:
        """Tell whether this is the way to the coordinator that calls itself `owner`; None: it cannot be asked now.

        The certificate at the other end is for that name, and it says that it writes that very address into tasks.
        """
        try:
            await self._health()
        except SecureDaguError:
            return None
        return owner.address in (self.advertised or ()) and self._link is not None and self._link.proves(owner.host)

    async def _health(self) -> bytes:
        told: dict[str, str | bytes] = {}
        answer = await self.call(HEALTH_CHECK, b"", ANSWER_S, told)
        self.advertised = tuple(word for word in str(told.get(ADVERTISE_KEY, "")).split(",") if word)
        return answer

    async def breaks_within(self, seconds: float) -> bool:
        """Leave the connection alone; return whether the other end, or something on the way, ends it in that time."""
        channel = await self._open()
        try:
            async with asyncio.timeout(seconds):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        except TimeoutError:
            return False
        return True

    async def _ready(self, channel: grpc.aio.Channel, within_s: float) -> SecureDaguError | None:
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return None
        try:
            async with asyncio.timeout(within_s):
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return self._cause("no connection")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            return self._cause(f"no connection within {within_s:g} s")
        except grpc.aio.UsageError:  # replaced or closed meanwhile
            return Unavailable(f"coordinator {self.address} is not reachable", why="the connection was closed")
        return None

    async def call(
        self, path: str, request: bytes, timeout_s: float | None, told: dict[str, str | bytes] | None = None
    ) -> bytes:
        """Make a unary call; `timeout_s` None is for the long poll only. `told` takes the trailing metadata.

        Raises:
            SecureDaguError: whatever the other end answered, or why it could not be asked.
        """
        if (problem := await self.problem()) is not None:
            raise problem
        began, code = perf_counter(), "OK"
        series = self._series("unary", path)
        try:
            while True:
                asked = _unary(await self._open(), path)(request, timeout=timeout_s)
                try:
                    answer: bytes = await self._watched(asked, timeout_s)
                except asyncio.CancelledError:
                    if not self._has_moved(asked):
                        raise
                    continue  # a poll moves to the new connection: its offer, if any, is withdrawn with the old one
                self._misses = 0
                self._answered_at = asyncio.get_running_loop().time()
                if told is not None:
                    told.update(_pairs(await asked.trailing_metadata()))
                return answer
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            code, raised = self._error(error)
            await self._replace_if_silent(code)
            raise raised from None
        finally:
            series.ended(code, perf_counter() - began, received=code == "OK", sent=1)

    async def upload(self, path: str, requests: AsyncIterator[bytes], timeout_s: float | None) -> bytes:
        """Make a client-streaming call. An exception of `requests` ends the call and is raised.

        Raises:
            SecureDaguError: as for `call`.
        """
        if (problem := await self.problem()) is not None:
            raise problem
        began, code, sent = perf_counter(), "OK", 0
        series = self._series("client_stream", path)
        failure: BaseException | None = None

        async def outgoing() -> AsyncIterator[bytes]:
            nonlocal failure, sent
            try:
                async for request in requests:
                    sent += 1
                    yield request
            except Exception as error:
                failure = error
                raise

        stream = outgoing()
        try:
            answer: bytes = await _upload(await self._open(), path)(stream, timeout=timeout_s)
            return answer
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            code, raised = self._error(error)
            if failure is not None:
                raise failure from None
            raise raised from None
        finally:
            series.ended(code, perf_counter() - began, received=code == "OK", sent=sent)

    async def download(self, path: str, request: bytes, timeout_s: float | None) -> AsyncIterator[bytes]:
        """Make a server-streaming call and yield what comes.

        Raises:
            SecureDaguError: as for `call`.
        """
        if (problem := await self.problem()) is not None:
            raise problem
        began, code, received = perf_counter(), "OK", 0
        series = self._series("server_stream", path)
        call = _download(await self._open(), path)(request, timeout=timeout_s)
        if timeout_s is None:
            self._endless.add(call)
        try:
            async for message in call:
                received += 1
                yield message
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            if not self._has_moved(call):  # else it ends in order, and who wants to hear more asks again
                code, raised = self._error(error)
                raise raised from None
        finally:
            self._endless.discard(call)
            call.cancel()  # nothing when it has ended; otherwise the reader went away
            series.ended(code, perf_counter() - began, received=received, sent=1)

    async def renew(self) -> SecureDaguError | None:
        """Connect anew, so that both ends show their present certificates, and move over; make before break.

        New calls use the new connection at once, long polls and watches move to it, all others have `DRAIN_S` to end on
        the old one; returns after that. Returns why there is no new connection: then the old one stays in use.
        """
        if self._grpc is None or self._link is None or self._is_closed:
            return None  # whoever connects first shows the present certificate anyway
        fresh = self._made(self._link)
        problem = await self._ready(fresh, RENEW_S)
        if problem is not None or self._is_closed:
            await fresh.close()
            return problem
        old, self._grpc = self._grpc, fresh
        self._misses = 0
        moving, self._endless = self._endless, set()
        self._moved |= moving
        for call in moving:
            call.cancel()
        if old is not None:
            try:
                await old.close(grace=DRAIN_S)
            except asyncio.CancelledError:  # the process is ending: now or never
                await old.close()
                raise
        return None

    async def _watched(self, asked: grpc.aio.UnaryUnaryCall[bytes, bytes], timeout_s: float | None) -> bytes:
        if timeout_s is not None:
            return await asked
        self._endless.add(asked)
        try:
            return await asked
        finally:
            self._endless.discard(asked)

    def _has_moved(self, call: grpc.aio.Call) -> bool:
        """Tell whether a call was ended by `renew`, and by nobody else."""
        if call not in self._moved:
            return False
        self._moved.discard(call)
        task = asyncio.current_task()
        return not self._is_closed and (task is None or not task.cancelling())

    async def close(self) -> None:
        """Close the connection; open calls end with `Unavailable`."""
        self._is_closed = True
        async with self._lock:
            channel, self._grpc = self._grpc, None
            link, self._link = self._link, None
        if channel is not None:
            await channel.close()
        if link is not None:
            await link.close()

    async def _open(self) -> grpc.aio.Channel:
        if self._grpc is not None:
            return self._grpc
        async with self._lock:
            if self._is_closed:
                raise Unavailable(f"coordinator {self.address} is not asked any more", why="this process is ending")
            if self._link is None:
                self._link = await self._connect(self.host, self.port)
            if self._grpc is None:
                self._grpc = self._made(self._link)
            return self._grpc

    def _made(self, link: Link) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(link.target, options=(*_OPTIONS, ("grpc.default_authority", link.authority)))

    async def _replace_if_silent(self, code: str) -> None:
        if code != "DEADLINE_EXCEEDED":
            return
        self._misses += 1
        if self._misses < SILENT_AFTER:
            return
        self._misses = 0
        channel, self._grpc = self._grpc, None
        if channel is not None:
            await channel.close()

    def _series(self, kind: str, path: str) -> Series:
        service, _, name = path[1:].partition("/")
        series = self._recorder.method(kind, service, name)
        series.started()
        return series

    def _error(self, error: BaseException) -> tuple[str, BaseException]:
        """Return the status name to record and what to raise."""
        if isinstance(error, grpc.aio.AioRpcError):
            details = error.details() or ""
            if "Received http2 header with status" in details:
                return (
                    error.code().name,
                    # Waiting cannot help: TLS, and with it who we are, ends there.
                    link_error(
                        Verdict(side=Side.CLIENT, reason=Reason.HTTP_PROXY, address=self.address, detail=details[:200])
                    ),
                )
            if error.code() is grpc.StatusCode.INTERNAL and details.startswith(OWN_FAILURE):
                return "UNAVAILABLE", self._cause("the connection was closed")
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
                self._recorder.too_large()
            told = status.error_of(error.code(), details, _pairs(error.trailing_metadata()))
            if type(told) is Unavailable and not _is_answer(error):
                return error.code().name, self._cause(details)
            return error.code().name, told
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return "CANCELLED", error
        return "UNAVAILABLE", self._cause("the connection was closed")

    def _cause(self, said: str) -> SecureDaguError:
        """Return the exact reason of the last failed dial; without one, what gRPC says."""
        cause = self._link.explain() if self._link is not None else None
        if cause is not None:
            return cause.with_traceback(None)  # raised many times; it must not collect the frames of each
        return Unavailable(f"coordinator {self.address} is not reachable", why=said[:300])


# Without (de)serialisers gRPC passes bytes through; its stubs do not know that.


def _unary(channel: grpc.aio.Channel, path: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(path)


def _upload(channel: grpc.aio.Channel, path: str) -> grpc.aio.StreamUnaryMultiCallable[bytes, bytes]:
    return channel.stream_unary(path)


def _download(channel: grpc.aio.Channel, path: str) -> grpc.aio.UnaryStreamMultiCallable[bytes, bytes]:
    return channel.unary_stream(path)


def _pairs(metadata: Any) -> list[tuple[str, str | bytes]]:
    return list(metadata) if metadata is not None else []


def _is_answer(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether the coordinator itself said UNAVAILABLE, rather than the connection."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return True
    return any(key == status.METADATA_KEY for key, _ in _pairs(error.trailing_metadata()))
