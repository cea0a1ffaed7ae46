"""The private folders of an attempt: made, filled from a bundle, removed.

A run's ids come from outside, so they are checked before any path is made of them. An archive comes from outside too:
it is read as a stream, every number in it is counted against a limit before anything is kept, and only plain files and
folders come out. What steps leave behind is not ours either: it is removed by descriptors, so that no link, no locked
folder and no depth leads the removal elsewhere or stops it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from secure_dagu.dispatch.model import Task
from secure_dagu.errors import ConfigError, Conflict, InvalidRequest, LimitExceeded, Unavailable
from secure_dagu.run.model import AttemptId
from secure_dagu.runner import tar
from secure_dagu.runner.bundle import MAX_ENTRIES, MAX_PACKED_BYTES, MAX_UNPACKED_BYTES

if TYPE_CHECKING:
    from secure_dagu.runner.api import RunFolders

log = structlog.get_logger()

_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,40}\Z")
_ID = re.compile(r"[-A-Za-z0-9_]{1,64}\Z")
_MAX_DEPTH = 64
_MAX_NAME_BYTES = 255
_MAX_STREAM_BYTES = MAX_UNPACKED_BYTES + MAX_ENTRIES * 2048 + 2**20
"""Content, and headers and padding of every entry."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workspaces:
    """Make the folders of attempts below one base, which is this worker's own."""

    def __init__(self, base: Path, worker_id: str) -> None:
        """Take the base; it is made (0700) when first needed, and looked at now, so that a bad one stops the start.

        Raises:
            ConfigError: the base is a link or no folder, or not this user's alone.
        """
        _check_base(base)
        self._base = base
        self._worker = worker_id

    @asynccontextmanager
    async def __call__(self, task: Task, attempt_id: AttemptId) -> AsyncIterator[RunFolders]:
        """Make the folders, mode 0700; remove them, and nothing else, at the end.

        That of artifacts is made by the runner for a run that has any: most have none, and a folder costs as much as a
        process.

        Raises:
            InvalidRequest: a name or id is not one, such as one that climbs.
            ConfigError: the base has become one that cannot be used.
            Unavailable: the disk refuses.
        """
        check_ids(task, attempt_id)
        with self._writing():
            _check_base(self._base)
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
            # 0700 and a name that nobody can foresee; what stands before it is for the operator who looks.
            name = f"{task.run.name.replace('.', '_')}_{task.run.run_id}_"
            top = Path(tempfile.mkdtemp(prefix=name, dir=self._base.absolute()))
        try:
            with self._writing():
                folders = _folders(top, task)
            yield folders
        finally:
            await asyncio.to_thread(_remove, top)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"worker {self._worker!r} cannot make a folder for a run",
                why=os.strerror(error.errno or 0),
                fix="look at the disk of paths.dag_run_work_dir: space, inodes, rights",
            ) from error


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
    from secure_dagu.runner.api import RunFolders  # with the first task, and the language with it

    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%SZ")
    folders = RunFolders(
        logs=top,
        work=top / "work",
        artifacts=top / "artifacts" / f"dag-run_{stamp}_{task.run.run_id}",
    )
    folders.work.mkdir(mode=0o700)
    return folders


def _check_base(base: Path) -> None:
    """Refuse a base in which somebody else could put something in our way; a missing one is made later.

    Raises:
        ConfigError: it is a link or no folder, belongs to another user, or everybody may write into it.
    """
    try:
        found = os.lstat(base)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _bad_base(base, os.strerror(error.errno or 0)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _bad_base(base, "it is a link or no folder")
    if found.st_uid != os.geteuid():
        raise _bad_base(base, f"it belongs to the user {found.st_uid}, not to this worker's")
    if found.st_mode & stat.S_IWOTH:
        raise _bad_base(base, "everybody may write into it")


def _bad_base(base: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the folder of runs {str(base)!r} cannot be used",
        why=why,
        fix="let paths.dag_run_work_dir name a folder of this worker's user with mode 0700, or one that does not exist",
    )


def _remove(top: Path) -> None:
    """Remove a folder that we made, with everything in it; what cannot be removed is logged and stays.

    Links are removed, never followed, and what is mounted below is left alone.
    """
    try:
        base = os.open(top.parent, _FOLDER)
        try:
            at = _unlocked(top.name, base)
            try:
                while _sweep(at, top=at):
                    pass
            finally:
                os.close(at)
            os.rmdir(top.name, dir_fd=base)
        finally:
            os.close(base)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("workspace.left_behind", folder=str(top), why=os.strerror(error.errno or 0))


def _sweep(at: int, *, top: int) -> bool:
    """Remove what lies in the folder `at`; False if nothing could be.

    A folder in `top` is emptied there, a deeper one is first moved to `top`, so neither the depth of the tree nor the
    length of its paths matters: a loop of `mkdir x; cd x` would overflow a recursion.
    """
    moved = False
    with os.scandir(at) as found:
        for item in found:
            with suppress(OSError):  # a step may leave what we have no right to; the folder around it stays then
                if not item.is_dir(follow_symlinks=False):
                    os.unlink(item.name, dir_fd=at)
                    moved = True
                    continue
                below = _unlocked(item.name, at)
                try:
                    moved |= at == top and _sweep(below, top=top)
                finally:
                    os.close(below)
                if at == top:
                    os.rmdir(item.name, dir_fd=at)
                else:
                    os.rename(item.name, secrets.token_hex(8), src_dir_fd=at, dst_dir_fd=top)
                moved = True
    return moved


def _unlocked(name: str, at: int) -> int:
    """Open a folder below the folder `at`, after giving ourselves the right to; fails on a link and on a mount."""
    # A step may have taken away our own right. A path-only descriptor needs none, and names the folder itself: nobody
    # can put a link in its place between the look and the change.
    path_only = os.open(name, os.O_PATH | _FOLDER, dir_fd=at)
    try:
        if os.fstat(path_only).st_dev != os.fstat(at).st_dev:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        os.chmod(f"/proc/self/fd/{path_only}", 0o700)
        return os.open(".", _FOLDER, dir_fd=path_only)
    finally:
        os.close(path_only)


async def unpack_bundle(archive: Path, target: Path) -> None:
    """Unpack a workspace bundle into the new folder `target` (protocol, section 7).

    It is unpacked beside `target` and renamed at the end, so `target` is there whole or not at all. Files keep their
    owner's permission bits, folders are 0700. Whether it is the archive that was promised, its fetcher has checked.

    Raises:
        InvalidRequest: it is no gzip'ed PAX tar, or an entry climbs, repeats another, or is no plain file or folder.
        LimitExceeded: more than 64 MiB packed, 256 MiB unpacked, 8192 entries or 8192 folders.
        Conflict: `target` exists.
        Unavailable: the disk refuses.
    """
    await asyncio.to_thread(_unpack, archive, target)


def _unpack(archive: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise _exists(target)
    try:
        beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
        try:
            with archive.open("rb") as file:
                _check_size(file)
                _extract(tar.Inflated(file, limit_bytes=_MAX_STREAM_BYTES), beside)
            os.rename(beside, target)
        except BaseException:
            _remove(beside)
            raise
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # it came while we unpacked
            raise _exists(target) from error
        raise Unavailable(
            "the workspace bundle cannot be unpacked",
            why=os.strerror(error.errno or 0),
            fix="look at the disk of this worker's folders: space, inodes, rights",
        ) from error


def _check_size(file: BufferedReader) -> None:
    if os.fstat(file.fileno()).st_size > MAX_PACKED_BYTES:
        raise _too_large(f"over {MAX_PACKED_BYTES} bytes packed")


def _extract(stream: tar.Inflated, target: Path) -> None:
    """Write every entry below `target`, by descriptors: a folder that is removed meanwhile is not made again."""
    count = content = 0
    folders = _Folders(target)
    for entry in tar.entries(stream):
        count += 1
        content += entry.size_bytes
        if count > MAX_ENTRIES:
            raise LimitExceeded(
                "the workspace bundle has too many entries", why=f"the limit is {MAX_ENTRIES}", fix="pack fewer files"
            )
        if content > MAX_UNPACKED_BYTES:
            raise _too_large(f"over {MAX_UNPACKED_BYTES} bytes unpacked")
        *above, name = _parts(entry)
        try:
            if entry.is_folder:
                os.close(folders.open((*above, name)))
                continue
            at = folders.open(above)
            try:
                # Nobody but the owner has a business in this folder, whatever the archive says.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                file = os.open(name, flags, entry.mode & 0o700, dir_fd=at)
            finally:
                os.close(at)
        except (FileExistsError, NotADirectoryError):
            raise tar.refused(entry.name, "the name is there twice") from None
        with os.fdopen(file, "wb", buffering=0) as out:
            left = entry.size_bytes
            while left:
                data = stream.some(left)
                left -= len(data)
                while data:
                    data = data[out.write(data) :]


def _parts(entry: tar.Entry) -> list[str]:
    """Return the components of an entry's name, all of them plain.

    Raises:
        InvalidRequest: a name that is absolute, climbs, is not normalised, too long or too deep.
    """
    parts = (entry.name.removesuffix("/") if entry.is_folder else entry.name).split("/")
    if len(parts) > _MAX_DEPTH or any(
        part in ("", ".", "..", ".git") or "\0" in part or len(part.encode()) > _MAX_NAME_BYTES for part in parts
    ):
        raise tar.refused(entry.name, "the name is not a plain relative path")
    return parts


class _Folders:
    """Folders below one root, made as they are needed and counted: a name may bring 63 of them without an entry."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made = 0

    def open(self, parts: Sequence[str]) -> int:
        """Return a descriptor of the folder.

        Raises:
            NotADirectoryError: a file is in the way.
            LimitExceeded: too many folders.
        """
        at = os.open(self._root, _FOLDER)
        for part in parts:
            try:
                self._make(part, at)
                below = os.open(part, _FOLDER, dir_fd=at)
            finally:
                os.close(at)
            at = below
        return at

    def _make(self, name: str, at: int) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            return
        self._made += 1
        if self._made > MAX_ENTRIES:
            raise LimitExceeded(
                "the workspace bundle has too many entries",
                why=f"the limit is {MAX_ENTRIES} folders",
                fix="pack fewer folders",
            )


def _too_large(why: str) -> LimitExceeded:
    return LimitExceeded("the workspace bundle is too large", why=why, fix="pack less, or fetch large files in a step")


def _exists(target: Path) -> Conflict:
    return Conflict(f"the bundle's folder {target.name!r} exists", why="it must be new", fix="unpack into a new folder")
