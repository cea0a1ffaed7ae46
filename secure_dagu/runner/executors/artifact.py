"""`artifact.*`: files in the run's folder of artifacts, and nowhere else (workflow language, sections 3.18, 4.3)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PureWindowsPath

from secure_dagu.errors import DefinitionError
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import file_access as access
from secure_dagu.runner.executors.file import Answer, Job, content, how_to_write, in_background, listing, read_out


async def write(context: StepContext) -> Done:
    """Write an artifact; folders on the way are made."""
    return await in_background(context, _write)


async def read(context: StepContext) -> Done:
    """Print an artifact."""
    return await in_background(context, _read)


async def list_(context: StepContext) -> Done:
    """List artifacts."""
    return await in_background(context, _list)


def _names(text: str) -> tuple[str, ...]:
    """Return the names of a relative path.

    Raises:
        DefinitionError: it is absolute, or climbs.
    """
    if text.startswith(("/", "\\")) or PureWindowsPath(text).drive or "\0" in text or ".." in re.split(r"[/\\]", text):
        raise DefinitionError(f"the artifact path {text[:200]!r} climbs out of the artifact folder")
    return tuple(name for name in text.split("/") if name not in ("", "."))


def _needed(job: Job) -> tuple[str, ...]:
    names = _names(job.options.needed("path"))
    if not names:
        raise DefinitionError("with.path names no artifact")
    return names


@contextmanager
def _parent(job: Job, names: tuple[str, ...], *, make: bool = False) -> Iterator[tuple[int, str]]:
    base = job.context.artifacts
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with access.parent_below(base, names, make=make) as found:
            yield found
    except FileNotFoundError:
        raise DefinitionError(f"the artifact {'/'.join(names)} does not exist") from None


def _write(job: Job) -> Answer:
    names, data, how = _needed(job), content(job), how_to_write(job)
    with _parent(job, names, make=True) as (folder, name):
        found = access.lstat(name, folder)
        if found is not None and access.kind(found.st_mode) == "symlink":
            raise DefinitionError(f"the path climbs: {name!r} is a link")
        is_new = access.write(folder, name, data, **how)
    return {"operation": "write", "path": "/".join(names), "bytes": len(data), "created": is_new}


def _read(job: Job) -> Answer | None:
    names = _needed(job)
    with _parent(job, names) as (folder, name):
        return read_out(job, folder, name, shown="/".join(names), follow=False)


def _list(job: Job) -> Answer:
    names = _names(job.options.text("path"))
    with _parent(job, (*names, ".")) as (folder, name):
        inner = os.open(name, access.FOLDER, dir_fd=folder)
        try:
            return {"operation": "list", "path": "/".join(names) or ".", **listing(job, inner)}
        finally:
            os.close(inner)
