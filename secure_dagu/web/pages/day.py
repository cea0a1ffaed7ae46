"""The timeline of many runs: a row for each DAG, a bar for each run, over hours or days. Pure.

Places along the time are percentages, so that the drawing fits any width with text of one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from urllib.parse import urlencode

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.run.model import RunStatus
from secure_dagu.web.pages.run_views import RunView

SPANS: Mapping[str, timedelta] = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}
"""How much time is shown: up to now, or from the midnight of a day."""
DEFAULT_SPAN = "24h"
MOST_ROWS = 40
LANES = 4
"""Runs of one DAG side by side; of more at once, the last lane shows several."""
LANE_HEIGHT = 16
_NARROWEST = 0.35
_TICKS_S = (300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_MOST_TICKS = 9
_BAD = frozenset({RunStatus.FAILED, RunStatus.REJECTED})


class Filters(Struct, frozen=True, kw_only=True):
    """What the timeline shows, as its URL has it."""

    span: str = DEFAULT_SPAN
    day: str = ""
    """`YYYY-MM-DD`; empty: up to now."""
    name: str = ""
    """Part of the DAG's name."""

    def window(self, now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
        """Return begin and end, in UTC."""
        if not self.day:
            return now - SPANS[self.span], now
        begin = datetime.combine(datetime.fromisoformat(self.day).date(), time(), zone)
        return begin.astimezone(UTC), (begin + timedelta(days=1)).astimezone(UTC)

    def query(self) -> str:
        """Return the same as a URL's query."""
        pairs = {"span": "" if self.span == DEFAULT_SPAN else self.span, "day": self.day, "name": self.name}
        return urlencode({key: value for key, value in pairs.items() if value})

    def beside(self, days: int, now: datetime, zone: tzinfo) -> str:
        """Return the query of the day that is `days` later; empty text for today and after."""
        shown = datetime.fromisoformat(self.day).date() if self.day else now.astimezone(zone).date()
        wanted = shown + timedelta(days=days)
        if wanted > now.astimezone(zone).date():
            return ""
        return replace(self, day=wanted.isoformat(), span=DEFAULT_SPAN).query()

    def zoomed(self, span: str) -> str:
        """Return the query of another span, up to now."""
        return replace(self, span=span, day="").query()


def filters_of(given: Mapping[str, str]) -> Filters:
    """Return what a URL's query says; what cannot be read is left out."""
    day, span = given.get("day", ""), given.get("span", "")
    try:
        is_day = len(day) == 10 and 1970 < datetime.fromisoformat(day).year < 9999
    except ValueError:
        is_day = False
    return Filters(
        span=span if span in SPANS else DEFAULT_SPAN, day=day if is_day else "",
        name=given.get("name", "").strip()[:255],
    )  # fmt: skip


class Bar(Struct, frozen=True, kw_only=True):
    """One run. `x` and `width` are per cent."""

    view: RunView
    x: float
    width: float
    lane: int
    begin: datetime
    end: datetime
    is_open: bool


class Row(Struct, frozen=True, kw_only=True):
    """One DAG."""

    name: str
    bars: tuple[Bar, ...]
    lanes: int

    @property
    def height(self) -> int:
        """Return the height in pixels."""
        return self.lanes * LANE_HEIGHT + 10

    @property
    def bad(self) -> int:
        """Return how many runs did not end well."""
        return sum(bar.view.status in _BAD for bar in self.bars)


class Tick(Struct, frozen=True, kw_only=True):
    """One line across."""

    x: float
    label: str


class Day(Struct, frozen=True, kw_only=True):
    """All of it."""

    rows: tuple[Row, ...]
    more_rows: int
    """DAGs that there was no room for."""
    ticks: tuple[Tick, ...]
    now: float | None
    """Where the present is; None: not in this window."""
    lane: int = LANE_HEIGHT

    @property
    def words(self) -> list[str]:
        """Return the statuses that are drawn."""
        drawn = {bar.view.status for row in self.rows for bar in row.bars}
        return [status.word for status in RunStatus if status in drawn]


def day(views: Sequence[RunView], begin: datetime, end: datetime, *, now: datetime, zone: tzinfo) -> Day:
    """Return the timeline of runs that were alive between two moments."""
    room = begin, end + (end - begin) * 0.02 if end >= now else end  # what is now does not stick to the edge
    by_name: dict[str, list[Bar]] = {}
    for view in views:
        if (bar := _bar(view, room, now)) is not None:
            by_name.setdefault(view.run.name, []).append(bar)
    rows = [_row(name, bars) for name, bars in sorted(by_name.items())]
    place = _percent(now, room)
    return Day(
        rows=tuple(rows[:MOST_ROWS]),
        more_rows=max(0, len(rows) - MOST_ROWS),
        ticks=_ticks(room, zone),
        now=place if 0 <= place <= 100 else None,
    )


def _bar(view: RunView, room: tuple[datetime, datetime], now: datetime) -> Bar | None:
    begin = view.started_at or view.queued_at
    if begin is None:
        return None
    end = view.finished_at or (now if view.is_active else begin)
    first, last = max(begin, room[0]), min(max(begin, end), room[1])
    if first > room[1] or last < room[0]:
        return None
    x = _percent(first, room)
    width = max(_percent(last, room) - x, _NARROWEST)
    return Bar(
        view=view, x=min(x, 100 - _NARROWEST), width=min(width, 100 - x) if x < 100 - _NARROWEST else _NARROWEST,
        lane=0, begin=begin, end=end, is_open=view.is_active,
    )  # fmt: skip


def _row(name: str, bars: list[Bar]) -> Row:
    """Put runs that overlap into lanes of their own."""
    ends: list[float] = []
    placed = []
    for bar in sorted(bars, key=lambda one: one.x):
        free = next((lane for lane, end in enumerate(ends) if end <= bar.x), len(ends))
        lane = min(free, LANES - 1)
        if lane == len(ends):
            ends.append(0.0)
        ends[lane] = max(ends[lane], bar.x + bar.width)
        placed.append(replace(bar, lane=lane))
    return Row(name=name, bars=tuple(placed), lanes=len(ends))


def _percent(at: datetime, room: tuple[datetime, datetime]) -> float:
    return round(100 * (at - room[0]) / (room[1] - room[0]), 3)


def _ticks(room: tuple[datetime, datetime], zone: tzinfo) -> tuple[Tick, ...]:
    whole = (room[1] - room[0]).total_seconds()
    step = next((size for size in _TICKS_S if whole / size <= _MOST_TICKS), _TICKS_S[-1])
    local = room[0].astimezone(zone)
    at = datetime.combine(local.date(), time(), zone)
    found = []
    while at < room[1]:
        if at >= room[0]:
            label = f"{at:%H:%M}" if step < 86400 else f"{at:%a} {at.day}"
            if step < 86400 and at.hour == at.minute == 0 and whole > 86400 / 4:
                label = f"{at:%a} {at.day}"
            found.append(Tick(x=_percent(at, room), label=label))
        at = (at.astimezone(UTC) + timedelta(seconds=step)).astimezone(zone) if step < 86400 else at + timedelta(days=1)
    return tuple(tick for tick in found if 1 <= tick.x <= 97)
