"""Fixtures of the REST API's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.web.api.installation import Installation

HELLO = """\
description: says hello
labels: team=ops, nightly
schedule: "0 3 * * *"
params:
  - NAME: world
  - name: COUNT
    type: integer
    default: 3
    minimum: 1
handler_on:
  exit:
    run: echo bye
steps:
  - id: one
    run: echo "hello ${params.NAME}"
    output: GREETING
  - id: two
    run: echo err >&2; printf x > "$DAG_RUN_ARTIFACTS_DIR/a.txt"; mkdir "$DAG_RUN_ARTIFACTS_DIR/sub"; \
printf '# hi' > "$DAG_RUN_ARTIFACTS_DIR/sub/b.md"
    depends: one
"""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Installation]:
    made = Installation(tmp_path / "home")
    (made.dags / "hello.yaml").write_text(HELLO)
    async with made.serving():
        yield made


def client_of(site: Installation, role: str) -> httpx.AsyncClient:
    """Return a client of a role; `nobody` sends no credentials."""
    headers = {} if role == "nobody" else {"Authorization": f"Bearer {role}"}
    return httpx.AsyncClient(base_url=site.url, headers=headers, timeout=20)


@pytest.fixture
async def admin(site: Installation) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(site, "admin") as client:
        yield client


@pytest.fixture
async def viewer(site: Installation) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(site, "viewer") as client:
        yield client
