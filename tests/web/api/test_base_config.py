"""The base configuration through the REST API: what is saved is what its author has seen, or nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.web.api.conftest import client_of
from tests.web.api.installation import Installation

PATH = "/settings/base-config"
MINE, THEIRS = "env:\n  - MINE: '1'\n", "env:\n  - THEIRS: 'ü'\n"


class BaseFile:
    """The file on the server's disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def text(self) -> str:
        """Return what it says."""
        return self._path.read_text()

    def change(self, text: str) -> None:
        """Write it behind the server's back."""
        self._path.write_text(text)


@pytest.fixture
def file(site: Installation) -> BaseFile:
    return BaseFile(site.home / "base.yaml")


async def put(admin: httpx.AsyncClient, spec: str, seen: str = "") -> httpx.Response:
    return await admin.put(PATH, json={"spec": spec}, headers={"If-Match": seen} if seen else {})


async def test_a_text_is_replaced_by_who_has_seen_it(admin: httpx.AsyncClient, file: BaseFile) -> None:
    nothing = await admin.get(PATH)
    assert nothing.json() == {"spec": ""}
    made = await put(admin, THEIRS, nothing.headers["etag"])
    assert (made.status_code, made.json()) == (200, {"errors": []})
    read = await admin.get(PATH)
    assert read.json() == {"spec": THEIRS}
    assert read.headers["etag"] == made.headers["etag"] != nothing.headers["etag"]
    changed = await put(admin, MINE, read.headers["etag"])
    assert changed.status_code == 200
    assert file.text == MINE
    again = await put(admin, MINE, changed.headers["etag"])
    assert (again.status_code, again.headers["etag"]) == (200, changed.headers["etag"])


@pytest.mark.parametrize("seen", ['"0"', "0", 'W/"0"', '""', '"*"', "'", '"' + "0" * 10_000 + '"', '"a", "b"'])
async def test_a_text_that_is_another_one_now_is_left_alone(
    admin: httpx.AsyncClient, file: BaseFile, seen: str
) -> None:
    file.change(THEIRS)
    refused = await put(admin, MINE, seen)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict"), refused.text
    assert "somebody else has changed it" in refused.json()["message"]
    assert file.text == THEIRS


async def test_what_proxies_and_clients_make_of_a_tag_still_fits(admin: httpx.AsyncClient, file: BaseFile) -> None:
    """One that compresses answers makes a tag weak; a client may have seen several texts, or not care."""
    for form in ("{}", "W/{}", '"other", {}', '{} , W/"other"', "*"):
        file.change(THEIRS)
        tag = (await admin.get(PATH)).headers["etag"]
        assert (await put(admin, MINE, form.format(tag))).status_code == 200, form
        assert file.text == MINE
    assert (await put(admin, THEIRS)).status_code == 200  # who asks for no protection gets none
    assert file.text == THEIRS


async def test_of_many_who_have_seen_the_same_text_one_saves(admin: httpx.AsyncClient, file: BaseFile) -> None:
    file.change(THEIRS)
    tag = (await admin.get(PATH)).headers["etag"]
    async with asyncio.TaskGroup() as group:
        sent = [group.create_task(put(admin, f"env:\n  - WHO: '{number}'\n", tag)) for number in range(12)]
    answers = [task.result() for task in sent]
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 11
    won = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
    assert file.text == f"env:\n  - WHO: '{won}'\n"


async def test_a_text_that_does_not_load_is_refused_and_the_old_one_stays(
    admin: httpx.AsyncClient, file: BaseFile
) -> None:
    file.change(THEIRS)
    tag = (await admin.get(PATH)).headers["etag"]
    refused = await put(admin, "env: [A: 1\n", tag)
    assert refused.status_code == 400, refused.text
    assert file.text == THEIRS
    assert (await put(admin, MINE, tag)).status_code == 200  # the tag is still that of the text


@pytest.mark.parametrize("role", ["nobody", "viewer", "operator"])
async def test_who_may_not_write_does_not_learn_whether_a_tag_fits(
    site: Installation, file: BaseFile, role: str
) -> None:
    file.change(THEIRS)
    async with client_of(site, "admin") as admin, client_of(site, role) as other:
        tag = (await admin.get(PATH)).headers["etag"]
        for seen in (tag, '"0"', ""):
            assert (await put(other, MINE, seen)).status_code == (401 if role == "nobody" else 403)
    assert file.text == THEIRS
    assert ("admin", "base_config_update", "file:base.yaml") not in [
        (name, str(change), what) for name, change, what in site.gate.records
    ]
