"""Cron expressions: parse one, find the next time that it names. Pure.

Clock changes (workflow language, section 3.19): an expression with fixed hours fires once on each day that it names.
A minute that the change skips fires at the next valid minute, one that is repeated fires the first time only. With a
wildcard hour every real minute that matches fires.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from msgspec import Struct

from secure_dagu.errors import DefinitionError

MAX_TEXT = 1000
_SEARCHED_DAYS = 9 * 366
"""29 February is at most eight years away."""
_MINUTE = timedelta(minutes=1)
_NEVER = datetime.max.replace(tzinfo=UTC)

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)
_PREFIX = re.compile(r"(?:CRON_TZ|TZ)=(\S*)\s+")


class Cron(Struct, frozen=True, kw_only=True):
    """A parsed cron expression."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either_day: bool
    """Both day fields are restricted: one of them has to match."""
    every_hour: bool
    """The hour field is a wildcard."""
    zone: tzinfo | None = None
    """From `CRON_TZ=` or `TZ=`; None: the zone of the configuration."""
    warnings: tuple[str, ...] = ()
    """Steps that do not divide their field."""

    def next_after(self, moment: datetime, zone: tzinfo) -> datetime | None:
        """Return the first time strictly after `moment` that the expression names, in UTC.

        Args:
            moment: an aware time.
            zone: where the expression is read when it names no zone itself.

        Returns:
            None when it names no time at all, such as 30 February.
        """
        zone = self.zone or zone
        after = moment.astimezone(UTC)
        start = moment.astimezone(zone)
        for day in self._days_from(start.date()):
            found = self._first_on(day, start.hour - 3 if day == start.date() else 0, after, zone)
            if found is not None:
                return found
        return None

    def _days_from(self, day: date) -> Iterator[date]:
        for offset in range(min(_SEARCHED_DAYS, (date.max - day).days)):
            at = day + timedelta(days=offset)
            if at.month in self.months and self._has_day(at):
                yield at

    def _has_day(self, at: date) -> bool:
        by_day, by_weekday = at.day in self.days, at.isoweekday() % 7 in self.weekdays
        return by_day or by_weekday if self.either_day else by_day and by_weekday

    def _first_on(self, day: date, first_hour: int, after: datetime, zone: tzinfo) -> datetime | None:
        best: datetime | None = None
        best_hour = 99
        for hour in self.hours:
            # Clock changes move a time by three hours at most, so neither earlier nor later ones can matter.
            if hour < first_hour or hour > best_hour + 3:
                continue
            last = datetime(day.year, day.month, day.day, hour, self.minutes[-1], tzinfo=zone)
            if max(self._instants(last, zone), default=_NEVER) <= after:
                continue  # then the minutes before it are over, too
            for minute in self.minutes:
                wall = last.replace(minute=minute)
                for at in self._instants(wall, zone):
                    if at > after and (best is None or at < best):
                        best, best_hour = at, hour
                if best is not None and best <= wall.astimezone(UTC) and not _is_odd(wall):
                    break  # later minutes come later; of repeated and skipped ones that is not sure
        return best

    def _instants(self, wall: datetime, zone: tzinfo) -> Iterator[datetime]:
        """Yield when the clock shows `wall` for this expression: never, once, or twice."""
        first, second = wall.astimezone(UTC), wall.replace(fold=1).astimezone(UTC)
        if first == second:
            yield first
        elif first < second:  # repeated: the clock was put back
            yield first
            if self.every_hour:
                yield second
        elif not self.every_hour:  # skipped: the clock was put forward
            while first.astimezone(zone) != wall:
                wall += _MINUTE
                first = wall.astimezone(UTC)
            yield first


def _is_odd(wall: datetime) -> bool:
    """Tell whether a clock change skips or repeats a time."""
    return wall.utcoffset() != wall.replace(fold=1).utcoffset()


def parse_cron(text: str) -> Cron:
    """Parse five fields, with an optional zone in front.

    Raises:
        DefinitionError: `invalid cron expression`; `why` names the field.
    """
    if len(text) > MAX_TEXT:
        raise _invalid(text, f"longer than {MAX_TEXT} characters")
    rest = text.strip()
    zone: tzinfo | None = None
    if (prefix := _PREFIX.match(rest)) is not None:
        zone, rest = _zone(text, prefix[1]), rest[prefix.end() :]
    if rest.startswith("@"):
        raise _invalid(text, "descriptors such as @hourly are not accepted")
    fields = rest.split()
    if len(fields) != len(_FIELDS):
        raise _invalid(text, f"expected 5 fields, found {len(fields)}")
    minutes, hours, days, months, weekdays = (
        _values(text, field, *spec) for field, spec in zip(fields, _FIELDS, strict=True)
    )
    return Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(number % 7 for number in weekdays),
        either_day=not _is_wild(fields[2]) and not _is_wild(fields[4]),
        every_hour=_is_wild(fields[1]),
        zone=zone,
        warnings=tuple(_warnings(fields)),
    )


def _zone(text: str, name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise _invalid(text, f'unknown time zone "{name[:60]}"') from None


def _is_wild(field: str) -> bool:
    return any(part in ("*", "?", "*/1", "?/1") for part in field.split(","))


def _values(text: str, field: str, name: str, low: int, high: int, names: Mapping[str, int]) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(text, name, step_text, {}) if slash else 1
        if step < 1:
            raise _invalid(text, f"{name}: the step must be at least 1")
        if span in ("*", "?"):
            first, last = low, 6 if name == "day of week" else high
        else:
            start, dash, end = span.partition("-")
            first = _number(text, name, start, names)
            last = _number(text, name, end, names) if dash else high if slash else first
        if not low <= first <= last <= high:
            raise _invalid(text, f"{name}: expected {low} to {high}")
        found.update(range(first, last + 1, step))
    return found


def _number(text: str, field: str, word: str, names: Mapping[str, int]) -> int:
    known = names.get(word.upper())
    if known is not None:
        return known
    if not re.fullmatch(r"[0-9]{1,4}", word):
        raise _invalid(text, f'{field}: "{word[:20]}" is not a number')
    return int(word)


def _warnings(fields: list[str]) -> Iterator[str]:
    for field, (name, low, high, _) in zip(fields, _FIELDS, strict=True):
        size = 7 if name == "day of week" else high - low + 1
        for part in field.split(","):
            step = re.fullmatch(r"[*?]/(\d{1,4})", part)
            if step and size % int(step[1]):
                yield (
                    f"{part} in the {name} field fires at fixed offsets, not every {step[1]}: "
                    f"{step[1]} does not divide {size}"
                )


def _invalid(text: str, why: str) -> DefinitionError:
    return DefinitionError(
        f'invalid cron expression "{text[:80]}"',
        why=why,
        fix="use five fields: minute, hour, day of month, month, day of week",
    )
