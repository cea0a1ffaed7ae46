"""Profiles as files: what is kept, what is refused, who may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_dagu.errors import Conflict, InvalidRequest, NotFound, Refused, Unavailable
from secure_dagu.local.profiles import MAX_VALUE_BYTES, Profiles


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    found = Profiles(tmp_path / "profiles")
    found.create("prod")
    return found


def test_a_run_gets_the_values_of_a_profile(profiles: Profiles) -> None:
    profiles.set("prod", "A", "1", is_secret=False)
    profiles.set("prod", "B", "two\nlines", is_secret=True)
    assert profiles.values("prod") == ({"A": "1"}, {"B": "two\nlines"})
    assert profiles.names() == ["prod"]


def test_a_key_is_a_variable_or_a_secret_never_both(profiles: Profiles) -> None:
    profiles.set("prod", "A", "1", is_secret=False)
    profiles.set("prod", "A", "2", is_secret=True)
    assert profiles.values("prod") == ({}, {"A": "2"})


def test_a_disabled_profile_is_refused_until_it_is_enabled(profiles: Profiles) -> None:
    profiles.enable("prod", is_enabled=False)
    with pytest.raises(Conflict, match="disabled"):
        profiles.values("prod")
    profiles.enable("prod", is_enabled=True)
    assert profiles.values("prod") == ({}, {})


def test_what_is_not_there_is_named(profiles: Profiles) -> None:
    for action in (profiles.get, profiles.delete, profiles.values):
        with pytest.raises(NotFound, match="profile x does not exist"):
            action("x")
    with pytest.raises(Conflict, match="already exists"):
        profiles.create("prod")


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "x" * 65, ".hidden", "a\n"])
def test_a_name_that_could_climb_is_refused(profiles: Profiles, name: str) -> None:
    with pytest.raises(InvalidRequest):
        profiles.create(name)
    with pytest.raises(InvalidRequest):
        profiles.get(name)


@pytest.mark.parametrize("key", ["", "1A", "A-B", "DAGU_HOME", "A\n", "x" * 256])
def test_a_key_that_is_no_variable_is_refused(profiles: Profiles, key: str) -> None:
    with pytest.raises(InvalidRequest):
        profiles.set("prod", key, "v", is_secret=False)


def test_a_value_has_a_limit(profiles: Profiles) -> None:
    profiles.set("prod", "A", "x" * MAX_VALUE_BYTES, is_secret=True)
    for value in ("x" * (MAX_VALUE_BYTES + 1), "a\0b"):
        with pytest.raises(InvalidRequest, match="cannot be kept"):
            profiles.set("prod", "B", value, is_secret=True)


def test_the_file_is_its_owners_and_one_that_others_may_read_is_refused(profiles: Profiles, tmp_path: Path) -> None:
    path = tmp_path / "profiles" / "prod.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    with pytest.raises(Refused, match="others may read"):
        profiles.values("prod")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"enabled": true}', b"[" * 100_000])
def test_a_damaged_file_is_told(profiles: Profiles, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "profiles" / "prod.json").write_bytes(data)
    with pytest.raises(Unavailable, match="cannot be read"):
        profiles.get("prod")


def test_a_secret_never_shows_in_a_repr(profiles: Profiles) -> None:
    profiles.set("prod", "A", "canary", is_secret=True)
    assert "canary" not in repr(profiles.get("prod"))
