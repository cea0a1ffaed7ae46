"""Put the entries of an archive into a folder, and nowhere else.

Every folder on the way is opened without following links, from the destination down, so that no link can lead out:
neither one that the archive brings nor one that was there before. A link that is written points inside.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import ExitStack
from pathlib import Path

from secure_dagu.errors import DefinitionError
from secure_dagu.runner.executors.archive_formats import PIECE, Entry

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parts_of(path: str) -> tuple[str, ...]:
    """Return the parts of an entry's path.

    Raises:
        DefinitionError: it is absolute, climbs, or is no path.
    """
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path) or "\0" in path:
        raise DefinitionError(f"the archive's entry {path[:200]!r} is refused", why="its path is absolute")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if any(".." in part.split("\\") for part in parts):
        raise DefinitionError(f"the archive's entry {path[:200]!r} is refused", why="its path climbs out")
    return parts


def check_link(entry: Entry, parts: tuple[str, ...]) -> None:
    """Raise DefinitionError unless a symbolic link at `parts` can only lead inside the destination.

    `..` may stand at the beginning only: behind a name, which may be another link, it leads anywhere.
    """
    target = [part for part in entry.target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(target) and target[climbs] == "..":
        climbs += 1
    is_bad = not entry.target or entry.target.startswith("/") or "\0" in entry.target
    if is_bad or ".." in target[climbs:] or climbs >= len(parts):
        raise DefinitionError(f"the archive's link {entry.path[:200]!r} is refused", why="it leads out")


class Folder:
    """The destination."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._overwrite = overwrite
        self._modes: list[tuple[tuple[str, ...], int]] = []

    def close(self) -> None:
        """Give folders the modes of the archive, last, so that one without write permission can be filled."""
        try:
            for parts, mode in reversed(self._modes):
                with ExitStack() as stack:
                    os.fchmod(self._open(stack, parts), mode)
        finally:
            os.close(self._root)

    def write(self, entry: Entry, parts: tuple[str, ...], source: tuple[str, ...] = ()) -> int:
        """Write one entry at `parts`, whose path and target were checked; return the bytes written.

        Raises:
            DefinitionError: something is in the way, or the entry is of a kind that is not unpacked.
        """
        with ExitStack() as stack:
            if entry.kind == "dir":
                self._open(stack, parts)
                self._modes.append((parts, entry.mode & 0o777 | 0o700))
                return 0
            folder = self._open(stack, parts[:-1])
            name = parts[-1]
            self._check_free(folder, name, entry)
            part = f".{secrets.token_hex(8)}.part"
            try:
                written = self._make(stack, folder, part, entry, source)
                os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with _ignored():
                    os.unlink(part, dir_fd=folder)
                raise
            return written

    def _make(self, stack: ExitStack, folder: int, part: str, entry: Entry, source: tuple[str, ...]) -> int:
        if entry.kind == "symlink":
            os.symlink(entry.target, part, dir_fd=folder)
            return 0
        if entry.kind == "hardlink":
            origin = self._open(stack, source[:-1], make=False)
            if not stat.S_ISREG(os.stat(source[-1], dir_fd=origin, follow_symlinks=False).st_mode):
                raise DefinitionError(f"the archive's link {entry.path[:200]!r} is refused", why="it names no file")
            os.link(source[-1], part, src_dir_fd=origin, dst_dir_fd=folder, follow_symlinks=False)
            return 0
        handle = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        written = 0
        with os.fdopen(handle, "wb") as file, entry.open() as content:
            while piece := content.read(PIECE):
                written += file.write(piece)
            os.fchmod(file.fileno(), entry.mode & 0o777)  # never setuid and its like
            if entry.modified_at is not None:
                file.flush()
                moment = max(entry.modified_at.timestamp(), 0)
                os.utime(file.fileno(), (moment, moment))
        return written

    def _check_free(self, folder: int, name: str, entry: Entry) -> None:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode) or not self._overwrite:
            raise DefinitionError(f"{entry.path[:200]!r} exists already", why="`overwrite` is false or it is a folder")

    def _open(self, stack: ExitStack, parts: tuple[str, ...], *, make: bool = True) -> int:
        """Open the folder at `parts` below the destination, made if it is missing."""
        folder = self._root
        for part in parts:
            if make:
                with _ignored(errno.EEXIST):
                    os.mkdir(part, 0o755, dir_fd=folder)
            try:
                folder = os.open(part, _DIRECTORY, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    path = "/".join(parts)[:200]
                    raise DefinitionError(
                        f"the folder {path!r} is refused", why=f"{part!r} is a link or a file"
                    ) from None
                raise
            stack.callback(os.close, folder)
        return folder


class _ignored:
    """Ignore one kind of OSError, every kind without an argument."""

    def __init__(self, number: int | None = None) -> None:
        self._number = number

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, OSError) and self._number in (None, error.errno)
