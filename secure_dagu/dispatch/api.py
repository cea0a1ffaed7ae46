"""The verbs of distributed execution as Protocols: the one seam between both ends.

`coordinator/` implements them over the store, `wire.client` over gRPC, and `wire.servicer` calls them in the proven
caller's name. A refusal that the protocol answers in-band is a `Verdict`; everything else is one of our errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from secure_dagu.dispatch.model import (
    ArtifactInfo,
    ArtifactPart,
    BundleRef,
    Caller,
    Claim,
    ClaimToken,
    LogPart,
    Owner,
    RunEvent,
    RunningTask,
    RunSummary,
    SecretRequest,
    StateEntry,
    StateRef,
    StateSource,
    StreamIdentity,
    Task,
    Uploaded,
    Verdict,
    WorkerId,
    WorkerInfo,
    WorkerStats,
)
from secure_dagu.run.model import AttemptKey, DagRunRef

if TYPE_CHECKING:
    from secure_dagu.dispatch.operating import LinkView, ListedRun, LogPage, RunFilter, Window, WorkerView


class TaskDesk(Protocol):
    """Hand tasks to workers: dispatch, poll, claim, lease, cancel (protocol, sections 3.2 to 3.10)."""

    async def dispatch(self, caller: Caller, task: Task, *, admission_token: str = "") -> Task:
        """Accept a task: what is returned (with its attempt id and key) survives `kill -9`.

        Idempotent: the same run id again while it is active changes nothing and returns the active task.

        Raises:
            InvalidRequest: no definition, a malformed name or id, a definition that does not load.
            Unavailable: no worker is live ("no available workers").
            PreconditionFailed: no live worker matches ("no workers match the required selector"), stale queue dispatch.
            Refused: a worker dispatches something other than a child of a lease that it holds.
        """
        ...

    async def poll(self, caller: Caller, *, poller_id: str, labels: Mapping[str, str]) -> Claim | None:
        """Wait until a task matches; None only when the coordinator is shutting down.

        Cancelling this call before it returns leaves every task where it was.
        """
        ...

    async def withdraw(self, token: ClaimToken) -> None:
        """Put an offered task back at once: its poller went away before the offer reached it."""
        ...

    async def acknowledge(self, caller: Caller, *, token: ClaimToken, attempt_key: AttemptKey) -> Verdict:
        """Turn an offer into a lease, durably, before answering. Repeating an accepted one is accepted again."""
        ...

    async def heartbeat(self, caller: Caller, *, labels: Mapping[str, str], stats: WorkerStats) -> Sequence[AttemptKey]:
        """Note presence (memory only); return the attempts among `stats.running` that must stop."""
        ...

    async def run_heartbeat(self, caller: Caller, *, running: Sequence[RunningTask]) -> Sequence[AttemptKey]:
        """Renew the leases of `running` (memory only); return the attempts that must stop."""
        ...

    def cancellations(self, caller: Caller) -> AsyncIterator[AttemptKey]:
        """Yield attempts of this worker that must stop, as soon as that is known (our own extension).

        The client yields `NO_KEY` first, when the stream stands; a coordinator may.
        """
        ...

    async def cancel(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> Verdict:
        """Ask for the end of a run. Idempotent, and accepted for finished runs too."""
        ...

    async def workers(self, caller: Caller) -> Sequence[WorkerInfo]:
        """Return all known workers."""
        ...


class RunReports(Protocol):
    """Take in what workers report, and give it back to those who ask (protocol, sections 3.9, 5, 6, 8.3)."""

    async def report_status(self, caller: Caller, *, status: str, source_file: str, labels: str) -> Verdict:
        """Record a status document (JSON text) under the caller's lease.

        Raises:
            InvalidRequest: the document is missing, not JSON, or lacks its identity.
        """
        ...

    async def stream_logs(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]) -> Uploaded:
        """Write log bytes at their offsets. The lease is checked again for every message.

        Raises:
            PreconditionFailed: "stale attempt: ..." when no fresh lease of the caller covers the stream.
            InvalidRequest: a gap, a mode switch, an oversized part.
        """
        ...

    async def stream_artifacts(
        self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]
    ) -> Uploaded:
        """Store artifact files; each becomes visible only when its final part has arrived."""
        ...

    async def run_status(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> str | None:
        """Return the latest status document of a run as JSON text, None when unknown. `root` looks up a child run."""
        ...

    async def runs(self, caller: Caller, *, name: str | None, run_id: str | None, limit: int) -> Sequence[RunSummary]:
        """List root runs, newest first (our own extension)."""
        ...

    async def find_runs(
        self, caller: Caller, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None
    ) -> Sequence[ListedRun]:
        """Return root runs that match, newest attempt first, behind (at, ident) of `before` (our own extension)."""
        ...

    async def count_runs(self, caller: Caller, *, since: datetime, until: datetime | None) -> Mapping[int, int]:
        """Return how many root runs, by the status of their latest attempt of that time (our own extension)."""
        ...

    def follow(self, caller: Caller, *, run: DagRunRef, with_logs: bool) -> AsyncIterator[RunEvent]:
        """Yield status documents and log bytes as they arrive, to the end of the run (our own extension).

        Raises:
            NotFound: no such run.
        """
        ...

    def read_log(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, offset: int) -> AsyncIterator[bytes]:
        """Yield a stored log from `offset` to its present end (our own extension)."""
        ...

    async def log_page(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, window: Window) -> LogPage:
        """Return some lines of a stored log, at most 4 MiB (our own extension).

        Raises:
            NotFound: no such run, or nothing was written.
        """
        ...

    async def artifacts(self, caller: Caller, *, run: DagRunRef) -> Sequence[ArtifactInfo]:
        """List the artifact files of a run (our own extension)."""
        ...

    def read_artifact(self, caller: Caller, *, run: DagRunRef, path: str) -> AsyncIterator[bytes]:
        """Yield one artifact file (our own extension).

        Raises:
            NotFound: no such file in the run's artifact directory.
        """
        ...

    async def delete_run(self, caller: Caller, *, run: DagRunRef) -> None:
        """Delete a finished root run with its children, logs and artifacts (our own extension).

        Raises:
            UnknownCall: the coordinator has no such call.
            NotFound: no such root run, such as after it was deleted.
            WrongState: it is active.
            Conflict: it was retried meanwhile.
        """
        ...


class Bundles(Protocol):
    """Content-addressed workspace bundles (protocol, section 7)."""

    async def put(self, caller: Caller, bundle: BundleRef, data: AsyncIterator[bytes]) -> Verdict:
        """Store an archive whose SHA-256 and size are those of `bundle`; refused in-band when they are not."""
        ...

    async def has(self, caller: Caller, digest: str) -> bool:
        """Tell whether the archive is stored."""
        ...

    def get(self, caller: Caller, digest: str) -> AsyncIterator[bytes]:
        """Yield the archive in order.

        Raises:
            NotFound: not stored.
        """
        ...


class SharedState(Protocol):
    """Versioned JSON values shared by runs, secrets and definitions (protocol, sections 8.1, 8.2, 8.4)."""

    async def get_state(self, caller: Caller, ref: StateRef) -> StateEntry | None:
        """Return the entry, None when there is none."""
        ...

    async def put_state(
        self,
        caller: Caller,
        ref: StateRef,
        value: bytes,
        *,
        expected_version: int | None,
        create_only: bool,
        updated_by: StateSource,
    ) -> StateEntry:
        """Write a value.

        Raises:
            Conflict: `expected_version` or `create_only` does not hold ("dag state: conflict").
            InvalidRequest: bad reference, bad JSON, above 1 MiB.
        """
        ...

    async def delete_state(self, caller: Caller, ref: StateRef) -> bool:
        """Remove a value; False when there was none."""
        ...

    async def list_state(
        self, caller: Caller, *, scope: str, namespace: str, prefix: str, limit: int
    ) -> Sequence[StateEntry]:
        """List values by key. `limit` 0 means all."""
        ...

    async def dag_text(self, caller: Caller, name: str) -> str | None:
        """Return the YAML of a definition in the DAGs directory; None when there is none or the name climbs out."""
        ...

    async def resolve_secret(self, caller: Caller, request: SecretRequest) -> str:
        """Return a managed secret; empty for `check_only`.

        Raises:
            Refused: no fresh lease, not declared by the DAG, unproven link. One text for all: "secret reference access
                denied".
            NotFound: no such secret.
        """
        ...


class Announced(IntEnum):
    """What a worker says of itself, with the wire's numbers."""

    WORKING = 1
    DRAINING = 2
    """It takes no more tasks and finishes what it runs."""
    LEAVING = 3


class Machines(Protocol):
    """Look at workers and links, and hold workers (our own extension)."""

    async def announce(self, caller: Caller, *, version: str, presence: Announced) -> None:
        """Take a worker's own word, after a heartbeat that was accepted."""
        ...

    async def fleet(self, caller: Caller) -> Sequence[WorkerView]:
        """Return all known workers by id with what their certificates prove, those lost within a day too."""
        ...

    async def drain(self, caller: Caller, *, worker: WorkerId, draining: bool) -> None:
        """Give a worker no new task, or give it tasks again; what it runs goes on. Kept over a restart.

        Args:
            worker: its id, or the name in its certificate, which covers `name@…` too.

        Raises:
            NotFound: no such worker.
        """
        ...

    async def links(self, caller: Caller) -> Sequence[LinkView]:
        """Return the live connections, oldest first."""
        ...


class Coordinator(TaskDesk, RunReports, Bundles, SharedState, Machines, Protocol):
    """Everything one coordinator answers, whether it is in this process or at the other end of a link."""


class OwnedRoute(Coordinator, Protocol):
    """The way to the coordinator that owns a task: its advertised address, else whoever else answers for it.

    Order of candidates and what makes it move on: protocol, section 1.8, "Owner-bound RPCs".
    """

    @property
    def problem(self) -> str:
        """Say why the advertised address was not used; empty while it works. Known within 5 s of the first call."""
        ...


class Routes(Protocol):
    """The coordinators that this process may talk to."""

    def listed(self) -> Sequence[Coordinator]:
        """Return the configured ones, in the configured order."""
        ...

    def anyone(self) -> Coordinator:
        """Return a coordinator that tries the listed ones in random order until one answers (section 1.8)."""
        ...

    def owned(self, owner: Owner | None, *, served_by: Coordinator) -> OwnedRoute:
        """Return the route for a task claimed from `served_by` with this owner; no owner means `served_by`.

        An owner outside the configured list is dialled only over a proven link, where its certificate must carry the
        coordinator role; over h2c the route stays with `served_by` (threat T11).
        """
        ...


class Clock(Protocol):
    """The time, handed in so that tests can move it."""

    def now(self) -> datetime:
        """Return the aware UTC time."""
        ...


LEASE_FOR = timedelta(seconds=30)
"""How long a lease lives without a renewal (protocol, appendix A, "stale lease")."""

CLAIM_FOR = timedelta(seconds=30)
"""How long an offer waits for its acknowledgement (protocol, appendix A, "dispatch reservation")."""


def as_worker(caller: Caller) -> WorkerId:
    """Return the worker id that a call acts as; the wall guarantees it for every worker method."""
    assert caller.worker is not None, "a worker method was admitted without a worker id"
    return caller.worker
