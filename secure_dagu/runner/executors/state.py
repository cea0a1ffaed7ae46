"""`state.*`: values that outlive a run (workflow language, sections 3.26 and 4.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Coroutine
from hashlib import sha256
from typing import Any

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.dispatch.model import STATE_SCOPES, StateEntry, StateRef, StateSource
from secure_dagu.errors import Conflict, DefinitionError, LimitExceeded, NotFound
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors.file_access import time_text
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.masking import raw

GLOBAL = "_"
MAX_VALUE_BYTES = 2**20
MAX_KEY = 1024
MAX_NAMESPACE = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Answer = dict[str, Any]


async def get(context: StepContext) -> Done:
    """Print a value, or the default."""
    return await _work(context, _get(context, _options(context)))


async def set_(context: StepContext) -> Done:
    """Write a value."""
    return await _work(context, _set(context, _options(context)))


async def diff(context: StepContext) -> Done:
    """Compare a value with the one that is kept, and keep it unless `update` is false."""
    return await _work(context, _diff(context, _options(context)))


async def list_(context: StepContext) -> Done:
    """List values."""
    return await _work(context, _list(context, _options(context)))


async def delete(context: StepContext) -> Done:
    """Delete a value."""
    return await _work(context, _delete(context, _options(context)))


def _options(context: StepContext) -> Options:
    return Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))


async def _work(context: StepContext, work: Coroutine[Any, Any, Answer]) -> Done:
    async def run() -> Done:
        context.stdout(raw(formats.compact_json(await work) + "\n"))
        return SUCCESS

    return await unless_stopped(context.stop, run())


def _namespace(context: StepContext, options: Options) -> tuple[str, str]:
    scope, given = options.choice("scope", STATE_SCOPES, "dag"), options.text("namespace")
    if scope == "custom":
        is_bad = not given.strip() or given in (".", "..") or len(given) > MAX_NAMESPACE
        if is_bad or "/" in given or "\\" in given or _CONTROL.search(given):
            raise DefinitionError("with.namespace cannot be used", why="scope custom needs one: a name without slashes")
        return scope, given
    task = context.request.task
    own = {"dag": task.run.name, "root_dag": task.root.name, "global": GLOBAL}[scope]
    if given not in ("", own):
        raise DefinitionError(f"scope {scope} has its own namespace", fix="set `scope: custom`")
    return scope, own


def _ref(context: StepContext, options: Options) -> StateRef:
    key = options.needed("key")
    is_bad = any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key or _CONTROL.search(key)
    if is_bad or len(key) > MAX_KEY:
        raise DefinitionError(
            f"with.key {key[:80]!r} is no state key",
            why="expected names with single slashes between, as in a/b; `.`, `..` and backslashes are refused",
        )
    return StateRef(*_namespace(context, options), key)


def _value(options: Options) -> bytes:
    value = options.any("value")
    if formats.has_no_number(value):
        raise DefinitionError("with.value is not JSON", why="it holds a number that is none")
    data = raw(formats.compact_json(value))
    if len(data) > MAX_VALUE_BYTES:
        raise LimitExceeded("with.value is too large", why=f"{len(data)} bytes, the limit is {MAX_VALUE_BYTES}")
    return data


def _head(operation: str, ref: StateRef) -> Answer:
    return {"operation": operation, "scope": ref.scope, "namespace": ref.namespace, "key": ref.key}


def _expected(options: Options) -> int | None:
    return options.integer("expected_version") if "expected_version" in options else None


async def _put(
    context: StepContext, ref: StateRef, value: bytes, *, expected: int | None, create_only: bool
) -> StateEntry:
    task = context.request.task
    source = StateSource(
        dag_name=task.run.name, run_id=task.run.run_id, attempt_id=context.request.attempt_id, step=context.step.name
    )
    return await context.children.put_state(
        ref, value, expected_version=expected, create_only=create_only, updated_by=source
    )


async def _get(context: StepContext, options: Options) -> Answer:
    ref = _ref(context, options)
    entry = await context.children.get_state(ref)
    if entry is None:
        if options.boolean("required"):
            raise NotFound(f"state {ref.key!r} does not exist", why=f"scope {ref.scope}, namespace {ref.namespace}")
        none = {**_head("get", ref), "found": False, "version": 0, "hash": ""}
        return {**none, "value": options.any("default")} if "default" in options else none
    found = {"found": True, "version": entry.version, "hash": entry.hash, "value": json.loads(entry.value)}
    return {**_head("get", ref), **found}


async def _set(context: StepContext, options: Options) -> Answer:
    ref, value = _ref(context, options), _value(options)
    create_only = options.boolean("create_only")
    entry = await _put(context, ref, value, expected=_expected(options), create_only=create_only)
    return {**_head("set", ref), "version": entry.version, "hash": entry.hash, "created": entry.version == 1}


async def _diff(context: StepContext, options: Options) -> Answer:
    ref, value = _ref(context, options), _value(options)
    before = await context.children.get_state(ref)
    version, expected = before.version if before else 0, _expected(options)
    if expected is not None and expected != version:
        raise Conflict(f"state {ref.key!r}: conflict", why=f"version {version} is there, {expected} was expected")
    changed = before is None or _sorted(before.value) != _sorted(value)
    answer = {**_head("diff", ref), "changed": changed, "foundPrevious": before is not None, "previousVersion": version}
    digest = sha256(value).hexdigest() if changed or before is None else before.hash
    if changed and options.boolean("update", default=True):
        # What was compared must be what is replaced.
        entry = await _put(context, ref, value, expected=version if before else None, create_only=before is None)
        version, digest = entry.version, entry.hash
    previous = {"previous": json.loads(before.value)} if before else {}
    return {**answer, "version": version, "hash": digest, **previous, "current": json.loads(value)}


def _sorted(value: bytes) -> str:
    """Return JSON in which the order of keys makes no difference."""
    return json.dumps(json.loads(value), sort_keys=True)


async def _list(context: StepContext, options: Options) -> Answer:
    scope, namespace = _namespace(context, options)
    prefix, limit = options.text("prefix"), options.integer("limit", maximum=2**31 - 1)
    found = await context.children.list_state(scope=scope, namespace=namespace, prefix=prefix, limit=limit)
    shown = options.boolean("include_values")
    return {
        "operation": "list",
        "scope": scope,
        "namespace": namespace,
        **({"prefix": prefix} if prefix else {}),
        "entries": [_entry(entry, with_value=shown) for entry in found],
    }


def _entry(entry: StateEntry, *, with_value: bool) -> Answer:
    facts = {
        "scope": entry.ref.scope,
        "namespace": entry.ref.namespace,
        "key": entry.ref.key,
        "version": entry.version,
        "hash": entry.hash,
        "createdAt": time_text(entry.created_at_ns),
        "updatedAt": time_text(entry.updated_at_ns),
    }
    return {**facts, "value": json.loads(entry.value)} if with_value else facts


async def _delete(context: StepContext, options: Options) -> Answer:
    ref = _ref(context, options)
    return {**_head("delete", ref), "deleted": await context.children.delete_state(ref)}
