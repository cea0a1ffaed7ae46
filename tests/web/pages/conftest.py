"""Fixtures: one server and one browser for each test; both are real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.web.pages.operating_site import looking, open_browser, open_pages
from tests.web.site import Site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_pages(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
async def page(site: Site) -> AsyncIterator[Page]:
    async with open_browser() as browser, looking(browser, site) as opened:
        yield opened
