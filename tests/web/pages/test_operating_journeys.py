"""What people do all day, in a real browser on real runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.web.site import Site

SLOW = r"""
steps:
  - id: talk
    run: i=0; while [ $i -lt 400 ]; do i=$((i+1)); printf '\033[31mred\033[0m line %s\n' $i; sleep 0.05; done
  - id: after
    run: echo after
    depends: talk
"""
ASK = """
steps:
  - id: release
    run: echo released
    approval: {prompt: "Release it?", input: [comment], required: [comment]}
"""
FILES = r"""
steps:
  - id: make
    run: printf '# Title\n\n**bold**\n' > "$DAG_RUN_ARTIFACTS_DIR/note.md"; echo made
    output: WORD
  - id: fail
    run: test -e "$MARK" && echo fine
    depends: make
"""


async def start(site: Site, page: Page, name: str, text: str, how: str = "start") -> str:
    """Start a DAG through the REST API; return the path of its run's page."""
    (site.installation.dags / f"{name}.yaml").write_text(text)
    async with site.client() as client:
        token = await site.login(client)
        answer = await client.post(f"/api/v1/dags/{name}/{how}", json={}, headers={"X-CSRF-Token": token})
        assert answer.status_code == 200, answer.text
        return f"/dag-runs/{name}/{answer.json()['dagRunId']}"


async def confirm(page: Page, word: str = "") -> None:
    """Say yes in the dialog that asks."""
    dialog = page.get_by_role("dialog")
    if word:
        await dialog.locator("[data-typed-field]").fill(word)
    await dialog.locator("button[value=yes]").click()


async def test_follow_a_log_live_stop_the_run_and_retry_from_a_step(site: Site, page: Page) -> None:
    run = await start(site, page, "slow", SLOW)
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("running")
    await page.goto(f"{run}/log?step=talk")
    lines = page.locator(".log-line")
    await expect(lines.nth(5)).to_contain_text("red line 6")
    await expect(lines.nth(5).locator(".a-f1")).to_have_text("red")
    seen = await lines.count()
    await expect(lines.nth(seen + 5)).to_be_attached()
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("running")
    await page.get_by_role("button", name="Stop").click()
    await confirm(page)
    await expect(page.locator("#run-head")).to_contain_text("aborted")
    await page.get_by_label("Actions for talk").click()
    await page.get_by_role("button", name="Retry from here").click()
    await confirm(page)
    await page.keyboard.press("Escape")
    await expect(page.locator("#run-head")).to_contain_text("running")
    await page.get_by_role("button", name="Stop").click()
    await confirm(page)
    await expect(page.locator("#run-head")).to_contain_text("aborted")


async def test_following_stops_when_the_reader_scrolls_up(site: Site, page: Page) -> None:
    run = await start(site, page, "slow", SLOW)
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("running")
    await page.goto(f"{run}/log?step=talk")
    await expect(page.locator(".log-line").nth(60)).to_be_attached()
    follow = page.locator("[data-log-follow]")
    await expect(follow).to_be_checked()
    await page.locator(".log-lines").hover()
    await page.mouse.wheel(0, -400)
    await expect(follow).not_to_be_checked()
    top = await page.locator(".log-lines").evaluate("box => box.scrollTop")
    await page.get_by_role("button", name="End", exact=True).click()
    await expect(follow).to_be_checked()
    assert await page.locator(".log-lines").evaluate("box => box.scrollTop") > top
    async with site.client() as client:
        token = await site.login(client)
        await client.post(f"/api/v1{run}/stop", headers={"X-CSRF-Token": token})


async def test_approve_a_waiting_step(site: Site, page: Page) -> None:
    run = await start(site, page, "ask", ASK)
    await page.goto(run)
    await expect(page.get_by_text("Release it?")).to_be_visible()
    await page.get_by_label("comment").fill("fine")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.get_by_label("comment")).to_have_value("")
    assert site.installation.launching.calls == [("approve", "release")]


async def test_look_at_outputs_artifacts_and_download_them(site: Site, page: Page) -> None:
    run = await start(site, page, "files", FILES)
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("failed")
    await page.get_by_role("link", name="Artifacts").click()
    await page.get_by_role("link", name="note.md").click()
    await expect(page.locator(".prose strong")).to_have_text("bold")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download").click()
    assert "# Title" in (await (await download.value).path()).read_text()
    await page.get_by_role("link", name="Outputs").click()
    await expect(page.get_by_role("row", name=re.compile("word made"))).to_be_visible()
    await page.get_by_role("link", name="Timeline").click()
    assert await page.locator(".gantt-bar").count() == 2
    await page.goto(f"{run}/log?step=make")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download").click()
    assert (await (await download.value).path()).read_text() == "made\n"


async def test_pause_and_resume_a_queue_and_dequeue_a_selection(site: Site, page: Page) -> None:
    await start(site, page, "files", FILES, "enqueue")
    await page.goto("/queues/files")
    await page.get_by_role("button", name="Pause").click()
    await confirm(page)
    await expect(page.locator("#queue-head")).to_contain_text("paused")
    await page.get_by_role("button", name="Resume").click()
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()
    await page.locator("[data-select]").check()
    await page.get_by_role("button", name="Dequeue").click()
    await confirm(page)
    await page.goto("/dag-runs?status=queued")
    await expect(page.get_by_text("No run matches these filters")).to_be_visible()


async def test_filter_runs_and_delete_a_selection(site: Site, page: Page) -> None:
    run = await start(site, page, "files", FILES)
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("failed")
    await page.goto("/dag-runs")
    await expect(page.get_by_text("Showing last 24 hours")).to_be_visible()
    await page.get_by_label("DAG name").fill("files")
    await page.get_by_label("Failed").check(force=True)
    await page.get_by_role("button", name="Apply").click()
    await expect(page).to_have_url(re.compile("name=files.*status=failed"))
    await page.get_by_label("Select all runs of this page").check()
    await page.get_by_role("button", name="Delete").click()
    await confirm(page, "delete")
    await expect(page.get_by_text("No run matches these filters")).to_be_visible()


async def test_reschedule_a_selection(site: Site, page: Page) -> None:
    for _ in range(2):
        await start(site, page, "files", FILES)
    await page.goto("/dag-runs")
    await expect(page.locator("#run-rows tbody tr")).to_have_count(2)
    await page.get_by_label("Select all runs of this page").check()
    await page.get_by_role("button", name="Reschedule").click()
    await expect(page.get_by_role("dialog")).to_contain_text("same parameters")
    await confirm(page)
    await expect(page.locator("#run-rows tbody tr")).to_have_count(4)
    await expect(page.locator("[data-selection]")).to_be_hidden()


async def test_make_a_user_and_an_api_key_that_is_shown_once(site: Site, page: Page) -> None:
    await page.goto("/users")
    await page.locator(".maker summary").click()
    await page.get_by_label("Name").fill("grace")
    await page.locator(".maker").get_by_label("Password").fill("a long password")
    await page.get_by_role("button", name="Create user").click()
    grace = page.get_by_role("row", name=re.compile("grace"))
    await expect(grace).to_contain_text("active")
    await grace.locator("summary").click()
    await grace.get_by_role("button", name="Disable").click()
    await confirm(page)
    await expect(grace).to_contain_text("disabled")
    await grace.locator("summary").click()
    await grace.get_by_role("button", name="Delete").click()
    await confirm(page, "grace")
    await expect(grace).to_have_count(0)
    await page.goto("/api-keys")
    await page.locator(".maker summary").click()
    await page.get_by_label("Name").fill("ci")
    await page.get_by_role("button", name="Create key").click()
    key = page.locator("[data-secret-text]")
    await expect(key).to_have_text(re.compile("^dagu_"))
    text = await key.inner_text()
    await page.get_by_role("button", name="I have copied it").click()
    await expect(page.get_by_role("row", name=re.compile("ci"))).to_be_visible()
    assert text not in await page.content()


async def test_drain_a_worker_only_with_its_name_typed(site: Site, page: Page) -> None:
    await page.goto("/workers")
    await page.get_by_role("button", name="Drain").click()
    yes = page.get_by_role("dialog").locator("button[value=yes]")
    await expect(yes).to_be_disabled()
    await confirm(page, "w1")
    await expect(page.locator("#workers")).to_contain_text("draining")


PAGES = ("/", "/account", "/base-config", "/search?q=echo", "/nowhere", "/dag-runs",
         "{run}", "{run}?tab=timeline", "{run}?tab=outputs", "{run}?tab=artifacts&file=note.md",
         "{run}?tab=definition", "{run}?tab=sub-runs", "{run}/log?step=make", "/queues", "/workers", "/links",
         "/certificates", "/system-status", "/audit-logs?verify=1", "/security-events", "/compliance", "/event-logs",
         "/users", "/api-keys", "/secrets", "/api-docs")  # fmt: skip


@pytest.mark.parametrize("dark", [False, True])
async def test_every_page_passes_axe_and_breaks_no_rule_of_the_policy(site: Site, dark: bool) -> None:
    from axe_playwright_python.async_playwright import Axe

    from tests.web.pages.operating_site import looking, open_browser

    async with open_browser() as browser, looking(browser, site, dark=dark) as page:
        run = await start(site, page, "files", FILES)
        await page.goto(run)
        await expect(page.locator("#run-head")).to_contain_text("failed")
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        problems: dict[str, Any] = {}
        for path in PAGES:
            answer = await page.goto(path.format(run=run))
            assert answer is not None, path
            assert answer.status == (404 if path == "/nowhere" else 200), path
            found = (await Axe().run(page)).response["violations"]
            if found:
                problems[path] = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found]
        assert problems == {}
        assert [line for line in said if "favicon" not in line and "404" not in line] == []


async def test_a_log_of_two_hundred_thousand_lines_is_one_window_in_the_page(site: Site, page: Page) -> None:
    run = await start(site, page, "big", "steps:\n  - id: talk\n    run: seq 1 200000\n")
    await page.goto(run)
    await expect(page.locator("#run-head")).to_contain_text("succeeded")
    await page.goto(f"{run}/log?step=talk")
    await expect(page.locator(".log-line").last).to_contain_text("200000")
    await page.get_by_label("Line number").fill("100000")
    await page.get_by_role("button", name="Go", exact=True).click()
    await expect(page.locator(".log-asked .log-text")).to_have_text("100000")
    assert await page.locator(".log-line").count() == 1000
    await page.locator("[data-log-search]").fill("100123")
    await expect(page.locator("[data-log-hits]")).to_have_text("1 of 1")
    await expect(page.locator(".log-hit-now .log-text")).to_have_text("100123")
