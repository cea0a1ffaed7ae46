"""Read records back: all of a log, or those that somebody asks for."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from secure_dagu.audit import chain, journal
from secure_dagu.audit.chain import MAX_LINE, Record


class Wanted(Struct, frozen=True, kw_only=True):
    """Which records; an empty field asks for nothing. Times as records hold them."""

    actions: tuple[str, ...] = ()
    """Actions, or categories: the part before the dot."""
    outcomes: tuple[str, ...] = ()
    actor: str = ""
    """Part of the actor's text, as for the rest."""
    target: str = ""
    serial: str = ""
    address: str = ""
    reason: str = ""
    """The whole reason."""
    since: str = ""
    until: str = ""

    def matches(self, record: Record) -> bool:
        """Tell whether a record is asked for."""
        return (
            (not self.actions or record.action in self.actions or record.action.partition(".")[0] in self.actions)
            and (not self.outcomes or record.outcome in self.outcomes)
            and self.actor in record.actor
            and self.target in record.target
            and record.serial.startswith(self.serial)
            and self.address in record.address
            and self.reason in ("", record.reason)
            and record.time >= self.since
            and (not self.until or record.time < self.until)
        )


def records(folder: Path, wanted: Wanted) -> Iterator[tuple[bytes, Record]]:
    """Yield the lines of a log that are asked for, oldest first. Nothing is verified.

    Raises:
        IntegrityViolation: a line is no record.
    """
    for path in _since(journal.files_of(folder), wanted.since):
        seq = int(path.stem)
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                if not line.endswith(b"\n"):  # it is being written, or it is torn: `verify` tells which
                    break
                try:
                    record = chain.read(line)
                except ValueError as problem:
                    raise journal.damaged(folder, seq, "the line is no record") from problem
                seq = record.seq + 1
                if wanted.matches(record):
                    yield line, record


def _since(files: Sequence[Path], since: str) -> Sequence[Path]:
    """Leave out files that end before `since`: the file behind begins earlier than that."""
    first = 0
    for index in range(len(files) - 1, 0, -1):
        if since and _begins(files[index]) < since:
            first = index
            break
    return files[first:]


def _begins(path: Path) -> str:
    """Return the time of a file's first record; what cannot be read begins after any time, so it is looked at."""
    try:
        with path.open("rb") as file:
            return chain.read(file.readline(MAX_LINE)).time
    except (OSError, ValueError):
        return "~"


class Newest(Struct, frozen=True, kw_only=True):
    """The newest records of several logs that are asked for."""

    records: tuple[Record, ...]
    """Newest first."""
    total: int
    """How many there are in all."""


def newest(folders: Iterable[Path], wanted: Wanted, *, limit: int, offset: int = 0) -> Newest:
    """Return one page of what is asked for, over several logs. Files that end before `wanted.since` are not opened.

    Raises:
        IntegrityViolation: a line is no record.
    """
    kept: list[tuple[str, int, Record]] = []  # a heap of the newest `limit + offset`, the oldest of them first
    total = 0
    for folder in folders:
        for _, record in records(folder, wanted):
            total += 1
            entry = (record.time, total, record)
            if len(kept) < limit + offset:
                heapq.heappush(kept, entry)
            else:
                heapq.heappushpop(kept, entry)
    ordered = [record for _, _, record in sorted(kept, key=lambda entry: entry[:2], reverse=True)]
    return Newest(records=tuple(ordered[offset : offset + limit]), total=total)
