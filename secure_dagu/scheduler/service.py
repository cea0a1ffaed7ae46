"""The scheduler: at each minute, start, stop and restart what is due; catch up on what was missed.

One tick may be repeated at any time, after a crash too: what it decides again leads to the same runs. So state is
written after what it tells of, and only the intention to use an id that another rule would make differently goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo

import structlog
from msgspec import Struct

from secure_dagu.dag.model import Dag
from secure_dagu.dag.schedule import Upcoming, entries
from secure_dagu.dispatch.operating import Launching, RunFilter, Runs, StartRequest, Workflow, Workflows
from secure_dagu.errors import Conflict, NotFound, SecureDaguError, Unavailable
from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType
from secure_dagu.scheduler import ticks
from secure_dagu.scheduler.restarts import Restarts, running
from secure_dagu.scheduler.state import State, StateFile
from secure_dagu.scheduler.ticks import Kind, Verdict
from secure_dagu.telemetry import schedule_series

log = structlog.get_logger()

ACTOR = "scheduler"
AGAIN_S = 0.5
"""Pause before starts that were kept back are looked at again."""
AFTER_FAILURE_S = 5.0
LOOK_EVERY_S = 1.0
"""How often the clock is read: it may be set, and the host may have slept."""
AT_ONCE = 16
AHEAD = timedelta(hours=1)
"""A watermark further in the future than this comes from a clock that was wrong."""
_ACTIVE = frozenset({RunStatus.RUNNING, RunStatus.QUEUED})


class Options(Struct, frozen=True, kw_only=True):
    """What the settings say."""

    zone: Callable[[], tzinfo]
    queues: bool = True
    """Runs are queued rather than started."""
    late: timedelta = timedelta(seconds=95)
    """How old a time may be that still counts as due."""


class Fenced(Exception):
    """Another scheduler is active: nothing more may be done."""


class Scheduler:
    """The schedule of one DAGs directory. Only the active scheduler calls it."""

    def __init__(
        self,
        *,
        workflows: Workflows,
        runs: Runs,
        launching: Launching,
        file: StateFile,
        options: Options,
        is_active: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take what is scheduled, what ran, what starts runs, where decisions are kept, and whether we may act."""
        self._workflows, self._runs, self._launching = workflows, runs, launching
        self._file, self._options, self._is_active = file, options, is_active
        self._upcoming = Upcoming()
        self._state: State | None = None
        self._saving = asyncio.Lock()
        self._kept: list[Workflow] = []
        self._restarts = Restarts(runs, launching, self._begin, self._save, self._check)
        self.ticked_at = 0.0
        """When a tick last ended well, by the monotonic clock."""

    async def run_forever(self) -> None:
        """Tick at each minute until cancelled.

        Raises:
            Fenced: another scheduler became active.
        """
        async with asyncio.TaskGroup() as group:
            self._restarts.group = group
            while True:
                now = datetime.now(UTC)
                try:
                    await self.tick(now)
                    while self._kept and not _is_another_minute(now):
                        await asyncio.sleep(AGAIN_S)
                        await self.go_on(datetime.now(UTC))
                except (OSError, SecureDaguError) as error:
                    log.error("scheduler.tick_failed", why=str(error))  # noqa: TRY400  no bug, no trace
                    schedule_series.TICK_FAILURES.inc()
                    await asyncio.sleep(AFTER_FAILURE_S)
                    continue
                await _until_minute_after(now)

    # ── one tick ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def tick(self, now: datetime) -> bool:
        """Do what is due up to `now`; tell whether something was kept back.

        Raises:
            OSError: the state cannot be kept. Fenced: another scheduler is active.
        """
        began = time.monotonic()
        self._check()
        state = await self._load(now)
        everything = await self._workflows.all()
        found = [one for one in everything if _is_scheduled(one)]
        for item in found:
            state.dags.setdefault(item.file, _begins(item, state.last_tick, now))
        await self._restarts.go_on(state.restarts, {item.file: item for item in found})
        await self._stops(state, found, now)
        self._kept = await self._start_all(state, found, now)
        state.last_tick = now
        state.dags = _watermarks(state, everything, now)
        state.firing = _left(state.firing, state.dags)
        await self._save()
        self.ticked_at = time.monotonic()
        schedule_series.ticked(self.ticked_at - began, dags=len(found), kept=len(self._kept))
        return bool(self._kept)

    async def go_on(self, now: datetime) -> None:
        """Look again at the starts that the last tick kept back.

        Raises:
            OSError, Fenced: as `tick`.
        """
        state = await self._load(now)
        found: list[Workflow] = []
        for item in self._kept:
            with contextlib.suppress(NotFound):
                found.append(await self._workflows.get(item.file))
        before = dict(state.dags)
        self._kept = await self._start_all(state, [item for item in found if _is_scheduled(item)], now)
        if state.dags != before:
            state.firing = _left(state.firing, state.dags)
            await self._save()

    async def _start_all(self, state: State, found: Sequence[Workflow], now: datetime) -> list[Workflow]:
        """Decide the starts of some DAGs; return those that keep some back."""
        slots = asyncio.Semaphore(AT_ONCE)
        kept: list[Workflow] = []

        async def one(item: Workflow, come: ticks.Starts) -> None:
            async with slots:
                if await self._starts(state, item, come, now):
                    kept.append(item)

        known = [(item, state.dags[item.file]) for item in found if state.dags.get(item.file, now) < now]
        come = await asyncio.to_thread(self._come, known, now)  # thousands take a while
        async with _unwrapped(), asyncio.TaskGroup() as group:
            for item, starts in come:
                if starts.missed or starts.due:
                    group.create_task(one(item, starts), name=f"schedule {item.file}")
                else:
                    state.dags[item.file] = now
        return kept

    def _come(self, known: Sequence[tuple[Workflow, datetime]], now: datetime) -> list[tuple[Workflow, ticks.Starts]]:
        zone = self._options.zone()

        def starts(dag: Dag, watermark: datetime) -> ticks.Starts:
            return ticks.starts(
                dag, watermark, now, zone, late=self._options.late, catches_up=self._options.queues,
                upcoming=self._upcoming,
            )  # fmt: skip

        return [(item, starts(_dag(item), watermark)) for item, watermark in known]

    async def _load(self, now: datetime) -> State:
        """Return the state; what lies in the future was written by a wrong clock."""
        if self._state is None:
            self._state = await asyncio.to_thread(self._file.read)
            for file, restart in self._state.restarts.items():
                self._restarts.resume(file, restart)
        state = self._state
        if state.last_tick is not None and state.last_tick > now + AHEAD:
            log.warning("scheduler.clock_set_back", last_tick=str(state.last_tick), now=str(now))
            state.last_tick = now
            state.dags = {file: min(at, now) for file, at in state.dags.items()}
        return state

    async def _save(self) -> None:
        assert self._state is not None, "what is kept was loaded"
        async with self._saving:
            self._check()
            await asyncio.to_thread(self._file.write, self._file.encode(self._state))

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _starts(self, state: State, item: Workflow, found: ticks.Starts, now: datetime) -> bool:
        """Decide the starts of one DAG that have come; tell whether one was kept back."""
        dag = _dag(item)
        listed = [(at, True) for at in found.missed] + [(at, False) for at in found.due]
        state.dags[item.file] = found.settled
        active = await self._active(item.name)
        for place, (at, is_missed) in enumerate(listed):
            own = {ticks.run_id(kind, item.name, at) for kind in (Kind.SCHEDULED, Kind.CAUGHT_UP)}
            verdict = ticks.decide(
                dag, is_missed=is_missed, is_newest=place == len(listed) - 1 and not found.has_more,
                is_active=bool(active - own), catches_up=self._options.queues and bool(dag.catchup_window),
                queues=self._options.queues,
            )  # fmt: skip
            if verdict is Verdict.FIRE and not is_missed and dag.skip_if_successful:
                verdict = Verdict.DROP if await self._has_succeeded(item, at) else verdict
            if verdict is Verdict.FIRE and not await self._fire(state, item, at, is_missed=is_missed):
                verdict = Verdict.KEEP
            if verdict is Verdict.KEEP:
                return True
            if verdict is Verdict.FIRE:
                active |= own
            else:
                schedule_series.skipped(is_missed=is_missed)
                log.info("schedule.skipped", dag=item.name, at=f"{at:%Y-%m-%dT%H:%M:%SZ}", missed=is_missed)
            state.dags[item.file] = at
        state.dags[item.file] = listed[-1][0] if found.has_more else now
        return found.has_more

    async def _fire(self, state: State, item: Workflow, at: datetime, *, is_missed: bool) -> bool:
        """Start the run of a time, at most once; False: it could not be started now."""
        begun = state.firing.get(item.file, [])
        if not is_missed and _dag(item).catchup_window and at not in begun:
            state.firing[item.file] = [*begun, at]  # or it would be caught up on as another run
            await self._save()
        kind = Kind.CAUGHT_UP if is_missed and at not in begun else Kind.SCHEDULED
        trigger = TriggerType.CATCHUP if is_missed else TriggerType.SCHEDULER
        return await self._begin(item, at, kind, trigger, "")

    async def _begin(self, item: Workflow, at: datetime, kind: Kind, trigger: TriggerType, params: str) -> bool:
        request = StartRequest(
            dag=item.file, run_id=ticks.run_id(kind, item.name, at), params=params, trigger=trigger, actor=ACTOR,
            schedule_time=f"{at:%Y-%m-%dT%H:%M:%SZ}", once=True,
        )  # fmt: skip
        self._check()
        words = {"dag": item.name, "run": request.run_id, "at": request.schedule_time}
        try:
            await (self._launching.enqueue if self._options.queues else self._launching.start)(request)
        except Conflict as error:
            log.info("schedule.started_already", why=error.what, **words)
        except Unavailable as error:
            log.warning("schedule.not_started_yet", why=str(error), **words)
            schedule_series.fired(trigger, result="delayed")
            return False
        except OSError as error:  # of its own folders: the other DAGs go on, and this one is tried again
            log.error("schedule.not_started_yet", why=str(error), **words)  # noqa: TRY400  no bug, no trace
            schedule_series.fired(trigger, result="delayed")
            return False
        except SecureDaguError as error:
            log.error("schedule.not_started", why=str(error), **words)  # noqa: TRY400  as above
            schedule_series.fired(trigger, result="failed")
        else:
            log.info("schedule.started", **words)
            schedule_series.fired(trigger, result="started")
        return True

    async def _active(self, name: str) -> set[str]:
        """Return runs of a DAG that run or wait, by id: as many as tell whether there is another than one's own."""
        found = await self._runs.find(RunFilter(name=name, statuses=_ACTIVE), limit=3)
        return {str(run.document.get("dagRunId")) for run in found.runs}

    async def _has_succeeded(self, item: Workflow, at: datetime) -> bool:
        """Tell whether a run of the DAG that began since its schedule time before `at` has succeeded."""
        since = ticks.previous(entries(_dag(item).schedule, "start"), at, self._options.zone())
        wanted = RunFilter(name=item.name, statuses=frozenset({RunStatus.SUCCEEDED}), since=since)
        return bool((await self._runs.find(wanted, limit=1)).runs)

    # ── stop, restart ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stops(self, state: State, found: Sequence[Workflow], now: datetime) -> None:
        """Stop and restart what is due; what was missed for longer than a moment is not done any more."""
        since, zone = max(state.last_tick or now, now - self._options.late), self._options.zone()
        for item in found:
            for kind in ("stop", "restart"):
                if not (listed := entries(_dag(item).schedule, kind)):
                    continue
                due = ticks.times(listed, since, now, zone, upcoming=self._upcoming)
                if due and kind == "restart":
                    await self._restarts.begin(state.restarts, item, due[-1])
                elif due:
                    await self._stop(item, due[-1])

    async def _stop(self, item: Workflow, at: datetime) -> None:
        for document in await running(self._runs, item.name, before=at):
            self._check()
            run = DagRunRef(item.name, str(document["dagRunId"]))
            try:
                await self._launching.stop(run, actor=ACTOR)
            except (Conflict, NotFound):
                continue  # it has ended meanwhile
            except (OSError, SecureDaguError) as error:  # the other DAGs go on
                log.error("schedule.not_stopped", dag=item.name, run=run.run_id, why=str(error))  # noqa: TRY400
                continue
            log.info("schedule.stopped", dag=item.name, run=run.run_id)

    def _check(self) -> None:
        if not self._is_active():
            raise Fenced


def _is_scheduled(item: Workflow) -> bool:
    return item.definition is not None and bool(item.definition.main.schedule) and not item.suspended


def _dag(item: Workflow) -> Dag:
    assert item.definition is not None, "others are left out"
    return item.definition.main


def _begins(item: Workflow, last_tick: datetime | None, now: datetime) -> datetime:
    """Return from when on a DAG is scheduled that was not at the last tick: this minute, if it was there before."""
    minute = now.replace(second=0, microsecond=0)
    if last_tick is None or last_tick >= minute or item.modified_at is None or item.modified_at >= minute:
        return now
    return minute - timedelta(seconds=1)


def _watermarks(state: State, everything: Sequence[Workflow], now: datetime) -> dict[str, datetime]:
    """Return up to when each DAG is decided: one that does not load now goes on from there when it does again."""
    found = {item.file: state.dags.get(item.file, now) for item in everything if _is_scheduled(item)}
    return found | {
        item.file: state.dags[item.file] for item in everything if item.definition is None and item.file in state.dags
    }


def _left(firing: Mapping[str, Sequence[datetime]], dags: Mapping[str, datetime]) -> dict[str, list[datetime]]:
    """Return what is still to be decided of the times that were begun."""
    found = {file: [at for at in times if file in dags and at > dags[file]] for file, times in firing.items()}
    return {file: times for file, times in found.items() if times}


async def _until_minute_after(moment: datetime) -> None:
    """Wait until the clock shows another minute: it may be set, and the host may have slept."""
    while not _is_another_minute(moment):
        next_minute = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        left = (next_minute - datetime.now(UTC)).total_seconds()
        await asyncio.sleep(min(max(left, 0.001), LOOK_EVERY_S))


def _is_another_minute(moment: datetime) -> bool:
    return datetime.now(UTC).replace(second=0, microsecond=0) != moment.replace(second=0, microsecond=0)


@contextlib.asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """Raise what a task group ended with, if it is one thing."""
    try:
        yield
    except BaseExceptionGroup as group:
        fenced = group.subgroup(Fenced)
        if fenced is not None:
            raise Fenced from None
        first = group.exceptions[0]
        if len(group.exceptions) == 1 and isinstance(first, OSError | SecureDaguError):
            raise first from None
        raise
