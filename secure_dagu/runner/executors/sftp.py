"""`sftp.upload` and `sftp.download`: files and directories over SSH (workflow language, section 4.6).

A file is written under another name beside its destination and then renamed: nobody reads half of it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from secure_dagu.errors import DefinitionError, IntegrityViolation, LimitExceeded
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import ssh
from secure_dagu.runner.executors.extras import library
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below

if TYPE_CHECKING:
    import asyncssh

MAX_FILES = 100_000
"""Entries of one transfer: a server must not be able to name files for ever."""
MAX_DEPTH = 64


async def upload(context: StepContext) -> Done:
    """Copy a local file or directory to the host."""
    return await unless_stopped(context.stop, _transfer(context, "upload"))


async def download(context: StepContext) -> Done:
    """Copy a file or directory of the host here."""
    return await unless_stopped(context.stop, _transfer(context, "download"))


async def _transfer(context: StepContext, direction: str) -> Done:
    settings = ssh.settings_of(context)
    settings.choice("direction", (direction,), direction)
    source, destination = settings.needed("source"), settings.needed("destination")
    target = ssh.read_target(settings, context.cwd)
    async with ssh.connected(target, context) as connection, connection.start_sftp_client() as sftp:
        copy = Copy(sftp, context)
        if direction == "upload":
            await copy.upload(path_below(context.cwd, source), destination)
        else:
            await copy.download(source, path_below(context.cwd, destination), is_folder=destination.endswith("/"))
    return SUCCESS


class Copy:
    """One transfer; it says on stdout what it has copied."""

    def __init__(self, sftp: asyncssh.SFTPClient, context: StepContext) -> None:
        self._sftp = sftp
        self._say = context.stdout
        self._left = MAX_FILES

    async def upload(self, source: Path, destination: str) -> None:
        """Copy to the host; a file goes into a destination that is a directory."""
        found = _local(source)
        if not isinstance(found, int):
            base = destination.rstrip("/")
            for folder in found.folders:
                await self._sftp.makedirs(f"{base}/{folder}", exist_ok=True)
            for name, mode in found.files:
                await self._upload_file(source / name, f"{base}/{name}", mode)
            return
        if destination.endswith("/"):
            await self._sftp.makedirs(destination, exist_ok=True)
        if destination.endswith("/") or await self._sftp.isdir(destination):
            destination = f"{destination.rstrip('/')}/{source.name}"
        await self._upload_file(source, destination, found)

    async def _upload_file(self, source: Path, destination: str, mode: int) -> None:
        temporary = f"{destination}.{secrets.token_hex(6)}.part"
        try:
            await self._sftp.put(source, temporary, follow_symlinks=True)
            await self._sftp.chmod(temporary, mode & 0o777)
            await self._rename(temporary, destination)
        except BaseException:
            with contextlib.suppress(Exception):  # the connection may be what is lost
                await self._sftp.remove(temporary)
            raise
        self._say(f"uploaded {source} to {destination}\n".encode())

    async def _rename(self, temporary: str, destination: str) -> None:
        try:
            await self._sftp.posix_rename(temporary, destination)
        except library("asyncssh", extra="ssh").SFTPOpUnsupported:  # only OpenSSH's extension replaces in one step
            if await self._sftp.exists(destination):
                await self._sftp.remove(destination)
            await self._sftp.rename(temporary, destination)

    async def download(self, source: str, destination: Path, *, is_folder: bool) -> None:
        """Copy from the host; a file goes into a destination that is a directory."""
        if await self._sftp.isdir(source):
            await self._download_folder(source, destination, MAX_DEPTH)
            return
        if is_folder or _is_folder(destination):
            destination = destination / _safe_name(source.rstrip("/").rpartition("/")[2])
        await self._download_file(source, destination)

    async def _download_folder(self, source: str, destination: Path, depth: int) -> None:
        self._count(depth)
        os.makedirs(destination, exist_ok=True)
        async for entry in self._sftp.scandir(source):
            if entry.filename in (".", ".."):
                continue
            name = _safe_name(str(entry.filename))
            mode = entry.attrs.permissions or 0
            if stat.S_ISDIR(mode):
                await self._download_folder(f"{source}/{name}", destination / name, depth - 1)
            elif stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and await self._sftp.isfile(f"{source}/{name}")):
                await self._download_file(f"{source}/{name}", destination / name)

    async def _download_file(self, source: str, destination: Path) -> None:
        self._count(1)
        os.makedirs(destination.parent, exist_ok=True)
        temporary = destination.with_name(f"{destination.name}.{secrets.token_hex(6)}.part")
        try:
            await self._sftp.get(source, temporary, follow_symlinks=True)
            os.replace(temporary, destination)
        finally:
            temporary.unlink(missing_ok=True)
        self._say(f"downloaded {source} to {destination}\n".encode())

    def _count(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth <= 0:
            raise _too_large()


class Found(Struct, frozen=True, kw_only=True):
    """What is below a local directory, by paths relative to it; the directory itself is the first, `""`."""

    folders: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    """Each file with its mode."""


def _local(source: Path) -> Found | int:
    """Look at what is to be uploaded: the contents of a directory, or the mode of a file.

    Links to files are followed; links to directories are not, because they may lead round in a circle.
    """
    if not source.is_dir():
        if not source.is_file():
            raise DefinitionError(f"{source} cannot be uploaded", why="there is no such file or directory")
        return source.stat().st_mode
    folders: list[str] = []
    files: list[tuple[str, int]] = []
    for where, _, names in os.walk(source):
        folder = Path(where)
        below = folder.relative_to(source)
        folders.append("" if folder == source else below.as_posix())
        files += (
            ((below / name).as_posix(), (folder / name).stat().st_mode)
            for name in sorted(names)
            if (folder / name).is_file()
        )
        if len(folders) + len(files) > MAX_FILES or len(below.parts) >= MAX_DEPTH:
            raise _too_large()
    return Found(folders=tuple(folders), files=tuple(files))


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _too_large() -> LimitExceeded:
    return LimitExceeded("the transfer is too large", why=f"the limits are {MAX_FILES} entries and {MAX_DEPTH} levels")


def _safe_name(name: str) -> str:
    """Return a name that a server gave; it must not lead out of the destination."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise IntegrityViolation("the SFTP server named a file that leads elsewhere", why=f"it is {name[:100]!r}")
    return name
