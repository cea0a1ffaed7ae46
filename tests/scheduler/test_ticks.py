"""Which starts are due, against a calendar that lets a clock tick minute by minute; what becomes of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag
from secure_dagu.dag.schedule import Upcoming
from secure_dagu.scheduler import ticks
from secure_dagu.scheduler.ticks import Kind, Verdict

MINUTE = timedelta(minutes=1)
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu",
    "Pacific/Apia", "Africa/Casablanca", "America/St_Johns",
]  # fmt: skip
CHANGES = [
    datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 3, 8, tzinfo=UTC),
    datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 4, 4, tzinfo=UTC), datetime(2026, 10, 3, tzinfo=UTC),
    datetime(2018, 11, 4, tzinfo=UTC), datetime(2011, 12, 30, tzinfo=UTC), datetime(2026, 2, 15, tzinfo=UTC),
]  # fmt: skip


def entry(expression: str) -> dict[str, str]:
    return {"expression": expression}


def dag(text: str = "", *, name: str = "job") -> Dag:
    return load_definition(f"{text}\nsteps:\n  - id: a\n    run: echo\n", name=name).main


# ── the reference calendar ───────────────────────────────────────────────────────────────────────────────────────────


def calendar(
    minutes: set[int], hours: set[int] | None, days: set[int] | None, weekdays: set[int] | None, zone: ZoneInfo,
    since: datetime, until: datetime,
) -> Iterator[datetime]:  # fmt: skip
    """Let the clock tick: every minute of the world, what the wall shows, and what it showed before.

    `hours` None is a wildcard, and so are the days: Sunday is 0.
    """

    def is_named(wall: datetime) -> bool:
        by_day, by_weekday = (days is None or wall.day in days), (weekdays is None or wall.isoweekday() % 7 in weekdays)
        on_day = by_day or by_weekday if days is not None and weekdays is not None else by_day and by_weekday
        return wall.minute in minutes and (hours is None or wall.hour in hours) and on_day

    at = since - timedelta(days=2)  # walk into it, so that what was shown before is known
    shown: set[datetime] = set()
    last = None
    while at <= until:
        wall = at.astimezone(zone).replace(tzinfo=None)
        fires = is_named(wall) if hours is None else is_named(wall) and wall not in shown
        if hours is not None and last is not None:
            skipped = last + MINUTE
            while skipped < wall:  # the clock jumped over these
                fires = fires or (is_named(skipped) and skipped not in shown)
                shown.add(skipped)
                skipped += MINUTE
        shown.add(wall)
        last = wall
        if fires and since < at:
            yield at
        at += MINUTE


fields = st.fixed_dictionaries(
    {
        "minutes": st.sets(st.integers(0, 59), min_size=1, max_size=4),
        "hours": st.none() | st.sets(st.integers(0, 23), min_size=1, max_size=4) | st.just({1, 2, 3}),
        "days": st.none() | st.sets(st.integers(1, 31), min_size=1, max_size=6),
        "weekdays": st.none() | st.sets(st.integers(0, 6), min_size=1, max_size=3),
    }
)


def expression(named: dict[str, set[int] | None]) -> str:
    def text(values: set[int] | None) -> str:
        return "*" if values is None else ",".join(str(value) for value in sorted(values))

    return (
        f"{text(named['minutes'])} {text(named['hours'])} {text(named['days'])} * {text(named['weekdays'])}"
    )  # fmt: skip


@settings(max_examples=60)
@given(named=st.lists(fields, min_size=1, max_size=2), zone=st.sampled_from(ZONES), change=st.sampled_from(CHANGES),
       before_h=st.integers(0, 30), seconds=st.integers(0, 59))  # fmt: skip
def test_times_are_those_of_a_clock_that_ticks_minute_by_minute(
    named: list[dict[str, set[int] | None]], zone: str, change: datetime, before_h: int, seconds: int
) -> None:
    since = change - timedelta(hours=before_h, seconds=seconds)
    until = since + timedelta(hours=40)
    wanted: set[datetime] = set()
    for one in named:
        start = since.replace(second=0)
        found = calendar(one["minutes"], one["hours"], one["days"], one["weekdays"], ZoneInfo(zone), start, until)  # type: ignore[arg-type]
        wanted |= {at for at in found if at > since}
    upcoming = Upcoming()
    listed = [entry(expression(one)) for one in named]
    assert ticks.times(listed, since, until, ZoneInfo(zone), upcoming=upcoming, limit=10_000) == sorted(wanted)
    # Asked tick by tick, with a memory between, and with pauses of any length: each time once, none left out.
    asked: list[datetime] = []
    at = since
    while at < until:
        after = min(at + timedelta(minutes=7 + len(asked) % 90, seconds=13), until)
        asked += ticks.times(listed, at, after, ZoneInfo(zone), upcoming=upcoming)
        at = after
    assert asked == sorted(wanted)


@pytest.mark.parametrize(
    ("zone", "text", "since", "wanted"),
    [
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00:00+00:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00+00:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("Europe/Berlin", "30 * 25 10 *", "2026-10-25T00:00:00+00:00", ["2026-10-25T00:30", "2026-10-25T01:30"]),
        ("Pacific/Apia", "0 9 * * *", "2011-12-29T00:00:00+00:00", ["2011-12-29T19:00", "2011-12-30T10:00"]),
        ("America/New_York", "0 12 29 2 *", "2026-01-01T00:00:00+00:00", ["2028-02-29T17:00", "2032-02-29T17:00"]),
        ("UTC", "0 0 30 2 *", "2026-01-01T00:00:00+00:00", []),
    ],
)
def test_clock_changes_and_rare_days(zone: str, text: str, since: str, wanted: Sequence[str]) -> None:
    start = datetime.fromisoformat(since)
    found = ticks.times([entry(text)], start, start + timedelta(days=9 * 366), ZoneInfo(zone), upcoming=Upcoming())
    assert [f"{at:%Y-%m-%dT%H:%M}" for at in found[:2]] == wanted


# ── due, missed, dropped ─────────────────────────────────────────────────────────────────────────────────────────────

NOW = datetime(2026, 6, 1, 12, 0, 1, tzinfo=UTC)
LATE = timedelta(seconds=95)


def starts(text: str, watermark: datetime, *, catches_up: bool = True) -> ticks.Starts:
    return ticks.starts(
        dag(text), watermark, NOW, UTC, late=LATE, catches_up=catches_up, upcoming=Upcoming()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "ago_m", "missed", "due"),
    [
        ("schedule: '* * * * *'", 1, [], ["12:00"]),
        ("schedule: '* * * * *'", 600, [], ["11:59", "12:00"]),
        ("schedule: '* * * * *'\ncatchup_window: 5m", 600, ["11:56", "11:57", "11:58"], ["11:59", "12:00"]),
        ("schedule: '*/30 * * * *'\ncatchup_window: 2h", 600, ["10:30", "11:00", "11:30"], ["12:00"]),
        ("schedule: '*/30 * * * *'\ncatchup_window: 2h", 45, ["11:30"], ["12:00"]),
        ("schedule: '*/30 * * * *'\ncatchup_window: 2h", 0, [], []),
        ("schedule: ['0 11 * * *', '0 11 * * *', '30 11 * * *']\ncatchup_window: 1d", 600, ["11:00", "11:30"], []),
        ("schedule: {stop: '* * * * *'}\ncatchup_window: 1d", 600, [], []),
        ("schedule: [{expression: '* * * * *', profile: prod}]\ncatchup_window: 1d", 600, [], []),
        ("schedule: [{at: '2026-06-01T13:30:00+02:00'}]\ncatchup_window: 1d", 600, ["11:30"], []),
    ],
)
def test_a_window_tells_what_is_caught_up_on(text: str, ago_m: int, missed: list[str], due: list[str]) -> None:
    found = starts(text, NOW - timedelta(minutes=ago_m))
    assert [f"{at:%H:%M}" for at in found.missed] == missed
    assert [f"{at:%H:%M}" for at in found.due] == due


def test_without_queues_nothing_is_caught_up_on() -> None:
    found = starts("schedule: '*/30 * * * *'\ncatchup_window: 1d", NOW - timedelta(hours=9), catches_up=False)
    assert (found.missed, len(found.due)) == ((), 1)


def test_a_flood_is_looked_at_a_thousand_at_a_time() -> None:
    text = "schedule: '* * * * *'\ncatchup_window: 2d12h"
    seen: list[datetime] = []
    watermark = NOW - timedelta(days=2)
    for _ in range(3):
        found = starts(text, watermark)
        seen += [*found.missed, *found.due]
        watermark = seen[-1]
    assert len(seen) == 2 * 24 * 60
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    ("text", "is_missed", "is_newest", "is_active", "wanted"),
    [
        ("", False, True, False, Verdict.FIRE),
        ("", False, True, True, Verdict.DROP),
        ("queue: batch", False, True, True, Verdict.FIRE),
        ("overlap_policy: all", False, True, True, Verdict.DROP),
        ("catchup_window: 1d", True, True, False, Verdict.FIRE),
        ("catchup_window: 1d", True, False, True, Verdict.DROP),
        ("catchup_window: 1d\nqueue: batch", True, True, True, Verdict.DROP),
        ("catchup_window: 1d\nqueue: batch", False, True, True, Verdict.FIRE),
        ("catchup_window: 1d\noverlap_policy: all", True, False, True, Verdict.KEEP),
        ("catchup_window: 1d\noverlap_policy: all", True, False, False, Verdict.FIRE),
        ("catchup_window: 1d\noverlap_policy: all\nqueue: batch", False, True, True, Verdict.KEEP),
        ("catchup_window: 1d\noverlap_policy: latest", True, False, False, Verdict.DROP),
        ("catchup_window: 1d\noverlap_policy: latest", True, True, False, Verdict.FIRE),
        ("catchup_window: 1d\noverlap_policy: latest", True, True, True, Verdict.KEEP),
    ],
)
def test_what_becomes_of_a_time(text: str, is_missed: bool, is_newest: bool, is_active: bool, wanted: Verdict) -> None:
    one = dag(text)
    found = ticks.decide(
        one, is_missed=is_missed, is_newest=is_newest, is_active=is_active, catches_up=bool(one.catchup_window),
        queues=True,
    )  # fmt: skip
    assert found is wanted


def test_ids_are_made_of_the_name_and_the_time() -> None:
    at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    assert ticks.run_id(Kind.CAUGHT_UP, "my.job", at) == "catchup-my_job-bc373230-20260102T030400"
    long = [ticks.run_id(kind, "x" * 40, at) for kind in Kind]
    assert all(len(text) <= 64 for text in long)
    assert len({ticks.run_id(Kind.SCHEDULED, "x" * 31 + end, at) for end in ("a", "b")}) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("6h", timedelta(hours=6)), ("2d12h", timedelta(days=2, hours=12)), ("3d", timedelta(days=3)), ("", timedelta())],
)
def test_windows_know_days(text: str, wanted: timedelta) -> None:
    assert ticks.window_of(replace(dag(), catchup_window=text)) == wanted


def test_the_time_before_is_found_however_long_ago() -> None:
    before = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
    for text, wanted in (
        ("* * * * *", "2026-03-01T08:59"), ("0 9 * * *", "2026-02-28T09:00"), ("0 9 * * 1", "2026-02-23T09:00"),
        ("0 0 1 7 *", "2025-07-01T00:00"), ("0 0 29 2 *", "2024-02-29T00:00"),
    ):  # fmt: skip
        assert f"{ticks.previous([entry(text)], before, UTC):%Y-%m-%dT%H:%M}" == wanted
