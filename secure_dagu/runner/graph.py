"""A list of steps while it runs: the loop that takes events and obeys the machine, and what each step may see.

The steps of a run are one (`runner.Execution`); so are those of each item of a `foreach` (`foreach.Body`). Nothing that
was started outlives the loop.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from msgspec.structs import replace

from secure_dagu.dag.model import Dag, Definition, Shell, Step
from secure_dagu.dag.plan import Plan
from secure_dagu.dag.scope import Layer, Scope, StepView, StepViews
from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.dispatch.model import LogStream
from secure_dagu.run import machine, people
from secure_dagu.run.machine import RunState
from secure_dagu.run.model import StepStatus
from secure_dagu.runner import shell, steps, streams
from secure_dagu.runner.api import ChildRuns, RunRequest
from secure_dagu.runner.masking import Masker
from secure_dagu.runner.output import LogFile

if TYPE_CHECKING:
    from secure_dagu.runner.containers import RunContainer

if TYPE_CHECKING:
    from secure_dagu.runner.build import Gate


class Graph(ABC):
    """Steps, how far they are, and what they ask for while they run."""

    masker: Masker
    secrets: tuple[str, ...] = ()
    """The values that `masker` hides."""
    container: RunContainer | None = None
    """The container of the run, when the DAG has one."""
    limits: Path | None = None
    """The cgroup that its processes join."""
    is_handler = False
    """Its steps belong to a lifecycle handler."""

    def __init__(
        self,
        *,
        request: RunRequest,
        definition: Definition,
        children: ChildRuns,
        work_dir: Path,
        marker: str,
        scope: Scope,
        state: RunState,
    ) -> None:
        self.request = request
        self.folders = request.folders
        self.definition = definition
        self.dag: Dag = definition.main
        self.children = children
        self.work_dir = work_dir
        self.marker = marker
        self.plan: Plan = state.plan
        self._scope = scope
        self._state = state
        self._events: asyncio.Queue[machine.Event] = asyncio.Queue()
        self._halted = asyncio.Event()
        self._publishers = frozenset(
            p for p, step in enumerate(self.plan.steps) if isinstance(step.output, str) or step.approval is not None
        )
        """Steps that set variables of every step after them."""
        self._speakers = self._publishers.union(p for p, step in enumerate(self.plan.steps) if step.id)
        """Steps that others can read something of, if only by their id."""
        self._group: asyncio.TaskGroup

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drive(self, *meanwhile: Coroutine[Any, Any, None]) -> None:
        """Take events until the machine says that it is the end, which also ends what goes on meanwhile."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            others = [group.create_task(work) for work in meanwhile]
            while not self._advance(await self._events.get()):
                self._moved()
            for other in others:
                other.cancel()

    def _advance(self, event: machine.Event) -> bool:
        """Take one event; do what follows. True at the end."""
        transition = machine.advance(self._state, event, datetime.now(UTC))
        self._state = transition.state
        is_over = False
        for command in transition.commands:
            is_over = self._obey(command) or is_over
        if isinstance(event, machine.StepEnded):
            self._mail_failure(event.position)
        return is_over

    def _mail_failure(self, position: int) -> None:
        """Send a mail about a step that has failed for good, if it wants that (section 3.20)."""
        if self.plan.steps[position].mail_on_error and self._state.nodes[position].status is StepStatus.FAILED:
            from secure_dagu.runner import mails  # nearly no run sends any

            self._start(mails.step_failed(self, self._state, self._scope))

    def _obey(self, command: machine.Command) -> bool:
        match command:
            case machine.CheckPreconditions():
                self._start(self._check_preconditions())
            case machine.StartStep(position=position, is_first=is_first):
                self._start(self._step(position, is_first=is_first))
            case machine.Pause(node=node, seconds=seconds):
                self._start(self._pause(seconds, machine.PauseOver(node)))
            case machine.Delay(seconds=seconds):
                self._start(self._pause(seconds, machine.DelayOver()))
            case machine.StartHandler(name=name, is_first=is_first):
                self._start_handler(name, is_first=is_first)
            case machine.StopRunning():
                self.halt().set()
            case machine.End():
                return True
            case _:
                assert_never(command)
        return False

    def _start(self, work: Any) -> None:
        self._group.create_task(work)

    async def _step(self, position: int, *, is_first: bool) -> None:
        step = self.plan.steps[position]
        self.log("INFO", "Step started", step=step.name)
        outcome = await steps.execute_step(
            self,
            step,
            node=step.name,
            scope=self._step_scope(position),
            is_first=is_first,
            is_handler=self.is_handler,
        )
        self._log_end(step.name, outcome)
        self._events.put_nowait(machine.StepEnded(position, outcome))

    def _log_end(self, node: str, outcome: machine.Outcome) -> None:
        level = "ERROR" if outcome.error else "INFO"
        self.log(level, "Step finished", step=node, err=outcome.error.partition("\n")[0])

    async def _pause(self, seconds: float, event: machine.Event) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.halt().wait()
        except TimeoutError:
            pass
        self._events.put_nowait(event)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._events.put_nowait(machine.StopRequested())

    # ── what steps ask for ───────────────────────────────────────────────────────────────────────────────────────────

    def halt(self) -> asyncio.Event:
        """Return what stops whatever starts now."""
        return self._halted

    def gate(self, step: Step) -> Gate | None:
        """Return what one execution of a step passes through in a build DAG; None: nothing."""
        return None

    def path_of(self, node: str) -> str:
        """Return what tells a node from all others of the run."""
        return node

    def shell_of(self, own: Shell, scope: Scope) -> shell.Chosen:
        """Return the shell of a step whose `own` is this, with its references resolved.

        Raises:
            DefinitionError: it is none.
        """
        host = self.request.host_env.get("SHELL", "")
        found = shell.choose(own, self.dag.shell, self.request.default_shell, host)
        words = [resolve(word, scope, FieldMode.FIELD) for word in (found.program, *found.args)]
        chosen = shell.Chosen(words[0], tuple(words[1:]), found.is_explicit, found.packages)
        if chosen.family == "cmd":
            return replace(chosen, program=scope.env.find("COMSPEC", host=True) or chosen.program)
        return chosen

    # ── scopes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step_scope(self, position: int) -> Scope:
        """Return what a step may see: outputs of the steps that it depends on, nearest last (section 2.6)."""
        step, context = self.plan.steps[position], dict(self._scope.context)
        context["step.name"] = step.name
        if step.id:
            context["step.id"] = step.id
        logs = self.log_paths(step.name, step)
        context |= {"paths.step_stdout_file": str(logs.stdout), "paths.step_stderr_file": str(logs.stderr)}
        context |= people.pushback_context(self._state.nodes[position].published)
        # Looking at all ancestors of all steps would make a long chain quadratic, so only where it can matter: a step
        # without a dollar refers to nobody.
        heard = self._publishers
        if self._speakers != heard and ("$" in self.dag.working_dir or "$" in repr(step)):
            heard = self._speakers
        ancestors: tuple[int, ...] = ()
        if heard and self.plan.dependencies[position]:
            ancestors = tuple(before for before in self.plan.ancestors(position) if before in heard)
        return self._with_outputs(ancestors, context)

    def _with_outputs(
        self, positions: tuple[int, ...], context: Mapping[str, str], *, is_handler: bool = False
    ) -> Scope:
        scope = self._scope
        variables = dict(scope.env.layer(Layer.OUTPUTS))
        declared = dict(scope.declared)
        views: dict[str, Any] = {step_id: lambda known=step_id: scope.steps[known] for step_id in scope.steps}
        for position in positions:
            node, step = self._state.nodes[position], self.plan.steps[position]
            if node.status in (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED) or node.is_kept:
                for name, text in (node.published.get("outputVariables") or {}).items():
                    variables[name] = text.partition("=")[2]
                variables.update(node.published.get("approvalInputs") or {})
                if step.id and "stepOutputsValue" in node.published and not is_handler:
                    declared[step.id] = json.loads(node.published["stepOutputsValue"])
            if step.id:
                views[step.id] = lambda position=position: self._view(position)
        if variables:
            scope = scope.with_env(Layer.OUTPUTS, variables)
        return Scope(
            env=scope.env,
            consts=scope.consts,
            params=scope.params,
            params_json=scope.params_json,
            context=context,
            declared=declared,
            steps=StepViews(views),
            foreach=scope.foreach,
        )

    def _view(self, position: int) -> StepView:
        node, step = self._state.nodes[position], self.plan.steps[position]
        published = node.published
        outputs: dict[str, Any] = {}
        for key in ("outputsValue", "stepOutputsValue"):
            if key in published:
                outputs.update(json.loads(published[key]))
        value: Any = published.get("outputValue")
        if isinstance(step.output, Mapping) and value is not None:
            value = json.loads(value)
        logs = self.log_paths(step.name, step)
        for path in (logs.stdout, logs.stderr):
            path.touch(mode=0o600)  # whoever reads this reference may open the file, and a silent step made none
        return StepView(
            output=value,
            outputs=outputs or None,
            stdout=str(logs.stdout),
            stderr=str(logs.stderr),
            exit_code=node.exit_code,
        )

    # ── what differs ─────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def _check_preconditions(self) -> None:
        """Answer with `PreconditionsChecked`."""

    @abstractmethod
    def _start_handler(self, name: str, *, is_first: bool) -> None:
        """Start a handler if it is defined; `HandlerEnded` follows."""

    @abstractmethod
    def _moved(self) -> None:
        """Take notice that the state has changed."""

    @abstractmethod
    def managed_of(self, node: str) -> Mapping[str, str]:
        """Return the managed variables that only this node sees (workflow language, section 2.6)."""

    @abstractmethod
    def new_masker(self) -> Masker:
        """Return a masker of its own for a stream."""

    @abstractmethod
    def log_stem(self, node: str) -> str:
        """Return the file stem of a node's logs."""

    @abstractmethod
    def log_paths(self, node: str, step: Step) -> streams.LogPaths:
        """Return the log files of a node."""

    @abstractmethod
    def log_file(self, node: str, stream: LogStream, path: Path) -> LogFile:
        """Return the log file of a step's stream."""

    @abstractmethod
    def publish(self, node: str, values: Mapping[str, Any]) -> None:
        """Take something that a step publishes while it runs."""

    @abstractmethod
    def show(self, node: str, values: Mapping[str, Any]) -> None:
        """Take what a running node shows of its step."""

    @abstractmethod
    def log(self, level: str, message: str, **fields: str) -> None:
        """Write a line of the run log (protocol, section 5.1)."""
