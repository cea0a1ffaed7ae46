"""Fold events that repeat at the will of others: the first is written, the rest of its minute is counted. Pure.

A stranger who knocks a thousand times a second, or a parent run that asks after its child every second, must not fill
the disk; but no refusal may go unrecorded, so the count follows when the minute is over.
"""

from __future__ import annotations

from collections.abc import Hashable

from msgspec.structs import replace

from secure_dagu.audit.events import MEANINGS, Detail, Event, Outcome

WINDOW_S = 60.0
MAX_KEYS = 10_000
"""Different events that a window tells apart; beyond it they are told apart by action and reason only."""


class Folder:
    """Decide which events are written now."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Run] = {}

    def take(self, event: Event, now_s: float) -> Event | None:
        """Return the event to write now; None when it only counts. `now_s`: a monotonic clock."""
        if not MEANINGS[event.action].folds and event.outcome is Outcome.SUCCEEDED:
            return event
        host = event.address.rpartition(":")[0]
        key: Hashable = (
            event.action, event.outcome, event.actor, event.serial, host, event.target, event.reason,
            event.details.get(Detail.WHAT),
        )  # fmt: skip
        if key not in self._open and len(self._open) >= MAX_KEYS:
            key = (event.action, event.outcome, event.reason)
            event = replace(event, actor="", serial="", address="", target="several", details={})
        run = self._open.get(key)
        if run is None:
            self._open[key] = _Run(event, now_s + WINDOW_S)
            return event
        run.repeats += 1
        return None

    def due(self, now_s: float) -> list[Event]:
        """Return the counts of windows that are over. An endless one gives a count each minute."""
        over: list[Event] = []
        while self._open:
            key, run = next(iter(self._open.items()))
            if run.until > now_s:  # the oldest is first: all windows are equally long
                break
            del self._open[key]
            if run.repeats:
                over.append(run.count())
                self._open[key] = _Run(run.event, now_s + WINDOW_S)
        return over

    def rest(self) -> list[Event]:
        """Return every count that is open: the process ends."""
        over = [run.count() for run in self._open.values() if run.repeats]
        self._open.clear()
        return over


class _Run:
    __slots__ = ("event", "repeats", "until")

    def __init__(self, event: Event, until: float) -> None:
        self.event = event
        self.until = until
        self.repeats = 0

    def count(self) -> Event:
        return replace(self.event, details={**self.event.details, Detail.REPEATS: self.repeats})
