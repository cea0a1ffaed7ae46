"""Definitions → what the REST API says of DAGs (REST reference, section 6). Pure.

Texts are as authored: references are not resolved, so a shape shows no value that the file does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from typing_extensions import TypedDict

from secure_dagu.dag.model import Dag, ParamDef, Precondition, RepeatPolicy, Step
from secure_dagu.dag.notices import Notice
from secure_dagu.dispatch.operating import FoundRun, Workflow
from secure_dagu.run.snapshot import authored_condition
from secure_dagu.web.api.shapes import moment
from secure_dagu.web.api.shapes_runs import ConditionShape, DAGRunSummary, StepShape, condition_shape, summary

_SCALARS = ("string", "integer", "number", "boolean")


class Schedule(TypedDict):
    """One entry of a schedule: a cron expression or a moment."""

    kind: str
    expression: NotRequired[str]
    at: NotRequired[str]
    profile: NotRequired[str]


class RunConfig(TypedDict):
    """What a start dialog may not offer."""

    disableParamEdit: bool
    disableRunIdEdit: bool


class Limits(TypedDict):
    """Limits as authored would read: cores and bytes."""

    cpu: NotRequired[str]
    memory: NotRequired[str]


class ResourcesShape(TypedDict):
    """Resources of a run."""

    limits: Limits


class DAG(TypedDict):
    """A definition in a list."""

    name: str
    group: NotRequired[str]
    schedule: NotRequired[list[Schedule]]
    description: NotRequired[str]
    params: NotRequired[list[str]]
    defaultParams: NotRequired[str]
    labels: list[str]
    tags: list[str]
    queue: NotRequired[str]
    runConfig: NotRequired[RunConfig]
    resources: NotRequired[ResourcesShape]


class DAGFile(TypedDict):
    """One file of a list; without a newest run, `latestDAGRun` is a run that is not started."""

    fileName: str
    dag: DAG
    latestDAGRun: DAGRunSummary
    nextRun: NotRequired[str]
    suspended: bool
    errors: list[str]


class ParamDefShape(TypedDict):
    """One declared parameter."""

    name: NotRequired[str]
    type: str
    default: NotRequired[Any]
    description: NotRequired[str]
    required: bool
    enum: NotRequired[list[Any]]
    minimum: NotRequired[float]
    maximum: NotRequired[float]
    minLength: NotRequired[int]
    maxLength: NotRequired[int]
    pattern: NotRequired[str]


class ArtifactsShape(TypedDict):
    """Artifact settings."""

    enabled: bool
    dir: NotRequired[str]


class HandlersShape(TypedDict):
    """Steps that run when something happens to the run."""

    init: NotRequired[StepShape]
    success: NotRequired[StepShape]
    failure: NotRequired[StepShape]
    abort: NotRequired[StepShape]
    exit: NotRequired[StepShape]
    wait: NotRequired[StepShape]


class DAGDetails(DAG):
    """A definition whole."""

    type: str
    nextRun: NotRequired[str]
    env: NotRequired[list[str]]
    logDir: NotRequired[str]
    artifacts: NotRequired[ArtifactsShape]
    handlerOn: NotRequired[HandlersShape]
    steps: list[StepShape]
    delay: NotRequired[int]
    histRetentionDays: NotRequired[int]
    histRetentionRuns: NotRequired[int]
    preconditions: NotRequired[list[ConditionShape]]
    maxActiveSteps: NotRequired[int]
    paramDefs: NotRequired[list[ParamDefShape]]
    paramSchema: NotRequired[dict[str, Any]]
    workerSelector: NotRequired[dict[str, str]]


class NoticeShape(TypedDict):
    """A reference that will not be resolved, and why."""

    message: str
    field: str
    reason: NotRequired[str]


def schedules(schedule: Any) -> list[Schedule]:
    """Return the start entries of a schedule."""
    found: list[Schedule] = []
    for entry in schedule.get("start", ()) if isinstance(schedule, Mapping) else ():
        shape: Schedule = {"kind": "cron" if "expression" in entry else "at"}
        for key in ("expression", "at", "profile"):
            if value := entry.get(key):
                shape[key] = value
        found.append(shape)
    return found


def dag(definition: Dag) -> DAG:
    """Return a definition in a list."""
    shape: DAG = {"name": definition.name, "labels": list(definition.labels), "tags": list(definition.labels)}
    if definition.group:
        shape["group"] = definition.group
    if entries := schedules(definition.schedule):
        shape["schedule"] = entries
    if definition.description:
        shape["description"] = definition.description
    if params := [_assigned(item) for item in definition.params]:
        shape["params"] = params
        shape["defaultParams"] = " ".join(_quoted(item) for item in definition.params if item.default is not None)
    if definition.queue:
        shape["queue"] = definition.queue
    if config := definition.extra.get("run_config"):
        shape["runConfig"] = {
            "disableParamEdit": config.get("disable_param_edit") is True,
            "disableRunIdEdit": config.get("disable_run_id_edit") is True,
        }
    limits: Limits = {}
    if cpu := definition.resources.cpu_millicores:
        limits["cpu"] = f"{cpu}m"
    if memory := definition.resources.memory_bytes:
        limits["memory"] = str(memory)
    if limits:
        shape["resources"] = {"limits": limits}
    return shape


def dag_file(workflow: Workflow, latest: FoundRun | None) -> DAGFile:
    """Return one file of a list."""
    loaded = workflow.definition
    shape: DAGFile = {
        "fileName": workflow.file,
        "dag": dag(loaded.main) if loaded else {"name": workflow.name, "labels": [], "tags": []},
        "latestDAGRun": summary(latest) if latest else summary(FoundRun(document={"name": workflow.name})),
        "suspended": workflow.suspended,
        "errors": list(workflow.errors),
    }
    if workflow.next_run_at:
        shape["nextRun"] = moment(workflow.next_run_at)
    return shape


def dag_details(definition: Dag, *, next_run: str = "") -> DAGDetails:
    """Return a definition whole."""
    shape: DAGDetails = {
        **dag(definition),  # type: ignore[typeddict-item]  # it has none of the keys that come below
        "type": definition.type.value,
        "steps": [step(item) for item in definition.steps],
        "artifacts": {"enabled": definition.artifacts.enabled},
        "histRetentionDays": definition.retention_days,
    }
    if next_run:
        shape["nextRun"] = next_run
    if definition.env:
        shape["env"] = [f"{item.name}={item.value}" for item in definition.env]
    if definition.log_dir:
        shape["logDir"] = definition.log_dir
    if definition.artifacts.dir:
        shape["artifacts"]["dir"] = definition.artifacts.dir
    if definition.handlers:
        handlers: HandlersShape = {}
        for name, handler in definition.handlers.items():
            handlers[name] = step(handler)  # type: ignore[literal-required]  # names are of `dag.model.HANDLERS`
        shape["handlerOn"] = handlers
    if definition.delay_s:
        shape["delay"] = int(definition.delay_s)
    if definition.retention_runs:
        shape["histRetentionRuns"] = definition.retention_runs
    if definition.preconditions:
        shape["preconditions"] = _conditions(definition.preconditions)
    if definition.max_active_steps:
        shape["maxActiveSteps"] = definition.max_active_steps
    if definition.params:
        shape["paramDefs"] = [param(item) for item in definition.params]
        if schemas := {item.name: dict(item.schema) for item in definition.params if item.schema and item.name}:
            required = [item.name for item in definition.params if item.required and item.name]
            shape["paramSchema"] = {"type": "object", "properties": schemas, "required": required}
    if definition.worker_selector:
        shape["workerSelector"] = dict(definition.worker_selector)
    return shape


def param(item: ParamDef) -> ParamDefShape:
    """Return a declared parameter."""
    shape: ParamDefShape = {"type": item.type if item.type in _SCALARS else "string", "required": item.required}
    if item.name:
        shape["name"] = item.name
    if item.default is not None:
        shape["default"] = item.default
    if item.description:
        shape["description"] = item.description
    if item.enum:
        shape["enum"] = list(item.enum)
    if item.minimum is not None:
        shape["minimum"] = item.minimum
    if item.maximum is not None:
        shape["maximum"] = item.maximum
    if item.min_length is not None:
        shape["minLength"] = item.min_length
    if item.max_length is not None:
        shape["maxLength"] = item.max_length
    if item.pattern:
        shape["pattern"] = item.pattern
    return shape


def step(item: Step) -> StepShape:
    """Return a step as authored."""
    shape: StepShape = {"name": item.name}
    if item.id:
        shape["id"] = item.id
    if item.description:
        shape["description"] = item.description
    if item.working_dir:
        shape["dir"] = item.working_dir
    if item.commands:
        shape["commands"] = [{"command": line} for line in item.commands]
    if item.script:
        shape["script"] = item.script
    if item.stdout.path:
        shape["stdout"] = item.stdout.path
    if item.stderr.path:
        shape["stderr"] = item.stderr.path
    if isinstance(item.output, str):
        shape["output"] = item.output
    if item.depends:
        shape["depends"] = list(item.depends)
    if item.kind == "dag.run":
        shape["call"] = str(item.inputs.get("dag", ""))
        if isinstance(params := item.inputs.get("params"), str):
            shape["params"] = params
    if item.parallel is not None:
        shape["parallel"] = {
            "items": item.parallel.source or list(item.parallel.items),
            "maxConcurrent": item.parallel.max_concurrent,
        }
    if item.repeat is not None:
        shape["repeatPolicy"] = _repeat(item.repeat)
    if item.mail_on_error:
        shape["mailOnError"] = True
    if item.preconditions:
        shape["preconditions"] = _conditions(item.preconditions)
    if item.timeout_s:
        shape["timeoutSec"] = int(item.timeout_s)
    if item.kind == "human.task":
        form = item.inputs.get("form")
        prompt = str(item.inputs.get("prompt", ""))
        shape["humanTask"] = {"prompt": prompt, "form": dict(form) if isinstance(form, Mapping) else None}
    elif item.kind not in ("command", "script"):
        shape["executorConfig"] = {"type": item.kind, "config": dict(item.inputs)}
    if item.kind == "router.route":
        shape["router"] = dict(item.inputs)
    if item.approval is not None:
        shape["approval"] = {
            "prompt": item.approval.prompt,
            "input": list(item.approval.input),
            "required": list(item.approval.required),
            "rewindTo": item.approval.rewind_to,
        }
    return shape


def notice(found: Notice) -> NoticeShape:
    """Return a reference that will not be resolved."""
    shape: NoticeShape = {"message": found.text, "field": found.field}
    if found.reason:
        shape["reason"] = found.reason
    return shape


def _conditions(items: Sequence[Precondition]) -> list[ConditionShape]:
    return [condition_shape(authored_condition(item)) for item in items]


def _repeat(policy: RepeatPolicy) -> dict[str, Any]:
    known = {
        "repeat": policy.mode,
        "condition": policy.condition,
        "expected": policy.expected,
        "exitCode": list(policy.exit_codes),
        "interval": policy.interval_s,
        "limit": policy.limit,
        "backoff": policy.backoff,
    }
    return {key: value for key, value in known.items() if value}


def _assigned(item: ParamDef) -> str:
    value = item.default or ""
    return f"{item.name}={value}" if item.name else value


def _quoted(item: ParamDef) -> str:
    value = item.default or ""
    if any(char.isspace() or char in "\"'" for char in value) or not value:
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{item.name}={value}" if item.name else value
