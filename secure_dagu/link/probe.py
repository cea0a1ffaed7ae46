"""Further, harmless connections that name what listens on a port when the first could not (transport, section 8).

None of them presents a certificate of ours or sends a request with anything of ours in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from cryptography.hazmat.primitives import hashes
from msgspec import Struct
from msgspec.structs import replace
from OpenSSL import SSL, crypto

from secure_dagu.dispatch.address import host_port
from secure_dagu.link import context, material
from secure_dagu.link.context import ALPN
from secure_dagu.link.names import server_name
from secure_dagu.security.tls_signs import from_first_bytes, is_tls
from secure_dagu.security.verdict import Reason, Side, Verdict

PROBE_LIMIT_S: Final = 1.5
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""The HTTP/2 preface and empty settings: no request, so nothing of ours is sent."""


async def without_tls(verdict: Verdict, *, host: str, port: int) -> Verdict:
    """Refine a failed TLS dial: ask in plaintext who is there. The same verdict when that does not tell."""
    first = await _ask(host, port, _PREFACE)
    reason = from_first_bytes(first)
    return replace(verdict, reason=reason, detail="") if reason is not None else verdict


async def with_tls(verdict: Verdict, *, host: str, port: int) -> Verdict:
    """Refine a failed plaintext dial: `PLAINTEXT_CLIENT` when a TLS greeting is answered in TLS."""
    hello = SSL.Connection(context.probe_context(), None)
    hello.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        hello.do_handshake()
    first = await _ask(host, port, hello.bio_read(1 << 14))
    if is_tls(first):
        return replace(verdict, reason=Reason.PLAINTEXT_CLIENT, detail="")
    return verdict


async def _ask(host: str, port: int, words: bytes, size: int = 64) -> bytes:
    """Return the first bytes of the answer; empty when there is none."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, proto, _, address = found[0]
            with socket.socket(family, kind, proto) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, words)
                return await loop.sock_recv(sock, size)
    except (OSError, TimeoutError):
        return b""


# ── for a doctor ─────────────────────────────────────────────────────────────────────────────────────────────────────

CONNECT_LIMIT_S = 3.0
MAX_ADDRESSES: Final = 8
_HEALTH: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Attempt(Struct, frozen=True, kw_only=True):
    """One connection to one address of a name."""

    address: str
    seconds: float
    refusal: Reason | None = None
    """None: somebody accepted."""
    detail: str = ""


async def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]] | Verdict:
    """Return the addresses of a name, in the order in which they are tried, or why there is none."""
    where = host_port(host, port)
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or "no answer from the name server, or no host name at all"
        return Verdict(side=Side.CLIENT, reason=Reason.DNS, address=where, detail=detail)
    return [(family, address[:2]) for family, _, _, _, address in found[:MAX_ADDRESSES]]  # type: ignore[misc]


async def connect(addresses: Sequence[tuple[socket.AddressFamily, tuple[str, int]]]) -> list[Attempt]:
    """Connect to each address and close, one after the other."""
    return [await _connect(family, address) for family, address in addresses]


async def _connect(family: socket.AddressFamily, address: tuple[str, int]) -> Attempt:
    began = perf_counter()
    refusal: Reason | None = None
    detail = ""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await asyncio.get_running_loop().sock_connect(sock, address)
        except TimeoutError:
            refusal, detail = Reason.TIMEOUT, f"no answer within {CONNECT_LIMIT_S:.0f} s"
        except OSError as error:
            refusal = Reason.REFUSED if error.errno == errno.ECONNREFUSED else Reason.UNREACHABLE
            detail = os.strerror(error.errno) if error.errno else str(error)
    return Attempt(address=address[0], seconds=perf_counter() - began, refusal=refusal, detail=detail)


class Presented(Struct, frozen=True, kw_only=True):
    """What a TLS server shows to anybody; nothing of it is verified."""

    subject: str
    issuer: str
    names: material.Names
    not_before: str
    not_after: str
    fingerprint: str
    """SHA-256 of the last certificate of its chain, hex: the CA nearest to the root that it sent."""


async def presented(host: str, port: int) -> Presented | None:
    """Return the certificate that a TLS server presents; None when it presents none in time."""
    seen = _Looker()
    hello = SSL.Connection(context.probe_context(), None)
    hello.set_app_data(seen)
    hello.set_connect_state()
    if any(letter.isalpha() for letter in host) and ":" not in host:
        hello.set_tlsext_host_name(server_name(host))
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, proto, _, address = found[0]
            with socket.socket(family, kind, proto) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                while not seen.is_done:
                    try:
                        hello.do_handshake()
                        break  # a server without a certificate
                    except SSL.WantReadError:
                        pass
                    with contextlib.suppress(SSL.WantReadError):
                        await loop.sock_sendall(sock, hello.bio_read(1 << 14))
                    received = await loop.sock_recv(sock, 1 << 14)
                    if not received:
                        break
                    hello.bio_write(received)
    except (OSError, TimeoutError, SSL.Error):
        pass  # what was seen before counts
    finally:
        hello.set_app_data(None)
    return seen.said()


class _Looker:
    """Looks at every certificate of a chain and lets none pass."""

    def __init__(self) -> None:
        self.is_done = False
        self._chain: dict[int, crypto.X509] = {}

    def judge(self, certificate: crypto.X509, *, code: int, depth: int) -> bool:
        self._chain[depth] = certificate
        self.is_done = code == 0 and depth == 0
        return not self.is_done

    def choose(self, offered: Sequence[bytes]) -> bytes:
        return ALPN

    def said(self) -> Presented | None:
        if 0 not in self._chain:
            return None
        leaf, last = (self._chain[depth].to_cryptography() for depth in (0, max(self._chain)))
        return Presented(
            subject=material.subject_of(leaf),
            issuer=leaf.issuer.rfc4514_string()[:200],
            names=material.names_of(leaf),
            not_before=f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M}Z",
            not_after=f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
            fingerprint=last.fingerprint(hashes.SHA256()).hex(),
        )


async def is_health_port(host: str, port: int) -> bool:
    """Tell whether an HTTP server is the health port of one of our processes."""
    said = await _ask(host, port, _HEALTH, 4096)
    return said.startswith(b"HTTP/1.1 ") and b'"status"' in said


def library() -> str:
    """Return name and version of the TLS library."""
    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")
