"""Paths and small files that an author names: resolved in one way, read within a limit, never waited for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from secure_dagu.errors import DefinitionError

MAX_SCHEMA_BYTES = 2**20


def path_below(base: Path, text: str) -> Path:
    """Return `text` as a path: `~` is the home directory, anything relative is below `base`.

    Raises:
        DefinitionError: it holds a NUL character.
    """
    if "\0" in text:
        raise DefinitionError(f"{text!r} is no path", why="it holds a NUL character")
    return base / os.path.expanduser(text)  # not `Path.expanduser`: that one raises for a user that there is not


def make_working_dir(path: Path) -> None:
    """Make a working directory that is missing, and those above it, all with mode 0750 (section 3.4)."""
    if path.is_dir():
        return
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(mode=0o750, exist_ok=True)


def read_bounded(path: Path, limit: int, *, what: str, limited_by: str = "", follow: bool = False) -> str:
    """Return the text of a plain file of at most `limit` bytes, unchanged.

    Args:
        what: how an error calls the file.
        limited_by: what an error calls the limit.
        follow: a link is followed; not where a step could have put one.

    Raises:
        DefinitionError: it is missing, no plain file, too large or not UTF-8.
    """
    try:
        # A pipe must not make us wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        raise DefinitionError(f"{what} cannot be read", why=str(error.strerror)) from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise DefinitionError(f"{what} is no plain file")
        if not found.st_size:
            return ""
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise DefinitionError(f"{what} is too large", why=f"{limited_by or 'the limit'} is {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DefinitionError(f"{what} is not UTF-8") from None


def schema_reader(*places: Path) -> Callable[[str], str | None]:
    """Return what reads a parameter schema for the loader: from the first of `places` that has it, never a URL."""

    def read(name: str) -> str | None:
        for place in () if "://" in name else places:
            try:
                return read_bounded(path_below(place, name), MAX_SCHEMA_BYTES, what="the schema", follow=True)
            except DefinitionError:
                continue
        return None

    return read
