"""What a runner is handed and what it tells: the seam between the run engine and whoever owns the run.

`worker/` implements `RunObserver` and `ChildRuns`; `runner.runner` calls them. A local run (later) is the same seam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from secure_dagu.dag import formats
from secure_dagu.dag.model import Definition
from secure_dagu.dispatch.model import BundleRef, LogStream, StateEntry, StateRef, StateSource, Task
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus, TriggerType


class RunFolders(Struct, frozen=True, kw_only=True):
    """Where one attempt lives on this host. All absolute; made by `runner.workspace`, mode 0700."""

    logs: Path
    work: Path
    artifacts: Path
    run_log: Path | None = None
    """The engine's log of the run; None: `scheduler.log` in `logs`."""
    log_suffix: str = ""
    """What follows a step's name in the names of its log files: `.<suffix>.out` and `.err`, `.log` for merged streams;
    empty: `.stdout.log` and `.stderr.log`, as the wire names them."""


class RunRequest(Struct, frozen=True, kw_only=True):
    """One attempt to execute."""

    task: Task
    attempt_id: AttemptId
    attempt_key: AttemptKey
    claim_key: AttemptKey
    """Attempt key of the task under which this run reports; the task's own key unless it is an in-process child."""
    worker: str
    folders: RunFolders
    host_env: Mapping[str, str] = field(default_factory=dict)
    """The filtered environment of this host (configuration reference, section 10): nothing else reaches a step."""
    default_shell: str = ""
    public_url: str = ""
    """Where people reach the Web UI, for links in mails; empty: nobody said."""
    loaded: Definition | None = None
    """`task.definition`, where it was loaded already."""
    warnings: tuple[str, ...] = ()
    """Things the run's reader should know, put into the status document."""
    bundle: Path | None = None
    """The archive of `task.bundle`, already downloaded and its size and digest checked; None without a bundle."""
    trigger: TriggerType | None = None
    """What started the run; None: what the task tells (a sub-DAG, a retry, else unknown)."""
    default_working_dir: str = ""
    """`--default-working-dir`: counts as the DAG's own `working_dir` where it has none."""
    profile_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the selected profile (workflow language, section 2.6, layer 7)."""
    profile_secrets: Mapping[str, str] = field(default_factory=dict)
    """Secrets of the selected profile: like `profile_env`, and masked."""
    no_reuse: bool = False
    """Build DAGs: recompute everything."""
    dag_dir: Path | None = None
    """The directory of the DAG's file, where that is on this host: relative paths of the DAG are below it."""
    inherited_env: Mapping[str, str] = field(default_factory=dict)
    """For a child that runs in its parent's process: `ChildRequest.env`."""
    inherited_secrets: tuple[str, ...] = ()
    """`ChildRequest.secrets`: values that this run must hide too."""
    process_env: Mapping[str, str] = field(default_factory=dict)
    """Where fields with host fallback and secrets of the provider `env` look besides the run's scope: on the author's
    own host, the engine's whole environment; on a worker nothing, because it would be the operator's."""
    materializations: Path | None = None
    """Where build DAGs keep manifests, locks and journals; None: they cannot run here."""

    def __repr__(self) -> str:
        return formats.shown_without(
            self, "profile_secrets", "inherited_env", "inherited_secrets", "process_env", "host_env"
        )


class RunObserver(Protocol):
    """Who hears about the run. Calls return at once; the observer buffers."""

    def status_changed(self, document: str, *, final: bool = False) -> None:
        """Take the whole status document (protocol, section 4) as JSON text; only the newest matters.

        `final` is True once, with the last document of the run (terminal or waiting), after every log is closed: it is
        withheld until logs and artifacts have arrived.
        """
        ...

    def log_written(self, step: str, stream: LogStream, path: Path, size: int) -> None:
        """Take notice that `path` now holds `size` bytes of this step's stream; bytes once written never change."""
        ...

    def line_logged(self, level: str, message: str, fields: Mapping[str, str]) -> None:
        """Take notice of a line of the run's own log: what a person who started the run here sees on stderr."""
        ...


class ChildRequest(Struct, frozen=True, kw_only=True):
    """A sub-DAG call that is to be dispatched over the wire."""

    dag: str
    """Name of the child DAG."""
    called: str = ""
    """What the step called: the name, or the path of a file."""
    definition: str
    """YAML whose main document is the child."""
    run_id: str
    parent: DagRunRef
    root: DagRunRef
    params: str
    worker_selector: Mapping[str, str]
    parallel_item: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    """The parent's parameters, environment, dotenv values and secrets. A child in the same process sees them below its
    own (`RunRequest.inherited_env`); they never travel."""
    secrets: tuple[str, ...] = ()
    """Values that the parent hides (`RunRequest.inherited_secrets`); they never travel."""
    is_local: bool = False
    """It is a document of the parent's own file."""
    base_config: str = ""
    bundle: BundleRef | None = None

    def __repr__(self) -> str:
        return formats.shown_without(self, "env", "secrets")


class ChildResult(Struct, frozen=True, kw_only=True):
    """How a child ended: its status and its final status document as JSON text."""

    status: RunStatus
    document: str


class Enqueued(Struct, frozen=True, kw_only=True):
    """What became of a child that was put into a queue."""

    queue: str
    already_exists: bool = False


class ChildRuns(Protocol):
    """What a run asks of the world around it: sub-DAGs, definitions, managed secrets, shared state.

    A worker answers over the wire (`worker.children`), a run on this host from its own folders (`local`).
    """

    async def enqueue(self, request: ChildRequest, *, queue: str) -> Enqueued:
        """Put a child into a queue and do not wait; `queue` empty: the child's own."""
        ...

    async def get_state(self, ref: StateRef) -> StateEntry | None:
        """Return a shared value, None when there is none."""
        ...

    async def put_state(
        self, ref: StateRef, value: bytes, *, expected_version: int | None, create_only: bool, updated_by: StateSource
    ) -> StateEntry:
        """Write a shared value.

        Raises:
            Conflict: `expected_version` or `create_only` does not hold.
            InvalidRequest: bad reference, bad JSON, above 1 MiB.
        """
        ...

    async def delete_state(self, ref: StateRef) -> bool:
        """Remove a shared value; False when there was none."""
        ...

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        """Return shared values by key; `limit` 0 means all."""
        ...

    async def run(self, request: ChildRequest) -> ChildResult:
        """Dispatch a child and wait for its end; cancelling this call cancels the child."""
        ...

    async def dag_text(self, name: str) -> str | None:
        """Return the YAML of a definition by name, None when unknown."""
        ...

    async def resolve_secret(self, *, name: str, ref: str) -> str:
        """Return a managed secret for the task's lease."""
        ...
