"""One coordinator put together: the desk, the reports, the bundles, the state and the sweeper, over one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct, field

from secure_dagu.audit.events import NO_TRAIL, Trail
from secure_dagu.coordinator.board import Board
from secure_dagu.coordinator.bundles import BundleShelf
from secure_dagu.coordinator.deleting import Deleting
from secure_dagu.coordinator.dispatching import Dispatching
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.followers import Changes
from secure_dagu.coordinator.intake import Definitions, LoadDefinition
from secure_dagu.coordinator.ledger import Ledger
from secure_dagu.coordinator.machines import Machines
from secure_dagu.coordinator.releasing import Releasing
from secure_dagu.coordinator.reports import Reports
from secure_dagu.coordinator.state import State
from secure_dagu.coordinator.sweeper import Sweeper
from secure_dagu.coordinator.tasks import Desk
from secure_dagu.coordinator.tenants import Tenants, WouldDeny
from secure_dagu.coordinator.uploads import UploadLimits, Uploads
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.model import Owner, WorkerId
from secure_dagu.dispatch.operating import WorkerState
from secure_dagu.security.peer import Peer
from secure_dagu.security.policy import STRICT, Policy
from secure_dagu.store.api import Store
from secure_dagu.store.blobs import Blobs
from secure_dagu.store.definitions import DefinitionFolder
from secure_dagu.store.secret_files import SecretFiles
from secure_dagu.telemetry import metrics


class SystemClock:
    """The time of this host."""

    def now(self) -> datetime:
        """Return the aware UTC time."""
        return datetime.now(UTC)


class Options(Struct, frozen=True, kw_only=True):
    """What an operator may choose."""

    task_wait: timedelta = timedelta(seconds=300)
    """How long a task may wait while no live worker matches it."""
    secrets_dir: Path | None = None
    """Managed secrets; None: not offered."""
    log_charset: str = "utf-8"
    """Character encoding of the logs of steps."""
    bundle_store_bytes: int = 10 * 1024**3
    pending_tasks: int = 50_000
    """Tasks that may wait for a worker."""
    polls_of_worker: int = 1_000
    """Open polls of one worker id (the reference's default is 100)."""
    uploads: UploadLimits = field(default_factory=UploadLimits)


class Service(Struct, frozen=True, kw_only=True):
    """A running coordinator. Make it with `running`."""

    desk: Desk
    reports: Reports
    bundles: BundleShelf
    state: State
    sweeper: Sweeper
    releasing: Releasing
    machines: Machines
    deleting: Deleting


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
    trail: Trail = NO_TRAIL,
    policy: Callable[[], Policy] = lambda: STRICT,
    peers: Callable[[], Iterable[Peer]] = lambda: (),
    would_deny: WouldDeny = lambda _caller, _method, _deny: None,
) -> AsyncIterator[Service]:
    """Run a coordinator for the time of the context. Leaving it ends open polls and streams and keeps every task.

    Args:
        load: `dag.load.load_definition`.
        owner: what claims name as the address of all follow-up calls.
        peers: who is connected now.
        worker_gone: told of every worker that has been silent for too long.
        policy: what is refused beyond role and identity; asked at each call.
        would_deny: told of each call that the policy in dry-run would have refused.
        trail: where it is recorded who did what; an action whose record cannot be written does not happen.
    """
    clock = clock or SystemClock()
    options = options or Options()
    ledger = Ledger()
    changes = Changes()
    tenants = Tenants(store, policy=policy, would_deny=would_deny)
    definitions = Definitions(load)
    endings = Endings(store=store, ledger=ledger, clock=clock, changed=changes.status_changed)
    closing = asyncio.Event()
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        finisher = Finisher(group)
        board = Board(ledger=ledger, clock=clock, owner=owner, max_polls=options.polls_of_worker)
        dispatching = Dispatching(
            store=store, ledger=ledger, board=board, definitions=definitions, known_text=dags.text, finisher=finisher,
            clock=clock, trail=trail, tenants=tenants, max_pending=options.pending_tasks,
        )  # fmt: skip
        desk = Desk(
            store=store, ledger=ledger, board=board, dispatching=dispatching, endings=endings, finisher=finisher,
            clock=clock, trail=trail, tenants=tenants,
        )  # fmt: skip
        uploads = Uploads(
            store=store, blobs=blobs, ledger=ledger, changes=changes, clock=clock, trail=trail,
            limits=options.uploads,
        )  # fmt: skip
        reports = Reports(
            store=store, blobs=blobs, ledger=ledger, endings=endings, changes=changes, uploads=uploads,
            finisher=finisher, clock=clock, trail=trail, tenants=tenants, why_waits=board.why_waits,
            log_charset=options.log_charset,
        )  # fmt: skip
        deleting = Deleting(
            store=store, blobs=blobs, ledger=ledger, finisher=finisher, trail=trail, tenants=tenants
        )  # fmt: skip
        bundles = BundleShelf(
            store=store, blobs=blobs, ledger=ledger, clock=clock, trail=trail,
            max_total=options.bundle_store_bytes,
        )  # fmt: skip
        secrets = SecretFiles(options.secrets_dir) if options.secrets_dir is not None else None
        state = State(
            store=store, ledger=ledger, folder=dags, definitions=definitions, secrets=secrets, clock=clock,
            trail=trail,
        )  # fmt: skip
        machines = Machines(board=board, store=store, clock=clock, trail=trail, peers=peers)
        await desk.load()
        await machines.load()
        sweeper = Sweeper(
            ledger=ledger, desk=desk, endings=endings, clock=clock, trail=trail, task_wait=options.task_wait,
            gone=worker_gone,
        )  # fmt: skip
        releasing = Releasing(
            store=store, ledger=ledger, desk=desk, endings=endings, clock=clock, trail=trail
        )  # fmt: skip
        metrics.show_workers(
            lambda: board.presences.infos(clock.now()),
            is_draining=lambda worker: machines.state_of(worker) is WorkerState.DRAINING,
            quarantined=lambda: len(machines.quarantined(clock.now())),
        )
        metrics.show_backlog(board.waiting)
        metrics.TASKS_PENDING.set_function(lambda: len(board.backlog))
        metrics.LEASES_ACTIVE.set_function(board.leases)
        group.create_task(sweeper.look_forever(closing), name="sweeper")
        try:
            yield Service(
                desk=desk, reports=reports, bundles=bundles, state=state, sweeper=sweeper, releasing=releasing,
                machines=machines, deleting=deleting,
            )  # fmt: skip
        except Exception as error:  # the user's own, not to be wrapped into a group by ours
            failure = error
        finally:
            closing.set()
            desk.close()
            changes.close()
            metrics.show_workers(lambda: ())
            metrics.show_backlog(lambda: ())
            metrics.TASKS_PENDING.set_function(lambda: 0)
            metrics.LEASES_ACTIVE.set_function(lambda: 0)
    if failure is not None:
        raise failure
