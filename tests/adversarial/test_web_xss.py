"""Names, logs and files that try to become markup or to break the page: they stay text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.web.pages.operating_site import looking, open_browser, open_pages
from tests.web.pages.test_operating_journeys import start
from tests.web.site import Site

HOSTILE = r"""
labels: ["x=<img src=x onerror=hit()>"]
steps:
  - id: shout
    name: "<img src=x onerror=hit()> ‮gpj.exe"
    description: "{{ 7*7 }} <script>hit()</script>"
    run: |
      printf '<script>hit()</script><img src=x onerror=hit()>\n'
      printf '\033]8;;javascript:hit()\007click\033]8;;\007 \033]0;title\007\033[2J\033[10;10H\033[?1049h end\n'
      printf '\342\200\256evil\n'
      i=0; while [ $i -lt 3000 ]; do printf '\033[3%dmx\033[1m' $((i % 8)); i=$((i+1)); done; printf '\n'
      head -c 1048576 /dev/zero | tr '\0' 'A'; printf '\n'
      printf 'last line\n'
      printf '<script>parent.hit()</script><p id=inside>shown</p>' > "$DAG_RUN_ARTIFACTS_DIR/page.html"
      printf '<svg xmlns="http://www.w3.org/2000/svg"><script>hit()</script></svg>' > "$DAG_RUN_ARTIFACTS_DIR/p.svg"
      printf '[x](javascript:hit()) <b onclick=hit()>y</b> <script>hit()</script>' > "$DAG_RUN_ARTIFACTS_DIR/m.md"
"""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_pages(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
async def page(site: Site) -> AsyncIterator[Page]:
    async with open_browser() as browser, looking(browser, site) as opened:
        await opened.add_init_script("window.hits = 0; window.hit = () => { window.hits += 1; }")
        yield opened


async def test_nothing_in_a_run_is_executed_or_breaks_the_page(site: Site, page: Page) -> None:
    run = await start(site, page, "hostile", HOSTILE)
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("succeeded")
    await expect(page.locator("#step-table")).to_contain_text("<img src=x onerror=hit()>")
    log = await page.get_by_role("link", name="stdout").get_attribute("href")
    assert log is not None
    for path in ("/dag-runs", f"{run}?tab=timeline", f"{run}?tab=artifacts&file=m.md",
                 f"{run}?tab=artifacts&file=p.svg", f"{run}?tab=artifacts&file=page.html", log):  # fmt: skip
        await page.goto(path)
        assert await page.evaluate("window.hits") == 0, path
        overflow = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, path
    rows = page.locator(".log-line")
    await expect(rows.last).to_contain_text("last line")
    await expect(rows.nth(0)).to_contain_text("<script>hit()</script>")
    assert await page.locator(".log-lines a:not(.log-number)").count() == 0
    assert await page.locator(".log-lines *").count() < 2000
    assert "‮" not in await page.locator(".log-lines").inner_text()
    assert await page.evaluate("window.hits") == 0


async def test_a_page_that_a_run_left_has_no_origin_and_no_scripts(site: Site, page: Page) -> None:
    run = await start(site, page, "hostile", HOSTILE)
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("succeeded")
    answer = await page.goto(f"{run}/file?path=page.html")
    assert answer is not None
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert await page.evaluate("window.origin") == "null"
    assert await page.locator("#inside").count() == 1
    for path in ("..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "m.md"):
        refused = await page.goto(f"{run}/file?path={path}")
        assert refused is not None
        assert refused.status == 404
