"""The wall around a worker's files: ids that climb, archives that explode, links that lead out."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from secure_dagu.dispatch.model import Operation, Task
from secure_dagu.errors import InvalidRequest, LimitExceeded, SecureDaguError
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus
from secure_dagu.runner import bundle
from secure_dagu.runner.workspace import Workspaces, unpack_bundle
from tests.runner.harness import run

CLIMBING = ["../../evil", "..", ".", "a/b", "/abs", "a\\b", "a\0b", "a b", "", "x" * 65, "ä", "a\n"]


def task(*, name: str = "demo", run_id: str = "r1", parent: DagRunRef | None = None) -> Task:
    ref = DagRunRef(name, run_id)
    return Task(operation=Operation.START, run=ref, root=ref, parent=parent, definition="steps: []")


@pytest.mark.parametrize("value", CLIMBING)
@pytest.mark.parametrize("which", ["name", "run_id", "attempt", "parent"])
async def test_an_id_that_climbs_is_refused_before_any_path_is_made(tmp_path: Path, which: str, value: str) -> None:
    base = tmp_path / "base"
    cases: dict[str, tuple[Task, str]] = {
        "name": (task(name=value), "a1"),
        "run_id": (task(run_id=value), "a1"),
        "attempt": (task(), value),
        "parent": (task(parent=DagRunRef("demo", value)), "a1"),
    }
    refused, attempt = cases[which]
    with pytest.raises(InvalidRequest, match="malformed"):
        async with Workspaces(base, "w1")(refused, AttemptId(attempt)):
            pass
    assert not base.exists()


async def test_folders_are_private_and_gone_afterwards_with_nothing_else(tmp_path: Path) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    base.mkdir()
    (base / "somebody else's").mkdir()
    async with Workspaces(base, "w1")(task(), AttemptId("a1")) as folders:
        for folder in (folders.logs, folders.work):
            assert folder.is_relative_to(base)
            assert folder.stat().st_mode & 0o777 == 0o700
        assert folders.artifacts.name.startswith("dag-run_")
        assert folders.artifacts.name.endswith("_r1")
        (folders.work / "link").symlink_to(outside)
        (folders.work / "locked").mkdir()
        (folders.work / "locked" / "file").write_text("x")
        (folders.work / "locked").chmod(0)
    assert [path.name for path in base.iterdir()] == ["somebody else's"]
    assert (outside / "precious").exists(), "a link is removed, not what it points to"


async def test_a_failing_run_leaves_no_folder_either(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        async with Workspaces(tmp_path, "w1")(task(), AttemptId("a1")):
            raise RuntimeError("broken")
    assert os.listdir(tmp_path) == []


# ── archives ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def archive(tmp_path: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        fill(tar)
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(packed.getvalue())
    return path


def entry(name: str, data: bytes = b"x", **changes: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in changes.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data) if info.isreg() else None)

    return add


def both(*fills: Callable[[tarfile.TarFile], None]) -> Callable[[tarfile.TarFile], None]:
    return lambda tar: [fill(tar) for fill in fills].clear()


async def test_a_packed_bundle_comes_out_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "data" / "a.csv").write_bytes(os.urandom(200_000))
    (source / "data" / ("long" * 40)).write_text("a name that needs an extended header")
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    _, packed = bundle.pack(base=source, dag_path="d.yaml", dag_text="steps: []\n", patterns=["data", "run.sh"])
    (tmp_path / "b").write_bytes(packed)
    await unpack_bundle(tmp_path / "b", tmp_path / "out")
    assert (tmp_path / "out" / "data" / "a.csv").read_bytes() == (source / "data" / "a.csv").read_bytes()
    assert (tmp_path / "out" / "data" / ("long" * 40)).exists()
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out" / "d.yaml").read_text() == "steps: []\n"


@pytest.mark.parametrize(
    "fill",
    [
        pytest.param(entry("../evil"), id="climbs"),
        pytest.param(entry("a/../../evil"), id="climbs inside"),
        pytest.param(entry("/tmp/evil"), id="absolute"),
        pytest.param(entry("./a"), id="not normalised"),
        pytest.param(entry("a//b"), id="an empty component"),
        pytest.param(entry(".git/hooks/x"), id="git"),
        pytest.param(entry("l", b"", type=tarfile.SYMTYPE, linkname="/etc"), id="a symbolic link"),
        pytest.param(entry("l", b"", type=tarfile.LNKTYPE, linkname="a"), id="a hard link"),
        pytest.param(entry("d", b"", type=tarfile.CHRTYPE), id="a device"),
        pytest.param(entry("p", b"", type=tarfile.FIFOTYPE), id="a pipe"),
        pytest.param(both(entry("a"), entry("a")), id="twice"),
        pytest.param(both(entry("a"), entry("a/b")), id="a file as a folder"),
        pytest.param(both(entry("a/b"), entry("a")), id="a folder as a file"),
        pytest.param(entry("/".join("a" * 70)), id="too deep"),
    ],
)
async def test_an_archive_with_anything_but_plain_files_is_refused(
    tmp_path: Path, fill: Callable[[tarfile.TarFile], None]
) -> None:
    with pytest.raises(InvalidRequest):
        await unpack_bundle(archive(tmp_path, fill), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


async def test_one_entry_too_many_is_refused(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for number in range(bundle.MAX_ENTRIES + 1):
            tar.addfile(tarfile.TarInfo(f"{number}"))

    with pytest.raises(LimitExceeded, match="too many entries"):
        await unpack_bundle(archive(tmp_path, fill), tmp_path / "out")


def header(*, size: int, kind: bytes = b"0", name: bytes = b"bomb") -> bytes:
    """Return one tar header that says what it likes."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2)
    block += b"%011o\0" % size + b"%011o\0" % 0 + b" " * 8 + kind + b"\0" * 100 + b"ustar\x0000"
    block += b"\0" * (512 - len(block))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(size=7 * 2**30), id="a file of 7 GiB"),
        pytest.param(header(size=7 * 2**30, kind=b"x"), id="an extended header of 7 GiB"),
        pytest.param(header(size=7 * 2**30, kind=b"L"), id="a long name of 7 GiB"),
        pytest.param(header(size=300 * 2**20, kind=b"5"), id="a folder with content"),
    ],
)
async def test_an_archive_cannot_make_us_allocate_what_it_says(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "b"
    path.write_bytes(gzip.compress(data + b"\0" * 2**20))
    with pytest.raises(SecureDaguError, match="bundle"):
        await unpack_bundle(path, tmp_path / "out")


async def test_a_zip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    """300 KiB of archive that would be 300 MiB of zeros on disk."""
    path = tmp_path / "b"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(6):
            file.write(header(size=50 * 2**20, name=b"zeros%d" % number))
            for _ in range(50):
                file.write(b"\0" * 2**20)
    assert path.stat().st_size < 2 * 2**20
    with pytest.raises(LimitExceeded, match="too large"):
        await unpack_bundle(path, tmp_path / "out")


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive", gzip.compress(b"no tar" * 200), gzip.compress(header(size=9))[:60]],
    ids=["empty", "text", "no tar", "cut off"],  # of its own accord the id would hold the time of compression
)
async def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(InvalidRequest):
        await unpack_bundle(tmp_path / "b", tmp_path / "out")


async def test_steps_work_among_the_files_of_the_bundle(tmp_path: Path) -> None:
    path = archive(tmp_path, entry("data/a.txt", b"from the bundle\n"))
    seen = await run("steps: [{name: a, run: cat data/a.txt}]", tmp_path, archive=path)
    assert seen.out("a") == "from the bundle\n"


async def test_a_bad_bundle_fails_the_run_before_any_step(tmp_path: Path) -> None:
    path = archive(tmp_path, entry("../evil"))
    seen = await run("steps: [{name: a, run: touch x}]", tmp_path, archive=path)
    assert seen.status is RunStatus.FAILED
    assert "refused" in seen.final["error"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("target", ["../x", "/x", "a/../../x"])
async def test_an_artifact_path_that_climbs_fails_the_step(tmp_path: Path, target: str) -> None:
    seen = await run(f"steps: [{{name: a, run: echo, stdout: {{artifact: {target}}}}}]", tmp_path)
    assert seen.status is RunStatus.FAILED
    assert not (tmp_path / "x").exists()


async def test_step_names_become_plain_and_distinct_file_names(tmp_path: Path) -> None:
    text = 'steps: [{name: "../../evil step", run: echo 1}, {name: "......evil.step", run: echo 2}]'
    seen = await run(text, tmp_path)
    assert {name for name in seen.logs if name.endswith(".stdout.log")} == {
        "______evil_step.stdout.log",
        "______evil_step_2.stdout.log",
    }
