"""Open, write, read and list files so that nothing is half there, waited for, or reached through a link by surprise."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from secure_dagu.errors import DefinitionError, LimitExceeded

PIECE = 256 * 1024
MAX_JSON_BYTES = 16 * 2**20
"""A file whose content becomes part of a JSON text is held in memory."""
MAX_ENTRIES = 100_000
"""Entries of one listing."""
MAX_DEPTH = 200
"""Folders within folders; each holds a file descriptor while it is walked."""
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Stopped(Exception):
    """The step is over; whoever still works for it ends."""


def check(stopped: threading.Event) -> None:
    """Raise `Stopped` when the step is over."""
    if stopped.is_set():
        raise Stopped


def mode_of(value: Any, default: int) -> int:
    """Return permission bits: text is octal, a number counts as written in YAML (`0600` is octal there).

    Raises:
        DefinitionError: it is none, or has other bits than those of permissions.
    """
    if value is None or value == "":
        return default
    try:
        mode = value if isinstance(value, int) else int(str(value).removeprefix("0o"), 8)
    except ValueError:
        mode = -1
    if isinstance(value, bool) or not 0 <= mode <= 0o777:
        raise DefinitionError(
            f"with.mode {str(value)[:20]!r} is no file mode", why="from 0000 to 0777", fix='write it as in mode: "0644"'
        )
    return mode


@contextlib.contextmanager
def parent(path: Path, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the folder of `path`, open, and the last name in it.

    Raises:
        DefinitionError: `path` has no name.
    """
    if path.name in ("", ".."):
        raise DefinitionError(f"{path} names no file")
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, FOLDER)
    try:
        yield folder, path.name
    finally:
        os.close(folder)


@contextlib.contextmanager
def parent_below(base: Path, names: tuple[str, ...], *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the folder of the last of `names` below `base`, and that name; no link on the way is followed.

    Each name is opened within the folder before it, so a link that is planted meanwhile is refused too.

    Raises:
        DefinitionError: a folder on the way is a link.
    """
    folder = os.open(base, FOLDER)
    try:
        for name in names[:-1]:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o750, dir_fd=folder)
            inner = _open_folder(name, folder)
            os.close(folder)
            folder = inner
        yield folder, names[-1]
    finally:
        os.close(folder)


def _open_folder(name: str, folder: int) -> int:
    try:
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise DefinitionError(f"the path climbs: {name!r} is a link or no folder") from None
        raise


@contextlib.contextmanager
def replacing(folder: int, name: str, *, mode: int, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `name` when the block ends, and vanishes when it fails.

    Raises:
        DefinitionError: `name` is there and must not be overwritten, or is a folder.
    """
    part = f".{name[:100]}.{secrets.token_hex(8)}.part"
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(handle, mode)
        if overwrite:
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            # A link is made only where nothing is: between a look and a rename somebody could have put a file.
            os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise exists(name) from None
    except IsADirectoryError:
        raise DefinitionError(f"{name} cannot be written", why="it is a folder") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)


def exists(name: str) -> DefinitionError:
    """Return the error about a file that must not be overwritten."""
    return DefinitionError(f"{name} already exists", why="overwrite is false", fix="set `overwrite: true`")


def write(
    folder: int, name: str, data: bytes, *, mode: int, overwrite: bool, atomic: bool = True, dry_run: bool = False
) -> bool:
    """Write a file; return whether it is new.

    Raises:
        DefinitionError: it is there and must not be overwritten, or is a folder.
    """
    found = lstat(name, folder)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise DefinitionError(f"{name} cannot be written", why="it is a folder")
    if found is not None and not overwrite:
        raise exists(name)
    if dry_run:
        return found is None
    if atomic:
        with replacing(folder, name, mode=mode, overwrite=overwrite) as file:
            file.write(data)
        return found is None
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_TRUNC if overwrite else os.O_EXCL)
    try:
        handle = os.open(name, flags, mode, dir_fd=folder)
    except FileExistsError:
        raise exists(name) from None
    with os.fdopen(handle, "wb") as file:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.fchmod(handle, mode)
        file.write(data)
    return found is None


def lstat(name: str, folder: int) -> os.stat_result | None:
    """Return what is known of a name in a folder, None when nothing is there; links are not followed."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def reading(folder: int, name: str, *, follow: bool) -> Iterator[BinaryIO]:
    """Yield a plain file, open; a pipe does not make us wait for its writer.

    Raises:
        DefinitionError: it is missing, a link that must not be followed, or no plain file.
    """
    try:
        handle = os.open(name, READ | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
        raise DefinitionError(f"{name} cannot be read", why=why) from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DefinitionError(f"{name} cannot be read", why="it is no plain file")
        yield file


def pieces(file: BinaryIO, limit: int, *, named: str) -> Iterator[bytes]:
    """Yield what a file holds, at most `limit` bytes; 0 means all.

    Raises:
        LimitExceeded: there is more; nothing beyond the limit was yielded.
    """
    seen = 0
    while data := file.read(PIECE):
        seen += len(data)
        if limit and seen > limit:
            raise LimitExceeded(f"{named} is too large", why=f"the limit is {limit} bytes")
        yield data


def about(found: os.stat_result) -> dict[str, Any]:
    """Return type, size, mode and modTime as actions print them."""
    return {
        "type": kind(found.st_mode),
        "size": found.st_size,
        "mode": stat.filemode(found.st_mode),
        "modTime": time_text(found.st_mtime_ns),
    }


def kind(mode: int) -> str:
    """Return the word for what a file is."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def time_text(moment_ns: int) -> str:
    """Return RFC 3339 in UTC, with as many digits of a second as there are."""
    seconds, rest = divmod(moment_ns, 10**9)
    digits = f".{rest:09d}".rstrip("0").rstrip(".")
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{digits}Z"


def entries(
    folder: int, *, pattern: str, recursive: bool, include_dirs: bool, stopped: threading.Event
) -> list[dict[str, Any]]:
    """Return what is below an open folder, by path; links are shown, never followed.

    A pattern with `**` looks into folders by itself; one without a slash is about the last name.

    Raises:
        LimitExceeded: there are more than `MAX_ENTRIES`, or folders are nested too deeply.
    """
    wanted = matcher(pattern)
    deep = recursive or "**" in pattern or "/" in pattern.strip("/")
    found: list[dict[str, Any]] = []
    seen = 0

    def walk(fd: int, above: tuple[str, ...]) -> None:
        nonlocal seen
        if len(above) > MAX_DEPTH:
            raise LimitExceeded("the folder is nested too deeply", why=f"the limit is {MAX_DEPTH}")
        for name in sorted(os.listdir(fd)):
            check(stopped)
            seen += 1
            if seen > MAX_ENTRIES:
                raise LimitExceeded("the folder holds too much", why=f"the limit is {MAX_ENTRIES} entries")
            facts = lstat(name, fd)
            if facts is None:
                continue  # gone since
            is_dir = stat.S_ISDIR(facts.st_mode)
            parts = (*above, name)
            if (include_dirs or not is_dir) and wanted(parts):
                found.append(
                    {
                        "path": "/".join(parts),
                        **about(facts),
                        "isDir": is_dir,
                        "isRegular": stat.S_ISREG(facts.st_mode),
                        "isSymlink": stat.S_ISLNK(facts.st_mode),
                    }
                )
            if is_dir and deep:
                with contextlib.ExitStack() as stack:
                    try:
                        inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                    except (FileNotFoundError, NotADirectoryError):
                        continue
                    stack.callback(os.close, inner)
                    walk(inner, parts)

    walk(folder, ())
    return sorted(found, key=lambda entry: str(entry["path"]))


def matcher(pattern: str) -> Callable[[tuple[str, ...]], bool]:
    """Return a test for paths: `*`, `?` and `[…]` within a name, `**` for any number of folders; empty takes all."""
    wanted = [part for part in pattern.split("/") if part and part != "."]
    if len(wanted) > 100 or len(pattern) > 4096:
        raise DefinitionError("with.pattern is too long")
    if not wanted:
        return lambda parts: True
    if len(wanted) == 1 and wanted[0] != "**":
        return lambda parts: fnmatchcase(parts[-1], wanted[0])

    def matches(parts: tuple[str, ...]) -> bool:
        # Which beginnings of the pattern can end here; one row a name, so no pattern makes this exponential.
        states = _skipped({0})
        for part in parts:
            after = set()
            for at in states:
                if at < len(wanted) and wanted[at] == "**":
                    after.add(at)
                elif at < len(wanted) and fnmatchcase(part, wanted[at]):
                    after.add(at + 1)
            states = _skipped(after)
        return len(wanted) in states

    def _skipped(states: set[int]) -> set[int]:
        result = set(states)
        for at in range(len(wanted)):
            if at in result and wanted[at] == "**":
                result.add(at + 1)
        return result

    return matches
