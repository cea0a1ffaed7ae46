"""The way to the server of a context, unless it is HTTP without TLS that nobody allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from secure_dagu.assembly.exceptions import held_for, is_loopback
from secure_dagu.config.load import Loaded
from secure_dagu.contexts import client
from secure_dagu.contexts.address import ServerUrl
from secure_dagu.contexts.book import Context
from secure_dagu.contexts.client import Client
from secure_dagu.errors import ConfigError
from secure_dagu.security.exceptions import Kind


def check_plaintext(server: ServerUrl, *, insecure_http: bool) -> None:
    """Check that HTTP without TLS was asked for by its name, unless it stays on this host.

    Raises:
        ConfigError: it was not.
    """
    if server.is_plaintext and not is_loopback(server.host) and not insecure_http:
        raise ConfigError(
            f"{server.origin} is not used", why="without TLS everybody on the way can read the key and change answers",
            fix="say https://, or go through a tunnel to 127.0.0.1; --insecure-http asks for it as it is",
        )  # fmt: skip


@asynccontextmanager
async def reached(loaded: Loaded, context: Context, *, warn: Callable[[str], None]) -> AsyncIterator[Client]:
    """Open the way to the server of a context; nothing is sent yet.

    Raises:
        ConfigError: its CA file cannot be used, or HTTP without TLS is spoken beyond this host and no exception of the
            ledger holds for that.
    """
    check_plaintext(context.server, insecure_http=context.insecure_http)
    if context.server.is_plaintext and not is_loopback(context.server.host):
        held_for(loaded, (Kind.HTTP_PLAINTEXT,))
        warn(f"warning: {context.server.origin} is spoken to without TLS: the key can be read on the way")
    async with client.opened(context) as opened:
        yield opened
