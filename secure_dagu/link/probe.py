"""A second, harmless connection that names what listens on a port when the first could not (transport, section 8)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from typing import Final

from OpenSSL import SSL

from secure_dagu.link import context
from secure_dagu.security.tls_signs import from_first_bytes, is_tls
from secure_dagu.security.verdict import Reason, Verdict

PROBE_LIMIT_S: Final = 1.5
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""The HTTP/2 preface and empty settings: no request, so nothing of ours is sent."""


async def without_tls(verdict: Verdict, *, host: str, port: int) -> Verdict:
    """Refine a failed TLS dial: ask in plaintext who is there. The same verdict when that does not tell."""
    first = await _ask(host, port, _PREFACE)
    reason = from_first_bytes(first)
    return dataclasses.replace(verdict, reason=reason, detail="") if reason is not None else verdict


async def with_tls(verdict: Verdict, *, host: str, port: int) -> Verdict:
    """Refine a failed plaintext dial: `SERVER_WANTS_TLS` when a TLS greeting is answered in TLS."""
    hello = SSL.Connection(context.probe_context(), None)
    hello.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        hello.do_handshake()
    first = await _ask(host, port, hello.bio_read(1 << 14))
    if is_tls(first):
        return dataclasses.replace(verdict, reason=Reason.SERVER_WANTS_TLS, detail="")
    return verdict


async def _ask(host: str, port: int, words: bytes) -> bytes:
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
                return await loop.sock_recv(sock, 64)
    except (OSError, TimeoutError):
        return b""
