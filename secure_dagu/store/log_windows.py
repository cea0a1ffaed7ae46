"""Lines of a log by window, without reading a large file whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from secure_dagu.dispatch.operating import MAX_LINES, LogPage, Window
from secure_dagu.errors import NotFound

BLOCK: Final = 256 * 1024
MOST_BYTES: Final = 4 * 2**20
"""Of one page; a line that is longer is cut."""
MOST_COUNTED: Final = 64 * 2**20
"""Up to this size lines are counted, above they are estimated."""


def page(path: Path, window: Window, *, charset: str = "utf-8") -> LogPage:
    """Return lines of a file, read as text of a character encoding; what is none is replaced.

    Raises:
        NotFound: there is no such file, or it is no plain one.
    """
    handle = open_log(path)
    try:
        return page_of(handle, window, charset=charset)
    finally:
        os.close(handle)


def page_of(handle: int, window: Window, *, charset: str = "utf-8") -> LogPage:
    """Return lines of an open file."""
    size = os.fstat(handle).st_size
    total, is_estimate = _count(handle, size)
    if window.head or window.offset:
        first = max(window.offset, 1)
        limit = min(window.head or window.limit or 1000, MAX_LINES)
        data, start = _from_line(handle, size, first, limit)
    else:
        data, start = _tail(handle, size, min(window.tail or 1000, MAX_LINES))
    lines = data.count(b"\n") + (1 if data and not data.endswith(b"\n") else 0)
    return LogPage(
        content=data.decode(charset, errors="replace"), line_count=lines, total_lines=max(total, lines),
        has_more=start > 0 or start + len(data) < size, is_estimate=is_estimate, end_offset=start + len(data),
    )  # fmt: skip


def open_log(path: Path) -> int:
    """Open a log for reading; a link or a pipe is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound("there is no such log", why=os.strerror(error.errno or 0)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotFound("there is no such log", why="it is no plain file")
    return handle


def _count(handle: int, size: int) -> tuple[int, bool]:
    """Return how many lines there are, and whether that is an estimate."""
    counted, at = 0, 0
    last = b""
    while at < min(size, MOST_COUNTED) and (block := os.pread(handle, BLOCK, at)):
        counted += block.count(b"\n")
        at += len(block)
        last = block[-1:]
    if size > MOST_COUNTED and at:
        return int(counted * size / at), True
    return counted + (1 if last not in (b"", b"\n") else 0), False


def _tail(handle: int, size: int, lines: int) -> tuple[bytes, int]:
    """Return the last lines and where they begin."""
    start, data = size, b""
    while start > 0 and data.count(b"\n") <= lines and len(data) < MOST_BYTES:
        step = min(BLOCK, start)
        start -= step
        data = os.pread(handle, step, start) + data
    body = data[:-1] if data.endswith(b"\n") else data
    for _ in range(lines):
        cut = body.rfind(b"\n")
        if cut < 0:
            break
        body = body[:cut]
    else:
        return data[len(body) + 1 :], start + len(body) + 1
    return data, start


def _from_line(handle: int, size: int, first: int, lines: int) -> tuple[bytes, int]:
    """Return lines from the given number on (1 is the first) and where they begin."""
    at, number = 0, 1
    while number < first and at < size:
        block = os.pread(handle, BLOCK, at)
        found = block.count(b"\n")
        if not block:
            break
        if number + found < first:
            number += found
            at += len(block)
            continue
        cut = -1
        for _ in range(first - number):
            cut = block.index(b"\n", cut + 1)
        at, number = at + cut + 1, first
    start, data = at, b""
    while (
        data.count(b"\n") < lines and len(data) < MOST_BYTES and (block := os.pread(handle, BLOCK, start + len(data)))
    ):
        data += block
    cut = -1
    for _ in range(lines):
        found = data.find(b"\n", cut + 1)
        if found < 0:
            return data[:MOST_BYTES], start
        cut = found
    return data[: cut + 1], start
