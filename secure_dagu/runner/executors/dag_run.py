"""`action: dag.run` and `dag.enqueue`: a workflow as a step. Its runs are runs of their own.

One call, or one for each item of `parallel`; identical ones share a run. A child's id is derived from its parent, step,
target and parameters, so that a retried parent finds its children again (protocol, section 2.2).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.dag.load import load_definition, name_by_file
from secure_dagu.dag.model import Dag, Parallel
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.errors import DefinitionError, NotFound, SecureDaguError
from secure_dagu.run.machine import Result
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.run.outputs import is_call
from secure_dagu.runner.api import ChildRequest, ChildResult, Enqueued
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.files import schema_reader
from secure_dagu.runner.masking import raw

MAX_ITEMS = 1000
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ITEM = re.compile(r'(?:"[^"]*"|[^\s,;|])+')
"""A word of a fan-out's text: ends at white space, comma, semicolon or bar, except between double quotes."""
_INHERITED = (Layer.PROFILE, Layer.PARAMS, Layer.ROOT_ENV, Layer.DOTENV, Layer.SECRETS)
"""What a child in the same process sees of its parent, weakest first."""
_DOCUMENT = re.compile(r"(?m)^---[ \t]*(?:#.*)?$|^---(?=[ \t])")
_HAS_CONTENT = re.compile(r"(?m)^[ \t]*(?!\.\.\.|#|%)[^\s#]")


class Call(Struct, frozen=True):
    """One child to run."""

    dag: str
    params: str
    item: str = ""


async def execute(context: StepContext) -> Done:
    """Run the children and publish what they published."""
    requests = await _requests(context)
    results: list[ChildResult | None] = [None] * len(requests)

    async def one(number: int, request: ChildRequest) -> None:
        results[number] = await context.children.run(request)

    errors = await _for_each(context, requests, one)
    return _done(context, requests, results, errors)


async def enqueue(context: StepContext) -> Done:
    """Put the children into a queue; whoever takes them from there is not waited for."""
    requests = await _requests(context)
    queue = resolve(formats.as_text(context.step.inputs.get("queue") or ""), context.scope, FieldMode.FIELD)
    results: list[Enqueued | None] = [None] * len(requests)

    async def one(number: int, request: ChildRequest) -> None:
        results[number] = await context.children.enqueue(request, queue=queue)

    errors = await _for_each(context, requests, one)
    if context.stop.is_set():
        return Done(result=Result.ABORTED)
    runs = [
        _queued_entry(request, result, is_single=context.step.parallel is None)
        for request, result in zip(requests, results, strict=True)
        if result is not None
    ]
    if context.step.parallel is not None:
        _print(context, {"summary": {"total": len(requests), "queued": len(runs)}, "runs": runs})
    elif runs:
        _print(context, runs[0])
    return _failed(context, errors) if errors else SUCCESS


async def _requests(context: StepContext) -> list[ChildRequest]:
    """Return the children of a step, each once, and note them on its node."""
    found: dict[str, tuple[str, Dag]] = {}
    requests: dict[str, ChildRequest] = {}
    for call in _calls(context):
        if call.dag not in found:
            found[call.dag] = await _find(context, call.dag)
        request = _request(context, call, *found[call.dag])
        requests.setdefault(request.run_id, request)  # whatever its item, the same call is the same child
    context.changed({"children": [_child_entry(request) for request in requests.values()]})
    return list(requests.values())


async def _for_each(
    context: StepContext,
    requests: Sequence[ChildRequest],
    one: Callable[[int, ChildRequest], Coroutine[Any, Any, None]],
) -> list[str]:
    """Do something with every child, as many at a time as the step allows; return what went wrong."""
    limit = asyncio.Semaphore(context.step.parallel.max_concurrent if context.step.parallel else 1)
    errors: list[str] = []

    async def limited(number: int, request: ChildRequest) -> None:
        async with limit:
            if context.stop.is_set():
                return
            try:
                await one(number, request)
            except SecureDaguError as error:  # this child's; the others go on
                errors.append(str(error))

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(limited(n, request), name=f"child {request.run_id}") for n, request in enumerate(requests)
        ]
        watch = group.create_task(_cancel_when_stopped(context.stop, running), name="stop children")
        await asyncio.wait(running)
        watch.cancel()
    return errors


async def _cancel_when_stopped(stop: asyncio.Event, running: Sequence[asyncio.Task[None]]) -> None:
    await stop.wait()
    for task in running:
        task.cancel()


def _done(
    context: StepContext, requests: Sequence[ChildRequest], results: Sequence[ChildResult | None], errors: list[str]
) -> Done:
    if context.stop.is_set():
        return Done(result=Result.ABORTED)
    ended = [(request, result) for request, result in zip(requests, results, strict=True) if result is not None]
    entries = [_entry(request, result) for request, result in ended]
    outputs: Mapping[str, Any] = {}
    if context.step.parallel is not None:
        good = [entry for entry in entries if entry["status"] in ("succeeded", "partially_succeeded")]
        failed = len(requests) - len(good) - sum(entry["status"] == "waiting" for entry in entries)
        summary = {"total": len(requests), "succeeded": len(good), "failed": failed}
        outputs = {"summary": summary, "results": entries, "outputs": [_published(entry) for entry in good]}
        _print(context, outputs)
    elif entries:
        outputs = _published(entries[0])
        _print(context, entries[0])
    errors = [*errors, *(text for request, result in ended if (text := _failure(request, result)))]
    if errors:
        return _failed(context, errors, outputs)
    statuses = {result.status for _, result in ended}
    if RunStatus.WAITING in statuses:
        return Done(result=Result.WAITING, outputs=outputs)
    partial = RunStatus.PARTIALLY_SUCCEEDED in statuses
    return Done(result=Result.PARTIAL if partial else Result.SUCCEEDED, exit_code=0, outputs=outputs)


def _failure(request: ChildRequest, result: ChildResult) -> str:
    """Return what went wrong with a child, empty when nothing did."""
    if result.status.is_success or result.status is RunStatus.WAITING:
        return ""
    document = formats.json_container(result.document)
    why = document.get("error") if isinstance(document, dict) else None
    text = f"{request.dag} {request.run_id} {result.status.word}"
    return f"{text}: {str(why).partition(chr(10))[0]}" if why else text


def _failed(context: StepContext, errors: Sequence[str], outputs: Mapping[str, Any] | None = None) -> Done:
    what = "; ".join(errors[:10])
    if context.step.parallel is not None:
        what = f"parallel execution failed with {len(errors)} errors: {what}"
    return Done(result=Result.FAILED, exit_code=1, error=what, outputs=outputs or {})


def _print(context: StepContext, value: Mapping[str, Any]) -> None:
    """Write a result to the step's stdout: JSON with indent 2, and the signs that HTML minds escaped."""
    text = formats.pretty_json(value, 2)
    for sign, escape in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(sign, escape)
    context.stdout(raw(text + "\n"))


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
    """Return a child's parameter text: words as authored, a map or list as words `name="value"`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return resolve(value, scope, FieldMode.FIELD)
    resolved = resolve_tree(value, scope, FieldMode.FIELD)
    entries = [resolved] if isinstance(resolved, Mapping) else resolved if isinstance(resolved, list) else [resolved]
    words = []
    for entry in entries:
        if isinstance(entry, Mapping):
            words += [f"{name}={_quoted(formats.as_text(item))}" for name, item in entry.items()]
        else:
            name, equals, item = formats.as_text(entry).partition("=")
            words.append(
                f"{name}={_quoted(item)}" if equals and _NAME.fullmatch(name) else _quoted(f"{name}{equals}{item}")
            )
    return " ".join(words)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


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
    return [word for found in _ITEM.findall(text) if (word := found.replace('"', ""))]


def _request(context: StepContext, call: Call, text: str, child: Dag) -> ChildRequest:
    parent, step = context.request.task.run, context.step
    selector = step.worker_selector if step.worker_selector is not None else child.worker_selector
    scope = context.scope
    if call.item:
        scope = scope.with_env(Layer.ATTEMPT, {**scope.env.layer(Layer.ATTEMPT), "ITEM": call.item})
    is_local = child.name in context.definition.locals or _is_itself(context, child.name)
    return ChildRequest(
        dag=child.name,
        called=call.dag,
        definition=text,
        run_id=child_id(parent=parent, step=context.path, dag=child.name, params=call.params),
        parent=parent,
        root=context.request.task.root,
        params=call.params,
        worker_selector={
            resolve(key, scope, FieldMode.FIELD): resolve(value, scope, FieldMode.FIELD)
            for key, value in (selector or {}).items()
        },
        parallel_item=call.item,
        env={name: value for layer in _INHERITED for name, value in scope.env.layer(layer).items()},
        secrets=context.secrets,
        is_local=is_local,
        base_config=context.request.task.base_config,
        bundle=context.request.task.bundle if is_local else None,
    )


async def _find(context: StepContext, name: str) -> tuple[str, Dag]:
    """Return a child's definition: a local document of the same file, else one that the coordinator has."""
    definition = context.definition
    local = definition.locals.get(name)
    if local is not None:
        return _local_text(definition.text, name, definition.locals), local
    if _is_itself(context, name):
        return definition.text, definition.main
    text = await context.children.dag_text(name)
    if text is None:
        raise NotFound(f"failed to find DAG {name!r}", why="neither this file nor where the run was started has it")
    request = context.request
    reader = schema_reader(*([request.dag_dir] if request.dag_dir else []))
    base = request.task.base_config
    child = load_definition(text, name=name_by_file(name), base_config=base, is_child=True, read_schema=reader).main
    return text, child


def _is_itself(context: StepContext, name: str) -> bool:
    """Tell whether a child calls itself: its document is the first that it was sent, none of the local ones."""
    return context.request.task.parent is not None and name == context.definition.main.name


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


def _queued_entry(request: ChildRequest, result: Enqueued, *, is_single: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": request.dag,
        "dagRunId": request.run_id,
        "params": request.params,
        "queue": result.queue,
        "status": "queued",
    }
    if request.parallel_item and not is_single:
        entry["parallelItem"] = request.parallel_item
    if result.already_exists and not is_single:
        entry["alreadyExists"] = True
    return entry


def _entry(request: ChildRequest, result: ChildResult) -> dict[str, Any]:
    """Return what a child amounts to, as the step's output shows it."""
    variables, values = child_outputs(result.document)
    entry: dict[str, Any] = {
        "name": request.dag,
        "dagRunId": request.run_id,
        "params": request.params,
        "outputs": variables,
    }
    if values:
        entry["outputValues"] = values
    entry["status"] = result.status.word
    return entry


def _published(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return everything that a child published, by name."""
    return {**entry["outputs"], **entry.get("outputValues", {})}


def child_outputs(document: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return a run's outputs: string-form by name, and structured ones merged in step order.

    What a step declared in `outputs`, and what its own children published, stays within the run (section 3.14).
    """
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
        text = node.get("outputsValue")
        found = formats.json_container(text) if isinstance(text, str) else None
        if isinstance(found, dict) and not is_call(node.get("step")):
            values.update(found)
    return variables, values
