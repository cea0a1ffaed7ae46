"""`archive.*`: every format there and back, and archives that mean harm."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import py7zr
import pytest

from secure_dagu.errors import LimitExceeded
from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors import archive_formats
from tests.runner.executors.test_sqlite import dag, error_of, step, stopped_at
from tests.runner.harness import Seen, run

TARS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "tar.lz4")
SINGLE = ("gz", "bz2", "xz", "zst", "lz4")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir(mode=0o700)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Return what is below a folder: text of files, `-> target` of links, `/` for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def plant(work: Path) -> dict[str, str]:
    source = work / "src"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a.txt").write_text("alpha")
    (source / "sub" / "b.log").write_text("beta")
    (source / "sub" / "run.sh").write_text("#!/bin/sh")
    (source / "sub" / "run.sh").chmod(0o755)
    (source / "link").symlink_to("sub/b.log")
    return tree(source)


async def act(work: Path, name: str, **inputs: Any) -> Seen:
    for log in (work.parent / "logs").glob("*"):
        log.unlink()
    return await run(dag(step("q", f"archive.{name}", **inputs)), work.parent)


async def ok(work: Path, name: str, **inputs: Any) -> dict[str, Any]:
    seen = await act(work, name, **inputs)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    return dict(json.loads(seen.out("q")))


async def refused(work: Path, name: str, **inputs: Any) -> str:
    seen = await act(work, name, **inputs)
    assert seen.status is RunStatus.FAILED
    return error_of(seen)


@pytest.mark.parametrize("form", [*TARS, "zip"])
async def test_a_folder_comes_back_from_every_format(work: Path, form: str) -> None:
    expected = plant(work)
    made = await ok(work, "create", source="src", destination=f"out.{form}", verify_integrity=True)
    assert made["operation"] == "create"
    assert (made["filesAdded"], made["bytesAdded"], made["verifyPerformed"]) == (4, 18, True)
    (work / f"out.{form}").rename(work / "renamed")  # now the content must tell
    back = await ok(work, "extract", source="renamed", destination="back", verify_integrity=True)
    assert (back["filesExtracted"], back["bytesExtracted"], back["verifyPerformed"]) == (4, 18, True)
    assert tree(work / "back") == expected
    assert (work / "back/sub/run.sh").stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(work)) == ["back", "renamed", "src"], "no part of a file stays"


@pytest.mark.parametrize(
    ("name", "form"), [("o.tar.zstd", "tar.zst"), ("o.tbz", "tar.bz2"), ("o.TBZ2", "tar.bz2"), ("o.txz", "tar.xz")]
)
async def test_a_format_is_known_by_every_usual_ending(work: Path, name: str, form: str) -> None:
    expected = plant(work)
    await ok(work, "create", source="src", destination=name)
    (work / name).rename(work / "renamed")
    await ok(work, "extract", source="renamed", destination="back", format=form)
    assert tree(work / "back") == expected


async def test_a_file_that_ends_in_zstd_comes_back(work: Path) -> None:
    (work / "a.txt").write_text("alpha")
    await ok(work, "create", source="a.txt", destination="a.txt.zstd", format="zstd")
    await ok(work, "extract", source="a.txt.zstd", destination="back")
    assert tree(work / "back") == {"a.txt": "alpha"}


@pytest.mark.parametrize("form", SINGLE)
async def test_a_file_comes_back_from_every_compression(work: Path, form: str) -> None:
    (work / "a.txt").write_text("alpha" * 100)
    await ok(work, "create", source="a.txt", destination=f"a.txt.{form}", verify_integrity=True)
    await ok(work, "extract", source=f"a.txt.{form}", destination="back")
    assert tree(work / "back") == {"a.txt": "alpha" * 100}
    listed = await ok(work, "list", source=f"a.txt.{form}")
    assert [(file["path"], file["size"]) for file in listed["files"]] == [("a.txt", 500)]


async def test_a_list_tells_what_an_archive_holds(work: Path) -> None:
    plant(work)
    await ok(work, "create", source="src", destination="a.tgz")
    seen = await act(work, "list", source="a.tgz", include=["*.sh", "sub"])
    assert seen.out("q").startswith('{\n  "operation": "list",\n  "source": ')
    said = json.loads(seen.out("q"))
    keys = ["operation", "source", "totalFiles", "totalBytes", "duration", "verifyPerformed", "files"]
    assert list(said) == keys
    assert {file["path"]: (file["mode"], file["size"], file["isDir"]) for file in said["files"]} == {
        "sub": ("drwxr-xr-x", 0, True),
        "sub/b.log": ("-rw-r--r--", 4, False),
        "sub/empty": ("drwxr-xr-x", 0, True),
        "sub/run.sh": ("-rwxr-xr-x", 9, False),
    }
    assert all(file["modTime"].endswith("Z") for file in said["files"])


async def test_a_dry_run_writes_nothing(work: Path) -> None:
    plant(work)
    made = await ok(work, "create", source="src", destination="a.tar", dry_run=True)
    assert (made["filesAdded"], made["bytesAdded"]) == (4, 27 - len("sub/b.log"))
    assert not (work / "a.tar").exists()
    await ok(work, "create", source="src", destination="a.tar")
    back = await ok(work, "extract", source="a.tar", destination="back", dry_run=True)
    assert (back["filesExtracted"], back["bytesExtracted"]) == (4, 18)
    assert not (work / "back").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["*.log"]}, {"sub", "sub/b.log"}),
        ({"include": ["sub/**"]}, {"sub", "sub/b.log", "sub/run.sh", "sub/empty"}),
        ({"exclude": ["sub", "link"]}, {"a.txt"}),
        ({"exclude": ["*.sh", "?.txt"]}, {"link", "sub", "sub/b.log", "sub/empty"}),
        ({"strip_components": 1}, {"b.log", "run.sh", "empty"}),
        ({"preserve_paths": False, "include": ["*.txt", "*.log"]}, {"a.txt", "b.log"}),
    ],
)
async def test_what_is_unpacked_can_be_chosen(work: Path, options: dict[str, Any], expected: set[str]) -> None:
    plant(work)
    await ok(work, "create", source="src", destination="a.tar")
    await ok(work, "extract", source="a.tar", destination="back", **options)
    assert set(tree(work / "back")) == expected


async def test_what_is_packed_can_be_chosen(work: Path) -> None:
    plant(work)
    await ok(work, "create", source="src", destination="a.zip", include=["*.log", "a.*"], verbose=True)
    said = await ok(work, "list", source="a.zip")
    assert [file["path"] for file in said["files"]] == ["a.txt", "sub/b.log"]
    await ok(work, "create", source="src", destination="b.zip", follow_symlinks=True, exclude=["sub"])
    await ok(work, "extract", source="b.zip", destination="back")
    assert tree(work / "back") == {"a.txt": "alpha", "link": "beta"}


async def test_what_exists_is_kept_unless_it_may_be_overwritten(work: Path) -> None:
    plant(work)
    await ok(work, "create", source="src/a.txt", destination="a.tar")
    assert "exists already" in await refused(work, "create", source="src/a.txt", destination="a.tar")
    await ok(work, "create", source="src/a.txt", destination="a.tar", overwrite=True)
    (work / "back").mkdir()
    (work / "back/a.txt").write_text("mine")
    assert "exists already" in await refused(work, "extract", source="a.tar", destination="back")
    await ok(work, "extract", source="a.tar", destination="back", continue_on_error=True)
    assert tree(work / "back") == {"a.txt": "mine"}
    await ok(work, "extract", source="a.tar", destination="back", overwrite=True)
    assert tree(work / "back") == {"a.txt": "alpha"}


async def test_an_archive_of_its_own_folder_does_not_hold_itself(work: Path) -> None:
    (work / "a.txt").write_text("alpha")
    await ok(work, "create", source=".", destination="all.tar")
    said = await ok(work, "list", source="all.tar")
    assert [file["path"] for file in said["files"]] == ["a.txt"]


async def test_a_7z_is_read_with_its_password(work: Path) -> None:
    plant(work)
    with py7zr.SevenZipFile(work / "a.7z", "w", password="pw-77") as archive:
        archive.writeall(work / "src", "top")
    said = await ok(work, "list", source="a.7z", password="pw-77")
    assert "top/sub/b.log" in [file["path"] for file in said["files"]]
    await ok(work, "extract", source="a.7z", destination="back", strip_components=1, password="pw-77", exclude=["link"])
    assert tree(work / "back") == {name: text for name, text in tree(work / "src").items() if name != "link"}
    error = await refused(work, "extract", source="a.7z", destination="no", password="wrong")
    assert "pw-77" not in error


def stored_rar(path: Path, name: str, content: bytes) -> None:
    """Write the oldest form of a rar archive, uncompressed, which nobody but its vendor's program writes."""

    def block(kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
        head = bytes([kind]) + flags.to_bytes(2, "little") + (len(body) + 7).to_bytes(2, "little") + body
        return (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + head + data

    sizes = len(content).to_bytes(4, "little") * 2
    body = sizes + b"\x03" + zlib.crc32(content).to_bytes(4, "little") + (0x5A21_0000).to_bytes(4, "little")
    body += b"\x14\x30" + len(name).to_bytes(2, "little") + (0o100644).to_bytes(4, "little") + name.encode()
    parts = [
        b"Rar!\x1a\x07\x00",
        block(0x73, 0, b"\0" * 6),
        block(0x74, 0x8000, body, content),
        block(0x7B, 0x4000, b""),
    ]
    path.write_bytes(b"".join(parts))


async def test_a_rar_is_read(work: Path) -> None:
    stored_rar(work / "a.rar", "x.txt", b"from a rar")
    said = await ok(work, "list", source="a.rar")
    assert [(file["path"], file["size"]) for file in said["files"]] == [("x.txt", 10)]
    await ok(work, "extract", source="a.rar", destination="back")
    assert tree(work / "back") == {"x.txt": "from a rar"}
    stored_rar(work / "evil.rar", "../x.txt", b"from a rar")
    seen = await act(work, "extract", source="evil.rar", destination="back")
    assert not (work / "x.txt").exists()
    assert seen.status is RunStatus.FAILED


@pytest.mark.parametrize(
    ("name", "inputs", "why"),
    [
        ("create", {"source": "src", "destination": "a.rar"}, "only be read"),
        ("create", {"source": "src", "destination": "a.gz"}, "holds one file"),
        ("create", {"source": "src", "destination": "a.unknown"}, "not known"),
        ("create", {"source": "src", "destination": "a.tar", "format": "arj"}, "no archive format"),
        ("create", {"source": "src", "destination": "a.tar.gz", "compression_level": 12}, "compression_level"),
        ("create", {"source": "src", "destination": "a.zip", "password": "x"}, "password"),
        ("create", {"source": "missing", "destination": "a.zip"}, "no such file"),
        ("create", {"source": "src"}, "destination"),
        ("extract", {"source": "missing.zip"}, "no such file"),
        ("list", {"source": "src/a.txt"}, "not known"),
        ("list", {"source": "src/a.txt", "format": "zip"}, "broken"),
        ("list", {"source": "src/a.txt", "format": "tar"}, "broken"),
        ("list", {"source": "src/a.txt", "format": "tar.gz"}, "cannot be used|broken"),
        ("list", {"source": "src/a.txt", "format": "xz"}, "broken"),
        ("list", {"source": "src/a.txt", "format": "zst"}, "broken"),
        ("list", {"source": "src/a.txt", "format": "lz4"}, "broken"),
        ("list", {"source": "src/a.txt", "format": "7z"}, "broken"),
        ("list", {"source": "src/a.txt", "format": "rar"}, "broken"),
    ],
)
async def test_what_cannot_be_done_is_said(work: Path, name: str, inputs: dict[str, Any], why: str) -> None:
    plant(work)
    error = await refused(work, name, **inputs)
    assert any(word in error for word in why.split("|")), error


async def test_a_damaged_archive_is_found_before_anything_is_unpacked(work: Path) -> None:
    plant(work)
    (work / "src/z").write_bytes(os.urandom(50_000))
    await ok(work, "create", source="src", destination="a.zip")
    data = bytearray((work / "a.zip").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (work / "a.zip").write_bytes(data)
    assert "broken" in await refused(work, "extract", source="a.zip", destination="back", verify_integrity=True)
    assert not (work / "back").exists()


# ------------------------------------------------------------------------------------------------------------- attacks


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"", mode: int = 0o644) -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, len(data), mode
    return info, data


def tar_of(path: Path, *members: Any) -> None:
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
ATTACKS: dict[str, list[Any]] = {
    "climbs": [member("../evil", data=b"x")],
    "climbs in the middle": [member("a/../../evil", data=b"x")],
    "is absolute": [member("/tmp/evil-archive", data=b"x")],
    "climbs with backslashes": [member("..\\evil", data=b"x")],
    "has a drive": [member("C:\\evil", data=b"x")],
    "links out": [member("l", SYM, "../.."), member("l/evil", data=b"x")],
    "links to an absolute path": [member("l", SYM, "/tmp"), member("l/evil", data=b"x")],
    "links out by two links": [member("s", SYM, "."), member("t", SYM, "s/.."), member("t/evil", data=b"x")],
    "writes through a link inside": [member("d", tarfile.DIRTYPE), member("l", SYM, "d"), member("l/x", data=b"x")],
    "hard links out": [member("l", HARD, "../secret")],
    "hard links an absolute path": [member("l", HARD, "/etc/passwd")],
    "hard links a link": [member("s", SYM, "a"), member("l", HARD, "s")],
    "hard links through a link": [member("s", SYM, "."), member("l", HARD, "s/secret")],
    "is a device": [member("dev", tarfile.CHRTYPE)],
    "is a pipe": [member("pipe", tarfile.FIFOTYPE)],
    "replaces a folder": [member("d", tarfile.DIRTYPE), member("d", data=b"x")],
    "has no target": [member("l", SYM, "")],
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_archive_writes_nowhere_else(work: Path, name: str) -> None:
    (work / "secret").write_text("secret")
    tar_of(work / "a.tar", *ATTACKS[name])
    await refused(work, "extract", source="a.tar", destination="back", overwrite=True)
    assert "evil" not in {name.rpartition("/")[2] for name, text in tree(work).items() if not text.startswith("->")}
    assert "evil-archive" not in os.listdir("/tmp")
    assert os.stat(work / "secret").st_nlink == 1


async def test_a_link_that_was_there_leads_nowhere(work: Path) -> None:
    tar_of(work / "a.tar", member("l/evil", data=b"x"))
    (work / "back").mkdir()
    (work / "out").mkdir()
    (work / "back/l").symlink_to("../out")
    assert "is a link" in await refused(work, "extract", source="a.tar", destination="back", overwrite=True)
    tar_of(work / "b.tar", member("f", data=b"new"))
    (work / "victim").write_text("old")
    (work / "back/f").symlink_to("../victim")
    await ok(work, "extract", source="b.tar", destination="back", overwrite=True)
    assert (work / "victim").read_text() == "old"
    assert (work / "back/f").read_text() == "new"


async def test_links_that_stay_inside_are_unpacked(work: Path) -> None:
    tar_of(work / "a.tar", member("d/f", data=b"x"), member("d/up", SYM, "../d/f"), member("d/same", HARD, "d/f"))
    await ok(work, "extract", source="a.tar", destination="back")
    assert tree(work / "back") == {"d": "/", "d/f": "x", "d/up": "-> ../d/f", "d/same": "x"}
    await ok(work, "extract", source="a.tar", destination="flat", strip_components=1, exclude=["up"])
    assert tree(work / "flat") == {"f": "x", "same": "x"}


async def test_no_file_is_setuid(work: Path) -> None:
    tar_of(work / "a.tar", member("f", data=b"x", mode=0o6755), member("d", tarfile.DIRTYPE, mode=0o2000))
    await ok(work, "extract", source="a.tar", destination="back")
    assert (work / "back/f").stat().st_mode & 0o7777 == 0o755
    assert (work / "back/d").stat().st_mode & 0o7777 == 0o700


async def test_a_zip_that_slips_is_refused(work: Path) -> None:
    link = zipfile.ZipInfo("l")
    link.external_attr = 0o120777 << 16
    for name, content in (("../evil", "x"), ("/abs", "x"), (link, "/etc"), (link, "a/../..")):
        with zipfile.ZipFile(work / "a.zip", "w") as archive:
            archive.writestr(name, content)
        assert "refused" in await refused(work, "extract", source="a.zip", destination="back", overwrite=True)
    assert tree(work / "back") == {}


def gz_bomb(path: Path) -> None:
    made = zlib.compressobj(9, wbits=31)
    zeros = b"\0" * 2**20
    data = [made.compress(zeros) for _ in range(archive_formats.FREE_BYTES // 2**20 + 2)]
    path.write_bytes(b"".join([*data, made.flush()]))


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * (archive_formats.FREE_BYTES + 1))


@pytest.mark.parametrize(("name", "make"), [("a.gz", gz_bomb), ("a.zip", zip_bomb)])
async def test_a_bomb_does_not_go_off(work: Path, name: str, make: Callable[[Path], None]) -> None:
    make(work / name)
    assert "far more than it is" in await refused(work, "extract", source=name, destination="back")
    assert tree(work / "back") == {}, "not even its first part stays"


def test_an_archive_of_too_many_entries_is_refused() -> None:
    budget = archive_formats.Budget(10**9, lambda: False)
    for _ in range(archive_formats.MAX_ENTRIES):
        budget.entry()
    with pytest.raises(LimitExceeded, match="too many entries"):
        budget.entry()


async def test_a_header_cannot_fill_the_memory(work: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    (work / "a.tar").write_bytes(info.tobuf() + b"\0" * 4096)
    assert "header" in await refused(work, "list", source="a.tar")
    tail = b"PK\x05\x06" + b"\0" * 8 + (2**30).to_bytes(4, "little") + b"\0" * 6
    (work / "a.zip").write_bytes(tail)
    assert "directory is too large" in await refused(work, "list", source="a.zip")


async def test_a_chain_of_headers_is_an_error(work: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    (work / "a.tar").write_bytes(info.tobuf() * 5000 + b"\0" * 1024)
    await refused(work, "list", source="a.tar")


async def test_unpacking_ends_when_the_run_is_stopped(work: Path) -> None:
    gz_bomb(work / "a.gz")
    seen = await stopped_at(dag(step("q", "archive.list", source="a.gz", verify_integrity=True)), work.parent)
    assert seen.nodes()["q"] in ("aborted", "failed")


async def test_a_pipe_in_the_source_is_left_out_and_never_waited_for(work: Path) -> None:
    plant(work)
    os.mkfifo(work / "src/pipe")
    for form in ("tar", "zip"):
        await ok(work, "create", source="src", destination=f"a.{form}")
        said = await ok(work, "list", source=f"a.{form}")
        assert "pipe" not in [file["path"] for file in said["files"]]


async def test_other_programs_read_what_we_write(work: Path) -> None:
    expected = plant(work)
    await ok(work, "create", source="src", destination="a.tar.gz")
    unpack = {"id": "q", "run": "mkdir back && tar xzf a.tar.gz -C back"}
    seen = await run(dag(unpack), work.parent)
    assert seen.status is RunStatus.SUCCEEDED
    assert tree(work / "back") == expected
