"""The private folders of an attempt: made, filled from a bundle, removed.

A run's ids come from outside, so they are checked before any path is made of them. An archive comes from outside too:
it is read as a stream, every number in it is counted against a limit before anything is kept, and only plain files and
folders come out.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from secure_dagu.dispatch.model import Task
from secure_dagu.errors import InvalidRequest, LimitExceeded
from secure_dagu.run.model import AttemptId
from secure_dagu.runner.api import RunFolders
from secure_dagu.runner.bundle import MAX_ENTRIES, MAX_PACKED_BYTES, MAX_UNPACKED_BYTES

_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,40}\Z")
_ID = re.compile(r"[-A-Za-z0-9_]{1,64}\Z")
_COPY_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 256 * 1024
"""Extended headers (long names) are read whole; a real one has a few hundred bytes."""
_MAX_STREAM_BYTES = MAX_UNPACKED_BYTES + MAX_ENTRIES * 2048 + 2**20
"""Content, and headers and padding of every entry."""


class Workspaces:
    """Make the folders of attempts below one base, which is this worker's own."""

    def __init__(self, base: Path, worker_id: str) -> None:
        self._base = base
        self._worker = worker_id

    @asynccontextmanager
    async def __call__(self, task: Task, attempt_id: AttemptId) -> AsyncIterator[RunFolders]:
        """Make the folders, mode 0700; remove them, and nothing else, at the end.

        That of artifacts is made by the runner for a run that has any: most have none, and a folder costs as much as a
        process.

        Raises:
            InvalidRequest: a name or id is not one, such as one that climbs.
        """
        check_ids(task, attempt_id)
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        top = Path(tempfile.mkdtemp(prefix="run-", dir=self._base))  # 0700, a name that nobody can foresee
        try:
            yield _folders(top, task)
        finally:
            await asyncio.to_thread(_remove, top)


def check_ids(task: Task, attempt_id: AttemptId) -> None:
    """Refuse names and ids that are not of the protocol's form (section 2.1), before a path is made of them.

    Raises:
        InvalidRequest: one of them is malformed; the text does not repeat it whole.
    """
    refs = (("run", task.run), ("root", task.root), *([("parent", task.parent)] if task.parent else []))
    for which, ref in refs:
        if not _NAME.match(ref.name):
            raise InvalidRequest(f"the DAG name of the {which} is malformed", why=f"{ref.name[:64]!r}")
        if not _ID.match(ref.run_id):
            raise InvalidRequest(f"the run id of the {which} is malformed", why=f"{ref.run_id[:64]!r}")
    if not _ID.match(attempt_id):
        raise InvalidRequest("the attempt id is malformed", why=f"{attempt_id[:64]!r}")


def _folders(top: Path, task: Task) -> RunFolders:
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%SZ")
    folders = RunFolders(
        logs=top / "logs",
        work=top / "work",
        artifacts=top / "artifacts" / f"dag-run_{stamp}_{task.run.run_id}",
    )
    for folder in (folders.logs, folders.work):
        folder.mkdir(mode=0o700)
    return folders


def _remove(top: Path) -> None:
    """Remove a folder that we made. Links in it are removed, never followed (`shutil.rmtree` sees to that)."""
    shutil.rmtree(top, ignore_errors=True)
    if not top.exists():
        return
    for folder, _, _ in os.walk(top):  # a step may have taken away our own right to look into its folders
        os.chmod(folder, 0o700, follow_symlinks=True)
    shutil.rmtree(top, ignore_errors=True)


async def unpack_bundle(archive: Path, target: Path) -> None:
    """Unpack a workspace bundle into the new folder `target` (protocol, section 7).

    Raises:
        InvalidRequest: it is no gzip'ed tar, or an entry climbs, repeats another, or is no plain file or folder.
        LimitExceeded: more than 64 MiB packed, 256 MiB unpacked, or 8192 entries.
    """
    await asyncio.to_thread(_unpack, archive, target)


def _unpack(archive: Path, target: Path) -> None:
    if archive.stat().st_size > MAX_PACKED_BYTES:
        raise LimitExceeded("the workspace bundle is too large", why=f"over {MAX_PACKED_BYTES} bytes packed")
    target.mkdir(mode=0o700)
    try:
        with gzip.open(archive, "rb") as stream, tarfile.TarFile(fileobj=_Bounded(stream), mode="r") as tar:  # type: ignore[arg-type]  # reads, seeks forwards and tells, which is all that a TarFile asks for
            _extract(tar, target)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidRequest("the workspace bundle cannot be read", why=str(error)) from error


def _extract(tar: tarfile.TarFile, target: Path) -> None:
    entries = content = 0
    for member in tar:
        entries += 1
        content += member.size
        if entries > MAX_ENTRIES:
            raise LimitExceeded("the workspace bundle has too many entries", why=f"the limit is {MAX_ENTRIES}")
        if content > MAX_UNPACKED_BYTES:
            raise LimitExceeded("the workspace bundle is too large", why=f"over {MAX_UNPACKED_BYTES} bytes unpacked")
        path = target.joinpath(*_parts(member))
        try:
            if member.isdir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The owner's bits are kept, since scripts travel in bundles; nobody else has a business in this folder.
            mode = 0o600 | (member.mode & 0o100)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidRequest(f"the bundle entry {member.name[:200]!r} is there twice") from error
        source = tar.extractfile(member)
        assert source is not None, "a plain file has content"
        with os.fdopen(file, "wb") as out:
            shutil.copyfileobj(source, out, _COPY_BYTES)


def _parts(member: tarfile.TarInfo) -> list[str]:
    """Return the components of an entry's name, all of them plain.

    Raises:
        InvalidRequest: a link or a special file; a name that is absolute, climbs, or is too deep.
    """
    shown = repr(member.name[:200])
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise InvalidRequest(f"the bundle entry {shown} is refused", why="only plain files and folders may travel")
    parts = member.name.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") or "\0" in part or len(part) > 255 for part in parts) or len(parts) > 64:
        raise InvalidRequest(f"the bundle entry {shown} is refused", why="the name is not a plain relative path")
    return parts


class _Bounded:
    """A compressed stream as a file that only goes forwards, bounded as a whole and in each read.

    `tarfile` reads extended headers whole, as long as they say they are, so a hundred bytes of archive could make us
    allocate gigabytes.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise LimitExceeded("a header of the workspace bundle is too large", why=f"over {_MAX_HEADER_BYTES} bytes")
        data = self._stream.read(size)
        self._at += len(data)
        if self._at > _MAX_STREAM_BYTES:
            raise LimitExceeded("the workspace bundle is too large", why=f"over {MAX_UNPACKED_BYTES} bytes unpacked")
        return data

    def seek(self, position: int) -> int:
        if position < self._at:
            raise tarfile.StreamError("seeking backwards")
        while self._at < position and self.read(min(position - self._at, _COPY_BYTES)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at
