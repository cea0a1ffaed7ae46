"""The OpenAPI document says what the API does, and the API does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from secure_dagu.web.api.document import endpoints, openapi


async def test_the_document_is_served_with_the_mounted_path(admin: httpx.AsyncClient) -> None:
    document = (await admin.get("/openapi.json")).json()
    assert document["servers"] == [{"url": "/api/v1"}]
    assert "/dag-runs/{name}/{dagRunId}" in document["paths"]
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            assert operation["x-role"]


def test_only_health_and_readiness_are_for_anybody() -> None:
    public = {path for _, path, role in endpoints() if role == "anybody"}
    assert public <= {"/health", "/ready", "/auth/login", "/auth/logout", "/auth/setup"}


def test_what_changes_something_is_no_get() -> None:
    changing = {path for method, path, role in endpoints() if method == "GET" and role == "operator"}
    assert changing == {"/dag-runs/{name}/{dagRunId}/dequeue"}


def test_every_shape_has_a_description() -> None:
    schemas = openapi("/api/v1")["components"]["schemas"]
    assert len(schemas) > 60
    assert [name for name, schema in schemas.items() if not schema.get("description")] == []
    assert not [name for name in schemas if re.search(r"[^A-Za-z0-9_]", name)]


def test_the_reference_page_lists_every_endpoint() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/rest-api.md").read_text()
    for method, path, role in endpoints():
        assert f"| `{method} {path}` | {role} |" in page
