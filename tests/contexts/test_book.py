"""Contexts as files: what is kept, what is refused, who may read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from secure_dagu.contexts import address
from secure_dagu.contexts.book import LOCAL, MAX_KEY, Context, Contexts
from secure_dagu.errors import AlreadyExists, InvalidRequest, NotFound, Refused, Unavailable
from secure_dagu.security.secret import Secret

KEY = "dagu_secret-of-prod"


def context(name: str = "prod", **more: object) -> Context:
    fields = {"server": address.parse("https://ci.example.com"), "api_key": Secret(KEY)} | more
    return Context(name=name, **fields)  # type: ignore[arg-type]  # whatever a test is about


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    found = Contexts(tmp_path / "contexts")
    found.add(context())
    return found


@pytest.fixture
def file(contexts: Contexts, tmp_path: Path) -> Path:
    return tmp_path / "contexts" / "prod.json"


def test_a_context_is_kept_as_it_was_given(contexts: Contexts) -> None:
    given = context("other", description="a – b", ca_file="/x/ca.crt", timeout_s=7, insecure_http=True)
    contexts.add(given)
    assert contexts.get("other") == given
    assert contexts.names() == ["other", "prod"]


def test_the_key_is_in_a_private_file_and_shows_itself_nowhere(contexts: Contexts, file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_text())["apiKey"] == KEY
    assert KEY not in repr(contexts.get("prod"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_may_read_is_refused(contexts: Contexts, file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(Refused, match="group or others may read"):
        contexts.get("prod")
    with pytest.raises(Refused):
        contexts.use("prod")


@pytest.mark.skipif(os.geteuid() != 0, reason="a file is given to another user")
def test_a_file_of_another_user_is_refused(contexts: Contexts, file: Path) -> None:
    os.chown(file, 12345, 12345)
    with pytest.raises(Refused, match="another user's"):
        contexts.get("prod")


def test_a_link_is_not_followed(contexts: Contexts, file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(Unavailable):
        contexts.get("prod")


def test_a_pipe_does_not_hold_anybody_up(contexts: Contexts, file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(Unavailable, match="damaged"):
        contexts.get("prod")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "x" * 65, ".current", "a\n", "-x", "ä"])
def test_a_name_that_could_climb_is_refused(contexts: Contexts, name: str, tmp_path: Path) -> None:
    for action in (
        lambda: contexts.add(context(name)),
        lambda: contexts.get(name),
        lambda: contexts.remove(name),
        lambda: contexts.use(name),
    ):
        with pytest.raises(InvalidRequest, match="no name of a context"):
            action()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contexts"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"server": "https://h"}', '{"server": "https://h", "apiKey": 3}',
        '{"server": "https://h", "apiKey": "", "more": 1}', '{"server": "gopher://h", "apiKey": ""}',
        '{"server": "https://h", "apiKey": "a b"}', '{"server": "https://h", "apiKey": "", "timeoutSeconds": 0}',
        '{"id": "x", "encrypted": "of another program"}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(contexts: Contexts, file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Unavailable, match=r"prod cannot be read: .*prod\.json is damaged"):
        contexts.get("prod")
    contexts.remove("prod")
    assert contexts.names() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": Secret("a b")}, {"api_key": Secret("a\r\nX-Admin: yes")}, {"api_key": Secret("k" * (MAX_KEY + 1))},
        {"timeout_s": 0}, {"timeout_s": 3601}, {"description": "a\nb"}, {"description": "x" * 501},
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_changes_nothing(contexts: Contexts, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        contexts.add(context("other", **wrong))
    with pytest.raises(InvalidRequest):
        contexts.update("prod", **wrong)
    assert contexts.names() == ["prod"]
    assert contexts.get("prod") == context()


def test_a_name_is_taken_once(contexts: Contexts) -> None:
    with pytest.raises(AlreadyExists):
        contexts.add(context(api_key=Secret("another")))
    assert contexts.get("prod").api_key.matches(KEY)


def test_the_key_of_one_server_does_not_go_to_another_one(contexts: Contexts) -> None:
    for url in ("https://evil.example.com", "http://ci.example.com", "https://ci.example.com:8443"):
        with pytest.raises(InvalidRequest, match=r"its key is for https://ci\.example\.com"):
            contexts.update("prod", server=address.parse(url))
    assert contexts.update("prod", server=address.parse("https://ci.example.com/x/api/v1")).api_key.matches(KEY)
    moved = contexts.update("prod", server=address.parse("https://new.example.com"), api_key=Secret("new"))
    assert contexts.get("prod") == moved
    assert moved.api_key.matches("new")


def test_local_is_built_in(contexts: Contexts) -> None:
    for action in (
        lambda: contexts.add(context(LOCAL)),
        lambda: contexts.update(LOCAL, timeout_s=3),
        lambda: contexts.remove(LOCAL),
    ):
        with pytest.raises(InvalidRequest, match="local cannot be changed"):
            action()


def test_the_current_context_is_remembered_until_it_is_removed(contexts: Contexts) -> None:
    assert contexts.current() == LOCAL
    contexts.use("prod")
    assert contexts.current() == "prod"
    contexts.remove("prod")
    assert contexts.current() == LOCAL
    with pytest.raises(NotFound):
        contexts.use("prod")


def test_before_the_first_one_there_is_local_and_nothing_is_made(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path / "contexts")
    contexts.use(LOCAL)
    assert (contexts.current(), contexts.names()) == (LOCAL, [])
    assert list(tmp_path.iterdir()) == []
