"""What a runner is handed and what it tells: the seam between the run engine and whoever owns the run.

`worker/` implements `RunObserver` and `ChildRuns`; `runner.runner` calls them. A local run (later) is the same seam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from secure_dagu.dispatch.model import BundleRef, LogStream, Task
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolders:
    """Where one attempt lives on this host. All absolute; made by `runner.workspace`, mode 0700."""

    logs: Path
    work: Path
    artifacts: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
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
    warnings: tuple[str, ...] = ()
    """Things the run's reader should know, put into the status document."""
    bundle: Path | None = None
    """The archive of `task.bundle`, already downloaded and its size and digest checked; None without a bundle."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRequest:
    """A sub-DAG call that is to be dispatched over the wire."""

    dag: str
    """Name of the child DAG."""
    definition: str
    """YAML whose main document is the child."""
    run_id: str
    parent: DagRunRef
    root: DagRunRef
    params: str
    worker_selector: Mapping[str, str]
    parallel_item: str = ""
    base_config: str = ""
    bundle: BundleRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """How a child ended: its status and its final status document as JSON text."""

    status: RunStatus
    document: str


class ChildRuns(Protocol):
    """Run sub-DAGs somewhere else, find definitions, resolve managed secrets."""

    async def run(self, request: ChildRequest) -> ChildResult:
        """Dispatch a child and wait for its end; cancelling this call cancels the child."""
        ...

    async def dag_text(self, name: str) -> str | None:
        """Return the YAML of a definition by name, None when unknown."""
        ...

    async def resolve_secret(self, *, name: str, ref: str) -> str:
        """Return a managed secret for the task's lease."""
        ...
