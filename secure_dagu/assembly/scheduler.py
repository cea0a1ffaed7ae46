"""The scheduler of a process: alone, or inside `start-all`. One of several on a data directory is active.

async with scheduling(loaded, launcher=…, workflows=…, runs=…, trail=…) as scheduler:
    scheduler.objections()   # why it does not work; empty: it does, as the active one or as a standby
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from secure_dagu import __version__
from secure_dagu.assembly import audit, exceptions, recording
from secure_dagu.assembly.disk import Disk
from secure_dagu.assembly.edge import client_policy, denied, server_events
from secure_dagu.assembly.health import Policy, serve_health
from secure_dagu.assembly.launching import launching, queue_processor
from secure_dagu.assembly.operator import way_to_coordinator
from secure_dagu.assembly.places import places_of, workflows_of, zone_of
from secure_dagu.assembly.process import settle, signals
from secure_dagu.audit.events import SYSTEM, Action, Event, Trail, run_target
from secure_dagu.audit.log import AuditLog
from secure_dagu.config.load import Loaded
from secure_dagu.config.peers import Purpose
from secure_dagu.discovery.registry import Instance, Registry, Service, Status, registered
from secure_dagu.dispatch.operating import Document, RunFilter, Runs, Workflows
from secure_dagu.errors import ConfigError, SecureDaguError, Unavailable
from secure_dagu.link.context import UnsafePlaintext
from secure_dagu.local import zombies
from secure_dagu.local.catalogue import Catalogue
from secure_dagu.local.launching import Launcher
from secure_dagu.run.model import RunStatus
from secure_dagu.scheduler.lock import Lock, holder
from secure_dagu.scheduler.retries import Retries
from secure_dagu.scheduler.service import Fenced, Options
from secure_dagu.scheduler.service import Scheduler as Ticks
from secure_dagu.scheduler.state import StateFile
from secure_dagu.telemetry import metrics, schedule_series
from secure_dagu.telemetry.queue_series import QUEUES

log = structlog.get_logger()

BEAT_S: Final = 7.0
SILENT_TICKS_S: Final = 180.0
"""How long no tick may have ended well before an active scheduler says that it does not work."""

Job = Callable[[], Awaitable[object]]


async def run_scheduler(loaded: Loaded) -> None:
    """Schedule until SIGTERM or SIGINT.

    Raises:
        ConfigError: something is missing or cannot be used.
    """
    own = loaded.settings.scheduler
    held = exceptions.held_for(loaded, exceptions.wanted_by_scheduler(loaded))
    metrics.DAG_LABELS.is_wanted = loaded.settings.core.metrics_per_dag
    with signals() as stop:
        async with contextlib.AsyncExitStack() as stack:
            check_folders(loaded)
            trail = await _trail(loaded, stack)
            disk = Disk(loaded.settings.paths.data_dir)
            await stack.enter_async_context(disk.watched())
            way = await stack.enter_async_context(way_to_coordinator(loaded, name="scheduler"))
            runs = Catalogue(places_of(loaded), way=way, reader="scheduler")
            stack.callback(runs.close)
            launcher = await stack.enter_async_context(launching(loaded, way=way))
            scheduler = await stack.enter_async_context(
                scheduling(loaded, launcher=launcher, workflows=workflows_of(loaded), runs=runs, trail=trail)
            )
            await stack.enter_async_context(exceptions.watching(held, lambda _kind: None, trail))
            speaks_https = own.metrics_access == "tls" or (
                own.metrics_access == "token" and not exceptions.is_loopback(own.host)
            )
            policy = _Policy(loaded, lambda: bool(own.port and speaks_https) or way.coordinator is not None)
            runs.when_ended(scheduler.count_end)
            await stack.enter_async_context(runs.watching())
            await stack.enter_async_context(
                serve_health(
                    loaded,
                    "scheduler",
                    facts=scheduler.facts,
                    objections=lambda: [
                        *([Unavailable("the scheduler is stopping")] if stop.is_set() else []),
                        *([Unavailable(why)] if (why := scheduler.objections()) else []),
                        *disk.objections(),
                        *([Unavailable(why)] if (why := trail.problem()) else []),
                    ],
                    policy=policy,
                    registries=(metrics.COMMON, schedule_series.SCHEDULER, QUEUES),
                    held=held,
                    on_event=audit.links(trail, server_events),
                    denied=audit.denials(trail, denied),
                )
            )
            settle()
            log.info("scheduler.ready", version=__version__, health=f"{own.host}:{own.port}")
            await stop.wait()
            log.info("scheduler.stopping")


class _Policy:
    """The operator's certificate and trust, read as soon as something needs them."""

    def __init__(self, loaded: Loaded, is_needed: Callable[[], bool]) -> None:
        self._loaded, self._is_needed = loaded, is_needed
        self._policy: Policy = UnsafePlaintext()

    def __call__(self) -> Policy:
        if isinstance(self._policy, UnsafePlaintext) and self._is_needed():
            self._policy = client_policy(self._loaded, Purpose.OPERATOR)
        return self._policy


async def _trail(loaded: Loaded, stack: contextlib.AsyncExitStack) -> AuditLog:
    """Open an audit log: several schedulers of one data directory have one each."""
    *first, last = recording.scheduler_folders(loaded)
    for folder in first:
        with contextlib.suppress(Unavailable):
            opening = audit.process_trail(loaded, "scheduler", None, folder=folder, wait_s=0.0)
            return await stack.enter_async_context(opening)
    return await stack.enter_async_context(audit.process_trail(loaded, "scheduler", None, folder=last))


def check_folders(loaded: Loaded) -> None:
    """Find out at the start whether the folders can be used.

    Raises:
        ConfigError: one cannot.
    """
    paths = loaded.settings.paths
    for key, folder, rights in (
        ("paths.dags_dir", paths.dags_dir, os.R_OK | os.X_OK),
        ("paths.data_dir", paths.data_dir, os.R_OK | os.W_OK | os.X_OK),
    ):
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            why = "" if os.access(folder, rights) else "permission denied"
        except OSError as error:
            why = os.strerror(error.errno or 0)
        if why:
            raise ConfigError(f"{key} cannot be used", why=f"{folder}: {why}", fix="give this user rights to it")


@contextlib.asynccontextmanager
async def scheduling(
    loaded: Loaded, *, launcher: Launcher, workflows: Workflows, runs: Runs, trail: Trail
) -> AsyncIterator[Scheduling]:
    """Be the active scheduler, or wait to be; for the time of the context.

    Args:
        loaded: the settings.
        launcher, workflows, runs: what starts runs, what is scheduled, and what ran.
        trail: where zombies are recorded.
    """
    scheduler = Scheduling(loaded, launcher, workflows, runs, trail)
    async with (
        registered(Registry(loaded.settings.paths.service_registry_dir), Service.SCHEDULER, scheduler.instance) as tell,
        asyncio.TaskGroup() as group,
    ):
        serving = group.create_task(scheduler.serve(tell), name="scheduler")
        try:
            yield scheduler
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            scheduler.let_go()


class Scheduling:
    """The scheduler of this process."""

    def __init__(
        self, loaded: Loaded, launcher: Launcher, workflows: Workflows, runs: Runs, trail: Trail
    ) -> None:  # fmt: skip
        """Take what `scheduling` takes."""
        own, settings = loaded.settings.scheduler, loaded.settings
        self._own, self._launcher, self._workflows, self._runs, self._trail = own, launcher, workflows, runs, trail
        self._loaded = loaded
        folder = settings.paths.data_dir / "scheduler"
        host, began = socket.gethostname(), int(time.time())
        self.instance = Instance(
            id=f"{host}-{os.getpid()}-{began}", host=host, port=own.port, pid=os.getpid(), status=Status.INACTIVE
        )
        self._stale_s = max(own.lock_stale_threshold.total_seconds(), 0.1)
        self._retry_s = max(own.lock_retry_interval.total_seconds(), 0.05)
        self._lock = Lock(folder / "locks", holder(self.instance.id), stale_s=self._stale_s)
        self._file = StateFile(folder / "state.json")
        self._late = timedelta(seconds=60 + self._stale_s + self._retry_s)
        self._looked_at = self._active_since = 0.0
        self._problem = "the scheduler is starting"
        self._ticks: Ticks | None = None

    @property
    def is_active(self) -> bool:
        """Tell whether this is the active one, as far as it knows."""
        return self._active_since > 0

    def facts(self) -> dict[str, object]:
        """Return what `/health` says."""
        return {"status": "healthy", "role": "active" if self.is_active else "standby", "instance": self.instance.id}

    def objections(self) -> str:
        """Return why the scheduler does not work; empty: it does, or stands by with a fresh look at the lock."""
        now = time.monotonic()
        if not self.is_active:
            if now - self._looked_at > 3 * self._retry_s + 1:
                return self._problem or "the lock of the scheduler has not been looked at for a while"
            return ""
        ticked_at = max(self._ticks.ticked_at if self._ticks is not None else 0.0, self._active_since)
        return "no tick has ended well for a while" if now - ticked_at > SILENT_TICKS_S else ""

    async def serve(self, tell: Callable[[Status], None]) -> None:
        """Wait for the lock, work while it is ours, and again, until cancelled."""
        while True:
            if not await self._take():
                await asyncio.sleep(self._retry_s)
                continue
            self._active_since = time.monotonic()
            tell(Status.ACTIVE)
            schedule_series.RUNNING.set(1)
            log.info("scheduler.active", instance=self.instance.id)
            try:
                await self._work()
            except* Fenced:
                log.warning("scheduler.fenced", effect="another scheduler is active; this one stands by")
            finally:
                self._active_since, self._looked_at = 0.0, time.monotonic()
                schedule_series.RUNNING.set(0)
                tell(Status.INACTIVE)

    def count_end(self, document: Document) -> None:
        """Count a run of this host that has ended: the active scheduler alone does, so that each counts once."""
        if self.is_active:
            schedule_series.run_ended(document)

    def let_go(self) -> None:
        """Let another one take over at once."""
        with contextlib.suppress(OSError):
            self._lock.release()

    async def _take(self) -> bool:
        try:
            taken = await asyncio.to_thread(self._lock.take)
        except OSError as error:
            problem = f"the lock of the scheduler cannot be looked at: {error.strerror}"
            if problem != self._problem:
                log.error("scheduler.lock_failed", why=str(error))  # noqa: TRY400  no bug, no trace
            self._problem = problem
            return False
        self._looked_at, self._problem = time.monotonic(), ""
        return taken

    async def _work(self) -> None:
        """Work until cancelled.

        Raises:
            ExceptionGroup: of Fenced: another scheduler became active.
        """
        own, settings = self._own, self._loaded.settings
        self._ticks = Ticks(
            workflows=self._workflows, runs=self._runs, launching=self._launcher, file=self._file,
            options=Options(zone=zone_of(self._loaded), queues=settings.queues.enabled, late=self._late),
            is_active=self._lock.is_held,
        )  # fmt: skip
        jobs: list[Job] = [self._beat, self._ticks.run_forever]
        if settings.queues.enabled:
            jobs.append(queue_processor(self._loaded, self._launcher).run_forever)
        if own.zombie_detection_interval:
            jobs.append(self._sweep)
        if own.retry_failure_window:
            window = own.retry_failure_window
            jobs.append(Retries(self._runs, self._launcher, window=window, check=self._check).run_forever)
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_done(job), name=job.__qualname__)

    def _check(self) -> None:
        if not self._lock.is_held():
            raise Fenced

    async def _beat(self) -> None:
        """Say that we are alive, often enough.

        Raises:
            Fenced: another one took over, or nothing can be said for so long that another one may.
        """
        every_s = min(BEAT_S, self._stale_s / 4)
        said_at = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            try:
                is_ours = await asyncio.to_thread(self._lock.beat)
            except OSError as error:
                log.warning("scheduler.beat_failed", why=str(error))
                is_ours = time.monotonic() - said_at < self._stale_s
            else:
                said_at = time.monotonic()
            if not is_ours:
                raise Fenced

    async def _sweep(self) -> None:
        """Turn runs into failed ones whose process is gone, and queue again what lost its place."""
        interval_s = self._own.zombie_detection_interval.total_seconds()
        while True:
            try:
                await self._sweep_once()
            except (OSError, SecureDaguError) as error:
                log.warning("zombies.sweep_failed", why=str(error))
            await asyncio.sleep(interval_s)

    async def _sweep_once(self) -> None:
        self._check()
        places = self._launcher.places
        for run in await asyncio.to_thread(zombies.sweep, places):
            log.warning("run.zombie", dag=run.name, run=run.run_id, effect="failed: its process is gone")
            metrics.ZOMBIE_RUNS.labels("local").inc()
            self._trail.note(Event(action=Action.RUN_ABANDONED, actor=SYSTEM, target=run_target(run)))
        queued = await self._runs.find(RunFilter(statuses=frozenset({RunStatus.QUEUED})), limit=500)
        documents = [found.document for found in queued.runs]
        for run in await asyncio.to_thread(zombies.requeue, places, documents, datetime.now(UTC)):
            log.warning("run.requeued", dag=run.name, run=run.run_id, why="its place in the queue was lost")
        metrics.ZOMBIE_SWEEP_AT.set(time.time())


async def _done(job: Job) -> None:
    await job()
