"""Files of a user that hold keys, one for each name: contexts and profiles.

    <folder>/<name>.json      0600 in a 0700 folder

A file that others may read is refused, as that of any other secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from secure_dagu.errors import InvalidRequest, Refused, Unavailable
from secure_dagu.store import whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


def is_name(text: str) -> bool:
    """Tell whether a file may have that name."""
    return _NAME.match(text) is not None


class PrivateFiles:
    """The files of one kind."""

    def __init__(self, folder: Path, *, kind: str, most_bytes: int) -> None:
        """Take the folder, which is made with the first file; the word for one in errors; how much of it is read."""
        self.folder, self._kind, self._most_bytes = folder, kind, most_bytes

    def names(self) -> list[str]:
        """Return all names, sorted."""
        try:
            found = [name.removesuffix(".json") for name in os.listdir(self.folder) if name.endswith(".json")]
        except OSError:
            return []
        return sorted(name for name in found if is_name(name))

    def path(self, name: str) -> Path:
        """Return where the file of a name is.

        Raises:
            InvalidRequest: the name is malformed.
        """
        if not is_name(name):
            raise InvalidRequest(
                f"{name[:64]!r} is no name of a {self._kind}",
                fix="use at most 64 letters, digits, `_`, `-` and `.`, a letter or digit first",
            )
        return self.folder / f"{name}.json"

    def read(self, name: str, *, only_own: bool = False) -> bytes | None:
        """Return what a file holds; None when there is none.

        Raises:
            Refused: others may read it; with `only_own`, it is another user's who is not root.
            Unavailable: it cannot be read.
        """
        path = self.path(name)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                state = os.fstat(file.fileno())
                data = file.read(self._most_bytes) if stat.S_ISREG(state.st_mode) else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"{self._kind} {name} cannot be read", why=os.strerror(error.errno or 0)) from error
        if stat.S_IMODE(state.st_mode) & 0o077:
            raise Refused(
                f"{self._kind} {name} is not used", why=f"group or others may read {path}",
                fix=f"chmod 600 {path}, and if somebody may have read what is in it, make it anew",
            )  # fmt: skip
        if only_own and state.st_uid not in (0, os.geteuid()):
            raise Refused(
                f"{self._kind} {name} is not used", why=f"{path} is another user's, who may say anything there",
                fix="remove it, and add your own",
            )  # fmt: skip
        return data

    def damaged(self, name: str) -> Unavailable:
        """Return the error about a file that does not say what it should."""
        return Unavailable(
            f"{self._kind} {name} cannot be read", why=f"{self.path(name)} is damaged, or another program's",
            fix="remove it, and add it again",
        )  # fmt: skip

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Let one process at a time read and write; the folder is there.

        Raises:
            Unavailable: the folder cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(self.folder, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file of the folder whole.

        Raises:
            Unavailable: the disk refuses.
        """
        try:
            whole.replace(path, data)
        except OSError as error:
            raise self._unwritable(path, error) from error

    def remove(self, name: str) -> bool:
        """Remove a file; False when there is none."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _unwritable(self, path: Path, error: OSError) -> Unavailable:
        return Unavailable(f"the {self._kind} cannot be written", why=f"{path}: {os.strerror(error.errno or 0)}")
