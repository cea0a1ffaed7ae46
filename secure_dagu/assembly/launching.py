"""What starts runs and queues them, put together for a process: web server, scheduler, or both.

async with launching(loaded, way=…) as launcher:     # dispatch.operating.Launching
    book = queue_book(loaded, launcher)              # dispatch.operating.QueueBook
    processor = queue_processor(loaded, launcher)    # for the one active scheduler:
    await processor.run_forever()                    #   cancel it to stop; queued runs stay queued
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from msgspec.structs import replace

from secure_dagu.assembly import forkserver
from secure_dagu.assembly.places import base_config_of, places_of
from secure_dagu.config.load import Loaded, child_environment, home_environment
from secure_dagu.dispatch.way import Way
from secure_dagu.local import bell
from secure_dagu.local.forks import forking
from secure_dagu.local.launching import Launcher, Options
from secure_dagu.local.line import QueueLine
from secure_dagu.local.queue_book import LocalQueueBook
from secure_dagu.scheduler.queues import LOOK_EVERY_S, QueueProcessor


@contextlib.asynccontextmanager
async def launching(loaded: Loaded, *, way: Way) -> AsyncIterator[Launcher]:
    """Yield what starts and steers runs. Leaving it ends its fork server; the runs that it started go on.

    Args:
        loaded: the settings.
        way: where runs for workers go, as soon as it leads somewhere.
    """
    places = places_of(loaded)
    places = replace(places, process_env={**child_environment(), **home_environment(loaded)})
    profiles = loaded.home.config_dir / "profiles"
    options = Options(
        profiles=profiles,
        base_config=lambda: base_config_of(loaded),
        distributed_by_default=loaded.settings.core.default_execution_mode == "distributed",
        queues_enabled=loaded.settings.queues.enabled,
    )
    async with forking(
        places,
        profiles=profiles,
        ended=lambda: bell.ring(places.queues),
        program="secure_dagu.assembly.forkserver",
        remote=forkserver.told(loaded) if loaded.settings.coordinator.enabled else None,
        has_workers=lambda: way.coordinator is not None,
    ) as forks:
        forks.warm_up()
        yield Launcher(places, forks, options, way=way)


def queue_processor(loaded: Loaded, launcher: Launcher, *, look_every_s: float = LOOK_EVERY_S) -> QueueProcessor:
    """Return what works on the queues of this host."""
    line = QueueLine(launcher, named=named_queues(loaded))
    threshold = loaded.settings.scheduler.failure_threshold or 3
    return QueueProcessor(line, failure_threshold=threshold, look_every_s=look_every_s)


def queue_book(loaded: Loaded, launcher: Launcher) -> LocalQueueBook:
    """Return what shows and holds the queues of this host."""
    return LocalQueueBook(launcher.places, named=named_queues(loaded), way=launcher.way)


def named_queues(loaded: Loaded) -> Mapping[str, int]:
    """Return the queues of the configuration with how many runs each may have at a time."""
    return {queue.name: queue.max_concurrency for queue in loaded.settings.queues.config}
