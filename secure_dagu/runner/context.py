"""What an executor gets and gives: one execution of one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from secure_dagu.dag import formats
from secure_dagu.dag.model import Dag, Definition, Step
from secure_dagu.dag.scope import Scope
from secure_dagu.run.machine import Result
from secure_dagu.runner.api import ChildRuns, RunRequest
from secure_dagu.runner.process import Sink, Stopping
from secure_dagu.runner.shell import Chosen

if TYPE_CHECKING:
    from secure_dagu.runner.containers import RunContainer


class StepContext(Struct, frozen=True, kw_only=True):
    """Everything that one execution of a step may use."""

    request: RunRequest
    definition: Definition
    dag: Dag
    step: Step
    path: str
    """What tells the step from all others of the run: its node's name, below that of a `foreach` for a body step."""
    scope: Scope
    env: Mapping[str, str]
    """What its processes see, and all that they see."""
    cwd: Path
    root: Path
    """The DAG's working directory."""
    artifacts: Path
    """The run's folder of artifacts; it is there only where the DAG has artifacts enabled."""
    shell: Chosen
    stdout: Sink
    stderr: Sink | None
    """None: merged into stdout."""
    marker: str
    stop: asyncio.Event
    stopping: Stopping
    children: ChildRuns
    container: RunContainer | None
    """The container of the run, when the DAG has one."""
    limits: Path | None
    """The cgroup that limits the run's processes, when the DAG has limits and this host can keep them."""
    secrets: tuple[str, ...]
    """The values that the run hides."""
    changed: Callable[[Mapping[str, Any]], None]
    """Publish something while the step still runs, such as its children."""
    show: Callable[[Mapping[str, Any]], None]
    """Let the node show this instead of the authored text of its step; secrets are masked on the way."""
    recent_stderr: Callable[[], str]
    """Return the last lines that this execution wrote to stderr, secrets masked; empty when there are none."""

    def __repr__(self) -> str:
        return formats.shown_without(self, "env", "secrets", "scope")


class Done(Struct, frozen=True, kw_only=True):
    """How an execution ended.

    `outputs` are published run outputs; `kept` is what the node keeps besides, by status-document key.
    """

    result: Result
    exit_code: int | None = None
    error: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)


SUCCESS = Done(result=Result.SUCCEEDED, exit_code=0)

Executor = Callable[[StepContext], Coroutine[Any, Any, Done]]
