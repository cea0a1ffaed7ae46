"""The filters of the run list as its URL has them. Pure.

A value that cannot be read is left out rather than refused: a link that somebody kept still opens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta, tzinfo
from urllib.parse import urlencode

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dispatch.operating import RunFilter
from secure_dagu.run.model import RunStatus

RANGES: Mapping[str, str] = {
    "24h": "Last 24 hours",
    "today": "Today",
    "yesterday": "Yesterday",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "all": "Any time",
    "custom": "From … to …",
}
"""Presets of the date, as people read them. The first is the default."""

DEFAULT_RANGE = "24h"
PAGE_SIZES = (50, 100, 200, 500)
_WORDS = {status.word: status for status in RunStatus}
_MAX_TEXT = 255


class RunFilters(Struct, frozen=True, kw_only=True):
    """What somebody filters by."""

    name: str = ""
    run_id: str = ""
    statuses: tuple[RunStatus, ...] = ()
    labels: str = ""
    range: str = DEFAULT_RANGE
    first_day: str = ""
    """`YYYY-MM-DD`, for the range `custom`."""
    last_day: str = ""
    limit: int = PAGE_SIZES[0]
    cursor: str = ""

    def wanted(self, now: datetime, zone: tzinfo) -> RunFilter:
        """Return what the records are asked for; days are those of `zone`."""
        since, until = self._times(now, zone)
        return RunFilter(
            name_part=self.name,
            run_id_part=self.run_id,
            statuses=frozenset(self.statuses),
            labels=tuple(part.strip() for part in self.labels.split(",") if part.strip()),
            since=since,
            until=until,
        )

    def query(self, *, cursor: str = "") -> str:
        """Return the same as a URL's query; what is as by default is left out."""
        pairs = [("name", self.name), ("runId", self.run_id)]
        pairs += [("status", status.word) for status in self.statuses]
        pairs += [("labels", self.labels), ("range", "" if self.range == DEFAULT_RANGE else self.range)]
        if self.range == "custom":
            pairs += [("from", self.first_day), ("to", self.last_day)]
        pairs += [("limit", "" if self.limit == PAGE_SIZES[0] else str(self.limit)), ("cursor", cursor)]
        return urlencode([(key, value) for key, value in pairs if value])

    @property
    def any_time_query(self) -> str:
        """Return the same filters over all time."""
        return replace(self, range="all", cursor="").query()

    @property
    def is_default(self) -> bool:
        """Tell whether nothing is filtered but the time, and that by default."""
        return not self.query()

    @property
    def told(self) -> str:
        """Return which time is shown, for people."""
        if self.range == "custom":
            return f"{self.first_day or 'the beginning'} to {self.last_day or 'now'}"
        return RANGES[self.range]

    def _times(self, now: datetime, zone: tzinfo) -> tuple[datetime | None, datetime | None]:
        midnight = datetime.combine(now.astimezone(zone).date(), time(), zone)
        match self.range:
            case "24h":
                return now - timedelta(hours=24), None
            case "today":
                return midnight.astimezone(UTC), None
            case "yesterday":
                return (midnight - timedelta(days=1)).astimezone(UTC), midnight.astimezone(UTC)
            case "7d" | "30d":
                return now - timedelta(days=int(self.range[:-1])), None
            case "custom":
                first, last = _day(self.first_day, zone), _day(self.last_day, zone)
                return first, last + timedelta(days=1) if last else None
            case _:
                return None, None


def filters_of(pairs: Iterable[tuple[str, str]]) -> RunFilters:
    """Return the filters of a URL's query."""
    given: dict[str, list[str]] = {}
    for key, value in pairs:
        given.setdefault(key, []).append(value[:_MAX_TEXT].strip())

    def last(key: str) -> str:
        return given.get(key, [""])[-1]

    statuses = dict.fromkeys(_WORDS[word] for word in given.get("status", ()) if word in _WORDS)
    limit = last("limit")
    return RunFilters(
        name=last("name"),
        run_id=last("runId"),
        statuses=tuple(statuses),
        labels=last("labels"),
        range=last("range") if last("range") in RANGES else DEFAULT_RANGE,
        first_day=last("from") if _day(last("from"), UTC) else "",
        last_day=last("to") if _day(last("to"), UTC) else "",
        limit=int(limit) if limit in {str(size) for size in PAGE_SIZES} else PAGE_SIZES[0],
        cursor=last("cursor"),
    )


def _day(text: str, zone: tzinfo) -> datetime | None:
    try:
        return datetime.combine(datetime.strptime(text, "%Y-%m-%d").date(), time(), zone)  # noqa: DTZ007 - zone is given
    except ValueError:
        return None
