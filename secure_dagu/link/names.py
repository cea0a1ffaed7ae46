"""Host names and addresses as the resolver and TLS take them.

Python's rules for international names take 0.4 MiB for as long as a process lives; names in ASCII do without them.
"""

from __future__ import annotations


def spelled(host: str) -> str | bytes:
    """Return a name or an address for the resolver: as bytes where ASCII can say it, else as text."""
    return host.encode() if host.isascii() else host


def server_name(host: str) -> bytes:
    """Return a name as a TLS client says it to the server.

    Raises:
        UnicodeError: it is none: a part of it is empty or longer than 63 characters.
    """
    name = host.rstrip(".")
    if name.isascii() and all(0 < len(part) < 64 for part in name.split(".")):
        return name.encode()
    return name.encode("idna")
