"""How a machine asks for a certificate: one bounded exchange over TLS 1.3 on the coordinator's own port, both ends.

Two protocols (ALPN) stand beside gRPC. With `secure-dagu-enrol/1` the server asks for no certificate, because a machine
that joins has none; the client has pinned the server's root before it says its token. With `secure-dagu-renew/1` both
are proven as everywhere. Then the server says one line, the client one, the server one, and the connection ends:

    server   {"protocol":1}                 so that a client that was refused learns it before it has said anything
    client   a JSON document, at most `MAX_REQUEST` bytes
    server   a JSON document, at most `MAX_ANSWER` bytes

Nothing of such a connection ever reaches gRPC. What the documents say is `pki.asking`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from OpenSSL import SSL

from secure_dagu.dispatch.address import host_port
from secure_dagu.errors import Refused
from secure_dagu.link import context, dialer, proxying
from secure_dagu.link.context import ClientPolicy, JoinPolicy
from secure_dagu.link.handshake import Handshake
from secure_dagu.link.relay import new_buffer
from secure_dagu.security.peer import Peer
from secure_dagu.security.verdict import Reason, Side, Verdict, error_of

MAX_REQUEST: Final = 16 << 10
MAX_ANSWER: Final = 256 << 10
LIMIT_S: Final = 10.0
"""For the whole exchange after the handshake."""
LINGER_S: Final = 1.0
"""How long the server waits for the client to close after the answer."""

GREETING: Final = b'{"protocol":1}'
_RECORD: Final = 1 << 14

Answerer = Callable[[Peer, bytes], Awaitable[bytes]]
"""Answers one request; the peer is proven (`Peer.is_proven`) when it renews. Whatever it raises ends the connection."""


class Exchange(asyncio.BufferedProtocol):
    """Lines over an open TLS connection. One side of `link.enrol`."""

    def __init__(self, transport: asyncio.Transport, ssl: SSL.Connection, early: bytes, buffer: memoryview) -> None:
        self._transport, self._ssl, self._buffer = transport, ssl, buffer
        self._read = bytearray(early)
        self._limit = MAX_REQUEST
        self._ended = False
        self._error = ""
        self._news = asyncio.Event()
        transport.set_protocol(self)
        self._drain()
        if not self._ended:
            transport.resume_reading()

    async def read_line(self, limit: int) -> bytes | None:
        """Return the next line without its end; None for none of at most `limit` bytes before the other side ends."""
        self._limit = limit
        while True:
            line, newline, rest = self._read.partition(b"\n")
            if newline and len(line) <= limit:
                self._read = rest
                return bytes(line)
            if len(self._read) > limit or self._ended:
                return None
            self._transport.resume_reading()
            self._news.clear()
            await self._news.wait()

    def write_line(self, line: bytes) -> None:
        """Send a line."""
        with contextlib.suppress(SSL.Error):  # broken: the reading side says so
            self._ssl.sendall(line + b"\n")
        self._flush()

    @property
    def error(self) -> str:
        """Return the OpenSSL word that broke the connection, such as a late alert; empty when nothing did."""
        return self._error

    async def close(self) -> None:
        """Say that nothing more comes, wait a little for the other side's end, then close."""
        with contextlib.suppress(SSL.Error):
            self._ssl.shutdown()
        self._flush()
        try:
            if self._transport.can_write_eof() and not self._transport.is_closing():
                self._transport.write_eof()
            async with asyncio.timeout(LINGER_S):
                while not self._ended:
                    self._read.clear()
                    self._news.clear()
                    self._transport.resume_reading()
                    await self._news.wait()
        except (TimeoutError, OSError):
            pass  # it stays, or is gone
        finally:
            self._transport.abort()

    # ── what the transport calls ─────────────────────────────────────────────────────────────────────────────────────

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what came; stop reading once there is more than anybody asked for."""
        self._ssl.bio_write(self._buffer[:nbytes])
        self._drain()
        if len(self._read) > self._limit:
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> bool:
        """Note the end; the transport stays ours to close."""
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._end()

    def _drain(self) -> None:
        try:
            while True:
                self._read += self._ssl.recv(_RECORD)
        except SSL.WantReadError:
            self._flush()
        except SSL.Error as error:
            if not isinstance(error, SSL.ZeroReturnError):
                self._error = context.words_of(error)
                self._flush()
            self._end()

    def _flush(self) -> None:
        with contextlib.suppress(SSL.Error):
            while data := self._ssl.bio_read(1 << 16):
                if not self._transport.is_closing():
                    self._transport.write(data)

    def _end(self) -> None:
        self._ended = True
        self._news.set()


async def serve(exchange: Exchange, peer: Peer, answer: Answerer, *, limit_s: float = LIMIT_S) -> Verdict | None:
    """Serve one exchange; return why it came to nothing, None when an answer was given."""
    try:
        async with asyncio.timeout(limit_s):
            exchange.write_line(GREETING)
            request = await exchange.read_line(MAX_REQUEST)
            if request is None:
                why = exchange.error or f"it said no line of at most {MAX_REQUEST} bytes"
                return Verdict(side=Side.SERVER, reason=Reason.PEER_CLOSED, address=peer.address, detail=why)
            exchange.write_line(await answer(peer, request))
    except TimeoutError:
        return Verdict(
            side=Side.SERVER, reason=Reason.HANDSHAKE_TIMEOUT, address=peer.address, detail="while it enrolled"
        )
    finally:
        await exchange.close()
    return None


async def ask(
    policy: JoinPolicy | ClientPolicy, host: str, port: int, request: bytes, *, proxy: proxying.Proxy | None = None
) -> bytes:
    """Send one request to a coordinator and return its answer. A `ClientPolicy` renews, a `JoinPolicy` joins.

    `proxy`: as in `dialer.dialers`.

    Raises:
        Refused: it does not enrol.
        LinkUnavailable, LinkRefused, LinkMisconfigured: the verdict as an error; before the coordinator has been
            proven nothing was sent.
    """
    host = host.strip("[]")
    outcome = await _ask(policy, host, port, request, proxy if proxy is not None and proxy.serves(host, port) else None)
    if isinstance(outcome, Verdict):
        if outcome.reason is Reason.ALPN:
            raise Refused(
                f"{outcome.address} gives out no certificates",
                why="it has no CA key, speaks plaintext, or is no coordinator of this program",
                fix="issue the certificate where the CA is with `secure-dagu pki issue`, and bring it here",
            )
        raise error_of(outcome)
    return outcome


async def _ask(
    policy: JoinPolicy | ClientPolicy, host: str, port: int, request: bytes, proxy: proxying.Proxy | None
) -> bytes | Verdict:
    where = host_port(host, port)
    connected = await dialer.reach(host, port, proxy=proxy)
    if isinstance(connected, Verdict):
        return connected
    buffer = new_buffer()
    shake = Handshake(
        policy, connection="", address=where, host=host, buffer=buffer, protocol=context.RENEW
    )  # a `JoinPolicy` says its own
    try:
        await asyncio.get_running_loop().create_connection(lambda: shake, sock=connected)
        outcome = await shake.finish()
    except BaseException:
        connected.close()
        shake.abort()
        raise
    if isinstance(outcome, Verdict):
        await shake.refuse(outcome)
        return outcome
    exchange = Exchange(*shake.take(), buffer)
    try:
        async with asyncio.timeout(LIMIT_S):
            answer = None
            if await exchange.read_line(MAX_REQUEST) == GREETING:
                exchange.write_line(request)
                answer = await exchange.read_line(MAX_ANSWER)
    except TimeoutError:
        return Verdict(side=Side.CLIENT, reason=Reason.HANDSHAKE_TIMEOUT, address=where, detail="it did not answer")
    finally:
        await exchange.close()
    if answer is not None:
        return answer
    return Verdict(side=Side.CLIENT, reason=Reason.CLOSED, address=where, detail=exchange.error or "without an answer")
