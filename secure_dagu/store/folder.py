"""A folder that paths cannot leave: every step is opened relative to the one before, links are never followed.

Checking a path and opening it afterwards leaves a moment in between; walking by descriptors does not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from secure_dagu.errors import InvalidRequest, NotFound, Unavailable

DIR_MODE = 0o750
FILE_MODE = 0o600
MAX_NAME_BYTES = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """One root folder. Names passed in are single components; a bad one is `InvalidRequest`."""

    def __init__(self, root: Path) -> None:
        """Take the root, which is made when first written to. The root itself may be a link: the operator chose it."""
        self.root = root

    @contextlib.contextmanager
    def directory(self, parts: Sequence[str], *, create: bool) -> Iterator[int]:
        """Open a directory below the root for the time of the context.

        Raises:
            NotFound: it does not exist and `create` is False.
            InvalidRequest: a part is no plain name, or a link or a file is in the way.
        """
        if create:
            self.root.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        try:
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("nothing is stored yet") from None
        try:
            for part in parts:
                below = _enter(fd, checked_name(part), create=create)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def make_new(self, parts: Sequence[str]) -> bool:
        """Make a directory; False when it is there already."""
        with self.directory(parts[:-1], create=True) as above:
            try:
                os.mkdir(checked_name(parts[-1]), DIR_MODE, dir_fd=above)
            except FileExistsError:
                return False
            return True

    def open_read(self, parts: Sequence[str], name: str) -> int:
        """Open a regular file for reading and return its descriptor.

        Raises:
            NotFound: there is none.
        """
        with self.directory(parts, create=False) as above:
            try:
                fd = os.open(
                    checked_name(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above
                )
            except OSError:
                raise NotFound("no such file") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFound("no such file")
        return fd

    def open_write(self, parts: Sequence[str], name: str, *, exclusive: bool = False) -> int:
        """Open a regular file for writing, made when it is missing, and return its descriptor.

        Raises:
            InvalidRequest: something that is no plain file is in the way.
            Unavailable: the disk refuses.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self.directory(parts, create=True) as above:
            try:
                fd = os.open(checked_name(name), flags | (os.O_EXCL if exclusive else 0), FILE_MODE, dir_fd=above)
            except OSError as error:
                raise write_failure(error) from error
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            os.close(fd)
            raise InvalidRequest("something that is no plain file is in the way", fix="look at the folder")
        return fd

    def remove(self, parts: Sequence[str]) -> None:
        """Remove a directory with everything in it; nothing happens when there is none.

        Raises:
            InvalidRequest: a link or a file is in its place. Unavailable: the disk refuses.
        """
        with contextlib.suppress(NotFound), self.directory(parts[:-1], create=False) as above:
            try:
                shutil.rmtree(checked_name(parts[-1]), dir_fd=above)
            except FileNotFoundError:
                return
            except OSError as error:
                raise write_failure(error) from error

    def remove_empty(self, parts: Sequence[str]) -> None:
        """Remove a directory in which nothing is left; one that holds something stays."""
        with contextlib.suppress(NotFound, OSError), self.directory(parts[:-1], create=False) as above:
            os.rmdir(checked_name(parts[-1]), dir_fd=above)


def checked_name(name: str) -> str:
    """Return `name` if it is one plain path component.

    Raises:
        InvalidRequest: it is empty, a dot name, too long, or holds a separator or a NUL.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidRequest("a file name is not usable", why="it is empty, a dot name or holds a separator")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("a file name is not usable", why="it is no Unicode text") from None
    if size > MAX_NAME_BYTES:
        raise InvalidRequest("a file name is not usable", why=f"it is longer than {MAX_NAME_BYTES} bytes")
    return name


def write_failure(error: OSError) -> Exception:
    """Return our error for a failed write. The text of the system's error names paths, so it stays in the log."""
    import errno  # noqa: PLC0415, RUF100  used on failures only

    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE):
        return Unavailable("the coordinator cannot write", why=os.strerror(error.errno), fix="an operator must act")
    return InvalidRequest("a file cannot be written", why=os.strerror(error.errno or 0))


def _enter(fd: int, name: str, *, create: bool) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            raise NotFound("no such folder") from None
    except OSError as error:
        raise write_failure(error) from error
    try:
        with contextlib.suppress(FileExistsError):  # another stream was faster
            os.mkdir(name, DIR_MODE, dir_fd=fd)
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except OSError as error:
        raise write_failure(error) from error
