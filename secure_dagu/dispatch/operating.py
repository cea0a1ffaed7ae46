"""The verbs of operating an installation as Protocols: definitions, runs, queues, workers.

The REST API and the Web UI call them, and so does the scheduler. `local/` implements those on this host's files,
`assembly/` those that take a coordinator, the CA or the audit log. Where a run lives (this host's records or a
coordinator's store) shows in no signature.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Protocol

from msgspec import Struct, field

from secure_dagu.dag.model import Definition
from secure_dagu.dispatch.model import ArtifactInfo, WorkerInfo
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus, TriggerType

Document = Mapping[str, Any]
"""A run's status document, parsed (protocol, section 6)."""

LATEST = "latest"
"""Run id that means the newest run, wherever one is read."""


# ── why a run waits ──────────────────────────────────────────────────────────────────────────────────────────────────


class Waiting(StrEnum):
    """Why a queued run does not run yet. The values are reasons of the REST reference, section 6, and ours."""

    PAUSED = "QueuePaused"
    QUEUE_LIMIT = "MaxConcurrencyReached"
    NO_WORKER = "NoAvailableWorker"
    NO_MATCHING_WORKER = "NoMatchingWorker"
    NOT_AUTHORISED = "WorkerIdentityRejected"
    """Workers claim the labels, and none has a certificate that grants them."""
    NO_CAPACITY = "NoFreeSlot"
    """Workers match, and every slot is taken."""
    COORDINATOR_UNREACHABLE = "WorkerDispatchUnavailable"
    ASSIGNMENT_PENDING = "AssignmentPending"
    RECORD_DAMAGED = "DAGSnapshotUnavailable"
    LAUNCH_FAILED = "LaunchFailed"
    QUEUE_UNREADABLE = "QueueStateUnavailable"


class Condition(Struct, frozen=True, kw_only=True):
    """One fact about a run that waits (`RunCondition` of the REST reference)."""

    type: str
    status: str
    """`True`, `False` or `Unknown`."""
    reason: str
    message: str
    checked_at: datetime


# ── reading runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


class RunFilter(Struct, frozen=True, kw_only=True):
    """Which root runs are wanted. Empty means any."""

    name: str = ""
    """Exactly this DAG."""
    name_part: str = ""
    run_id_part: str = ""
    statuses: frozenset[RunStatus] = frozenset()
    labels: tuple[str, ...] = ()
    """All must hold: `key`, `key=value`, `!key` or `!key=value`; `*` and `?` match in values."""
    since: datetime | None = None
    until: datetime | None = None


class FoundRun(Struct, frozen=True, kw_only=True):
    """One run of a list."""

    document: Document
    """Without its nodes where they are not needed."""
    conditions: tuple[Condition, ...] = ()
    has_artifacts: bool = False


class RunPage(Struct, frozen=True, kw_only=True):
    """A piece of a list, newest first."""

    runs: tuple[FoundRun, ...]
    next_cursor: str = ""
    """Asks for what follows; empty at the end. Opaque, and safe in a URL."""


class ListedRun(Struct, frozen=True, kw_only=True):
    """A run of a coordinator's list, and where it stands in it."""

    at: int
    """When it was made: Unix milliseconds. A further attempt does not make it newer."""
    ident: str
    """`DAG/run id`: orders runs of the same millisecond."""
    document: str
    """Its status document as lists show it, JSON."""
    revision: str = ""
    """Another one after every change of the run, of its steps too."""


_NOT_IN_LISTS = frozenset(
    {"nodes", "paramsList", "preconditions", "onInit", "onExit", "onSuccess", "onFailure", "onAbort", "onWait"}
)


def in_lists(document: Document) -> Document:
    """Return a document as lists show it: without its nodes, which may be thousands."""
    return {key: value for key, value in document.items() if key not in _NOT_IN_LISTS}


def labels_of(document: Document) -> list[str]:
    """Return the labels of a run in lower case; old records of Dagu call them tags."""
    labels = document.get("labels") or document.get("tags")
    return [str(label).lower() for label in labels] if isinstance(labels, list) else []


def matches(document: Document, wanted: RunFilter) -> bool:
    """Judge parts of names and ids, and labels; the rest of a filter is for whoever keeps the runs."""
    if wanted.name_part and wanted.name_part.lower() not in str(document.get("name", "")).lower():
        return False
    if wanted.run_id_part and wanted.run_id_part not in str(document.get("dagRunId", "")):
        return False
    if not wanted.labels:
        return True
    labels = set(labels_of(document))
    keys = {label.partition("=")[0] for label in labels}

    def has(word: str) -> bool:
        if word.startswith("!"):
            return not has(word[1:])
        return any(fnmatchcase(item, word) for item in (labels if "=" in word else keys))

    return all(has(word.strip().lower()) for word in wanted.labels)


MAX_LINES = 10_000
"""Of one page of a log."""


class Window(Struct, frozen=True, kw_only=True):
    """Which lines of a log: the last `tail`, the first `head`, or `limit` from line `offset` (1 is the first)."""

    tail: int = 0
    head: int = 0
    offset: int = 0
    limit: int = 1000
    """At most `MAX_LINES`."""


class LogPage(Struct, frozen=True, kw_only=True):
    """Some lines of a log."""

    content: str
    line_count: int
    total_lines: int
    has_more: bool
    is_estimate: bool = False
    end_offset: int = 0
    """Bytes of the log up to the end of `content`, from where a live reader goes on."""


class Runs(Protocol):
    """Look at runs. `child` is a run id below the root run, at any depth; empty means the root itself.

    Every method raises NotFound for a run, step or file that is not there.
    """

    async def find(self, wanted: RunFilter, *, limit: int, cursor: str = "") -> RunPage:
        """Return one page; `limit` is 1 to 500."""
        ...

    async def count(self, *, since: datetime, until: datetime | None = None) -> Mapping[RunStatus, int]:
        """Return how many root runs of a time have each status."""
        ...

    async def get(self, run: DagRunRef, *, child: str = "") -> FoundRun:
        """Return a run whole."""
        ...

    async def children(self, run: DagRunRef, *, child: str = "") -> Sequence[Document]:
        """Return the runs that this one called."""
        ...

    async def definition(self, run: DagRunRef, *, child: str = "") -> str:
        """Return the YAML that the run was started with."""
        ...

    async def log(
        self, run: DagRunRef, window: Window, *, step: str = "", stream: str = "stdout", child: str = ""
    ) -> LogPage:
        """Return lines of a step's log, or of the run's own where `step` is empty; invalid bytes are replaced."""
        ...

    def log_bytes(
        self, run: DagRunRef, *, step: str = "", stream: str = "stdout", child: str = "", offset: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield a log from a byte offset to its present end."""
        ...

    async def artifacts(self, run: DagRunRef, *, child: str = "") -> Sequence[ArtifactInfo]:
        """List the files of a run."""
        ...

    def artifact_bytes(self, run: DagRunRef, path: str, *, child: str = "") -> AsyncIterator[bytes]:
        """Yield one file."""
        ...

    async def outputs(self, run: DagRunRef, *, child: str = "") -> Document | None:
        """Return the outputs document of a finished run (`{metadata, outputs}`); None when it has none."""
        ...

    def changes(self) -> AsyncIterator[DagRunRef]:
        """Yield root runs as they change, within a second; a hint for live views, not a log."""
        ...


# ── starting and steering runs ───────────────────────────────────────────────────────────────────────────────────────


class Placement(StrEnum):
    """Where a run is executed."""

    LOCAL = "local"
    WORKERS = "workers"


class StartRequest(Struct, frozen=True, kw_only=True):
    """What somebody asks to run."""

    dag: str = ""
    """File name in the DAGs directory, without extension; empty when `text` says what runs."""
    text: str = ""
    """An inline definition."""
    name: str = ""
    """Call the DAG something else."""
    run_id: str = ""
    """Empty: a new one."""
    params: str = ""
    labels: tuple[str, ...] = ()
    queue: str = ""
    profile: str = ""
    singleton: bool = False
    """Refuse while another run of the DAG runs or waits."""
    no_reuse: bool = False
    trigger: TriggerType = TriggerType.MANUAL
    actor: str = ""
    schedule_time: str = ""
    high_priority: bool = False
    """Only for what is put into a queue."""
    once: bool = False
    """`run_id` stands for this very start: asked again, what an earlier call left half-done is completed, and what it
    completed stays as it is. Only for ids that nobody else makes."""


class Outlook(Struct, frozen=True, kw_only=True):
    """Where a DAG would run if it were started now."""

    placement: Placement
    selector: Mapping[str, str] = field(default_factory=dict)
    matching_workers: int = 0
    """Healthy ones."""
    waits_for: Waiting | None = None


class Launching(Protocol):
    """Start runs and steer them. What is returned is on disk: it survives `kill -9`.

    Errors: NotFound (no such DAG, run or step), DefinitionError (it does not load, parameters do not fit), Conflict
    (the run id is taken, singleton, not running, still active), Unavailable (no worker or coordinator), InvalidRequest.
    """

    async def start(self, request: StartRequest) -> DagRunRef:
        """Start a run at once, on this host or on a worker."""
        ...

    async def enqueue(self, request: StartRequest) -> DagRunRef:
        """Put a run into its queue."""
        ...

    async def outlook(self, dag: str) -> Outlook:
        """Tell where a DAG would run."""
        ...

    async def stop(self, run: DagRunRef, *, actor: str) -> None:
        """Ask for the end of a run; of a failed one that waits for its automatic retry: cancel that retry."""
        ...

    async def retry(
        self, run: DagRunRef, *, actor: str, step: str = "", downstream: bool = False, child: str = ""
    ) -> None:
        """Run again what did not succeed, or one step, as a new attempt of the same run."""
        ...

    async def retry_automatically(self, run: DagRunRef) -> datetime | None:
        """Retry a failed run whose DAG asks for that (`retry_policy`), if its pause is over.

        Returns:
            When its next retry is or was due; None: there is none, now or later.
        """
        ...

    async def reschedule(
        self, run: DagRunRef, *, actor: str, run_id: str = "", name: str = "", use_current: bool = False
    ) -> tuple[DagRunRef, bool]:
        """Start a new run as an earlier one was; return it, and whether it is queued."""
        ...

    async def dequeue(self, run: DagRunRef, *, actor: str) -> None:
        """Take a queued run out of its queue."""
        ...

    async def delete(self, run: DagRunRef) -> None:
        """Remove a finished run with everything that it left."""
        ...

    async def set_step_status(
        self, run: DagRunRef, step: str, status: StepStatus, *, actor: str, child: str = ""
    ) -> None:
        """Correct the status of a step of a finished run; that of the run follows."""
        ...

    async def approve(self, run: DagRunRef, step: str, inputs: Mapping[str, str], *, actor: str) -> bool:
        """Approve a waiting step; return whether the run goes on."""
        ...

    async def reject(self, run: DagRunRef, step: str, reason: str, *, actor: str) -> None:
        """Reject a waiting step: the run ends."""
        ...

    async def push_back(self, run: DagRunRef, step: str, inputs: Mapping[str, str], *, actor: str) -> bool:
        """Let a waiting step and what led to it run again; return whether the run goes on."""
        ...

    async def complete_task(self, run: DagRunRef, step: str, fields: Mapping[str, Any], *, actor: str) -> bool:
        """Complete a human task; return whether the run goes on."""
        ...


# ── queues ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class QueueView(Struct, frozen=True, kw_only=True):
    """One queue as it stands."""

    name: str
    is_global: bool
    """Named in the configuration, rather than one DAG's own."""
    max_concurrency: int
    paused: bool
    queued: int
    running: tuple[Document, ...]
    oldest_queued_at: datetime | None = None


class QueueBook(Protocol):
    """Look at queues and hold them."""

    async def queues(self) -> Sequence[QueueView]:
        """Return the configured queues and those that have runs, by name."""
        ...

    async def items(self, queue: str, *, limit: int, cursor: str = "") -> RunPage:
        """Return waiting runs in their order, each with the reason why it waits. NotFound: no such queue."""
        ...

    async def pause(self, queue: str, *, actor: str) -> None:
        """Start nothing from this queue until `resume`; kept over restarts."""
        ...

    async def resume(self, queue: str, *, actor: str) -> None:
        """Start from it again."""
        ...


# ── definitions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Workflow(Struct, frozen=True, kw_only=True):
    """One file of the DAGs directory."""

    file: str
    """Its name without extension; with `dag_discovery.recursive`, still the stem."""
    name: str
    text: str
    definition: Definition | None
    """None: it does not load."""
    errors: tuple[str, ...] = ()
    suspended: bool = False
    next_run_at: datetime | None = None
    modified_at: datetime | None = None


class WorkflowFilter(Struct, frozen=True, kw_only=True):
    """Which definitions are wanted. Empty means any."""

    name_part: str = ""
    labels: tuple[str, ...] = ()
    """`key`, `key=value`, `!key`; `*` and `?` match."""
    active_only: bool = False
    """Has a schedule and is not suspended."""


class Workflows(Protocol):
    """The DAGs directory. Files are read again only when they changed."""

    async def all(self, wanted: WorkflowFilter | None = None) -> Sequence[Workflow]:
        """Return definitions by name; files with errors are among them."""
        ...

    async def problems(self) -> Sequence[str]:
        """Return what is wrong with the directory as a whole, such as two files of one name."""
        ...

    async def get(self, file: str) -> Workflow:
        """Return one. NotFound: there is none, or the name climbs out of the directory."""
        ...

    async def create(self, file: str, text: str) -> Workflow:
        """Write a new one. Conflict: it is there already. DefinitionError: it does not load."""
        ...

    async def write(self, file: str, text: str, *, seen: str | None = None, strict: bool = True) -> Workflow:
        """Replace a text, atomically.

        Args:
            seen: SHA-256 hex of the text that the author started from; another one now is a Conflict. None: whatever.
            strict: refuse what does not load (DefinitionError); else keep it and say so in `errors`.
        """
        ...

    async def rename(self, file: str, to: str) -> None:
        """Give it another name; its suspend flag goes along."""
        ...

    async def delete(self, file: str) -> None:
        """Remove it."""
        ...

    async def suspend(self, file: str, *, suspended: bool) -> None:
        """Set or clear its suspend flag: a suspended DAG is not scheduled."""
        ...

    async def labels(self) -> Sequence[str]:
        """Return every label of every definition."""
        ...

    async def validate(self, text: str, *, name: str = "") -> tuple[Definition | None, Sequence[str]]:
        """Return what a text loads as, and what is wrong with it, each with line and column."""
        ...


# ── the machines ─────────────────────────────────────────────────────────────────────────────────────────────────────


class WorkerState(StrEnum):
    """Whether a worker is given work."""

    ACTIVE = "active"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker, and what its certificate proves. Fields of the link are empty while it has none."""

    info: WorkerInfo
    state: WorkerState = WorkerState.ACTIVE
    identity: str = ""
    """Its spiffe URI."""
    serial: str = ""
    issuer: str = ""
    cert_not_after: datetime | None = None
    tls_version: str = ""
    cipher: str = ""
    group: str = ""
    remote_address: str = ""
    connected_since: datetime | None = None
    version: str = ""
    """Of its program; empty for a worker that does not say."""
    is_lost: bool = False
    """It went away, or has been silent for too long; `info` is its last word."""
    held_tasks: int = 0
    """Tasks that the coordinator has offered or leased to it: true now, where `info.stats` is as old as a heartbeat."""


class ServiceView(Struct, frozen=True, kw_only=True):
    """One coordinator or scheduler."""

    instance_id: str
    host: str
    port: int
    status: str
    """`active`, `inactive` or `unknown`."""
    started_at: datetime | None = None


class LinkView(Struct, frozen=True, kw_only=True):
    """One live connection of a coordinator."""

    identity: str
    role: str
    address: str
    tls_version: str
    cipher: str
    group: str
    serial: str
    cert_not_after: datetime | None
    opened_at: datetime


class CertificateView(Struct, frozen=True, kw_only=True):
    """A certificate in use here, or one that our CA issued."""

    subject: str
    """What it is for: `coordinator`, `worker gpu-1`, a file's key of the configuration."""
    identity: str
    serial: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    in_use: bool
    revoked_at: datetime | None = None
    revocation_reason: str = ""


class Fleet(Protocol):
    """The machines: workers, coordinators, schedulers, links and certificates."""

    async def workers(self) -> Sequence[WorkerView]:
        """Return all known workers by id, those lost within a day too (unhealthy). Unavailable: nobody answers."""
        ...

    async def drain(self, worker: str, *, draining: bool, actor: str) -> None:
        """Give it no new work, or give it work again. NotFound: no such worker."""
        ...

    async def revoke(self, worker: str, *, reason: str, actor: str) -> int:
        """Revoke every certificate of a worker and cut its links; return how many. Refused: no CA on this host."""
        ...

    async def coordinators(self) -> Sequence[ServiceView]:
        """Return the known coordinators."""
        ...

    async def schedulers(self) -> Sequence[ServiceView]:
        """Return the known schedulers; the one that is active says so."""
        ...

    async def links(self) -> Sequence[LinkView]:
        """Return the live connections of the coordinators that can be asked."""
        ...

    async def certificates(self) -> Sequence[CertificateView]:
        """Return the certificates in use here, and the ledger of our CA where it is here."""
        ...
