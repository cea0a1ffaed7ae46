"""Lists by keyboard alone, in a real browser."""

from __future__ import annotations

from playwright.async_api import Page, expect

from tests.web.pages.test_operating_journeys import start
from tests.web.site import Site

QUICK = "steps:\n  - {id: a, run: 'true'}\n"
GATED = "steps:\n  - {{id: a, run: 'while [ ! -e {gate} ]; do sleep 0.05; done'}}\n"


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.textContent.trim()"))


async def test_definitions_by_arrow_keys_and_by_letters(site: Site, page: Page) -> None:
    for name in ("one", "three", "two"):
        (site.installation.dags / f"{name}.yaml").write_text(QUICK)
    await page.goto("/dags")
    await page.keyboard.press("ArrowDown")  # the page scrolls: the focus is in no list
    assert await page.evaluate("document.activeElement === document.body")
    await page.keyboard.press("j")
    assert await focused(page) == "one"
    await page.keyboard.press("ArrowDown")
    assert await focused(page) == "three"
    await page.keyboard.press("End")
    await page.keyboard.press("ArrowDown")  # there is no further one
    assert await focused(page) == "two"
    await page.keyboard.press("k")
    assert await focused(page) == "three"
    await page.keyboard.press("Home")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="one", exact=True)).to_be_visible()


async def test_letters_and_arrows_are_those_of_a_field_that_is_typed_in(site: Site, page: Page) -> None:
    (site.installation.dags / "jack.yaml").write_text(QUICK)
    await page.goto("/dags")
    field = page.get_by_role("searchbox", name="Name")
    await field.focus()
    await page.keyboard.type("jk")
    await page.keyboard.press("ArrowDown")
    await expect(field).to_have_value("jk")
    await expect(field).to_be_focused()


async def test_runs_are_ticked_by_keyboard_while_others_appear_above(site: Site, page: Page) -> None:
    for name in ("one", "two"):
        await start(site, page, name, QUICK)
    await page.goto("/dag-runs")
    await page.get_by_role("checkbox", name="Select two").focus()
    await page.keyboard.press("ArrowDown")
    tick = page.get_by_role("checkbox", name="Select one")
    await expect(tick).to_be_focused()
    await page.keyboard.press("Space")
    gate = site.installation.home / "gate"
    await start(site, page, "three", GATED.format(gate=gate))
    try:
        await expect(page.get_by_role("link", name="three")).to_be_visible()
        await expect(tick).to_be_focused()
        await expect(tick).to_be_checked()
        assert await page.locator("[data-select]:checked").count() == 1
    finally:
        gate.touch()
