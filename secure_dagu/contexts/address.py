"""The address of another server's REST API: read strictly, for a token is sent there. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from msgspec import Struct

from secure_dagu.dispatch.address import host_port
from secure_dagu.errors import InvalidRequest

API = "/api/v1"
MAX_TEXT = 2048
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})\Z|[0-9A-Fa-f:.]{2,45}\Z")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?\Z")
_PORTS = {"http": 80, "https": 443}


class ServerUrl(Struct, frozen=True, kw_only=True):
    """Where a REST API is."""

    scheme: str
    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    path: str
    """Of the API, without a slash at its end."""

    @property
    def is_plaintext(self) -> bool:
        """Tell whether nothing on the way is proven or hidden."""
        return self.scheme == "http"

    @property
    def authority(self) -> str:
        """Return `host:port`."""
        return host_port(self.host, self.port)

    @property
    def origin(self) -> str:
        """Return what a token is for: scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.path


def parse(text: str) -> ServerUrl:
    """Read `https://host[:port][/path]`; without a path the API's is `/api/v1`.

    Raises:
        InvalidRequest: it is no such URL. The text is not repeated where it may hold a password.
    """
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise _wrong("it is no URL") from None
    if parts.scheme not in _PORTS:
        raise _wrong("it does not begin with https:// or http://")
    if parts.username is not None or parts.password is not None:
        raise _wrong("it holds a user name or a password; a key is given apart")
    if "?" in text or "#" in text:
        raise _wrong("it has a query or a fragment")
    if len(text) > MAX_TEXT or not text.isascii() or not text.isprintable() or not _HOST.match(host) or port == 0:
        raise _wrong("its host or port is none")
    words = parts.path.split("/")
    if not _PATH.match(parts.path) or "." in words or ".." in words:
        raise _wrong("its path has other characters than letters, digits, `.`, `_`, `~` and `-`, or climbs")
    return ServerUrl(
        scheme=parts.scheme,
        host=host.lower(),
        port=port or _PORTS[parts.scheme],
        path=parts.path.rstrip("/") or API,
    )


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(
        "the server's URL cannot be used", why=why, fix=f"say https://HOST:PORT, or with a base path …/BASE{API}"
    )
