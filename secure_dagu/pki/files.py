"""Write certificates and keys: atomically, private from the first byte, never over something that is there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from secure_dagu.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pem:
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
        _sync_directory(directory)
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
    """Add one line to a private append-only file, durably.

    Raises:
        ConfigError: the disk refuses; then nothing may be handed out.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb", buffering=0) as sink:
            sink.write(line)
            os.fsync(sink.fileno())
        _sync_directory(path.parent)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written", why=problem.strerror or str(problem)) from problem


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
