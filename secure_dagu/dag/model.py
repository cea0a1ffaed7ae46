"""Dag, Step and their parts: frozen values, as authored and validated. Pure.

Text fields hold the authored text: references (`${…}`) are resolved by `dag.values` right before a field is used,
never at load (docs/reference/workflows.md, "Value resolution"). Durations are seconds as float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the file something was written; 1-based. `file` is empty for text that came over the wire."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file or '<definition>'}:{self.line}:{self.column}"


class DagType(StrEnum):
    """How steps are ordered: `graph` by `depends` only, `chain` each after the previous entry."""

    GRAPH = "graph"
    CHAIN = "chain"
    BUILD = "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvEntry:
    """One environment declaration, in source order."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamDef:
    """One declared parameter. `default` None means: missing unless the caller gives it."""

    name: str
    """Empty for a positional parameter."""
    default: str | None = None
    eval: str = ""
    type: str = "string"
    description: str = ""
    required: bool = False
    enum: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """One precondition. With `expected`: value match; without: command check. Exactly one of condition and eval."""

    condition: str = ""
    eval: str = ""
    expected: str | None = None
    negate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retry of a step. `limit` and `interval` may be references and are resolved before the step starts."""

    limit: str
    interval_s: str
    exit_codes: tuple[int, ...] = ()
    backoff: float = 0.0
    max_interval_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatPolicy:
    """Repeat of a step; `mode` is `while`, `until` or empty (no repeat)."""

    mode: str
    condition: str = ""
    expected: str | None = None
    exit_codes: tuple[int, ...] = ()
    interval_s: str = "0"
    limit: str = ""
    backoff: float = 0.0
    max_interval_s: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueOn:
    """Which outcomes of a step its dependents accept."""

    failure: bool = False
    skipped: bool = False
    exit_codes: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    mark_success: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredOutput:
    """One entry of a step's `outputs`; `path` only in build DAGs."""

    name: str
    type: str = "string"
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTarget:
    """Where a stream goes besides its log: a file path, an artifact path, or published outputs."""

    path: str = ""
    artifact: str = ""
    outputs: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """A shell as authored: program and arguments; empty `program` means not set."""

    program: str = ""
    args: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Fan-out of a sub-DAG call. `source` (text) or `items` (static)."""

    source: str = ""
    items: tuple[Any, ...] = ()
    max_concurrent: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ForEach:
    """Body steps for each item of a list."""

    items: Any
    steps: tuple[Step, ...]
    as_name: str = "item"
    key: str = ""
    max_concurrent: int = 10
    collect: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    `kind` picks the executor: `command` (one or more command lines in `commands`), `script` (text in `script`), or the
    name of an action such as `dag.run`, whose inputs are in `inputs` (`with`).
    """

    name: str
    id: str = ""
    description: str = ""
    position: Position
    kind: str
    commands: tuple[str, ...] = ()
    script: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    shell: Shell = Shell()
    depends: tuple[str, ...] = ()
    """Runtime names of the steps that must be finished first."""
    env: tuple[EnvEntry, ...] = ()
    working_dir: str = ""
    preconditions: tuple[Precondition, ...] = ()
    stdout: StreamTarget = StreamTarget()
    stderr: StreamTarget = StreamTarget()
    merged_logs: bool | None = None
    output: Any = None
    """String form: variable name. Mapping form: entries. None: not captured."""
    output_schema: Mapping[str, Any] | None = None
    outputs: tuple[DeclaredOutput, ...] = ()
    continue_on: ContinueOn = ContinueOn()
    retry: RetryPolicy | None = None
    repeat: RepeatPolicy | None = None
    timeout_s: float = 0.0
    signal_on_stop: str = ""
    mail_on_error: bool = False
    worker_selector: Mapping[str, str] | None = None
    """None: not set. Empty with `run_locally`: the word `local`."""
    run_locally: bool = False
    parallel: Parallel | None = None
    foreach: ForEach | None = None
    file_dependencies: tuple[str, ...] = ()


HANDLERS = ("init", "success", "failure", "abort", "wait", "exit")
"""Names under `handler_on`; the node of `init` is called `onInit`, and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDef:
    """One declared secret: `ref` (the coordinator's registry) or `provider` and `key`."""

    name: str
    ref: str = ""
    provider: str = ""
    key: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """Artifact settings. The loader settles `enabled`: as written, or by use when it is not."""

    enabled: bool = False
    dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dag:
    """One workflow document."""

    name: str
    type: DagType = DagType.GRAPH
    group: str = ""
    description: str = ""
    steps: tuple[Step, ...] = ()
    handlers: Mapping[str, Step] = field(default_factory=dict)
    """By name from `HANDLERS`."""
    consts: Mapping[str, Any] = field(default_factory=dict)
    params: tuple[ParamDef, ...] = ()
    env: tuple[EnvEntry, ...] = ()
    dotenv: tuple[str, ...] = (".env",)
    secrets: tuple[SecretDef, ...] = ()
    shell: Shell = Shell()
    working_dir: str = ""
    preconditions: tuple[Precondition, ...] = ()
    timeout_s: float = 0.0
    delay_s: float = 0.0
    restart_wait_s: float = 0.0
    max_active_steps: int = 0
    max_clean_up_s: float = 5.0
    max_output_bytes: int = 1_048_576
    queue: str = ""
    schedule: Any = None
    log_dir: str = ""
    merged_logs: bool = False
    artifacts: Artifacts = Artifacts()
    labels: tuple[str, ...] = ()
    """`key` or `key=value`, lower case."""
    worker_selector: Mapping[str, str] | None = None
    run_locally: bool = False
    """`worker_selector: local`."""
    file_dependencies: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Accepted keys that this version does not act on yet (mail, retention, …), as plain values."""

    def step(self, name: str) -> Step:
        """Return the step called `name`.

        Raises:
            KeyError: there is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A whole file: the entry DAG and the local sub-DAGs that it may call by name."""

    main: Dag
    locals: Mapping[str, Dag] = field(default_factory=dict)
    text: str = ""
    """The authored YAML, as it travels in `Task.definition`."""
    warnings: tuple[str, ...] = ()
