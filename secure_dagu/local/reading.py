"""What a status document says of a run's parts, whatever its shape; where a page of a list ends."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from secure_dagu.dispatch.model import ArtifactInfo, LogStream
from secure_dagu.dispatch.operating import Condition, Document
from secure_dagu.dispatch.queueing import from_fields
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.run.model import DagRunRef, RunStatus

MOST_ARTIFACTS: Final = 10_000
_HANDLERS: Final = ("onInit", "onExit", "onSuccess", "onFailure", "onAbort", "onWait")
_MOST_DIGITS: Final = 18
_WAITS: Final = (RunStatus.QUEUED, RunStatus.NOT_STARTED)


def conditions_of(document: Document) -> tuple[Condition, ...]:
    """Return why a run waits: in a queue, or at a coordinator, where it is not started yet."""
    if document.get("status") not in _WAITS:
        return ()
    found = (from_fields(one) for one in listed(document.get("conditions")) if isinstance(one, dict))
    return tuple(one for one in found if one is not None)


def nodes_of(document: Document) -> list[Mapping[str, Any]]:
    """Return the nodes of steps, then those of handlers."""
    nodes = [node for node in listed(document.get("nodes")) if isinstance(node, dict)]
    return nodes + [document[key] for key in _HANDLERS if isinstance(document.get(key), dict)]


def log_path(document: Document, step: str, stream: str) -> Path:
    """Return where a log is, as the document says.

    Raises:
        NotFound: there is no such step. InvalidRequest: no such stream.
    """
    if stream not in ("stdout", "stderr"):
        raise InvalidRequest("a stream is stdout or stderr")
    if not step:
        return Path(str(document.get("log") or "/nonexistent"))
    for node in nodes_of(document):
        own = node.get("step")
        if isinstance(own, dict) and own.get("name") == step:
            return Path(str(node.get(stream) or "/nonexistent"))
    raise NotFound(f"the run has no step {step[:100]!r}")


def listed(value: object) -> list[Any]:
    """Return a list; empty for what is none."""
    return value if isinstance(value, list) else []


def log_stream(step: str, stream: str) -> LogStream:
    """Return what a coordinator calls a log."""
    return LogStream.SCHEDULER if not step else LogStream.STDERR if stream == "stderr" else LogStream.STDOUT


def files_of(folder: Path) -> list[ArtifactInfo]:
    """Return the plain files below a folder, at most `MOST_ARTIFACTS`; links are none."""
    found = []
    for place, names, files in os.walk(folder):  # links to directories are not followed
        names.sort()
        for name in sorted(files):
            path = Path(place) / name
            if path.is_symlink() or not path.is_file():
                continue
            found.append(ArtifactInfo(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size))
            if len(found) >= MOST_ARTIFACTS:
                return found
    return found


def has_files(folder: Path) -> bool:
    """Tell whether there is anything in a folder."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def ref_of(document: Document) -> DagRunRef:
    """Return whose document it is."""
    return DagRunRef(str(document.get("name")), str(document.get("dagRunId")))


def cursor_of(at: int, ident: str) -> str:
    """Return the cursor of what follows a run."""
    return base64.urlsafe_b64encode(f"{at} {ident}".encode()).decode().rstrip("=")


def place_in(cursor: str) -> tuple[int, str] | None:
    """Return the run that a cursor stands behind; None at the beginning.

    Raises:
        InvalidRequest: it is not one of ours.
    """
    if not cursor:
        return None
    try:
        said = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode()
        at, _, ident = said.partition(" ")
        if len(at) <= _MOST_DIGITS:
            return int(at), ident
    except ValueError:
        pass
    raise InvalidRequest("the cursor is not one of ours", fix="begin without one")
