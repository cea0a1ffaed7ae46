"""Coming in: the first account, the login, the own password, leaving; all in a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from secure_dagu.web.people import Role
from tests.web.pages.operating_site import open_browser, open_pages
from tests.web.site import PASSWORD, Site


@pytest.fixture
async def stranger(site: Site) -> AsyncIterator[Page]:
    """A browser of somebody who is not logged in."""
    async with open_browser() as browser:
        yield await browser.new_page(base_url=site.url)


async def log_in(page: Page, name: str = "ada", password: str = PASSWORD) -> None:
    await page.get_by_label("User name").fill(name)
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Log in").click()


async def test_the_first_who_comes_makes_the_administrator(tmp_path: Path) -> None:
    async with open_pages(tmp_path / "home", has_admin=False) as site, open_browser() as browser:
        page = await browser.new_page(base_url=site.url)
        await page.goto("/dag-runs")
        await expect(page).to_have_url(f"{site.url}/setup")
        await page.get_by_label("User name").fill("grace")
        await page.get_by_label("Password").fill(PASSWORD)
        again = page.get_by_label("The same again")
        await again.fill("another one")
        await page.get_by_role("button", name="Create account").click()
        assert not site.accounts.is_set_up
        await again.fill(PASSWORD)
        await page.get_by_role("button", name="Create account").click()
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await expect(page.get_by_text("grace · admin")).to_be_visible()
        await page.goto("/setup")
        await expect(page).to_have_url(f"{site.url}/")


async def test_a_login_leads_where_somebody_wanted_to_go_and_a_wrong_password_says_so(
    site: Site, stranger: Page
) -> None:
    page = stranger
    await page.goto("/dag-runs?range=all&name=x")
    await log_in(page, password="wrong")
    await expect(page.get_by_role("alert")).not_to_be_empty()
    await expect(page).to_have_url(re.compile("/login"))
    await log_in(page)
    await expect(page).to_have_url(f"{site.url}/dag-runs?range=all&name=x")
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("User name")).to_be_visible()
    await page.goto("/account")
    await expect(page).to_have_url(re.compile("/login"))


@pytest.mark.parametrize(
    "elsewhere", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
async def test_a_login_never_leads_to_somebody_elses_page(site: Site, stranger: Page, elsewhere: str) -> None:
    await stranger.goto("/login")
    await stranger.evaluate("to => location.assign(`/login?next=${encodeURIComponent(to)}`)", elsewhere)
    await stranger.wait_for_url(lambda url: "next=" in url)
    await log_in(stranger)
    await expect(stranger.get_by_role("heading", name="Overview")).to_be_visible()
    assert stranger.url == f"{site.url}/"


async def test_a_changed_password_ends_every_other_login(site: Site, page: Page, stranger: Page) -> None:
    await stranger.goto("/login")
    await log_in(stranger)
    await expect(stranger.get_by_role("heading", name="Overview")).to_be_visible()
    await page.goto("/account")
    await page.get_by_label("Current password").fill("wrong")
    await page.get_by_label("New password").fill("another long password")
    await page.get_by_role("button", name="Change password").click()
    await expect(page.locator("[data-error]")).not_to_be_empty()
    await page.get_by_label("Current password").fill(PASSWORD)
    await page.get_by_role("button", name="Change password").click()
    await expect(page.get_by_text("The password is changed.")).to_be_visible()
    await stranger.reload()
    await expect(stranger).to_have_url(re.compile("/login"))
    await log_in(stranger, password="another long password")
    await expect(stranger.get_by_role("heading", name="Overview")).to_be_visible()


async def test_a_page_that_is_not_there_and_one_that_a_role_may_not_see(site: Site, page: Page) -> None:
    await page.goto("/nowhere")
    await expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    await site.accounts.create("eve", PASSWORD, Role.VIEWER)
    await page.get_by_role("button", name="Log out").click()
    await log_in(page, "eve")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await expect(page.get_by_role("link", name="Users")).to_have_count(0)
    await expect(page.get_by_text("Security records")).to_have_count(0)
    answer = await page.goto("/users")
    assert answer is not None
    assert answer.status == 403
    await expect(page.get_by_role("heading", name="You may not see this")).to_be_visible()


ENTRANCE = {"/login": True, "/login?next=%2Fdag-runs": True, "/setup": False}
"""Pages for who is not logged in, and whether there is an account yet."""


@pytest.mark.parametrize("path", ENTRANCE)
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
async def test_the_entrance_passes_axe_fits_and_breaks_no_rule_of_the_policy(
    tmp_path: Path, path: str, look: str
) -> None:
    from axe_playwright_python.async_playwright import Axe

    async with open_pages(tmp_path / "home", has_admin=ENTRANCE[path]) as site, open_browser() as browser:
        page = await browser.new_page(
            base_url=site.url, color_scheme="light" if look == "light" else "dark",
            viewport={"width": 390 if look == "phone" else 1280, "height": 800},
        )  # fmt: skip
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        answer = await page.goto(path)
        assert answer is not None
        assert answer.status == 200
        await expect(page).to_have_url(f"{site.url}{path}")
        found = (await Axe().run(page)).response["violations"]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found] == []
        assert await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert said == []
        if look == "phone" and path == "/login":
            await log_in(page, password="wrong")
            await expect(page.get_by_role("alert")).not_to_be_empty()
            assert [one["id"] for one in (await Axe().run(page)).response["violations"]] == []
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await page.evaluate(wide) <= 0
