"""Private unix sockets: a 0700 folder of our own and unguessable names in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from secure_dagu.errors import ConfigError

_PATH_BYTES: Final = 107
"""What `sockaddr_un` holds on Linux."""
_NAME_BYTES: Final = 26


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that only this user may enter; it is removed at the end.

    Raises:
        ConfigError: the folder cannot be made, or its path is too long for a socket.
    """
    try:
        made = Path(tempfile.mkdtemp(prefix="sdagu-"))
    except OSError as error:
        raise ConfigError(
            "cannot make a folder for private sockets",
            why=str(error.strerror),
            fix="make the temporary directory writable",
        ) from error
    try:
        check(made)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check(directory: Path) -> None:
    """Check that a folder is fit for private sockets.

    Raises:
        ConfigError: somebody else owns it or may enter it, or its path is too long.
    """
    facts = directory.stat()
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise ConfigError(
            f"{directory} is no place for private sockets",
            why=f"it is not ours alone (mode {stat.S_IMODE(facts.st_mode):04o}, owner {facts.st_uid})",
            fix=f"chmod 700 {directory}",
        )
    if len(os.fsencode(directory)) + 1 + _NAME_BYTES > _PATH_BYTES:
        raise ConfigError(
            f"{directory} is no place for private sockets",
            why=f"a socket path may have {_PATH_BYTES} bytes",
            fix="choose a shorter path (TMPDIR)",
        )


def name_in(directory: Path) -> str:
    """Return an unguessable path in `directory` (96 bits)."""
    return f"{directory}/{secrets.token_hex(12)}"


def listen(path: str) -> socket.socket:
    """Open a listening unix socket."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        listening.listen(128)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening
