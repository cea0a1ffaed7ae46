"""Read and write archives of every format as a stream of entries. Blocking; what an entry may do is not decided here.

Limits, because an archive says what it likes: entries, bytes in all, how much larger than the archive its content may
be, and how much memory a header or a dictionary may ask for.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from msgspec import Struct

from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.runner.executors.extras import library

MAX_ENTRIES = 100_000
MAX_BYTES = 16 * 2**30
MAX_RATIO = 250
"""Times the archive's size that its content may have, once it is larger than `FREE_BYTES`."""
FREE_BYTES = 64 * 2**20
MAX_HEADER = 2**20
MAX_DIRECTORY = 64 * 2**20
"""Bytes of a zip's directory."""
MAX_DICTIONARY = 256 * 2**20
PIECE = 2**18

SUFFIXES = {
    ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar.bz2": "tar.bz2", ".tbz2": "tar.bz2", ".tbz": "tar.bz2",
    ".tar.xz": "tar.xz", ".txz": "tar.xz", ".tar.zst": "tar.zst", ".tar.zstd": "tar.zst", ".tzst": "tar.zst",
    ".tar.lz4": "tar.lz4", ".tar": "tar", ".zip": "zip", ".7z": "7z", ".rar": "rar", ".gz": "gz", ".bz2": "bz2",
    ".xz": "xz", ".zst": "zst", ".zstd": "zst", ".lz4": "lz4",
}  # fmt: skip
ALIASES = {
    "tgz": "tar.gz", "tbz2": "tar.bz2", "tbz": "tar.bz2", "txz": "tar.xz", "tzst": "tar.zst", "tar.zstd": "tar.zst",
    "gzip": "gz", "bzip2": "bz2", "zstd": "zst",
}  # fmt: skip
READ_ONLY = ("7z", "rar")
_MAGIC = (
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\x1f\x8b", "gz"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"), (b"\x04\x22\x4d\x18", "lz4"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07", "rar"),
)  # fmt: skip
_LEVELS = {"zip": (0, 9), "gz": (0, 9), "bz2": (1, 9), "xz": (0, 9), "zst": (1, 22), "lz4": (0, 16)}
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, ValueError, RecursionError, NotImplementedError,
    RuntimeError, OSError,
)  # fmt: skip
"""What the readers raise for an archive that is none (RuntimeError: a password; OSError: gzip, bz2)."""


class Entry(Struct, frozen=True, kw_only=True):
    """One entry as the archive tells it; nothing of it is to be trusted."""

    path: str
    kind: str
    """`file`, `dir`, `symlink`, `hardlink`, or `other`."""
    size: int = 0
    mode: int = 0o644
    modified_at: datetime | None = None
    target: str = ""
    open: Callable[[], IO[bytes]] = io.BytesIO
    """Open the content of a file; valid until the next entry is asked for."""


def format_of(path: Path, given: str) -> str:
    """Return the format: as told, by the file's name, or by its first bytes.

    Raises:
        DefinitionError: it is none of ours.
    """
    known = set(SUFFIXES.values())
    if given:
        name = ALIASES.get(given.lower().lstrip("."), given.lower().lstrip("."))
        if name not in known:
            raise DefinitionError(f"{given[:40]!r} is no archive format", why=f"known are {', '.join(sorted(known))}")
        return name
    for suffix, name in SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return name
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(512)
        for magic, name in _MAGIC:
            if head.startswith(magic):
                return f"tar.{name}" if name in _LEVELS and name != "zip" and _holds_tar(path, name) else name
        if head[257:262] == b"ustar":
            return "tar"
    raise DefinitionError("the archive's format is not known", why="neither name nor content tell", fix="set `format`")


def _holds_tar(path: Path, compression: str) -> bool:
    try:
        with path.open("rb") as file, _decompressed(file, compression) as content:
            return _read(content, 512)[257:262] == b"ustar"
    except BROKEN:
        return False


class Budget(Struct):
    """What may still come out of one archive."""

    archive_bytes: int
    should_stop: Callable[[], bool]
    entries: int = 0
    total: int = 0

    def entry(self) -> None:
        """Count an entry.

        Raises:
            LimitExceeded: there are too many.
        """
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise LimitExceeded("the archive has too many entries", why=f"the limit is {MAX_ENTRIES}")
        self.check()

    def check(self) -> None:
        """Raise InterruptedError when the step was stopped."""
        if self.should_stop():
            raise InterruptedError

    def spend(self, count: int) -> None:
        """Count bytes that came out.

        Raises:
            LimitExceeded: there are too many, in all or for the size of the archive.
        """
        self.check()
        self.total += count
        if self.total > MAX_BYTES:
            raise LimitExceeded("the archive is too large when unpacked", why=f"the limit is {MAX_BYTES} bytes")
        if self.total > FREE_BYTES and self.total > self.archive_bytes * MAX_RATIO:
            raise LimitExceeded(
                "the archive unpacks to far more than it is",
                why=f"above {FREE_BYTES} bytes the limit is {MAX_RATIO} times the archive's size",
            )


class _Counted(io.RawIOBase):
    """A stream whose every byte is paid for."""

    def __init__(self, source: IO[bytes], budget: Budget) -> None:
        self._source = source
        self._budget = budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(min(size, PIECE) if size >= 0 else PIECE)
        self._budget.spend(len(data))
        return data


@contextmanager
def reading(path: Path, form: str, password: str, budget: Budget) -> Iterator[Iterator[Entry]]:
    """Give the entries of an archive, in its order.

    Raises:
        LimitExceeded: see the module.
        Exception: `BROKEN`, and what the libraries of 7z and rar raise.
    """
    with ExitStack() as stack:
        if form == "zip":
            yield _zip_entries(stack, path, password, budget)
        elif form == "7z":
            yield _seven_entries(stack, path, password, budget)
        elif form == "rar":
            yield _rar_entries(stack, path, password, budget)
        else:
            file = stack.enter_context(path.open("rb"))
            compression = form.removeprefix("tar.").removeprefix("tar")
            content = stack.enter_context(_decompressed(file, compression))
            counted = cast("IO[bytes]", _Counted(content, budget))
            if form.startswith("tar"):
                yield _tar_entries(stack, counted, budget)
            else:
                yield _single(path, counted, budget)


def _single(path: Path, content: IO[bytes], budget: Budget) -> Iterator[Entry]:
    """A compressed file is an archive of one entry, called as the file without its suffix."""
    budget.entry()
    name = path.stem if path.suffix.lower() in SUFFIXES else f"{path.name}.out"
    moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    yield Entry(path=name, kind="file", size=-1, modified_at=moment, open=lambda: content)


class _TarInfo(tarfile.TarInfo):
    """A member whose headers have a limit: the library would read them as long as they say they are."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        is_plain = self.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE)
        if not is_plain and self.size > MAX_HEADER:
            raise LimitExceeded("a header of the archive is too large", why=f"the limit is {MAX_HEADER} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]  # not in the stubs


_TAR_KINDS = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}


def _tar_entries(stack: ExitStack, content: IO[bytes], budget: Budget) -> Iterator[Entry]:
    opened = tarfile.open(fileobj=content, mode="r|", tarinfo=_TarInfo, errorlevel=2)  # noqa: SIM115 - entered below
    archive = stack.enter_context(opened)
    for member in archive:
        budget.entry()
        kind = "file" if member.isreg() else _TAR_KINDS.get(member.type, "other")
        yield Entry(
            path=member.name,
            kind=kind,
            size=member.size,
            mode=member.mode,
            modified_at=_moment(member.mtime),
            target=member.linkname,
            open=partial(_member_of, archive, member),
        )
        archive.members = []  # type: ignore[attr-defined]  # not in the stubs; else it remembers all of them


def _member_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return archive.extractfile(member) or io.BytesIO()


def _zip_entries(stack: ExitStack, path: Path, password: str, budget: Budget) -> Iterator[Entry]:
    file = stack.enter_context(path.open("rb"))
    _check_directory(file)
    archive = stack.enter_context(zipfile.ZipFile(file))
    if password:
        archive.setpassword(password.encode())
    for member in archive.infolist():
        budget.entry()
        mode = member.external_attr >> 16
        is_link = stat.S_ISLNK(mode)
        kind = "dir" if member.is_dir() else "symlink" if is_link else "file"
        yield Entry(
            path=member.filename,
            kind=kind,
            size=member.file_size,
            mode=stat.S_IMODE(mode) or (0o755 if kind == "dir" else 0o644),
            modified_at=_zip_moment(member.date_time),
            target=_zip_target(archive, member) if is_link else "",
            open=partial(_counted, archive, member, budget),
        )


def _counted(archive: Any, member: Any, budget: Budget) -> IO[bytes]:
    return cast("IO[bytes]", _Counted(archive.open(member), budget))


def _zip_target(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    with archive.open(member) as link:
        return link.read(4096).decode(errors="surrogateescape")


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a zip whose directory would fill the memory: the library reads it whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - 65535))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    claimed = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if claimed > MAX_DIRECTORY and (claimed != 0xFFFFFFFF or size > MAX_DIRECTORY * 16):
        raise LimitExceeded("the archive's directory is too large", why=f"the limit is {MAX_DIRECTORY} bytes")
    file.seek(0)


def _zip_moment(written: tuple[int, int, int, int, int, int]) -> datetime | None:
    try:
        return datetime(*written, tzinfo=UTC)
    except ValueError:
        return None


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _seven_entries(stack: ExitStack, path: Path, password: str, budget: Budget) -> Iterator[Entry]:
    """Read a 7z: its library writes where we tell it, and where we tell it is a nameless file."""
    import tempfile

    py7zr: Any = library("py7zr", extra="archive")
    archive = stack.enter_context(py7zr.SevenZipFile(path, mode="r", password=password or None))
    files = archive.list()
    for info in files:  # what they claim is what the library writes, so claims count
        budget.entry()
        budget.spend(int(info.uncompressed or 0))
    contents: dict[str, IO[bytes]] = {}

    class Kept(py7zr.io.Py7zIO):  # type: ignore[misc]
        """Where the content of one entry goes."""

        def __init__(self, file: IO[bytes]) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            budget.check()
            return self._file.write(data)

        def read(self, size: int | None = None) -> bytes:
            return self._file.read(-1 if size is None else size)

        def seek(self, offset: int, whence: int = 0) -> int:
            return self._file.seek(offset, whence)

        def flush(self) -> None:
            self._file.flush()

        def size(self) -> int:
            return os.fstat(self._file.fileno()).st_size

    class Factory(py7zr.io.WriterFactory):  # type: ignore[misc]
        def create(self, filename: str) -> Kept:
            # Beside the archive, where there is room for what it holds; /tmp is often memory.
            folder = path.parent if os.access(path.parent, os.W_OK) else None
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - entered below
            contents[filename] = stack.enter_context(file)
            return Kept(file)

    archive.extractall(factory=Factory())  # noqa: S202 - the factory gives nameless files
    for info in files:
        kind = "dir" if info.is_directory else "symlink" if getattr(info, "is_symlink", False) else "file"
        yield Entry(
            path=info.filename,
            kind=kind,
            size=int(info.uncompressed or 0),
            mode=0o755 if kind == "dir" else 0o644,
            modified_at=info.creationtime,
            target=_rewound(contents, info.filename).read(4096).decode(errors="surrogateescape")
            if kind == "symlink"
            else "",
            open=partial(_rewound, contents, info.filename),
        )


def _rewound(contents: dict[str, IO[bytes]], name: str) -> IO[bytes]:
    file = contents.get(name, io.BytesIO())
    file.seek(0)
    return file


def _rar_entries(stack: ExitStack, path: Path, password: str, budget: Budget) -> Iterator[Entry]:
    rarfile: Any = library("rarfile", extra="archive")
    archive = stack.enter_context(rarfile.RarFile(path, errors="strict"))
    if password:
        archive.setpassword(password)
    for info in archive.infolist():
        budget.entry()
        kind = "dir" if info.is_dir() else "symlink" if info.is_symlink() else "file" if info.is_file() else "other"
        yield Entry(
            path=info.filename,
            kind=kind,
            size=info.file_size,
            mode=stat.S_IMODE(info.mode or 0) or (0o755 if kind == "dir" else 0o644),
            modified_at=_zip_moment(info.date_time) if info.date_time else None,
            target=archive.read(info).decode(errors="surrogateescape")[:4096] if kind == "symlink" else "",
            open=partial(_counted, archive, info, budget),
        )


# ------------------------------------------------------------------------------------------------------- compression


@contextmanager
def _decompressed(file: IO[bytes], compression: str) -> Iterator[IO[bytes]]:
    match compression:
        case "":
            yield file
        case "gz":
            with gzip.GzipFile(fileobj=file) as stream:
                yield cast("IO[bytes]", stream)
        case "bz2":
            with bz2.BZ2File(file) as stream:
                yield cast("IO[bytes]", stream)
        case "xz":
            yield cast("IO[bytes]", _Xz(file))
        case "zst":
            zstandard: Any = library("zstandard", extra="archive")
            made = zstandard.ZstdDecompressor(max_window_size=MAX_DICTIONARY)
            try:
                with made.stream_reader(file, read_across_frames=True, closefd=False) as stream:
                    yield stream
            except zstandard.ZstdError as error:
                raise DefinitionError("the archive is broken", why=str(error)) from None
        case _:
            frame: Any = library("lz4.frame", extra="archive")
            with frame.LZ4FrameFile(file, mode="rb") as stream:
                yield stream


class _Xz(io.RawIOBase):
    """Decompress xz with a limit of memory, which the library's own file has not."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._made = lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)
        self._is_begun = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = PIECE if size < 0 else size
        while True:
            if self._made.eof:
                rest = self._made.unused_data.lstrip(b"\0") or self._file.read(PIECE).lstrip(b"\0")
                if not rest:
                    return b""
                self._made, self._is_begun = lzma.LZMADecompressor(memlimit=MAX_DICTIONARY), False
            elif self._made.needs_input:
                rest = self._file.read(PIECE)
                if not rest:
                    raise EOFError("the compressed data ends too early")
            else:
                rest = b""
            if data := self._made.decompress(rest, wanted):
                return data


def _read(content: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := content.read(size - len(data))):
        data += piece
    return data


@contextmanager
def compressed(file: IO[bytes], compression: str, level: int) -> Iterator[IO[bytes]]:
    """Give a stream that compresses into `file`; level -1 is the format's own."""
    check_level(compression, level)
    match compression:
        case "":
            yield file
        case "gz":
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6 if level < 0 else level) as stream:
                yield cast("IO[bytes]", stream)
        case "bz2":
            with bz2.BZ2File(file, "wb", compresslevel=9 if level < 0 else level) as stream:
                yield cast("IO[bytes]", stream)
        case "xz":
            with lzma.LZMAFile(file, "wb", preset=None if level < 0 else level) as stream:
                yield cast("IO[bytes]", stream)
        case "zst":
            zstandard: Any = library("zstandard", extra="archive")
            with zstandard.ZstdCompressor(level=3 if level < 0 else level).stream_writer(file, closefd=False) as stream:
                yield stream
        case _:
            frame: Any = library("lz4.frame", extra="archive")
            with frame.LZ4FrameFile(file, mode="wb", compression_level=max(level, 0)) as stream:
                yield stream


def check_level(compression: str, level: int) -> None:
    """Raise DefinitionError for a level that the compression does not have."""
    low, high = _LEVELS.get(compression, (0, 9))
    if level != -1 and not low <= level <= high:
        raise DefinitionError("with.compression_level cannot be used", why=f"expected -1, or {low} to {high}")
