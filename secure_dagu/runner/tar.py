"""Read the gzip'ed tar of a workspace bundle as a stream (protocol, section 7).

The standard library's reader is made for archives of friends: it follows chains of headers by recursion, reads an
extended header as long as it says it is, remembers each of them, and knows a dozen old and private dialects. A bundle
is written in one dialect (PAX, regular files and folders only), so this reader knows that one and refuses the rest.
What it holds in memory is one block, one extended header and 64 KiB of content, whatever the archive says.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from msgspec import Struct

from secure_dagu.errors import InvalidRequest, LimitExceeded

_BLOCK_BYTES = 512
_READ_BYTES = 64 * 1024
_MAX_EXTENDED_BYTES = 64 * 1024
"""A name of 64 components of 255 bytes and a few times; a real one has a few hundred bytes."""
_GZIP_WINDOW = 31
"""`zlib`: a gzip header and trailer, the largest window."""
_FILE, _OLD_FILE, _FOLDER, _EXTENDED = b"0", b"\0", b"5", b"x"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n]{1,255})=")
_DECIMAL = re.compile(rb"[0-9]{1,19}")


class Entry(Struct, frozen=True, kw_only=True):
    """One entry; its content is what the stream holds next."""

    name: str
    mode: int
    size_bytes: int
    is_folder: bool


class Inflated:
    """The content of one gzip member, read forwards. No more than `limit_bytes` come out of it."""

    def __init__(self, file: BinaryIO, *, limit_bytes: int) -> None:
        self._file = file
        self._left = limit_bytes
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)

    def some(self, limit_bytes: int) -> bytes:
        """Return 1 to `limit_bytes` bytes, at most 64 KiB.

        Raises:
            InvalidRequest: the archive ends here, or is no gzip.
            LimitExceeded: the whole is longer than its limit.
        """
        while True:
            packed = self._inflate.unconsumed_tail or self._file.read(_READ_BYTES)
            try:
                data = self._inflate.decompress(packed, min(limit_bytes, _READ_BYTES))
            except zlib.error as error:
                raise unreadable("it is no gzip") from error
            self._left -= len(data)
            if self._left < 0:
                raise LimitExceeded(
                    "the workspace bundle is too large", why="its headers and content pass the limit", fix="pack less"
                )
            if data:
                return data
            # A full inflater may hold output though its input is used up: only silence on nothing is an end.
            if self._inflate.eof or not packed:
                raise unreadable("it ends too early")

    def exactly(self, size_bytes: int) -> bytes:
        """Return `size_bytes` bytes; the caller has bounded them."""
        data = b""
        while len(data) < size_bytes:
            data += self.some(size_bytes - len(data))
        return data


def entries(stream: Inflated) -> Iterator[Entry]:
    """Yield each entry; before the next one is asked for, all content of this one must have been read.

    Raises:
        InvalidRequest: it is no tar of the one dialect.
        LimitExceeded: an extended header is longer than 64 KiB.
    """
    while any(block := stream.exactly(_BLOCK_BYTES)):
        records: dict[bytes, bytes] = {}
        if block[156:157] == _EXTENDED:
            records = _extended(block, stream)
            block = stream.exactly(_BLOCK_BYTES)
        entry = _entry(block, records)
        yield entry
        stream.exactly(-entry.size_bytes % _BLOCK_BYTES)


def unreadable(why: str) -> InvalidRequest:
    """Return the error for an archive that is none."""
    return InvalidRequest(
        "the workspace bundle cannot be read", why=why, fix="pack it as the protocol says: a gzip'ed PAX tar"
    )


def refused(name: str, why: str) -> InvalidRequest:
    """Return the error for an entry that may not be unpacked; the name is a stranger's, so it is shown escaped."""
    return InvalidRequest(
        f"the bundle entry {name[:200]!a} is refused",
        why=why,
        fix="pack only plain files below the workflow's folder; if you did, look at who dispatched this",
    )


def _extended(block: bytes, stream: Inflated) -> dict[bytes, bytes]:
    """Return the records of an extended header: `<length> <key>=<value>` and a newline, each."""
    size = _number(_checked(block)[124:136])
    # Before reading: a stranger must not be able to make us allocate.
    if size > _MAX_EXTENDED_BYTES:
        raise LimitExceeded(
            "a header of the workspace bundle is too large",
            why=f"over {_MAX_EXTENDED_BYTES} bytes",
            fix="pack files with shorter names and without extended attributes",
        )
    data = stream.exactly(size)
    stream.exactly(-size % _BLOCK_BYTES)
    records: dict[bytes, bytes] = {}
    at = 0
    while at < size:
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= size or data[end - 1 : end] != b"\n":
            raise unreadable("an extended header is malformed")
        # Two readers that take a different one of two names would unpack different things.
        if match[2] in records:
            raise unreadable("an extended header says the same thing twice")
        if match[2].startswith(b"GNU.sparse."):
            raise unreadable("files with holes may not travel")
        records[match[2]] = data[match.end() : end - 1]
        at = end
    return records


def _entry(block: bytes, records: dict[bytes, bytes]) -> Entry:
    """Return what a header and the extended header before it say."""
    raw = _text(_checked(block)[0:100])
    if prefix := _text(block[345:500]):
        raw = prefix + b"/" + raw
    raw = records.get(b"path", raw)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise refused(raw.decode(errors="backslashreplace"), "its name is not UTF-8") from None
    kind = block[156:157]
    if kind not in (_FILE, _OLD_FILE, _FOLDER):
        raise refused(name, "only plain files and folders may travel")
    size = _number(block[124:136])
    if (value := records.get(b"size")) is not None:
        if not _DECIMAL.fullmatch(value):
            raise unreadable("a size is malformed")
        size = int(value)
    if kind == _FOLDER and size:
        raise refused(name, "a folder has no content")
    return Entry(name=name, mode=_number(block[100:108]) & 0o7777, size_bytes=size, is_folder=kind == _FOLDER)


def _checked(block: bytes) -> bytes:
    """Return a header whose checksum and dialect are right."""
    said = _number(block[148:156])
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != said:
        raise unreadable("a header has a wrong checksum")
    if block[257:265] != b"ustar\x0000":
        raise unreadable("it is not of the POSIX dialect")
    return block


def _number(field: bytes) -> int:
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise unreadable("a number in a header is malformed")
    return int(match[1] or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
