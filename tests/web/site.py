"""A web server with real accounts on a real socket; what is behind it is the REST API tests' installation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from msgspec.structs import replace

from secure_dagu.audit.events import Event
from secure_dagu.store.accounts import AccountFolder
from secure_dagu.web.accounts import Accounts
from secure_dagu.web.app import make_inside, surround
from secure_dagu.web.context import Options, Services
from secure_dagu.web.gate import Doorkeeper, Rules
from secure_dagu.web.sessions import Sessions, secret_of
from secure_dagu.web.walls import Outside
from tests.web.api.installation import Installation

PASSWORD = "correct horse battery"


@dataclass
class Trail:
    """Keeps what was recorded."""

    events: list[Event] = field(default_factory=list)

    async def record(self, event: Event) -> None:
        self.events.append(event)

    def note(self, event: Event) -> None:
        self.events.append(event)


@dataclass
class Site:
    """A running server."""

    url: str
    door: Doorkeeper
    trail: Trail
    accounts: Accounts
    installation: Installation

    def client(self, **options: object) -> httpx.AsyncClient:
        """Return a client without credentials."""
        return httpx.AsyncClient(base_url=self.url, timeout=20, **options)  # type: ignore[arg-type]

    async def login(self, client: httpx.AsyncClient, username: str = "ada") -> str:
        """Log a browser in; return the form token."""
        said = {"username": username, "password": PASSWORD, "cookie": True}
        answer = await client.post("/api/v1/auth/login", json=said)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["formToken"])


@cache
def _inside() -> FastAPI:
    """Return the routes: made once, for their shapes take a second. One server at a time uses them."""
    return make_inside(Options())


def accounts_of(home: Path, *, setup_token: str = "", ttl: timedelta = timedelta(hours=1)) -> Accounts:
    """Make accounts in a folder."""
    auth = home / "data" / "auth"
    sessions = Sessions(secret_of(auth, ""), ttl, auth / "ended_sessions.json")
    return Accounts(
        AccountFolder(home / "data" / "users"), AccountFolder(home / "data" / "apikeys"), sessions,
        setup_token=setup_token,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def open_site(
    home: Path, *, rules: Rules | None = None, outside: Outside | None = None, setup_token: str = "",
    options: Options | None = None, inside: FastAPI | None = None,
) -> AsyncIterator[Site]:  # fmt: skip
    """Serve on a free port of loopback."""
    installation = Installation(home)
    trail, accounts = Trail(), accounts_of(home, setup_token=setup_token)
    door = Doorkeeper(accounts, trail, rules or Rules())
    options = options or Options()
    parts = replace(installation.parts(), gate=door)
    async with installation.hub.serving():
        app = surround(
            inside or _inside(), Services(parts=parts, door=door, options=options),
            outside or Outside(hosts=frozenset({"localhost"})),
        )  # fmt: skip
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_config=None, lifespan="off", proxy_headers=False, server_header=False
        )
        server = uvicorn.Server(config)
        async with serving(server) as port:
            yield Site(
                url=f"http://127.0.0.1:{port}", door=door, trail=trail, accounts=accounts, installation=installation
            )


@contextlib.asynccontextmanager
async def serving(server: uvicorn.Server) -> AsyncIterator[int]:
    """Run a server for the time of the context."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await task
