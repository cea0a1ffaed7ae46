"""A web server with the pages of operating, real accounts and runs, and a real browser that looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from msgspec.structs import replace
from playwright.async_api import Browser, Page, async_playwright, expect

from secure_dagu.web.app import make_inside, surround
from secure_dagu.web.context import Options, Services
from secure_dagu.web.gate import Doorkeeper, Rules
from secure_dagu.web.pages import routes
from secure_dagu.web.walls import Outside
from tests.web.api.installation import Installation
from tests.web.site import PASSWORD, Site, Trail, accounts_of, serving

CHROMIUM = "/usr/bin/chromium"
DEADLINE_MS = 15_000
expect.set_options(timeout=DEADLINE_MS)


@cache
def _inside() -> FastAPI:
    """Return the routes: made once, for their shapes take a second."""
    return make_inside(
        Options(), pages=routes.routers(), static=routes.static(), page_error=routes.page_error
    )  # fmt: skip


@contextlib.asynccontextmanager
async def open_pages(home: Path, *, has_admin: bool = True) -> AsyncIterator[Site]:
    """Serve on a free port of loopback; ada is the admin."""
    installation = Installation(home)
    trail, accounts = Trail(), accounts_of(home)
    if has_admin:
        await accounts.set_up("ada", PASSWORD)
    door = Doorkeeper(accounts, trail, Rules())
    services = Services(parts=replace(installation.parts(), gate=door), door=door, options=Options())
    async with installation.hub.serving():
        app = surround(_inside(), services, Outside(hosts=frozenset({"localhost"})))
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", server_header=False)
        try:
            async with serving(uvicorn.Server(config)) as port:
                url = f"http://127.0.0.1:{port}"
                yield Site(url=url, door=door, trail=trail, accounts=accounts, installation=installation)
                installation.hub.end()
        finally:
            for process in installation.launching.processes:
                await process.wait()


@contextlib.asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Run Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def looking(browser: Browser, site: Site, *, dark: bool = False, phone: bool = False) -> AsyncIterator[Page]:
    """Return a page of somebody who is logged in as ada."""
    size = {"width": 390, "height": 800} if phone else {"width": 1280, "height": 900}
    context = await browser.new_context(
        base_url=site.url, viewport=size, color_scheme="dark" if dark else "light"  # type: ignore[arg-type]
    )  # fmt: skip
    context.set_default_timeout(DEADLINE_MS)
    answer = await context.request.post(
        "/api/v1/auth/login", data={"username": "ada", "password": PASSWORD, "cookie": True}
    )
    assert answer.ok, await answer.text()
    page = await context.new_page()
    try:
        yield page
    finally:
        await context.close()
