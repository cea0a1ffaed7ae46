"""Base configuration, search and the API reference: in a real browser, and the reference's reading of OpenAPI."""

from __future__ import annotations

import re

from playwright.async_api import Page, expect

from secure_dagu.web.pages.documents import reference_of, shape
from secure_dagu.web.pages.frame import pieces
from tests.web.site import Site

DOCUMENT = {
    "info": {"description": "About."},
    "paths": {
        "/a/{id}": {
            "get": {
                "tags": ["dags"], "description": "Show version 3.1 of it. It is\nlong.", "x-role": "viewer",
                "parameters": [
                    {"in": "path", "name": "id", "required": True, "schema": {"type": "string"}},
                    {"in": "query", "name": "everywhere", "schema": {"enum": ["x", ""]}},
                ],
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                    "404": {"description": "Gone.",
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}},
                    "503": {"description": "Ill.",
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                },
            },
            "put": {
                "parameters": [{"in": "query", "name": "everywhere", "schema": {"enum": ["x", ""]}}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                "responses": {"204": {"description": "Done."}},
            },
        }
    },
    "components": {"schemas": {
        "Thing": {"required": ["key"], "properties": {
            "key": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}},
            "other": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        }},
        "ErrorBody": {},
    }},
}  # fmt: skip


def test_what_every_operation_has_is_said_once() -> None:
    reference = reference_of(DOCUMENT)
    assert [one.name for one in reference.everywhere] == ["everywhere"]
    assert reference.refusals == (("404", "Gone."),)
    (title, (get,)), (other, (put,)) = reference.groups
    assert (title, other) == ("Definitions", "Other")
    assert (get.summary, get.told, get.role) == ("Show version 3.1 of it.", "It is\nlong.", "viewer")
    assert [(one.name, one.is_required) for one in get.parameters] == [("id", True)]
    assert [status for status, _, _ in get.answers] == ["200", "503"]
    assert [(one.name, one.type, one.is_required) for one in put.body] == [
        ("key", "list of Thing", True),
        ("other", "string (date) or null", False),
    ]
    assert reference.names == {"Thing", "ErrorBody"}


def test_a_shape_that_holds_itself_ends() -> None:
    looping: dict[str, object] = {"type": "array"}
    looping["items"] = looping
    assert shape({}, looping).startswith("list of list of ")


def test_a_line_is_cut_where_it_holds_the_text() -> None:
    assert pieces("an Echo, echo.", "echo") == [
        (False, "an "), (True, "Echo"), (False, ", "), (True, "echo"), (False, "."),
    ]  # fmt: skip
    assert pieces("a.*b", ".*") == [(False, "a"), (True, ".*"), (False, "b")]


async def test_base_configuration_is_saved_only_when_it_loads_and_nobody_else_changed_it(
    site: Site, page: Page
) -> None:
    file = site.installation.home / "base.yaml"
    await page.goto("/base-config")
    text, state = page.get_by_label("Text of the base configuration"), page.locator("[data-base-state]")
    await text.fill("env: [A: 1\n")
    await expect(state).to_have_text("unsaved changes")
    await page.keyboard.press("Control+s")
    await expect(page.get_by_role("alert")).not_to_be_empty()
    assert not file.exists()
    await text.fill("env:\n  - A: '1'\n")
    await page.keyboard.press("Control+s")
    await expect(state).to_have_text("saved")
    assert file.read_text() == "env:\n  - A: '1'\n"
    file.write_text("env:\n  - THEIRS: '1'\n")
    await text.fill("env:\n  - MINE: '1'\n")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("alert")).to_contain_text("somebody else has changed it")
    assert "THEIRS" in file.read_text()


async def test_search_shows_lines_of_hostile_definitions_as_text(site: Site, page: Page) -> None:
    alerts: list[str] = []
    page.on("dialog", lambda dialog: alerts.append(dialog.message))
    text = "steps:\n  - id: a\n    run: echo '<script>alert(1)</script><b>'\n"
    (site.installation.dags / "evil.yaml").write_text(text)
    await page.goto("/")
    await page.keyboard.press("g")
    await page.keyboard.press("s")
    await page.get_by_label("Text").fill("<SCRIPT>")
    await page.keyboard.press("Enter")
    await expect(page.locator("mark")).to_have_text("<script>")
    assert await page.locator(".hit b, .hit script").count() == 0
    await page.get_by_role("link", name="Line 3").click()
    await expect(page).to_have_url(re.compile("/dags/evil.tab=definition#line-3"))
    assert alerts == []
    await page.goto("/search?q=nowhere")
    await expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()


async def test_the_api_reference_finds_an_endpoint_and_leads_to_its_shapes(site: Site, page: Page) -> None:
    await page.goto("/api-docs", timeout=60_000)  # the first look makes the document
    await page.get_by_label("Find an endpoint").fill("post retry")
    await expect(page.locator("[data-docs-count]")).to_have_text(re.compile("^[1-9] found"))
    shown = page.locator("#endpoints .endpoint:visible")
    await shown.first.locator("summary").click()
    await expect(shown.first).to_contain_text("operator")
    await page.goto("/api-docs#get-dag-runs")
    await page.locator("#get-dag-runs").get_by_role("link", name="RunList").click()
    await expect(page.locator("#shape-RunList")).to_have_attribute("open", "")
