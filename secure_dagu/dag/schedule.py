"""Read `schedule`: cron lines and moments, for start, stop and restart; say when the next one is. Pure.

Section 3.19 of the workflow language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Map
from datetime import UTC, datetime, tzinfo
from typing import Any

from secure_dagu.dag import reading, schema
from secure_dagu.dag.cron import parse_cron
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.errors import DefinitionError

_KINDS = ("start", "stop", "restart")
MAX_REMEMBERED = 20_000
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:00(?:\.0+)?(?:Z|[+-]\d{2}:\d{2})")


def read_schedule(report: Report, node: Node | None, path: str) -> Any:
    """Return the schedule as `{"start": [entry…], "stop": …, "restart": …}` with the kinds that are there.

    An entry is `{"expression": text}` or `{"at": text}`, with `profile` when it has one. None: no schedule.
    """
    if node is None:
        return None
    if isinstance(node, Mapping) and not node.entries.keys() & schema.SCHEDULE_ENTRY.keys():
        reading.table(report, node, path, schema.SCHEDULE)
        return {
            kind: _entries(report, node.get(kind), f"{path}.{kind}", is_start=kind == "start")
            for kind in _KINDS
            if node.get(kind) is not None
        }
    return {"start": _entries(report, node, path, is_start=True)}


def next_start(schedule: Any, moment: datetime, zone: tzinfo, *, profile: str = "") -> datetime | None:
    """Return when a DAG is started next, strictly after `moment`, in UTC; None if never.

    Args:
        schedule: what `read_schedule` returned (`Dag.schedule`).
        moment: an aware time.
        zone: of expressions that name none.
        profile: the DAG's default profile; entries with another one do not count.
    """
    return Upcoming().next_start(schedule, moment, zone, profile=profile)


def next_after(entry: Map[str, str], moment: datetime, zone: tzinfo) -> datetime | None:
    """Return the first time of one entry strictly after `moment`, in UTC; None if there is none."""
    if "expression" in entry:
        return parse_cron(entry["expression"]).next_after(moment, zone)
    at = datetime.fromisoformat(entry["at"]).astimezone(UTC)
    return at if at > moment else None


class Upcoming:
    """Remember what `next_after` said of each entry: asked for a moment before that, it would say the same."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[tuple[str, str], tuple[datetime, datetime | None]] = {}

    def next_after(self, entry: Map[str, str], moment: datetime, zone: tzinfo) -> datetime | None:
        """Return what `next_after` returns."""
        key = (entry.get("expression") or entry.get("at", ""), str(zone))
        asked, said = self._known.get(key, (None, None))
        if asked is not None and asked <= moment and (said is None or moment < said):
            return said
        found = next_after(entry, moment, zone)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[key] = (moment, found)
        return found

    def next_start(self, schedule: Any, moment: datetime, zone: tzinfo, *, profile: str = "") -> datetime | None:
        """Return what `next_start` returns."""
        found = (self.next_after(entry, moment, zone) for entry in entries(schedule, "start", profile=profile))
        return min((at for at in found if at is not None), default=None)


def entries(schedule: Any, kind: str, *, profile: str = "") -> list[Map[str, str]]:
    """Return the entries of a kind that count: those without a profile, and those of the DAG's default profile."""
    listed = schedule.get(kind, ()) if isinstance(schedule, Map) else ()
    return [entry for entry in listed if entry.get("profile", profile) == profile]


def _entries(report: Report, node: Node | None, path: str, *, is_start: bool) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    listed = [node] if not isinstance(node, Sequence) else node.items
    for index, item in enumerate(listed):
        where = f"{path}[{index}]" if isinstance(node, Sequence) else path
        if isinstance(item, Mapping):
            found.append(_entry(report, item, where, is_start=is_start))
        elif isinstance(item, Scalar) and not item.is_null:
            found.append({"expression": _cron(report, item, where)})
        elif item is not None:
            report.problem(item, where, f"expected a cron expression or a map, found {reading.kind_of(item)}")
    return found


def _entry(report: Report, entry: Mapping, path: str, *, is_start: bool) -> dict[str, str]:
    reading.table(report, entry, path, schema.SCHEDULE_ENTRY)
    cron, at = entry.get("expression"), entry.get("at")
    if (cron is None) == (at is None):
        report.problem(entry, path, "exactly one of expression and at is needed")
        return {}
    kind = "cron" if cron is not None else "at"
    reading.choice(report, entry.get("kind"), f"{path}.kind", (kind,), kind)
    profile = reading.text(report, entry.get("profile"), f"{path}.profile")
    shared = {"profile": profile} if profile else {}
    if cron is not None:
        return {"expression": _cron(report, cron, f"{path}.expression"), **shared}
    assert at is not None
    if not is_start:
        report.problem(at, f"{path}.at", "at is only for start")
    return {"at": _moment(report, at, f"{path}.at"), **shared}


def _moment(report: Report, node: Node, path: str) -> str:
    text = reading.text(report, node, path)
    try:
        if _MOMENT.fullmatch(text):
            datetime.fromisoformat(text).astimezone(UTC)
            return text
    except (ValueError, OverflowError):
        pass
    report.problem(node, path, "expected a time such as 2026-01-31T09:30:00+01:00, with offset and seconds 00")
    return text


def _cron(report: Report, node: Node, path: str) -> str:
    text = reading.text(report, node, path)
    try:
        for warning in parse_cron(text).warnings:
            report.warn(node, path, warning)
    except DefinitionError as error:
        report.problem(node, path, str(error))
    return text
