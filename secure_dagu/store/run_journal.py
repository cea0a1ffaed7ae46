"""Follow the journal of `store.records` over restarts of the reader and rotations by anybody."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from msgspec import Struct

from secure_dagu.store.records import JOURNAL

BEFORE = f"{JOURNAL}.1"
"""What the journal was before it was begun anew."""
MAX_BYTES = 4 * 2**20
"""Beyond it whoever reads it begins a new one."""
READ_BYTES = 16 * 2**20
GRACE_S = 2.0
"""How long a journal that was replaced is looked at: a writer may have opened it just before."""
_MARK = 256


class _File(Struct):
    handle: int
    inode: int
    offset: int
    until: float = 0.0
    """When it is left alone; 0: it is the present one."""

    def lines(self) -> list[str]:
        """Return the whole lines that came since."""
        data = os.pread(self.handle, READ_BYTES, self.offset)
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [line.decode(errors="replace") for line in whole.split(b"\n") if line]

    def mark(self) -> str:
        """Return the last bytes that were read: they tell this file from another one."""
        start = max(0, self.offset - _MARK)
        return os.pread(self.handle, self.offset - start, start).hex()


class Journal:
    """A reader of the journal of one folder. Methods raise OSError where it cannot be read."""

    def __init__(self, folder: Path) -> None:
        """Take `<data>/dag-runs`."""
        self._path = folder / JOURNAL
        self._now: _File | None = None
        self._old: list[_File] = []

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._now, *self._old):
            if file is not None:
                os.close(file.handle)
        self._now, self._old = None, []

    def begin(self) -> None:
        """Leave out everything that stands there."""
        self.close()
        self._now = self._opened(self._path)
        self._now.offset = os.fstat(self._now.handle).st_size

    def resume(self, place: str) -> bool:
        """Go on at a place; False: what stood there is gone, and lines may have been missed."""
        self.close()
        inode, _, rest = place.partition(":")
        offset, _, mark = rest.partition(":")
        if not re.fullmatch(r"[0-9]{1,18}", offset):
            return False
        for path in (self._path, self._path.with_name(BEFORE)):
            try:
                file = self._opened(path, create=False)
            except OSError:
                continue
            file.offset = int(offset)
            if str(file.inode) == inode and os.fstat(file.handle).st_size >= file.offset and file.mark() == mark:
                self._now = file
                return True
            os.close(file.handle)
        return False

    @property
    def place(self) -> str:
        """Return where it goes on, for `resume`."""
        return f"{self._now.inode}:{self._now.offset}:{self._now.mark()}" if self._now is not None else ""

    def lines(self) -> list[str]:
        """Return the lines that came since, each once."""
        if self._now is None:
            self.begin()
        assert self._now is not None, "it has just begun"
        found = self._now.lines()
        if self._is_replaced(self._now):
            self._now.until = time.monotonic() + GRACE_S
            self._old.append(self._now)
            self._now = self._opened(self._path)
            found += self._now.lines()
        elif self._now.offset > MAX_BYTES:
            os.replace(self._path, self._path.with_name(BEFORE))
        for file in list(self._old):
            found += file.lines()
            if time.monotonic() > file.until:
                os.close(file.handle)
                self._old.remove(file)
        return list(dict.fromkeys(found))

    def _is_replaced(self, file: _File) -> bool:
        with contextlib.suppress(OSError):
            return os.stat(self._path).st_ino != file.inode
        return True

    def _opened(self, path: Path, *, create: bool = True) -> _File:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        handle = os.open(path, flags, 0o640)
        return _File(handle=handle, inode=os.fstat(handle).st_ino, offset=0)
