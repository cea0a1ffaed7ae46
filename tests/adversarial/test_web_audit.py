"""Whoever changes something over the REST API, or may not, is in the audit log: every route is walked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from secure_dagu.audit.events import Action, Detail, Outcome
from secure_dagu.web.api.document import openapi
from secure_dagu.web.app import OPEN
from secure_dagu.web.people import Person, Role, Way
from tests.web.site import PASSWORD, Site, open_site

API = "/api/v1"
NO_CHANGE = frozenset({"/dags/validate", "/events/ticket", "/events/stream/topics"})
"""What is posted and changes nothing that anybody else could see."""
SPEC = "steps: [{id: a, run: 'true'}]"
SECRET = "a password nobody may see"
BODIES: dict[str, Any] = {
    "/auth/change-password": {"currentPassword": PASSWORD, "newPassword": SECRET},
    "/users": {"username": "bob", "password": SECRET, "role": "viewer"},
    "/users/{userId}": {"role": "operator"},
    "/users/{userId}/reset-password": {"newPassword": SECRET},
    "/api-keys": {"name": "ci", "role": "viewer"},
    "/api-keys/{keyId}": {"description": "x"},
    "/dags": {"name": "new"},
    "/dags/{fileName}/spec": {"spec": SPEC},
    "/dags/{fileName}/rename": {"newFileName": "other"},
    "/dags/{fileName}/suspend": {"suspend": True},
    "/dags/{fileName}/start-sync": {"timeout": 1},
    "/dag-runs": {"spec": SPEC, "name": "x"},
    "/dag-runs/enqueue": {"spec": SPEC, "name": "x"},
    "/dag-runs/{name}/{dagRunId}/retry": {"dagRunId": "x"},
    "/settings/base-config": {"spec": ""},
    "/secrets": {"ref": "prod/new", "value": SECRET},
    "/secrets/{ref}": {"value": SECRET},
}
PATHS = {
    "name": "x",
    "fileName": "x",
    "dagRunId": "x",
    "subDAGRunId": "x",
    "stepName": "x",
    "queueName": "x",
    "ref": "x",
    "workerId": "x",
}


def changing() -> list[tuple[str, str]]:
    """Return method and path of every route that changes something."""
    return [
        (method.upper(), path)
        for path, methods in openapi(API)["paths"].items()
        for method in methods
        if method != "get" and path not in NO_CHANGE and path not in OPEN
    ]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
async def admin(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    token, _ = await site.accounts.set_up("ada", PASSWORD)
    async with site.client(headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def body_of(path: str) -> Any:
    """Return a body that a route takes."""
    return next((BODIES[key] for key in (path, path.replace("/sub-dag-runs/{subDAGRunId}", "")) if key in BODIES), None)


async def test_every_change_is_recorded_with_who_and_how_and_a_second_time_when_it_failed(
    site: Site, admin: httpx.AsyncClient
) -> None:
    routes = changing()
    assert len(routes) >= 35
    eve = await site.accounts.create("eve", PASSWORD, Role.VIEWER)
    key, _ = await site.accounts.make_key(
        name="robot", role=Role.VIEWER, by=Person(name="x", role=Role.ADMIN, way=Way.NONE)
    )
    ids = {**PATHS, "userId": eve.id, "keyId": key.id}
    for method, path in sorted(routes, key=lambda route: (route[1].startswith("/auth"), route[0] == "DELETE")):
        body = body_of(path) if body_of(path) is not None else {} if path.startswith("/dag") else None
        if "/steps/{stepName}/status" in path:
            body = {"status": 4}
        site.trail.events.clear()
        answer = await admin.request(method, f"{API}{path.format(**ids)}", json=None if method == "DELETE" else body)
        assert answer.status_code != 400 or answer.json()["code"] != "bad_request" or site.trail.events, (
            f"the test's own request is wrong: {method} {path}: {answer.text}"
        )
        events = list(site.trail.events)
        assert events, f"{method} {path} left nothing: {answer.status_code} {answer.text}"
        assert (events[0].actor, events[0].address) == ("user:ada", "127.0.0.1"), f"{method} {path}"
        assert events[0].details[Detail.VIA] == "password"
        if answer.status_code < 400:
            assert [event.outcome for event in events] == [Outcome.SUCCEEDED], f"{method} {path}"
        else:
            assert events[0].outcome is Outcome.SUCCEEDED
            assert events[-1].outcome is not Outcome.SUCCEEDED, f"{method} {path}: {answer.text}"
            assert events[-1].reason
        assert SECRET not in str(events)


async def test_every_route_records_who_may_not(site: Site) -> None:
    await site.accounts.set_up("ada", PASSWORD)
    async with site.client() as stranger:
        for path, methods in openapi(API)["paths"].items():
            if path in OPEN:
                continue
            for method in methods:
                site.trail.events.clear()
                url = f"{API}{path.format(**PATHS, userId='x', keyId='x')}"
                answer = await stranger.request(method, url, json=body_of(path))
                if answer.status_code in (400, 422):  # read before anybody is asked for: nothing was looked at
                    continue
                assert answer.status_code == 401, f"{method} {path}"
                [event] = site.trail.events
                assert (event.action, event.outcome) == (Action.CALL_DENIED, Outcome.DENIED), f"{method} {path}"
                assert event.target.replace(":path}", "}") == f"method:{method.upper()} {path}"


async def test_a_stranger_who_wants_to_be_the_first_admin_too_late_is_no_success(site: Site) -> None:
    await site.accounts.set_up("ada", PASSWORD)
    async with site.client() as stranger:
        body = {"username": "eve", "password": PASSWORD}
        assert (await stranger.post(f"{API}/auth/setup", json=body)).status_code == 403
        login = {"username": "ada", "password": PASSWORD}
        forged = await stranger.post(f"{API}/auth/login", json=login, headers={"Origin": "https://evil.example"})
        assert forged.status_code == 403
    assert [event.outcome for event in site.trail.events] == [Outcome.DENIED, Outcome.DENIED]
