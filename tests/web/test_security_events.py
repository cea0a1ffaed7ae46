"""Security events: what was refused and revoked, counted by reason, in the REST API and on the page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from secure_dagu.audit.events import Action, Detail, Event, Outcome
from secure_dagu.audit.log import open_trail
from secure_dagu.web.app import make_inside
from secure_dagu.web.context import Options
from secure_dagu.web.pages import routes
from secure_dagu.web.people import Role
from tests.web.site import PASSWORD, Site, open_site

API = "/api/v1"
DENIED = Outcome.DENIED
EVENTS = (
    Event(action=Action.HANDSHAKE_REFUSED, outcome=DENIED, address="192.0.2.1:1", target="listener",
          reason="cert_revoked"),
    Event(action=Action.HANDSHAKE_REFUSED, outcome=DENIED, address="192.0.2.2:1", target="listener",
          reason="untrusted_ca", details={Detail.REPEATS: 40}),
    Event(action=Action.CALL_DENIED, outcome=DENIED, actor="spiffe://dagu/worker/w1", reason="worker_id_mismatch",
          target="method:coordinator.v1.CoordinatorService/Poll"),
    Event(action=Action.CALL_DENIED, outcome=DENIED, reason="auth_failed", target="method:GET /dags"),
    Event(action=Action.LOGIN, outcome=DENIED, reason="bad_credentials", target="login"),
    Event(action=Action.LOGIN, actor="user:ada", target="login"),
    Event(action=Action.CERTIFICATE_REVOKED, actor="os:root", target="certificate:ab", reason="keyCompromise"),
    Event(action=Action.LINK_OPENED, actor="spiffe://dagu/worker/w1", target="listener"),
    Event(action=Action.DAG_CREATED, actor="user:ada", target="dag:x"),
)  # fmt: skip


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    pages = make_inside(Options(), pages=routes.routers(), static=routes.static(), page_error=routes.page_error)
    async with open_site(tmp_path / "home", inside=pages) as opened:
        await opened.accounts.set_up("ada", PASSWORD)
        async with open_trail(opened.installation.parts().audit_folders["server"], host="h", source="server") as trail:
            for event in EVENTS:
                await trail.record(event)
        yield opened


@pytest.fixture
async def ada(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as client:
        await site.login(client)
        yield client


async def test_refusals_and_revocations_are_counted_by_reason_and_folded_ones_as_often_as_they_were(
    ada: httpx.AsyncClient,
) -> None:
    told = (await ada.get(f"{API}/security/events")).json()
    assert [(one["kind"], one["reason"], one["count"]) for one in told["counts"]] == [
        ("handshake", "untrusted_ca", 40),
        ("handshake", "cert_revoked", 1),
        ("call", "auth_failed", 1),
        ("call", "worker_id_mismatch", 1),
        ("login", "bad_credentials", 1),
        ("revocation", "keyCompromise", 1),
    ]
    actions = [entry["action"] for entry in told["entries"]]
    assert told["total"] == len(actions) == 7
    assert {"link.opened", "dag.created"}.isdisjoint(actions)


async def test_security_events_are_filtered_as_the_audit_log_is(ada: httpx.AsyncClient) -> None:
    async def found(query: str) -> list[tuple[str, str]]:
        entries = (await ada.get(f"{API}/security/events?{query}")).json()["entries"]
        return [(entry["action"], entry.get("reason", "")) for entry in entries]

    assert await found("reason=cert_revoked") == [("link.refused", "cert_revoked")]
    assert await found("category=login&result=denied") == [("login.attempted", "bad_credentials")]
    assert await found("category=link") == [("link.refused", "untrusted_ca"), ("link.refused", "cert_revoked")]
    assert await found("category=dag") == []
    assert await found("endTime=2020-01-01T00:00:00Z") == []
    assert len(await found("limit=2")) == 2
    assert (await ada.get(f"{API}/audit?reason=auth_failed")).json()["total"] == 1


async def test_a_refused_request_came_over_the_rest_api_and_a_refused_call_did_not(ada: httpx.AsyncClient) -> None:
    told = (await ada.get(f"{API}/security/events?action=call.denied")).json()["entries"]
    assert {entry["reason"]: entry["surface"] for entry in told} == {
        "auth_failed": "rest_api", "worker_id_mismatch": "rpc",
    }  # fmt: skip
    assert (await ada.get(f"{API}/audit?action=call.denied&source=rest")).json()["total"] == 1


async def test_the_page_leads_from_each_count_to_its_records(ada: httpx.AsyncClient) -> None:
    page = (await ada.get("/security-events")).text
    assert re.findall(r'<h2 id="count-(\w+)">[^<]*<span[^>]*>(\d+)<', page) == [
        ("handshake", "41"), ("call", "2"), ("login", "1"), ("enrolment", "0"), ("revocation", "1"),
    ]  # fmt: skip
    [link] = re.findall(r'href="([^"]*reason=untrusted_ca[^"]*)"', page)
    rows = (await ada.get(link.replace("&amp;", "&"))).text
    assert "192.0.2.2:1" in rows
    assert "192.0.2.1:1" not in rows


async def test_who_may_not_read_the_audit_log_sees_no_security_events(site: Site) -> None:
    await site.accounts.create("eve", PASSWORD, Role.DEVELOPER)
    async with site.client() as client:
        await site.login(client, "eve")
        assert (await client.get("/security-events")).status_code == 403
        assert (await client.get(f"{API}/security/events")).status_code == 403
