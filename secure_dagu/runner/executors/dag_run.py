"""`action: dag.run`: a workflow as a step. Its runs are runs of their own, dispatched over the wire.

One call, or one for each item of `parallel`; identical ones share a run. A child's id is derived from its parent, step,
target and parameters, so that a retried parent finds its children again (protocol, section 2.2).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secure_dagu.dag import formats
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag, Parallel
from secure_dagu.dag.params import split_words
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.errors import DefinitionError, NotFound, SecureDaguError
from secure_dagu.run.machine import Result
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.runner.api import ChildRequest, ChildResult
from secure_dagu.runner.context import Done, StepContext

MAX_ITEMS = 1000
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DOCUMENT = re.compile(r"(?m)^---[ \t]*(?:#.*)?$|^---(?=[ \t])")
_HAS_CONTENT = re.compile(r"(?m)^[ \t]*(?!\.\.\.|#|%)[^\s#]")


@dataclass(frozen=True, slots=True)
class Call:
    """One child to run."""

    dag: str
    params: str
    item: str = ""


async def execute(context: StepContext) -> Done:
    """Run the children and publish what they published."""
    step = context.step
    calls = _calls(context)
    found: dict[str, tuple[str, Dag]] = {}
    for name in dict.fromkeys(call.dag for call in calls):
        found[name] = await _find(context, name)
    requests = [_request(context, call, *found[call.dag]) for call in dict.fromkeys(calls)]
    context.changed({"children": [_child_entry(request) for request in requests]})
    limit = asyncio.Semaphore(step.parallel.max_concurrent if step.parallel else 1)
    results: list[ChildResult | None] = [None] * len(requests)
    errors: list[str] = []

    async def one(number: int, request: ChildRequest) -> None:
        async with limit:
            if context.stop.is_set():
                return
            try:
                results[number] = await context.children.run(request)
            except SecureDaguError as error:  # this child's; the others go on
                errors.append(str(error))

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(one(n, request), name=f"child {request.run_id}") for n, request in enumerate(requests)
        ]
        watch = group.create_task(_cancel_when_stopped(context.stop, running), name="stop children")
        await asyncio.wait(running)
        watch.cancel()
    return _done(context, requests, results, errors)


async def _cancel_when_stopped(stop: asyncio.Event, running: Sequence[asyncio.Task[None]]) -> None:
    await stop.wait()
    for task in running:
        task.cancel()


def _done(
    context: StepContext, requests: Sequence[ChildRequest], results: Sequence[ChildResult | None], errors: list[str]
) -> Done:
    if context.stop.is_set():
        return Done(result=Result.ABORTED)
    entries = [_entry(request, result) for request, result in zip(requests, results, strict=True) if result is not None]
    failed = [
        f"{request.dag} {request.run_id} {result.status.word}"
        for request, result in zip(requests, results, strict=True)
        if result is not None and not result.status.is_success
    ]
    errors = [*errors, *failed]
    if context.step.parallel is None:
        outputs = entries[0]["outputs"] if entries else {}
        text = json.dumps(entries[0], indent=2, ensure_ascii=False) if entries else ""
    else:
        good = [entry for entry in entries if entry["status"] in ("succeeded", "partially_succeeded")]
        summary = {"total": len(requests), "succeeded": len(good), "failed": len(requests) - len(good)}
        outputs = {"summary": summary, "results": entries, "outputs": [entry["outputs"] for entry in good]}
        text = json.dumps(outputs, indent=2, ensure_ascii=False)
    if text:
        context.stdout(text.encode() + b"\n")
    if errors:
        what = "; ".join(errors[:10])
        if context.step.parallel is not None:
            what = f"parallel execution failed with {len(errors)} errors: {what}"
        return Done(result=Result.FAILED, exit_code=1, error=what, outputs=outputs)
    partial = any(result.status is RunStatus.PARTIALLY_SUCCEEDED for result in results if result is not None)
    return Done(result=Result.PARTIAL if partial else Result.SUCCEEDED, exit_code=0, outputs=outputs)


def _calls(context: StepContext) -> list[Call]:
    inputs, parallel = context.step.inputs, context.step.parallel
    if parallel is None:
        return [Call(_target(inputs, context.scope), _params(inputs.get("params"), context.scope))]
    items = _items(parallel, context.scope)
    if not items:
        raise DefinitionError("parallel has no items")
    if len(items) > MAX_ITEMS:
        raise DefinitionError(f"parallel has {len(items)} items", why=f"the limit is {MAX_ITEMS}")
    calls = []
    for item in items:
        text = item if isinstance(item, str) else formats.compact_json(item)
        scope = context.scope.with_env(Layer.ATTEMPT, {**context.scope.env.layer(Layer.ATTEMPT), "ITEM": text})
        params = _params(inputs["params"], scope) if inputs.get("params") is not None else text
        calls.append(Call(_target(inputs, scope), params, text))
    return calls


def _target(inputs: Mapping[str, Any], scope: Scope) -> str:
    return resolve(formats.as_text(inputs["dag"]), scope, FieldMode.FIELD)


def _params(value: Any, scope: Scope) -> str:
    """Return a child's parameter text: words as authored, anything structured as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return resolve(value, scope, FieldMode.FIELD)
    resolved = resolve_tree(value, scope, FieldMode.FIELD)
    if isinstance(resolved, list):
        if not all(isinstance(item, Mapping) for item in resolved):
            return " ".join(formats.as_text(item) for item in resolved)
        resolved = {key: item for entry in resolved for key, item in entry.items()}
    return formats.compact_json({key: formats.as_text(item) for key, item in resolved.items()})


def _items(parallel: Parallel, scope: Scope) -> list[Any]:
    """Return the items of a fan-out (workflow language, section 3.14)."""
    if not parallel.source:
        return [
            resolve_tree(item, scope, FieldMode.FIELD)
            if isinstance(item, Mapping)
            else resolve(formats.as_text(item), scope, FieldMode.FIELD)
            for item in parallel.items
        ]
    text = resolve(parallel.source, scope, FieldMode.FIELD).strip()
    data = formats.json_container(text)
    if isinstance(data, list):
        return [item if isinstance(item, str | dict) else formats.as_text(item) for item in data]
    if isinstance(data, dict):
        return [data]
    return [word for word in split_words(re.sub(r"[\n,;|\t]", " ", text)) if word]


def _request(context: StepContext, call: Call, text: str, child: Dag) -> ChildRequest:
    parent, step = context.request.task.run, context.step
    selector = step.worker_selector if step.worker_selector is not None else child.worker_selector
    return ChildRequest(
        dag=child.name,
        definition=text,
        run_id=child_id(parent=parent, step=step.name, dag=child.name, params=call.params),
        parent=parent,
        root=context.request.task.root,
        params=call.params,
        worker_selector={
            resolve(key, context.scope, FieldMode.FIELD): resolve(value, context.scope, FieldMode.FIELD)
            for key, value in (selector or {}).items()
        },
        parallel_item=call.item,
        base_config=context.request.task.base_config,
        bundle=context.request.task.bundle if child.name in context.definition.locals else None,
    )


async def _find(context: StepContext, name: str) -> tuple[str, Dag]:
    """Return a child's definition: a local document of the same file, else one that the coordinator has."""
    local = context.definition.locals.get(name)
    if local is not None:
        return _local_text(context.definition.text, name, context.definition.locals), local
    text = await context.children.dag_text(name)
    if text is None:
        raise NotFound(f"failed to find DAG {name!r}", why="neither this file nor the coordinator has it")
    return text, load_definition(text, name=name, base_config=context.request.task.base_config, is_child=True).main


def _local_text(text: str, name: str, others: Mapping[str, Dag]) -> str:
    """Return a stream whose first document is `name`, followed by the other local DAGs that it may call."""
    parts = [part for part in _DOCUMENT.split(text) if _HAS_CONTENT.search(part)]
    # Local DAGs stand in the order of their documents; the first document is the one that calls them.
    if len(parts) != len(others) + 1:
        raise DefinitionError(
            f"the document of the local DAG {name!r} cannot be told from the others",
            fix="separate documents by lines of `---` alone",
        )
    named = dict(zip(others, parts[1:], strict=True))
    return "\n---\n".join([named.pop(name), *named.values()])


def child_id(*, parent: DagRunRef, step: str, dag: str, params: str) -> str:
    """Return the deterministic run id of a child: base58 of SHA-256 (protocol, section 2.2)."""
    digest = hashlib.sha256(f"{parent.run_id}:{step}:{dag}\0{params}".encode()).digest()
    value, digits = int.from_bytes(digest, "big"), ""
    while value:
        value, rest = divmod(value, 58)
        digits = _BASE58[rest] + digits
    return "1" * (len(digest) - len(digest.lstrip(b"\0"))) + digits


def _child_entry(request: ChildRequest) -> dict[str, str]:
    entry = {"dagRunId": request.run_id, "params": request.params, "dagName": request.dag}
    if request.parallel_item:
        entry["parallelItem"] = request.parallel_item
    return {key: value for key, value in entry.items() if value}


def _entry(request: ChildRequest, result: ChildResult) -> dict[str, Any]:
    """Return what a child amounts to, as the step's output shows it."""
    variables, values = child_outputs(result.document)
    entry: dict[str, Any] = {
        "name": request.dag,
        "dagRunId": request.run_id,
        "params": request.params,
        "outputs": {**variables, **values},
    }
    if values:
        entry["outputValues"] = values
    entry["status"] = result.status.word
    return entry


def child_outputs(document: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return a run's outputs: string-form by name, and structured ones merged in step order."""
    variables: dict[str, str] = {}
    values: dict[str, Any] = {}
    # Another worker wrote it: whatever is not of the expected form is passed over.
    run = formats.json_container(document)
    nodes = run.get("nodes") if isinstance(run, dict) else None
    for node in nodes if isinstance(nodes, list) else ():
        if not isinstance(node, dict):
            continue
        published = node.get("outputVariables")
        for name, text in published.items() if isinstance(published, dict) else ():
            variables[name] = str(text).partition("=")[2]
        for key in ("outputsValue", "stepOutputsValue"):
            text = node.get(key)
            found = formats.json_container(text) if isinstance(text, str) else None
            if isinstance(found, dict):
                values.update(found)
    return variables, values
