"""The overview in a real browser: live, by keyboard, with hostile names, on a phone."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.web.pages.operating_site import looking, open_browser
from tests.web.pages.test_operating_journeys import start
from tests.web.site import Site

QUICK = "steps:\n  - {id: a, run: 'true'}\n"
GATED = "steps:\n  - {{id: a, run: 'while [ ! -e {gate} ]; do sleep 0.05; done; exit 1'}}\n"
HOSTILE = "a<img src=x onerror=alert(1)>\u202egnp"


async def test_a_run_appears_and_ends_without_a_reload(site: Site, page: Page) -> None:
    gate = site.installation.home / "gate"
    await page.goto("/")
    await expect(page.get_by_text("Nothing ran in this time")).to_be_visible()
    await expect(page.get_by_text("Nothing runs at the moment.")).to_be_visible()
    await start(site, page, "gated", GATED.format(gate=gate))
    await expect(page.locator("#running").get_by_role("link", name="gated")).to_be_visible()
    await expect(page.locator(".tile-running .tile-count")).to_have_text("1")
    await expect(page.locator(".timeline-bar.bar-running")).to_have_count(1)
    gate.touch()
    await expect(page.locator(".tile-failed .tile-count")).to_have_text("1")
    await expect(page.locator(".timeline-bar.bar-failed")).to_have_attribute(
        "aria-label", re.compile("gated, failed, ")
    )
    await expect(page.locator(".timeline-bad")).to_have_text("1 failed")
    await page.locator(".tile-failed").click()
    await expect(page).to_have_url(re.compile("/dag-runs.status=failed"))
    await expect(page.get_by_role("link", name="gated")).to_be_visible()


async def test_the_timeline_by_keyboard_alone(site: Site, page: Page) -> None:
    for name in ("one", "two"):
        for _ in range(2):
            await start(site, page, name, QUICK)
    await page.goto("/")
    await expect(page.locator(".timeline-bar.bar-succeeded")).to_have_count(4)
    focused = page.locator(".timeline-bar:focus")
    await page.get_by_role("link", name="one", exact=True).focus()
    await page.keyboard.press("Tab")
    first = await focused.get_attribute("href")
    await page.keyboard.press("ArrowRight")
    assert await focused.get_attribute("href") != first
    await page.keyboard.press("ArrowDown")
    await expect(focused).to_have_attribute("aria-label", re.compile("^two, succeeded"))
    await page.keyboard.press("ArrowUp")
    await page.keyboard.press("Home")
    assert await focused.get_attribute("href") == first
    await page.keyboard.press("Tab")  # one stop in a row
    await expect(page.get_by_role("link", name="two", exact=True)).to_be_focused()
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    await page.keyboard.press("Escape")
    await page.keyboard.press("g")
    await page.keyboard.press("q")
    await expect(page.get_by_role("heading", name="Queues", exact=True)).to_be_visible()


async def test_a_filter_of_hostile_text_is_text(site: Site, page: Page) -> None:
    alerts: list[str] = []
    page.on("dialog", lambda dialog: alerts.append(dialog.message))
    await page.goto("/")
    await page.get_by_role("searchbox", name="DAG name").fill(HOSTILE)
    await page.get_by_role("button", name="Show").click()
    await expect(page.locator("#timeline")).to_contain_text("onerror=alert(1)")
    await expect(page.get_by_role("searchbox", name="DAG name")).to_have_value(HOSTILE)
    assert await page.locator("main img").count() == 0
    assert alerts == []


@pytest.mark.parametrize("query", ["day=2020-02-30", "day=9999-99-99", "span=century", "day=%00", "day=1971-01-01"])
async def test_a_time_that_cannot_be_is_left_out(site: Site, query: str) -> None:
    async with site.client() as client:
        await site.login(client)
        answer = await client.get(f"/?{query}")
        assert answer.status_code == 200
        assert "Nothing ran in this time" in answer.text


async def test_no_page_is_wider_than_a_phone(site: Site) -> None:
    from tests.web.pages.test_operating_journeys import FILES, PAGES

    async with open_browser() as browser, looking(browser, site, phone=True) as page:
        run = await start(site, page, "files", FILES)
        await page.goto(run)
        await expect(page.locator("#run-head")).to_contain_text("failed")
        too_wide = {}
        for path in PAGES:
            await page.goto(path.format(run=run))
            width = await page.evaluate("document.documentElement.scrollWidth")
            if width > 390:
                too_wide[path] = width
        assert too_wide == {}
        await page.goto("/")
        await expect(page.get_by_role("link", name="Queues")).to_be_hidden()
        await page.get_by_role("button", name="Menu").click()
        await page.get_by_role("link", name="Queues").click()
        await expect(page.get_by_role("heading", name="Queues", exact=True)).to_be_visible()
