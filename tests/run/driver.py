"""A shell for `run.machine` without time: it obeys commands in their order, with outcomes that a test wrote down."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import Plan, make_plan
from secure_dagu.run import machine
from secure_dagu.run.machine import Command, Event, NodeState, Outcome, Phase, Result

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GOOD = Outcome(result=Result.SUCCEEDED, exit_code=0)
BAD = Outcome(result=Result.FAILED, exit_code=1, error="exit status 1")
SKIPPED = Outcome(result=Result.SKIPPED)
ABORTED = Outcome(result=Result.ABORTED, error="stopped")
TIMED_OUT = Outcome(result=Result.TIMED_OUT, exit_code=124, error="step timed out after 1s (timeout: 1s)")


def plan_of(*steps: str, head: str = "") -> Plan:
    """Return the plan of steps written as the inside of YAML flow maps: `name: a, run: x`; `head` goes before them."""
    return make_plan(load_definition(head + "steps:\n" + "".join(f"  - {{{step}}}\n" for step in steps)).main)


class Drive:
    """Plays the shell.

    Attributes:
        owed: commands that have to be answered, oldest first.
        started: names of the steps that were executed, once for each execution.
        handlers: names of the defined handlers that were executed, once for each execution.
        pauses: seconds of each pause.
    """

    def __init__(
        self,
        plan: Plan,
        outcomes: Mapping[str, Sequence[Outcome]] | None = None,
        *,
        kept: Mapping[int, NodeState] | None = None,
        max_active: int = 0,
        delay_s: float = 0.0,
    ) -> None:
        self.plan = plan
        self.state = machine.new_run(plan, kept=kept, max_active=max_active, delay_s=delay_s)
        self.owed: deque[Command] = deque()
        self.started: list[str] = []
        self.handlers: list[str] = []
        self.pauses: list[float] = []
        self.stops = 0
        self._outcomes = {name: deque(found) for name, found in (outcomes or {}).items()}

    def take(self, event: Event) -> tuple[Command, ...]:
        """Hand over an event; return what it commanded."""
        transition = machine.advance(self.state, event, NOW)
        self.state = transition.state
        for command in transition.commands:
            if isinstance(command, machine.StopRunning):
                self.stops += 1
                continue
            if isinstance(command, machine.StartStep):
                self.started.append(self.plan.steps[command.position].name)
            if isinstance(command, machine.StartHandler) and command.name in self.plan.handlers:
                self.handlers.append(command.name)
                if command.is_first:
                    self.state = machine.handler_started(self.state, command.name, NOW)
            if isinstance(command, machine.Pause):
                self.pauses.append(command.seconds)
            if not isinstance(command, machine.End):
                self.owed.append(command)
        assert self.state.running == len(self.owed), "the machine counts what it is owed"
        return transition.commands

    def answer(self, outcome: Outcome | None = None) -> tuple[Command, ...]:
        """Answer the oldest command; return what that led to."""
        match self.owed.popleft():
            case machine.CheckPreconditions():
                return self.take(machine.PreconditionsChecked(met=True))
            case machine.StartStep(position=position):
                name = self.plan.steps[position].name
                return self.take(machine.StepEnded(position, outcome or self._outcome(name)))
            case machine.Pause(node=node):
                return self.take(machine.PauseOver(node))
            case machine.Delay():
                return self.take(machine.DelayOver())
            case machine.StartHandler(name=name):
                is_defined = name in self.plan.handlers
                return self.take(machine.HandlerEnded(name, (outcome or self._outcome(name)) if is_defined else None))
            case command:
                raise AssertionError(command)

    def until(self, phase: Phase) -> Drive:
        """Start if nothing has, and answer until `phase` is reached."""
        if self.state.phase is Phase.NEW:
            self.take(machine.Started())
        while self.state.phase is not phase:
            self.answer()
        return self

    def finish(self) -> Drive:
        """Go on to the end."""
        return self.until(Phase.ENDED)

    def words(self) -> dict[str, str]:
        """Return the status of each step by name."""
        return {step.name: node.status.word for step, node in zip(self.plan.steps, self.state.nodes, strict=True)}

    def _outcome(self, name: str) -> Outcome:
        left = self._outcomes.get(name)
        return left.popleft() if left else GOOD
