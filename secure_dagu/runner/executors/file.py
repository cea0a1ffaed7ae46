"""`file.*`: files on this host, relative to the step's working directory (workflow language, section 4.3)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, LimitExceeded, NotFound
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import file_access as access
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.executors.threads import in_thread
from secure_dagu.runner.files import path_below
from secure_dagu.runner.masking import raw

Answer = dict[str, Any]


class Job(Struct):
    """One execution of a `file.*` or `artifact.*` action; its work is done in a thread."""

    options: Options
    context: StepContext
    stopped: threading.Event
    loop: asyncio.AbstractEventLoop

    def path(self, key: str) -> Path:
        """Return an absolute path of the author's, without `..`."""
        return Path(os.path.normpath(path_below(self.context.cwd, self.options.needed(key))))

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a boolean option."""
        return self.options.boolean(key, default=default)

    def say(self, data: bytes) -> None:
        """Write to stdout from the thread, no faster than it is taken."""
        access.check(self.stopped)
        asyncio.run_coroutine_threadsafe(self._say(data), self.loop).result()

    async def _say(self, data: bytes) -> None:
        if not self.stopped.is_set():
            self.context.stdout(data)


async def in_background(context: StepContext, work: Callable[[Job], Answer | None]) -> Done:
    """Do blocking work in a thread and print what it returns as one line of JSON."""
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    job = Job(options, context, threading.Event(), asyncio.get_running_loop())

    async def run() -> Done:
        answer = await in_thread(lambda: work(job), job.stopped.set)
        if answer is not None:
            context.stdout(raw(formats.compact_json(answer) + "\n"))
        return SUCCESS

    return await unless_stopped(context.stop, run())


async def write(context: StepContext) -> Done:
    """Write a text into a file."""
    return await in_background(context, _write)


async def read(context: StepContext) -> Done:
    """Print a file."""
    return await in_background(context, _read)


async def stat_(context: StepContext) -> Done:
    """Tell what a file is."""
    return await in_background(context, _stat)


async def copy(context: StepContext) -> Done:
    """Copy a file, or with `recursive` a folder."""
    return await in_background(context, _copy)


async def move(context: StepContext) -> Done:
    """Move a file, or with `recursive` a folder."""
    return await in_background(context, _move)


async def delete(context: StepContext) -> Done:
    """Delete a file, or with `recursive` a folder; never `/`."""
    return await in_background(context, _delete)


async def mkdir(context: StepContext) -> Done:
    """Make a folder and those above it."""
    return await in_background(context, _mkdir)


async def list_(context: StepContext) -> Done:
    """List a folder."""
    return await in_background(context, _list)


def _write(job: Job) -> Answer:
    path, data = job.path("path"), content(job)
    dry_run = job.flag("dry_run")
    make = job.flag("create_dirs")
    if dry_run and make and not path.parent.exists():
        is_new = True
    else:
        with access.parent(path, make=make and not dry_run) as (folder, name):
            is_new = access.write(folder, name, data, **how_to_write(job), dry_run=dry_run)
    return {"operation": "write", "path": str(path), "bytes": len(data), "created": is_new}


def content(job: Job) -> bytes:
    """Return the bytes of `content`."""
    value = job.options.any("content")
    return b"" if value is None else raw(formats.as_text(value))


def how_to_write(job: Job) -> dict[str, Any]:
    """Return what `access.write` is told by the options that both kinds of `write` have."""
    return {
        "mode": access.mode_of(job.options.any("mode"), 0o600),
        "overwrite": job.flag("overwrite"),
        "atomic": job.flag("atomic", default=True),
    }


def _read(job: Job) -> Answer | None:
    path = job.path("path")
    with access.parent(path) as (folder, name):
        return read_out(job, folder, name, shown=str(path), follow=True)


def read_out(job: Job, folder: int, name: str, *, shown: str, follow: bool) -> Answer | None:
    """Print a file as it is, or return what `format: json` prints."""
    limit = job.options.integer("max_bytes")
    as_json = job.options.choice("format", ("raw", "json"), "raw") == "json"
    with access.reading(folder, name, follow=follow) as file:
        facts = os.fstat(file.fileno())
        if limit and facts.st_size > limit:  # before anything is printed
            raise LimitExceeded(f"{name} is too large", why=f"max_bytes is {limit} and it has {facts.st_size}")
        if not as_json:
            for piece in access.pieces(file, limit, named=name):
                job.say(piece)
            return None
        data = b"".join(access.pieces(file, min(limit or access.MAX_JSON_BYTES, access.MAX_JSON_BYTES), named=name))
    text = data.decode(errors="replace")
    return {"operation": "read", "path": shown, **access.about(facts), "bytes": len(data), "content": text}


def _stat(job: Job) -> Answer:
    path = job.path("path")
    try:
        facts = path.stat() if job.flag("follow_symlinks") else path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if not job.flag("missing_ok"):
            raise _missing(path) from None
        return {"operation": "stat", "path": str(path), "exists": False}
    return {"operation": "stat", "path": str(path), "exists": True, **access.about(facts)}


def _missing(path: Path) -> NotFound:
    return NotFound(f"{path} does not exist")


def _ends(job: Job, *, renames: bool = False) -> tuple[Path, Path, os.stat_result]:
    """Return source and destination of a copy or move, and what the source is; renaming a folder needs no leave."""
    source, destination = job.path("source"), job.path("destination")
    try:
        facts = source.stat() if job.flag("follow_symlinks") else source.lstat()
    except FileNotFoundError:
        raise _missing(source) from None
    if not renames:
        _check_recursive(job, source, facts)
    if stat.S_ISDIR(facts.st_mode):
        if source.resolve() in (destination.resolve(), *destination.resolve().parents):
            raise DefinitionError(f"{destination} is within {source}")
    elif source == destination:
        raise DefinitionError(f"{source} is source and destination")
    if os.path.lexists(destination) and not job.flag("overwrite"):
        raise access.exists(str(destination))
    if not job.flag("dry_run") and job.flag("create_dirs"):
        destination.parent.mkdir(parents=True, exist_ok=True)
    return source, destination, facts


def _check_recursive(job: Job, path: Path, facts: os.stat_result) -> None:
    if stat.S_ISDIR(facts.st_mode) and not job.flag("recursive"):
        raise DefinitionError(f"{path} is a folder", why="recursive is false", fix="set `recursive: true`")


def _copy(job: Job) -> Answer:
    source, destination, facts = _ends(job)
    dry_run = job.flag("dry_run")
    copying = _Copying(job.stopped, follow=job.flag("follow_symlinks"), overwrite=job.flag("overwrite"), dry=dry_run)
    copying.any(source, destination, facts)
    return {
        "operation": "copy",
        "source": str(source),
        "destination": str(destination),
        "files": copying.files,
        "bytes": copying.bytes,
        "copied": not dry_run,
    }


class _Copying:
    """Copies trees and counts what it copied."""

    def __init__(self, stopped: threading.Event, *, follow: bool, overwrite: bool, dry: bool) -> None:
        self.files = self.bytes = 0
        self._stopped, self._follow, self._overwrite, self._dry = stopped, follow, overwrite, dry
        self._above: list[tuple[int, int]] = []
        """The folders that we are in: a link to one of them has no end."""

    def any(self, source: Path, destination: Path, facts: os.stat_result) -> None:
        """Copy whatever it is."""
        access.check(self._stopped)
        if stat.S_ISDIR(facts.st_mode):
            self._folder(source, destination, facts)
        elif stat.S_ISLNK(facts.st_mode):
            self._link(source, destination)
        else:
            self._file(source, destination)

    def _folder(self, source: Path, destination: Path, facts: os.stat_result) -> None:
        here = (facts.st_dev, facts.st_ino)
        if here in self._above or len(self._above) > access.MAX_DEPTH:
            raise DefinitionError(f"{source} has no end", why="a link leads to a folder above it, or it is too deep")
        self._above.append(here)
        if not self._dry:
            destination.mkdir(mode=0o700, exist_ok=True)
        for name in sorted(os.listdir(source)):
            inner = source / name
            self.any(inner, destination / name, inner.stat() if self._follow else inner.lstat())
        if not self._dry:
            destination.chmod(stat.S_IMODE(facts.st_mode) & 0o777)  # last: it may forbid us to write
        self._above.pop()

    def _link(self, source: Path, destination: Path) -> None:
        self.files += 1
        if self._dry:
            return
        if self._overwrite and destination.is_symlink():
            destination.unlink()
        destination.symlink_to(os.readlink(source))

    def _file(self, source: Path, destination: Path) -> None:
        with access.parent(source) as (folder, name), access.reading(folder, name, follow=self._follow) as file:
            facts = os.fstat(file.fileno())
            self.files += 1
            if self._dry:
                self.bytes += facts.st_size
                return
            mode = stat.S_IMODE(facts.st_mode) & 0o777
            with (
                access.parent(destination) as (target, last),
                access.replacing(target, last, mode=mode, overwrite=self._overwrite) as copied,
            ):
                for piece in access.pieces(file, 0, named=name):
                    access.check(self._stopped)
                    copied.write(piece)
                    self.bytes += len(piece)


def _move(job: Job) -> Answer:
    source, destination, facts = _ends(job, renames=True)
    if not job.flag("dry_run"):
        try:
            os.rename(source, destination)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise DefinitionError(f"{source} cannot be moved to {destination}", why=f"{error.strerror}") from None
            _check_recursive(job, source, facts)
            _Copying(job.stopped, follow=False, overwrite=job.flag("overwrite"), dry=False).any(
                source, destination, facts
            )
            _remove(source, facts)
    moved = not job.flag("dry_run")
    return {"operation": "move", "source": str(source), "destination": str(destination), "moved": moved}


def _delete(job: Job) -> Answer:
    path = job.path("path")
    answer = {"operation": "delete", "path": str(path), "deleted": False}
    try:
        facts = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if not job.flag("missing_ok"):
            raise _missing(path) from None
        return answer
    # The root under another name is the root all the same.
    if path == Path(path.anchor) or os.path.samestat(facts, Path("/").stat()):
        raise DefinitionError("file.delete refuses to delete /")
    _check_recursive(job, path, facts)
    if not job.flag("dry_run"):
        _remove(path, facts)
        answer["deleted"] = True
    return answer


def _remove(path: Path, facts: os.stat_result) -> None:
    if stat.S_ISDIR(facts.st_mode):
        shutil.rmtree(path)  # follows no link, not even one that is planted meanwhile
    else:
        path.unlink()


def _mkdir(job: Job) -> Answer:
    path, mode = job.path("path"), access.mode_of(job.options.any("mode"), 0o750)
    is_there = path.is_dir()
    if not is_there and os.path.lexists(path):
        raise DefinitionError(f"{path} is there and no folder")
    if not is_there and not job.flag("dry_run"):
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # somebody else made it meanwhile
            path.mkdir(mode=0o700)
            path.chmod(mode)
    return {"operation": "mkdir", "path": str(path), "created": not is_there}


def _list(job: Job) -> Answer:
    path = job.path("path")
    try:
        folder = os.open(path, access.FOLDER)
    except FileNotFoundError:
        raise _missing(path) from None
    except NotADirectoryError:
        raise DefinitionError(f"{path} is no folder") from None
    try:
        return {"operation": "list", "path": str(path), **listing(job, folder)}
    finally:
        os.close(folder)


def listing(job: Job, folder: int) -> Answer:
    """Return `files`, how many of the entries are no folders, and `entries`."""
    found = access.entries(
        folder,
        pattern=job.options.text("pattern"),
        recursive=job.flag("recursive"),
        include_dirs=job.flag("include_dirs"),
        stopped=job.stopped,
    )
    return {"files": sum(not entry["isDir"] for entry in found), "entries": found}
