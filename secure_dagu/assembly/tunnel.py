"""`--tunnel`: Web UI and REST API through the Tailscale of this host. The coordinator's port never goes through it.

`tailscale serve` (or `funnel`) runs as long as the web server does. It forwards HTTP from the tailnet to our loopback
address and says in X-Forwarded-For who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from msgspec import Struct

from secure_dagu.assembly.exceptions import is_loopback
from secure_dagu.config.load import Loaded, host_environment
from secure_dagu.errors import ConfigError, Unavailable
from secure_dagu.runner import process

log = structlog.get_logger()

ASKING_S = 10.0
"""How long the node may take to say who it is; it answers from memory."""
MAX_ANSWER = 1 << 20


class Node(Struct, frozen=True, kw_only=True):
    """This host in its tailnet."""

    name: str
    """The DNS name by which others reach it."""
    url: str


async def find_node(loaded: Loaded, *, has_login: bool) -> Node:
    """Check that the web server may be exposed, and find out how it will be called.

    Args:
        loaded: the configuration; `tunnel.enabled` is set.
        has_login: whether there is an account, so that nobody who comes through the tunnel can make the first one.

    Raises:
        ConfigError: nobody would have to log in, or the web server is not where the tunnel looks.
        Unavailable: Tailscale is missing, stopped or logged out.
    """
    core, tunnel = loaded.settings.core, loaded.settings.tunnel
    if loaded.settings.auth.mode == "none":
        raise ConfigError(
            "the tunnel is refused: auth.mode is none", why="whoever reached it would be an admin",
            fix="use auth.mode builtin",
        )  # fmt: skip
    if not has_login:
        raise ConfigError(
            "the tunnel is refused: there is no account yet", why="whoever reached it first could make the first admin",
            fix="start once without --tunnel and make the first admin, or set auth.builtin.initial_admin",
        )  # fmt: skip
    if not is_loopback(core.host):
        raise ConfigError(
            "the tunnel needs the web server on loopback", why=f"host is {core.host}, which others reach around it",
            fix="leave --host out",
        )  # fmt: skip
    found = json.loads(await _ask(loaded, "status", "--json") or b"{}")
    state, own = found.get("BackendState"), found.get("Self") or {}
    name = str(own.get("DNSName") or "").rstrip(".")
    if state != "Running" or not name:
        raise Unavailable(
            "Tailscale is not connected", why=f"it says {str(state)[:40]!r}", fix="run `tailscale up` on this host"
        )
    return Node(name=name, url=f"{'https' if tunnel.https or tunnel.funnel else 'http'}://{name}/")


@contextlib.asynccontextmanager
async def open_tunnel(loaded: Loaded, node: Node, *, port: int) -> AsyncIterator[None]:
    """Keep the tunnel open for the time of the context; `port` is the web server's on loopback.

    Raises:
        Unavailable: it ended by itself: the web server ends with it rather than being where nobody finds it.
    """
    tunnel = loaded.settings.tunnel
    verb = "funnel" if tunnel.funnel else "serve"
    listen = "--https=443" if tunnel.https or tunnel.funnel else "--http=80"
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_forward(loaded, [verb, "--yes", listen, f"http://127.0.0.1:{port}"], stop), name="tunnel")
        log.info("tunnel.opened", url=node.url, reachable="from the internet" if tunnel.funnel else "from the tailnet")
        try:
            yield
        finally:
            stop.set()


async def _forward(loaded: Loaded, words: list[str], stop: asyncio.Event) -> None:
    said = bytearray()
    code = await _run(loaded, words, said, stop)
    if not stop.is_set():
        raise Unavailable(
            "the tunnel has ended", why=f"tailscale {words[0]} exited with {code}: {_last_line(said)}",
            fix="see whether HTTPS certificates, or Funnel, are allowed in the admin console of the tailnet",
        )  # fmt: skip


async def _ask(loaded: Loaded, *words: str) -> bytes:
    said, stop = bytearray(), asyncio.Event()
    try:
        async with asyncio.timeout(ASKING_S):
            code = await _run(loaded, list(words), said, stop)
    except TimeoutError:
        raise Unavailable("Tailscale does not answer", fix="see whether tailscaled runs on this host") from None
    if code != 0:
        raise Unavailable("Tailscale does not answer", why=_last_line(said), fix="run `tailscale up` on this host")
    return bytes(said)


async def _run(loaded: Loaded, words: list[str], said: bytearray, stop: asyncio.Event) -> int:
    def keep(data: bytes) -> None:
        said.extend(data)
        del said[:-MAX_ANSWER]

    try:
        return await process.run(
            ["tailscale", *words], env=host_environment(loaded), cwd=Path(tempfile.gettempdir()), stdout=keep,
            stderr=None, marker=f"tunnel/{secrets.token_hex(8)}/", stop=stop, stopping=process.Stopping(grace_s=2.0),
        )  # fmt: skip
    except process.CannotStart as error:
        raise Unavailable(
            "the tunnel needs Tailscale", why="the program `tailscale` cannot be started here",
            fix="install it (tailscale.com/download), run `tailscale up`, and start again",
        ) from error  # fmt: skip


def _last_line(said: bytearray) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"
