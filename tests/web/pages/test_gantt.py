"""The timeline of a run: bars lie where their steps were, inside the drawing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.run.model import StepStatus
from secure_dagu.web.pages.gantt import WIDTH, timeline

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def _node(name: str, start: int | None, end: int | None, status: StepStatus = StepStatus.SUCCEEDED) -> dict[str, Any]:
    def at(seconds: int | None) -> str:
        return "" if seconds is None else (NOW - timedelta(hours=1) + timedelta(seconds=seconds)).isoformat()

    return {"step": {"name": name}, "status": int(status), "startedAt": at(start), "finishedAt": at(end)}


def test_a_step_that_ran_twice_as_long_has_a_bar_twice_as_wide() -> None:
    first, second = timeline([_node("a", 0, 10), _node("b", 10, 30)], now=NOW).bars
    assert round(second.width / first.width, 6) == 2
    assert round(first.x + first.width, 6) == round(second.x, 6)
    assert second.y > first.y


def test_a_running_step_reaches_until_now_and_a_waiting_one_has_no_bar() -> None:
    running, waiting = timeline(
        [_node("a", 0, None, StepStatus.RUNNING), _node("b", None, None, StepStatus.NOT_STARTED)], now=NOW
    ).bars
    assert running.seconds == 3600
    assert waiting.width == 0


def test_times_that_are_none_do_not_break_the_drawing() -> None:
    node = _node("a", 0, 1) | {"startedAt": "<script>", "finishedAt": 7}
    assert timeline([node], now=NOW).bars[0].width == 0


@given(
    st.lists(
        st.tuples(st.integers(-(10**7), 10**7), st.integers(-(10**7), 10**7)).map(lambda pair: (min(pair), max(pair))),
        max_size=30,
    )
)
def test_bars_stay_inside_and_ticks_stay_few(spans: list[tuple[int, int]]) -> None:
    drawing = timeline([_node(str(n), *span) for n, span in enumerate(spans)], now=NOW)
    assert all(bar.x >= 0 and bar.x + bar.width <= WIDTH for bar in drawing.bars)
    assert 1 <= len(drawing.ticks) <= 10
