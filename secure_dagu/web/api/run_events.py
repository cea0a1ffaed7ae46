"""A log of what runs did: one JSON object a line, a file a day, in {log_dir}/admin/events.

The web server writes it from what it sees of runs, so it is a convenience for people and tools, not evidence: the audit
log is that. Reading and writing block; call them on a thread.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from secure_dagu.errors import InvalidRequest
from secure_dagu.run.model import RunStatus
from secure_dagu.web.api import shapes_runs
from secure_dagu.web.api.queries import BoundedQuery, Moment
from secure_dagu.web.api.shapes import text

_FILE = re.compile(r"\d{4}-\d{2}-\d{2}\.jsonl")
_REMEMBERED = 10_000
_MAX_LINE = 16 * 1024


class RunEvent(TypedDict):
    """Something that a run did."""

    id: str
    schemaVersion: int
    occurredAt: str
    recordedAt: str
    kind: str
    type: str
    sourceService: str
    sourceInstance: str
    dagName: NotRequired[str]
    dagRunId: NotRequired[str]
    attemptId: NotRequired[str]
    status: NotRequired[str]
    data: NotRequired[dict[str, Any]]


class EventPage(TypedDict):
    """A page of events, newest first; `total` only by offset, `nextCursor` only by cursor."""

    entries: list[RunEvent]
    total: NotRequired[int]
    nextCursor: NotRequired[str]


class EventQuery(BoundedQuery):
    """Which events."""

    kind: str = Field("", max_length=64)
    type: str = Field("", max_length=64)
    dagName: str = Field("", max_length=255)
    dagRunId: str = Field("", max_length=128)
    attemptId: str = Field("", max_length=128)
    startTime: Moment | None = None
    endTime: Moment | None = None
    limit: int = Field(50, ge=1, le=500)
    paginationMode: Literal["offset", "cursor"] = "offset"
    offset: int = Field(0, ge=0, le=1_000_000)
    cursor: str = Field("", max_length=64, pattern=r"^(\d{4}-\d{2}-\d{2}:\d{1,12})?$")

    def matches(self, event: RunEvent) -> bool:
        """Tell whether an event is asked for."""
        at = datetime.fromisoformat(event["occurredAt"])
        return (
            self.kind in ("", event["kind"])
            and self.type in ("", event["type"])
            and self.dagName in ("", event.get("dagName", ""))
            and self.dagRunId in ("", event.get("dagRunId", ""))
            and self.attemptId in ("", event.get("attemptId", ""))
            and (self.startTime is None or at >= self.startTime)
            and (self.endTime is None or at < self.endTime)
        )


class EventLog:
    """The files of one folder; one process writes there."""

    def __init__(self, folder: Path, *, retention_days: int, now: Callable[[], datetime]) -> None:
        """Make one; what the newest file tells of runs is not told again."""
        self._folder = folder
        self._retention_days = retention_days
        self._now = now
        self._seen: OrderedDict[tuple[str, str], tuple[str, int]] = OrderedDict()
        """Run → the attempt and status that was written last."""
        self._source = f"{socket.gethostname()}:{os.getpid()}"
        self._tidied: date | None = None
        for path in self._files()[:1]:
            for _, event in _newest_first(path):
                key = event.get("dagName", ""), event.get("dagRunId", "")
                status = RunStatus[event.get("status", "not_started").upper()]
                self._seen.setdefault(key, (event.get("attemptId", ""), int(status)))

    def take(self, document: Any) -> None:
        """Write what is new in a run's status document."""
        run, status = shapes_runs.run_ref(document), shapes_runs.run_status(document)
        key, state = (run.name, run.run_id), (text(document.get("attemptId")), int(status))
        if status is RunStatus.NOT_STARTED or self._seen.get(key) == state:
            return
        self._seen[key] = state
        self._seen.move_to_end(key)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        now = self._now()
        at = now.isoformat().replace("+00:00", "Z")
        finished = text(document.get("finishedAt")) if status.is_terminal else text(document.get("startedAt"))
        event: RunEvent = {
            "id": f"{int(now.timestamp() * 1_000_000):x}-{run.run_id}",
            "schemaVersion": 1,
            "occurredAt": finished if len(finished) > 1 else at,
            "recordedAt": at,
            "kind": "dag_run",
            "type": f"dag.run.{status.word}",
            "sourceService": "server",
            "sourceInstance": self._source,
            "dagName": run.name,
            "dagRunId": run.run_id,
            "attemptId": state[0],
            "status": status.word,
        }
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{now.date().isoformat()}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "ab") as file:
            file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        if self._tidied != now.date():
            self._tidied = now.date()
            self._tidy(now.date())

    def page(self, query: EventQuery) -> EventPage:
        """Return a page of events.

        Raises:
            InvalidRequest: the cursor names no day.
        """
        if query.paginationMode == "cursor":
            return self._from_cursor(query)
        wanted = [event for path in self._files() for _, event in _newest_first(path) if query.matches(event)]
        return {"entries": wanted[query.offset : query.offset + query.limit], "total": len(wanted)}

    def _from_cursor(self, query: EventQuery) -> EventPage:
        day, _, number = query.cursor.partition(":")
        if day and not _is_day(day):
            raise InvalidRequest("the cursor is not one of ours", fix="pass nextCursor as it came")
        entries: list[RunEvent] = []
        last = ""
        for path in self._files():
            if day and path.stem > day:
                continue
            for line, event in _newest_first(path):
                if (path.stem == day and line >= int(number)) or not query.matches(event):
                    continue
                if len(entries) == query.limit:
                    return {"entries": entries, "nextCursor": last}
                entries.append(event)
                last = f"{path.stem}:{line}"
        return {"entries": entries}

    def _files(self) -> list[Path]:
        """Return the files, newest first."""
        if not self._folder.is_dir():
            return []
        return sorted((path for path in self._folder.iterdir() if _FILE.fullmatch(path.name)), reverse=True)

    def _tidy(self, today: date) -> None:
        """Remove what is older than the retention; 0 days keeps all."""
        if not self._retention_days:
            return
        oldest = (today - timedelta(days=self._retention_days)).isoformat()
        for path in self._files():
            if path.stem < oldest:
                path.unlink(missing_ok=True)


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def _newest_first(path: Path) -> Iterator[tuple[int, RunEvent]]:
    """Yield the events of a file with their line numbers, the last line first; a torn line is left out."""
    lines = path.read_bytes().split(b"\n")
    for number in range(len(lines) - 1, -1, -1):
        if not lines[number] or len(lines[number]) > _MAX_LINE:
            continue
        try:
            event: RunEvent = json.loads(lines[number])
            datetime.fromisoformat(event["occurredAt"]).utcoffset()
            yield number, event
        except (ValueError, KeyError, TypeError):
            continue


def _is_day(text_of_day: str) -> bool:
    try:
        date.fromisoformat(text_of_day)
    except ValueError:
        return False
    return True
