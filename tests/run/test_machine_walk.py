"""A run walked by hypothesis: whatever happens in whatever order, the sentences below hold."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import Plan, make_plan
from secure_dagu.run import machine
from secure_dagu.run.machine import Outcome, Result
from secure_dagu.run.retry import Policy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HANDLERS = ("success", "failure", "abort", "wait")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return a plan of up to eight steps; a step depends on earlier ones only, so there is no cycle."""
    chosen = draw(st.sets(st.sampled_from(["init", "success", "failure", "abort", "exit"])))
    lines = [f"handler_on: {{{', '.join(f'{name}: {{run: echo}}' for name in sorted(chosen))}}}", "steps:"]
    for number in range(draw(st.integers(1, 8))):
        lines += [f"  - name: s{number}", "    run: 'true'"]
        depends = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        if depends:
            lines.append(f"    depends: [{', '.join(f's{n}' for n in sorted(depends))}]")
        accepts = draw(st.sampled_from(["", "failed", "skipped", "{failed: true, mark_success: true}"]))
        if accepts:
            lines.append(f"    continue_on: {accepts}")
    return make_plan(load_definition("\n".join(lines)).main)


class Walk:
    """Plays the shell: remembers what was commanded, answers in the order that hypothesis picks."""

    def __init__(self, plan: Plan, max_active: int, delay_s: float) -> None:
        self.plan = plan
        self.max_active = max_active
        self.owed: list[machine.Command] = []
        self.executing: set[int] = set()
        self.pausing: set[int | str] = set()
        self.handlers: list[str] = []
        self.ends = 0
        self.started_after_stop = False
        self.state = machine.new_run(plan, max_active=max_active, delay_s=delay_s)

    def take(self, event: machine.Event) -> None:
        before = self.state
        transition = machine.advance(self.state, event, NOW)
        self.state = transition.state
        for command in transition.commands:
            match command:
                case machine.StartStep(position=position, is_first=is_first):
                    self.begins(position, is_first=is_first)
                    self.owed.append(command)
                case machine.Pause(node=node):
                    self.pausing.add(node)
                    self.owed.append(command)
                case machine.StartHandler(name=name, is_first=is_first):
                    assert is_first is not (name in self.pausing), "a handler is repeated only after a pause"
                    self.pausing.discard(name)
                    if is_first:
                        self.handlers.append(name)
                    self.owed.append(command)
                case machine.End():
                    self.ends += 1
                case machine.StopRunning():
                    pass
                case machine.CheckPreconditions() | machine.Delay():
                    self.owed.append(command)
        self.holds(before)

    def begins(self, position: int, *, is_first: bool) -> None:
        for before in self.plan.dependencies[position]:
            status = self.state.nodes[before].status
            assert status.is_terminal, "no step starts before its dependencies are terminal"
        assert position not in self.executing, "a step is executed once at a time"
        assert is_first is not (position in self.pausing), "a repetition follows a pause, a first start does not"
        self.started_after_stop = self.started_after_stop or self.state.is_stopping
        self.pausing.discard(position)
        self.executing.add(position)

    def holds(self, before: machine.RunState) -> None:
        active = len(self.executing) + sum(isinstance(node, int) for node in self.pausing)
        assert not self.max_active or active <= self.max_active, "at most max_active_steps run"
        assert not self.started_after_stop, "nothing starts after a stop"
        for old, new in zip(before.nodes, self.state.nodes, strict=True):
            assert not old.status.is_terminal or old == new, "a terminal step does not change"
        assert self.ends <= 1, "a run ends once"

    def answer(self, command: machine.Command, outcome: Outcome, *, met: bool) -> None:
        self.owed.remove(command)
        match command:
            case machine.CheckPreconditions():
                self.take(machine.PreconditionsChecked(met=met))
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


outcomes = st.builds(
    Outcome,
    result=st.sampled_from(list(Result)),
    exit_code=st.integers(0, 3),
    retry=st.none() | st.builds(Policy, limit=st.integers(0, 2)),
)


@settings(max_examples=80, deadline=None)
@given(
    plan=plans(),
    max_active=st.integers(0, 3),
    delay_s=st.sampled_from([0.0, 0.0, 1.0]),
    stop_after=st.integers(0, 40),
    timeout_after=st.integers(0, 40),
    data=st.data(),
)
def test_whatever_happens_the_run_ends_once_and_in_order(
    plan: Plan, max_active: int, delay_s: float, stop_after: int, timeout_after: int, data: st.DataObject
) -> None:
    walk = Walk(plan, max_active, delay_s)
    walk.take(machine.Started())
    answered = 0
    while walk.owed:  # ends by itself: a step is retried at most twice
        if answered == stop_after:
            walk.take(machine.StopRequested())
        if answered == timeout_after:
            walk.take(machine.TimedOut())
        command = walk.owed[data.draw(st.integers(0, len(walk.owed) - 1), label="answered")]
        walk.answer(command, data.draw(outcomes, label="outcome"), met=data.draw(st.integers(0, 9), label="met") > 0)
        answered += 1
    assert walk.ends == 1, "a run whose every execution has ended ends too"
    assert not walk.executing, "every started step ends"
    assert not walk.pausing, "every pause ends"
    assert [name for name in walk.handlers if name in HANDLERS] == walk.handlers[-2:-1], "exactly one outcome handler"
    assert walk.handlers[-1] == "exit", "the exit handler runs last"
    assert walk.state.status.is_terminal
