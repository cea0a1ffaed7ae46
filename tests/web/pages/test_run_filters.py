"""The filters of the run list: read from a URL, told in one, and turned into what is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.run.model import RunStatus
from secure_dagu.web.pages.run_filters import RANGES, filters_of

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def test_without_a_query_it_is_the_last_day_and_the_url_stays_clean() -> None:
    filters = filters_of([])
    wanted = filters.wanted(NOW, UTC)
    assert filters.is_default
    assert filters.told == "Last 24 hours"
    assert wanted.since == datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    assert wanted.until is None


def test_yesterday_is_a_day_of_the_time_zone_of_the_server() -> None:
    wanted = filters_of([("range", "yesterday")]).wanted(NOW, BERLIN)
    assert wanted.since == datetime(2026, 11, 23, 23, 0, tzinfo=UTC)
    assert wanted.until == datetime(2026, 11, 24, 23, 0, tzinfo=UTC)


def test_the_last_day_of_a_span_belongs_to_it() -> None:
    wanted = filters_of([("range", "custom"), ("from", "2026-11-01"), ("to", "2026-11-02")]).wanted(NOW, UTC)
    assert wanted.since == datetime(2026, 11, 1, tzinfo=UTC)
    assert wanted.until == datetime(2026, 11, 3, tzinfo=UTC)


def test_several_statuses_and_labels_are_asked_together() -> None:
    filters = filters_of([("status", "failed"), ("status", "queued"), ("status", "nonsense"), ("labels", "a=1, b")])
    wanted = filters.wanted(NOW, UTC)
    assert wanted.statuses == {RunStatus.FAILED, RunStatus.QUEUED}
    assert wanted.labels == ("a=1", "b")
    assert filters.query() == "status=failed&status=queued&labels=a%3D1%2C+b"


@pytest.mark.parametrize("pair", [("limit", "9999999"), ("range", "<x>"), ("from", "2026-13-41"), ("status", "\0")])
def test_what_cannot_be_read_is_left_out(pair: tuple[str, str]) -> None:
    assert filters_of([pair]).is_default


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["name", "runId", "status", "labels", "range", "from", "to", "limit", "cursor", "x"]),
            st.text(max_size=40) | st.sampled_from([*RANGES, "2026-01-31", "failed", "100"]),
        ),
        max_size=12,
    )
)
def test_any_url_is_read_and_its_own_query_means_the_same(pairs: list[tuple[str, str]]) -> None:
    filters = filters_of(pairs)
    again = filters_of(parse_qsl(filters.query()))
    assert again.wanted(NOW, UTC) == filters.wanted(NOW, UTC)
