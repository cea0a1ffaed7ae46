"""Upload the artifact folder of a run: regular files only, in lexical order, one call (protocol, section 6.1)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import structlog

from secure_dagu.dispatch.api import RunReports
from secure_dagu.dispatch.model import ArtifactPart, Caller, StreamIdentity
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.worker.timings import Timings, half_jitter

log = structlog.get_logger()

MAX_RESTARTS = 10


def exist(folder: Path) -> bool:
    """Tell whether there is anything to upload."""
    return next(_regular_files(folder), None) is not None


async def upload(
    *,
    reports: RunReports,
    caller: Caller,
    identity: StreamIdentity,
    folder: Path,
    timings: Timings,
    is_hopeless: Callable[[], bool],
) -> None:
    """Upload every file below `folder`.

    An interrupted upload starts again from the first file. It is given up when nothing has moved for
    `timings.artifacts_for_s`, or at the `MAX_RESTARTS`-th interruption that undid something: a large upload may take
    its time, one that never gets to its end may not.

    Raises:
        SecureDaguError: it could not be delivered.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timings.artifacts_for_s
    failures = restarts = 0
    while True:
        try:
            async with asyncio.timeout_at(until) as guard:
                await reports.stream_artifacts(caller, identity, _parts(folder, timings, guard))
                return
        except (Unavailable, TimeoutError) as error:
            # What the guard says is when patience ends: it was moved on with every block that the other end took.
            if (patience := guard.when()) is not None and patience > until:
                until, failures, restarts = patience, 0, restarts + 1
            failures += 1
            pause = half_jitter(failures, first_s=timings.retry_first_s, cap_s=timings.retry_cap_s)
            if is_hopeless() or loop.time() + pause >= until or restarts >= MAX_RESTARTS:
                why = str(error) or f"nothing moved for {timings.artifacts_for_s:.0f} s"
                raise Unavailable("the upload was interrupted too long", why=why) from error
            log.info("artifacts.interrupted", run=str(identity.run), why=str(error))
            await asyncio.sleep(pause)


async def _parts(folder: Path, timings: Timings, guard: asyncio.Timeout) -> AsyncIterator[ArtifactPart]:
    """Yield every file in blocks, each ended by a part without data."""
    loop = asyncio.get_running_loop()
    for path in _regular_files(folder):
        name = path.relative_to(folder).as_posix()
        descriptor = _open(path)
        if descriptor is None:
            continue
        try:
            while data := await asyncio.to_thread(os.read, descriptor, timings.artifact_chunk_bytes):
                yield ArtifactPart(path=name, data=data, is_final=False)
                with contextlib.suppress(RuntimeError):  # the call has been given up meanwhile
                    guard.reschedule(loop.time() + timings.artifacts_for_s)
        except OSError as error:
            raise SecureDaguError("an artifact cannot be read", why=f"{name}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        yield ArtifactPart(path=name, data=b"", is_final=True)


def _regular_files(folder: Path) -> Iterator[Path]:
    """Walk without following links; a name that is not UTF-8 cannot travel and is skipped with a warning."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            log.warning("artifact.skipped", why="its name is not UTF-8", name=ascii(entry.name))
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _regular_files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _open(path: Path) -> int | None:
    """Open a regular file; None when it has become something else since it was listed (a step's leftover process)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
