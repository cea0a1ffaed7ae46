"""`foreach`: body steps for each item of a list, each item a small graph of its own (workflow language, section 3.15).

A body runs through the same machine and the same loop as the steps of the run, so that retries, preconditions,
`continue_on`, repetitions and timeouts of its steps are the ones of any step. Its steps are no nodes of the run: what a
reader sees of them is `statusDetails` of the `foreach` step, its output, and their logs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dag import formats
from secure_dagu.dag.model import ForEach, Step
from secure_dagu.dag.plan import Plan, plan_steps
from secure_dagu.dag.scope import Env, Layer, Scope
from secure_dagu.dag.values import FieldMode, first_unresolved, resolve, resolve_tree
from secure_dagu.dispatch.model import LogStream
from secure_dagu.errors import DefinitionError, SecureDaguError
from secure_dagu.run import machine
from secure_dagu.run.machine import Result
from secure_dagu.run.model import RunStatus
from secure_dagu.runner import streams
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.graph import Graph
from secure_dagu.runner.masking import Masker
from secure_dagu.runner.output import LogFile

MAX_ITEMS = 1000
FOLDER = "foreach"
"""Below the folder of logs: the streams of body steps (section 6.1)."""


async def execute(run: Graph, context: StepContext, node: str) -> Done:
    """Run the body for every item of the step called `node`; publish what became of each."""
    spec = context.step.foreach
    assert spec is not None, "this is what a step with a body comes here for"
    items = _items(spec, context.scope)
    keys = _keys(spec, items, context.scope)
    plan = plan_steps(spec.steps, handlers={}, name=context.step.name)
    (run.folders.logs / FOLDER).mkdir(mode=0o700, exist_ok=True)
    report = _Report(context, keys)
    bodies = iter(
        [
            Body(run, context, node, plan, report, item=Item(index=index, key=key, value=value))
            for index, (key, value) in enumerate(zip(keys, items, strict=True))
        ]
    )

    async def work_off() -> None:
        for body in bodies:  # shared: each of us takes the next one
            report.took(body.item.index, await body.perform(context.stop))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(spec.max_concurrent, len(items))):
            group.create_task(work_off())
    return report.done()


def _items(spec: ForEach, scope: Scope) -> Sequence[Any]:
    """Return the items.

    Raises:
        DefinitionError: a text that holds no JSON array; too many of them.
    """
    items = resolve_tree(spec.items, scope, FieldMode.FIELD)
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except (ValueError, RecursionError):
            items = None
    if not isinstance(items, list):
        raise DefinitionError(
            "foreach.items string must resolve to a JSON array", fix='let it be like ["a","b"], or write a list'
        )
    if len(items) > MAX_ITEMS:
        raise DefinitionError(f"foreach.items has {len(items)} items", why=f"at most {MAX_ITEMS} are allowed")
    return items


def _keys(spec: ForEach, items: Sequence[Any], scope: Scope) -> Sequence[str]:
    """Return the key of each item: the author's, else its index.

    Raises:
        DefinitionError: an empty key, or one that two items have.
    """
    keys: dict[str, int] = {}
    for index, item in enumerate(items):
        seen = replace(scope, foreach={"index": index, spec.as_name: item})
        key = resolve(spec.key, seen, FieldMode.FIELD) if spec.key else str(index)
        if not key.strip():
            raise DefinitionError("the foreach item key is empty", why=f"that of item {index}")
        if key in keys:
            raise DefinitionError(f"duplicate foreach item key {key!r}", why=f"items {keys[key]} and {index} have it")
        keys[key] = index
    return list(keys)


class Item(Struct, frozen=True, kw_only=True):
    """One item and how it is called."""

    index: int
    key: str
    value: Any


class Ended(Struct, frozen=True, kw_only=True):
    """How the body of one item ended. `outputs` None: it collected nothing."""

    status: RunStatus
    error: str = ""
    outputs: Mapping[str, str] | None = None


class Body(Graph):
    """The body steps of one item while they run."""

    def __init__(
        self, parent: Graph, context: StepContext, node: str, plan: Plan, report: _Report, *, item: Item
    ) -> None:
        spec = context.step.foreach
        assert spec is not None, "there are items"
        super().__init__(
            request=parent.request,
            definition=parent.definition,
            children=parent.children,
            work_dir=parent.work_dir,
            # No prefix of another body's: stopping the step of one item must not stop that of another.
            marker=f"{context.marker}{item.index}/",
            scope=replace(
                _outer_scope(context.scope),
                foreach={"index": item.index, "key": item.key, spec.as_name: item.value},
            ),
            state=machine.new_run(plan),
        )
        self.item = item
        self.masker = parent.masker
        self.secrets = parent.secrets
        self.container = parent.container
        self.limits = parent.limits
        self._parent = parent
        self._report = report
        self._collect = spec.collect
        self._path = f"{context.path}[{item.index}]"
        self._log_stem = f"{parent.log_stem(node)}_{item.index}"
        self._log_stems = streams.log_stems(step.name for step in plan.steps)
        self._managed = parent.managed_of(node)
        self.is_handler = "DAG_RUN_STATUS" in self._managed

    async def perform(self, stop: asyncio.Event) -> Ended:
        """Run to the end; a stop before the first step ends it at once."""
        if stop.is_set():
            return Ended(status=RunStatus.ABORTED)
        self._report.status(self.item.index, RunStatus.RUNNING)
        self._events.put_nowait(machine.Started())
        await self._drive(self._watch(stop))
        status = self._state.status
        if not status.is_success:
            return Ended(status=status if status is RunStatus.ABORTED else RunStatus.FAILED, error=self._error())
        try:
            return Ended(status=status, outputs=self._collected())
        except SecureDaguError as error:
            return Ended(status=RunStatus.FAILED, error=self.masker.text(str(error)))

    def _error(self) -> str:
        if self._state.status is RunStatus.WAITING:
            return "a step waits for a person, which a foreach body cannot do"
        return self._state.error or f"the body {self._state.status.word}"

    def _collected(self) -> Mapping[str, str] | None:
        """Return what `collect` picks of a body that succeeded.

        Raises:
            DefinitionError: a strict reference has no value.
        """
        if not self._collect:
            return None
        everything = tuple(range(len(self.plan.steps)))
        scope = self._with_outputs(everything, self._scope.context, is_handler=self.is_handler)
        for name, text in self._collect.items():
            if token := first_unresolved(text, scope, FieldMode.FIELD):
                raise DefinitionError(f"foreach.collect.{name}: {token} has no value")
        return {name: resolve(text, scope, FieldMode.FIELD) for name, text in self._collect.items()}

    # ── as the loop and the steps need it ────────────────────────────────────────────────────────────────────────────

    async def _check_preconditions(self) -> None:
        self._events.put_nowait(machine.PreconditionsChecked(met=True))

    def _start_handler(self, name: str, *, is_first: bool) -> None:
        self._events.put_nowait(machine.HandlerEnded(name, None))

    def _moved(self) -> None:
        """Tell nobody: what a reader sees of a body is its beginning and its end."""

    def managed_of(self, node: str) -> Mapping[str, str]:
        return self._managed

    def new_masker(self) -> Masker:
        return self._parent.new_masker()

    def path_of(self, node: str) -> str:
        return f"{self._path}.{node}"

    def log_stem(self, node: str) -> str:
        return f"{self._log_stem}_{self._log_stems[node]}"

    def log_paths(self, node: str, step: Step) -> streams.LogPaths:
        return streams.log_paths(self.folders, self.log_stem(node), self.dag, step, below=FOLDER)

    def log_file(self, node: str, stream: LogStream, path: Path) -> LogFile:
        return self._parent.log_file(f"{FOLDER}/{self.log_stem(node)}", stream, path)

    def publish(self, node: str, values: Mapping[str, Any]) -> None:
        if "children" in values:
            self._report.children(self.path_of(node), values["children"])

    def show(self, node: str, values: Mapping[str, Any]) -> None:
        """Show nothing: a body step has no node."""

    def log(self, level: str, message: str, **fields: str) -> None:
        self._parent.log(level, message, **{**fields, "item": str(self.item.index)})


def _outer_scope(scope: Scope) -> Scope:
    """Return what the steps of a body inherit: what the `foreach` step sees, with its own environment as outermost.

    A body step's environment replaces the layer in which that of the `foreach` step stands.
    """
    outer = {**scope.env.layer(Layer.OUTPUTS), **scope.env.layer(Layer.STEP_ENV)}
    env = Env(tuple(entry for entry in scope.env.layers if entry[0] < Layer.STEP_MANAGED), scope.env.ambient)
    own = ("step.", "paths.step_")
    context = {path: value for path, value in scope.context.items() if not path.startswith(own)}
    return replace(scope, env=env.with_layer(Layer.OUTPUTS, outer), context=context)


class _Report:
    """What becomes of the items: told on the way as `statusDetails`, summed up at the end."""

    def __init__(self, context: StepContext, keys: Sequence[str]) -> None:
        self._context = context
        self._keys = keys
        self._details = [_detail(key, RunStatus.NOT_STARTED) for key in keys]
        self._ended = [Ended(status=RunStatus.ABORTED)] * len(keys)
        self._children: dict[str, Sequence[Any]] = {}
        self._tell()

    def status(self, index: int, status: RunStatus) -> None:
        """Take notice of an item's status."""
        self._details[index] = _detail(self._keys[index], status)
        self._tell()

    def took(self, index: int, ended: Ended) -> None:
        """Take notice of an item's end."""
        self._ended[index] = ended
        self.status(index, ended.status)

    def children(self, path: str, children: Sequence[Any]) -> None:
        """Take notice of the sub-DAG runs of one body step; the node of the `foreach` step lists all of them."""
        self._children[path] = children
        self._context.changed({"children": [child for known in self._children.values() for child in known]})

    def _tell(self) -> None:
        self._context.changed({"statusDetails": list(self._details)})

    def done(self) -> Done:
        """Print the summary; return what the step amounts to."""
        kept = {"statusDetails": list(self._details)}
        if self._context.stop.is_set():
            return Done(result=Result.ABORTED, kept=kept)
        self._context.stdout(formats.compact_json(self._summary()).encode() + b"\n")
        if not all(ended.status.is_success for ended in self._ended):
            error = "one or more foreach item bodies failed"
            return Done(result=Result.FAILED, exit_code=1, error=error, kept=kept)
        if any(ended.status is RunStatus.PARTIALLY_SUCCEEDED for ended in self._ended):
            return Done(result=Result.PARTIAL, exit_code=0, kept=kept)
        return replace(SUCCESS, kept=kept)

    def _summary(self) -> Mapping[str, Any]:
        succeeded = sum(ended.status.is_success for ended in self._ended)
        total = len(self._keys)
        return {
            "summary": {"total": total, "succeeded": succeeded, "failed": total - succeeded},
            "items": [
                {
                    "index": index,
                    "key": self._keys[index],
                    "status": ended.status.word,
                    **({} if ended.outputs is None else {"outputs": ended.outputs}),
                    **({"error": ended.error} if ended.error else {}),
                }
                for index, ended in enumerate(self._ended)
            ],
            "outputs": [ended.outputs for ended in self._ended if ended.outputs is not None],
        }


def _detail(key: str, status: RunStatus) -> Mapping[str, str]:
    return {"label": key, "status": status.word}
