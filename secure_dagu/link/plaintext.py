"""The start of a link without TLS (`UnsafePlaintext`): a look at the first bytes instead of a handshake."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final, cast

from secure_dagu.link.handshake import say_last_word
from secure_dagu.security.peer import Peer
from secure_dagu.security.tls_signs import http_answer, is_client_hello, speaks_http
from secure_dagu.security.verdict import Reason, Side, Verdict

LOOK_S: Final = 0.1
"""gRPC clients speak at once; whoever does not may be waiting for the server's first word."""
_EMPTY_SETTINGS: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""An HTTP/2 frame: a TLS client then reports that this is no TLS server, which is the cause in its own words."""


class Opening(asyncio.BufferedProtocol):
    """Take a plaintext connection: → an unproven `Peer`, or a `Verdict` for those who wanted something else."""

    def __init__(self, *, connection: str, address: str, buffer: memoryview) -> None:
        self._connection, self._address, self._buffer = connection, address, buffer
        loop = asyncio.get_running_loop()
        self._spoke: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._early = b""

    async def finish(self) -> Peer | Verdict:
        """Look at the first bytes, for at most `LOOK_S`."""
        await self._spoke
        if is_client_hello(self._early):
            return self._refused(Reason.PLAINTEXT_SERVER)
        if speaks_http(self._early):
            return self._refused(Reason.HTTP_CLIENT)
        if self._gone.done():
            return self._refused(Reason.PEER_CLOSED)
        return Peer(connection=self._connection, address=self._address, opened_at=datetime.now(UTC))

    def take(self) -> tuple[asyncio.Transport, bytes]:
        """Hand over the (paused) transport and what was read."""
        assert self._transport is not None
        return self._transport, self._early

    async def refuse(self, verdict: Verdict) -> None:
        """Close so that the other end reads our last word, which has been said."""
        if self._transport is not None:
            await say_last_word(self._transport, self._gone)

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Meet the transport."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class, only of that shape
        self._transport = transport
        asyncio.get_running_loop().call_later(LOOK_S, self._stop_looking)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Keep the first bytes and stop reading; what comes while refusing is thrown away."""
        if not self._spoke.done():
            self._early = bytes(self._buffer[:nbytes])
            self._stop_looking()

    def eof_received(self) -> bool:
        """Note that the other end is done; the transport stays ours to close."""
        self.connection_lost(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        for future in (self._gone, self._spoke):
            if not future.done():
                future.set_result(None)

    def _stop_looking(self) -> None:
        if not self._spoke.done():
            assert self._transport is not None
            self._transport.pause_reading()  # what comes now belongs to the relay
            self._spoke.set_result(None)

    def _refused(self, reason: Reason) -> Verdict:
        verdict = Verdict(side=Side.SERVER, reason=reason, address=self._address)
        if self._transport is not None and not self._transport.is_closing():
            if reason is Reason.PLAINTEXT_SERVER:
                self._transport.write(_EMPTY_SETTINGS)
            elif reason is Reason.HTTP_CLIENT:
                self._transport.write(http_answer(verdict))
        return verdict
