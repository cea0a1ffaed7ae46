"""What an executor gets and gives: one execution of one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_dagu.dag.model import Dag, Definition, Step
from secure_dagu.dag.scope import Scope
from secure_dagu.run.machine import Result
from secure_dagu.runner.api import ChildRuns, RunRequest
from secure_dagu.runner.process import Sink, Stopping
from secure_dagu.runner.shell import Chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """Everything that one execution of a step may use."""

    request: RunRequest
    definition: Definition
    dag: Dag
    step: Step
    scope: Scope
    env: Mapping[str, str]
    """What its processes see, and all that they see."""
    cwd: Path
    shell: Chosen
    stdout: Sink
    stderr: Sink | None
    """None: merged into stdout."""
    marker: str
    stop: asyncio.Event
    stopping: Stopping
    children: ChildRuns
    changed: Callable[[Mapping[str, Any]], None]
    """Publish something while the step still runs, such as its children."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How an execution ended. `outputs` are published run outputs."""

    result: Result
    exit_code: int | None = None
    error: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)


SUCCESS = Done(result=Result.SUCCEEDED, exit_code=0)

Executor = Callable[[StepContext], Coroutine[Any, Any, Done]]
