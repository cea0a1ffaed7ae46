"""Drive one attempt: what `run.machine` commands is done here, with real time and real processes.

`execute` is the whole of it: set up (`runner.setup`), then the loop of `runner.graph`, to the end of the run.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.dag.model import DagType, Resources, Shell, Step
from secure_dagu.dag.scope import Scope
from secure_dagu.dispatch.model import LogStream
from secure_dagu.dispatch.retrying import is_left
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.run import machine, people, resume
from secure_dagu.run.machine import HANDLER_NODES, RunState
from secure_dagu.run.model import StepStatus
from secure_dagu.run.snapshot import Snapshots
from secure_dagu.runner import conditions, environment, limits, process, setup, steps, streams
from secure_dagu.runner.api import ChildRuns, RunObserver, RunRequest
from secure_dagu.runner.files import make_working_dir
from secure_dagu.runner.graph import Graph
from secure_dagu.runner.masking import Masker
from secure_dagu.runner.output import LogFile

if TYPE_CHECKING:
    from secure_dagu.runner.containers import RunContainer

if TYPE_CHECKING:
    from secure_dagu.runner.build import Gate

_HANDLER_NAMES = {node: name for name, node in HANDLER_NODES.items()}
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


class Execution(Graph):
    """One attempt while it runs."""

    def __init__(
        self, request: RunRequest, observer: RunObserver, children: ChildRuns, prepared: setup.Prepared
    ) -> None:
        # A key is a hash of names and a short id: the token keeps two clusters' runs on one host apart for certain.
        marker = f"{request.attempt_key}/{secrets.token_hex(8)}/"
        dag = prepared.definition.main
        super().__init__(
            request=request,
            definition=prepared.definition,
            children=children,
            work_dir=prepared.work_dir,
            marker=marker,
            scope=prepared.scope,
            state=machine.new_run(
                prepared.plan,
                kept=prepared.kept,
                max_active=dag.max_active_steps,
                delay_s=dag.delay_s,
                has_external_retry=request.task.external_step_retry,
                is_retried=request.task.is_root and is_left(resume.document(request.task.previous_status), dag.retry),
            ),
        )
        self._build_paths = prepared.build_paths
        self._log_names: Mapping[str, str] = prepared.log_names
        self._logs: Mapping[str, streams.LogPaths] = prepared.logs
        self._identity = {
            "dag": dag.name,
            "run-id": request.task.run.run_id,
            "worker-id": request.worker,
            "attempt-id": request.attempt_id,
        }
        self.masker = Masker(())
        if dag.container is not None:
            from secure_dagu.runner.containers import RunContainer  # nearly no run has one

            self.container = RunContainer()
        self._observer = observer
        self._snapshots: Snapshots = prepared.snapshots
        self._extra: dict[str, Any] = dict(prepared.extra)
        self._halted_late = asyncio.Event()
        self._log = LogFile(
            streams.run_log(self.folders), self.masker,
            lambda path, size: observer.log_written("scheduler", LogStream.SCHEDULER, path, size),
        )  # fmt: skip
        self._publish_every_s = PUBLISH_EVERY_S
        self._published_at = 0.0
        self._is_dirty = False

    async def perform(self, stop: asyncio.Event) -> RunState:
        """Run to the end."""
        try:
            self.log("INFO", "DAG run started")
            if self.dag.resources != Resources():
                self._limit()
            meanwhile = [self._watch(stop), self._set_up(), self._publish_late()]
            if self.dag.timeout_s > 0:
                meanwhile.append(self._time_out())
            await self._drive(*meanwhile)
            # The end of a run is the end of its processes: what its steps left in the background goes with it.
            await process.stop_marked(self.marker, process.Stopping(grace_s=self.dag.max_clean_up_s))
            if any(self.dag.mail_on.values()):
                from secure_dagu.runner import mails  # nearly no run sends any

                await mails.run_ended(self, self._state, self._scope)
            self.log("INFO", "DAG run finished", status=self._state.status.word)
        except BaseException:  # cancelled, or our own bug: no time to ask anybody
            process.kill_marked(self.marker)
            raise
        finally:
            if self.container is not None:
                await self._close_container(self.container)
            if self.limits is not None:
                limits.remove(self.limits)
            self._log.close()
        self._observer.status_changed(self._snapshots.document(self._state, extra=self._extra), final=True)
        return self._state

    def _limit(self) -> None:
        try:
            self.limits = limits.make(self.dag.resources, secrets.token_hex(8))
        except Unavailable as error:
            self.log("WARN", "Resource limits not enforced", err=error.why)

    async def _close_container(self, container: RunContainer) -> None:
        try:
            await container.close()
        except (SecureDaguError, TimeoutError) as error:
            self.log("WARN", "Container not removed", err=str(error) or "the daemon took too long")

    # ── the parts ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _set_up(self) -> None:
        try:
            given = setup.caller_params(self.request)
            self._scope, self.secrets = await environment.evaluate(self, self._scope, given)
        except SecureDaguError as error:
            self._events.put_nowait(machine.SetupFailed(str(error)))
            return
        except OSError as error:
            self._events.put_nowait(machine.SetupFailed(f"the run could not be set up: {error.strerror}"))
            return
        self.masker = Masker(self.secrets)
        self._snapshots.mask = self.masker.text
        self._events.put_nowait(machine.Started())

    async def _check_preconditions(self) -> None:
        if not self.dag.preconditions:
            self._events.put_nowait(machine.PreconditionsChecked(met=True))
            return
        try:
            chosen, cwd = self.shell_of(Shell(), self._scope), environment.root_dir(self, self._scope)
            make_working_dir(cwd)
            results = await conditions.check_all(self, self.dag.preconditions, self._scope, chosen=chosen, cwd=cwd)
        except SecureDaguError as error:
            text = self.masker.text(str(error))
            self._events.put_nowait(machine.PreconditionsChecked(met=False, error=text))
            return
        except OSError as error:
            text = f"the DAG's preconditions cannot be checked: {error.strerror}"
            self._events.put_nowait(machine.PreconditionsChecked(met=False, error=text))
            return
        told = [self.masker.text(result) for result in results]
        self._extra["preconditions"] = conditions.shown(self.dag.preconditions, told)
        unmet = any(results)
        if unmet:
            self.log("INFO", "DAG preconditions not met")
        self._events.put_nowait(machine.PreconditionsChecked(met=not unmet))

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
            self, step, node=node, scope=self._scope_of_handler(node), is_first=is_first, is_handler=True
        )
        self._log_end(node, outcome)
        self._events.put_nowait(machine.HandlerEnded(name, outcome))

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
        return self._halted_late if is_late else super().halt()

    def new_masker(self) -> Masker:
        """Return a masker of its own for a stream."""
        return self.masker.anew()

    def gate(self, step: Step) -> Gate | None:
        """Return what a step of a build DAG passes through."""
        if self.dag.type is not DagType.BUILD:
            return None
        from secure_dagu.runner import build  # only for them

        return build.Gate(self, step, self._build_paths.get(step.name))

    def has_executed(self, names: Sequence[str]) -> bool:
        """Tell whether one of these steps of a build DAG was executed in this run and not reused."""
        nodes = [self._state.nodes[self.plan.index[name]] for name in names]
        return any(node.published.get("build", {}).get("decision") in ("execute", "always") for node in nodes)

    def log_stem(self, node: str) -> str:
        """Return the file stem of a node's logs."""
        return self._log_names[node]

    def log_paths(self, node: str, step: Step) -> streams.LogPaths:
        """Return the log files of a node."""
        return self._logs[node]

    def log_file(self, node: str, stream: LogStream, path: Path) -> LogFile:
        """Return the log file of a step's stream."""
        # A step may look at its own log, so on the author's host it is there from the start. On a worker nobody looks,
        # and two files for each step that prints nothing were a third of its cost.
        return LogFile(
            path,
            self.new_masker(),
            lambda where, size: self._observer.log_written(node, stream, where, size),
            is_made=bool(self.folders.log_suffix),
        )

    def managed_of(self, node: str) -> Mapping[str, str]:
        """Return the managed variables that only this node sees (section 2.6)."""
        position = self.plan.index.get(node)
        if position is not None:
            return people.pushback_variables(self._state.nodes[position].published)
        values = {"DAG_RUN_STATUS": self._state.status.word}
        if node == HANDLER_NODES["wait"]:
            found = zip(self.plan.steps, self._state.nodes, strict=True)
            waiting = (step.name for step, state in found if state.status is StepStatus.WAITING)
            values["DAG_WAITING_STEPS"] = ",".join(waiting)
        return values

    def note_params(self, listed: tuple[str, ...]) -> None:
        """Put the resolved parameters into the documents."""
        if listed:
            self._extra |= {"params": " ".join(listed), "paramsList": list(listed)}

    def publish(self, node: str, values: Mapping[str, Any]) -> None:
        """Take something that a step publishes while it runs."""
        position = self.plan.index.get(node)
        if position is not None:
            self._events.put_nowait(machine.Changed(position, values))

    def show(self, node: str, values: Mapping[str, Any]) -> None:
        """Take what a running node shows of its step."""
        key = _HANDLER_NAMES.get(node, node) if node not in self.plan.index else self.plan.index[node]
        self._events.put_nowait(machine.Shown(key, values))

    def log(self, level: str, message: str, **fields: str) -> None:
        """Write a line of the run log (protocol, section 5.1)."""
        told = {**self._identity, **{key: value for key, value in fields.items() if value}}
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "level": level, "msg": message, **told}
        self._log.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._observer.line_logged(level, message, told)

    # ── scopes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _scope_of_handler(self, node: str) -> Scope:
        context = {**self._scope.context, "run.status": self._state.status.word, "step.name": node}
        return self._with_outputs(tuple(sorted(self._speakers)), context, is_handler=True)

    # ── documents ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _moved(self) -> None:
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
                self._moved()
