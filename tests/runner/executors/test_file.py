"""`file.*` on real files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.errors import DefinitionError
from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors import file_access as access
from tests.runner.executors.test_sqlite import dag, error_of, step
from tests.runner.harness import Seen, run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir(mode=0o700)
    return folder


async def act(work: Path, name: str, **inputs: Any) -> Seen:
    for log in (work.parent / "logs").glob("*"):
        log.unlink()
    return await run(dag(step("q", f"file.{name}", **inputs)), work.parent)


async def said(work: Path, name: str, **inputs: Any) -> dict[str, Any]:
    """Return what a successful action printed, less what all files have."""
    seen = await act(work, name, **inputs)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    out = seen.out("q")
    answer = json.loads(out)
    assert out == json.dumps(answer, ensure_ascii=False, separators=(",", ":")) + "\n", "one line, compact"
    return dict(answer)


async def test_write_makes_a_private_file(work: Path) -> None:
    answer = await said(work, "write", path="f", content="hé")
    assert list(answer.items()) == [("operation", "write"), ("path", f"{work}/f"), ("bytes", 3), ("created", True)]
    assert (work / "f").stat().st_mode & 0o777 == 0o600
    assert os.listdir(work) == ["f"]


@pytest.mark.parametrize("atomic", [True, False])
async def test_write_overwrites_only_when_told(work: Path, atomic: bool) -> None:
    (work / "f").write_text("a longer old text")
    assert "already exists" in error_of(await act(work, "write", path="f", content="x", atomic=atomic))
    assert (work / "f").read_text() == "a longer old text"
    answer = await said(work, "write", path="f", content="x", overwrite=True, mode="0644", atomic=atomic)
    assert answer["created"] is False
    assert (work / "f").read_text() == "x"
    assert (work / "f").stat().st_mode & 0o777 == 0o644


async def test_write_makes_folders_only_when_told(work: Path) -> None:
    assert (await act(work, "write", path="a/b/f", content="x")).status is RunStatus.FAILED
    await said(work, "write", path="a/b/f", content="x", create_dirs=True)
    assert (work / "a/b/f").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("write", {"path": "new/f", "content": "x", "create_dirs": True}),
        ("copy", {"source": "src", "destination": "d", "recursive": True}),
        ("move", {"source": "src", "destination": "d", "recursive": True}),
        ("delete", {"path": "src", "recursive": True}),
        ("mkdir", {"path": "new"}),
    ],
)
async def test_a_dry_run_changes_nothing(work: Path, name: str, inputs: dict[str, Any]) -> None:
    (work / "src").mkdir()
    (work / "src/f").write_text("x")
    await said(work, name, dry_run=True, **inputs)
    assert os.listdir(work) == ["src"]
    assert os.listdir(work / "src") == ["f"]


async def test_an_atomic_write_replaces_a_link_and_not_its_target(work: Path) -> None:
    (work / "target").write_text("safe")
    (work / "link").symlink_to("target")
    await said(work, "write", path="link", content="x", overwrite=True)
    assert (work / "target").read_text() == "safe"


async def test_read_prints_a_file_as_it_is(work: Path) -> None:
    (work / "f").write_bytes(b"no newline \xff")
    assert (await act(work, "read", path="f")).logs["q.stdout.log"] == b"no newline \xff"


async def test_read_as_json_has_facts_and_content(work: Path) -> None:
    (work / "f").write_text("x\n")
    (work / "f").chmod(0o600)
    os.utime(work / "f", ns=(0, 1_500_000_000))
    answer = await said(work, "read", path="f", format="json")
    assert list(answer.items()) == [
        ("operation", "read"), ("path", f"{work}/f"), ("type", "file"), ("size", 2), ("mode", "-rw-------"),
        ("modTime", "1970-01-01T00:00:01.5Z"), ("bytes", 2), ("content", "x\n"),
    ]  # fmt: skip


async def test_read_refuses_what_is_too_large_before_it_prints_anything(work: Path) -> None:
    (work / "f").write_text("12345")
    assert (await act(work, "read", path="f", max_bytes=5)).out("q") == "12345"
    seen = await act(work, "read", path="f", max_bytes=4)
    assert "too large" in error_of(seen)
    assert "q.stdout.log" not in seen.logs


@pytest.mark.parametrize("action", ["read", "copy"])
async def test_a_pipe_does_not_make_us_wait(work: Path, action: str) -> None:
    os.mkfifo(work / "p")
    seen = await act(work, action, **({"path": "p"} if action == "read" else {"source": "p", "destination": "d"}))
    assert "no plain file" in error_of(seen)


async def test_stat_tells_about_links_and_missing_files(work: Path) -> None:
    (work / "link").symlink_to("nowhere")
    assert (await said(work, "stat", path="link"))["type"] == "symlink"
    assert "does not exist" in error_of(await act(work, "stat", path="link", follow_symlinks=True))
    answer = await said(work, "stat", path="none", missing_ok=True)
    assert answer == {"operation": "stat", "path": f"{work}/none", "exists": False}


async def test_copy_takes_trees_with_modes_and_links(work: Path) -> None:
    (work / "src/sub").mkdir(parents=True)
    (work / "src/sub/f").write_text("abc")
    (work / "src/sub/f").chmod(0o750)
    (work / "src/link").symlink_to("sub/f")
    assert "is a folder" in error_of(await act(work, "copy", source="src", destination="d"))
    answer = await said(work, "copy", source="src", destination="d", recursive=True)
    assert {key: answer[key] for key in ("files", "bytes", "copied")} == {"files": 2, "bytes": 3, "copied": True}
    assert (work / "d/sub/f").stat().st_mode & 0o777 == 0o750
    assert os.readlink(work / "d/link") == "sub/f"


async def test_copy_ends_where_links_go_round(work: Path) -> None:
    (work / "src").mkdir()
    (work / "src/up").symlink_to(".")
    seen = await act(work, "copy", source="src", destination="d", recursive=True, follow_symlinks=True)
    assert "no end" in error_of(seen)


@pytest.mark.parametrize("action", ["copy", "move"])
async def test_a_folder_does_not_go_into_itself(work: Path, action: str) -> None:
    (work / "src").mkdir()
    assert "within" in error_of(await act(work, action, source="src", destination="src/d", recursive=True))


async def test_move_refuses_to_overwrite_unless_told(work: Path) -> None:
    (work / "a").write_text("a")
    (work / "b").write_text("b")
    assert "already exists" in error_of(await act(work, "move", source="a", destination="b"))
    assert (await said(work, "move", source="a", destination="b", overwrite=True))["moved"] is True
    assert (work / "b").read_text() == "a"


@pytest.fixture
def other_disk(work: Path) -> Iterator[Path]:
    """Return a folder on another file system than `work`."""
    for place in ("/dev/shm", "/tmp", "/var/tmp"):
        if os.access(place, os.W_OK) and os.stat(place).st_dev != work.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                yield Path(folder)
            return
    pytest.fail("this test needs two file systems")


async def test_move_renames_a_folder_and_copies_it_to_another_disk_only_when_told(work: Path, other_disk: Path) -> None:
    (work / "src").mkdir()
    (work / "src/f").write_text("x")
    assert "cannot be moved to" in error_of(await act(work, "move", source="src", destination="none/d"))
    assert (await said(work, "move", source="src", destination="d"))["moved"] is True
    assert "recursive" in error_of(await act(work, "move", source="d", destination=f"{other_disk}/d"))
    assert (await said(work, "move", source="d", destination=f"{other_disk}/d", recursive=True))["moved"] is True
    assert (other_disk / "d/f").read_text() == "x"
    assert not (work / "d").exists()


@pytest.mark.parametrize("path", ["/", "//", "/.", "/tmp/..", "../" * 50])
async def test_delete_refuses_the_root(work: Path, path: str) -> None:
    assert "refuses" in error_of(await act(work, "delete", path=path, recursive=True, dry_run=True))


async def test_delete_takes_links_and_not_what_they_lead_to(work: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/f").write_text("safe")
    (work / "d").mkdir()
    (work / "d/link").symlink_to(tmp_path / "out")
    assert "is a folder" in error_of(await act(work, "delete", path="d"))
    assert (await said(work, "delete", path="d", recursive=True))["deleted"] is True
    assert (tmp_path / "out/f").read_text() == "safe"
    assert "does not exist" in error_of(await act(work, "delete", path="d"))
    assert (await said(work, "delete", path="d", missing_ok=True))["deleted"] is False


async def test_mkdir_has_its_mode_and_may_be_repeated(work: Path) -> None:
    assert (await said(work, "mkdir", path="a/b"))["created"] is True
    assert (work / "a/b").stat().st_mode & 0o777 == 0o750
    assert (await said(work, "mkdir", path="a/b"))["created"] is False


@pytest.mark.parametrize(
    ("inputs", "paths"),
    [
        ({}, ["a.txt"]),
        ({"include_dirs": True}, ["a.txt", "sub"]),
        ({"recursive": True}, ["a.txt", "sub/b.txt", "sub/deep/c.log"]),
        ({"pattern": "*.txt", "recursive": True}, ["a.txt", "sub/b.txt"]),
        ({"pattern": "**/*.txt"}, ["a.txt", "sub/b.txt"]),
        ({"pattern": "sub/**"}, ["sub/b.txt", "sub/deep/c.log"]),
        ({"pattern": "sub/*"}, ["sub/b.txt"]),
    ],
)
async def test_list_finds_by_pattern(work: Path, inputs: dict[str, Any], paths: list[str]) -> None:
    (work / "l/sub/deep").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.log"):
        (work / "l" / name).write_text("x")
    answer = await said(work, "list", path="l", **inputs)
    assert [entry["path"] for entry in answer["entries"]] == paths
    keys = ["path", "type", "size", "mode", "modTime", "isDir", "isRegular", "isSymlink"]
    assert list(answer["entries"][0]) == keys
    assert answer["files"] == sum(entry["isRegular"] for entry in answer["entries"])


@pytest.mark.parametrize(("value", "mode"), [("0644", 0o644), ("0o600", 0o600), (0o600, 0o600), (None, 0o700)])
def test_modes_are_octal(value: Any, mode: int) -> None:
    assert access.mode_of(value, 0o700) == mode


@pytest.mark.parametrize("value", ["rw", "9", "7777", 644, -1, True])
def test_what_is_no_mode_is_refused(value: Any) -> None:
    with pytest.raises(DefinitionError):
        access.mode_of(value, 0o700)


@given(st.lists(st.sampled_from(["a", "b", "c.txt"]), min_size=1, max_size=6))
def test_double_stars_take_any_path_and_a_path_takes_itself(parts: list[str]) -> None:
    assert access.matcher("**")(tuple(parts))
    assert access.matcher("/".join(["**", *parts]))(tuple(parts))
    assert access.matcher("/".join([*parts, "**"]))((*parts, "x"))


def test_a_pattern_cannot_take_for_ever() -> None:
    assert not access.matcher("/".join(["**", "a"] * 45 + ["b"]))(("a",) * 200)
    assert not access.matcher("*a" * 100 + "b")(("a" * 255,))
