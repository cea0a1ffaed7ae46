"""uvicorn's HTTP protocol, with what it leaves out: whose connection it is, and bounds on what comes before a body.

A stranger is not known before a head is whole, so nothing may be kept for one without end: neither time nor memory.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD: Final = 64 * 2**10
"""Bytes of request line and fields. Trailers and chunk extensions count as well: bytes that give no body."""
_SAID: Final = b'{"code":"payload_too_large","message":"the head of a request has at most %d bytes"}' % MAX_HEAD
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_SAID), _SAID)
)


class Protocol(HttpToolsProtocol):
    """One connection."""

    headers_s = 10.0
    """How long a head may take, and a connection may be idle."""
    _deadline: asyncio.TimerHandle | None = None
    _idle_bytes = 0
    """Received since something came of it: a head, a piece of body, the end of a request."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        if isinstance(name, str | bytes) and name:
            self.client = (f"unix:{name if isinstance(name, str) else name.decode()}", 0)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; end a connection of which nothing comes."""
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > MAX_HEAD and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop waiting: the head is there."""
        self._heard()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of body: its size is the application's to bound."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._idle_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next one."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        self._heard()
        self._deadline = self.loop.call_later(self.headers_s, self.transport.close)

    def _heard(self) -> None:
        self._idle_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
