"""The health port: `GET /health` and `GET /metrics` over plain HTTP/1.1, bounded in every direction.

A protocol on the event loop without tasks: an answer is made from memory, in one step, when its request is whole.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import h11

from secure_dagu.errors import ConfigError

MAX_CONNECTIONS = 64
TIMEOUT_S = 10.0
"""How long a connection may take for a request, and how long it may stay idle afterwards."""
MAX_REQUEST = 8192
"""Bytes of a request with its headers."""

Facts = Callable[[], Mapping[str, Any]]
"""What `/health` says, made anew for each question. Its `status` is `healthy`, or the answer is 503."""
Exposition = Callable[[str], tuple[bytes, str]]
"""Takes the `Accept` header, returns body and content type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPort:
    """The open port."""

    host: str
    port: int


@asynccontextmanager
async def serve(
    *,
    host: str,
    port: int,
    key: str,
    facts: Facts,
    exposition: Exposition | None,
    token: str = "",
    timeout_s: float = TIMEOUT_S,
) -> AsyncIterator[HealthPort]:
    """Serve until left.

    Args:
        port: 0 picks a free one.
        key: the setting that named the port, for the error.
        exposition: None keeps `/metrics` shut.
        token: when given, `/metrics` asks for it as a bearer token.

    Raises:
        ConfigError: the port cannot be had.
    """
    site = _Site(facts=facts, exposition=exposition, token=token.encode(), timeout_s=timeout_s)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: _Connection(site), host, port, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise ConfigError(
            f"the health port {host}:{port} cannot be opened",
            why=error.strerror or str(error),
            fix=f"set {key} to a free port, or to 0 for none",
        ) from error
    try:
        bound = server.sockets[0].getsockname()
        yield HealthPort(host=bound[0], port=bound[1])
    finally:
        server.close()
        for connection in tuple(site.connections):
            connection.abort()


class _Site:
    """What all connections share."""

    def __init__(self, *, facts: Facts, exposition: Exposition | None, token: bytes, timeout_s: float) -> None:
        self.connections: set[_Connection] = set()
        self.timeout_s = timeout_s
        self._facts = facts
        self._exposition = exposition
        self._token = token

    def answer(self, request: h11.Request) -> tuple[int, str, bytes]:
        """Return status, content type and body."""
        if request.method not in (b"GET", b"HEAD"):
            return 405, _PLAIN, b"only GET and HEAD\n"
        headers = dict(request.headers)
        match request.target.partition(b"?")[0]:
            case b"/health":
                facts = self._facts()
                status = 200 if facts.get("status") == "healthy" else 503
                return status, "application/json", json.dumps(facts, default=str).encode() + b"\n"
            case b"/metrics" if not self._may_scrape(headers):
                return 401, _PLAIN, b"a bearer token is required\n"
            case b"/metrics":
                if self._exposition is None:
                    return 403, _PLAIN, b"metrics are private here\n"
                body, content_type = self._exposition(headers.get(b"accept", b"").decode("latin-1"))
                return 200, content_type, body
            case _:
                return 404, _PLAIN, b"there is /health and /metrics\n"

    def _may_scrape(self, headers: Mapping[bytes, bytes]) -> bool:
        if not self._token:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)


_PLAIN = "text/plain; charset=utf-8"


class _Connection(asyncio.Protocol):
    """One connection: read a request, answer it, wait for the next."""

    def __init__(self, site: _Site) -> None:
        self._site = site
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class, only of that shape
        if len(self._site.connections) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._transport = transport
        self._site.connections.add(self)
        self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while self._transport is not None and self._take_event():
                pass
        except h11.RemoteProtocolError:
            # TLS, HTTP/2 or junk on this port: say so in the only language spoken here, and close.
            self._refuse()

    def eof_received(self) -> bool:
        return False

    def _take_event(self) -> bool:
        """Handle one event; False when more bytes are needed or the connection ends."""
        event = self._http.next_event()
        if isinstance(event, h11.Request):
            status, content_type, body = self._site.answer(event)
            self._send(status, content_type, body, with_body=event.method != b"HEAD")
            return self._transport is not None
        if isinstance(event, h11.Data):
            raise h11.RemoteProtocolError("requests have no body here")
        if isinstance(event, h11.EndOfMessage):
            if self._http.our_state is h11.MUST_CLOSE:
                self._close()
                return False
            self._http.start_next_cycle()
            self._restart_timer()
            return True
        if isinstance(event, h11.ConnectionClosed):
            self._close()
        return False

    def _send(self, status: int, content_type: str, body: bytes, *, with_body: bool) -> None:
        assert self._transport is not None, "only an open connection is answered"
        headers = [
            ("content-type", content_type),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
        ]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("allow", "GET, HEAD"))
        if status == HTTPStatus.UNAUTHORIZED:
            headers.append(("www-authenticate", "Bearer"))
        head = self._http.send(h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase))
        parts = [head or b""]
        if with_body:
            parts.append(self._http.send(h11.Data(data=body)) or b"")
        parts.append(self._http.send(h11.EndOfMessage()) or b"")
        self._transport.write(b"".join(parts))

    def _refuse(self) -> None:
        if self._transport is None:
            return
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(400, _PLAIN, b"this port speaks HTTP/1.1 only\n", with_body=True)
        self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._site.timeout_s, self.abort)
