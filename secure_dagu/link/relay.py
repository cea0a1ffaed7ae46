"""Copies bytes both ways between a link and the private socket, with back-pressure. The hot path of the program.

Two transports, one `End` each. An end reads into a buffer that all ends of one loop share (nothing stays in it between
two calls), turns what came into whole chunks for its partner, and stops its partner's reading while more than `HIGH`
bytes wait to be written here. TLS costs one `bio_write` and one `recv` a record inwards, one `send` and one `bio_read`
a read outwards; everything that OpenSSL has decrypted is taken at once, so no byte can hide in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, cast

from OpenSSL import SSL

from secure_dagu.link import context

READ_BYTES: Final = 1 << 17
"""Size of the shared read buffer. Measured with both ends on one core: 64 KiB 275, 128 KiB 375, 256 KiB 305 MB/s."""
HIGH: Final = 1 << 20
"""Bytes that may wait for one side before the other is no longer read."""
HALF_CLOSED_S: Final = 5.0
"""How long one direction may live on after the other has ended."""

_RECORD: Final = 1 << 14
_OVERHEAD: Final = 1 << 13
"""Room for the record headers and tags of one full read (22 bytes each 16 KiB), and for a key update."""


def new_buffer() -> memoryview:
    """Make the scratch space that all ends of one loop share."""
    return memoryview(bytearray(READ_BYTES))


class Relay:
    """Two ends that feed each other until both have ended."""

    def __init__(self, link: End, back: End, on_link_end: Callable[[Relay], None] | None = None) -> None:
        """`on_link_end` is told when the far side ends first, before the private socket learns of it."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._on_link_end = on_link_end
        self._closed: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._link, self._back = link, back
        link.join(self, back)
        back.join(self, link)
        self.tls_error = ""
        """The OpenSSL word that ended the link, such as a late alert; empty when it ended in order."""

    async def run(self) -> None:
        """Relay once both ends are connected; return when both are closed, abort both on cancellation."""
        try:
            self._link.start()
            self._back.start()
            await self._closed
        finally:
            self.abort()

    def cut(self) -> None:
        """End both directions now; what is already queued for the far side has `HALF_CLOSED_S` to go out."""
        self._back.abort()
        self._link.finish()

    def abort(self) -> None:
        """Drop both ends."""
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._link, self._back):
            end.abort()
            end.part()

    def ended(self, end: End, *, lost: bool) -> None:
        """Note that an end has read its last byte (`lost`: and cannot write either)."""
        link, back = self._link, self._back
        if end is link and not (link.ended or back.ended) and self._on_link_end is not None:
            self._on_link_end(self)
        end.ended = True
        end.lost = end.lost or lost
        if link.lost and back.lost:
            self._close()
            return
        if link.ended and back.ended:
            link.close()
            back.close()
        else:
            (back if end is link else link).finish()
        if self._timer is None:
            self._timer = self._loop.call_later(HALF_CLOSED_S, self._close)

    def _close(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)


class End(asyncio.BufferedProtocol):
    """One side in plain bytes: the private socket, or a link without TLS.

    It is either given an open, paused transport and takes it over (`take_over`), or is the protocol that a transport is
    made with. `early` is what was read before.
    """

    def __init__(self, buffer: memoryview, early: bytes = b"") -> None:
        self.ended = False
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._finished = False
        self._buffer = buffer
        self._early = early
        self._relay: Relay | None = None
        self._other: End | None = None

    def take_over(self, transport: asyncio.Transport) -> None:
        """Become the protocol of an open transport."""
        transport.set_protocol(self)
        self.connection_made(transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Meet the transport."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class, only of that shape
        transport.set_write_buffer_limits(high=HIGH)
        self._transport = transport

    def join(self, relay: Relay, other: End) -> None:
        """Meet the partner."""
        self._relay, self._other = relay, other

    def part(self) -> None:
        """Break the reference cycle."""
        self._relay = self._other = None

    def start(self) -> None:
        """Pass on what came early, then read."""
        if self._early and self._other is not None:
            early, self._early = self._early, b""
            self._other.send_all([early])
        self.resume()

    def send(self, view: memoryview) -> None:
        """Write bytes that live in the shared buffer."""
        if self._transport is not None and not self.lost:
            self._transport.write(
                bytes(view)
            )  # a copy: the transport may keep it, and the buffer is used again at once

    def send_all(self, chunks: list[bytes]) -> None:
        """Write whole chunks."""
        if self._transport is not None and not self.lost:
            self._transport.writelines(chunks)

    def finish(self) -> None:
        """Say to this side that nothing more will come."""
        transport = self._transport
        if transport is not None and not self._finished and not self.lost:
            self._finished = True
            if transport.can_write_eof() and not transport.is_closing():
                transport.write_eof()

    def close(self) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading here."""
        if self._transport is not None and not self.lost:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read here (again)."""
        if self._transport is not None and not self.lost:
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what came."""
        if self._other is not None:
            self._other.send(self._buffer[:nbytes])

    def eof_received(self) -> bool:
        """Pass the end on; the transport stays ours to close."""
        if self._relay is not None and not self.ended:
            self._relay.ended(self, lost=False)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the loss on."""
        self.lost = True
        if self._relay is not None:
            self._relay.ended(self, lost=True)

    def pause_writing(self) -> None:
        """Too much waits here: the partner is no longer read."""
        if self._other is not None:
            self._other.pause()

    def resume_writing(self) -> None:
        """Read the partner again."""
        if self._other is not None:
            self._other.resume()


class TlsEnd(End):
    """The link: TLS outside, plain bytes inside."""

    def __init__(self, buffer: memoryview, ssl: SSL.Connection, early: bytes = b"") -> None:
        super().__init__(buffer, early)
        self._ssl = ssl

    def start(self) -> None:
        """Pass on what the handshake left, then read."""
        super().start()
        self._drain()

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what came and pass it on."""
        self._ssl.bio_write(self._buffer[:nbytes])
        self._drain()

    def send(self, view: memoryview) -> None:
        """Encrypt and write."""
        if self._finished or self.lost or self._transport is None:
            return
        ssl = self._ssl
        size = len(view)
        try:
            sent = ssl.send(view)
            while sent < size:  # never with `context`'s modes, where one call takes all; a lost byte would be silent
                sent += ssl.send(view[sent:])
            self._transport.write(ssl.bio_read(size + _OVERHEAD))
        except SSL.Error as error:
            self._break(error)

    def send_all(self, chunks: list[bytes]) -> None:
        """Encrypt and write whole chunks."""
        for chunk in chunks:
            self.send(memoryview(chunk))

    def finish(self) -> None:
        """Say close_notify, then end the stream."""
        if not self._finished and not self.lost:
            with contextlib.suppress(SSL.Error):  # broken already: the end of the stream says it
                self._ssl.shutdown()
            self._flush()
        super().finish()

    def _drain(self) -> None:
        recv = self._ssl.recv
        chunks: list[bytes] = []
        error: SSL.Error | None = None
        try:
            while True:
                chunks.append(recv(_RECORD))
        except SSL.WantReadError:
            pass
        except SSL.Error as ended:
            error = ended
        if chunks and self._other is not None:
            self._other.send_all(chunks)
        if error is not None:
            self._break(error)
        elif not chunks:
            self._flush()  # no data in it: a key update may want its answer, and must not pile up

    def _break(self, error: SSL.Error) -> None:
        relay = self._relay
        if not isinstance(error, SSL.ZeroReturnError):
            if relay is not None and not relay.tls_error:
                relay.tls_error = context.words_of(error) or "protocol error"
            self._flush()
        if relay is not None and not self.ended:
            relay.ended(self, lost=False)

    def _flush(self) -> None:
        try:
            data = self._ssl.bio_read(1 << 16)
        except SSL.Error:
            return
        transport = self._transport
        if transport is not None and not self._finished and not transport.is_closing():
            transport.write(data)
