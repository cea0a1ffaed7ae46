"""What the store remembers and how it is asked: rows as values, and the `Store` Protocol.

Lifecycle writes are compare-and-set on `revision`: a lost race is `Conflict`, is read again and decided again. A write
that has returned survives `kill -9` of this process. Times are Unix milliseconds, 0 when not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from secure_dagu.dispatch.model import StateEntry, StateRef, StateSource
from secure_dagu.dispatch.operating import RunFilter
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef


class AttemptRow(Struct, frozen=True, kw_only=True):
    """One attempt without its status document."""

    key: AttemptKey
    attempt_id: AttemptId
    run: DagRunRef
    root: DagRunRef
    parent: DagRunRef | None
    claim_key: AttemptKey
    """Attempt key of the task under which the attempt reports; its own key unless it runs inside another task."""
    status: int
    worker: str
    archive: str
    """Folder of the artifacts, relative to the artifact directory; empty until a report asks for one."""
    labels: tuple[str, ...]
    error: str
    created_at: int
    started_at: int
    finished_at: int
    revision: int


class TaskRow(Struct, frozen=True, kw_only=True):
    """One task that is queued or leased; the row goes away with its end."""

    key: AttemptKey
    place: int
    """Order in the queue."""
    enqueued_at: int
    leased: bool
    worker: str
    token: str
    """SHA-256 hex of the claim token; empty while queued."""
    cancelling: bool
    revision: int
    attempt: AttemptRow
    body: str
    """The task as JSON; empty in listings of leased tasks, where only `task_body` reads it."""


class NewAttempt(Struct, frozen=True, kw_only=True):
    """An attempt to remember, with its first document."""

    row: AttemptRow
    document: str
    body: str = ""
    """The task as JSON; empty when the attempt runs inside another task."""
    place: int = 0
    """Where the task stands in the queue."""
    summary: str = ""
    """The document as lists show it; empty: as it is."""
    supersedes: AttemptKey | None = None
    """The latest attempt as it was seen; None when the run is new. Another one now: Conflict."""


class Report(Struct, frozen=True, kw_only=True):
    """A new document of an attempt."""

    key: AttemptKey
    revision: int
    """The revision that the decision was made on."""
    document: str
    claim_key: AttemptKey
    status: int
    worker: str
    archive: str
    error: str
    started_at: int
    finished_at: int
    ends_task: bool
    """Also remove the task of this attempt."""
    summary: str = ""
    """As `NewAttempt.summary`."""


class ListedRow(Struct, frozen=True, kw_only=True):
    """A root run of a list."""

    row: AttemptRow
    """Its latest attempt."""
    made_at: int
    """When its first attempt was made: Unix milliseconds."""
    summary: str


class BundleRow(Struct, frozen=True, kw_only=True):
    """One stored workspace bundle."""

    digest: str
    size_bytes: int
    stored_at: int


class Store(Protocol):
    """Everything durable but files."""

    async def tasks(self) -> Sequence[TaskRow]:
        """Return every task in queue order; bodies only of those that are not leased."""
        ...

    async def task_body(self, key: AttemptKey) -> str | None:
        """Return the JSON of a task that has not ended."""
        ...

    async def latest(self, *, run: DagRunRef, root: DagRunRef) -> AttemptRow | None:
        """Return the latest attempt of a run. For a child (`root` is not `run`) the DAG's name is not looked at."""
        ...

    async def find(self, run: DagRunRef) -> AttemptRow | None:
        """Return the latest attempt of a run wherever it hangs: the root run of that name, else the newest child."""
        ...

    async def attempt(self, key: AttemptKey) -> AttemptRow | None:
        """Return one attempt."""
        ...

    async def document(self, key: AttemptKey) -> str:
        """Return the latest status document of an attempt; empty when there is no such attempt."""
        ...

    async def attempts_under(self, claim_key: AttemptKey) -> Sequence[AttemptRow]:
        """Return the attempts that report under a task, its own among them."""
        ...

    async def has_attempt_id(self, *, root: DagRunRef, attempt_id: AttemptId) -> bool:
        """Tell whether some run of this tree has an attempt of that id."""
        ...

    async def roots(self, *, name: str | None, run_id: str | None, limit: int) -> Sequence[AttemptRow]:
        """Return the latest attempts of root runs, newest run first."""
        ...

    async def listed(self, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None) -> Sequence[ListedRow]:
        """Return root runs, newest first, as columns tell them apart.

        Parts of names and labels are the caller's to judge. `before`: (made_at, `DAG/run id`) of the one before.
        """
        ...

    async def count(self, *, since: int, until: int) -> Sequence[tuple[int, int]]:
        """Return (status, how many) of root runs that were made in `since` ≤ t < `until`, Unix ms."""
        ...

    async def add_attempt(self, new: NewAttempt) -> None:
        """Write run, attempt and task at once.

        Raises:
            Conflict: the run has another latest attempt than `supersedes`.
        """
        ...

    async def lease(self, key: AttemptKey, *, revision: int, worker: str, token: str) -> None:
        """Write an acknowledgement.

        Raises:
            Conflict: the task has gone or has changed since `revision`.
        """
        ...

    async def release(self, key: AttemptKey, *, revision: int) -> None:
        """Write that a lease was taken back: the task is queued again.

        Raises:
            Conflict: the task has gone or has changed since `revision`.
        """
        ...

    async def mark_cancelling(self, key: AttemptKey) -> None:
        """Write the wish that a leased task stops."""
        ...

    async def report(self, report: Report) -> None:
        """Write a document over the previous one, with what the lists show of it.

        Raises:
            Conflict: the attempt has changed since `report.revision`.
        """
        ...

    async def attempts_of(self, root: DagRunRef) -> Sequence[AttemptRow]:
        """Return every attempt of a root run and of its children."""
        ...

    async def remove(self, root: DagRunRef, *, latest: AttemptKey) -> None:
        """Forget a root run and its children.

        Raises:
            Conflict: it has another latest attempt, or something of it waits or is executed.
        """
        ...

    async def state(self, ref: StateRef) -> StateEntry | None:
        """Return one shared value."""
        ...

    async def put_state(
        self,
        ref: StateRef,
        value: bytes,
        *,
        expected_version: int | None,
        create_only: bool,
        by: StateSource,
        now_ns: int,
    ) -> StateEntry | None:
        """Write a shared value; None when `expected_version` or `create_only` does not hold."""
        ...

    async def delete_state(self, ref: StateRef) -> bool:
        """Remove a shared value; False when there was none."""
        ...

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        """Return shared values ordered by key; `limit` 0 means all."""
        ...

    async def add_bundle(self, bundle: BundleRow) -> None:
        """Remember a stored bundle; nothing happens when it is known."""
        ...

    async def bundle_bytes(self) -> int:
        """Return the size of all stored bundles."""
        ...
