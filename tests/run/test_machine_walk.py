"""A run walked by hypothesis: whatever happens in whatever order, the sentences below hold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from secure_dagu.dag.model import Approval, ContinueOn, Position, RepeatPolicy, Routed, Step
from secure_dagu.dag.plan import Plan, plan_steps
from secure_dagu.run import machine
from secure_dagu.run.machine import HANDLER_NODES, NodeState, Outcome, Phase, Result
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.retry import Policy

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OUTCOME_HANDLERS = {"success", "failure", "abort", "wait"}
LONGEST = 8
"""Steps of a walked run."""


def step(draw: st.DrawFn, name: str, *, depends: Sequence[str] = ()) -> Step:
    accepts = ContinueOn(failure=draw(st.booleans()), skipped=draw(st.booleans()), mark_success=draw(st.booleans()))
    repeat = draw(st.none() | st.builds(RepeatPolicy, mode=st.sampled_from(["while", "until"])))
    where = Position("", 1, 1)
    # Now and then a step asks a person, or is a branch of the first step that it depends on.
    approval = draw(st.sampled_from([None, None, None, Approval()]))
    patterns = draw(st.sampled_from([None, None, ("left",), ("re:^l", "right")])) if depends else None
    return Step(
        name=name, position=where, kind="command", depends=tuple(depends), continue_on=accepts, repeat=repeat,
        approval=approval, routed=Routed(router=depends[0], patterns=patterns) if patterns else None,
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return a plan; a step depends on earlier ones only, so there is no cycle."""
    steps: list[Step] = []
    for number in range(draw(st.integers(0, LONGEST))):
        depends = draw(st.sets(st.sampled_from([known.name for known in steps]), max_size=3)) if steps else ()
        steps.append(step(draw, f"s{number}", depends=sorted(depends)))
    names = draw(st.sets(st.sampled_from(sorted(HANDLER_NODES))))
    return plan_steps(tuple(steps), handlers={name: step(draw, name) for name in sorted(names)})


outcomes = st.builds(
    Outcome,
    result=st.sampled_from([*Result, Result.SUCCEEDED, Result.FAILED]),
    exit_code=st.none() | st.integers(0, 3),
    error=st.sampled_from(["", "went wrong"]),
    published=st.sampled_from([{}, {machine.ROUTER_VALUE: "left"}, {machine.ROUTER_VALUE: "middle"}]),
    repeat_met=st.none() | st.booleans(),
    retry=st.none() | st.builds(Policy, limit=st.integers(0, 2)),
    repeat=st.none() | st.builds(Policy, limit=st.integers(1, 3)),
)


class Walk(RuleBasedStateMachine):
    """Plays the shell: remembers what was commanded and answers in the order that hypothesis picks."""

    @initialize(
        plan=plans(),
        max_active=st.integers(0, 3),
        delay_s=st.sampled_from([0.0, 0.0, 1.0]),
        previous=st.none() | st.lists(st.sampled_from(list(StepStatus)), min_size=LONGEST, max_size=LONGEST),
        retried=st.none() | st.tuples(st.integers(0, LONGEST - 1), st.booleans()),
        goes_on=st.booleans(),
        has_external_retry=st.booleans(),
    )
    def begin(
        self,
        plan: Plan,
        max_active: int,
        delay_s: float,
        previous: list[StepStatus] | None,
        retried: tuple[int, bool] | None,
        goes_on: bool,
        has_external_retry: bool,
    ) -> None:
        self.plan = plan
        self.max_active = max_active
        self.now = BEGIN
        self.kept = {} if previous is None else self.kept_of(previous[: len(plan.steps)], retried, goes_on=goes_on)
        self.owed: list[machine.Command] = []
        self.executing: set[int] = set()
        self.pausing: set[int | str] = set()
        self.executed: set[int] = set()
        self.handlers: list[str] = []
        self.ends = 0
        self.is_begun = False
        self.state = machine.new_run(
            plan, kept=self.kept, max_active=max_active, delay_s=delay_s,
            has_external_retry=has_external_retry,
        )  # fmt: skip

    def kept_of(
        self, previous: list[StepStatus], retried: tuple[int, bool] | None, *, goes_on: bool
    ) -> dict[int, NodeState]:
        """Return what a retry keeps of an earlier attempt, or what a run that goes on has done already."""
        if goes_on:
            done = {*filter(lambda status: status.is_terminal, StepStatus), StepStatus.WAITING}
            return {p: NodeState(status=status, is_kept=True) for p, status in enumerate(previous) if status in done}
        name, downstream = "", False
        if retried is not None and retried[0] < len(previous):
            name, downstream = self.plan.steps[retried[0]].name, retried[1]
        again = machine.reset_positions(self.plan, previous, step=name, include_downstream=downstream)
        return {
            position: NodeState(status=status if status.is_terminal else StepStatus.ABORTED, is_kept=True)
            for position, status in enumerate(previous)
            if position not in again
        }

    # ── what may happen ──────────────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: not self.is_begun)
    @rule()
    def starts(self) -> None:
        self.is_begun = True
        self.take(machine.Started())

    @precondition(lambda self: not self.is_begun)
    @rule()
    def cannot_be_set_up(self) -> None:
        self.is_begun = True
        self.take(machine.SetupFailed("no secret"))

    @precondition(lambda self: self.owed)
    @rule(which=st.integers(0, 2 * LONGEST), outcome=outcomes, met=st.integers(0, 9), error=st.integers(0, 9))
    def answers(self, which: int, outcome: Outcome, met: int, error: int) -> None:
        command = self.owed.pop(which % len(self.owed))
        match command:
            case machine.CheckPreconditions():
                self.take(machine.PreconditionsChecked(met=met > 0, error="" if error else "bad regex"))
            case machine.StartStep(position=position):
                self.executing.discard(position)
                self.take(machine.StepEnded(position, outcome))
            case machine.Pause(node=node):
                assert node in self.pausing, "a pause ends once"
                self.take(machine.PauseOver(node))
                self.pausing.discard(node)
            case machine.Delay():
                self.take(machine.DelayOver())
            case machine.StartHandler(name=name):
                self.take(machine.HandlerEnded(name, outcome if name in self.plan.handlers else None))
            case _:
                raise AssertionError(command)

    @rule()
    def stops(self) -> None:
        self.take(machine.StopRequested())

    @rule()
    def times_out(self) -> None:
        self.take(machine.TimedOut())

    @rule(which=st.integers(0, LONGEST), children=st.lists(st.integers(), max_size=2))
    def publishes(self, which: int, children: list[int]) -> None:
        if which < len(self.plan.steps):
            self.take(machine.Changed(which, {"children": children}))

    @rule(which=st.integers(0, LONGEST), outcome=outcomes, name=st.sampled_from(sorted(HANDLER_NODES)))
    def hears_what_it_does_not_wait_for(self, which: int, outcome: Outcome, name: str) -> None:
        """A late event changes nothing."""
        late: list[machine.Event] = []
        if self.state.phase is not Phase.NEW:
            late += [machine.Started(), machine.SetupFailed("late")]
        if self.state.phase is not Phase.PRECONDITIONS:
            late.append(machine.PreconditionsChecked(met=False))
        if not any(isinstance(command, machine.Delay) for command in self.owed):
            late.append(machine.DelayOver())
        handlers = {command.name for command in self.owed if isinstance(command, machine.StartHandler)}
        if name not in handlers | self.pausing:
            late += [machine.HandlerEnded(name, outcome), machine.PauseOver(name)]
        if which < len(self.plan.steps) and which not in self.executing and which not in self.pausing:
            late += [machine.StepEnded(which, outcome), machine.PauseOver(which), machine.Changed(which, {"x": 1})]
        for event in late:
            assert machine.advance(self.state, event, self.now) == machine.Transition(self.state), event

    # ── what follows ─────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, event: machine.Event) -> None:
        self.now += timedelta(seconds=1)
        before = self.state
        transition = machine.advance(self.state, event, self.now)
        self.state = transition.state
        for command in transition.commands:
            self.obeys(command)
        for old, new in zip(before.nodes, self.state.nodes, strict=True):
            assert not old.status.is_terminal or old is new, "a step that has ended does not change"
        if before.phase is Phase.ENDED:
            assert transition == machine.Transition(before), "nothing happens after the end"
        assert before.phase.value <= self.state.phase.value, "a run never goes back"

    def obeys(self, command: machine.Command) -> None:
        match command:
            case machine.StartStep(position=position, is_first=is_first):
                for waited_for in self.plan.dependencies[position]:
                    status = self.state.nodes[waited_for].status
                    assert status.is_terminal, "no step starts before its dependencies have ended"
                assert position not in self.kept, "what is kept is not executed"
                assert position not in self.executing, "a step is executed once at a time"
                assert is_first is (position not in self.executed), "preconditions come before the first execution only"
                assert is_first or position in self.pausing, "a further execution follows a pause"
                is_held = any(isinstance(other, machine.Delay) for other in self.owed)
                assert not (is_first and is_held), "nothing starts during the delay after a launch"
                assert not self.state.is_stopping, "nothing starts in a run that is stopped"
                assert not self.state.is_timed_out, "nor in one that is out of time"
                self.pausing.discard(position)
                self.executing.add(position)
                self.executed.add(position)
            case machine.StartHandler(name=name, is_first=is_first):
                assert is_first is not (name in self.pausing), "a handler is repeated only after a pause"
                self.pausing.discard(name)
                if is_first:
                    self.handlers.append(name)
                    if name in self.plan.handlers:
                        self.state = machine.handler_started(self.state, name, self.now)
            case machine.Pause(node=node):
                self.pausing.add(node)
            case machine.StopRunning():
                assert self.owed, "only what runs is stopped"
                return
            case machine.End():
                self.ends += 1
                return
        self.owed.append(command)

    # ── what always holds ────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_machine_counts_what_it_is_owed(self) -> None:
        assert self.state.running == len(self.owed)

    @invariant()
    def at_most_max_active_steps_run(self) -> None:
        active = len(self.executing | {node for node in self.pausing if isinstance(node, int)})
        assert not self.max_active or active <= self.max_active

    @invariant()
    def a_run_that_has_begun_has_ended_or_waits_for_an_answer(self) -> None:
        assert not self.is_begun or bool(self.owed) is not (self.ends == 1)
        assert self.ends == (self.state.phase is Phase.ENDED)

    @invariant()
    def handlers_run_in_their_order(self) -> None:
        order = [name for name in self.handlers if name != "init"]
        assert self.handlers == (["init"] if "init" in self.handlers else []) + order
        assert len(order) <= 2, "one outcome handler, one exit handler"
        assert not order[:1] or order[0] in OUTCOME_HANDLERS
        assert order != ["wait", "exit"], "a run that waits has not ended"
        assert order[1:] in ([], ["exit"])

    @invariant()
    def what_is_not_terminal_is_counted(self) -> None:
        assert self.state.unfinished == sum(not node.status.is_terminal for node in self.state.nodes)

    def teardown(self) -> None:
        """Every run reaches its end."""
        if not hasattr(self, "state"):
            return
        if not self.is_begun:
            self.starts()
        good = Outcome(result=Result.SUCCEEDED, exit_code=0)
        for _ in range(10 * LONGEST):
            if self.owed:
                self.answers(0, good, 1, 1)
        assert self.ends == 1, "a run whose every execution has ended ends too"
        assert not self.executing
        assert not self.pausing
        unsettled = {node.status for node in self.state.nodes if not node.status.is_terminal}
        match self.state.status:
            case RunStatus.QUEUED:
                assert StepStatus.RETRYING in unsettled, "a run is queued for the sake of a step"
                assert self.handlers in ([], ["init"]), "it goes on later"
            case RunStatus.WAITING:
                assert StepStatus.WAITING in unsettled, "somebody is waited for"
                assert self.handlers[-1] == "wait"
                assert StepStatus.RETRYING not in unsettled
            case _:
                assert self.state.status.is_terminal
                assert self.state.finished_at is not None
                assert self.handlers[-1] == "exit", "the exit handler runs last"
                assert self.handlers[-2] in OUTCOME_HANDLERS, "exactly one outcome handler runs before it"
                assert not unsettled & {StepStatus.RUNNING, StepStatus.RETRYING}
        assert all(node.status.is_terminal for node in self.state.handlers.values())


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=30)
