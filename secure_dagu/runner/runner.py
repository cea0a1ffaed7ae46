"""Drive one attempt: what `run.machine` commands is done here, with real time and real processes.

`execute` is the whole of it: set up (`runner.setup`), then one loop that takes events and obeys commands, in one task
group, so that nothing that was started outlives the run.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_never

from secure_dagu.dag.model import Dag, Definition, Shell, Step
from secure_dagu.dag.plan import Plan
from secure_dagu.dag.scope import Layer, Scope, StepView, StepViews
from secure_dagu.dispatch.model import LogStream
from secure_dagu.errors import SecureDaguError
from secure_dagu.run import machine
from secure_dagu.run.machine import HANDLER_NODES, RunState
from secure_dagu.run.model import StepStatus
from secure_dagu.run.snapshot import Snapshots
from secure_dagu.runner import process, setup, shell, steps
from secure_dagu.runner.api import ChildRuns, RunObserver, RunRequest
from secure_dagu.runner.output import LogFile, Masker

PUBLISH_EVERY_S = 0.02
"""Documents are made no more often than this; the observer sends far fewer."""


async def execute(
    request: RunRequest, observer: RunObserver, children: ChildRuns, *, stop: asyncio.Event
) -> RunState | None:
    """Execute one attempt to its end; None when its definition does not load, which is reported all the same.

    When `stop` is set, running steps are stopped, the run ends as aborted, and this returns normally. Cancelling this
    call kills every process. The observer has got the final document when this returns.
    """
    try:
        prepared = await setup.prepare(request)
    except SecureDaguError as error:
        observer.status_changed(setup.not_loaded(request, str(error)), final=True)
        return None
    run = Execution(request, observer, children, prepared)
    return await run.perform(stop)


class Execution:
    """One attempt while it runs."""

    def __init__(
        self, request: RunRequest, observer: RunObserver, children: ChildRuns, prepared: setup.Prepared
    ) -> None:
        self.request = request
        self.folders = request.folders
        self.children = children
        self.definition: Definition = prepared.definition
        self.dag: Dag = prepared.definition.main
        self.plan: Plan = prepared.plan
        self.work_dir: Path = prepared.work_dir
        self.log_names: Mapping[str, str] = prepared.log_names
        # A key is a hash of names and a short id: the token keeps two clusters' runs on one host apart for certain.
        self.marker = f"{request.attempt_key}/{secrets.token_hex(8)}/"
        self.masker = Masker(())
        self._observer = observer
        self._scope = prepared.scope
        self._secrets: tuple[str, ...] = ()
        self._snapshots: Snapshots = prepared.snapshots
        self._extra: dict[str, Any] = dict(prepared.extra)
        self._events: asyncio.Queue[machine.Event] = asyncio.Queue()
        self._state = machine.new_run(
            prepared.plan, kept=prepared.kept, max_active=self.dag.max_active_steps, delay_s=self.dag.delay_s
        )
        self._halted = asyncio.Event()
        self._halted_late = asyncio.Event()
        self._log = LogFile(
            self.folders.logs / "scheduler.log", self.masker,
            lambda path, size: observer.log_written("scheduler", LogStream.SCHEDULER, path, size),
        )  # fmt: skip
        self._publish_every_s = PUBLISH_EVERY_S
        self._published_at = 0.0
        self._is_dirty = False
        self._publishers = frozenset(p for p, step in enumerate(self.plan.steps) if isinstance(step.output, str))
        """Steps whose output is a variable of every step after them."""
        self._speakers = self._publishers.union(p for p, step in enumerate(self.plan.steps) if step.id)
        """Steps that others can read something of, if only by their id."""
        self._group: asyncio.TaskGroup

    async def perform(self, stop: asyncio.Event) -> RunState:
        """Run to the end."""
        try:
            await self._run_through(stop)
            # The end of a run is the end of its processes: what its steps left in the background goes with it.
            await process.stop_marked(self.marker, process.Stopping(grace_s=self.dag.max_clean_up_s))
            self.log("INFO", "DAG run finished", status=self._state.status.word)
        except BaseException:  # cancelled, or our own bug: no time to ask anybody
            process.kill_marked(self.marker)
            raise
        finally:
            self._log.close()
        self._observer.status_changed(self._snapshots.document(self._state, extra=self._extra), final=True)
        return self._state

    async def _run_through(self, stop: asyncio.Event) -> None:
        """Take events until the machine says that it is the end."""
        self.log("INFO", "DAG run started")
        async with asyncio.TaskGroup() as group:
            self._group = group
            watchers = [group.create_task(self._watch(stop), name="stop")]
            setup_task = group.create_task(self._set_up(), name="set up")
            if self.dag.timeout_s > 0:
                watchers.append(group.create_task(self._time_out(), name="DAG timeout"))
            watchers.append(group.create_task(self._publish_late(), name="publish"))
            is_over = False
            while not is_over:
                event = await self._events.get()
                is_over = self._advance(event)
            setup_task.cancel()
            for watcher in watchers:
                watcher.cancel()

    def _advance(self, event: machine.Event) -> bool:
        """Take one event; do what follows. True at the end."""
        transition = machine.advance(self._state, event, datetime.now(UTC))
        self._state = transition.state
        is_over = False
        for command in transition.commands:
            is_over = self._obey(command) or is_over
        if not is_over:
            self._publish()
        return is_over

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

    # ── the parts ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _set_up(self) -> None:
        try:
            self._scope, self._secrets = await setup.environment(self, self._scope)
        except SecureDaguError as error:
            self._events.put_nowait(machine.SetupFailed(str(error)))
            return
        except OSError as error:
            self._events.put_nowait(machine.SetupFailed(f"the run could not be set up: {error.strerror}"))
            return
        self.masker = self.new_masker()
        self._snapshots.mask = self.masker.text
        self._events.put_nowait(machine.Started())

    async def _check_preconditions(self) -> None:
        if not self.dag.preconditions:
            self._events.put_nowait(machine.PreconditionsChecked(met=True))
            return
        try:
            chosen = shell.choose(Shell(), self.dag.shell, self.request.default_shell, self._host_shell())
            unmet = await steps.check_all(self, self.dag.preconditions, self._scope, chosen=chosen, cwd=self.work_dir)
        except SecureDaguError as error:
            text = self.masker.text(str(error))
            self._events.put_nowait(machine.PreconditionsChecked(met=False, error=text))
            return
        if unmet:
            self.log("INFO", "DAG preconditions not met")
        self._events.put_nowait(machine.PreconditionsChecked(met=not unmet))

    async def _step(self, position: int, *, is_first: bool) -> None:
        step = self.plan.steps[position]
        self.log("INFO", "Step started", step=step.name)
        outcome = await steps.execute_step(
            self, step, node=step.name, scope=self._step_scope(position), is_first=is_first
        )
        self.log("INFO" if not outcome.error else "ERROR", "Step finished", step=step.name, err=outcome.error)
        self._events.put_nowait(machine.StepEnded(position, outcome))

    def _start_handler(self, name: str, *, is_first: bool) -> None:
        step = self.plan.handlers.get(name)
        if step is None:
            self._events.put_nowait(machine.HandlerEnded(name, None))
            return
        if is_first:
            self._halted_late = asyncio.Event()
            self._state = machine.handler_started(self._state, name, datetime.now(UTC))
        self._start(self._handler(name, step, is_first=is_first))

    async def _handler(self, name: str, step: Step, *, is_first: bool) -> None:
        node = HANDLER_NODES[name]
        self.log("INFO", "Step started", step=node)
        outcome = await steps.execute_step(
            self, step, node=node, scope=self._scope_of_handler(), is_first=is_first, is_handler=True
        )
        self.log("INFO" if not outcome.error else "ERROR", "Step finished", step=node, err=outcome.error)
        self._events.put_nowait(machine.HandlerEnded(name, outcome))

    async def _pause(self, seconds: float, event: machine.Event) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.halt().wait()
        except TimeoutError:
            pass
        self._events.put_nowait(event)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.log("INFO", "Dag-run stop requested")
        self._events.put_nowait(machine.StopRequested())

    async def _time_out(self) -> None:
        await asyncio.sleep(self.dag.timeout_s)
        self._events.put_nowait(machine.TimedOut())

    # ── what steps ask for ───────────────────────────────────────────────────────────────────────────────────────────

    def halt(self) -> asyncio.Event:
        """Return what stops whatever starts now.

        The handlers after the steps run because of a stop, so each has an event of its own for one that comes later.
        """
        is_late = self._state.phase in (machine.Phase.OUTCOME, machine.Phase.EXIT)
        return self._halted_late if is_late else self._halted

    def shell_of(self, step: Step, scope: Scope) -> shell.Chosen:
        """Return the step's shell."""
        return shell.choose(step.shell, self.dag.shell, self.request.default_shell, self._host_shell())

    def _host_shell(self) -> str:
        return self.request.host_env.get("SHELL", "")

    def new_masker(self) -> Masker:
        """Return a masker of its own for a stream."""
        return Masker(self._secrets)

    def log_file(self, node: str, stream: LogStream, path: Path) -> LogFile:
        """Return the log file of a step's stream."""
        return LogFile(
            path, self.new_masker(), lambda where, size: self._observer.log_written(node, stream, where, size)
        )

    def status_word(self) -> str:
        """Return `DAG_RUN_STATUS` as handlers see it."""
        return self._state.status.word

    def note_params(self, listed: tuple[str, ...]) -> None:
        """Put the resolved parameters into the documents."""
        if listed:
            self._extra |= {"params": " ".join(listed), "paramsList": list(listed)}

    def publish(self, node: str, values: Mapping[str, Any]) -> None:
        """Take something that a step publishes while it runs."""
        position = self.plan.index.get(node)
        if position is not None:
            self._events.put_nowait(machine.Changed(position, values))

    def log(self, level: str, message: str, **fields: str) -> None:
        """Write a line of the run log (protocol, section 5.1)."""
        line: dict[str, str] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "msg": message,
            "dag": self.dag.name,
            "run-id": self.request.task.run.run_id,
            "worker-id": self.request.worker,
            "attempt-id": self.request.attempt_id,
            **{key: value for key, value in fields.items() if value},
        }
        self._log.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    # ── scopes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step_scope(self, position: int) -> Scope:
        """Return what a step may see: outputs of the steps that it depends on, nearest last (section 2.6)."""
        step, context = self.plan.steps[position], dict(self._scope.context)
        context["step.name"] = step.name
        if step.id:
            context["step.id"] = step.id
        # Looking at all ancestors of all steps would make a long chain quadratic, so only where it can matter: a step
        # without a dollar refers to nobody.
        heard = self._publishers
        if self._speakers != heard and ("$" in self.dag.working_dir or "$" in repr(step)):
            heard = self._speakers
        ancestors: tuple[int, ...] = ()
        if heard and self.plan.dependencies[position]:
            ancestors = tuple(before for before in self.plan.ancestors(position) if before in heard)
        return self._with_outputs(ancestors, context)

    def _scope_of_handler(self) -> Scope:
        context = {**self._scope.context, "run.status": self.status_word()}
        return self._with_outputs(tuple(sorted(self._speakers)), context, is_handler=True)

    def _with_outputs(
        self, positions: tuple[int, ...], context: Mapping[str, str], *, is_handler: bool = False
    ) -> Scope:
        variables: dict[str, str] = {}
        declared: dict[str, Mapping[str, str]] = {}
        views: dict[str, Any] = {}
        for position in positions:
            node, step = self._state.nodes[position], self.plan.steps[position]
            if node.status in (StepStatus.SUCCEEDED, StepStatus.PARTIALLY_SUCCEEDED) or node.is_kept:
                for name, text in (node.published.get("outputVariables") or {}).items():
                    variables[name] = text.partition("=")[2]
                if step.id and "stepOutputsValue" in node.published and not is_handler:
                    declared[step.id] = json.loads(node.published["stepOutputsValue"])
            if step.id:
                views[step.id] = lambda position=position: self._view(position)
        scope = self._scope
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
        base = self.folders.logs / self.log_names[step.name]
        stdout, stderr = base.with_name(f"{base.name}.stdout.log"), base.with_name(f"{base.name}.stderr.log")
        for path in (stdout, stderr):
            path.touch(mode=0o600)  # whoever reads this reference may open the file, and a silent step made none
        return StepView(
            output=value,
            outputs=outputs or None,
            stdout=str(stdout),
            stderr=str(stderr),
            exit_code=node.exit_code,
        )

    # ── documents ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _publish(self) -> None:
        """Hand over a document now, or a little later when one has just been made."""
        now = time.monotonic()
        if now - self._published_at < self._publish_every_s:
            self._is_dirty = True
            return
        self._published_at, self._is_dirty = now, False
        if self._state.phase is not machine.Phase.NEW:
            self._observer.status_changed(self._snapshots.document(self._state, extra=self._extra))
            # A document of thousands of steps is dear: never more than a twentieth of our time goes into them.
            self._publish_every_s = max(PUBLISH_EVERY_S, 20 * (time.monotonic() - now))

    async def _publish_late(self) -> None:
        while True:
            await asyncio.sleep(self._publish_every_s * 2)
            if self._is_dirty:
                self._published_at = 0.0
                self._publish()
