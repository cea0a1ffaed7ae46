"""Logins attacked: planted beforehand, told apart by time, and led elsewhere afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.async_api import Request, expect

from secure_dagu.errors import Unauthenticated
from secure_dagu.web.people import Role
from tests.web.pages.operating_site import open_browser, open_pages
from tests.web.site import PASSWORD, Site, open_site

API = "/api/v1"


async def test_a_login_that_somebody_planted_never_becomes_the_victims(tmp_path: Path) -> None:
    async with open_site(tmp_path / "home") as site:
        await site.accounts.set_up("ada", PASSWORD)
        await site.accounts.create("eve", PASSWORD, Role.VIEWER)
        async with site.client() as eve, site.client() as victim:
            await site.login(eve, "eve")
            [(name, planted)] = eve.cookies.items()
            for value in (planted, "chosen-by-eve"):
                victim.cookies.clear()
                victim.cookies.set(name, value, domain="127.0.0.1")
                await site.login(victim)
                assert victim.cookies.get(name, domain="") not in ("", value)
                assert (await eve.get(f"{API}/auth/me")).json()["user"]["username"] == "eve"
                headers = {"Cookie": f"{name}={value}"}
                async with site.client(headers=headers) as again:
                    answer = await again.get(f"{API}/auth/me")
                    assert answer.status_code == 401 or answer.json()["user"]["username"] == "eve"


async def test_a_cookie_is_worth_nothing_after_its_login_was_ended(tmp_path: Path) -> None:
    async with open_site(tmp_path / "home") as site:
        await site.accounts.set_up("ada", PASSWORD)
        async with site.client() as browser:
            form = await site.login(browser)
            kept = dict(browser.cookies)
            assert (await browser.post(f"{API}/auth/logout", headers={"X-CSRF-Token": form})).status_code == 200
            assert not browser.cookies
        async with site.client(cookies=kept) as thief:
            assert (await thief.get(f"{API}/auth/me")).status_code == 401


async def test_who_guesses_pays_as_much_for_a_name_that_nobody_has(tmp_path: Path) -> None:
    """Measured in time of the processor, which other load on the host does not change."""
    async with open_site(tmp_path / "home") as site:
        await site.accounts.set_up("ada", PASSWORD)
        await site.accounts.create("off", PASSWORD, Role.VIEWER)
        off = next(user for user in site.accounts.users() if user.username == "off")
        await site.accounts.change(off.id, by=site.accounts.of_token(await _token(site)), is_disabled=True)
        costs = {name: await _cost(site, name) for name in ("ada", "off", "nobody")}
        assert max(costs.values()) < 2 * min(costs.values()), costs


async def _token(site: Site) -> str:
    token, _ = await site.accounts.log_in("ada", PASSWORD, address="elsewhere")
    return token


async def _cost(site: Site, name: str) -> float:
    """Return what the cheapest of some guesses costs, seconds."""
    costs = []
    for _ in range(4):
        began = time.process_time()
        with pytest.raises(Unauthenticated):
            await site.accounts.log_in(name, "guess guess", address=name)
        costs.append(time.process_time() - began)
    return min(costs)


ELSEWHERE = (
    "https://evil.example/", "//evil.example/", r"/\evil.example/", "\t//evil.example",
    "javascript:document.title='evil'",
)  # fmt: skip


async def test_a_login_leads_nowhere_else(tmp_path: Path) -> None:
    async with open_pages(tmp_path / "home") as site, open_browser() as browser:
        for wanted in ELSEWHERE:
            page = await browser.new_page(base_url=site.url)
            asked: list[str] = []
            page.on("request", _noted_in(asked))
            await page.goto("/login")
            await page.evaluate("next => history.replaceState(null, '', '?' + new URLSearchParams({next}))", wanted)
            await page.get_by_label("User name").fill("ada")
            await page.get_by_label("Password").fill(PASSWORD)
            await page.get_by_role("button", name="Log in").click()
            await expect(page).to_have_url(f"{site.url}/")
            assert all(url.startswith(site.url) for url in asked), asked
            await expect(page.locator("main")).to_be_visible()
            assert await page.title() != "evil"
            await page.close()


def _noted_in(asked: list[str]) -> Callable[[Request], None]:
    return lambda request: asked.append(request.url)
