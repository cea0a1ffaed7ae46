"""What every HTTP request passes before anything reads it, and every answer after: addresses, names, sizes, headers.

Plain ASGI: it runs for each request, and for each piece of a stream.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import web_series
from secure_dagu.web.api.problems import answer

log = structlog.get_logger()

MAX_BODY: Final = 2 * 2**20
CSP: Final = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", CSP.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"strict-origin-when-cross-origin"),
    (b"permissions-policy", b"geolocation=(), camera=(), microphone=(), payment=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-xss-protection", b"0"),
)
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Outside(Struct, frozen=True, kw_only=True):
    """What is decided about the way to the server."""

    hosts: frozenset[str]
    """Names by which it may be called, lower case; an address may always be used: no name server can turn it around."""
    allowed: Sequence[Network] = ()
    """Who may come; empty: everybody."""
    proxies: Sequence[Network] = ()
    """Whose word counts for whom they come."""
    base_path: str = ""
    body_limit_s: float = 60.0
    """How long a body may take to come."""
    access_log: str = "none"
    """`all`, `non-public` or `none`."""
    quiet: frozenset[str] = frozenset()
    """Paths that `non-public` leaves out."""


class Walls:
    """The outermost application of the web server."""

    def __init__(self, app: ASGIApp, outside: Outside, peer_of: Callable[[str], Peer | None]) -> None:
        """Take what is behind, what is decided, and who knows the proven peer of a private connection."""
        self._app, self._outside, self._peer_of = app, outside, peer_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        is_https = self._name_the_client(scope)
        status = 0

        async def outward(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                said = {name.lower() for name, _ in headers}
                headers.extend(pair for pair in _HEADERS if pair[0] not in said)
                if is_https:
                    headers.append(_HSTS)
            await send(message)

        refusal = self._objection(scope)
        try:
            if refusal is not None:
                await refusal(scope, receive, outward)
            else:
                await self._app(scope, _Bounded(receive, scope, self._outside.body_limit_s), outward)
        finally:
            self._measure(scope, status, time.perf_counter() - began)

    def _name_the_client(self, scope: Scope) -> bool:
        """Put the true client, and its proven peer, into the scope; tell whether it came by HTTPS."""
        client = scope.get("client")
        if client is not None and str(client[0]).startswith("unix:"):
            peer = self._peer_of(str(client[0]))
            scope["peer"] = peer
            scope["scheme"] = "https"
            host, _, port = (peer.address if peer is not None else "").rpartition(":")
            scope["client"] = (host.strip("[]"), int(port) if port.isdigit() else 0)
            return True
        return False

    def _objection(self, scope: Scope) -> ASGIApp | None:
        outside = self._outside
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client = _source(scope, headers, outside.proxies)
        if client is None:
            return answer(400, "bad_request", "the proxy's X-Forwarded-For is malformed")
        scope["client"] = (client, scope["client"][1] if scope.get("client") else 0)
        if outside.allowed and not _is_in(client, outside.allowed):
            return answer(403, "forbidden", "access denied")
        host = _name_of(headers.get("host", ""))
        if not host or (host not in outside.hosts and _address(host) is None):
            return answer(
                421, "bad_request",
                f"this server is not called {host[:100]!r}; if it is, say so in public_url",
            )  # fmt: skip
        path = scope["path"]
        if len(path) > 1 and path.endswith("/") and path.rstrip("/") != outside.base_path:
            where = _without_slash(scope)
            if not where:
                return answer(404, "not_found", "404 page not found")
            return answer(301, "moved", "without the slash at its end", Location=where)
        length = headers.get("content-length", "")
        if length and (not length.isdigit() or int(length) > MAX_BODY):
            return answer(413, "payload_too_large", f"a body has at most {MAX_BODY} bytes", Connection="close")
        return None

    def _measure(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "") or "other")[:64]
        method = scope["method"] if scope["method"] in _METHODS else "other"
        web_series.HTTP_REQUESTS.labels(method, route, f"{status // 100}xx").inc()
        if not route.endswith("/events/stream"):
            web_series.HTTP_SECONDS.labels(method, route).observe(seconds)
        mode = self._outside.access_log
        if mode == "all" or (mode == "non-public" and scope["path"] not in self._outside.quiet):
            log.info(
                "http.request", method=method, path=scope["path"][:200], status=status, ms=round(seconds * 1000, 1),
                address=scope["client"][0],
            )  # fmt: skip


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Bounded:
    """Reads a body up to its limits. What comes after the answer began is no body: a client that leaves."""

    def __init__(self, receive: Receive, scope: Scope, limit_s: float) -> None:
        self._receive = receive
        self._size = 0
        self._has_body = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        self._until = time.monotonic() + limit_s

    async def __call__(self) -> Message:
        if not self._has_body:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not come in time", headers={"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > MAX_BODY:
                raise HTTPException(413, f"a body has at most {MAX_BODY} bytes", headers={"Connection": "close"})
            self._has_body = bool(message.get("more_body"))
        return message


def _without_slash(scope: Scope) -> str:
    """Return where a path with a slash at its end leads, written as it came; empty: nowhere here.

    To a browser `//x` and `/\\x` are another host, and it leaves out tabs and ends of lines before it looks.
    """
    path, query = (scope[name].decode("latin-1") for name in ("raw_path", "query_string"))
    where = (path.rstrip("/") or "/") + (f"?{query}" if query else "")
    is_plain = all("!" <= char <= "~" for char in where) and "\\" not in where
    return where if is_plain and not where.startswith("//") else ""


def _source(scope: Scope, headers: dict[str, str], proxies: Sequence[Network]) -> str | None:
    """Return who calls: the connection's other end, or whom a trusted proxy names. None: what it says is malformed."""
    found = str(scope["client"][0]) if scope.get("client") else ""
    if not proxies or not _is_in(found, proxies):
        return found
    chain = [word.strip() for word in headers.get("x-forwarded-for", "").split(",") if word.strip()]
    if not chain and headers.get("x-real-ip"):
        chain = [headers["x-real-ip"].strip()]
    for word in reversed(chain):
        if _address(word) is None:
            return None
        found = word
        if not _is_in(word, proxies):
            break
    return found


def _name_of(host: str) -> str:
    """Return the name of a Host header without its port; empty when it is malformed."""
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        return name if bracket else ""
    name, _, port = host.partition(":")
    return name.lower().rstrip(".") if not port or port.isdigit() else ""


def _address(word: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(word)
    except ValueError:
        return None


def _is_in(word: str, networks: Sequence[Network]) -> bool:
    address = _address(word)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and any(address in network for network in networks)
