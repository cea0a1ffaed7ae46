"""Status documents → what the REST API says of runs (REST reference, section 6). Pure.

Where a document has paths of files on a server, a client gets the URL of the log instead: nobody needs the path, and
one answer is right for every role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from typing_extensions import TypedDict

from secure_dagu.dispatch.operating import Condition, FoundRun, LogPage
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus, TriggerType
from secure_dagu.web.api.shapes import count, mapping, moment, objects, segment, text, texts, time_text

HANDLERS = ("onInit", "onExit", "onSuccess", "onFailure", "onAbort", "onWait")


class RunCondition(TypedDict):
    """Why a queued run waits."""

    type: str
    status: str
    reason: str
    message: str
    checkedAt: str


class DAGRunSummary(TypedDict):
    """One run of a list."""

    dagRunId: str
    name: str
    status: int
    statusLabel: str
    queuedAt: NotRequired[str]
    scheduleTime: NotRequired[str]
    startedAt: str
    finishedAt: str
    autoRetryCount: int
    autoRetryLimit: int | None
    artifactsAvailable: bool
    params: NotRequired[str]
    profileName: NotRequired[str]
    workerId: NotRequired[str]
    triggerType: NotRequired[str]
    triggerActor: NotRequired[str]
    conditions: NotRequired[list[RunCondition]]
    labels: list[str]
    tags: list[str]
    noReuse: NotRequired[bool]
    error: NotRequired[str]


class ShownCommand(TypedDict):
    """One command line: its first word and, where they are known apart, the words behind it."""

    command: str
    args: NotRequired[list[str]]


class ConditionShape(TypedDict):
    """A precondition, and once it was evaluated what came of it."""

    condition: NotRequired[str]
    eval: NotRequired[str]
    expected: NotRequired[str]
    negate: NotRequired[bool]
    error: NotRequired[str]
    matched: NotRequired[bool]


class ParallelShape(TypedDict):
    """Fan-out of a sub-DAG call."""

    items: Any
    maxConcurrent: NotRequired[int]


class ExecutorConfig(TypedDict):
    """What executes a step that is no command."""

    type: NotRequired[str]
    config: NotRequired[dict[str, Any]]


class ApprovalShape(TypedDict):
    """What a person is asked."""

    prompt: str
    input: list[str]
    required: list[str]
    rewindTo: NotRequired[str]


class HumanTaskShape(TypedDict):
    """A task for a person; `form` is a JSON Schema."""

    prompt: str
    form: dict[str, Any] | None


class StepShape(TypedDict):
    """One step of a definition."""

    name: str
    id: NotRequired[str]
    description: NotRequired[str]
    dir: NotRequired[str]
    commands: NotRequired[list[ShownCommand]]
    script: NotRequired[str]
    stdout: NotRequired[str]
    stderr: NotRequired[str]
    output: NotRequired[str]
    depends: NotRequired[list[str]]
    call: NotRequired[str]
    params: NotRequired[str]
    parallel: NotRequired[ParallelShape]
    repeatPolicy: NotRequired[dict[str, Any]]
    mailOnError: NotRequired[bool]
    preconditions: NotRequired[list[ConditionShape]]
    timeoutSec: NotRequired[int]
    executorConfig: NotRequired[ExecutorConfig]
    router: NotRequired[dict[str, Any]]
    approval: NotRequired[ApprovalShape]
    humanTask: NotRequired[HumanTaskShape]


class SubRunRef(TypedDict):
    """A run that a step called."""

    dagRunId: str
    params: NotRequired[str]
    dagName: NotRequired[str]


class Node(TypedDict):
    """One step of a run. `stdout` and `stderr` are URLs of its logs; empty while there is none."""

    step: StepShape
    stdout: str
    stderr: str
    startedAt: str
    finishedAt: str
    status: int
    statusLabel: str
    retryCount: int
    doneCount: int
    subRuns: NotRequired[list[SubRunRef]]
    subRunsRepeated: NotRequired[list[SubRunRef]]
    error: NotRequired[str]
    approvedAt: NotRequired[str]
    approvedBy: NotRequired[str]
    rejectedAt: NotRequired[str]
    rejectedBy: NotRequired[str]
    rejectionReason: NotRequired[str]
    approvalIteration: NotRequired[int]
    humanTaskCompletedBy: NotRequired[str]


class DAGRunDetails(DAGRunSummary):
    """A run whole. `log` is the URL of its own log."""

    attemptId: NotRequired[str]
    rootDAGRunName: str
    rootDAGRunId: str
    parentDAGRunName: NotRequired[str]
    parentDAGRunId: NotRequired[str]
    log: str
    nodes: list[Node]
    onInit: NotRequired[Node]
    onExit: NotRequired[Node]
    onSuccess: NotRequired[Node]
    onFailure: NotRequired[Node]
    onAbort: NotRequired[Node]
    onWait: NotRequired[Node]
    preconditions: NotRequired[list[ConditionShape]]
    sourceFileName: NotRequired[str]


class SubRun(TypedDict):
    """One run that another one called."""

    dagRunId: str
    dagName: NotRequired[str]
    params: NotRequired[str]
    status: int
    statusLabel: str
    startedAt: str
    finishedAt: NotRequired[str]


class Log(TypedDict):
    """Some lines of a log."""

    content: str
    lineCount: int
    totalLines: int
    hasMore: bool
    isEstimate: bool
    endOffset: int


def run_ref(document: Mapping[str, Any]) -> DagRunRef:
    """Return which run a document is about."""
    return DagRunRef(text(document.get("name")), text(document.get("dagRunId")))


def root_ref(document: Mapping[str, Any]) -> DagRunRef:
    """Return the root run of a document's tree."""
    root, own = mapping(document.get("root")), run_ref(document)
    return DagRunRef(text(root.get("name")) or own.name, text(root.get("id")) or own.run_id)


def run_status(document: Mapping[str, Any]) -> RunStatus:
    """Return the status of a document; what is no status counts as not started."""
    try:
        return RunStatus(count(document.get("status")))
    except ValueError:
        return RunStatus.NOT_STARTED


def condition(item: Condition) -> RunCondition:
    """Return why a run waits."""
    return {
        "type": item.type,
        "status": item.status,
        "reason": item.reason,
        "message": item.message,
        "checkedAt": moment(item.checked_at),
    }


def summary(found: FoundRun) -> DAGRunSummary:
    """Return a run of a list."""
    document = found.document
    own, status, labels = run_ref(document), run_status(document), texts(document.get("labels"))
    limit = document.get("autoRetryLimit")
    shape: DAGRunSummary = {
        "dagRunId": own.run_id,
        "name": own.name,
        "status": int(status),
        "statusLabel": status.word,
        "startedAt": time_text(document.get("startedAt")),
        "finishedAt": time_text(document.get("finishedAt")),
        "autoRetryCount": count(document.get("autoRetryCount")),
        "autoRetryLimit": limit if isinstance(limit, int) else None,
        "artifactsAvailable": found.has_artifacts,
        "labels": labels,
        "tags": labels,
    }
    if queued_at := time_text(document.get("queuedAt")):
        shape["queuedAt"] = queued_at
    if schedule_time := time_text(document.get("scheduleTime")):
        shape["scheduleTime"] = schedule_time
    if params := text(document.get("params")):
        shape["params"] = params
    if profile := text(document.get("profileName")):
        shape["profileName"] = profile
    if worker := text(document.get("workerId")):
        shape["workerId"] = worker
    if trigger := document.get("triggerType"):
        shape["triggerType"] = _trigger(trigger)
    if actor := text(document.get("triggerActor")):
        shape["triggerActor"] = actor
    if status in (RunStatus.QUEUED, RunStatus.NOT_STARTED) and found.conditions:
        shape["conditions"] = [condition(item) for item in found.conditions]
    if document.get("noReuse") is True:
        shape["noReuse"] = True
    if error := text(document.get("error")):
        shape["error"] = error
    return shape


def details(found: FoundRun, *, api: str) -> DAGRunDetails:
    """Return a run whole; `api` is the path of the API."""
    document = found.document
    root = root_ref(document)
    base = run_url(api, root, run_ref(document))
    shape: DAGRunDetails = {
        **summary(found),  # type: ignore[typeddict-item]  # it has none of the keys that come below
        "rootDAGRunName": root.name,
        "rootDAGRunId": root.run_id,
        "log": f"{base}/log" if text(document.get("log")) else "",
        "nodes": [node(item, base) for item in objects(document.get("nodes"))],
    }
    if attempt := text(document.get("attemptId")):
        shape["attemptId"] = attempt
    parent = mapping(document.get("parent"))
    if text(parent.get("id")):
        shape["parentDAGRunName"], shape["parentDAGRunId"] = text(parent.get("name")), text(parent.get("id"))
    for name in HANDLERS:
        if isinstance(handler := document.get(name), Mapping):
            shape[name] = node(handler, base)  # type: ignore[literal-required]  # each of HANDLERS is a key
    if conditions := objects(document.get("preconditions")):
        shape["preconditions"] = [condition_shape(item) for item in conditions]
    if source := text(document.get("definitionId")):
        shape["sourceFileName"] = source.rpartition("/")[2]
    return shape


def run_url(api: str, root: DagRunRef, run: DagRunRef) -> str:
    """Return where a run is in the API: below its root when it has one."""
    base = f"{api}/dag-runs/{segment(root.name)}/{segment(root.run_id)}"
    return base if root == run else f"{base}/sub-dag-runs/{segment(run.run_id)}"


def node_status(document: Mapping[str, Any]) -> StepStatus:
    """Return the status of a node."""
    try:
        return StepStatus(count(document.get("status")))
    except ValueError:
        return StepStatus.NOT_STARTED


def node(document: Mapping[str, Any], base: str) -> Node:
    """Return one step of the run whose URL is `base`."""
    status, step = node_status(document), mapping(document.get("step"))
    log = f"{base}/steps/{segment(text(step.get('name')))}/log?stream="
    shape: Node = {
        "step": step_shape(step),
        "stdout": f"{log}stdout" if text(document.get("stdout")) else "",
        "stderr": f"{log}stderr" if text(document.get("stderr")) else "",
        "startedAt": time_text(document.get("startedAt")),
        "finishedAt": time_text(document.get("finishedAt")),
        "status": int(status),
        "statusLabel": status.word,
        "retryCount": count(document.get("retryCount")),
        "doneCount": count(document.get("doneCount")),
    }
    if children := objects(document.get("children")):
        shape["subRuns"] = [_sub_run_ref(child, step) for child in children]
    if repeated := objects(document.get("childrenRepeated")):
        shape["subRunsRepeated"] = [_sub_run_ref(child, step) for child in repeated]
    for key in ("error", "approvedAt", "approvedBy", "rejectedAt", "rejectedBy", "rejectionReason",
                "humanTaskCompletedBy"):  # fmt: skip
        if value := text(document.get(key)):
            shape[key] = value
    if iteration := count(document.get("approvalIteration")):
        shape["approvalIteration"] = iteration
    return shape


def step_shape(step: Mapping[str, Any]) -> StepShape:
    """Return the step of a node, as its document keeps it."""
    shape: StepShape = {"name": text(step.get("name"))}
    for key in ("id", "description", "output"):
        if value := text(step.get(key)):
            shape[key] = value
    if commands := objects(step.get("commands")):
        shape["commands"] = [{"command": text(item.get("cmdWithArgs"))} for item in commands]
    if depends := texts(step.get("depends")):
        shape["depends"] = depends
    if call := text(mapping(step.get("childDag")).get("name")):
        shape["call"] = call
    if conditions := objects(step.get("preconditions")):
        shape["preconditions"] = [condition_shape(item) for item in conditions]
    if timeout := count(step.get("timeout")):
        shape["timeoutSec"] = timeout // 1_000_000_000
    if kind := text(mapping(step.get("executorConfig")).get("type")):
        shape["executorConfig"] = {"type": kind}
    if approval := mapping(step.get("approval")):
        shape["approval"] = {
            "prompt": text(approval.get("prompt")),
            "input": texts(approval.get("input")),
            "required": texts(approval.get("required")),
            "rewindTo": text(approval.get("rewindTo")),
        }
    if task := mapping(step.get("humanTask")):
        form = task.get("form")
        shape["humanTask"] = {"prompt": text(task.get("prompt")), "form": form if isinstance(form, dict) else None}
    return shape


def condition_shape(item: Mapping[str, Any]) -> ConditionShape:
    """Return a precondition of a document."""
    shape: ConditionShape = {}
    for key in ("condition", "eval", "expected", "error"):
        if isinstance(value := item.get(key), str) and (value or key == "expected"):
            shape[key] = value
    if item.get("negate") is True:
        shape["negate"] = True
    if isinstance(matched := item.get("matched"), bool):
        shape["matched"] = matched
    return shape


def sub_run(document: Mapping[str, Any]) -> SubRun:
    """Return a run that another one called."""
    own, status = run_ref(document), run_status(document)
    shape: SubRun = {
        "dagRunId": own.run_id,
        "status": int(status),
        "statusLabel": status.word,
        "startedAt": time_text(document.get("startedAt")),
    }
    if own.name:
        shape["dagName"] = own.name
    if params := text(document.get("params")):
        shape["params"] = params
    if finished := time_text(document.get("finishedAt")):
        shape["finishedAt"] = finished
    return shape


def log_shape(page: LogPage) -> Log:
    """Return some lines of a log."""
    return {
        "content": page.content,
        "lineCount": page.line_count,
        "totalLines": page.total_lines,
        "hasMore": page.has_more,
        "isEstimate": page.is_estimate,
        "endOffset": page.end_offset,
    }


def grid(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the matrix of a history: a row for each step, a status for each run, in the order of `runs`.

    A run without the step has 0 there, not started.
    """
    rows: dict[str, list[int]] = {}
    for column, document in enumerate(runs):
        handlers = [mapping(document.get(name)) for name in HANDLERS]
        for item in [*objects(document.get("nodes")), *(handler for handler in handlers if handler)]:
            name = text(mapping(item.get("step")).get("name"))
            rows.setdefault(name, [0] * len(runs))[column] = int(node_status(item))
    return [{"name": name, "history": history} for name, history in rows.items()]


def _sub_run_ref(child: Mapping[str, Any], step: Mapping[str, Any]) -> SubRunRef:
    shape: SubRunRef = {"dagRunId": text(child.get("dagRunId"))}
    if params := text(child.get("params")):
        shape["params"] = params
    if name := text(child.get("dagName")) or text(mapping(step.get("childDag")).get("name")):
        shape["dagName"] = name
    return shape


def _trigger(value: Any) -> str:
    try:
        return TriggerType(count(value)).name.lower()
    except ValueError:
        return TriggerType.UNKNOWN.name.lower()
