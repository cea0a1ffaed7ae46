"""PROXY protocol, version 2: the true source of a connection that came through a TCP forwarder.

Only listed forwarders are believed, and one that is listed must send it: a header that may be there or not is one that
a client can write itself. The header comes before the first byte of TLS and says nothing that a certificate proves; it
is for logs, limits and the audit trail.

Format: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final

from secure_dagu.security.tls_signs import PROXY_HEADER

LIMIT_S: Final = 3.0
"""A forwarder writes the header at once, in one piece."""
MAX_REST: Final = 536
"""Bytes behind the first sixteen: addresses and extensions, which are skipped."""
_HEAD: Final = 16
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_listed(host: str, networks: Sequence[Network]) -> bool:
    """Tell whether an address belongs to a listed forwarder."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


async def read_source(sock: socket.socket) -> tuple[str, int] | None:
    """Read the header, and nothing behind it; return where the connection comes from.

    None: the forwarder speaks for itself (command LOCAL, as health checks do) or for no TCP connection.

    Raises:
        ValueError: what came is no such header; the text says why.
        OSError, TimeoutError: the connection ended, or nothing came in time.
    """
    async with asyncio.timeout(LIMIT_S):
        head = await _exactly(sock, _HEAD)
        if not head.startswith(PROXY_HEADER):
            raise ValueError("no PROXY protocol header of version 2 came first")
        command, family, size = struct.unpack("!BBH", head[12:])
        if command not in (_LOCAL, _PROXY):
            raise ValueError("its PROXY protocol header has an unknown version or command")
        if size > MAX_REST:
            raise ValueError(f"its PROXY protocol header has {size} bytes, more than {MAX_REST}")
        rest = await _exactly(sock, size)
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return None
    width = 4 if family == _TCP4 else 16
    if len(rest) < 2 * width + 4:
        raise ValueError("its PROXY protocol header ends before its addresses do")
    host = str(ipaddress.ip_address(rest[:width]))
    (port,) = struct.unpack("!H", rest[2 * width : 2 * width + 2])
    return host, port


async def _exactly(sock: socket.socket, size: int) -> bytes:
    loop, found = asyncio.get_running_loop(), b""
    while len(found) < size:
        piece = await loop.sock_recv(sock, size - len(found))
        if not piece:
            raise ValueError("the connection ended before its PROXY protocol header did")
        found += piece
    return found
