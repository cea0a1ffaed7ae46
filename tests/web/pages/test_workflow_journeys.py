"""What authors do with definitions, in a real browser: create, edit, save, start, look at the history."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, Route, expect

from secure_dagu.dispatch.operating import Outlook, Placement, Waiting
from tests.web.pages.operating_site import looking, open_browser
from tests.web.pages.test_operating_journeys import confirm, start
from tests.web.site import Site

GOOD = "steps:\n  - {id: a, run: echo a}\n"
TYPED = """
params:
  - {name: where, enum: [staging, production], default: staging}
  - {name: count, type: integer, default: 1, minimum: 1, maximum: 3}
  - {name: word, default: plain}
steps:
  - {id: show, run: 'printf "%s\\n" "$where $count $word"'}
"""
HOSTILE = """
description: "<script>window.hit=1</script>"
labels: ["<img/src=x/onerror=window.hit=1>", "a\\"onmouseover=window.hit=1"]
params:
  - {name: p, default: "\\"><img src=x onerror=window.hit=1>", description: "<svg onload=window.hit=1>"}
steps:
  - {name: "<img src=x onerror=window.hit=1>", run: "echo '</pre><script>window.hit=1</script>'"}
"""


def write(site: Site, name: str, text: str = GOOD) -> None:
    (site.installation.dags / f"{name}.yaml").write_text(text)


def read(site: Site, name: str) -> str:
    return (site.installation.dags / f"{name}.yaml").read_text()


async def test_create_edit_with_an_error_fix_save_start_and_see_it_green(site: Site, page: Page) -> None:
    await page.goto("/dags")
    await expect(page.get_by_text("No definitions yet")).to_be_visible()
    await page.keyboard.press("n")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("File name").fill("night")
    await dialog.get_by_label("With parameters").check()
    await expect(dialog.locator("[data-starter-text]")).to_contain_text("${params.count}")
    await dialog.get_by_role("button", name="Create and edit").click()
    await expect(page).to_have_url(re.compile("/dags/night/edit$"))
    await expect(page.locator("[data-editor-summary]")).to_contain_text("It loads")
    field = page.get_by_label("Text of the definition")
    good = await field.input_value()
    await field.fill(good + "schedul: nonsense\n")
    await expect(page.locator("[data-editor-summary]")).to_contain_text("1 problem")
    await expect(page.locator("[data-editor-problems]")).to_contain_text("schedul")
    await page.keyboard.press("Control+s")
    await expect(page.get_by_role("alert")).to_contain_text("It was not saved")
    assert read(site, "night") == good
    await field.fill(good + "labels: [fixed]\n")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.locator("[data-editor-state]")).to_have_text("saved")
    assert read(site, "night").endswith("labels: [fixed]\n")
    await page.get_by_role("link", name="Start…").click()
    await page.get_by_label("environment").select_option("production")
    await page.get_by_label("count").fill("7")
    await page.get_by_role("button", name="Start").click()
    await expect(page).to_have_url(re.compile("/dag-runs/night/run1$"))
    await expect(page.locator("#graph-main-lr .node-succeeded")).to_have_count(1)
    await expect(page.locator("#run-facts")).to_contain_text("production")
    await page.goto("/dags/night?tab=history")
    await expect(page.locator(".matrix tbody .status-succeeded")).to_have_count(1)


async def test_a_conflict_is_said_and_loses_nothing(site: Site, page: Page) -> None:
    write(site, "both")
    await page.goto("/dags/both/edit")
    field = page.get_by_label("Text of the definition")
    state = page.locator("[data-editor-state]")
    mine, theirs = f"{GOOD}description: mine\n", f"{GOOD}description: theirs\n"
    await field.fill(mine)
    write(site, "both", theirs)
    await page.keyboard.press("Control+s")
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Somebody else changed this definition")
    await expect(dialog.locator(".diff-theirs")).to_have_text("- description: theirs\n")
    await expect(dialog.locator(".diff-mine")).to_have_text("+ description: mine\n")
    assert read(site, "both") == theirs
    await page.keyboard.press("Escape")
    await expect(field).to_have_value(mine)
    await page.keyboard.press("Control+s")
    await dialog.get_by_role("button", name="Take theirs").click()
    await expect(field).to_have_value(theirs)
    await expect(state).to_have_text("no changes")
    await page.keyboard.press("Control+z")
    await expect(field).to_have_value(mine)
    write(site, "both", f"{theirs}queue: q\n")
    await page.keyboard.press("Control+s")
    await dialog.get_by_role("button", name="Save mine over theirs").click()
    await expect(state).to_have_text("saved")
    assert read(site, "both") == mine


async def test_what_was_not_saved_is_there_after_the_page_is_loaded_again(site: Site, page: Page) -> None:
    write(site, "draft")
    await page.goto("/dags/draft/edit")
    field = page.get_by_label("Text of the definition")
    await field.fill(f"{GOOD}queue: mine\n")
    asked: list[str] = []

    async def leave(dialog: object) -> None:
        asked.append(dialog.type)  # type: ignore[attr-defined]
        await dialog.accept()  # type: ignore[attr-defined]

    page.on("dialog", leave)
    await page.reload()
    assert asked == ["beforeunload"]
    await expect(field).to_have_value(f"{GOOD}queue: mine\n")
    await expect(page.get_by_role("alert")).to_contain_text("not saved are here again")
    await page.get_by_role("button", name="Discard them").click()
    await expect(field).to_have_value(GOOD)
    await page.reload()
    await expect(field).to_have_value(GOOD)
    assert asked == ["beforeunload"]


async def test_a_change_on_disk_is_said_while_somebody_edits(site: Site, page: Page) -> None:
    write(site, "seen")
    await page.goto("/dags/seen/edit")
    field = page.get_by_label("Text of the definition")
    await field.fill(f"{GOOD}queue: mine\n")
    write(site, "seen", f"{GOOD}queue: theirs\n")
    await page.evaluate("import(document.querySelector('script[src*=live]').src).then(module => module.live.refresh())")
    await expect(page.get_by_role("alert")).to_contain_text("Somebody else changed this definition")
    await expect(field).to_have_value(f"{GOOD}queue: mine\n")


async def test_the_editor_by_keyboard_alone(site: Site, page: Page) -> None:
    write(site, "keys", "steps:\n")
    await page.goto("/dags/keys/edit")
    field = page.get_by_label("Text of the definition")
    await field.focus()
    await page.keyboard.press("Control+End")
    await page.keyboard.press("Tab")
    await page.keyboard.type("- id: a")
    await page.keyboard.press("Enter")
    await page.keyboard.type("run: |")
    await page.keyboard.press("Enter")
    await page.keyboard.type("echo a")
    await expect(field).to_have_value("steps:\n  - id: a\n    run: |\n      echo a")
    await page.keyboard.press("Shift+Tab")
    await expect(field).to_have_value("steps:\n  - id: a\n    run: |\n    echo a")
    await page.keyboard.press("Control+z")
    await expect(field).to_have_value("steps:\n  - id: a\n    run: |\n      echo a")
    await page.keyboard.press("Control+a")
    await page.keyboard.press("Tab")
    await expect(field).to_have_value("  steps:\n    - id: a\n      run: |\n        echo a")
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Control+End")
    await page.keyboard.press("Escape")
    await page.keyboard.press("Tab")
    await expect(field).not_to_be_focused()
    await field.fill("steps:\n  - {id: a, run: echo a, nonsense: 1}\n")
    await expect(page.locator("[data-editor-problems]")).to_contain_text("nonsense")
    await page.keyboard.press("Control+Home")
    await page.keyboard.press("F8")
    selected = await field.evaluate("one => one.value.slice(0, one.selectionStart).split('\\n').length")
    assert selected == 2


async def test_filter_suspend_and_resume(site: Site, page: Page) -> None:
    write(site, "alpha", f"labels: [team=data]\nschedule: '0 1 * * *'\n{GOOD}")
    write(site, "beta", f"labels: [team=ops]\n{GOOD}")
    write(site, "gamma", f"{GOOD}nonsense: 1\n")
    await page.goto("/dags")
    rows = page.locator(".flow")
    await expect(rows).to_have_count(3)
    await expect(page.locator("#flow-problems")).to_contain_text("1 file does not load")
    await expect(page.locator("#flow-problems")).to_contain_text("gamma.yaml:3:1")
    await expect(rows.filter(has_text="alpha").locator("time[data-until]")).to_contain_text("in ")
    await page.get_by_role("searchbox", name="Name").fill("alph")
    await expect(rows).to_have_count(1)
    await expect(page).to_have_url(re.compile("name=alph"))
    await page.get_by_role("searchbox", name="Name").fill("")
    await expect(rows).to_have_count(3)
    await rows.filter(has_text="beta").get_by_role("link", name="team=ops").click()
    await expect(rows).to_have_count(1)
    await expect(page.get_by_role("combobox", name="Labels")).to_have_value("team=ops")
    await page.goto("/dags")
    await page.get_by_label("Active only").check()
    await expect(rows).to_have_count(1)
    live = page.get_by_role("switch", name="Schedule of alpha")
    await expect(live).to_be_checked()
    await live.click()
    await expect(page.get_by_text("Nothing here fits these filters")).to_be_visible()
    assert site.installation.workflows.suspended == {"alpha"}
    await page.get_by_label("Active only").uncheck()
    await expect(live).not_to_be_checked()
    await live.press("Space")
    await expect(live).to_be_checked()
    assert site.installation.workflows.suspended == set()


async def test_the_list_follows_what_runs(site: Site, page: Page) -> None:
    write(site, "lively")
    await page.goto("/dags")
    await expect(page.locator(".flow")).to_contain_text("never run")
    await start(site, page, "lively", GOOD)
    await page.evaluate("import(document.querySelector('script[src*=live]').src).then(module => module.live.refresh())")
    await expect(page.locator(".flow .status-succeeded")).to_be_visible()
    await page.goto("/dags/lively")
    await expect(page.locator("#flow-head")).to_contain_text("succeeded")
    await expect(page.locator("#graph-main-lr .node-succeeded")).to_have_count(1)


async def test_rename_and_delete(site: Site, page: Page) -> None:
    write(site, "old")
    write(site, "taken")
    await page.goto("/dags/old?tab=manage")
    await page.get_by_label("New file name").fill("taken")
    await page.get_by_role("button", name="Rename").click()
    await expect(page.get_by_role("alert").filter(has_text="taken")).to_be_visible()
    await page.get_by_label("New file name").fill("new")
    await page.get_by_role("button", name="Rename").click()
    await expect(page).to_have_url(re.compile("/dags/new"))
    await page.get_by_role("button", name="Delete new").click()
    await confirm(page, "new")
    await expect(page).to_have_url(re.compile("/dags$"))
    assert [path.name for path in site.installation.dags.iterdir()] == ["taken.yaml"]


async def test_start_with_awkward_values_and_defaults_that_are_not_sent(site: Site, page: Page) -> None:
    write(site, "typed", TYPED)
    await page.goto("/dags/typed")
    await page.keyboard.press("s")
    await page.get_by_label("word").fill('a "quoted" \\ word, $HOME')
    await page.get_by_label("Run id").fill("mine-1")
    await page.get_by_label("Labels of this run").fill("once, team=data")
    async with page.expect_request("**/start") as asked:
        await page.get_by_role("button", name="Start").click()
    assert (await asked.value).post_data_json == {
        "params": 'word="a \\"quoted\\" \\\\ word, $HOME"', "dagRunId": "mine-1", "labels": ["once", "team=data"],
    }  # fmt: skip
    await expect(page).to_have_url(re.compile("/dag-runs/typed/mine-1$"))
    await expect(page.locator("#run-head")).to_contain_text("succeeded")
    await page.goto("/dag-runs/typed/mine-1/log?step=show")
    await expect(page.locator(".log-line").first).to_contain_text('staging 1 a "quoted" \\ word, $HOME')


@contextlib.asynccontextmanager
async def late(page: Page, script: str) -> AsyncIterator[None]:
    """Hold a script back until the end of the context; then wait until the page is loaded with it."""
    gate = asyncio.Event()

    async def hold(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    await page.route(f"**/{script}*", hold)
    yield
    gate.set()
    await page.wait_for_load_state("load")


async def test_what_was_chosen_before_the_scripts_came_is_sent(site: Site, page: Page) -> None:
    """Once it passed for the default, which is not sent, and the run got the default."""
    write(site, "typed", TYPED)
    async with late(page, "start.js"):
        await page.goto("/dags/typed/start", wait_until="commit")
        await page.get_by_label("where", exact=True).select_option("production")
        await page.get_by_label("word").fill("early")
    await page.get_by_label("count").fill("2")
    async with page.expect_request("**/start") as asked:
        await page.get_by_role("button", name="Start").click()
    assert (await asked.value).post_data_json == {"params": 'where="production" count="2" word="early"'}


@pytest.mark.parametrize(
    ("path", "script", "label", "state"),
    [
        ("/dags/early/edit", "editor.js", "Text of the definition", "[data-editor-state]"),
        ("/base-config", "basetext.js", "Text of the base configuration", "[data-base-state]"),
    ],
)
async def test_what_was_typed_before_the_scripts_came_is_not_saved_yet(
    site: Site, page: Page, path: str, script: str, label: str, state: str
) -> None:
    write(site, "early")
    async with late(page, script):
        await page.goto(path, wait_until="commit")
        await page.get_by_label(label).fill("queue: mine\n")
    await expect(page.locator(state)).to_have_text("unsaved changes")


async def test_enqueue_and_what_is_refused_is_said(site: Site, page: Page) -> None:
    write(site, "typed", TYPED)
    await page.goto("/dags/typed/start")
    await expect(page.get_by_label("Queue", exact=True)).to_be_hidden()
    await page.get_by_label("Through its queue").check()
    await page.get_by_label("Queue", exact=True).fill("slow")
    await page.get_by_label("Run id").fill("q1")
    await page.get_by_role("button", name="Enqueue").click()
    await expect(page).to_have_url(re.compile("/dag-runs/typed/q1$"))
    await expect(page.locator("#run-head")).to_contain_text("queued")
    await page.goto("/dags/typed/start")
    await page.get_by_label("Run id").fill("q1")
    await page.get_by_role("button", name="Start").click()
    await expect(page.locator("[data-error]")).to_contain_text("q1")


async def test_the_start_dialog_says_where_it_would_run_and_why_it_would_wait(site: Site, page: Page) -> None:
    write(site, "typed", TYPED)
    await page.goto("/dags/typed/start")
    where = page.locator("#where")
    await expect(where).to_contain_text("On this host.")
    site.installation.launching.expected = Outlook(
        placement=Placement.WORKERS, selector={"gpu": "true"}, waits_for=Waiting.NO_MATCHING_WORKER
    )
    await page.reload()
    await expect(where).to_contain_text("On a worker with gpu=true. 0 healthy workers fit now.")
    await expect(where).to_contain_text("It would wait: no healthy worker has these labels.")
    await expect(where).to_contain_text("Start a worker with these labels")


async def test_the_history_shows_a_run_that_is_chosen(site: Site, page: Page) -> None:
    for status in (0, 3):
        await start(site, page, "past", f"steps:\n  - {{id: a, run: exit {status}}}\n")
        await site.installation.launching.processes[-1].wait()
    await page.goto("/dags/past?tab=history")
    await expect(page.locator(".matrix tbody td .cell")).to_have_count(2)
    await page.get_by_role("link", name="Run run1, succeeded").click()
    await expect(page.locator("#run .node-succeeded:visible")).to_have_count(1)
    await page.get_by_role("link", name="Run run2, failed").click()
    await expect(page.locator("#run .node-failed:visible")).to_have_count(1)


async def test_hostile_texts_are_texts_everywhere(site: Site, page: Page) -> None:
    write(site, "hostile", HOSTILE)
    write(site, "worse", "steps: [{id: '<img src=x onerror=window.hit=1>', '<img src=x onerror=window.hit=2>': 1}]\n")
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    await start(site, page, "hostile", HOSTILE)
    await site.installation.launching.processes[-1].wait()
    paths = [
        "/dags",
        "/dags?name=%22%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.hit%3D1%3E",
        "/dags/worse",
        "/dags/worse/edit",
    ]
    paths += [f"/dags/hostile{rest}" for rest in ("", *(f"?tab={tab}" for tab in TABS), "/edit", "/start")]
    for path in (*paths, "/dags/hostile?tab=history&run=run1"):
        answer = await page.goto(path)
        assert answer is not None, path
        assert answer.status == 200, path
        assert await page.evaluate("window.hit") is None, path
        assert await page.locator("main img, main script").count() == 0, path
    await page.goto("/dags/worse/edit")
    await expect(page.locator("[data-editor-problems]")).to_contain_text("<img src=x onerror=window.hit=2>")
    await page.goto("/dags")
    await expect(page.locator("#flow-rows")).to_contain_text("<img/src=x/onerror=window.hit=1>")
    assert await page.evaluate("window.hit") is None
    assert said == []


TABS = ("latest", "definition", "history", "next-runs", "manage")
PAGES = ("/dags", "/dags/etl", *(f"/dags/etl?tab={tab}" for tab in TABS[1:]), "/dags/etl?tab=history&run=run1",
         "/dags/etl/edit", "/dags/etl/start", "/dags/broken", "/dags/broken/edit", "/dags/empty",
         "/dags/empty/start", "/dags/empty?tab=next-runs")  # fmt: skip


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
async def test_every_page_passes_axe_fits_and_breaks_no_rule_of_the_policy(site: Site, look: str) -> None:
    async with open_browser() as browser, looking(browser, site, dark=look != "light", phone=look == "phone") as page:
        await start(site, page, "etl", f"labels: [team=data]\nschedule: '0 1 * * *'\ndescription: Loads.{TYPED}")
        await site.installation.launching.processes[-1].wait()
        write(site, "broken", "nonsense: [\n")
        write(site, "empty", f"{GOOD}description: {'long ' * 60}\n")
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        problems = {}
        for path in PAGES:
            answer = await page.goto(path)
            assert answer is not None, path
            assert answer.status == 200, path
            found = (await Axe().run(page)).response["violations"]
            if found:
                problems[path] = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found]
            wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                problems[f"{path} is too wide"] = [(str(wide), [])]
        await page.goto("/dags")
        await page.locator("[data-open]").first.click()
        found = (await Axe().run(page)).response["violations"]
        assert [one["id"] for one in found] == []
        assert problems == {}
        assert said == []


async def test_who_may_only_read_is_offered_nothing_and_refused_the_rest(site: Site) -> None:
    write(site, "etl", TYPED)
    async with site.client() as client:
        token = await site.login(client)
        made = {"username": "vera", "password": "correct horse battery", "role": "viewer"}
        assert (await client.post("/api/v1/users", json=made, headers={"X-CSRF-Token": token})).status_code == 201
    async with open_browser() as browser, looking(browser, site) as page:
        await page.context.clear_cookies()
        answer = await page.context.request.post(
            "/api/v1/auth/login", data={"username": "vera", "password": "correct horse battery", "cookie": True}
        )
        assert answer.ok
        for path in ("/dags", "/dags/etl", "/dags/etl?tab=definition", "/dags/etl?tab=manage"):
            await page.goto(path)
            await expect(page.locator("h1")).to_be_visible()
            assert (
                await page.locator("main [data-act], main [data-open], main a[href$=start], main a[href$=edit]").count()
                == 0
            )
        for path in ("/dags/etl/edit", "/dags/etl/start"):
            refused = await page.goto(path)
            assert refused is not None
            assert refused.status == 403
