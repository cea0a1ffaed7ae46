"""What the pages say of definitions: rows, attributes, parameters, times, problems. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Any

from msgspec import Struct

from secure_dagu.dag.model import Dag, ParamDef, Step
from secure_dagu.dag.schedule import entries, next_after
from secure_dagu.dispatch.operating import Outlook, Placement, Waiting, Workflow
from secure_dagu.web.api.shapes_dags import dag as dag_shape
from secure_dagu.web.pages.frame import duration
from secure_dagu.web.pages.graph import HANDLER_WORDS
from secure_dagu.web.pages.run_views import HANDLER_SIGN, RunView, next_step_of

_WHERE = re.compile(r"^(?P<file>[^\s:]+):(?P<line>\d+):(?P<column>\d+): (?P<text>.*)$", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_YEARS = timedelta(days=5 * 366)


class Timing(Struct, frozen=True, kw_only=True):
    """One entry of a schedule."""

    kind: str
    """`start`, `stop` or `restart`."""
    told: str
    """The cron expression, or the moment as it is written."""
    profile: str = ""


class WorkflowRow(Struct, frozen=True, kw_only=True):
    """One definition of the list."""

    workflow: Workflow
    latest: RunView | None

    @property
    def dag(self) -> Dag | None:
        """Return the DAG; None when the file does not load."""
        return self.workflow.definition.main if self.workflow.definition is not None else None

    @property
    def timings(self) -> tuple[Timing, ...]:
        """Return its schedule."""
        return timings(self.dag) if self.dag is not None else ()


class Problem(Struct, frozen=True, kw_only=True):
    """Something wrong with a text. `line` 0: not of one place."""

    line: int
    column: int
    text: str


class ParamField(Struct, frozen=True, kw_only=True):
    """One parameter, as a form asks for it."""

    name: str
    kind: str
    """`text`, `number`, `boolean` or `choice`."""
    default: str
    has_default: bool
    is_required: bool
    is_whole: bool = False
    hint: str = ""
    choices: tuple[str, ...] = ()
    minimum: str = ""
    maximum: str = ""
    max_length: int | None = None


class Attribute(Struct, frozen=True, kw_only=True):
    """One fact about a definition; `values` beside each other."""

    name: str
    values: tuple[str, ...]


class Occurrence(Struct, frozen=True, kw_only=True):
    """One time at which the scheduler does something."""

    at: datetime
    timing: Timing


class Cell(Struct, frozen=True, kw_only=True):
    """One step in one run of a history; the status is empty where the run has no such step."""

    status: str
    column: int


class HistoryRow(Struct, frozen=True, kw_only=True):
    """One step over the runs."""

    name: str
    cells: tuple[Cell, ...]


def timings(dag: Dag) -> tuple[Timing, ...]:
    """Return the schedule of a DAG."""
    found = []
    for kind in ("start", "stop", "restart"):
        listed = dag.schedule.get(kind, ()) if isinstance(dag.schedule, Mapping) else ()
        for entry in listed:
            told = entry.get("expression") or entry.get("at", "")
            found.append(Timing(kind=kind, told=told, profile=entry.get("profile", "")))
    return tuple(found)


def occurrences(dag: Dag, now: datetime, zone: tzinfo, *, most: int) -> list[Occurrence]:
    """Return the next times of a schedule, soonest first."""
    found = []
    for kind in ("start", "stop", "restart"):
        for entry in entries(dag.schedule, kind):
            timing = Timing(kind=kind, told=entry.get("expression") or entry.get("at", ""))
            at = next_after(entry, now, zone)
            for _ in range(most):
                if at is None or at - now > _YEARS:
                    break
                found.append(Occurrence(at=at, timing=timing))
                at = next_after(entry, at, zone)
    return sorted(found, key=lambda one: (one.at, one.timing.kind))[:most]


def problems(errors: Sequence[str]) -> list[Problem]:
    """Return what is wrong with a text, with its places."""
    found = []
    for error in errors:
        match = _WHERE.match(error)
        line, column, text = (int(match["line"]), int(match["column"]), match["text"]) if match else (0, 0, error)
        found.append(Problem(line=line, column=column, text=text))
    return found


def digest_of(text: str) -> str:
    """Return what tells one text from another (`Workflows.write`)."""
    return sha256(text.encode("utf-8", "replace")).hexdigest()


# ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class StartForm(Struct, frozen=True, kw_only=True):
    """What the start dialog asks."""

    fields: tuple[ParamField, ...]
    """Empty: the parameters are one line of text."""
    raw: str
    """That line, to begin with."""
    is_fixed: bool
    """The parameters may not be changed (`run_config.disable_param_edit`)."""
    may_name_run: bool
    queue: str
    is_build: bool


def start_form(dag: Dag) -> StartForm:
    """Return the form of a DAG: typed when every parameter has a name."""
    shape = dag_shape(dag)
    config = shape.get("runConfig")
    return StartForm(
        fields=tuple(_field(item) for item in dag.params) if all(_NAME.match(item.name) for item in dag.params) else (),
        raw=shape.get("defaultParams", ""),
        is_fixed=config is not None and config["disableParamEdit"],
        may_name_run=config is None or not config["disableRunIdEdit"],
        queue=dag.queue,
        is_build=dag.type.value == "build",
    )


class Where(Struct, frozen=True, kw_only=True):
    """Where a run would be executed, for people."""

    told: str
    is_good: bool
    warning: str = ""
    next_step: str = ""


def where(outlook: Outlook) -> Where:
    """Say where a DAG would run."""
    if outlook.placement is Placement.LOCAL:
        return Where(told="On this host.", is_good=True)
    labels = ", ".join(f"{key}={value}" for key, value in sorted(outlook.selector.items()))
    count = outlook.matching_workers
    told = f"On a worker with {labels}." if labels else "On any worker."
    fitting = f"{count} healthy worker{' fits' if count == 1 else 's fit'} now."
    if outlook.waits_for is None:
        return Where(told=f"{told} {fitting}", is_good=True)
    warning = f"It would wait: {_WORDS[outlook.waits_for]}."
    return Where(told=f"{told} {fitting}", is_good=False, warning=warning, next_step=next_step_of(outlook.waits_for))


_WORDS: Mapping[str, str] = {
    Waiting.NO_WORKER: "no worker is healthy",
    Waiting.NO_MATCHING_WORKER: "no healthy worker has these labels",
    Waiting.NOT_AUTHORISED: "a worker claims these labels, and no certificate grants them",
    Waiting.NO_CAPACITY: "every slot of the workers that fit is taken",
    Waiting.COORDINATOR_UNREACHABLE: "no coordinator answers",
    Waiting.ASSIGNMENT_PENDING: "a worker has been offered another run of it",
    Waiting.PAUSED: "its queue is paused",
    Waiting.QUEUE_LIMIT: "its queue is full",
    Waiting.RECORD_DAMAGED: "a record of it cannot be read",
    Waiting.LAUNCH_FAILED: "its last start failed",
    Waiting.QUEUE_UNREADABLE: "the files of its queue cannot be read",
}


def _field(item: ParamDef) -> ParamField:
    kind = {"integer": "number", "number": "number", "boolean": "boolean"}.get(item.type, "text")
    limits = [
        {"array": "a list, as JSON", "object": "an object, as JSON"}.get(item.type, ""),
        f"at least {item.min_length} characters" if item.min_length else "",
        f"must match {item.pattern}" if item.pattern else "",
        "computed when left empty" if item.eval else "",
    ]
    return ParamField(
        name=item.name,
        kind="choice" if item.enum else kind,
        default=item.default or "",
        has_default=item.default is not None,
        is_required=item.required and item.default is None,
        is_whole=item.type == "integer",
        hint=". ".join(part for part in (item.description, *limits) if part),
        choices=tuple(_plain(one) for one in item.enum),
        minimum=_plain(item.minimum),
        maximum=_plain(item.maximum),
        max_length=item.max_length,
    )


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# ── what a definition says ───────────────────────────────────────────────────────────────────────────────────────────


def attributes(dag: Dag) -> list[Attribute]:
    """Return the facts that a definition states; what it leaves to defaults is left out."""
    said: list[tuple[str, Sequence[str]]] = [
        ("Type", [dag.type.value]),
        ("Schedule", [_timing_words(one) for one in timings(dag)]),
        ("Catch-up", [dag.catchup_window, f"overlap: {dag.overlap_policy}"] if dag.catchup_window else []),
        ("Parameters", [_param_words(item) for item in dag.params]),
        ("Queue", [dag.queue] if dag.queue else []),
        ("Runs on", _selector(dag.worker_selector, is_local=dag.run_locally)),
        ("Handlers", list(dag.handlers)),
        ("Preconditions", [one.condition or one.eval for one in dag.preconditions]),
        ("Environment", [item.name for item in dag.env]),
        ("Secrets", [item.name for item in dag.secrets]),
        ("Timeout", [duration(dag.timeout_s)] if dag.timeout_s else []),
        ("Delay", [duration(dag.delay_s)] if dag.delay_s else []),
        ("Steps at once", [str(dag.max_active_steps)] if dag.max_active_steps else []),
        ("Automatic retries", [f"{dag.retry.limit}, {duration(dag.retry.interval_s)} apart"] if dag.retry else []),
        ("Mail", [name for name, is_on in dag.mail_on.items() if is_on]),
        ("Working directory", [dag.working_dir] if dag.working_dir else []),
        ("Kept", [f"{dag.retention_runs} runs" if dag.retention_runs else f"{dag.retention_days} days"]),
    ]
    return [Attribute(name=name, values=tuple(values)) for name, values in said if values]


class StepRow(Struct, frozen=True, kw_only=True):
    """One step of a definition's table."""

    number: str
    name: str
    description: str
    does: str
    facts: tuple[str, ...]


def step_rows(dag: Dag) -> list[StepRow]:
    """Return the steps of a DAG and behind them its handlers, in the order of its graph."""
    named = [(str(number), step.name, step) for number, step in enumerate(dag.steps, start=1)]
    named += [(HANDLER_SIGN, HANDLER_WORDS[name], step) for name, step in dag.handlers.items()]
    return [
        StepRow(
            number=number, name=name, description=step.description, does=_does(step), facts=tuple(_facts(step))
        )
        for number, name, step in named
    ]  # fmt: skip


def _facts(step: Step) -> list[str]:
    """Return what a step says besides what it does."""
    said = [
        f"after {', '.join(step.depends)}" if step.depends else "",
        f"up to {step.retry.limit} retries" if step.retry else "",
        f"repeats {step.repeat.mode}" if step.repeat and step.repeat.mode else "",
        f"at most {duration(step.timeout_s)}" if step.timeout_s else "",
        f"{len(step.preconditions)} precondition{'s' if len(step.preconditions) > 1 else ''}"
        if step.preconditions
        else "",
        "waits for approval" if step.approval else "",
        "in parallel" if step.parallel else "",
        "for each item" if step.foreach else "",
        f"output {step.output}" if isinstance(step.output, str) and step.output else "",
        "goes on after failure" if step.continue_on.failure else "",
    ]
    return [one for one in said if one]


def _does(step: Step) -> str:
    """Return what a step does, whole."""
    if step.kind == "dag.run":
        return f"calls {step.inputs.get('dag', '')}"
    return "\n".join(step.commands) or step.script or step.kind


def history_rows(grid: Sequence[Mapping[str, Any]], words: Mapping[int, str], known: Sequence[frozenset[str]]) -> list[
    HistoryRow
]:  # fmt: skip
    """Return the matrix of a history, oldest run first.

    Args:
        grid: rows of `shapes_runs.grid`, newest run first.
        words: of the numbers in it.
        known: the steps of each run, newest first.
    """
    return [
        HistoryRow(
            name=row["name"],
            cells=tuple(
                Cell(status=words[row["history"][column]] if row["name"] in known[column] else "", column=column)
                for column in reversed(range(len(known)))
            ),
        )
        for row in grid
    ]


def _timing_words(timing: Timing) -> str:
    words = timing.told if timing.kind == "start" else f"{timing.kind}: {timing.told}"
    return f"{words} ({timing.profile})" if timing.profile else words


def _param_words(item: ParamDef) -> str:
    name = f"{item.name}={item.default}" if item.name and item.default is not None else item.name or item.default or ""
    return f"{name} ({item.type})" if item.type != "string" else name


def _selector(selector: Mapping[str, str] | None, *, is_local: bool) -> list[str]:
    if is_local:
        return ["this host"]
    return [f"{key}={value}" for key, value in (selector or {}).items()]
