"""Everything in one process: web server, scheduler and, where one is asked for, a coordinator; or the web server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog
from msgspec import Struct, field

from secure_dagu import __version__
from secure_dagu.assembly import audit, coordinator, places, tunnel, web
from secure_dagu.assembly.edge import server_events
from secure_dagu.assembly.fleet import Machines
from secure_dagu.assembly.launching import launching, queue_book
from secure_dagu.assembly.operator import way_to_coordinator
from secure_dagu.assembly.process import settle, signals, signals_twice
from secure_dagu.audit.log import AuditLog
from secure_dagu.config.load import Loaded
from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.dispatch.way import Way
from secure_dagu.local import first_start
from secure_dagu.local.catalogue import Catalogue
from secure_dagu.local.launching import Launcher
from secure_dagu.telemetry import metrics, web_series
from secure_dagu.telemetry.queue_series import QUEUES
from secure_dagu.telemetry.schedule_series import SCHEDULER
from secure_dagu.web.accounts import Accounts

log = structlog.get_logger()

STOPPING_S: Final = 10.0
"""How long runs that are asked to stop may take."""
LOOK_EVERY_S: Final = 0.2


class _Coordinated(Struct, frozen=True, kw_only=True):
    """How the rest of the process reaches a coordinator, and where it records what it does."""

    way: Way
    trail: AuditLog
    registries: tuple[metrics.CollectorRegistry, ...] = field(default=(metrics.COMMON,))


def wants_coordinator(loaded: Loaded) -> bool:
    """Tell whether `start-all` runs a coordinator: only if somebody said how it is reached."""
    said = any(loaded.sources[f"coordinator.{name}"] != "default" for name in ("host", "advertise"))
    return loaded.settings.coordinator.enabled and said


async def run_start_all(loaded: Loaded) -> None:
    """Serve until SIGTERM or SIGINT; then runs of this host may finish, and a second signal ends it at once.

    Raises:
        ConfigError: something is missing or cannot be used; nothing was served.
    """
    with signals_twice() as (stop, at_once):
        async with _coordinated(loaded, stop) as way:
            await _serve(loaded, stop, at_once, way, has_scheduler=True)


async def run_server(loaded: Loaded) -> None:
    """Serve Web UI and REST API until SIGTERM or SIGINT.

    Raises:
        ConfigError: as `run_start_all`.
    """
    with signals() as stop:
        async with _beside(loaded) as way:
            await _serve(loaded, stop, stop, way, has_scheduler=False)


async def _serve(
    loaded: Loaded, stop: asyncio.Event, at_once: asyncio.Event, coordinated: _Coordinated, *, has_scheduler: bool
) -> None:
    paths = loaded.settings.paths
    if has_scheduler and loaded.settings.scheduler.port and loaded.sources["scheduler.port"] != "default":
        log.warning(
            "setting.unused", setting="scheduler.port", source=loaded.sources["scheduler.port"],
            why="in start-all the web server answers for the scheduler", instead="/api/v1/health, /ready and /metrics",
        )  # fmt: skip
    if not loaded.settings.core.skip_examples:
        for made in first_start.prepare(paths.dags_dir, paths.suspend_flags_dir, paths.base_config):
            log.info("first_start.wrote", what=made)
    async with contextlib.AsyncExitStack() as stack:
        host = places.places_of(loaded)
        runs = Catalogue(host, way=coordinated.way)
        stack.callback(runs.close)
        await stack.enter_async_context(runs.watching())
        launcher = await stack.enter_async_context(launching(loaded, way=coordinated.way))
        workflows = places.workflows_of(loaded)
        accounts = await web.open_accounts(loaded)
        node = await tunnel.find_node(loaded, has_login=_has_login(loaded, accounts)) if _is_tunnelled(loaded) else None
        scheduler_says: list[Callable[[], str]] = []
        operating = web.Operating(
            runs=runs,
            launching=launcher,
            queues=queue_book(loaded, launcher),
            workflows=workflows,
            fleet=Machines(loaded, coordinated.way),
            trail=coordinated.trail,
            has_coordinator=lambda: coordinated.way.coordinator is not None,
            is_stopping=stop.is_set,
            scheduler_ok=(lambda: scheduler_says[0]() if scheduler_says else "") if has_scheduler else None,
            registries=(*coordinated.registries, QUEUES, SCHEDULER if has_scheduler else web_series.ALONE),
        )
        await stack.enter_async_context(
            web.serving_web(
                loaded, operating, accounts, names=[node.name] if node is not None else [],
                trusts_loopback=node is not None, on_event=server_events,
            )
        )  # fmt: skip
        if node is not None:
            await stack.enter_async_context(tunnel.open_tunnel(loaded, node, port=loaded.settings.core.port))
        if has_scheduler:
            from secure_dagu.assembly.scheduler import scheduling

            async with scheduling(
                loaded, launcher=launcher, workflows=workflows, runs=runs, trail=coordinated.trail
            ) as found:
                scheduler_says.append(found.objections)
                runs.when_ended(found.count_end)
                await _until_told(stop)
            scheduler_says.clear()  # nothing new begins
            await _drain(loaded, launcher, at_once)
        else:
            await _until_told(stop)


async def _until_told(stop: asyncio.Event) -> None:
    settle()
    log.info("ready", version=__version__)
    await stop.wait()
    log.info("stopping")


async def _drain(loaded: Loaded, launcher: Launcher, at_once: asyncio.Event) -> None:
    """Let runs of this host finish until the deadline, then ask them to stop; a second signal leaves them alone."""
    running = launcher.places.running

    def living() -> bool:
        return any(not one.is_remote and one.is_alive() for one in running.everywhere())

    limit_s = loaded.settings.scheduler.drain_timeout.total_seconds()
    if await asyncio.to_thread(living):
        log.info("runs.draining", at_most_s=limit_s, at_once="a second signal")
    for seconds, is_last in ((limit_s, False), (STOPPING_S, True)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not at_once.is_set() and await asyncio.to_thread(living):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_EVERY_S):
                            await at_once.wait()
                return
        if not is_last:
            for one in running.everywhere():
                if not one.is_remote and one.is_alive():
                    log.warning("run.stopped_at_deadline", run=str(one.run))
                    one.attempt.request_cancel()


@contextlib.asynccontextmanager
async def _coordinated(loaded: Loaded, stop: asyncio.Event) -> AsyncIterator[_Coordinated]:
    """Run a coordinator in this process if one is asked for; else do without, or use one that is configured."""
    if not wants_coordinator(loaded):
        async with _beside(loaded) as way:
            yield way
        return
    async with coordinator.serving(loaded, stop) as serving:
        yield _Coordinated(
            way=Way(serving.coordinator, Caller(role=Role.ADMIN, name="start-all", proven=True)),
            trail=serving.trail,
            registries=(metrics.COMMON, metrics.COORDINATOR),
        )


@contextlib.asynccontextmanager
async def _beside(loaded: Loaded) -> AsyncIterator[_Coordinated]:
    """Use the coordinator that is configured, or registers in the shared folder; without one, everything runs here."""
    async with contextlib.AsyncExitStack() as stack:
        trail = await stack.enter_async_context(audit.process_trail(loaded, "server", None))
        way = await stack.enter_async_context(way_to_coordinator(loaded, name="server"))
        yield _Coordinated(way=way, trail=trail)


def _is_tunnelled(loaded: Loaded) -> bool:
    return loaded.settings.tunnel.enabled


def _has_login(loaded: Loaded, accounts: Accounts) -> bool:
    return loaded.settings.auth.mode == "basic" or accounts.is_set_up
