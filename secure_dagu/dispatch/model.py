"""Values of dispatch: callers, tasks, claims, leases, workers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, IntEnum, StrEnum
from typing import NewType

from msgspec import Struct, field

from secure_dagu.dispatch.address import host_port
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef

WorkerId = NewType("WorkerId", str)
ClaimToken = NewType("ClaimToken", str)

NO_ATTEMPT = AttemptId("")
NO_KEY = AttemptKey("")


class Role(StrEnum):
    """What a caller may be. The certificate names it; `ANONYMOUS` is everybody over an unproven link."""

    WORKER = "worker"
    DISPATCHER = "dispatcher"
    COORDINATOR = "coordinator"
    ADMIN = "admin"
    METRICS = "metrics"
    ANONYMOUS = "anonymous"


class Caller(Struct, frozen=True, kw_only=True):
    """Who makes a call, as the wall above has established it.

    `worker` is the worker id that this call acts as: checked against the certificate when `proven`, merely claimed over
    an unproven link, None when the caller is no worker. Rights over objects (a lease, a run) are decided on this value.
    """

    role: Role
    name: str
    proven: bool
    worker: WorkerId | None = None
    identity: str = ""
    """The whole identity URI; empty over an unproven link."""
    serial: str = ""
    """Of the certificate that proves it, lower-case hex."""
    address: str = ""
    """Remote `host:port`."""
    tenants: frozenset[str] = frozenset()
    """The tenants that a dispatcher's or coordinator's certificate grants (`security.policy`)."""


class Operation(IntEnum):
    """What a task asks for, with the wire's numbers."""

    UNSPECIFIED = 0
    START = 1
    RETRY = 2


class Owner(Struct, frozen=True):
    """The coordinator that served a poll: target of all follow-up calls of the task."""

    id: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """Return `host:port`, an IPv6 literal in brackets."""
        return host_port(self.host, self.port)


class BundleRef(Struct, frozen=True):
    """A workspace bundle that a task needs (protocol, section 7). `digest` is SHA-256, 64 lower-case hex digits."""

    digest: str
    size_bytes: int
    dag_path: str
    original_ref: str = ""
    resolved_ref: str = ""


class Task(Struct, frozen=True, kw_only=True):
    """One DAG-run attempt as offered to workers (protocol, section 1.5, Task).

    `attempt_id` and `attempt_key` are empty on the way in and set by the coordinator at Dispatch.
    """

    operation: Operation
    run: DagRunRef
    root: DagRunRef
    parent: DagRunRef | None = None
    definition: str
    params: str = ""
    step: str = ""
    include_downstream: bool = False
    worker_selector: Mapping[str, str] = field(default_factory=dict)
    target_worker: WorkerId | None = None
    previous_status: str = ""
    """Status JSON of the run to continue; empty when there is none."""
    attempt_id: AttemptId = NO_ATTEMPT
    attempt_key: AttemptKey = NO_KEY
    labels: str = ""
    base_config: str = ""
    schedule_time: str = ""
    external_step_retry: bool = False
    queue_name: str = ""
    source_file: str = ""
    bundle: BundleRef | None = None
    profile_name: str = ""
    retry_path: str = ""
    trigger_actor: str = ""
    definition_id: str = ""
    parallel_item: str = ""

    @property
    def is_root(self) -> bool:
        """Tell whether this is the top run of its tree."""
        return self.parent is None and self.root == self.run


class Claim(Struct, frozen=True, kw_only=True):
    """A task handed to a poller and not yet acknowledged. Without a token the worker skips the acknowledgement."""

    task: Task
    worker: WorkerId
    token: ClaimToken
    owner: Owner | None


class Phase(Enum):
    """Where a task is in its life (docs/architecture.md, "The two lifecycles")."""

    QUEUED = "queued"
    OFFERED = "offered"
    LEASED = "leased"
    ENDED = "ended"
    LOST = "lost"


class RunningTask(Struct, frozen=True, kw_only=True):
    """What a worker says it is running (protocol, section 1.5, RunningTask)."""

    run: DagRunRef
    root: DagRunRef
    parent: DagRunRef | None
    attempt_key: AttemptKey
    started_at: datetime


class WorkerStats(Struct, frozen=True, kw_only=True):
    """Capacity and load of a worker as of its last heartbeat."""

    total_pollers: int = 0
    busy_pollers: int = 0
    running: tuple[RunningTask, ...] = ()


class WorkerHealth(IntEnum):
    """Health by age of the last heartbeat, with the wire's numbers: below 5 s, below 15 s, older."""

    UNSPECIFIED = 0
    HEALTHY = 1
    WARNING = 2
    UNHEALTHY = 3


class WorkerInfo(Struct, frozen=True, kw_only=True):
    """One worker as the coordinator sees it now."""

    worker: WorkerId
    labels: Mapping[str, str]
    stats: WorkerStats
    last_heartbeat_at: datetime
    health: WorkerHealth


class LogStream(IntEnum):
    """Which stream of a step, with the wire's numbers."""

    UNSPECIFIED = 0
    STDOUT = 1
    STDERR = 2
    SCHEDULER = 3


class StreamIdentity(Struct, frozen=True, kw_only=True):
    """Under whose authority an upload stream writes: constant from its first message to its last."""

    worker: WorkerId
    run: DagRunRef
    root: DagRunRef
    attempt_id: AttemptId
    claim_key: AttemptKey
    """Attempt key of the *task*; empty when the sender left it out (protocol, section 1.5, LogChunk.attempt_key)."""
    owner_id: str = ""


class LogPart(Struct, frozen=True, kw_only=True):
    """One piece of a log stream. `offset` None means append mode (protocol, section 5.4)."""

    step: str
    stream: LogStream
    data: bytes
    offset: int | None
    is_final: bool


class ArtifactPart(Struct, frozen=True, kw_only=True):
    """One piece of an artifact file; `path` is relative, `/`-separated and not yet trusted."""

    path: str
    data: bytes
    is_final: bool


class Uploaded(Struct, frozen=True):
    """What a finished upload stream amounted to."""

    chunks: int
    size_bytes: int


class Verdict(Struct, frozen=True, kw_only=True):
    """An in-band answer: accepted, or refused with a reason that the protocol names."""

    accepted: bool
    error: str = ""


ACCEPTED = Verdict(accepted=True)


STATE_SCOPES = ("dag", "root_dag", "global", "custom")
"""What a shared value may belong to (protocol, section 8.1)."""


class StateRef(Struct, frozen=True):
    """Address of one shared value (protocol, section 8.1). `scope` is one of `STATE_SCOPES`."""

    scope: str
    namespace: str
    key: str


class StateSource(Struct, frozen=True, kw_only=True):
    """Who says it wrote a shared value."""

    dag_name: str = ""
    run_id: str = ""
    attempt_id: str = ""
    step: str = ""


class StateEntry(Struct, frozen=True, kw_only=True):
    """One shared value: compact JSON with a version from 1 and the SHA-256 hex of the value."""

    ref: StateRef
    value: bytes
    version: int
    hash: str
    created_at_ns: int
    updated_at_ns: int
    updated_by: StateSource = field(default_factory=StateSource)


class SecretRequest(Struct, frozen=True, kw_only=True):
    """A worker asks for one managed secret under a lease (protocol, section 8.4)."""

    name: str
    ref: str
    workspace: str
    check_only: bool
    attempt_key: AttemptKey
    attempt_id: AttemptId


class RunSummary(Struct, frozen=True, kw_only=True):
    """One line of a run list, newest attempt. Times are None when not reached."""

    run: DagRunRef
    root: DagRunRef
    status: int
    worker: str
    error: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunEvent(Struct, frozen=True, kw_only=True):
    """What a follower of a run sees: a new status document, a piece of log, or both absent on a keep-alive."""

    status: str = ""
    """Status JSON; empty when unchanged."""
    log: LogPart | None = None
    ended: bool = False
    """True on the last event: terminal status sent and every log byte delivered."""


class ArtifactInfo(Struct, frozen=True, kw_only=True):
    """One stored artifact file."""

    path: str
    size_bytes: int
