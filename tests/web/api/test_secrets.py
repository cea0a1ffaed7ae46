"""Managed secrets over the REST API: written and never read, whole or not at all, and never outside of their folder."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from secure_dagu.errors import AlreadyExists, Conflict, InvalidRequest, LimitExceeded, NotFound
from secure_dagu.security.secret import Secret
from secure_dagu.store.secret_files import GLOBAL, MAX_SECRET, SecretFiles
from tests.web.api.conftest import client_of
from tests.web.api.installation import Installation

VALUE = "correct horse"
REF = "prod/db-password"


def stored(site: Installation, ref: str = REF) -> Path:
    return site.home / "data" / "secrets" / GLOBAL / ref


async def test_a_secret_is_made_rotated_and_removed_and_no_answer_holds_its_value(
    admin: httpx.AsyncClient, site: Installation
) -> None:
    answers: list[httpx.Response] = []

    async def ask(method: str, path: str, body: Any = None) -> int:
        answers.append(await admin.request(method, path, json=body))
        return answers[-1].status_code

    assert await ask("POST", "/secrets", {"ref": REF, "value": VALUE}) == 201
    assert answers[-1].json()["secret"].keys() == {"ref", "status", "updatedAt"}
    assert await ask("POST", "/secrets", {"ref": REF, "value": "other"}) == 409
    assert answers[-1].json()["code"] == "already_exists"
    assert SecretFiles(site.home / "data" / "secrets").get(GLOBAL, REF) == Secret(VALUE)
    assert stat.S_IMODE(stored(site).stat().st_mode) == 0o600
    assert await ask("GET", "/secrets") == 200
    assert [one["ref"] for one in answers[-1].json()["secrets"]] == [REF]
    assert await ask("GET", f"/secrets/{REF}") == 200
    assert await ask("PUT", f"/secrets/{REF}", {"value": f"{VALUE} 2"}) == 200
    assert stored(site).read_text() == f"{VALUE} 2"
    assert stat.S_IMODE(stored(site).stat().st_mode) == 0o600
    assert await ask("PUT", "/secrets/none", {"value": VALUE}) == 404
    assert await ask("DELETE", f"/secrets/{REF}") == 204
    assert await ask("DELETE", f"/secrets/{REF}") == 404
    assert await ask("GET", f"/secrets/{REF}") == 404
    assert await ask("GET", "/secrets") == 200
    assert answers[-1].json() == {"secrets": []}
    assert VALUE not in "".join(answer.text for answer in answers)
    assert site.gate.records == [
        ("admin", "secret_create", f"secret:.global/{REF}"),
        ("admin", "secret_create", f"secret:.global/{REF}"),
        ("admin", "secret_update", f"secret:.global/{REF}"),
        ("admin", "secret_update", "secret:.global/none"),
        ("admin", "secret_delete", f"secret:.global/{REF}"),
        ("admin", "secret_delete", f"secret:.global/{REF}"),
    ]


async def test_a_wrong_body_is_refused_without_repeating_it(admin: httpx.AsyncClient) -> None:
    for body in (
        {"ref": REF, "value": VALUE * 6000},
        {"ref": REF, "value": [VALUE]},
        {"ref": REF, "value": {"a": VALUE}},
        {"ref": "Prod/Up", "value": VALUE},
        {"ref": "../x", "value": VALUE},
        {"ref": ".global/x", "value": VALUE},
        {"ref": "a//b", "value": VALUE},
        {"ref": REF, "value": ""},
        {"ref": REF, "value": VALUE, "more": VALUE},
    ):
        answer = await admin.post("/secrets", json=body)
        assert answer.status_code == 400, body
        assert VALUE not in answer.text
    for path in ("..%2Fx", "%2e%2e/x", ".global", "a/../b", "a%00", "A"):
        assert (await admin.get(f"/secrets/{path}")).status_code in (400, 404), path
    assert (await admin.get("/secrets")).json() == {"secrets": []}


async def test_only_managers_and_above_see_that_there_are_secrets(site: Installation) -> None:
    for role, status in (("viewer", 403), ("operator", 403), ("developer", 403), ("manager", 200), ("admin", 200)):
        async with client_of(site, role) as client:
            assert (await client.get("/secrets")).status_code == status, role


async def test_of_many_who_make_the_same_secret_at_once_one_does(admin: httpx.AsyncClient, site: Installation) -> None:
    async with asyncio.TaskGroup() as group:
        tried = [
            group.create_task(admin.post("/secrets", json={"ref": REF, "value": f"value {number}"}))
            for number in range(20)
        ]
    codes = [task.result().status_code for task in tried]
    assert sorted(codes) == [201, *[409] * 19]
    assert stored(site).read_text() == f"value {codes.index(201)}"
    assert [path.name for path in stored(site).parent.iterdir()] == ["db-password"]


async def test_what_lies_open_is_told_as_unusable(admin: httpx.AsyncClient, site: Installation) -> None:
    await admin.post("/secrets", json={"ref": REF, "value": VALUE})
    stored(site).chmod(0o640)
    assert (await admin.get(f"/secrets/{REF}")).json()["secret"]["status"] == "unusable"
    await admin.put(f"/secrets/{REF}", json={"value": VALUE})
    assert (await admin.get(f"/secrets/{REF}")).json()["secret"]["status"] == "active"


def test_one_name_cannot_be_a_secret_and_the_beginning_of_another(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path / "secrets")
    files.put(GLOBAL, "a", Secret("1"), is_new=True)
    files.put(GLOBAL, "b/c", Secret("2"), is_new=True)
    for ref in ("a/x", "b"):
        with pytest.raises(Conflict, match="another one") as refused:
            files.put(GLOBAL, ref, Secret("3"), is_new=True)
        assert not isinstance(refused.value, AlreadyExists)
    assert [one.ref for one in files.list(GLOBAL)] == ["a", "b/c"]
    files.delete(GLOBAL, "b/c")
    files.put(GLOBAL, "b", Secret("3"), is_new=True)


def test_links_are_never_followed_out_of_the_folder_and_never_listed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "key").write_text("theirs")
    folder = tmp_path / "secrets" / GLOBAL
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "file").symlink_to(outside / "key")
    files = SecretFiles(tmp_path / "secrets")
    assert files.list(GLOBAL) == []
    with pytest.raises(Conflict):
        files.put(GLOBAL, "link/key", Secret("ours"), is_new=True)
    with pytest.raises(NotFound):
        files.put(GLOBAL, "file", Secret("ours"), is_new=False)
    with pytest.raises(Conflict):
        files.put(GLOBAL, "file", Secret("ours"), is_new=True)
    with pytest.raises(NotFound):
        files.delete(GLOBAL, "file")
    assert (outside / "key").read_text() == "theirs"


def test_a_secret_is_bounded_and_its_name_is_checked_whoever_asks(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path / "secrets")
    with pytest.raises(LimitExceeded):
        files.put(GLOBAL, "a", Secret("x" * (MAX_SECRET + 1)), is_new=True)
    for ref in ("", "../a", "a/../b", "/a", "A", ".x", "a/"):
        with pytest.raises(InvalidRequest):
            files.put(GLOBAL, ref, Secret("x"), is_new=True)
    files.put(GLOBAL, "a", Secret("x" * MAX_SECRET), is_new=True)
    assert len(files.list(GLOBAL)) == 1
