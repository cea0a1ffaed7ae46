"""The health port: `GET /health`, `/ready` and `/metrics` in HTTP/1.1, bounded in every direction.

A protocol on the event loop without tasks: an answer is made from memory, in one step, when its request is whole.
Where the port speaks HTTPS, `link` stands in front and hands each connection on through a private unix socket.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, cast

import h11
from msgspec import Struct

from secure_dagu.errors import ConfigError, SecureDaguError

MAX_CONNECTIONS = 64
TIMEOUT_S = 10.0
"""How long a connection may take for a request, and how long it may stay idle afterwards."""
MAX_REQUEST = 8192
"""Bytes of a request with its headers."""

Facts = Callable[[], Mapping[str, Any]]
"""What `/health` says, made anew for each question. It is about this process, so it is always 200: an orchestrator that
restarts on it must not end a worker that drains or whose coordinator is away."""
Objections = Callable[[], Sequence[SecureDaguError]]
"""Why this process cannot do its work now; none: `/ready` is 200, else 503 with the reasons."""
Exposition = Callable[[str], tuple[bytes, str]]
"""Takes the `Accept` header, returns body and content type."""


class Refusal(Struct, frozen=True, kw_only=True):
    """Why somebody may not scrape."""

    status: HTTPStatus
    text: str


Guard = Callable[[str, bytes], Refusal | None]
"""Takes the connection's name (as `link` knows it; empty without TLS) and the `Authorization` header."""


def anybody(_connection: str, _authorization: bytes) -> None:
    """Let everybody scrape who reaches the port."""


def nobody(_connection: str, _authorization: bytes) -> Refusal:
    """Keep `/metrics` shut."""
    return Refusal(status=HTTPStatus.FORBIDDEN, text="metrics are private here")


def bearer(token: bytes) -> Guard:
    """Let those scrape who know a token; the comparison takes the same time wherever it fails."""

    def guard(_connection: str, authorization: bytes) -> Refusal | None:
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token):
            return None
        return Refusal(status=HTTPStatus.UNAUTHORIZED, text="a bearer token is required")

    return guard


class Site(Struct, frozen=True, kw_only=True):
    """What is served, and to whom."""

    facts: Facts
    objections: Objections = lambda: ()
    exposition: Exposition
    guard: Guard

    def answer(self, connection: str, request: h11.Request) -> tuple[int, str, bytes]:
        """Return status, content type and body."""
        if request.method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, _PLAIN, b"only GET and HEAD\n"
        headers = dict(request.headers)
        match request.target.partition(b"?")[0]:
            case b"/health":
                return HTTPStatus.OK, _JSON, _json({**self.facts(), "ready": not self.objections()})
            case b"/ready":
                because = self.objections()
                status = HTTPStatus.SERVICE_UNAVAILABLE if because else HTTPStatus.OK
                return status, _JSON, _json({"ready": not because, "because": [item.as_dict() for item in because]})
            case b"/metrics":
                refusal = self.guard(connection, headers.get(b"authorization", b""))
                if refusal is not None:
                    return refusal.status, _PLAIN, f"{refusal.text}\n".encode()
                body, content_type = self.exposition(headers.get(b"accept", b"").decode("latin-1"))
                return HTTPStatus.OK, content_type, body
            case _:
                return HTTPStatus.NOT_FOUND, _PLAIN, b"there is /health, /ready and /metrics\n"


class HealthPort(Struct, frozen=True, kw_only=True):
    """The open port."""

    host: str
    port: int


@asynccontextmanager
async def serve(
    site: Site, *, host: str, port: int, key: str, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[HealthPort]:
    """Serve in plain HTTP until left.

    Args:
        site: what is served.
        host: where.
        port: 0 picks a free one.
        key: the setting that named the port, for the error.
        timeout_s: see `TIMEOUT_S`.

    Raises:
        ConfigError: the port cannot be had.
    """
    port_of = _Port(site, timeout_s)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: _Connection(port_of),
            # As bytes: for text Python brings the tables of international names, 0.4 MiB.
            [host.encode()] if host and host.isascii() else host,  # type: ignore[list-item]  # either will do
            port,
            backlog=MAX_CONNECTIONS,
        )
    except OSError as error:
        raise ConfigError(
            f"the health port {host}:{port} cannot be opened",
            why=error.strerror or str(error),
            fix=f"set {key} to a free port, or to 0 for none",
        ) from error
    with port_of.closing(server):
        bound = server.sockets[0].getsockname()
        yield HealthPort(host=bound[0], port=bound[1])


@asynccontextmanager
async def serve_behind(site: Site, *, path: str) -> AsyncIterator[None]:
    """Serve on the private unix socket `path` until left; `link` comes through it, one connection for each link."""
    port_of = _Port(site, TIMEOUT_S)
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(port_of), path)
    with port_of.closing(server):
        yield


class _Port:
    """What all connections of a port share."""

    def __init__(self, site: Site, timeout_s: float) -> None:
        self.site, self.timeout_s = site, timeout_s
        self.connections: set[_Connection] = set()

    @contextmanager
    def closing(self, server: asyncio.AbstractServer) -> Iterator[None]:
        """Close the port and every connection at the end."""
        try:
            yield
        finally:
            server.close()
            for connection in tuple(self.connections):
                connection.abort()


def _json(facts: Mapping[str, Any]) -> bytes:
    # no spaces: probes look for `"status":"healthy"`
    return json.dumps(facts, default=str, separators=(",", ":")).encode() + b"\n"


_JSON = "application/json"
_PLAIN = "text/plain; charset=utf-8"


class _Connection(asyncio.Protocol):
    """One connection: read a request, answer it, wait for the next."""

    def __init__(self, port: _Port) -> None:
        self._port = port
        self._name = ""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class, only of that shape
        if len(self._port.connections) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._transport = transport
        self._port.connections.add(self)
        name = transport.get_extra_info("peername")
        if isinstance(name, str):  # a unix socket's; the register calls the connection so
            self._name = f"unix:{name}"
        self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.connections.discard(self)
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
            status, content_type, body = self._port.site.answer(self._name, event)
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
        self._timer = asyncio.get_running_loop().call_later(self._port.timeout_s, self.abort)
