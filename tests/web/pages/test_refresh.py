"""What a page that follows costs: one that says the same is not sent again."""

from __future__ import annotations

from playwright.async_api import Page, Response, expect

from secure_dagu.web.pages.frame import tag_of
from tests.web.pages.test_operating_journeys import start
from tests.web.site import Site

QUICK = "steps:\n  - {id: a, run: 'true'}\n"


def test_a_page_whose_ages_ticked_is_the_same_and_one_with_another_time_is_not() -> None:
    page = '<p>b</p><time datetime="2026-01-01T00:00:00+00:00" data-age>{} ago</time> <b>{}</b>'
    assert tag_of(page.format("1s", "x")) == tag_of(page.format("2m 03s", "x"))
    assert tag_of(page.format("1s", "x")) != tag_of(page.format("1s", "y"))
    assert tag_of(page.format("1s", "x")) != tag_of(page.format("1s", "x").replace("00:00:00", "00:00:01"))


async def test_a_page_is_sent_again_only_when_it_says_something_else(site: Site) -> None:
    async with site.client() as client:
        await site.login(client)
        first = await client.get("/dags")
        known = {"If-None-Match": first.headers["etag"]}
        same = await client.get("/dags", headers=known)
        assert (same.status_code, same.content) == (304, b"")
        assert (await client.get("/dags", headers={"If-None-Match": 'W/"other"'})).status_code == 200
        (site.installation.dags / "new.yaml").write_text(QUICK)
        changed = await client.get("/dags", headers=known)
        assert changed.status_code == 200
        assert "new" in changed.text
        client.cookies.clear()
        assert (await client.get("/dags", headers=known)).status_code == 303


async def test_a_page_in_the_browser_follows_what_changes_and_asks_for_nothing_twice(site: Site, page: Page) -> None:
    answers: list[int] = []

    def note(response: Response) -> None:
        if response.url.endswith("/dags") and response.request.resource_type == "fetch":
            answers.append(response.status)

    page.on("response", note)
    (site.installation.dags / "one.yaml").write_text(QUICK)
    await page.goto("/dags")
    for wanted in (200, 304, 304):
        async with page.expect_response(lambda answer: answer.url.endswith("/dags")) as seen:
            await page.keyboard.press("r")
        assert (await seen.value).status == wanted
    await start(site, page, "one", QUICK)
    await expect(page.locator(".flow-status")).to_contain_text("succeeded")
    assert 200 in answers[3:]
