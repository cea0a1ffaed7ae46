"""`archive.create`, `archive.extract` and `archive.list` (workflow language, section 4.6)."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from msgspec import Struct

from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, SecureDaguError
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import archive_formats, unpack
from secure_dagu.runner.executors.archive_formats import BROKEN, PIECE, READ_ONLY, Budget, Entry
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.executors.threads import in_thread
from secure_dagu.runner.files import path_below

MAX_PATTERNS = 1000


async def create(context: StepContext) -> Done:
    """Pack a file or a folder."""
    return await _in_thread(context, _create)


async def extract(context: StepContext) -> Done:
    """Unpack an archive into a folder."""
    return await _in_thread(context, _extract)


async def list_(context: StepContext) -> Done:
    """Print what an archive holds."""
    return await _in_thread(context, _list)


class _Job(Struct):
    """One execution: its options, and what it has to say."""

    options: Options
    cwd: Path
    stopped: threading.Event
    source: Path
    notes: list[str]
    """Lines for stderr."""
    parts: set[Path]
    """What is being written: the archive under its name, and under the one that it has until it is whole."""

    @property
    def password(self) -> str:
        return self.options.text("password")

    def wanted(self) -> Callable[[str], bool]:
        """Return which paths `include` and `exclude` choose."""
        include, exclude = (self._patterns(key) for key in ("include", "exclude"))

        def is_wanted(path: str) -> bool:
            return (include is None or bool(include.match(path))) and not (exclude and exclude.match(path))

        return is_wanted

    def _patterns(self, key: str) -> re.Pattern[str] | None:
        texts = self.options.texts(key)
        if len(texts) > MAX_PATTERNS:
            raise DefinitionError(f"with.{key} has too many patterns", why=f"the limit is {MAX_PATTERNS}")
        return re.compile("|".join(f"(?:{_glob(text)})" for text in texts), re.S) if texts else None

    def entries(self, path: Path, form: str) -> Any:
        budget = Budget(path.stat().st_size, self.stopped.is_set)
        return archive_formats.reading(path, form, self.password, budget)

    def forgive(self, error: Exception, path: str) -> None:
        """Go on after an entry that failed, if the step says so; raise the error if not."""
        if not self.options.boolean("continue_on_error"):
            raise error
        self.notes.append(f"{path}: {error}")


def _glob(pattern: str) -> str:
    """Return a glob as a regular expression: `*` and `?` within a name, `**` across; a bare name matches anywhere."""
    text = pattern.strip("/")
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", text)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    made = "".join(
        words.get(part) or (part.replace("[!", "[^") if part.startswith("[") else re.escape(part)) for part in parts
    )
    return f"{'(?:.*/)?' if '/' not in text else ''}{made}(?:/.*)?\\Z"


async def _in_thread(context: StepContext, work: Callable[[_Job], dict[str, Any]]) -> Done:
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    job = _Job(options, context.cwd, threading.Event(), path_below(context.cwd, options.needed("source")), [], set())

    async def run() -> Done:
        started = time.monotonic()
        try:
            said = await in_thread(lambda: _guarded(work, job), job.stopped.set)
        finally:
            if job.notes:
                (context.stderr or context.stdout)("".join(f"{line}\n" for line in job.notes).encode(errors="replace"))
        facts = list(said.items())
        facts.insert(list(said).index("verifyPerformed"), ("duration", _duration(time.monotonic() - started)))
        said = dict(facts)
        context.stdout((json.dumps(said, ensure_ascii=False, indent=2) + "\n").encode(errors="replace"))
        return SUCCESS

    return await unless_stopped(context.stop, run())


def _guarded(work: Callable[[_Job], dict[str, Any]], job: _Job) -> dict[str, Any]:
    """Run the work; what is wrong with an archive becomes one sentence."""
    try:
        return work(job)
    except (SecureDaguError, InterruptedError):
        raise
    except OSError as error:
        raise DefinitionError("the archive cannot be used", why=error.strerror or str(error)) from None
    except Exception as error:  # the formats' libraries have each their own family
        raise DefinitionError(
            "the archive is broken or needs a password", why=f"{type(error).__name__}: {error}"
        ) from None


# ----------------------------------------------------------------------------------------------------------- reading


def _list(job: _Job) -> dict[str, Any]:
    path = _existing(job.source)
    form = archive_formats.format_of(path, job.options.text("format"))
    verify = job.options.boolean("verify_integrity")
    is_wanted = job.wanted()
    files: list[dict[str, Any]] = []
    total = 0
    with job.entries(path, form) as entries:
        for entry in entries:
            size = entry.size
            if entry.kind == "file" and (verify or size < 0):
                size = _drained(entry)
            if not is_wanted(entry.path):
                continue
            total += size
            files.append(
                {
                    "path": entry.path,
                    "size": size,
                    "mode": _mode(entry),
                    "modTime": _rfc3339(entry.modified_at),
                    "isDir": entry.kind == "dir",
                }
            )
    return {
        "operation": "list",
        "source": str(path),
        "totalFiles": len(files),
        "totalBytes": total,
        "verifyPerformed": verify,
        "files": files,
    }


def _extract(job: _Job) -> dict[str, Any]:
    path = _existing(job.source)
    options = job.options
    form = archive_formats.format_of(path, options.text("format"))
    target = path_below(job.cwd, options.text("destination") or ".")
    verify = options.boolean("verify_integrity")
    if verify:  # first, so that nothing of a broken archive is unpacked
        with job.entries(path, form) as entries:
            for entry in entries:
                if entry.kind == "file":
                    _drained(entry)
    is_dry, is_wanted = options.boolean("dry_run"), job.wanted()
    count = total = 0
    if not is_dry:
        target.mkdir(parents=True, exist_ok=True)
    with job.entries(path, form) as entries, closing(_folder(target, options, is_dry=is_dry)) as folder:
        for entry in entries:
            try:
                parts = _placed(entry.path, options)
                if not parts or not is_wanted(entry.path):
                    continue
                source = _checked(entry, parts, options)
                total += folder.write(entry, parts, source)
            except (SecureDaguError, *BROKEN) as error:
                if isinstance(error, InterruptedError):
                    raise
                job.forgive(error, entry.path)
                continue
            count += entry.kind != "dir"
            if options.boolean("verbose"):
                job.notes.append(entry.path)
    return {
        "operation": "extract",
        "source": str(path),
        "destination": str(target),
        "filesExtracted": count,
        "bytesExtracted": total,
        "verifyPerformed": verify,
    }


class _Target(Protocol):
    def write(self, entry: Entry, parts: tuple[str, ...], source: tuple[str, ...]) -> int: ...

    def close(self) -> None: ...


class _Nowhere:
    """Where a dry run unpacks to."""

    def write(self, entry: Entry, parts: tuple[str, ...], source: tuple[str, ...]) -> int:
        return max(entry.size, 0) if entry.kind == "file" else 0

    def close(self) -> None:
        pass


def _folder(target: Path, options: Options, *, is_dry: bool) -> _Target:
    return _Nowhere() if is_dry else unpack.Folder(target, overwrite=options.boolean("overwrite"))


def _placed(path: str, options: Options) -> tuple[str, ...]:
    """Return where an entry goes below the destination; empty: nowhere, its path has too few components."""
    parts = unpack.parts_of(path)[options.integer("strip_components", maximum=1000) :]
    return parts if options.boolean("preserve_paths", default=True) else parts[-1:]


def _checked(entry: Entry, parts: tuple[str, ...], options: Options) -> tuple[str, ...]:
    """Check the target of a link; return the parts of the file that a hard link names."""
    if entry.kind == "other":
        raise DefinitionError(
            f"the archive's entry {entry.path[:200]!r} is refused", why="it is no file, folder or link"
        )
    if entry.kind == "symlink":
        unpack.check_link(entry, parts)
    if entry.kind != "hardlink":
        return ()
    source = _placed(entry.target, options)
    if not source:
        raise DefinitionError(f"the archive's link {entry.path[:200]!r} is refused", why="it leads out")
    return source


def _drained(entry: Entry) -> int:
    """Read the content of an entry, which checks it; return its bytes."""
    total = 0
    with entry.open() as content:
        while piece := content.read(PIECE):
            total += len(piece)
    return total


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DefinitionError("the archive cannot be read", why="there is no such file")
    return path.resolve()


# ----------------------------------------------------------------------------------------------------------- writing


def _create(job: _Job) -> dict[str, Any]:
    options, source = job.options, job.source
    target = path_below(job.cwd, options.needed("destination"))
    form = archive_formats.format_of(target, options.text("format"))
    if form in READ_ONLY:
        raise DefinitionError(f"{form} archives can only be read", fix="choose another format")
    if job.password:
        raise DefinitionError("an archive with a password cannot be made", why="`password` is for reading")
    compression = "zip" if form == "zip" else form.removeprefix("tar.").removeprefix("tar")
    level = options.integer("compression_level", -1, minimum=-1, maximum=22)
    archive_formats.check_level(compression, level)
    if not source.exists():
        raise DefinitionError("the source cannot be read", why="there is no such file or folder")
    if target.exists() and not options.boolean("overwrite"):
        raise DefinitionError("the destination exists already", why="`overwrite` is false")
    if not form.startswith("tar") and form != "zip" and not source.is_file():
        raise DefinitionError(f"{form} holds one file", why="the source is a folder", fix=f"use tar.{form}")
    found = _found(job)
    job.parts.add(target.absolute())
    verify = options.boolean("verify_integrity")
    count = total = 0
    if options.boolean("dry_run"):
        for path, _ in found:
            info = path.lstat()
            count += not stat.S_ISDIR(info.st_mode)
            total += info.st_size if stat.S_ISREG(info.st_mode) else 0
        verify = False
    else:
        count, total = _written(job, target, form, found, level)
        if verify:
            with job.entries(target, form) as entries:
                for entry in entries:
                    if entry.kind == "file":
                        _drained(entry)
    return {
        "operation": "create",
        "source": str(source.absolute()),
        "destination": str(target.absolute()),
        "filesAdded": count,
        "bytesAdded": total,
        "verifyPerformed": verify,
    }


def _found(job: _Job) -> Iterator[tuple[Path, str]]:
    """Yield what goes into the archive with its path there, in the order of names; never the archive itself."""
    source, is_wanted = job.source, job.wanted()
    keeps_paths = job.options.boolean("preserve_paths", default=True)
    follow = job.options.boolean("follow_symlinks")
    if not source.is_dir():
        yield source, source.name
        return
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path, prefix: str) -> Iterator[tuple[Path, str]]:
        info = folder.stat()
        if (info.st_dev, info.st_ino) in seen:  # a link to a folder that it is in
            return
        seen.add((info.st_dev, info.st_ino))
        for name in sorted(os.listdir(folder)):
            if job.stopped.is_set():
                raise InterruptedError
            path, inside = folder / name, f"{prefix}{name}"
            is_folder = path.is_dir() and (follow or not path.is_symlink())
            if path.absolute() in job.parts or not (is_folder or is_wanted(inside)):
                continue
            if not is_folder:
                yield path, inside if keeps_paths else name
            elif not job.options.texts("exclude") or is_wanted(inside) or job.options.texts("include"):
                if keeps_paths and is_wanted(inside):
                    yield path, inside
                yield from walk(path, f"{inside}/")

    yield from walk(source, "")


def _written(job: _Job, target: Path, form: str, found: Iterator[tuple[Path, str]], level: int) -> tuple[int, int]:
    """Write the archive beside its place and put it there when it is whole; return files and bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    job.parts.add(Path(part).absolute())
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)
            if form == "zip":
                done = _zip(job, file, found, level)
            else:
                compression = form.removeprefix("tar.").removeprefix("tar")
                with archive_formats.compressed(file, compression, level) as stream:
                    done = _tar(job, stream, found) if form.startswith("tar") else _copied(job, job.source, stream)
        Path(part).replace(target)
        return done
    finally:
        Path(part).unlink(missing_ok=True)


def _copied(job: _Job, path: Path, stream: IO[bytes]) -> tuple[int, int]:
    with _opened(path) as content:
        shutil.copyfileobj(_Stoppable(content, job), stream, PIECE)
        return 1, content.tell()


def _tar(job: _Job, stream: IO[bytes], found: Iterator[tuple[Path, str]]) -> tuple[int, int]:
    count = total = 0
    follow = job.options.boolean("follow_symlinks")
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, dereference=follow) as archive:
        for path, name in found:
            try:
                member = archive.gettarinfo(path, arcname=name)
                if member is None or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                    job.notes.append(f"{name}: no file, folder or link: left out")
                    continue
                if member.islnk():  # the first of its names may not be in the archive
                    member.type, member.size = tarfile.REGTYPE, path.stat().st_size
                member.uname = member.gname = ""
                if member.isreg():
                    with _opened(path) as content:
                        archive.addfile(member, _Stoppable(content, job))
                else:
                    archive.addfile(member)
            except FileNotFoundError as error:
                job.forgive(error, name)
                continue
            count, total = _noted(job, name, member.isdir(), member.size, count, total)
    return count, total


def _zip(job: _Job, file: IO[bytes], found: Iterator[tuple[Path, str]], level: int) -> tuple[int, int]:
    count = total = 0
    follow = job.options.boolean("follow_symlinks")
    method = zipfile.ZIP_STORED if level == 0 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(
        file, "w", method, compresslevel=None if level < 0 else level, strict_timestamps=False
    ) as archive:
        for path, name in found:
            try:
                info = path.stat() if follow else path.lstat()
                if stat.S_ISLNK(info.st_mode):
                    member = zipfile.ZipInfo(name)
                    member.external_attr = (stat.S_IFLNK | 0o777) << 16
                    archive.writestr(member, os.readlink(path))
                elif stat.S_ISDIR(info.st_mode):
                    archive.write(path, name)
                elif stat.S_ISREG(info.st_mode):
                    member = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
                    member.compress_type = method
                    with _opened(path) as content, archive.open(member, "w") as into:
                        shutil.copyfileobj(_Stoppable(content, job), into, PIECE)
                else:
                    job.notes.append(f"{name}: no file, folder or link: left out")
                    continue
            except FileNotFoundError as error:
                job.forgive(error, name)
                continue
            is_dir = stat.S_ISDIR(info.st_mode)
            count, total = _noted(job, name, is_dir, info.st_size if stat.S_ISREG(info.st_mode) else 0, count, total)
    return count, total


def _noted(job: _Job, name: str, is_dir: bool, size: int, count: int, total: int) -> tuple[int, int]:
    if job.options.boolean("verbose"):
        job.notes.append(name)
    return count + (not is_dir), total + (0 if is_dir else size)


def _opened(path: Path) -> IO[bytes]:
    """Open a file to be packed; a pipe that took its place must not make us wait."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(f"{path.name} is no plain file")
    return os.fdopen(handle, "rb")


class _Stoppable:
    """A file whose reading ends when the step is stopped."""

    def __init__(self, file: IO[bytes], job: _Job) -> None:
        self._file = file
        self._stopped = job.stopped

    def read(self, size: int = -1) -> bytes:
        if self._stopped.is_set():
            raise InterruptedError
        return self._file.read(size)


# ----------------------------------------------------------------------------------------------------------- wording


def _mode(entry: Entry) -> str:
    kinds = {"dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}
    return stat.filemode(kinds.get(entry.kind, stat.S_IFREG) | stat.S_IMODE(entry.mode))


def _rfc3339(moment: datetime | None) -> str:
    return (moment or datetime(1970, 1, 1, tzinfo=UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.3f}ms" if seconds < 1 else f"{seconds:.3f}s"
