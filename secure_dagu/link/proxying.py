"""The way out through an HTTP proxy: CONNECT to the coordinator, and the same mutual TLS inside, end to end.

The proxy sees a name and bytes. It is never asked for loopback, nor for what `no_proxy` lists.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from secure_dagu.dispatch.address import host_port
from secure_dagu.security.secret import Secret
from secure_dagu.security.verdict import Reason, Side, Verdict

LIMIT_S: Final = 10.0
"""How long the proxy may take to reach the coordinator."""
MAX_ANSWER: Final = 16_384
_ANSWER: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]{0,200}))?\r?\n")


class Proxy(Struct, frozen=True, kw_only=True):
    """One HTTP proxy, and whom it is not asked for."""

    host: str
    port: int
    authorization: Secret | None = None
    """What `Proxy-Authorization` says."""
    passed_over: tuple[str, ...] = ()
    """Names, suffixes (`.example.com`), addresses, networks, or `*`; each with a port if only that is meant."""

    @property
    def address(self) -> str:
        """Return `host:port`."""
        return host_port(self.host, self.port)

    def serves(self, host: str, port: int) -> bool:
        """Tell whether a coordinator is reached through the proxy."""
        name = host.lower().rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        if name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback):
            return False
        return not any(_matches(pattern, name, port, address) for pattern in self.passed_over)


def parse(url: str, passed_over: Sequence[str]) -> Proxy:
    """Read `http://[user:password@]host:port`.

    Raises:
        ValueError: it is no such URL; the text does not repeat it, for it may hold a password.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("expected http://HOST:PORT") from None
    if parts.scheme != "http" or not host:
        raise ValueError("expected http://HOST:PORT; the coordinator is proven inside, whatever the way to the proxy")
    authorization = None
    if parts.username is not None:
        said = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = Secret("Basic " + base64.b64encode(said.encode()).decode())
    return Proxy(host=host, port=port or 80, authorization=authorization, passed_over=tuple(passed_over))


async def connect(sock: socket.socket, proxy: Proxy, host: str, port: int) -> Verdict | None:
    """Ask the proxy, which `sock` is connected to, for a way to the coordinator; None: it is open.

    Nothing beyond the proxy's answer is read from `sock`.
    """
    where = host_port(host, port)
    request = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n"
    if proxy.authorization is not None:
        request += f"Proxy-Authorization: {proxy.authorization.reveal()}\r\n"
    loop = asyncio.get_running_loop()

    def refused(reason: Reason, detail: str) -> Verdict:
        return Verdict(side=Side.CLIENT, reason=reason, address=where, detail=f"proxy {proxy.address}: {detail}")

    try:
        async with asyncio.timeout(LIMIT_S):
            await loop.sock_sendall(sock, f"{request}\r\n".encode("ascii"))
            answer = await _head(sock)
    except TimeoutError:
        return refused(Reason.PROXY_REFUSED, f"no answer within {LIMIT_S:.0f} s")
    except (OSError, UnicodeError) as error:
        return refused(Reason.PROXY_REFUSED, getattr(error, "strerror", None) or "the connection ended")
    found = _ANSWER.match(answer)
    if found is None:
        return refused(Reason.PROXY_REFUSED, "what answers is no HTTP proxy")
    if found[1].startswith(b"2"):
        return None
    words = "".join(c for c in (found[2] or b"").decode("latin-1") if c.isprintable())
    return refused(Reason.PROXY_REFUSED, f"it answered {found[1].decode()} {words}".rstrip())


async def _head(sock: socket.socket) -> bytes:
    """Read up to the empty line and not a byte further: what follows is the coordinator's."""
    loop, found = asyncio.get_running_loop(), b""
    while not found.endswith(b"\r\n\r\n") and len(found) < MAX_ANSWER:
        piece = await loop.sock_recv(sock, 1)  # one at a time: some hundred bytes, once a connection
        if not piece:
            break
        found += piece
    return found


def _matches(pattern: str, name: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    word = pattern.strip().lower()
    if word == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(word.strip("[]"), strict=False)
        except ValueError:
            pass
    only = re.fullmatch(r"(.+):(\d{1,5})", word)
    if only is not None and word.count(":") == 1:
        if int(only[2]) != port:
            return False
        word = only[1]
    if address is not None:
        return word.strip("[]") == name
    word = word.removeprefix("*")
    return bool(word.strip(".")) and (name == word.lstrip(".") or name.endswith("." + word.lstrip(".")))
