"""Write certificates and keys: atomically, private from the first byte, never over something that is there."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from secure_dagu.errors import ConfigError


class Pem(Struct, frozen=True):
    """One file to write. A private one is 0600, any other 0644."""

    name: str
    data: bytes
    is_private: bool = False


def make_private_directory(directory: Path) -> None:
    """Create a 0700 directory with its parents; narrow one that exists and is ours but open to others.

    Raises:
        ConfigError: it cannot be made, or the path is something else.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            directory.chmod(0o700)
    except OSError as problem:
        raise ConfigError(
            f"the directory {directory} cannot be used for keys", why=problem.strerror or str(problem)
        ) from problem


def refuse_existing(directory: Path, names: Iterable[str], *, fix: str) -> None:
    """Raise ConfigError naming every one of these files that is there already; looks before anything is written."""
    there = [name for name in names if os.path.lexists(directory / name)]
    if there:
        raise ConfigError(f"{directory} already holds {', '.join(there)}", why="nothing was changed", fix=fix)


def write(directory: Path, pem: Pem, *, replace: bool = False) -> Path:
    """Write one file so that it is there whole or not at all, and survives a power cut.

    Raises:
        ConfigError: it exists and `replace` is false, or the disk refuses.
    """
    target = directory / pem.name
    temporary = directory / f".{pem.name}.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(temporary, flags, 0o600), "wb") as sink:
            if not pem.is_private:
                os.fchmod(sink.fileno(), 0o644)
            sink.write(pem.data)
            sink.flush()
            os.fsync(sink.fileno())
        if replace:
            temporary.replace(target)
        else:
            os.link(temporary, target)  # unlike a rename, fails when the target has come into being meanwhile
        sync_directory(directory)
    except FileExistsError as problem:
        raise ConfigError(
            f"{target} exists", why="keys and certificates are not overwritten", fix="move it away, or say --force"
        ) from problem
    except OSError as problem:
        raise ConfigError(f"{target} cannot be written", why=problem.strerror or str(problem)) from problem
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return target


def append_line(path: Path, line: bytes) -> None:
    """Add one line to a private append-only file, durably, one process at a time.

    What a crash left of an unfinished line is removed: nobody was told of it.

    Raises:
        ConfigError: the disk refuses; then nothing may be handed out.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "r+b", buffering=0) as sink:
            fcntl.flock(sink, fcntl.LOCK_EX)  # until it is closed
            _cut_unfinished(sink)
            written = sink.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - told as any other refusal
            os.fsync(sink.fileno())
        sync_directory(path.parent)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written", why=problem.strerror or str(problem)) from problem


def _cut_unfinished(sink: io.FileIO) -> None:
    end = sink.seek(0, os.SEEK_END)
    start = end
    while start > 0:
        start = max(0, start - 4096)
        sink.seek(start)
        found = sink.read(min(4096, end - start)).rfind(b"\n")
        if found >= 0:
            start += found + 1
            break
    if start != end:
        sink.truncate(start)


def sync_directory(directory: Path) -> None:
    """Make what was renamed or removed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
