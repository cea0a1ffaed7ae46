"""Dag, Step and their parts: frozen values, as authored and validated. Pure.

Text fields hold the authored text: references (`${…}`) are resolved by `dag.values` right before a field is used,
never at load (docs/reference/workflows.md, "Value resolution"). Durations are seconds as float.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct, field


class Position(Struct, frozen=True):
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


class EnvEntry(Struct, frozen=True, kw_only=True):
    """One environment declaration, in source order."""

    name: str
    value: str


class ParamDef(Struct, frozen=True, kw_only=True):
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
    schema: Mapping[str, Any] | None = None
    """The property's JSON Schema, when it says more than the fields above."""
    is_external: bool = False
    """From a schema outside the file: the caller has to name it."""


class Precondition(Struct, frozen=True, kw_only=True):
    """One precondition. With `expected`: value match; without: command check. Exactly one of condition and eval."""

    condition: str = ""
    eval: str = ""
    expected: str | None = None
    negate: bool = False


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Retry of a step. `limit` and `interval` may be references and are resolved before the step starts."""

    limit: str
    interval_s: str
    exit_codes: tuple[int, ...] = ()
    backoff: float = 0.0
    max_interval_s: float = 0.0


class RepeatPolicy(Struct, frozen=True, kw_only=True):
    """Repeat of a step; `mode` is `while`, `until` or empty (no repeat)."""

    mode: str
    condition: str = ""
    expected: str | None = None
    exit_codes: tuple[int, ...] = ()
    interval_s: str = "0"
    limit: str = ""
    backoff: float = 0.0
    max_interval_s: str = ""


class ContinueOn(Struct, frozen=True, kw_only=True):
    """Which outcomes of a step its dependents accept."""

    failure: bool = False
    skipped: bool = False
    exit_codes: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    mark_success: bool = False


class PathInput(Struct, frozen=True, kw_only=True):
    """One entry of a step's `inputs`, in build DAGs: `${inputs.<name>}` is its absolute path."""

    name: str
    path: str


class DeclaredOutput(Struct, frozen=True, kw_only=True):
    """One entry of a step's `outputs`; `path` only in build DAGs."""

    name: str
    type: str = "string"
    path: str = ""


class StreamTarget(Struct, frozen=True, kw_only=True):
    """Where a stream goes besides its log: a file path, an artifact path, or published outputs."""

    path: str = ""
    artifact: str = ""
    outputs: Any = None


class Shell(Struct, frozen=True, kw_only=True):
    """A shell as authored: program and arguments; empty `program` means not set."""

    program: str = ""
    args: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


class Parallel(Struct, frozen=True, kw_only=True):
    """Fan-out of a sub-DAG call. `source` (text) or `items` (static)."""

    source: str = ""
    items: tuple[Any, ...] = ()
    max_concurrent: int = 10


class ForEach(Struct, frozen=True, kw_only=True):
    """Body steps for each item of a list."""

    items: Any
    steps: tuple[Step, ...]
    as_name: str = "item"
    key: str = ""
    max_concurrent: int = 10
    collect: Mapping[str, str] = field(default_factory=dict)


class Approval(Struct, frozen=True, kw_only=True):
    """A person must approve before the dependents of a step run (workflow language, section 3.25)."""

    prompt: str = ""
    input: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    rewind_to: str = ""
    """Runtime name of the step that a push-back starts again from; empty: the step itself."""


class Routed(Struct, frozen=True, kw_only=True):
    """A step runs only if the value of `router` matches one of `patterns`: exact text, or `re:` and a regex."""

    router: str
    """Runtime name of the `router.route` step; also among `depends`."""
    patterns: tuple[str, ...]


class Resources(Struct, frozen=True, kw_only=True):
    """`resources.limits`: 0 means not limited."""

    cpu_millicores: int = 0
    memory_bytes: int = 0


class DagRetry(Struct, frozen=True, kw_only=True):
    """Automatic retry of a whole run by the scheduler (workflow language, section 3.9)."""

    limit: int
    interval_s: float = 60.0
    backoff: float = 0.0
    max_interval_s: float = 3600.0


class Step(Struct, frozen=True, kw_only=True):
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
    path_inputs: tuple[PathInput, ...] = ()
    approval: Approval | None = None
    routed: Routed | None = None
    container: Any = None
    """The step's own `container`: text (a running container), or a map as authored; None: not set."""
    operation: str = ""
    """What a person reads of an action in the summary: its last word for files, S3 and the like, else empty."""
    file_dependencies: tuple[str, ...] = ()


HANDLERS = ("init", "success", "failure", "abort", "wait", "exit")
"""Names under `handler_on`; the node of `init` is called `onInit`, and so on."""


class SecretDef(Struct, frozen=True, kw_only=True):
    """One declared secret: `ref` (the coordinator's registry) or `provider` and `key`."""

    name: str
    ref: str = ""
    provider: str = ""
    key: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


class Artifacts(Struct, frozen=True, kw_only=True):
    """Artifact settings. The loader settles `enabled`: as written, or by use when it is not."""

    enabled: bool = False
    dir: str = ""


class Dag(Struct, frozen=True, kw_only=True):
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
    retry: DagRetry | None = None
    skip_if_successful: bool = False
    catchup_window: str = ""
    overlap_policy: str = "skip"
    retention_days: int = 30
    """Runs older than this are deleted after a run of the DAG; not looked at when `retention_runs` is set."""
    retention_runs: int = 0
    container: Any = None
    """`container` of the whole run: text (a running container), or a map as authored; None: not set."""
    resources: Resources = Resources()
    step_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Root `ssh`, `s3`, `redis` and `smtp` as authored: what actions of that name take unless they say otherwise."""
    mail_on: Mapping[str, bool] = field(default_factory=dict)
    """`failure`, `success`, `wait`."""
    mails: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`error_mail`, `info_mail`, `wait_mail` as authored."""
    registry_auths: Any = None
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


class Definition(Struct, frozen=True, kw_only=True):
    """A whole file: the entry DAG and the local sub-DAGs that it may call by name."""

    main: Dag
    locals: Mapping[str, Dag] = field(default_factory=dict)
    text: str = ""
    """The authored YAML, as it travels in `Task.definition`."""
    warnings: tuple[str, ...] = ()

    @property
    def file_dependencies(self) -> tuple[str, ...]:
        """Every declaration of a file: of the documents, their steps and their handlers, each once, in order."""
        dags = (self.main, *self.locals.values())
        found = [name for dag in dags for name in dag.file_dependencies]
        steps = [step for dag in dags for step in (*dag.steps, *dag.handlers.values())]
        found += [name for step in steps for name in step.file_dependencies]
        return tuple(dict.fromkeys(found))
