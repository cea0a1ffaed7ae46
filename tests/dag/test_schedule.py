"""Cron expressions against a calendar written here, clock changes, and the forms of `schedule` (section 3.19)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dag.cron import parse_cron
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.schedule import next_start
from secure_dagu.errors import DefinitionError

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "after", "then"),
    [
        ("* * * * *", "2026-01-01T00:00:30", "2026-01-01T00:01:00"),
        ("0 5 * * *", "2026-01-01T05:00:00", "2026-01-02T05:00:00"),
        ("*/15 9-17 * * MON-FRI", "2026-01-02T17:45:00", "2026-01-05T09:00:00"),
        ("5/20 * * * *", "2026-01-01T00:05:00", "2026-01-01T00:25:00"),
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 1 JAN,jul ?", "2026-01-02T00:00:00", "2026-07-01T00:00:00"),
        ("0 0 13 * FRI", "2026-01-01T00:00:00", "2026-01-02T00:00:00"),
        ("0 0 13 * *", "2026-01-01T00:00:00", "2026-01-13T00:00:00"),
        ("0 0 * * 7", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", "2026-01-01T00:00:00", "2026-01-02T00:00:00"),
        ("TZ=Asia/Tokyo 0 9 * * *", "2025-12-31T23:59:59", "2026-01-01T00:00:00"),
    ],
)
def test_the_next_time_of_an_expression(expression: str, after: str, then: str) -> None:
    assert parse_cron(expression).next_after(at(after), UTC) == at(then)


@pytest.mark.parametrize(
    ("expression", "after", "then"),
    [
        ("30 2 * * *", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),  # 02:30 is skipped: 03:00 summer time
        ("30 2 * * *", "2026-03-29T01:00:00", "2026-03-30T00:30:00"),
        ("*/30 * * * *", "2026-03-29T00:30:00", "2026-03-29T01:00:00"),  # 01:30 winter time, then 03:00
        ("30 2 * * *", "2026-10-24T12:00:00", "2026-10-25T00:30:00"),  # 02:30 comes twice
        ("30 2 * * *", "2026-10-25T00:30:00", "2026-10-26T01:30:00"),
        ("0 * * * *", "2026-10-25T00:00:00", "2026-10-25T01:00:00"),  # every hour, also the repeated one
    ],
)
def test_clock_changes_neither_lose_nor_double_a_fixed_time(expression: str, after: str, then: str) -> None:
    assert parse_cron(expression).next_after(at(after), BERLIN) == at(then)


def test_an_expression_that_names_no_day_has_no_next_time() -> None:
    assert parse_cron("0 0 30 2 *").next_after(at("2026-01-01T00:00:00"), UTC) is None


@pytest.mark.parametrize(
    "expression",
    ["", "@hourly", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
     "*/0 * * * *", "5-1 * * * *", "a * * * *", "1,,2 * * * *", "TZ=No/Where * * * * *", "TZ= * * * * *",
     "CRON_TZ=../../etc/passwd * * * * *", "-1 * * * *", "* * * FOO *", "1" * 2000],
)  # fmt: skip
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(DefinitionError, match="invalid cron expression"):
        parse_cron(expression)


@pytest.mark.parametrize(
    ("expression", "count"),
    [("*/7 * * * *", 1), ("*/15 * * * *", 0), ("* */5 * * *", 1), ("* */6 */2 */5 */3", 3), ("0-59/7 * * * *", 0)],
)
def test_a_step_that_does_not_divide_its_field_is_warned_about(expression: str, count: int) -> None:
    assert len(parse_cron(expression).warnings) == count


def schedule(text: str) -> Any:
    return load_definition(f"schedule: {text}\nsteps: [{{run: x}}]").main.schedule


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("0 1 * * *", {"start": [{"expression": "0 1 * * *"}]}),
        ('["0 1 * * *", {expression: 0 2 * * *, kind: cron, profile: p}]',
         {"start": [{"expression": "0 1 * * *"}, {"expression": "0 2 * * *", "profile": "p"}]}),
        ("{start: 0 1 * * *, stop: [0 2 * * *], restart: null}",
         {"start": [{"expression": "0 1 * * *"}], "stop": [{"expression": "0 2 * * *"}]}),
        ('[{at: "2026-01-01T10:00:00+02:00", kind: at}]', {"start": [{"at": "2026-01-01T10:00:00+02:00"}]}),
    ],
)  # fmt: skip
def test_every_form_of_a_schedule_is_read(text: str, read: Any) -> None:
    assert schedule(text) == read


def test_a_moment_comes_once() -> None:
    once = schedule('[{at: "2026-01-01T10:00:00+02:00"}]')
    assert next_start(once, at("2026-01-01T00:00:00"), UTC) == at("2026-01-01T08:00:00")
    assert next_start(once, at("2026-01-01T08:00:00"), UTC) is None
    assert next_start(None, at("2026-01-01T08:00:00"), UTC) is None


def test_an_entry_with_a_profile_counts_only_for_that_profile() -> None:
    both = schedule("[{expression: 0 1 * * *, profile: night}, 0 9 * * *]")
    assert next_start(both, at("2026-01-01T00:00:00"), UTC) == at("2026-01-01T09:00:00")
    assert next_start(both, at("2026-01-01T00:00:00"), UTC, profile="night") == at("2026-01-01T01:00:00")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("'@daily'", "schedule: invalid cron expression"),
        ('{start: ["* * *"]}', "schedule.start[0]: invalid cron expression"),
        ('{begin: "* * * * *"}', "invalid keys"),
        ('[{expression: "* * * * *", zone: x}]', "invalid keys"),
        ("[{}]", "expression and at"),
        ("[{at: '2026-01-01T10:00:01Z'}]", "seconds 00"),
        ("[{at: '2026-01-01T10:00:00'}]", "offset"),
        ("[{at: '2026-13-01T10:00:00Z'}]", "expected a time"),
        ("{stop: [{at: '2026-01-01T10:00:00Z'}]}", "only for start"),
        ("[{at: '2026-01-01T10:00:00Z', kind: cron}]", "kind"),
        ("[[1]]", "expected a cron expression"),
        ("5", "invalid cron expression"),
    ],
)
def test_a_wrong_schedule_is_refused(text: str, said: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        schedule(text)
    assert said in str(caught.value)


def test_the_loader_warns_of_odd_steps() -> None:
    assert "fixed offsets" in "".join(load_definition("schedule: '*/7 * * * *'\nsteps: [{run: x}]").warnings)


# ---------------------------------------------------------------------------------------------- an independent calendar

_field = {
    "minute": st.lists(st.integers(0, 59), min_size=1, max_size=4),
    "hour": st.lists(st.integers(0, 23), min_size=1, max_size=3),
    "day": st.none() | st.lists(st.integers(1, 31), min_size=1, max_size=4),
    "month": st.none() | st.lists(st.integers(1, 12), min_size=3, max_size=8),
    "weekday": st.none() | st.lists(st.integers(0, 6), min_size=1, max_size=3),
}


def moments(first: int, last: int) -> st.SearchStrategy[datetime]:
    span = (date(last, 1, 1) - date(first, 1, 1)).days * 86_400
    return st.integers(0, span).map(lambda seconds: datetime(first, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))


def minutes_after(moment: datetime) -> Iterator[datetime]:
    at = moment.replace(second=0, microsecond=0)
    while True:
        at += timedelta(minutes=1)
        yield at


@settings(max_examples=25)
@given(
    **_field,
    moment=moments(2024, 2030),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "Etc/GMT+7"]),
)
def test_the_next_time_is_the_first_minute_that_matches(
    minute: list[int],
    hour: list[int],
    day: list[int] | None,
    month: list[int] | None,
    weekday: list[int] | None,
    moment: datetime,
    zone: str,
) -> None:
    text = " ".join(
        "*" if field is None else ",".join(map(str, field)) for field in (minute, hour, day, month, weekday)
    )
    found = parse_cron(text).next_after(moment, ZoneInfo(zone))

    def matches(local: datetime) -> bool:
        in_week = weekday is None or (local.weekday() + 1) % 7 in weekday
        in_month = day is None or local.day in day
        is_day = (in_week or in_month) if day is not None and weekday is not None else (in_week and in_month)
        return local.minute in minute and local.hour in hour and is_day and (month is None or local.month in month)

    for count, at in enumerate(minutes_after(moment)):
        if matches(at.astimezone(ZoneInfo(zone))):
            assert found == at
            return
        if count > 10_000:  # a week without a match: nothing was found too early
            assert found is None or found > at
            return


@settings(max_examples=25)
@given(
    hour=st.integers(0, 4),
    minute=st.integers(0, 59),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"]),
    start=moments(2025, 2027),
)
def test_a_daily_time_fires_exactly_once_a_day_through_clock_changes(
    hour: int, minute: int, zone: str, start: datetime
) -> None:
    cron, where = parse_cron(f"{minute} {hour} * * *"), ZoneInfo(zone)
    moment = start
    dates = []
    for _ in range(40):
        found = cron.next_after(moment, where)
        assert found is not None
        assert found > moment
        moment = found
        dates.append(found.astimezone(where).date())
    assert dates == [dates[0] + timedelta(days=count) for count in range(40)]
