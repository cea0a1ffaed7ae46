"""One coordinator put together: the desk, the reports, the bundles, the state and the sweeper, over one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from secure_dagu.coordinator.board import Board
from secure_dagu.coordinator.bundles import BundleShelf
from secure_dagu.coordinator.dispatching import Dispatching
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.followers import Changes
from secure_dagu.coordinator.intake import Definitions, LoadDefinition
from secure_dagu.coordinator.ledger import Ledger
from secure_dagu.coordinator.reports import Reports
from secure_dagu.coordinator.secret_files import SecretFiles
from secure_dagu.coordinator.state import State
from secure_dagu.coordinator.sweeper import Sweeper
from secure_dagu.coordinator.tasks import Desk
from secure_dagu.coordinator.uploads import UploadLimits, Uploads
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.model import Owner, WorkerId
from secure_dagu.store.api import Store
from secure_dagu.store.blobs import Blobs
from secure_dagu.store.definitions import DefinitionFolder
from secure_dagu.telemetry import metrics


class SystemClock:
    """The time of this host."""

    def now(self) -> datetime:
        """Return the aware UTC time."""
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an operator may choose."""

    task_wait: timedelta = timedelta(seconds=300)
    """How long a task may wait while no live worker matches it."""
    secrets_dir: Path | None = None
    """Managed secrets; None: not offered."""
    bundle_store_bytes: int = 10 * 1024**3
    pending_tasks: int = 50_000
    """Tasks that may wait for a worker."""
    polls_of_worker: int = 1_000
    """Open polls of one worker id (the reference's default is 100)."""
    uploads: UploadLimits = field(default_factory=UploadLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running coordinator. Make it with `running`."""

    desk: Desk
    reports: Reports
    bundles: BundleShelf
    state: State
    sweeper: Sweeper


@asynccontextmanager
async def running(
    *,
    store: Store,
    blobs: Blobs,
    dags: DefinitionFolder,
    load: LoadDefinition,
    owner: Owner,
    clock: Clock | None = None,
    options: Options | None = None,
    worker_gone: Callable[[WorkerId], None] = lambda _worker: None,
) -> AsyncIterator[Service]:
    """Run a coordinator for the time of the context. Leaving it ends open polls and streams and keeps every task.

    Args:
        load: `dag.load.load_definition`.
        owner: what claims name as the address of all follow-up calls.
        worker_gone: told of every worker that has been silent for too long.
    """
    clock = clock or SystemClock()
    options = options or Options()
    ledger = Ledger()
    changes = Changes()
    definitions = Definitions(load)
    endings = Endings(store=store, ledger=ledger, clock=clock, changed=changes.status_changed)
    closing = asyncio.Event()
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        finisher = Finisher(group)
        board = Board(ledger=ledger, clock=clock, owner=owner, max_polls=options.polls_of_worker)
        dispatching = Dispatching(
            store=store, ledger=ledger, board=board, definitions=definitions, known_text=dags.text, finisher=finisher,
            clock=clock, max_pending=options.pending_tasks,
        )  # fmt: skip
        desk = Desk(
            store=store, ledger=ledger, board=board, dispatching=dispatching, endings=endings, finisher=finisher,
            clock=clock,
        )  # fmt: skip
        uploads = Uploads(
            store=store, blobs=blobs, ledger=ledger, changes=changes, clock=clock, limits=options.uploads
        )  # fmt: skip
        reports = Reports(
            store=store, blobs=blobs, ledger=ledger, endings=endings, changes=changes, uploads=uploads,
            finisher=finisher, clock=clock,
        )  # fmt: skip
        bundles = BundleShelf(
            store=store, blobs=blobs, ledger=ledger, clock=clock, max_total=options.bundle_store_bytes
        )  # fmt: skip
        secrets = SecretFiles(options.secrets_dir) if options.secrets_dir is not None else None
        state = State(
            store=store, ledger=ledger, folder=dags, definitions=definitions, secrets=secrets, clock=clock
        )  # fmt: skip
        await desk.load()
        sweeper = Sweeper(
            ledger=ledger, desk=desk, endings=endings, clock=clock, task_wait=options.task_wait, gone=worker_gone
        )  # fmt: skip
        infos_now = board.presences.infos
        metrics.show_workers(lambda: infos_now(clock.now()))
        metrics.TASKS_PENDING.set_function(lambda: len(board.backlog))
        metrics.LEASES_ACTIVE.set_function(board.leases)
        group.create_task(sweeper.look_forever(closing), name="sweeper")
        try:
            yield Service(desk=desk, reports=reports, bundles=bundles, state=state, sweeper=sweeper)
        except Exception as error:  # the user's own, not to be wrapped into a group by ours
            failure = error
        finally:
            closing.set()
            desk.close()
            changes.close()
            metrics.show_workers(lambda: ())
            metrics.TASKS_PENDING.set_function(lambda: 0)
            metrics.LEASES_ACTIVE.set_function(lambda: 0)
    if failure is not None:
        raise failure
