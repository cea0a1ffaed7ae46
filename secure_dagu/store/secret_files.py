"""Managed secrets as files: `<directory>/<workspace or .global>/<reference>`, readable by their owner only."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import structlog
from msgspec import Struct

from secure_dagu.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    SecureDaguError,
)
from secure_dagu.security.secret import Secret
from secure_dagu.store.folder import FILE_MODE, Folder, write_failure

log = structlog.get_logger()
MAX_SECRET: Final = 64 * 1024
MAX_LISTED: Final = 10_000
GLOBAL: Final = ".global"
"""Where secrets of no workspace are."""
REFERENCE: Final = re.compile(r"[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)*")


class SecretInfo(Struct, frozen=True, kw_only=True):
    """What may be told of a secret."""

    ref: str
    updated_at: datetime
    is_private: bool
    """False: others may read the file, so it is served to nobody."""


class SecretFiles:
    """Keep secrets by reference. A file that others may read is no secret and is refused."""

    def __init__(self, directory: Path) -> None:
        self._folder = Folder(directory)

    def get(self, workspace: str, ref: str) -> Secret | None:
        """Return a secret without the newline that editors leave at the end; None when there is none.

        Raises:
            PreconditionFailed: the file may be read by others, is too large, or is no text. The log names the file.
        """
        fd = self._open(workspace, ref)
        if fd is None:
            return None
        with os.fdopen(fd, "rb") as file:
            if not _is_private(os.fstat(fd)):
                self._refuse(workspace, ref, "group or others may read the file; chmod 600 it")
            data = file.read(MAX_SECRET + 1)
        if len(data) > MAX_SECRET:
            self._refuse(workspace, ref, f"the file is larger than {MAX_SECRET} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self._refuse(workspace, ref, "the file is not UTF-8 text")
        return Secret(text.removesuffix("\n").removesuffix("\r"))

    def info(self, workspace: str, ref: str) -> SecretInfo | None:
        """Return what may be told of a secret; None when there is none."""
        fd = self._open(workspace, ref)
        if fd is None:
            return None
        try:
            return _info(ref, os.fstat(fd))
        finally:
            os.close(fd)

    def list(self, workspace: str) -> Sequence[SecretInfo]:
        """Return what may be told of each secret of a workspace, by reference, at most 10,000.

        Raises:
            InvalidRequest: the workspace is no plain name.
        """
        found: list[SecretInfo] = []
        with contextlib.suppress(NotFound), self._folder.directory((workspace,), create=False) as top:
            for folder, _, names, fd in os.fwalk(".", dir_fd=top):
                for name in names:
                    ref = f"{folder}/{name}".removeprefix("./")
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if REFERENCE.fullmatch(ref) and stat.S_ISREG(info.st_mode):
                        found.append(_info(ref, info))
                if len(found) >= MAX_LISTED:
                    break
        return sorted(found, key=lambda one: one.ref)[:MAX_LISTED]

    def put(self, workspace: str, ref: str, value: Secret, *, is_new: bool) -> SecretInfo:
        """Keep a secret, whole or not at all; runs that begin from now on get it.

        Args:
            workspace, ref: which one.
            value: what it is.
            is_new: True: there must be none yet; False: there must be one.

        Raises:
            AlreadyExists, NotFound: there is one, or none.
            Conflict: another secret stands in the way: `a` where `a/b` should be, or the other way round.
            InvalidRequest: the reference is malformed. LimitExceeded: it has more than 64 KiB.
            Unavailable: the disk refuses.
        """
        data = value.reveal().encode()
        if not REFERENCE.fullmatch(ref):
            raise InvalidRequest(
                "the reference is malformed", fix="lower-case letters, digits, dashes; / between parts"
            )
        if len(data) > MAX_SECRET:
            raise LimitExceeded("the secret is too large", why=f"the limit is {MAX_SECRET} bytes")
        if not is_new and self.info(workspace, ref) is None:
            raise _missing(ref)
        *folders, name = ref.split("/")
        with self._writable((workspace, *folders), ref) as above:
            beside = f".{secrets.token_hex(8)}.new"
            try:
                _write(above, beside, data)
                if is_new:
                    os.link(beside, name, src_dir_fd=above, dst_dir_fd=above, follow_symlinks=False)
                    os.unlink(beside, dir_fd=above)
                else:
                    os.rename(beside, name, src_dir_fd=above, dst_dir_fd=above)
                os.fsync(above)
            except OSError as error:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=above)
                if not isinstance(error, FileExistsError | IsADirectoryError):
                    raise write_failure(error) from error
                if self.info(workspace, ref) is None:
                    raise _in_the_way(ref) from None
                raise AlreadyExists(
                    f"there is a secret {ref!r}", fix="give it another value, or choose another name"
                ) from None
        kept = self.info(workspace, ref)
        if kept is None:
            raise _missing(ref)
        return kept

    def delete(self, workspace: str, ref: str) -> None:
        """Remove a secret.

        Raises:
            NotFound: there is none.
        """
        if self.info(workspace, ref) is None:
            raise _missing(ref)
        *folders, name = ref.split("/")
        with self._folder.directory((workspace, *folders), create=False) as above:
            try:
                os.unlink(name, dir_fd=above)
                os.fsync(above)
            except FileNotFoundError:
                raise _missing(ref) from None
            except OSError as error:
                raise write_failure(error) from error
        while folders:
            self._folder.remove_empty((workspace, *folders))
            folders.pop()

    def _open(self, workspace: str, ref: str) -> int | None:
        *folders, name = ref.split("/")
        try:
            return self._folder.open_read((workspace, *folders), name)
        except SecureDaguError:  # there is none, or a link or a file stands where a folder should
            return None

    @contextlib.contextmanager
    def _writable(self, parts: Sequence[str], ref: str) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            try:
                above = stack.enter_context(self._folder.directory(parts, create=True))
            except InvalidRequest as problem:
                raise _in_the_way(ref) from problem
            yield above

    def _refuse(self, workspace: str, ref: str, why: str) -> NoReturn:
        log.error("secret.unusable", workspace=workspace, ref=ref, why=why)
        raise PreconditionFailed("the secret cannot be served", fix="an operator finds the reason in the log")


def _write(above: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=above)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _info(ref: str, info: os.stat_result) -> SecretInfo:
    return SecretInfo(ref=ref, updated_at=datetime.fromtimestamp(info.st_mtime, UTC), is_private=_is_private(info))


def _is_private(info: os.stat_result) -> bool:
    return not stat.S_IMODE(info.st_mode) & 0o077


def _missing(ref: str) -> NotFound:
    return NotFound(f"there is no secret {ref!r}")


def _in_the_way(ref: str) -> Conflict:
    return Conflict(
        f"the secret {ref!r} cannot be kept", why="another one has a part of its name", fix="choose another name"
    )
