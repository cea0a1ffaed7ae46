"""Threats T12 and T13 at a worker: an archive that a stranger wrote byte by byte cannot lead out, explode or confuse.

`test_workspace_walls.py` feeds what `tarfile` can write; here are the headers that no honest program writes.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secure_dagu.errors import InvalidRequest, LimitExceeded, SecureDaguError
from secure_dagu.runner import bundle
from secure_dagu.runner.workspace import unpack_bundle

MIB = 2**20
END = b"\0" * 1024


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """Return the folder in which everything happens."""
    return tmp_path


@pytest.fixture
def quick_ground() -> Iterator[Path]:
    """Return an empty folder, in memory where there is one: thousands of folders are slow on some disks."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


def header(
    name: bytes, *, size: int = 0, kind: bytes = b"0", magic: bytes = b"ustar\x0000", mode: int = 0o644
) -> bytes:
    """Return one tar header that says what it likes."""
    block = bytearray(name[:100].ljust(100, b"\0") + b"%07o\0" % mode + b"0000000\0" * 2)
    block += b"%011o\0" % size + b"%011o\0" % 0 + b" " * 8 + kind + b"\0" * 100 + magic
    block += b"\0" * (512 - len(block))
    return summed(bytes(block))


def summed(block: bytes) -> bytes:
    """Return a header with the checksum that fits it, as a stranger would."""
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")) + block[156:]


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """Return one record of an extended header, its length first, which counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def extended(*records: bytes, kind: bytes = b"x") -> bytes:
    data = b"".join(records)
    return header(b"PaxHeader", size=len(data), kind=kind) + padded(data)


def file(name: bytes, data: bytes = b"x") -> bytes:
    """Return an entry whose name may be anything."""
    return extended(record(b"path", name)) + header(b"short", size=len(data)) + padded(data)


def unpack(ground: Path, tar: bytes) -> SecureDaguError | None:
    """Unpack into `ground/in/out`; return the refusal. Whatever happens, nothing else appears in the ground."""
    return unpack_packed(ground, gzip.compress(tar, compresslevel=1))


def unpack_packed(ground: Path, archive: bytes) -> SecureDaguError | None:
    (ground / "in").mkdir(exist_ok=True)
    (ground / "b").write_bytes(archive)
    refusal: SecureDaguError | None = None
    try:
        asyncio.run(unpack_bundle(ground / "b", ground / "in" / "out"))
    except SecureDaguError as error:
        refusal = error
    left = sorted(path.relative_to(ground).as_posix() for path in (*ground.iterdir(), *(ground / "in").iterdir()))
    if refusal is None:
        assert left == ["b", "in", "in/out"]
    else:
        assert left == ["b", "in"], "a refused archive leaves nothing"
        assert all((refusal.what, refusal.why, refusal.fix))
    return refusal


NASTY = st.sampled_from(
    ["..", ".", "", "/", "\\", "\0", "a", "a/../..", "../../x", "/etc/passwd", "C:\\x", "x" * 300, "é" * 200, "\u202e",
     ".git", ".GIT", "a\nb", "a ", "\ud800", "NUL", "con.", "~", "-rf", "x" * 255, "\U0001f600" * 64]
)  # fmt: skip
names = st.one_of(NASTY, st.text(max_size=40), st.lists(NASTY, max_size=5).map("/".join)).map(
    lambda name: name.encode("utf-8", "surrogatepass")
)


@given(entries=st.lists(names | st.binary(max_size=30), min_size=1, max_size=4))
@example(entries=["/".join("n" * 255 for _ in range(64)).encode()])
@example(entries=["é".encode() * 127, "é".encode() * 128])
@example(entries=[b"a", b"a"])
@example(entries=[b"a/b", b"a"])
@example(entries=[b"a", b"a/b"])
@settings(max_examples=120)
def test_a_name_comes_out_as_it_is_below_the_target_or_not_at_all(entries: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ground = Path(folder)
        refusal = unpack(ground, b"".join(file(name) for name in entries) + END)
        if refusal is not None:
            assert isinstance(refusal, InvalidRequest)
            return
        out = os.fsencode(ground / "in" / "out")
        found = set()
        for at, _, files, _ in os.fwalk(out):
            found |= {os.path.relpath(os.path.join(at, name), out) for name in files}
        assert found == set(entries)
        assert len(found) == len(entries)


def good() -> bytes:
    return file(b"d.yaml", b"steps: []\n") + header(b"data/", kind=b"5") + file(b"data/a.csv", b"1\n" * 300) + END


@given(at=st.integers(0, len(good()) - 1), change=st.binary(min_size=1, max_size=20), fix=st.booleans())
@settings(max_examples=120)
def test_an_archive_with_broken_bytes_is_unpacked_or_refused_but_never_breaks_us(
    at: int, change: bytes, *, fix: bool
) -> None:
    tar = bytearray(good())
    tar[at : at + len(change)] = change
    if fix:  # a stranger computes the checksum of what he broke
        block = at - at % 512
        tar[block : block + 512] = summed(bytes(tar[block : block + 512]))
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder), bytes(tar))


@given(archive=st.binary(max_size=200), cut=st.integers(0, 400))
@settings(max_examples=60)
def test_a_cut_or_random_archive_is_refused(archive: bytes, cut: int) -> None:
    whole = gzip.compress(good())
    with tempfile.TemporaryDirectory() as folder:
        ground = Path(folder)
        assert isinstance(unpack_packed(ground, archive), InvalidRequest)
        assert isinstance(unpack_packed(ground, whole[: min(cut, len(whole) // 2)]), InvalidRequest)


@pytest.mark.parametrize("kind", [bytes([kind]) for kind in b"1234678gKLSDMNVXAZ \xff"])
def test_every_other_kind_of_entry_is_refused(ground: Path, kind: bytes) -> None:
    """Links, devices, pipes, global and GNU headers, holes, volumes, and what is not invented yet."""
    assert isinstance(unpack(ground, header(b"a", kind=kind) + file(b"b") + END), InvalidRequest)


@pytest.mark.parametrize(
    "tar",
    [
        pytest.param(extended() * 2000 + file(b"a"), id="a chain of extended headers"),
        pytest.param(extended(record(b"path", b"a"), record(b"path", b"b")) + header(b"c"), id="two names"),
        pytest.param(extended(record(b"path", b"a\0b")) + header(b"c"), id="a NUL in a name"),
        pytest.param(extended(record(b"GNU.sparse.major", b"1")) + header(b"c"), id="holes"),
        pytest.param(extended(record(b"size", b"-1")) + header(b"c"), id="a negative size"),
        pytest.param(extended(record(b"size", b"1" * 5000)) + header(b"c"), id="a size of 5000 digits"),
        pytest.param(extended(record(b"size", b"1e9")) + header(b"c"), id="a size that is none"),
        pytest.param(extended(b"9" * 5000 + b" path=a\n") + header(b"c"), id="a length of 5000 digits"),
        pytest.param(extended(b"99 path=a\n") + header(b"c"), id="a record longer than its header"),
        pytest.param(extended(b"0 path=a\n") + header(b"c"), id="a record of no length"),
        pytest.param(extended(b"3 path=a\n") + header(b"c"), id="a record shorter than its key"),
        pytest.param(extended(b"11 path=a\0b\n") + header(b"c"), id="a NUL in a record"),
        pytest.param(extended(record(b"path", b"../x")) + header(b"c", kind=b"5"), id="a folder that climbs"),
        pytest.param(header(b"a/", size=1) + padded(b"x"), id="a file with the name of a folder"),
        pytest.param(header(b"a//", kind=b"5"), id="a folder with an empty component"),
        pytest.param(header(b"/", kind=b"5"), id="the root"),
        pytest.param(header(b"./", kind=b"5"), id="the folder itself"),
        pytest.param(header(b"a", magic=b"ustar  \0"), id="the GNU dialect"),
        pytest.param(header(b"a", magic=b"\0" * 8), id="the oldest dialect"),
        pytest.param(summed(header(b"a")[:124] + b"\x80" + b"\xff" * 11 + header(b"a")[136:]), id="a binary size"),
        pytest.param(header(b"a", size=5000), id="content that is missing"),
    ],
)
def test_a_header_that_no_honest_program_writes_is_refused(ground: Path, tar: bytes) -> None:
    assert isinstance(unpack(ground, tar + END), InvalidRequest)


def test_permissions_beyond_the_owners_do_not_come_out(ground: Path) -> None:
    assert unpack(ground, header(b"a", mode=0o6777) + header(b"d", kind=b"5", mode=0o7777) + END) is None
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (ground / "in" / "out").iterdir()}
    assert modes == {"a": 0o700, "d": 0o700}


def test_a_name_that_brings_more_folders_than_the_limit_is_refused(quick_ground: Path) -> None:
    """140 entries that would be 8820 folders: the count of entries alone does not protect the disk."""
    tar = b"".join(file(b"/".join([b"%d" % number] * 64)) for number in range(140))
    assert isinstance(unpack(quick_ground, tar + END), LimitExceeded)


class Deflated:
    """A gzip stream put together from pieces, each compressed once and repeated: gigabytes are made in no time."""

    def __init__(self) -> None:
        self._parts = [b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]

    def add(self, data: bytes, *, times: int = 1) -> None:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        self._parts.append((squeeze.compress(data) + squeeze.flush(zlib.Z_FULL_FLUSH)) * times)

    def bytes(self) -> bytes:
        return b"".join(self._parts)


def peak_of(ground: Path, archive: bytes) -> tuple[SecureDaguError | None, int]:
    """Return the refusal and how many bytes were allocated at once."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        refusal = unpack_packed(ground, archive)
        return refusal, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", ["files", "one file", "headers", "after a name"])
def test_ten_mebibytes_that_would_be_ten_gibibytes_stop_at_the_limit(ground: Path, shape: str) -> None:
    bomb = Deflated()
    if shape == "one file":
        bomb.add(header(b"zeros", size=8 * 2**30 - 1))
        bomb.add(b"\0" * MIB, times=10 * 1024)
    elif shape == "headers":  # each is small, and a reader that remembers them would hold them all
        bomb.add(extended(record(b"comment", b"\xf0\x9f\x98\x80" * 15_000)) + header(b"d", kind=b"5"), times=8000)
    elif shape == "after a name":
        bomb.add(header(b"PaxHeader", size=8 * 2**30 - 1, kind=b"x"))
        bomb.add(b"\0" * MIB, times=10 * 1024)
    else:
        for number in range(640):
            bomb.add(header(b"zeros%d" % number, size=16 * MIB))
            bomb.add(b"\0" * MIB, times=16)
    archive = bomb.bytes()
    assert len(archive) < bundle.MAX_PACKED_BYTES
    refusal, peak = peak_of(ground, archive)
    assert isinstance(refusal, LimitExceeded)
    assert peak < 4 * MIB


def test_an_archive_over_the_packed_limit_is_not_even_read(ground: Path) -> None:
    (ground / "b").touch()
    os.truncate(ground / "b", bundle.MAX_PACKED_BYTES + 1)
    with pytest.raises(LimitExceeded, match="packed"):
        asyncio.run(unpack_bundle(ground / "b", ground / "out"))
    assert not (ground / "out").exists()


def test_an_archive_at_the_limit_is_unpacked(ground: Path) -> None:
    bomb = Deflated()
    for number in range(4):
        bomb.add(header(b"zeros%d" % number, size=bundle.MAX_UNPACKED_BYTES // 4))
        bomb.add(b"\0" * MIB, times=bundle.MAX_UNPACKED_BYTES // 4 // MIB)
    for number in range(bundle.MAX_ENTRIES - 4):
        bomb.add(header(b"d%d/" % (number % 10), kind=b"5"))
    bomb.add(END)
    refusal, peak = peak_of(ground, bomb.bytes())
    assert refusal is None
    assert peak < 4 * MIB
