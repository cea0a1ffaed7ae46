"""The response that carries live updates: server-sent events, with heartbeats, until somebody ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from secure_dagu.telemetry import web_series
from secure_dagu.web.api.live import Hub, Reader

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_HEARTBEAT = b": heartbeat\n\n"


class EventStream(Response):
    """An open stream. It ends when the client leaves, is too slow, or may no longer read, and when the server stops."""

    media_type = "text/event-stream"

    def __init__(
        self,
        hub: Hub,
        reader: Reader,
        *,
        heartbeat_s: float,
        slow_s: float,
        at_once: int,
        still_welcome: Callable[[], Awaitable[bool]],
    ) -> None:
        """Make one for a reader that `hub` has taken in.

        Args:
            hub: lets the reader go at the end.
            reader: whose frames.
            heartbeat_s: how often a silent stream says that it lives.
            slow_s: how long one piece may take to be sent.
            at_once: about how many bytes are sent in one piece.
            still_welcome: asked at each heartbeat whether the account behind the stream is still good.
        """
        super().__init__()
        self._hub, self._reader = hub, reader
        self._heartbeat_s, self._slow_s, self._at_once = heartbeat_s, slow_s, at_once
        self._still_welcome = still_welcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        headers = [*_HEADERS, *(pair for pair in self.raw_headers if pair[0] == b"set-cookie")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with asyncio.TaskGroup() as group:
                tasks = {group.create_task(_gone(receive)), group.create_task(self._write(send))}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        finally:
            self._hub.close(self._reader)

    async def _write(self, send: Send) -> None:
        beat_at = time.monotonic() + self._heartbeat_s
        while not self._reader.is_over:
            piece = self._reader.take(self._at_once)
            now = time.monotonic()
            if now >= beat_at:
                if not await self._still_welcome():
                    break
                beat_at = now + self._heartbeat_s
                if not piece:
                    piece = _HEARTBEAT
                    web_series.SSE_MESSAGES.labels("heartbeat").inc()
            if piece:
                await self._send(send, piece)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, beat_at - time.monotonic())):
                        await self._reader.wake.wait()
        await self._send(send, b"", is_last=True)

    async def _send(self, send: Send, piece: bytes, *, is_last: bool = False) -> None:
        try:
            async with asyncio.timeout(self._slow_s or None):
                await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
        except TimeoutError:
            web_series.SSE_SLOW_CLIENTS.inc()
            self._reader.end()


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
