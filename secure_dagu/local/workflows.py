"""The DAGs directory as a whole (`dispatch.operating.Workflows`): read again only where it changed, written atomically.

Files are told apart by what the file system says of them. Reading and loading happen on a thread, for a directory of
thousands must not stop the event loop. Names are stems: at most 40 letters, digits, `_`, `-` and `.`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Definition
from secure_dagu.dag.schedule import Upcoming
from secure_dagu.dag.validate import validate
from secure_dagu.dispatch.operating import Workflow, WorkflowFilter
from secure_dagu.errors import AlreadyExists, Conflict, DefinitionError, InvalidRequest, NotFound, Unavailable
from secure_dagu.local import definitions
from secure_dagu.runner.files import schema_reader
from secure_dagu.store import whole

NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,40}\Z")
MAX_FILES = 20_000
MAX_TEXT = 1 << 20
"""Bytes of a text that is written here."""


class _Read(Struct, frozen=True, kw_only=True):
    """One file as it was read."""

    sign: tuple[int, int, int]
    base: str
    """SHA-256 of the base configuration that it was loaded under."""
    workflow: Workflow


class WorkflowFolder:
    """The definitions of this host."""

    def __init__(
        self,
        dags_dir: Path,
        suspend_dir: Path,
        *,
        base_config: Callable[[], str],
        zone: Callable[[], tzinfo],
        recursive: bool = False,
    ) -> None:
        """Take where they are.

        Args:
            dags_dir, suspend_dir: the definitions, and the flags of suspended ones.
            base_config: the text of `base.yaml` now.
            zone: of schedules that name none.
            recursive: directories below count too, but for hidden and linked ones.
        """
        self._dags, self._suspend = dags_dir, suspend_dir
        self._base_config, self._zone, self._recursive = base_config, zone, recursive
        self._known: dict[Path, _Read] = {}
        self._upcoming = Upcoming()
        self._problems: tuple[str, ...] = ()
        self._changing = asyncio.Lock()

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def all(self, wanted: WorkflowFilter | None = None) -> Sequence[Workflow]:
        """Return definitions by name (`Workflows.all`)."""
        found = await asyncio.to_thread(self._look)
        return found if wanted is None else [item for item in found if _matches(item, wanted)]

    async def problems(self) -> Sequence[str]:
        """Return what is wrong with the directory as a whole, as of the last look."""
        return self._problems

    async def get(self, file: str) -> Workflow:
        """Return one (`Workflows.get`)."""
        return await asyncio.to_thread(self._one, file)

    async def labels(self) -> Sequence[str]:
        """Return every label of every definition."""
        found = await self.all()
        return sorted({label for item in found if item.definition for label in item.definition.main.labels})

    async def validate(self, text: str, *, name: str = "") -> tuple[Definition | None, Sequence[str]]:
        """Return what a text loads as, and what is wrong with it (`Workflows.validate`)."""
        return await asyncio.to_thread(self._validated, text, name)

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, file: str, text: str) -> Workflow:
        """Write a new one (`Workflows.create`)."""
        async with self._changing:
            self._check(_checked(file), text)
            if await asyncio.to_thread(self._path, file) is not None:
                raise AlreadyExists(f"there is a DAG {file!r}", fix="choose another name")
            path = self._dags / f"{file}.yaml"
            await asyncio.to_thread(_write, path, text, replaces=False)
        return await self.get(file)

    async def write(self, file: str, text: str, *, seen: str | None = None, strict: bool = True) -> Workflow:
        """Replace a text (`Workflows.write`)."""
        async with self._changing:
            before = await self.get(file)
            if seen is not None and seen != sha256(before.text.encode()).hexdigest():
                raise Conflict(f"the DAG {file!r} was changed meanwhile", fix="load it again, and change that")
            if strict:
                self._check(file, text)
            await asyncio.to_thread(_write, self._existing(file), text, replaces=True)
        return await self.get(file)

    async def rename(self, file: str, to: str) -> None:
        """Give it another name (`Workflows.rename`)."""
        async with self._changing:
            path, target = self._existing(file), _checked(to)
            if self._path(target) is not None:
                raise AlreadyExists(f"there is a DAG {to!r}", fix="choose another name")
            after = path.with_name(f"{target}{path.suffix}")
            await asyncio.to_thread(_move, path, after)
            if self._is_suspended(file):
                await asyncio.to_thread(_flag, self._flag(to), is_set=True)
                await asyncio.to_thread(_flag, self._flag(file), is_set=False)

    async def delete(self, file: str) -> None:
        """Remove it."""
        async with self._changing:
            path = self._existing(file)
            try:
                await asyncio.to_thread(os.unlink, path)
            except OSError as error:
                raise _refused(path, error) from error
            await asyncio.to_thread(_flag, self._flag(file), is_set=False)

    async def suspend(self, file: str, *, suspended: bool) -> None:
        """Set or clear its suspend flag."""
        self._existing(file)
        await asyncio.to_thread(_flag, self._flag(file), is_set=suspended)

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> list[Workflow]:
        paths = self._paths()
        base = self._base_config()
        digest = sha256(base.encode()).hexdigest()
        now, zone = datetime.now(UTC), self._zone()
        found = [item for path in paths if (item := self._read(path, base, digest)) is not None]
        self._known = {path: self._known[path] for path in paths if path in self._known}
        self._problems = tuple(_twice(found))
        doubled = {problem.partition(":")[0] for problem in self._problems}
        shown = [item for item in found if item.file not in doubled and item.name not in doubled]
        flags = _listed(self._suspend)
        whole = (self._now(item, now, zone, suspended=f"{item.file}.suspend" in flags) for item in shown)
        return sorted(whole, key=lambda item: (item.name, item.file))

    def _one(self, file: str) -> Workflow:
        base = self._base_config()
        found = self._read(self._existing(file), base, sha256(base.encode()).hexdigest())
        if found is None:
            raise _missing(file)
        return self._now(found, datetime.now(UTC), self._zone(), suspended=self._is_suspended(file))

    def _paths(self) -> list[Path]:
        if not self._recursive:
            return definitions.files(self._dags)[:MAX_FILES]
        found: list[Path] = []
        for folder, names, _ in os.walk(self._dags):  # links to directories are not followed
            names[:] = sorted(name for name in names if not name.startswith(".") and not _is_root(folder, name, self))
            found += definitions.files(Path(folder))
        return found[:MAX_FILES]

    def _path(self, file: str) -> Path | None:
        """Return the file of a name; None when there is none. Nothing outside the directory is ever returned."""
        if not NAME.match(file):
            return None
        for suffix in (".yaml", ".yml"):
            path = self._dags / f"{file}{suffix}"
            if path.is_file() and not path.is_symlink():
                return path
        if self._recursive:
            return next((path for path in self._paths() if definitions.stem(path) == file), None)
        return None

    def _existing(self, file: str) -> Path:
        path = self._path(file)
        if path is None:
            raise _missing(file)
        return path

    def _read(self, path: Path, base: str, digest: str) -> Workflow | None:
        """Return a file as it is now; None when it is gone, or a link."""
        try:
            stat = os.stat(path, follow_symlinks=False)
        except OSError:
            return None
        if not NAME.match(definitions.stem(path)) or not S_ISREG(stat.st_mode):
            return None
        sign = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._known.get(path)
        if known is not None and known.sign == sign and known.base == digest:
            return known.workflow
        try:
            text = definitions.read(path)
        except DefinitionError as error:
            found = Workflow(
                file=definitions.stem(path), name=definitions.stem(path), text="", definition=None, errors=(str(error),)
            )
        else:
            found = _loaded(path, text, base)
        found = replace(found, modified_at=datetime.fromtimestamp(stat.st_mtime, UTC))
        self._known[path] = _Read(sign=sign, base=digest, workflow=found)
        return found

    def _now(self, item: Workflow, now: datetime, zone: tzinfo, *, suspended: bool) -> Workflow:
        """Return it with what changes without the file: its flag, and when it runs next."""
        dag = item.definition.main if item.definition is not None else None
        is_scheduled = dag is not None and dag.schedule and not suspended
        at = self._upcoming.next_start(dag.schedule, now, zone) if dag is not None and is_scheduled else None
        return replace(item, suspended=suspended, next_run_at=at)

    def _flag(self, file: str) -> Path:
        return self._suspend / f"{file}.suspend"

    def _is_suspended(self, file: str) -> bool:
        return os.path.exists(self._flag(file))

    def _validated(self, text: str, name: str) -> tuple[Definition | None, Sequence[str]]:
        base, file = self._base_config(), f"{name or 'dag'}.yaml"
        reader = schema_reader(self._dags, self._dags)
        found = validate(text, file=file, base_config=base, read_schema=reader)
        if found.errors:
            return None, found.errors
        return load_definition(text, file=file, base_config=base, read_schema=reader), ()

    def _check(self, file: str, text: str) -> None:
        """Refuse a text that does not validate.

        Raises:
            DefinitionError: with every problem. InvalidRequest: it is too large.
        """
        if len(text.encode()) > MAX_TEXT:
            raise InvalidRequest(f"a definition that is written here has at most {MAX_TEXT} bytes")
        _, errors = self._validated(text, file)
        if errors:
            raise DefinitionError(f"the DAG {file!r} does not load", why="\n".join(errors))


def _loaded(path: Path, text: str, base: str) -> Workflow:
    stem = definitions.stem(path)
    try:
        reader = schema_reader(path.parent, path.parent)
        found = load_definition(text, file=str(path), base_config=base, read_schema=reader)
    except DefinitionError as error:
        lines = tuple((error.why or str(error)).replace(f"{path}:", f"{path.name}:").splitlines())
        return Workflow(file=stem, name=stem, text=text, definition=None, errors=lines)
    return Workflow(file=stem, name=found.main.name or stem, text=text, definition=found)


def _is_root(folder: str, name: str, of: Any) -> bool:
    """Tell whether a directory is the root `workspaces/`, which holds no DAGs of this directory."""
    return name == "workspaces" and Path(folder) == of._dags


def _twice(found: Sequence[Workflow]) -> list[str]:
    """Say which names stand for two files; all of these are left out, for nobody could tell which one runs."""
    files, names = Counter(item.file for item in found), Counter(item.name for item in found)
    told = [f"{file}: {count} files have this name; none of them is used" for file, count in files.items() if count > 1]
    return told + [
        f"{name}: {count} DAGs have this name; none of them is used"
        for name, count in names.items()
        if count > 1 and files.get(name, 0) < 2
    ]


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _matches(item: Workflow, wanted: WorkflowFilter) -> bool:
    if wanted.name_part and wanted.name_part.lower() not in item.name.lower():
        return False
    dag = item.definition.main if item.definition is not None else None
    if wanted.active_only and (dag is None or not dag.schedule or item.suspended):
        return False
    labels = {label.lower() for label in (dag.labels if dag is not None else ())}
    return all(_has(labels, word.strip().lower()) for word in wanted.labels)


def _has(labels: set[str], wanted: str) -> bool:
    if wanted.startswith("!"):
        return not _has(labels, wanted[1:])
    if "=" in wanted:
        return any(fnmatchcase(label, wanted) for label in labels)
    return any(fnmatchcase(label.partition("=")[0], wanted) for label in labels)


def _checked(file: str) -> str:
    if not NAME.match(file):
        raise InvalidRequest(
            f"{file[:60]!r} is no name of a DAG file", fix="use at most 40 letters, digits, `_`, `-` and `.`"
        )
    return file


def _missing(file: str) -> NotFound:
    return NotFound(f"there is no DAG {file[:60]!r}")


def _write(path: Path, text: str, *, replaces: bool) -> None:
    """Write a file whole: a reader finds the old one or the new one, and it is on disk when this returns."""
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            with contextlib.suppress(OSError):
                os.chmod(beside, path.stat().st_mode & 0o777)
            os.replace(beside, path)
        else:
            os.link(beside, path)  # fails where somebody was faster
            os.unlink(beside)
        whole.sync(path.parent)
    except FileExistsError as error:
        raise AlreadyExists(f"there is a DAG {definitions.stem(path)!r}", fix="choose another name") from error
    except OSError as error:
        raise _refused(path, error) from error


def _move(path: Path, after: Path) -> None:
    try:
        os.link(path, after, follow_symlinks=False)
        os.unlink(path)
        whole.sync(path.parent)
    except FileExistsError as error:
        raise AlreadyExists(f"there is a DAG {definitions.stem(after)!r}", fix="choose another name") from error
    except OSError as error:
        raise _refused(path, error) from error


def _flag(path: Path, *, is_set: bool) -> None:
    try:
        if is_set:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o640))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"{path.name} cannot be written", why=f"{path.parent}: {os.strerror(error.errno or 0)}",
        fix="look at the disk and the rights of paths.dags_dir",
    )  # fmt: skip
