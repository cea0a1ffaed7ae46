"""The page of managed secrets in a real browser: kept, changed and removed there, and never shown."""

from __future__ import annotations

import re

from playwright.async_api import Page, expect

from secure_dagu.store.secret_files import GLOBAL, SecretFiles
from tests.web.site import Site

PEM = "-----BEGIN KEY-----\nabc+/=\n-----END KEY-----"
USES = "secrets:\n  - {name: KEY, ref: prod/signing-key}\nsteps:\n  - run: 'true'\n"


def kept(site: Site, ref: str) -> str | None:
    secret = SecretFiles(site.installation.home / "data" / "secrets").get(GLOBAL, ref)
    return secret.reveal() if secret is not None else None


async def test_a_secret_is_kept_changed_and_deleted_and_no_page_holds_its_value(site: Site, page: Page) -> None:
    (site.installation.dags / "signs.yaml").write_text(USES)
    seen: list[str] = []
    await page.goto("/secrets")
    await expect(page.get_by_role("heading", name="No secrets")).to_be_visible()
    await expect(page.locator(".notice-bad")).to_contain_text("prod/signing-key in signs")
    await page.locator(".maker summary").click()
    new = page.locator(".maker")
    await new.get_by_label("Reference").fill("Prod Key")
    await new.get_by_label("Value").fill(PEM)
    await new.get_by_role("button", name="Keep secret").click()
    assert await new.get_by_label("Reference").evaluate("field => field.validity.patternMismatch")
    await new.get_by_label("Reference").fill("prod/signing-key")
    await new.get_by_role("button", name="Keep secret").click()
    row = page.get_by_role("row", name="prod/signing-key")
    await expect(row).to_contain_text("active")
    await expect(row.get_by_role("link", name="signs")).to_be_visible()
    await expect(page.locator(".notice-bad")).to_have_count(0)
    assert kept(site, "prod/signing-key") == PEM
    seen.append(await page.content())

    await row.locator("summary").click()
    await row.get_by_label("Value").fill("second value")
    await row.get_by_role("button", name="Set value").click()
    await expect(row.locator("details[open]")).to_have_count(0)
    assert kept(site, "prod/signing-key") == "second value"
    seen.append(await page.content())
    assert all(PEM[20:28] not in text and "second value" not in text for text in seen)

    await row.locator("summary").click()
    await row.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator("button[value=yes]")).to_be_disabled()
    await dialog.locator("[data-typed-field]").fill("prod/signing-key")
    await dialog.locator("button[value=yes]").click()
    await expect(page.get_by_role("heading", name="No secrets")).to_be_visible()
    assert kept(site, "prod/signing-key") is None


async def test_a_reference_that_is_taken_is_said_and_changes_nothing(site: Site, page: Page) -> None:
    async with site.client() as client:
        token = await site.login(client)
        made = {"ref": "a", "value": "first"}
        assert (await client.post("/api/v1/secrets", json=made, headers={"X-CSRF-Token": token})).status_code == 201
    await page.goto("/secrets")
    await page.locator(".maker summary").click()
    await page.locator(".maker").get_by_label("Reference").fill("a")
    await page.locator(".maker").get_by_label("Value").fill("second")
    await page.get_by_role("button", name="Keep secret").click()
    await expect(page.locator(".maker [data-error]")).to_contain_text("there is a secret 'a'")
    assert kept(site, "a") == "first"


async def test_a_secret_that_others_may_read_is_said_to_be_unusable(site: Site, page: Page) -> None:
    file = site.installation.home / "data" / "secrets" / GLOBAL / "open"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    file.chmod(0o644)
    await page.goto("/secrets")
    await expect(page.get_by_role("row", name=re.compile("open"))).to_contain_text("Others may read its file")
