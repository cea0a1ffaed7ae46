"""The graph of a run in a real browser: live, by keyboard, on a phone, with a thousand steps, with hostile names."""

from __future__ import annotations

import re

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.web.pages.operating_site import looking, open_browser
from tests.web.pages.test_operating_journeys import start
from tests.web.site import Site

GATED = """
steps:
  - {{id: first, run: "echo one"}}
  - {{id: gate, run: "until [ -e {gate} ]; do sleep 0.05; done", depends: first}}
  - {{id: other, run: "echo two", depends: first}}
  - {{id: last, run: "exit 3", depends: [gate, other]}}
handler_on:
  failure: {{run: "echo sorry"}}
"""
HOSTILE = """
steps:
  - {name: "<img src=x onerror=window.hit=1>", run: "echo '<script>window.hit=1</script>'"}
  - {name: "\\"><svg onload=window.hit=1>", run: "echo \\u202Egnp.exe", depends: "<img src=x onerror=window.hit=1>"}
  - {name: "{{ 7 * 7 }}", run: "true"}
"""


async def test_a_graph_follows_its_run_and_leads_to_logs(site: Site, page: Page) -> None:
    gate = site.installation.home / "gate"
    await page.goto(await start(site, page, "flow", GATED.format(gate=gate)))
    shown = page.locator("#graph-main-lr")
    await expect(shown.locator(".node-succeeded")).to_have_count(2)
    running = shown.locator(".node-running")
    await expect(running).to_have_count(1)
    await expect(running).to_contain_text("gate")
    await expect(running).to_contain_text("running")
    await expect(shown.locator(".node-not_started")).to_have_count(1)
    await expect(shown.locator(".edge-running")).to_have_count(1)
    await running.focus()
    gate.touch()
    failed = shown.locator(".node-failed")
    await expect(failed).to_have_attribute("aria-label", "last: failed, log")
    await expect(shown.locator(".node-handler.node-succeeded")).to_contain_text("onFailure")
    await expect(page.locator("#graph-main-counts")).to_contain_text("1 failed")
    focused = shown.locator("a.node:focus")
    await expect(focused).to_have_attribute("aria-label", "gate: succeeded, log")
    await failed.click()
    await expect(page).to_have_url(re.compile("/log.*step=last"))


async def test_a_graph_by_keyboard_alone(site: Site, page: Page) -> None:
    gate = site.installation.home / "gate"
    gate.touch()
    await page.goto(await start(site, page, "flow", GATED.format(gate=gate)))
    await expect(page.locator("#run-head")).to_contain_text("failed")
    await page.locator("[data-graph-zoom=fit]").focus()
    await page.keyboard.press("Tab")
    focused = page.locator("a.node:focus")
    if not await focused.count():  # some browsers stop at what scrolls
        await page.keyboard.press("Tab")
    await expect(focused).to_have_attribute("aria-label", "first: succeeded, log")
    await page.keyboard.press("ArrowRight")
    await expect(focused).to_have_attribute("aria-label", "gate: succeeded, log")
    await page.keyboard.press("ArrowDown")
    await expect(focused).to_have_attribute("aria-label", "other: succeeded, log")
    await page.keyboard.press("ArrowRight")
    await expect(focused).to_have_attribute("aria-label", "last: failed, log")
    await page.keyboard.press("Home")
    await expect(focused).to_have_attribute("aria-label", "first: succeeded, log")
    await page.get_by_role("button", name="1 failed").press("Enter")
    await expect(focused).to_have_attribute("aria-label", "last: failed, log")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile("/log.*step=last"))


async def test_a_graph_turns_zooms_and_stays_turned(site: Site, page: Page) -> None:
    gate = site.installation.home / "gate"
    gate.touch()
    run = await start(site, page, "flow", GATED.format(gate=gate))
    await page.goto(run)
    flat, tall = page.locator("#graph-main-lr"), page.locator("#graph-main-tb")
    await expect(flat).to_be_visible()
    await expect(tall).to_be_hidden()
    await page.get_by_role("button", name="Turn").click()
    await expect(tall).to_be_visible()
    await expect(flat).to_be_hidden()
    await page.reload()
    await expect(tall).to_be_visible()
    before = await tall.evaluate("one => one.getBoundingClientRect().width")
    await page.get_by_role("button", name="Smaller").click()
    await page.get_by_role("button", name="Smaller").click()
    assert await tall.evaluate("one => one.getBoundingClientRect().width") < before


async def test_hostile_names_are_text(site: Site, page: Page) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    await page.goto(await start(site, page, "hostile", HOSTILE))
    await expect(page.locator("#run-head")).to_contain_text("succeeded")
    await expect(page.locator("#graph-main-lr a.node")).to_have_count(3)
    labels = await page.locator("#graph-main-lr a.node").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert "<img src=x onerror=window.hit=1>: succeeded, log" in labels
    assert "{{ 7 * 7 }}: succeeded, log" in labels
    assert await page.evaluate("window.hit") is None
    assert await page.locator("main img").count() == 0
    assert [line for line in said if "404" not in line] == []
    await page.locator("#graph-main-lr a.node").nth(1).click()
    await expect(page.locator("h1")).to_have_text('"><svg onload=window.hit=1>')
    assert await page.evaluate("window.hit") is None


async def test_on_a_phone_a_graph_runs_downwards_and_the_page_is_not_wider_than_the_screen(site: Site) -> None:
    gate = site.installation.home / "gate"
    gate.touch()
    async with open_browser() as browser, looking(browser, site, phone=True, dark=True) as page:
        await page.goto(await start(site, page, "flow", GATED.format(gate=gate)))
        await expect(page.locator("#graph-main-tb")).to_be_visible()
        await expect(page.locator("#graph-main-lr")).to_be_hidden()
        found = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert found == 0
        assert (await Axe().run(page)).response["violations"] == []


async def test_a_thousand_steps_are_drawn_and_steered_fast(site: Site, page: Page) -> None:
    def step(number: int) -> str:
        before = ", ".join(f"s{one}" for one in (number - 7, number - 3) if one >= 0)
        return f"  - {{id: s{number}, run: 'true', depends: [{before}]}}"

    lines = "\n".join(step(number) for number in range(1000))
    run = await start(site, page, "many", f"type: graph\nsteps:\n{lines}\n", "enqueue")
    page.set_default_timeout(60_000)  # a machine that does ten other things
    await page.goto(run)
    nodes = page.locator("[data-drawing] a.node")
    await expect(nodes).to_have_count(1000, timeout=60_000)
    await nodes.first.focus()
    before = await page.evaluate("performance.now()")
    for _ in range(5):
        await page.keyboard.press("ArrowDown")
    assert await page.evaluate("performance.now()") - before < 5000
    await expect(nodes.first).not_to_be_focused()
