"""Which starts, stops and restarts are due. Pure (workflow language, section 3.19).

A time that is a little late, because another scheduler had to take over first, is still kept. What is older was
missed: it is caught up on by DAGs that ask for that (`catchup_window`), and is dropped by all others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum

from msgspec import Struct

from secure_dagu.dag.model import Dag
from secure_dagu.dag.schedule import Upcoming, entries

AT_MOST = 1000
"""Missed times of one DAG that are looked at in one tick; the rest in the next."""
_WINDOW = re.compile(r"(?:(\d+)d)?(.*)", re.DOTALL)
_LONGEST = timedelta(days=9 * 366)
_LOOKED_BACK = (*(timedelta(minutes=minutes) for minutes in (2, 61, 1441, 8 * 1440, 32 * 1440, 367 * 1440)), _LONGEST)


class Kind(StrEnum):
    """Why a run gets its id."""

    SCHEDULED = "sched"
    RESTARTED = "restart"
    CAUGHT_UP = "catchup"


class Verdict(StrEnum):
    """What becomes of one time."""

    FIRE = "fire"
    DROP = "drop"
    KEEP = "keep"
    """Not now: looked at again with the next tick, and nothing later of the DAG before it."""


class Starts(Struct, frozen=True, kw_only=True):
    """The start times of one DAG that have come since it was last looked at, oldest first."""

    settled: datetime
    """Nothing up to here is left to decide, whatever becomes of the times."""
    missed: tuple[datetime, ...] = ()
    due: tuple[datetime, ...] = ()
    has_more: bool = False
    """More was missed than one tick looks at."""


def starts(
    dag: Dag, watermark: datetime, now: datetime, zone: tzinfo, *, late: timedelta, catches_up: bool, upcoming: Upcoming
) -> Starts:
    """Return the start times of a DAG after its watermark.

    Args:
        dag: what is scheduled.
        watermark: up to when everything was decided.
        now, zone: the time, and where expressions are read that name no zone.
        late: how old a time may be that still counts as due.
        catches_up: whether this host can catch up at all.
        upcoming: what remembers next times.
    """
    listed = entries(dag.schedule, "start")
    window = window_of(dag) if catches_up else timedelta()
    since = max(watermark, now - max(window, late))
    found = times(listed, since, now, zone, upcoming=upcoming, limit=AT_MOST + 1)
    if len(found) > AT_MOST:  # so many that what is due is not among them
        return Starts(settled=since, missed=tuple(found[:AT_MOST]), has_more=True)
    return Starts(
        settled=since,
        missed=tuple(at for at in found if at <= now - late),
        due=tuple(at for at in found if at > now - late),
    )


def times(
    listed: Sequence[Mapping[str, str]],
    since: datetime,
    until: datetime,
    zone: tzinfo,
    *,
    upcoming: Upcoming,
    limit: int = AT_MOST,
) -> list[datetime]:
    """Return the first times of some entries in (`since`, `until`], each once, in order."""
    found: list[datetime] = []
    at = since
    while len(found) < limit:
        following = [one for entry in listed if (one := upcoming.next_after(entry, at, zone)) is not None]
        at = min(following, default=until + timedelta(minutes=1))
        if at > until:
            break
        found.append(at)
    return found


def previous(listed: Sequence[Mapping[str, str]], before: datetime, zone: tzinfo) -> datetime:
    """Return the last time of some entries before `before`; years ago when there is none."""
    for back in _LOOKED_BACK:
        at = before - back
        found = times(listed, at, before - timedelta(seconds=1), zone, upcoming=Upcoming(), limit=100_000)
        if found:
            return found[-1]
    return before - _LONGEST


def decide(dag: Dag, *, is_missed: bool, is_newest: bool, is_active: bool, catches_up: bool, queues: bool) -> Verdict:
    """Decide what becomes of one start time.

    Args:
        dag: what is started.
        is_missed: it is old, and caught up on.
        is_newest: no later time of the DAG waits to be decided.
        is_active: a run of the DAG runs or waits in its queue.
        catches_up: whether the DAG catches up; if not, its overlap policy is `skip`.
        queues: whether runs are queued. A named queue takes further runs itself.
    """
    policy = dag.overlap_policy if catches_up else "skip"
    if not is_missed and policy == "skip" and dag.queue and queues:
        return Verdict.FIRE
    if policy == "latest" and not is_newest:
        return Verdict.DROP
    if not is_active:
        return Verdict.FIRE
    return Verdict.DROP if policy == "skip" else Verdict.KEEP


def window_of(dag: Dag) -> timedelta:
    """Return `catchup_window` (`6h`, `2d12h`); nothing when the DAG does not catch up."""
    from secure_dagu.dag.durations import seconds

    parts = _WINDOW.fullmatch(dag.catchup_window.strip())
    if not dag.catchup_window or parts is None:
        return timedelta()
    rest = seconds(parts[2], field="catchup_window") if parts[2] else 0.0
    return min(timedelta(days=min(int(parts[1] or 0), 10_000), seconds=min(rest, 10_000 * 86400)), _LONGEST)


def run_id(kind: Kind, name: str, at: datetime) -> str:
    """Return the id of the run of a DAG at a time: whoever fires it and however often, it is the same run."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{kind}-{name.replace('.', '_')[:31]}-{digest}-{at:%Y%m%dT%H%M%S}"
