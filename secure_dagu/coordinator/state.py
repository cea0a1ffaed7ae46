"""Versioned JSON values, definitions and managed secrets (protocol, sections 8.1, 8.2, 8.4).

Whose state a worker reaches: `dag` of the DAGs that run inside a task it holds, `root_dag` of the roots of those
tasks; `global` and `custom` are made to be shared between DAGs, so holding any lease is enough for them. Other roles
reach all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from secure_dagu.audit.events import Action, Detail, Event, Outcome, Trail, by, recorded
from secure_dagu.coordinator import bodies, intake
from secure_dagu.coordinator.ledger import Entry, Ledger, is_limited
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.model import STATE_SCOPES, Caller, Role, SecretRequest, StateEntry, StateRef, StateSource
from secure_dagu.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, Refused, SecureDaguError
from secure_dagu.run.model import DagRunRef
from secure_dagu.store.api import Store
from secure_dagu.store.definitions import DefinitionFolder
from secure_dagu.store.secret_files import GLOBAL, REFERENCE, SecretFiles
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

MAX_VALUE = 1_048_576
MAX_NAMESPACE = 255
MAX_KEY = 512
_WORKSPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class State:
    """Implement `dispatch.api.SharedState`."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        folder: DefinitionFolder,
        definitions: intake.Definitions,
        secrets: SecretFiles | None,
        clock: Clock,
        trail: Trail,
    ) -> None:
        """Take what it serves from; `secrets` None: managed secrets are not offered."""
        self._store = store
        self._ledger = ledger
        self._folder = folder
        self._definitions = definitions
        self._secrets = secrets
        self._clock = clock
        self._trail = trail

    # -- values -------------------------------------------------------------------------------------------------------

    async def get_state(self, caller: Caller, ref: StateRef) -> StateEntry | None:
        """Return one value (`SharedState.get_state`)."""
        _check_ref(ref)
        self._reached(caller, ref.scope, ref.namespace)
        self._trail.note(by(caller, Action.STATE_READ, _target(ref)))
        return await self._store.state(ref)

    async def put_state(
        self,
        caller: Caller,
        ref: StateRef,
        value: bytes,
        *,
        expected_version: int | None,
        create_only: bool,
        updated_by: StateSource,
    ) -> StateEntry:
        """Write a value (`SharedState.put_state`)."""
        _check_ref(ref)
        held = self._reached(caller, ref.scope, ref.namespace)
        if held is not None:
            updated_by = _checked_source(updated_by, held)
        compact, source = _compact(value), _bounded(updated_by)
        async with recorded(self._trail, by(caller, Action.STATE_WRITTEN, _target(ref))):
            entry = await self._store.put_state(
                ref, compact, expected_version=expected_version, create_only=create_only, by=source,
                now_ns=int(self._clock.now().timestamp() * 1_000_000) * 1_000,
            )  # fmt: skip
            if entry is None:
                raise Conflict("dag state: conflict", fix="read the value again")
        return entry

    async def delete_state(self, caller: Caller, ref: StateRef) -> bool:
        """Remove a value (`SharedState.delete_state`)."""
        _check_ref(ref)
        self._reached(caller, ref.scope, ref.namespace)
        async with recorded(self._trail, by(caller, Action.STATE_DELETED, _target(ref))):
            return await self._store.delete_state(ref)

    async def list_state(
        self, caller: Caller, *, scope: str, namespace: str, prefix: str, limit: int
    ) -> Sequence[StateEntry]:
        """List values (`SharedState.list_state`)."""
        if limit < 0:
            raise InvalidRequest("dag state: limit must not be negative")
        _check_place(scope, namespace)
        self._reached(caller, scope, namespace)
        self._trail.note(by(caller, Action.STATE_READ, f"state:{scope}/{namespace}/{prefix}*"))
        return await self._store.list_state(scope=scope, namespace=namespace, prefix=prefix, limit=limit)

    def _reached(self, caller: Caller, scope: str, namespace: str) -> list[Entry] | None:
        """Return the tasks by which a worker reaches a namespace; None for a caller without that limit."""
        if not is_limited(caller):
            return None
        held = self._ledger.held_by(caller, self._clock.now())
        if scope == "dag":
            held = [entry for entry in held if any(namespace == run.name for run in _runs_of(entry))]
        elif scope == "root_dag":
            held = [entry for entry in held if namespace == entry.root.name]
        if not held:
            raise Refused("dag state: not reachable", why="no task that this worker holds uses this namespace")
        return held

    # -- definitions --------------------------------------------------------------------------------------------------

    async def dag_text(self, caller: Caller, name: str) -> str | None:
        """Return a definition of the DAG directory (`SharedState.dag_text`).

        A worker gets what the sub-DAG steps of a task it holds can name; a step whose target is only known at run time
        (a reference) can name anything.
        """
        text = self._folder.text(name)
        event = by(caller, Action.DEFINITION_READ, f"definition:{name}")
        if text is None or not is_limited(caller):
            self._trail.note(event)
            return text
        for entry in self._ledger.held_by(caller, self._clock.now()):
            if await self._can_call(entry, name):
                self._trail.note(event)
                return text
        raise Refused("a worker may read only definitions that its tasks call", why=f"none of them calls {name!r}")

    async def _can_call(self, entry: Entry, name: str) -> bool:
        body = await self._store.task_body(entry.key)
        if body is None:
            return False
        task, _ = bodies.from_json(body)
        facts = await self._definitions.get(task.definition, name=task.run.name, base_config=task.base_config)
        seen: set[str] = set()
        names = set(facts.callees)
        while names:
            called = names.pop()
            if called == name or called.startswith("$") or "${" in called:
                return True
            if called in seen or called in facts.locals:
                continue
            seen.add(called)
            text = self._folder.text(called)
            if text is not None:
                try:
                    names |= (await self._definitions.get(text, name=called, base_config="")).callees
                except SecureDaguError:  # it does not load, so it calls nothing
                    continue
        return False

    # -- secrets ------------------------------------------------------------------------------------------------------

    async def resolve_secret(self, caller: Caller, request: SecretRequest) -> str:
        """Return a managed secret (`SharedState.resolve_secret`). Its value is never logged."""
        _check_secret_request(caller, request)
        event = _secret_event(caller, request)
        result = "error"
        try:
            value = await self._resolve(caller, request)
            await self._trail.record(event)
            result = "ok"
        except Refused as error:
            result = "denied"
            self._trail.note(replace(event, outcome=Outcome.DENIED, reason=error.code))
            raise
        except NotFound as error:
            result = "not_found"
            self._trail.note(replace(event, outcome=Outcome.FAILED, reason=error.code))
            raise
        finally:
            metrics.SECRET_RESOLUTIONS.labels(result).inc()
            log.info(
                "secret.resolved" if result == "ok" else "secret.refused", name=request.name, ref=request.ref,
                workspace=request.workspace, worker=caller.worker, attempt=request.attempt_id, result=result,
            )  # fmt: skip
        return value

    async def _resolve(self, caller: Caller, request: SecretRequest) -> str:
        if not caller.proven or caller.role is not Role.WORKER:
            raise _denied()
        try:
            entry = self._ledger.held(caller, request.attempt_key, self._clock.now())
        except PreconditionFailed:
            raise _denied() from None
        body = await self._store.task_body(entry.key)
        if body is None or request.attempt_id != entry.attempt_id:
            raise _denied()
        _, grant = bodies.from_json(body)
        workspace = "" if request.workspace == GLOBAL else request.workspace
        if workspace != grant.workspace or (request.name, request.ref) not in grant.names:
            raise _denied()
        if self._secrets is None:
            raise PreconditionFailed("managed secrets are not offered", fix="configure the secrets directory")
        secret = None
        if workspace and _WORKSPACE.fullmatch(workspace):
            secret = self._secrets.get(workspace, request.ref)
        if secret is None:
            secret = self._secrets.get(GLOBAL, request.ref)
        if secret is None:
            raise NotFound("secret not found", why=f"there is no {request.ref!r}", fix="an operator adds its file")
        return "" if request.check_only else secret.reveal()


def _target(ref: StateRef) -> str:
    return f"state:{ref.scope}/{ref.namespace}/{ref.key}"


def _secret_event(caller: Caller, request: SecretRequest) -> Event:
    details: dict[Detail, str | int] = {Detail.NAMES: request.name, Detail.ATTEMPT: request.attempt_id}
    if request.check_only:
        details[Detail.WHAT] = "existence"
    return by(caller, Action.SECRET_READ, f"secret:{request.workspace or GLOBAL}/{request.ref}", details=details)


def _runs_of(entry: Entry) -> list[DagRunRef]:
    return [entry.run, *(known.run for known in entry.attempts.values())]


def _denied() -> Refused:
    return Refused("secret reference access denied")


def _check_secret_request(caller: Caller, request: SecretRequest) -> None:
    for name in ("name", "ref", "attempt_key", "attempt_id"):
        if not getattr(request, name):
            raise InvalidRequest(f"{name} is required")
    if not caller.worker:
        raise InvalidRequest("worker_id is required")
    if len(request.name) > intake.MAX_ID or len(request.ref) > intake.MAX_ID or not REFERENCE.fullmatch(request.ref):
        raise InvalidRequest("ref is malformed", fix="lower-case letters, digits and dashes, separated by slashes")
    if request.workspace not in ("", GLOBAL) and not (
        len(request.workspace) <= intake.MAX_ID and _WORKSPACE.fullmatch(request.workspace)
    ):
        raise InvalidRequest("workspace is malformed")


def _check_ref(ref: StateRef) -> None:
    _check_place(ref.scope, ref.namespace)
    parts = ref.key.split("/")
    if (
        not ref.key.strip() or len(ref.key.encode()) > MAX_KEY or "\\" in ref.key or "\0" in ref.key
        or any(part in ("", ".", "..") for part in parts)
    ):  # fmt: skip
        raise InvalidRequest("dag state: invalid ref", why="the key is no plain path")


def _check_place(scope: str, namespace: str) -> None:
    if scope not in STATE_SCOPES:
        raise InvalidRequest("dag state: invalid ref", why=f"the scope is one of {', '.join(STATE_SCOPES)}")
    if (
        not namespace.strip() or len(namespace.encode()) > MAX_NAMESPACE or namespace in (".", "..")
        or any(c in namespace for c in "/\\\0")
    ):  # fmt: skip
        raise InvalidRequest("dag state: invalid ref", why="the namespace is no plain name")


def _checked_source(source: StateSource, held: list[Entry]) -> StateSource:
    """Return who writes, as a lease proves it: what the worker says must fit one, and only the step is its own word."""
    for entry in held:
        for known in entry.attempts.values():
            if (
                source.dag_name in ("", known.run.name)
                and source.run_id in ("", known.run.run_id)
                and source.attempt_id in ("", known.attempt_id)
            ):
                run = known.run
                return replace(source, dag_name=run.name, run_id=run.run_id, attempt_id=known.attempt_id)
    raise Refused("dag state: updated_by names another run", why="no task that this worker holds is that run")


def _bounded(source: StateSource) -> StateSource:
    texts = (source.dag_name, source.run_id, source.attempt_id, source.step)
    if any(len(text) > intake.MAX_SHORT for text in texts):
        raise InvalidRequest("dag state: updated_by is too long")
    return source


def _compact(value: bytes) -> bytes:
    """Return JSON without the white space between its tokens; everything else stays as it was written."""
    if len(value) > MAX_VALUE:
        raise InvalidRequest("dag state: value too large", why=f"the limit is {MAX_VALUE} bytes")
    try:
        text = value.decode()
        json.loads(text, parse_float=str, parse_int=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest("dag state: invalid value", why="it is not JSON") from None
    return _STRING_OR_SPACE.sub(lambda found: found[0] if found[0][0] == '"' else "", text).encode()


_STRING_OR_SPACE = re.compile(r'"(?:[^"\\]|\\.)*"|[ \t\r\n]+')


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
