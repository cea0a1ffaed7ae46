"""How one attempt of a run advances: every decision, and nothing else. Pure.

A run goes through phases: its preconditions, the init handler, the steps, one outcome handler, the exit handler, the
end. The shell (`runner.runner`) starts what `advance` commands, and comes back with what happened as an event. It
decides nothing: not who is ready, not whether to retry, not what the run amounts to.

Cost: an event touches the step that it is about and its dependents. A thousand-step chain is a thousand times the cost
of one step; only the copy of the tuple of nodes grows with the run, and that is a copy of pointers.

Events, commands and rules stay in one module, long as it is: they are one table and are read side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum, auto
from typing import Any, assert_never

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dag.model import Step
from secure_dagu.dag.plan import Plan
from secure_dagu.run import patterns, retry
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.retry import Policy

HANDLER_NODES = {
    "init": "onInit",
    "success": "onSuccess",
    "failure": "onFailure",
    "abort": "onAbort",
    "wait": "onWait",
    "exit": "onExit",
}


class Phase(Enum):
    """Where a run is."""

    NEW = auto()
    PRECONDITIONS = auto()
    INIT = auto()
    STEPS = auto()
    OUTCOME = auto()
    EXIT = auto()
    ENDED = auto()


class Result(Enum):
    """How one execution of a step ended."""

    SUCCEEDED = auto()
    PARTIAL = auto()
    FAILED = auto()
    TIMED_OUT = auto()
    SKIPPED = auto()
    """A precondition was not met."""
    WAITING = auto()
    """A person has to act first, here or in a child."""
    ABORTED = auto()


class Outcome(Struct, frozen=True, kw_only=True):
    """What the shell reports of one execution of a step."""

    result: Result
    exit_code: int | None = None
    error: str = ""
    output_matches: bool = False
    """A line of stdout matches `continue_on.output`."""
    repeat_met: bool | None = None
    """The test of `repeat_policy`; None when the step has none."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """What the node keeps for others to read, by status-document key: outputVariables, outputValue, …"""
    retry: Policy | None = None
    repeat: Policy | None = None


class NodeState(Struct, frozen=True, kw_only=True):
    """One step of a run."""

    status: StepStatus = StepStatus.NOT_STARTED
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str = ""
    exit_code: int | None = None
    retry_count: int = 0
    retried_at: datetime | None = None
    done_count: int = 0
    pause_s: float = 0.0
    """`retrying`: how long to wait before the scheduler starts the step again."""
    is_accepted: bool = False
    """It failed, and its dependents run all the same."""
    is_kept: bool = False
    """Its result is that of an earlier attempt."""
    published: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] | None = None
    """What the node shows of its step instead of the authored text, such as the commands that really ran."""


NEW_NODE = NodeState()

_STATUS = {
    Result.SUCCEEDED: StepStatus.SUCCEEDED,
    Result.PARTIAL: StepStatus.PARTIALLY_SUCCEEDED,
    Result.FAILED: StepStatus.FAILED,
    Result.TIMED_OUT: StepStatus.FAILED,
    Result.SKIPPED: StepStatus.SKIPPED,
    Result.WAITING: StepStatus.WAITING,
    Result.ABORTED: StepStatus.ABORTED,
}

_OUTCOME_HANDLERS = {
    RunStatus.SUCCEEDED: "success",
    RunStatus.PARTIALLY_SUCCEEDED: "success",
    RunStatus.ABORTED: "abort",
    RunStatus.WAITING: "wait",
}
"""Which handler belongs to what a run amounts to; for the rest it is `failure`."""

_NOT_RUNNING = (StepStatus.NOT_STARTED, StepStatus.WAITING, StepStatus.RETRYING)
"""Steps that a stop ends without asking anybody."""

ROUTER_VALUE = "routerValue"
"""Under which key the node of a router keeps what it was decided by."""

OWN_STORY = ("build", "children", "approvalIteration", "pushBackInputs", "pushBackHistory", "pushBackPreviousStdout")
"""What a node keeps when it is executed once more: everything else that it publishes is of its last execution."""


class RunState(Struct, frozen=True, kw_only=True):
    """One attempt at one moment."""

    plan: Plan
    phase: Phase = Phase.NEW
    status: RunStatus = RunStatus.NOT_STARTED
    nodes: tuple[NodeState, ...] = ()
    waiting: tuple[int, ...] = ()
    """For each step, how many of its dependencies have not ended yet; kept ones count until the steps begin."""
    ready: tuple[int, ...] = ()
    """Steps that may start, in source order."""
    running: int = 0
    """Executions that the shell owes an end, handlers and pauses included."""
    unfinished: int = 0
    """Steps that are not terminal."""
    handlers: Mapping[str, NodeState] = field(default_factory=dict)
    max_active: int = 0
    """0: no limit."""
    has_external_retry: bool = False
    """A step's retries are left to the scheduler: the run goes back to the queue."""
    is_retried: bool = False
    """Should the run fail, it is tried again by itself: nobody is told of this failure (section 3.9)."""
    is_stopping: bool = False
    is_timed_out: bool = False
    is_held: bool = False
    """`delay_sec` after a launch: nothing else starts until `DelayOver`."""
    delay_s: float = 0.0
    error: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Started(Struct, frozen=True):
    """The environment stands; the run begins."""


class SetupFailed(Struct, frozen=True):
    """Parameters, secrets, the plan or the like failed; no step runs."""

    error: str


class PreconditionsChecked(Struct, frozen=True):
    """The DAG's preconditions were evaluated."""

    met: bool
    error: str = ""
    """An evaluation error, which is not the same as not met."""


class StepEnded(Struct, frozen=True):
    """One execution of a step ended."""

    position: int
    outcome: Outcome


class Changed(Struct, frozen=True):
    """A running step published something meanwhile, such as its children."""

    position: int
    published: Mapping[str, Any]


class Shown(Struct, frozen=True):
    """What a running step, or handler by name, really executes is known."""

    node: int | str
    shown: Mapping[str, Any]


class PauseOver(Struct, frozen=True):
    """The pause before a retry or a repetition of a step, or of a handler by name, is over."""

    node: int | str


class HandlerEnded(Struct, frozen=True):
    """A lifecycle handler ended. `outcome` None: it is not defined."""

    name: str
    outcome: Outcome | None


class StopRequested(Struct, frozen=True):
    """Somebody asked the run to stop."""


class TimedOut(Struct, frozen=True):
    """The DAG's own timeout passed."""


class DelayOver(Struct, frozen=True):
    """`delay_sec` after a launch has passed."""


Event = (
    Started | SetupFailed | PreconditionsChecked | StepEnded | Changed | Shown | PauseOver | HandlerEnded
    | StopRequested | TimedOut | DelayOver
)  # fmt: skip


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class CheckPreconditions(Struct, frozen=True):
    """Evaluate the DAG's preconditions; answer with `PreconditionsChecked`."""


class StartStep(Struct, frozen=True):
    """Execute a step once; answer with `StepEnded`. `is_first`: its preconditions come first."""

    position: int
    is_first: bool


class Pause(Struct, frozen=True):
    """Wait; answer with `PauseOver`."""

    node: int | str
    seconds: float


class Delay(Struct, frozen=True):
    """Wait; answer with `DelayOver`."""

    seconds: float


class StartHandler(Struct, frozen=True):
    """Execute a handler if it is defined; answer with `HandlerEnded`. `is_first`: its preconditions come first."""

    name: str
    is_first: bool = True


class StopRunning(Struct, frozen=True):
    """Stop every running step's processes and end every pause; each still answers."""


class End(Struct, frozen=True):
    """The run is over."""


Command = CheckPreconditions | StartStep | Pause | Delay | StartHandler | StopRunning | End


class Transition(Struct, frozen=True):
    """What an event leads to."""

    state: RunState
    commands: tuple[Command, ...] = ()


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


def new_run(
    plan: Plan,
    *,
    kept: Mapping[int, NodeState] | None = None,
    max_active: int = 0,
    delay_s: float = 0.0,
    has_external_retry: bool = False,
    is_retried: bool = False,
) -> RunState:
    """Return a run before its first event. `kept` are nodes of an earlier attempt, as this one takes them over."""
    nodes = tuple((kept or {}).get(position, NEW_NODE) for position in range(len(plan.steps)))
    waiting = tuple(len(found) for found in plan.dependencies)
    ready = tuple(p for p, node in enumerate(nodes) if not waiting[p] and node.status is StepStatus.NOT_STARTED)
    unfinished = sum(not node.status.is_terminal for node in nodes)
    return RunState(
        plan=plan,
        nodes=nodes,
        waiting=waiting,
        ready=ready,
        unfinished=unfinished,
        max_active=max_active,
        delay_s=delay_s,
        has_external_retry=has_external_retry,
        is_retried=is_retried,
    )


def reset_positions(
    plan: Plan, previous: Sequence[StepStatus], *, step: str = "", include_downstream: bool = False
) -> frozenset[int]:
    """Return which steps a retry of a run executes again (workflow language, section 5.4).

    All that failed, were aborted, rejected, waiting for a retry or never started, and all that depend on them; or, with
    `step`, that one and, if asked, those downstream of it.
    """
    if step:
        first = {plan.index[step]}
        return frozenset(first.union(plan.descendants(plan.index[step])) if include_downstream else first)
    kept = (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED, StepStatus.SKIPPED)
    again = {position for position, status in enumerate(previous) if status not in kept}
    for position in tuple(again):
        again.update(plan.descendants(position))
    return frozenset(again)


def advance(state: RunState, event: Event, now: datetime) -> Transition:
    """Return what `event` leads to. An event that comes too late changes nothing."""
    match event:
        case Started():
            if state.phase is not Phase.NEW:
                return Transition(state)
            begun = replace(state, phase=Phase.PRECONDITIONS, status=RunStatus.RUNNING, started_at=now)
            if state.is_stopping or state.is_timed_out:
                return _preconditions(begun, met=False, error="")
            return Transition(replace(begun, running=1), (CheckPreconditions(),))
        case SetupFailed(error=error):
            if state.phase is not Phase.NEW:
                return Transition(state)
            return _outcome(replace(state, started_at=now, error=error, status=RunStatus.FAILED))
        case PreconditionsChecked(met=met, error=error):
            if state.phase is not Phase.PRECONDITIONS:
                return Transition(state)
            return _preconditions(replace(state, running=state.running - 1), met=met, error=error)
        case StepEnded(position=position, outcome=outcome):
            return _step_ended(state, position, outcome, now)
        case Changed(position=position, published=published):
            node = state.nodes[position]
            if node.status is not StepStatus.RUNNING:
                return Transition(state)
            return Transition(_with_node(state, position, replace(node, published={**node.published, **published})))
        case Shown(node=node_key, shown=shown):
            return Transition(_with_shown(state, node_key, shown))
        case PauseOver(node=node_key):
            return _pause_over(state, node_key, now)
        case HandlerEnded(name=name, outcome=handled):
            return _handler_executed(state, name, handled, now)
        case StopRequested():
            if state.is_stopping or state.phase is Phase.ENDED:
                return Transition(state)
            if state.phase in (Phase.OUTCOME, Phase.EXIT):
                # Only the handler that runs now is stopped; the exit handler still gets its turn.
                return Transition(replace(state, is_stopping=True), (StopRunning(),))
            return _halt(replace(state, is_stopping=True), now)
        case TimedOut():
            # A stop that came first has decided already; how long its clean-up takes does not make the run fail.
            if state.is_stopping or state.is_timed_out or state.phase in (Phase.OUTCOME, Phase.EXIT, Phase.ENDED):
                return Transition(state)
            return _halt(replace(state, is_timed_out=True, error=state.error or "the DAG timed out"), now)
        case DelayOver():
            if not state.is_held:
                return Transition(state)
            return _continue(replace(state, is_held=False, running=state.running - 1), now)
        case _:
            assert_never(event)


def _pause_over(state: RunState, key: int | str, now: datetime) -> Transition:
    """Execute once more what waited for it, unless the run is being halted meanwhile."""
    halting = state.is_stopping or state.is_timed_out
    if isinstance(key, int):
        if state.nodes[key].status is not StepStatus.RUNNING:
            return Transition(state)
        if not halting:
            return Transition(state, (StartStep(key, is_first=False),))
        aborted = replace(state.nodes[key], status=StepStatus.ABORTED, finished_at=now)
        return _finished(replace(state, running=state.running - 1), key, aborted, now)
    if not _runs(state, key):
        return Transition(state)
    if not halting or state.phase is not Phase.INIT:
        return Transition(state, (StartHandler(key, is_first=False),))
    ended = Outcome(result=Result.ABORTED)
    return _handler_ended(replace(state, running=state.running - 1), key, ended, now)


def _preconditions(state: RunState, *, met: bool, error: str) -> Transition:
    if state.is_timed_out:
        return _outcome(replace(state, status=RunStatus.FAILED))
    if error and not state.is_stopping:
        return _outcome(replace(state, status=RunStatus.FAILED, error=error))
    if state.is_stopping or not met:
        return _outcome(replace(state, status=RunStatus.ABORTED))
    return Transition(replace(state, phase=Phase.INIT, running=state.running + 1), (StartHandler("init"),))


def _runs(state: RunState, name: str) -> bool:
    """Tell whether a handler is what the run waits for now."""
    match state.phase:
        case Phase.INIT:
            return name == "init"
        case Phase.OUTCOME:
            return name == _OUTCOME_HANDLERS.get(state.status, "failure")
        case Phase.EXIT:
            return name == "exit"
        case _:
            return False


def _with_shown(state: RunState, key: int | str, shown: Mapping[str, Any]) -> RunState:
    if isinstance(key, int):
        node = state.nodes[key]
        known = replace(node, shown={**(node.shown or {}), **shown})
        return _with_node(state, key, known) if node.status is StepStatus.RUNNING else state
    if not _runs(state, key) or key not in state.handlers:
        return state
    return replace(state, handlers={**state.handlers, key: replace(state.handlers[key], shown=shown)})


def _handler_executed(state: RunState, name: str, outcome: Outcome | None, now: datetime) -> Transition:
    """Decide what follows one execution of a handler, as for a step: retry, repetition, end."""
    if not _runs(state, name):
        return Transition(state)
    if outcome is not None and outcome.result is Result.WAITING:
        outcome = replace(outcome, result=Result.FAILED, error="a lifecycle handler cannot wait for a person")
    if outcome is not None:
        halting = state.phase is Phase.INIT and (state.is_stopping or state.is_timed_out)
        node = _executed(state.handlers.get(name, NEW_NODE), outcome)
        node, pause = _again(state.plan.handlers[name], node, outcome, now, halting=halting)
        state = replace(state, handlers={**state.handlers, name: node})
        if pause is not None:
            return Transition(state, (Pause(name, pause),))
    return _handler_ended(replace(state, running=state.running - 1), name, outcome, now)


def _handler_ended(state: RunState, name: str, outcome: Outcome | None, now: datetime) -> Transition:
    """Go on to what comes after a handler; None: it was not defined (section 3.13)."""
    node = None
    if outcome is not None:
        node = _ended(state.plan.handlers[name], state.handlers[name], outcome, now)
        state = replace(state, handlers={**state.handlers, name: node})
    is_bad = node is not None and not node.is_accepted and node.status in (StepStatus.FAILED, StepStatus.ABORTED)
    error = node.error if node else ""
    if name == "init":
        if state.is_timed_out:
            return _outcome(replace(state, status=RunStatus.FAILED))
        if state.is_stopping:
            return _outcome(replace(state, status=RunStatus.ABORTED))
        if is_bad:
            return _outcome(replace(state, status=RunStatus.ABORTED, error=f"init handler failed: {error}"))
        # Where an earlier attempt's results are kept, the steps begin with what they mean for those behind them.
        kept = [position for position, before in enumerate(state.nodes) if before.status.is_terminal]
        return _continue(_settle_dependents(replace(state, phase=Phase.STEPS), kept, now), now)
    if name == "wait":  # the run is not finished: no failure, no exit handler
        return Transition(replace(state, phase=Phase.ENDED), (End(),))
    if node is not None and node.status is StepStatus.ABORTED and state.is_stopping:
        state = replace(state, status=RunStatus.ABORTED)
    elif is_bad:
        text = state.error or f"handler {HANDLER_NODES[name]} failed: {error}"
        state = replace(state, status=RunStatus.FAILED, error=text)
    if name == "exit":
        return Transition(replace(state, phase=Phase.ENDED, finished_at=now), (End(),))
    return Transition(replace(state, phase=Phase.EXIT, running=state.running + 1), (StartHandler("exit"),))


def handler_started(state: RunState, name: str, now: datetime) -> RunState:
    """Note that a defined handler runs."""
    node = NodeState(status=StepStatus.RUNNING, started_at=now)
    return replace(state, handlers={**state.handlers, name: node})


def _step_ended(state: RunState, position: int, outcome: Outcome, now: datetime) -> Transition:
    """Decide what follows one execution: a retry, a repetition, or the end of the step."""
    if state.nodes[position].status is not StepStatus.RUNNING:
        return Transition(state)
    step = state.plan.steps[position]
    halting = state.is_stopping or state.is_timed_out
    node = _executed(state.nodes[position], outcome)
    node, pause = _again(step, node, outcome, now, halting=halting)
    if pause is not None and state.has_external_retry and node.retry_count > state.nodes[position].retry_count:
        node = replace(node, status=StepStatus.RETRYING, pause_s=pause)
        return _continue(_with_node(replace(state, running=state.running - 1), position, node), now)
    if pause is not None:
        return Transition(_with_node(state, position, node), (Pause(position, pause),))
    if halting and outcome.result not in (Result.SUCCEEDED, Result.PARTIAL):
        outcome = replace(outcome, result=Result.ABORTED)
    if step.approval is not None and outcome.result in (Result.SUCCEEDED, Result.PARTIAL):
        outcome = replace(outcome, result=Result.WAITING)
    if outcome.result is Result.WAITING:  # not terminal: those behind it stay where they are
        waits = replace(node, status=StepStatus.WAITING)
        return _continue(_with_node(replace(state, running=state.running - 1), position, waits), now)
    return _finished(replace(state, running=state.running - 1), position, _ended(step, node, outcome, now), now)


def _ended(step: Step, node: NodeState, outcome: Outcome, now: datetime) -> NodeState:
    """Return a step or handler after its last execution; `continue_on` may accept its failure (section 3.8)."""
    status, policy = _STATUS[outcome.result], step.continue_on
    if status is StepStatus.FAILED and retry.accepts(
        policy, exit_code=outcome.exit_code, output_matches=outcome.output_matches
    ):
        if policy.mark_success:
            return replace(node, status=StepStatus.SUCCEEDED, finished_at=now, error="")
        node = replace(node, is_accepted=True)
    return replace(node, status=status, finished_at=now)


def _executed(node: NodeState, outcome: Outcome) -> NodeState:
    """Note one execution. Outputs are those of the last one; the children that it told of meanwhile stay."""
    own = {key: value for key, value in node.published.items() if key in OWN_STORY}
    return replace(
        node, exit_code=outcome.exit_code, error=outcome.error, published={**own, **outcome.published},
        done_count=node.done_count + (outcome.result is not Result.SKIPPED),
    )  # fmt: skip


def _again(
    step: Step, node: NodeState, outcome: Outcome, now: datetime, *, halting: bool
) -> tuple[NodeState, float | None]:
    """Return the pause before the next execution, None when there is none; a retry is counted (sections 3.9, 3.10).

    A timeout, a stop and what a precondition says are never tried again. A failure ends a loop only by the loop's test:
    a policy that names neither condition nor exit code tests that the step succeeded.
    """
    if halting or outcome.result not in (Result.SUCCEEDED, Result.PARTIAL, Result.FAILED):
        return node, None
    failed = outcome.result is Result.FAILED
    if failed and retry.retries(outcome.retry, done=node.retry_count, exit_code=outcome.exit_code):
        assert outcome.retry is not None, "only a policy retries"
        # An execution that is tried again does not count as one of a loop's.
        again = replace(node, retry_count=node.retry_count + 1, retried_at=now, done_count=node.done_count - 1)
        return again, outcome.retry.pause_s(node.retry_count)
    if outcome.repeat is None or outcome.repeat_met is None or step.repeat is None:
        return node, None
    if retry.repeats(step.repeat.mode, outcome.repeat, executions=node.done_count, met=outcome.repeat_met):
        return node, outcome.repeat.pause_s(node.done_count - 1)
    return node, None


def _finished(state: RunState, position: int, node: NodeState, now: datetime) -> Transition:
    """Settle a step that is terminal, with everything that follows for those behind it."""
    state = _with_node(state, position, node)
    state = replace(state, unfinished=state.unfinished - 1)
    return _continue(_settle_dependents(state, [position], now), now)


def _settle_dependents(state: RunState, ended: list[int], now: datetime) -> RunState:
    """Count down the dependents of ended steps; those that can never run end too, and so on."""
    plan, nodes = state.plan, state.nodes
    waiting = list(state.waiting)
    ready: list[int] = []
    changed: dict[int, NodeState] = {}

    def node_of(position: int) -> NodeState:
        return changed.get(position) or nodes[position]

    for position in ended:  # grows while it is walked
        for follower in plan.dependents[position]:
            waiting[follower] -= 1
            if waiting[follower] or node_of(follower).status is not StepStatus.NOT_STARTED:
                continue
            verdict = _readiness(plan, follower, node_of)
            if verdict is None:
                ready.append(follower)
            else:
                changed[follower] = replace(node_of(follower), status=verdict, finished_at=now)
                ended.append(follower)
    if changed:
        nodes = tuple(changed.get(position, node) for position, node in enumerate(nodes))
    merged = tuple(sorted((*state.ready, *ready))) if ready else state.ready
    return replace(state, nodes=nodes, waiting=tuple(waiting), ready=merged, unfinished=state.unfinished - len(changed))


def _readiness(plan: Plan, position: int, node_of: Any) -> StepStatus | None:
    """Return how a step ends without running because of its dependencies; None: it may start (section 3.3)."""
    skipped = False
    for before in plan.dependencies[position]:
        node: NodeState = node_of(before)
        if node.status in (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED):
            continue
        if node.status is StepStatus.FAILED and node.is_accepted:
            continue
        if node.status is StepStatus.SKIPPED:
            # Whoever follows the branches of a router follows those that it did not take, too (section 3.27).
            step = plan.steps[before]
            skipped = skipped or not (step.continue_on.skipped or step.routed is not None)
            continue
        return StepStatus.ABORTED
    routed = plan.steps[position].routed
    if routed is not None and not skipped:
        chosen: NodeState = node_of(plan.index[routed.router])
        skipped = not patterns.routes(routed.patterns, str(chosen.published.get(ROUTER_VALUE, "")))
    return StepStatus.SKIPPED if skipped else None


def _continue(state: RunState, now: datetime) -> Transition:
    """Start what may start; when nothing is left, find out what the run amounts to."""
    commands: list[Command] = []
    halting = state.is_stopping or state.is_timed_out
    while state.ready and not halting and not state.is_held:
        if state.max_active and _active(state) >= state.max_active:
            break
        position, rest = state.ready[0], state.ready[1:]
        node = replace(state.nodes[position], status=StepStatus.RUNNING, started_at=now, pause_s=0.0)
        state = replace(_with_node(state, position, node), ready=rest, running=state.running + 1)
        commands.append(StartStep(position, is_first=True))
        if state.delay_s > 0 and state.unfinished > _active(state):  # there is something left to hold back
            commands.append(Delay(state.delay_s))
            state = replace(state, is_held=True, running=state.running + 1)
    if commands or state.running:
        return Transition(state, tuple(commands))
    status = overall(state)
    if status is RunStatus.QUEUED:  # it goes on later, in another attempt: no handler yet
        return Transition(replace(state, status=status, phase=Phase.ENDED, ready=()), (End(),))
    return _outcome(replace(state, status=status))


def _active(state: RunState) -> int:
    return state.running - (1 if state.is_held else 0)


def _halt(state: RunState, now: datetime) -> Transition:
    """Abort what has not started; let the shell stop what runs. Before the steps' turn they just never start."""
    if state.phase is Phase.STEPS:
        nodes = tuple(_aborted(node, now) if node.status in _NOT_RUNNING else node for node in state.nodes)
        unfinished = sum(not node.status.is_terminal for node in nodes)
        state = replace(state, ready=(), nodes=nodes, unfinished=unfinished)
    return Transition(state, (StopRunning(),) if state.running else ())


def _aborted(node: NodeState, now: datetime) -> NodeState:
    return replace(node, status=StepStatus.ABORTED, finished_at=now, pause_s=0.0)


def _outcome(state: RunState) -> Transition:
    """Run the handler that belongs to what the run amounts to; steps that never ran stay as they are."""
    name = _OUTCOME_HANDLERS.get(state.status, "failure")
    state = replace(state, error=state.error or _first_error(state))
    state = replace(state, ready=(), running=state.running + 1)
    if state.is_retried and state.status is RunStatus.FAILED:
        return Transition(replace(state, phase=Phase.EXIT), (StartHandler("exit"),))
    return Transition(replace(state, phase=Phase.OUTCOME), (StartHandler(name),))


def _first_error(state: RunState) -> str:
    if state.status not in (RunStatus.FAILED, RunStatus.REJECTED):
        return ""
    for step, node in zip(state.plan.steps, state.nodes, strict=True):
        if node.status in (StepStatus.FAILED, StepStatus.ABORTED) and not node.is_accepted and node.error:
            line = node.error.partition("\n")[0]
            return f"{step.name}: {line}"
    return ""


def overall(state: RunState) -> RunStatus:
    """Return what the run amounts to once its steps are done (workflow language, section 5.3; first match wins)."""
    statuses = [node.status for node in state.nodes]
    if state.is_timed_out:
        return RunStatus.FAILED
    if state.is_stopping and any(
        status not in (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED, StepStatus.SKIPPED) for status in statuses
    ):
        return RunStatus.ABORTED
    if StepStatus.RETRYING in statuses:
        return RunStatus.QUEUED
    if StepStatus.REJECTED in statuses:
        return RunStatus.REJECTED
    if StepStatus.WAITING in statuses:
        return RunStatus.WAITING
    failures = [node for node in state.nodes if node.status is StepStatus.FAILED]
    # A step that is aborted although nobody stopped the run, such as by its child, is a failure that nobody accepted.
    if StepStatus.ABORTED in statuses or any(not node.is_accepted for node in failures):
        return RunStatus.FAILED
    has_success = any(status in (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED) for status in statuses)
    if has_success and (failures or StepStatus.PARTIALLY_SUCCEEDED in statuses):
        return RunStatus.PARTIALLY_SUCCEEDED
    return RunStatus.FAILED if failures else RunStatus.SUCCEEDED


def _with_node(state: RunState, position: int, node: NodeState) -> RunState:
    nodes = state.nodes
    return replace(state, nodes=(*nodes[:position], node, *nodes[position + 1 :]))
