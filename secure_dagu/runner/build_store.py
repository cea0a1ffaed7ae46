"""What build DAGs keep on this host: manifests, locks and journals, in one folder (workflow language, section 3.17).

A file that was made is put in its place like this: a journal says what is about to happen, the staged file replaces the
final one, the manifest is written, the journal is removed. Each of these acts is atomic and on disk before the next one
begins. Whoever comes after a crash finds the journal and carries on from where it stopped; the file is the old one or
the new one, whole, at every moment.

Locks are `flock`s on files of this folder, which the kernel releases with the process that held them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from secure_dagu.dag import recipes
from secure_dagu.dag.recipes import Manifest
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.files import read_bounded

MAX_RECORD_BYTES = 16 * 2**20
CHUNK_BYTES = 2**20
WAIT_S = 0.02
"""How soon a held lock is tried again; the pause doubles."""
MAX_WAIT_S = 0.5


class Stopped(Exception):
    """The run was stopped while it waited or read."""


class Store:
    """The folder of manifests, locks and journals."""

    def __init__(self, root: Path) -> None:
        self._locks = root / "locks"
        self._manifests = root / "manifests"
        self._journals = root / "journals"

    def make(self) -> None:
        """Make the folders.

        Raises:
            OSError: it cannot be written.
        """
        for folder in (self._locks, self._manifests, self._journals):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # ── locks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def lock(self, path: str, *, exclusive: bool, stop: asyncio.Event) -> int:
        """Lock a file that steps read (shared) or make (exclusive); return the handle, which is the caller's to close.

        Raises:
            Stopped: `stop` was set while somebody else held the lock.
        """
        handle = os.open(self._locks / recipes.key_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            pause_s = WAIT_S
            while not _try(handle, exclusive=exclusive):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s * (1 + secrets.randbelow(100) / 100)):
                        await stop.wait()
                if stop.is_set():
                    raise Stopped  # noqa: TRY301 - the handle is closed for whatever ends the wait
                pause_s = min(pause_s * 2, MAX_WAIT_S)
        except BaseException:
            os.close(handle)
            raise
        return handle

    # ── manifests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def manifest(self, output: str) -> Manifest | None:
        """Return how a file was made; None when that is unknown, which only means that it is made again."""
        return _manifest(_record(self._manifests / f"{recipes.key_of(output)}.json"))

    # ── commit and recovery ──────────────────────────────────────────────────────────────────────────────────────────

    def acts(self, staged: str, output: str, manifest: Manifest) -> tuple[Callable[[], None], ...]:
        """Return what puts a staged file in its place, in order; `recover` finishes what a crash interrupts."""
        key = recipes.key_of(output)
        journal = self._journals / f"{key}.json"
        record = {"staged": staged, "output": output, "manifest": _values(manifest)}
        return (
            lambda: _sync(staged),
            lambda: _write(journal, record),
            lambda: _replace(staged, output),
            lambda: _write(self._manifests / f"{key}.json", record["manifest"]),
            lambda: _remove(journal),
        )

    def recover(self, output: str, stop: Callable[[], bool]) -> None:
        """Finish an interrupted commit and remove what dead attempts left. The caller has the exclusive lock.

        Raises:
            OSError, DefinitionError: it cannot be finished; the next try may.
        """
        journal = self._journals / f"{recipes.key_of(output)}.json"
        if journal.exists():
            record = _record(journal)
            manifest = _manifest(record.get("manifest") if record else None)
            staged = record.get("staged") if record else None
            if manifest is None or not isinstance(staged, str) or not _is_staging(staged, output):
                raise DefinitionError(
                    "an interrupted commit cannot be read", why=str(journal), fix="remove this file and build again"
                )
            # The staged file was whole before the journal was written; if it is gone, it has become the final one.
            whole = digest(staged, stop) == manifest.output
            acts = self.acts(staged, output, manifest)
            for act in acts[2:] if whole else acts[3:] if digest(output, stop) == manifest.output else acts[4:]:
                act()
        for left in _stagings(output):
            remove(left)


def digest(path: str, stop: Callable[[], bool]) -> str | None:
    """Return the SHA-256 of a plain file's content, None when there is no file.

    Raises:
        DefinitionError: it is a link, a folder or the like, or cannot be read.
        Stopped: `stop` says so.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DefinitionError(f"the build file {path} cannot be read", why=_reason(error)) from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DefinitionError(f"the build file {path} is no plain file")
        content = hashlib.sha256()
        while data := os.read(handle, CHUNK_BYTES):
            if stop():
                raise Stopped
            content.update(data)
    except OSError as error:
        raise DefinitionError(f"the build file {path} cannot be read", why=_reason(error)) from None
    finally:
        os.close(handle)
    return content.hexdigest()


def remove(staged: str) -> None:
    """Remove what an attempt left where its staging file should be, whatever it is.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        os.unlink(staged)
    except IsADirectoryError:
        shutil.rmtree(staged)
    except FileNotFoundError:
        pass


def _reason(error: OSError) -> str:
    return "it is a link" if error.errno == errno.ELOOP else error.strerror or "input or output failed"


def _try(handle: int, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stagings(output: str) -> Iterable[str]:
    """Return the staging files of an output, whoever made them."""
    try:
        found = list(os.scandir(os.path.dirname(output)))
    except FileNotFoundError:
        return ()
    return [entry.path for entry in found if _is_staging(entry.path, output)]


def _is_staging(path: str, output: str) -> bool:
    folder, name = os.path.split(path)
    token = name.removeprefix(recipes.STAGING_PREFIX).partition(".")[0]
    return folder == os.path.dirname(output) and path == recipes.staging_path(output, token)


def _values(manifest: Manifest) -> Mapping[str, Any]:
    return {
        "recipe": manifest.recipe,
        "inputs": dict(manifest.inputs),
        "output": manifest.output,
        "producer": manifest.producer,
    }


def _manifest(values: Any) -> Manifest | None:
    match values:
        case {"recipe": str(recipe), "inputs": dict(inputs), "output": str(output), "producer": str(producer)} if all(
            isinstance(item, str) for item in inputs.values()
        ):
            return Manifest(recipe=recipe, inputs=inputs, output=output, producer=producer)
        case _:
            return None


def _record(path: Path) -> dict[str, Any] | None:
    """Return a record; None when it is missing or damaged."""
    try:
        values = json.loads(read_bounded(path, MAX_RECORD_BYTES, what=f"the record {path.name}"))
    except (DefinitionError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _write(path: Path, values: Any) -> None:
    """Write a record: whole or not at all, and on disk when this returns."""
    temporary = path.with_suffix(".tmp")  # one name: whoever writes holds the exclusive lock
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(handle)
    _replace(str(temporary), str(path))


def _replace(staged: str, output: str) -> None:
    os.replace(staged, output)
    _sync(os.path.dirname(output))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sync(str(path.parent))


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
