"""One run of this host as a row of the index: read once, and decoded only as far as lists show it.

A document may hold thousands of nodes that no list shows. Its keys are told apart without decoding what they hold;
what is unusual (another program's lines, damaged text, a run that goes on) takes the way over `Current`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from secure_dagu.dispatch.operating import Document, in_lists, labels_of
from secure_dagu.run.model import RunStatus
from secure_dagu.store.narrowing import label_lines
from secure_dagu.store.records import ATTEMPT_FOLDER, DAG_NAME, MAX_STATUS_BYTES, RUN_FOLDER, Attempt, Record, record_at

Current = Callable[[Record, Attempt], dict[str, Any]]
"""Returns how an attempt stands now that is recorded as running, or whose document is unusual."""

_STATUSES: Final = frozenset(RunStatus)
_DAY: Final = (re.compile(r"\d{4}\Z"), re.compile(r"\d\d\Z"), re.compile(r"\d\d\Z"))
_KEYS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RunRow(NamedTuple):
    """The columns of the table `runs`, in order."""

    place: str
    dag: str
    run_id: str
    at: int
    ident: str
    status: int
    labels: str
    attempt: str
    seen: str
    summary: str


def places(folder: Path) -> Iterator[str]:
    """Yield where every root run is, below `<data>/dag-runs`, in no order."""
    for dag in _listed(str(folder)):
        if not DAG_NAME.match(dag):
            continue
        levels = [f"{dag}/dag-runs"]
        for pattern in _DAY:
            levels = [f"{one}/{name}" for one in levels for name in _listed(f"{folder}/{one}") if pattern.match(name)]
        for day in levels:
            for name in _listed(f"{folder}/{day}"):
                if RUN_FOLDER.match(name):
                    yield f"{day}/{name}"


def row_of(folder: Path, place: str, current: Current) -> RunRow | None:
    """Return the row of a run as it stands; None: it is no run, or has no attempt to show."""
    parts = place.split("/")
    named = RUN_FOLDER.match(parts[-1])
    if named is None:
        return None
    path = f"{folder}/{place}"
    made_of = _time_of(path)
    names = _listed(path)
    attempt = max((name for name in names if ATTEMPT_FOLDER.match(name)), default="")
    if not attempt:
        return None
    written_at, data = _read(f"{path}/{attempt}/status.jsonl")
    told = _told(data)
    if told is None:
        if (record := record_at(folder, place)) is None:
            return None
        told = _stands(current(record, Attempt(record.path / attempt)))
    status, labels, summary = told
    return RunRow(
        place=place, dag=parts[0], run_id=named[2], at=_made_at(parts[-1], names),
        ident=f"{parts[0]}/{named[2]}", status=status, labels=labels, attempt=attempt,
        seen=f"{made_of}:{written_at}", summary=summary,
    )  # fmt: skip


def seen_now(folder: Path, place: str, attempt: str) -> str:
    """Return the times by which a row tells whether it is up to date."""
    return f"{_time_of(f'{folder}/{place}')}:{_time_of(f'{folder}/{place}/{attempt}/status.jsonl')}"


def _told(data: bytes) -> tuple[int, str, str] | None:
    """Return status, labels and summary of a document of a run that rests; None: `Current` has to look at it."""
    line = data.rstrip().rpartition(b"\n")[2]
    if not line.startswith(b"{"):
        return None
    try:
        shown = in_lists(_KEYS.decode(line))
        summary = msgspec.json.encode(shown).decode()
        document = json.loads(summary)  # as it will be read: what it does not take must not get into the index
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    if document.get("status") == RunStatus.RUNNING:
        return None
    return _status(document), label_lines(labels_of(document)), summary


def _stands(document: Mapping[str, Any]) -> tuple[int, str, str]:
    return _status(document), label_lines(labels_of(document)), json.dumps(in_lists(document))


def _status(document: Document) -> int:
    status = document.get("status")
    return status if isinstance(status, int) and status in _STATUSES else 0


def _read(path: str) -> tuple[int, bytes]:
    """Return when a file was written, and what it says; 0 and nothing where it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0, b""
    try:
        facts = os.fstat(handle)
        size = facts.st_size
        return facts.st_mtime_ns, os.read(handle, size) if size <= MAX_STATUS_BYTES else b""
    except OSError:
        return 0, b""
    finally:
        os.close(handle)


def _made_at(run_folder: str, names: list[str]) -> int:
    """Return when a run was made: by its folder, and within that second by its first attempt, hidden or not."""
    stamp = run_folder[8:23]
    day, clock = stamp[:8], stamp[9:]
    try:
        year, month, date, hour, minute, of_minute = (
            int(text) for text in (day[:4], day[4:6], day[6:], clock[:2], clock[2:4], clock[4:])
        )
        second = int(datetime(year, month, date, hour, minute, of_minute, tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        return 0
    first = min((bare for name in names if (bare := name.removeprefix(".")).startswith(f"a_{stamp}_")), default="")
    return second + int(first[18:21]) if first[18:21].isdigit() else second


def _time_of(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _listed(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(path)
    return []
