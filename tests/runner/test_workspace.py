"""The folders of an attempt: where they may be made, how they are named, and that they go away whatever is in them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.model import Operation, Task
from secure_dagu.errors import ConfigError, Conflict, InvalidRequest, Unavailable
from secure_dagu.run.model import AttemptId, DagRunRef
from secure_dagu.runner import bundle
from secure_dagu.runner.workspace import Workspaces, check_ids, unpack_bundle
from tests import needs

ATTEMPT = AttemptId("a1")
NOBODY = 65534


def task(*, name: str = "sales.daily", run_id: str = "r-1") -> Task:
    ref = DagRunRef(name, run_id)
    return Task(operation=Operation.START, run=ref, root=ref, parent=None, definition="steps: []")


def everything(folder: Path) -> list[str]:
    """Return all names below a folder, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


async def test_folders_tell_the_operator_whose_they_are_and_two_of_a_run_do_not_meet(tmp_path: Path) -> None:
    make = Workspaces(tmp_path / "made" / "base", "w1")
    async with make(task(), ATTEMPT) as one, make(task(), ATTEMPT) as two:
        assert one.work != two.work
        for folders in (one, two):
            top = folders.work.parent
            assert top.parent == tmp_path / "made" / "base"
            assert re.fullmatch(r"sales_daily_r-1_[a-z0-9_]{8}", top.name)
            assert re.fullmatch(r"dag-run_\d{8}_\d{6}Z_r-1", folders.artifacts.name)
            assert {path.stat().st_mode & 0o777 for path in (top.parent, top, folders.work, folders.logs)} == {0o700}
    assert not list((tmp_path / "made" / "base").iterdir())


async def test_folders_are_absolute_below_a_relative_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Workspaces(Path("base"), "w1")(task(), ATTEMPT) as folders:
        assert all(path.is_absolute() for path in (folders.logs, folders.work, folders.artifacts))


@given(
    text=st.text(max_size=80) | st.sampled_from(["../../x", "..", ".", "a/../b", "/etc", "a\0", "é", "a\n", "x" * 65])
)
@settings(max_examples=300)
def test_only_ids_that_are_plain_folder_names_pass(text: str) -> None:
    """What passes needs no escaping in any path: weakness W1 is closed by shape."""
    for suspect, attempt in ((task(run_id=text), "a1"), (task(name=text), "a1"), (task(), text)):
        try:
            check_ids(suspect, AttemptId(attempt))
        except InvalidRequest:
            continue
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text, re.ASCII)
        assert text not in (".", "..")


# ── the base ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """Act as a user to whom a folder's mode means something; yield a folder of that user."""
    import concurrent.futures.thread  # noqa: F401 - that user may not be able to read Python's files

    ground = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(ground, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield ground
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        shutil.rmtree(ground, ignore_errors=True)


def a_link(base: Path) -> None:
    (base.parent / "elsewhere").mkdir()
    base.symlink_to(base.parent / "elsewhere")


def a_dangling_link(base: Path) -> None:
    base.symlink_to(base.parent / "nowhere")


def a_file(base: Path) -> None:
    base.write_text("")


def open_to_everybody(base: Path) -> None:
    base.mkdir()
    base.chmod(0o777)


def somebody_elses(base: Path) -> None:
    base.mkdir()
    needs.root(why="only root can give a folder away")
    os.chown(base, NOBODY, NOBODY)


BAD = [a_link, a_dangling_link, a_file, open_to_everybody, somebody_elses]


@pytest.mark.parametrize("spoil", BAD)
def test_a_base_that_others_could_play_with_stops_the_start(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(tmp_path / "base")
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        Workspaces(tmp_path / "base", "w1")
    assert "dag_run_work_dir" in caught.value.fix


@pytest.mark.parametrize("spoil", BAD)
async def test_a_base_that_turns_bad_later_gets_no_folder(tmp_path: Path, spoil: object) -> None:
    make = Workspaces(tmp_path / "base", "w1")
    assert callable(spoil)
    spoil(tmp_path / "base")
    with pytest.raises(ConfigError, match="cannot be used"):
        async with make(task(), ATTEMPT):
            pass
    assert not [name for name in everything(tmp_path) if "sales" in name]


async def test_a_disk_that_refuses_fails_the_task_with_its_reason() -> None:
    with ordinary_user() as ground:
        make = Workspaces(ground / "base", "w1")
        ground.chmod(0o500)
        with pytest.raises(Unavailable, match="Permission denied"):
            async with make(task(), ATTEMPT):
                pass


# ── removal ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def dig(folder: Path, *, name: str, depth: int) -> None:
    """Make folders in one another, deeper than any path can say, with a file in each."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o400, dir_fd=at))
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


@pytest.mark.parametrize(("name", "depth"), [("d", 1500), ("n" * 255, 40)], ids=["deep", "long"])
async def test_a_tree_deeper_than_a_stack_or_a_path_is_removed(tmp_path: Path, name: str, depth: int) -> None:
    async with Workspaces(tmp_path, "w1")(task(), ATTEMPT) as folders:
        dig(folders.work, name=name, depth=depth)
    assert not everything(tmp_path)


async def test_folders_that_a_step_has_locked_are_removed() -> None:
    with ordinary_user() as ground:
        async with Workspaces(ground / "base", "w1")(task(), ATTEMPT) as folders:
            deep = folders.work / "a" / "b" / "c"
            deep.mkdir(parents=True)
            for folder in (deep, *deep.parents):
                if folder.is_relative_to(folders.work):
                    (folder / "file").write_text("x")
                    (folder / "file").chmod(0)
            for mode, folder in ((0, deep), (0o500, deep.parent), (0o100, deep.parent.parent), (0o555, folders.work)):
                folder.chmod(mode)
            folders.work.parent.chmod(0)
        assert not list((ground / "base").iterdir())


async def test_links_are_removed_and_what_they_point_to_keeps_content_and_mode(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("precious")
    (outside / "folder").chmod(0o750)
    (outside / "file").chmod(0o640)
    async with Workspaces(tmp_path / "base", "w1")(task(), ATTEMPT) as folders:
        for number, place in enumerate((folders.work, folders.logs, folders.work / "a", folders.work / "a" / "b")):
            place.mkdir(exist_ok=True)
            (place / f"folder{number}").symlink_to(outside / "folder")
            (place / f"file{number}").symlink_to(outside / "file")
            (place / f"hard{number}").hardlink_to(outside / "file")
            (place / f"up{number}").symlink_to("../../..")
            os.mkfifo(place / f"pipe{number}")
        shutil.rmtree(folders.work)
        folders.work.symlink_to(outside)
    assert not list((tmp_path / "base").iterdir())
    assert (outside / "file").read_text() == "precious"
    assert (outside / "folder").stat().st_mode & 0o777 == 0o750
    assert (outside / "file").stat().st_mode & 0o777 == 0o640


async def test_a_link_in_place_of_the_whole_folder_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    async with Workspaces(tmp_path / "base", "w1")(task(), ATTEMPT) as folders:
        top = folders.work.parent
        shutil.rmtree(top)
        top.symlink_to(outside)
    assert (outside / "file").read_text() == "precious"


# ── bundles, as they should be (as they should not: tests/adversarial/test_bundles_unpack.py) ────────────────────────


def packed(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "data" / "größe.csv").write_text("1\n")
    (source / "data" / "read-only").write_text("2\n")
    (source / "data" / "read-only").chmod(0o444)
    ref, data = bundle.pack(base=source, dag_path="d.yaml", dag_text="steps: []\n", patterns=["data"])
    archive = tmp_path / f"{ref.digest}.tar.gz"
    archive.write_bytes(data)
    return archive


async def test_a_bundle_comes_out_private_and_with_its_owners_rights(tmp_path: Path) -> None:
    archive = packed(tmp_path)
    target = tmp_path / "work" / "workspace"
    target.parent.mkdir()
    await unpack_bundle(archive, target)
    modes = {path.relative_to(target).as_posix(): path.stat().st_mode & 0o7777 for path in target.rglob("*")}
    assert modes == {"d.yaml": 0o600, "data": 0o700, "data/größe.csv": 0o600, "data/read-only": 0o400}
    assert target.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in target.parent.iterdir()] == ["workspace"], "nothing temporary is left"


@pytest.mark.parametrize("kind", ["folder", "full folder", "file", "link", "dangling link"])
async def test_nothing_that_is_there_is_unpacked_over(tmp_path: Path, kind: str) -> None:
    archive = packed(tmp_path)
    target = tmp_path / "out"
    if "folder" in kind:
        target.mkdir()
    if kind == "full folder":
        (target / "d.yaml").write_text("mine")
    if kind == "file":
        target.write_text("mine")
    if "link" in kind:
        target.symlink_to(tmp_path / "nowhere" if "dangling" in kind else tmp_path / "source")
    before = everything(tmp_path)
    with pytest.raises(Conflict, match="exists"):
        await unpack_bundle(archive, target)
    assert everything(tmp_path) == before


async def test_a_missing_folder_or_archive_is_said_plainly(tmp_path: Path) -> None:
    archive = packed(tmp_path)
    with pytest.raises(Unavailable, match="cannot be unpacked"):
        await unpack_bundle(archive, tmp_path / "nowhere" / "out")
    with pytest.raises(Unavailable, match="cannot be unpacked"):
        await unpack_bundle(tmp_path / "nothing", tmp_path / "out")
