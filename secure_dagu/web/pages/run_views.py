"""What the run page says of a run and its steps: view models of a status document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from secure_dagu.dispatch.operating import Condition, Document, FoundRun, Waiting
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus, TriggerType
from secure_dagu.web.api.shapes import count, mapping, objects, text, texts
from secure_dagu.web.api.shapes_runs import HANDLERS, node_status, root_ref, run_ref, run_status
from secure_dagu.web.pages.gantt import moment_of

_NEXT_STEPS: Mapping[str, str] = {
    Waiting.PAUSED: "Resume the queue when it may go on.",
    Waiting.QUEUE_LIMIT: "It starts when another run of the queue ends; raise the queue's max_concurrency for more.",
    Waiting.NO_WORKER: "Start a worker, or look on the page Workers why none is healthy.",
    Waiting.NO_MATCHING_WORKER: "Start a worker with these labels, or change worker_selector of the definition.",
    Waiting.NOT_AUTHORISED: "Issue that worker a certificate that grants the labels it claims.",
    Waiting.NO_CAPACITY: "It starts when a slot is free; start another worker for more.",
    Waiting.COORDINATOR_UNREACHABLE: "Look on the page System whether a coordinator runs.",
    Waiting.ASSIGNMENT_PENDING: "A worker has been offered it and is about to answer.",
    Waiting.RECORD_DAMAGED: "Its record cannot be read: dequeue it and start it anew.",
    Waiting.LAUNCH_FAILED: "Read the run's log for what went wrong at its start.",
    Waiting.QUEUE_UNREADABLE: "Look at the server's log: the queue's files cannot be read.",
}
SETTABLE = (StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.ABORTED, StepStatus.SKIPPED)
"""What a person may say that a step's status should have been."""
HANDLER_SIGN = "·"
"""Stands where a step has its number."""


class Reason(Struct, frozen=True, kw_only=True):
    """Why a run waits, and what to do about it."""

    message: str
    next_step: str


class Field(Struct, frozen=True, kw_only=True):
    """One input of a form for a person."""

    name: str
    label: str
    kind: str
    """`text`, `number`, `boolean` or `choice`."""
    is_required: bool = False
    default: str = ""
    choices: tuple[str, ...] = ()
    hint: str = ""


class Asked(Struct, frozen=True, kw_only=True):
    """What a waiting step asks a person."""

    kind: str
    """`approval` or `task`."""
    prompt: str
    fields: tuple[Field, ...]
    rewind_to: str = ""
    iteration: int = 0


class ChildRef(Struct, frozen=True, kw_only=True):
    """A run that a step called."""

    name: str
    run_id: str
    params: str

    @property
    def ref(self) -> DagRunRef:
        """Return which run it is."""
        return DagRunRef(self.name, self.run_id)


class StepView(Struct, frozen=True, kw_only=True):
    """One row of the step table."""

    number: str
    name: str
    description: str
    execution: str
    status: StepStatus
    started_at: datetime | None
    finished_at: datetime | None
    error: str
    retries: int
    repeats: int
    has_stdout: bool
    has_stderr: bool
    children: tuple[ChildRef, ...]
    asked: Asked | None
    decided: str
    """Who decided what about it; empty where nobody did."""
    conditions: tuple[str, ...]
    """Preconditions that did not hold."""
    depends: tuple[str, ...]
    """Steps that it waits for."""

    @property
    def is_handler(self) -> bool:
        """Tell whether it is run at a moment of the run, and no step of its graph."""
        return self.number == HANDLER_SIGN


class RunView(Struct, frozen=True, kw_only=True):
    """A run, for its page."""

    run: DagRunRef
    root: DagRunRef
    parent: DagRunRef | None
    status: RunStatus
    worker: str
    trigger: str
    actor: str
    params: str
    labels: tuple[str, ...]
    queue: str
    profile: str
    source: str
    attempt: str
    error: str
    auto_retries: int
    auto_retry_limit: int
    queued_at: datetime | None
    scheduled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    reasons: tuple[Reason, ...]
    steps: tuple[StepView, ...]
    has_artifacts: bool

    @property
    def is_child(self) -> bool:
        """Tell whether another run called it."""
        return self.run != self.root

    @property
    def finished_steps(self) -> int:
        """Return how many steps are over."""
        return sum(step.status.is_terminal for step in self.steps)

    @property
    def is_active(self) -> bool:
        """Tell whether it can still change by itself or by a person's decision."""
        return not self.status.is_terminal

    @property
    def can_retry(self) -> bool:
        """Tell whether a further attempt makes sense."""
        return self.status.is_terminal


def run_view(found: FoundRun) -> RunView:
    """Return a run."""
    document = found.document
    own, root, parent = run_ref(document), root_ref(document), mapping(document.get("parent"))
    status = run_status(document)
    waits_for_people = status is RunStatus.WAITING
    return RunView(
        run=own,
        root=root,
        parent=DagRunRef(text(parent.get("name")), text(parent.get("id"))) if text(parent.get("id")) else None,
        status=status,
        worker=text(document.get("workerId")),
        trigger=trigger_word(document.get("triggerType")),
        actor=text(document.get("triggerActor")),
        params=text(document.get("params")),
        labels=tuple(texts(document.get("labels"))),
        queue=text(document.get("queue")) or text(document.get("procGroup")),
        profile=text(document.get("profileName")),
        source=text(document.get("definitionId")).rpartition("/")[2],
        attempt=text(document.get("attemptId")),
        error=text(document.get("error")),
        auto_retries=count(document.get("autoRetryCount")),
        auto_retry_limit=count(document.get("autoRetryLimit")),
        queued_at=moment_of(document.get("queuedAt")),
        scheduled_at=moment_of(document.get("scheduleTime")),
        started_at=moment_of(document.get("startedAt")),
        finished_at=moment_of(document.get("finishedAt")),
        reasons=reasons(found.conditions) if status in (RunStatus.QUEUED, RunStatus.NOT_STARTED) else (),
        steps=tuple(
            step_view(node, number, waits_for_people=waits_for_people) for number, node in numbered_nodes(document)
        ),
        has_artifacts=found.has_artifacts,
    )


def numbered_nodes(document: Document) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the nodes of a document and behind them the handlers that ran, each with what is before it in a table."""
    nodes = [(str(number), node) for number, node in enumerate(objects(document.get("nodes")), start=1)]
    handlers = [document[name] for name in HANDLERS if isinstance(document.get(name), Mapping)]
    return nodes + [(HANDLER_SIGN, node) for node in handlers if node_status(node) is not StepStatus.NOT_STARTED]


def reasons(conditions: Sequence[Condition]) -> tuple[Reason, ...]:
    """Return why a run waits, each reason once: the sentence with the most to say, and what to do next."""
    by_reason: dict[str, Reason] = {}
    for condition in conditions:
        known = by_reason.get(condition.reason)
        if known is None or condition.type != "Runnable":
            next_step = _NEXT_STEPS.get(condition.reason, "")
            by_reason[condition.reason] = Reason(message=condition.message, next_step=next_step)
    return tuple(by_reason.values())


def next_step_of(reason: str) -> str:
    """Return what helps against a reason to wait; empty where nothing does."""
    return _NEXT_STEPS.get(reason, "")


def step_view(node: Mapping[str, Any], number: str, *, waits_for_people: bool) -> StepView:
    """Return one step."""
    step, status = mapping(node.get("step")), node_status(node)
    called = text(mapping(step.get("childDag")).get("name"))
    return StepView(
        number=number,
        name=text(step.get("name")),
        description=text(step.get("description")),
        execution=_execution(step),
        status=status,
        started_at=moment_of(node.get("startedAt")),
        finished_at=moment_of(node.get("finishedAt")),
        error=text(node.get("error")),
        retries=count(node.get("retryCount")),
        repeats=count(node.get("doneCount")),
        has_stdout=bool(text(node.get("stdout"))),
        has_stderr=bool(text(node.get("stderr"))),
        children=tuple(
            ChildRef(
                name=text(child.get("dagName")) or called,
                run_id=text(child.get("dagRunId")),
                params=text(child.get("params")),
            )
            for child in objects(node.get("children"))
            if text(child.get("dagRunId"))
        ),
        asked=_asked(node, step) if waits_for_people and status is StepStatus.WAITING else None,
        decided=_decided(node),
        conditions=tuple(_unmet(item) for item in objects(step.get("preconditions")) if item.get("matched") is False),
        depends=tuple(texts(step.get("depends"))),
    )


def trigger_word(value: Any) -> str:
    """Return what started a run; empty where it is not known."""
    try:
        trigger = TriggerType(count(value))
    except ValueError:
        return ""
    return "" if trigger is TriggerType.UNKNOWN else trigger.name.lower()


def _execution(step: Mapping[str, Any]) -> str:
    """Return what the step does, in one line."""
    if called := text(mapping(step.get("childDag")).get("name")):
        return f"calls {called}"
    if isinstance(step.get("humanTask"), Mapping):
        return "task for a person"
    kind = text(mapping(step.get("executorConfig")).get("type"))
    lines = [text(item.get("cmdWithArgs")) for item in objects(step.get("commands"))]
    line = next((line for line in lines if line.strip()), "") or text(step.get("script"))
    first = next((part.strip() for part in line.splitlines() if part.strip()), "")
    told = first if len(first) <= 200 else f"{first[:199]}…"
    return told or kind


def _asked(node: Mapping[str, Any], step: Mapping[str, Any]) -> Asked | None:
    if approval := mapping(step.get("approval")):
        required = texts(approval.get("required"))
        return Asked(
            kind="approval",
            prompt=text(approval.get("prompt")),
            fields=tuple(
                Field(name=name, label=name, kind="text", is_required=name in required)
                for name in texts(approval.get("input"))
            ),
            rewind_to=text(approval.get("rewindTo")),
            iteration=count(node.get("approvalIteration")),
        )
    task = step.get("humanTask")
    if not isinstance(task, Mapping):
        return None
    form = mapping(task.get("form"))
    required = texts(form.get("required"))
    fields = tuple(
        _field(name, mapping(rule), is_required=name in required)
        for name, rule in mapping(form.get("properties")).items()
    )
    return Asked(kind="task", prompt=text(task.get("prompt")), fields=fields)


def _field(name: str, rule: Mapping[str, Any], *, is_required: bool) -> Field:
    choices = rule.get("enum")
    kind = {"integer": "number", "number": "number", "boolean": "boolean"}.get(text(rule.get("type")), "text")
    default = rule.get("default", "")
    return Field(
        name=name,
        label=text(rule.get("title")) or name,
        kind="choice" if isinstance(choices, list) else kind,
        is_required=is_required,
        default=str(default).lower() if isinstance(default, bool) else str(default),
        choices=tuple(str(choice) for choice in choices) if isinstance(choices, list) else (),
        hint=text(rule.get("description")),
    )


def _decided(node: Mapping[str, Any]) -> str:
    if by := text(node.get("approvedBy")):
        return f"approved by {by}"
    if by := text(node.get("rejectedBy")):
        reason = text(node.get("rejectionReason"))
        return f"rejected by {by}: {reason}" if reason else f"rejected by {by}"
    if by := text(node.get("humanTaskCompletedBy")):
        return f"completed by {by}"
    return ""


def _unmet(item: Mapping[str, Any]) -> str:
    return text(item.get("error")) or text(item.get("condition")) or text(item.get("eval"))
