"""Requests that nobody should send: refused with a clear error and never a server error."""

from __future__ import annotations

import httpx
import pytest

from secure_dagu.web.api.document import openapi
from tests.web.api.conftest import client_of
from tests.web.api.installation import Installation


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/dags", b"{"),
        ("POST", "/dags", b'{"name": 5}'),
        ("POST", "/dags", b'{"name": "a", "unknown": 1}'),
        ("POST", "/dags", b'{"name": "../x"}'),
        ("POST", "/dags", b'{"name": "a", "spec": "' + b"x" * 1_100_000 + b'"}'),
        ("POST", "/dags/hello/start-sync", b'{"timeout": 0}'),
        ("POST", "/dags/hello/start-sync", b'{"timeout": true}'),
        ("POST", "/dags/hello/start", b'{"labels": "a"}'),
        ("POST", "/dags/hello/start", b'{"dagRunId": "a/b"}'),
        ("POST", "/dags/hello/start", b'{"dagRunId": "latest"}'),
        ("POST", "/dags/hello/start", b'{"labels": ["a"], "tags": ["b"]}'),
        ("PATCH", "/dag-runs/hello/x/steps/a/status", b'{"status": 77}'),
        ("POST", "/workers/w1/revoke", b'{"reason": "because"}'),
        ("GET", "/dags?page=0", None),
        ("GET", "/dags?perPage=1001", None),
        ("GET", "/dags?active=perhaps", None),
        ("GET", "/dag-runs?limit=501", None),
        ("GET", "/dag-runs?status=9", None),
        ("GET", "/dag-runs?fromDate=yesterday", None),
        ("GET", "/dag-runs?fromDate=99999999999999999999", None),
        ("GET", "/dag-runs?remoteNode=other", None),
        ("GET", "/dag-runs?workspace=team", None),
        ("GET", "/dag-runs/hello/x/log?tail=10001", None),
        ("GET", "/dag-runs/hello/x/steps/a/log?stream=stdin", None),
        ("GET", "/services/resources/history?duration=soon", None),
        ("GET", "/audit?startTime=2026-01-01", None),
        ("GET", "/audit?startTime=0001-01-01T00:00:00%2B23:59", None),
        ("GET", "/audit/export?endTime=9999-12-31T23:59:59-23:59", None),
        ("GET", "/event-logs?startTime=0001-01-01T00:00:00%2B23:59", None),
        ("POST", "/dags/hello/start", b'{"params": "NAME=\\ud800"}'),
        ("POST", "/dags/hello/start-sync", b'{"timeout": ' + b"9" * 5000 + b"}"),
        ("GET", "/event-logs?cursor=abc&paginationMode=cursor", None),
        ("GET", "/event-logs?cursor=2026-99-99:1&paginationMode=cursor", None),
        ("GET", "/dags/%2e%2e%2fsecret", None),
        ("GET", "/dag-runs/a%00b", None),
    ],
)
async def test_wrong_requests_are_answered_with_an_error_body(
    admin: httpx.AsyncClient, method: str, path: str, body: bytes | None
) -> None:
    answer = await admin.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404, 413), answer.text
    assert set(answer.json()) == {"code", "message"}
    assert answer.json()["message"]


async def test_every_endpoint_asks_who_comes(site: Installation) -> None:
    public = {"/health", "/ready"}
    document = openapi("/api/v1")
    async with client_of(site, "nobody") as client:
        for path, methods in document["paths"].items():
            for method in methods:
                full = path.replace("{", "").replace("}", "")
                body: dict[str, str] | None = {} if method in ("post", "put", "patch") else None
                answer = await client.request(method.upper(), full, json=body)
                if path in ("/auth/login", "/auth/logout", "/auth/setup"):
                    assert answer.status_code in (200, 400), path  # they look at who comes by themselves
                    continue
                expected = (200,) if path in public else (401,)
                assert answer.status_code in expected, f"{method} {path}: {answer.status_code} {answer.text}"
                if path not in public:
                    assert answer.headers["www-authenticate"] == 'Bearer realm="restricted"'


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("viewer", ["/dags", "/workers", "/queues"], ["/services/coordinator", "/audit", "/settings/base-config"]),
        (
            "developer",
            ["/services/coordinator", "/settings/base-config", "/security/certificates"],
            ["/event-logs", "/compliance/report"],
        ),
        ("manager", ["/event-logs", "/audit", "/security/events", "/compliance/report"], []),
    ],
)
async def test_roles_reach_what_is_theirs(
    site: Installation, role: str, allowed: list[str], refused: list[str]
) -> None:
    async with client_of(site, role) as client:
        assert [(await client.get(path)).status_code for path in allowed] == [200] * len(allowed)
        assert [(await client.get(path)).status_code for path in refused] == [403] * len(refused)


@pytest.mark.parametrize(
    ("role", "path"),
    [
        ("viewer", "/dags/hello/start"),
        ("viewer", "/dags/hello/suspend"),
        ("viewer", "/queues/x/pause"),
        ("operator", "/dags"),
        ("operator", "/dag-runs"),
        ("manager", "/workers/w1/drain"),
        ("manager", "/workers/w1/revoke"),
    ],
)
async def test_a_lower_role_changes_nothing(site: Installation, role: str, path: str) -> None:
    body = {"/dags": {"name": "x"}, "/dag-runs": {"spec": "steps: []"}, "/dags/hello/suspend": {"suspend": True}}
    async with client_of(site, role) as client:
        assert (await client.post(path, json=body.get(path, {}))).status_code == 403
    assert site.gate.records == []


async def test_viewers_see_workers_without_what_tells_how_to_reach_them(site: Installation) -> None:
    async with client_of(site, "viewer") as client:
        worker = (await client.get("/workers")).json()["workers"][0]
    assert worker["healthStatus"] == "healthy"
    assert worker.keys().isdisjoint({"identity", "remoteAddress", "serial", "issuer", "tlsVersion"})
    async with client_of(site, "developer") as client:
        assert (await client.get("/workers")).json()["workers"][0]["remoteAddress"] == "192.0.2.7:4711"


async def test_health_tells_the_truth(site: Installation) -> None:
    async with client_of(site, "nobody") as client:
        assert (await client.get("/health")).json()["status"] == "healthy"
        site.is_well = False
        answer = await client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {"store": {"ok": False, "message": "the store is gone"}}
        assert (await client.get("/ready")).json() == {"ready": False, "because": ["store"]}


async def test_dequeue_by_get_needs_a_header_that_no_page_can_forge(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/dag-runs/hello/none/dequeue")
    assert answer.status_code == 404
