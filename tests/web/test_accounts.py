"""Logins, users and API keys over a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from secure_dagu.audit.events import Action, Outcome
from tests.web.site import PASSWORD, Site, accounts_of, open_site

API = "/api/v1"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
async def admin(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client with the token of the first admin, ada."""
    async with site.client() as client:
        answer = await client.post(f"{API}/auth/setup", json={"username": "ada", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        yield client


async def test_the_first_admin_is_made_once_even_under_fifty_requests(site: Site) -> None:
    async with site.client() as client, asyncio.TaskGroup() as group:
        tried = [
            group.create_task(client.post(f"{API}/auth/setup", json={"username": f"u{n}", "password": PASSWORD}))
            for n in range(50)
        ]
    codes = [task.result().status_code for task in tried]
    assert codes.count(200) == 1
    assert set(codes) == {200, 403}
    assert len(site.accounts.users()) == 1


async def test_a_stranger_cannot_make_the_first_admin_without_the_token_of_the_log(tmp_path: Path) -> None:
    async with open_site(tmp_path, setup_token="in-the-log") as site, site.client() as client:
        body = {"username": "eve", "password": PASSWORD}
        assert (await client.post(f"{API}/auth/setup", json=body)).status_code == 403
        assert (await client.post(f"{API}/auth/setup", json={**body, "setupToken": "guess"})).status_code == 403
        assert (await client.post(f"{API}/auth/setup", json={**body, "setupToken": "in-the-log"})).status_code == 200


async def test_a_login_is_over_when_the_password_changes_the_account_goes_or_it_is_ended(
    site: Site, admin: httpx.AsyncClient
) -> None:
    made = await admin.post(f"{API}/users", json={"username": "bob", "password": PASSWORD, "role": "viewer"})
    assert made.status_code == 201
    bob = made.json()["user"]["id"]

    async def login() -> dict[str, str]:
        async with site.client() as other:
            answer = await other.post(f"{API}/auth/login", json={"username": "bob", "password": PASSWORD})
            return {"Authorization": f"Bearer {answer.json()['token']}"}

    async def status(headers: dict[str, str]) -> int:
        async with site.client() as other:
            return (await other.get(f"{API}/auth/me", headers=headers)).status_code

    first, second = await login(), await login()
    assert await status(first) == await status(second) == 200
    async with site.client() as other:
        assert (await other.post(f"{API}/auth/logout", headers=first)).status_code == 200
    assert (await status(first), await status(second)) == (401, 200)
    assert (await admin.patch(f"{API}/users/{bob}", json={"isDisabled": True})).status_code == 200
    assert await status(second) == 401
    await admin.patch(f"{API}/users/{bob}", json={"isDisabled": False})
    assert await status(second) == 401, "it was over for good"
    third = await login()
    await admin.post(f"{API}/users/{bob}/reset-password", json={"newPassword": PASSWORD + "!"})
    assert await status(third) == 401
    assert (await admin.delete(f"{API}/users/{bob}")).status_code == 204
    ended = accounts_of(site.installation.home).sessions  # another process
    with pytest.raises(Exception, match="was ended"):
        ended.read(first["Authorization"].removeprefix("Bearer "))


async def test_nobody_locks_out_the_last_admin_or_himself(site: Site, admin: httpx.AsyncClient) -> None:
    me = (await admin.get(f"{API}/auth/me")).json()["user"]["id"]
    assert (await admin.delete(f"{API}/users/{me}")).status_code == 403
    assert (await admin.patch(f"{API}/users/{me}", json={"role": "viewer"})).status_code == 403
    await admin.post(f"{API}/users", json={"username": "eve", "password": PASSWORD, "role": "admin"})
    async with site.client() as other:
        token = (await other.post(f"{API}/auth/login", json={"username": "eve", "password": PASSWORD})).json()["token"]
        other.headers["Authorization"] = f"Bearer {token}"
        assert (await other.delete(f"{API}/users/{me}")).status_code == 204
        assert (await admin.get(f"{API}/auth/me")).status_code == 401


async def test_an_api_key_is_shown_once_kept_as_a_hash_and_ends(site: Site, admin: httpx.AsyncClient) -> None:
    body = {"name": "ci", "role": "operator", "expiresAt": "2999-01-01T00:00:00Z"}
    made = (await admin.post(f"{API}/api-keys", json=body)).json()
    key = made["key"]
    assert key.startswith("dagu_")
    kept = "".join(path.read_text() for path in (site.installation.home / "data" / "apikeys").glob("*.json"))
    assert key not in kept
    assert "key_digest" in kept
    assert key not in (await admin.get(f"{API}/api-keys")).text
    async with site.client(headers={"Authorization": f"Bearer {key}"}) as robot:
        assert (await robot.get(f"{API}/dags")).status_code == 200
        assert (await robot.get(f"{API}/users")).status_code == 403
        (path,) = (site.installation.home / "data" / "apikeys").glob("*.json")
        document = json.loads(path.read_text())
        assert document["last_used_at"]
        assert path.stat().st_mode & 0o077 == 0
        path.write_text(json.dumps({**document, "expires_at": "2001-01-01T00:00:00Z"}))
        path.with_name("x.json").touch()  # the folder changed
        assert (await robot.get(f"{API}/dags")).status_code == 401
    assert (await admin.post(f"{API}/api-keys", json={**body, "name": "b", "expiresAt": "soon"})).status_code == 400
    assert (await admin.post(f"{API}/api-keys", json=body)).status_code == 409


async def test_no_account_has_more_rights_than_were_asked_for(site: Site, admin: httpx.AsyncClient) -> None:
    """There is one workspace and one surface: less than all of it cannot be kept, so it is refused."""
    some = {"all": False, "grants": [{"workspace": "a", "role": "viewer"}]}
    user = {"username": "bob", "password": PASSWORD, "role": "viewer"}
    key = {"name": "ci", "role": "viewer", "attributionClass": "user_owned"}
    for path, body in (
        ("/users", {**user, "workspaceAccess": some}),
        ("/users", {**user, "workspaceAccess": {"all": True, "grants": some["grants"]}}),
        ("/api-keys", {**key, "workspaceAccess": some}),
        ("/api-keys", {**key, "allowedSurfaces": ["mcp"]}),
        ("/api-keys", {**key, "allowedSurfaces": []}),
        ("/api-keys", {**key, "ownerUserId": "nobody"}),
    ):
        answer = await admin.post(f"{API}{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), body
    every = {"all": True, "grants": []}
    made = await admin.post(f"{API}/users", json={**user, "workspaceAccess": every})
    assert made.status_code == 201
    owned = {**key, "ownerUserId": made.json()["user"]["id"], "workspaceAccess": every, "allowedSurfaces": ["rest_api"]}
    answer = await admin.post(f"{API}/api-keys", json=owned)
    assert answer.status_code == 201, answer.text
    shown = (await admin.get(f"{API}/api-keys/{answer.json()['apiKey']['id']}")).json()["apiKey"]
    assert shown["ownerUsername"] == made.json()["user"]["username"]
    narrowed = await admin.patch(f"{API}/users/{made.json()['user']['id']}", json={"workspaceAccess": some})
    assert narrowed.status_code == 400


async def test_what_people_do_is_recorded_with_who_and_whence(site: Site, admin: httpx.AsyncClient) -> None:
    await admin.post(f"{API}/dags", json={"name": "new"})
    async with site.client() as client:
        await client.post(f"{API}/auth/login", json={"username": "ada", "password": "wrong wrong"})
        await client.get(f"{API}/dags")
    told = {event.action: event for event in site.trail.events}
    assert told[Action.DAG_CREATED].actor == "user:ada"
    assert told[Action.DAG_CREATED].address == "127.0.0.1"
    assert (told[Action.LOGIN].outcome, told[Action.LOGIN].reason) == (Outcome.DENIED, "bad_credentials")
    assert told[Action.CALL_DENIED].reason == "auth_failed"
    assert "wrong wrong" not in str(site.trail.events)
