"""Check a task before it is accepted: its ids, its size, its definition, what secrets it may ask for.

Nothing here evaluates anything of a definition (gap G2): it is parsed, and read for its labels and declared secrets.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.coordinator.bodies import SecretGrant
from secure_dagu.coordinator.documents import MAX_DOCUMENT_BYTES, Document, number, parse, reference, word
from secure_dagu.dag.model import Dag, DagType, Definition, Step
from secure_dagu.dispatch.model import Operation, Task
from secure_dagu.errors import DefinitionError, InvalidRequest, PreconditionFailed, SecureDaguError
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.security.grants import is_reserved
from secure_dagu.store.api import AttemptRow

MAX_DAG_NAME = 40
MAX_RUN_ID = 64
MAX_ID = 255
MAX_PAIRS = 64
MAX_SHORT = 4_096
MAX_TEXT = 4 * 1024 * 1024
INLINE_TEXT = 8 * 1024
"""Up to here parsing takes a few milliseconds; more is done beside the loop, so that heartbeats go on."""
MAX_CACHED = 256
MAX_CACHED_TEXT = 4 * 1024 * 1024

_DAG_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_RUN_ID = re.compile(r"[-a-zA-Z0-9_]+")
_ATTEMPT_ID = re.compile(r"[-a-zA-Z0-9_]{1,128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHORT = ("step", "schedule_time", "queue_name", "source_file", "profile_name", "trigger_actor", "definition_id")
_LONG = ("params", "definition", "base_config", "retry_path", "parallel_item", "labels")


class LoadDefinition(Protocol):
    """`dag.load.load_definition`, as far as it is needed here."""

    def __call__(self, text: str, *, name: str | None = None, base_config: str = "") -> Definition:
        """Parse without evaluating; DefinitionError when it does not load."""
        ...


class Facts(Struct, frozen=True, kw_only=True):
    """What the coordinator needs of a definition that loads; the parsed whole is fifty times its text, so it goes."""

    text: str
    labels: tuple[str, ...]
    secrets: frozenset[tuple[str, str]]
    """(variable name, reference) of every managed secret that it declares."""
    callees: frozenset[str]
    """What its sub-DAG steps name as their DAG, references unresolved."""
    locals: frozenset[str]
    """The sub-DAGs in the same text."""


class Definitions:
    """Facts by the hash of the text: a DAG that runs often is parsed once."""

    def __init__(self, load: LoadDefinition) -> None:
        self._load = load
        self._cache: OrderedDict[bytes, Facts] = OrderedDict()
        self._cached_text = 0

    async def get(self, text: str, *, name: str, base_config: str) -> Facts:
        """Return what a definition says.

        Raises:
            DefinitionError: it does not load; the text begins as the protocol has it (section 1.7).
        """
        key = sha256(b"\0".join((name.encode(), base_config.encode(), text.encode()))).digest()
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        try:
            if len(text) + len(base_config) < INLINE_TEXT:
                definition = self._load(text, name=name, base_config=base_config)
            else:
                definition = await asyncio.to_thread(self._load, text, name=name, base_config=base_config)
        except SecureDaguError as error:
            raise DefinitionError(f"failed to prepare attempt: {error.what}", why=error.why, fix=error.fix) from error
        if definition.main.type is DagType.BUILD:
            raise DefinitionError("failed to prepare attempt: build DAGs are not run by workers", fix="run it locally")
        if key not in self._cache:
            self._cached_text += len(text)
        found = self._cache[key] = _facts(text, definition)
        while len(self._cache) > MAX_CACHED or (self._cached_text > MAX_CACHED_TEXT and len(self._cache) > 1):
            _, old = self._cache.popitem(last=False)
            self._cached_text -= len(old.text)
        return found


def _facts(text: str, definition: Definition) -> Facts:
    dags = (definition.main, *definition.locals.values())
    return Facts(
        text=text,
        labels=definition.main.labels,
        secrets=frozenset(
            (secret.name, secret.ref)
            for dag in dags
            for secret in dag.secrets
            if secret.ref and not (secret.provider or secret.key or secret.options)
        ),
        callees=frozenset(name for dag in dags for name in _called(dag)),
        locals=frozenset(definition.locals),
    )


# -- shape ------------------------------------------------------------------------------------------------------------


def checked(task: Task) -> Task:
    """Return the task in normal form: a root run names itself as its root.

    Raises:
        InvalidRequest: a field is missing, malformed or too long (protocol, section 2.1; gaps G7, G8).
    """
    if not task.definition:
        raise InvalidRequest("task.Definition is required for distributed execution")
    if task.operation not in (Operation.START, Operation.RETRY):
        raise InvalidRequest("task.operation is required", fix="send START or RETRY")
    if task.parent is None:
        if task.root.run_id and task.root != task.run:
            raise InvalidRequest("a task without a parent is its own root", fix="send the parent of a sub-DAG run")
        task = replace(task, root=task.run)
    elif task.root == task.run:
        raise InvalidRequest("a sub-DAG run is not its own root", fix="send the top run as the root")
    for ref in (task.run, task.root) if task.parent is None else (task.run, task.root, task.parent):
        check_run(ref)
    for name in _SHORT:
        value: str = getattr(task, name)
        if len(value) > MAX_SHORT or _CONTROL.search(value):
            raise InvalidRequest(f"task.{name} is not usable", why=f"more than {MAX_SHORT}, or control characters")
    for name in _LONG:
        if len(getattr(task, name)) > MAX_TEXT:
            raise InvalidRequest(f"task.{name} is too long", why=f"the limit is {MAX_TEXT} characters")
    if len(task.previous_status) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest("task.previous_status is too long", why=f"the limit is {MAX_DOCUMENT_BYTES} characters")
    if task.target_worker is not None and len(task.target_worker) > MAX_ID:
        raise InvalidRequest("task.target_worker_id is too long", why=f"the limit is {MAX_ID} characters")
    check_labels(task.worker_selector)
    if task.bundle is not None and not (_DIGEST.fullmatch(task.bundle.digest) and task.bundle.size_bytes > 0):
        raise InvalidRequest("valid workspace bundle digest is required", fix="send digest and size of the bundle")
    return task


def check_run(ref: DagRunRef) -> None:
    """Check a DAG name and a run id (protocol, section 2.1).

    Raises:
        InvalidRequest: one of them is malformed.
    """
    if not _DAG_NAME.fullmatch(ref.name) or len(ref.name) > MAX_DAG_NAME or ref.name in (".", ".."):
        raise InvalidRequest("invalid DAG name", why=f"letters, digits, _ . - and at most {MAX_DAG_NAME} characters")
    if not _RUN_ID.fullmatch(ref.run_id) or len(ref.run_id) > MAX_RUN_ID:
        raise InvalidRequest("invalid DAG run id", why=f"letters, digits, _ - and at most {MAX_RUN_ID} characters")


def is_attempt_id(text: str) -> bool:
    """Tell whether a text can be an attempt id."""
    return _ATTEMPT_ID.fullmatch(text) is not None


def check_labels(labels: Iterable[str] | dict[str, str]) -> None:
    """Check the size of a label map.

    Raises:
        InvalidRequest: too many, or too long.
    """
    pairs = dict(labels).items() if isinstance(labels, dict) else [(key, "") for key in labels]
    if len(pairs) > MAX_PAIRS or any(len(key) > MAX_ID or len(value) > MAX_ID for key, value in pairs):
        raise InvalidRequest("too many or too long labels", why=f"at most {MAX_PAIRS}, each {MAX_ID} characters")


# -- queued and retried -----------------------------------------------------------------------------------------------


def previous(task: Task) -> Document | None:
    """Return the status document that a retry continues; None when the task brings none.

    Raises:
        InvalidRequest: it is no JSON object.
    """
    return parse(task.previous_status) if task.previous_status else None


def check_queued(document: Document, latest: AttemptRow | None) -> None:
    """Check that a dispatch from a queue still meets the attempt that was queued (protocol, section 3.2).

    Raises:
        PreconditionFailed: "stale queue dispatch", with the reason; the scheduler then discards the item.
    """
    attempt_id = word(document, "attemptId")
    if not attempt_id:
        reason = "queued attempt ID is missing"
    elif latest is None:
        reason = "dag-run is no longer queued"
    elif latest.attempt_id != attempt_id:
        reason = "queued attempt was superseded"
    elif latest.status != RunStatus.QUEUED:
        reason = f"latest attempt is {RunStatus(latest.status).word}"
    else:
        return
    raise PreconditionFailed(f"failed to prepare attempt: stale queue dispatch: {reason}", fix="drop the queue item")


def is_from_queue(document: Document | None) -> bool:
    """Tell whether a previous status says that the run comes from a queue."""
    return document is not None and number(document, "status") == RunStatus.QUEUED


def check_continues(document: Document, task: Task) -> None:
    """Check that the previous status is one of the same run.

    Raises:
        InvalidRequest: it names another run.
    """
    name, run_id = word(document, "name"), word(document, "dagRunId")
    root = reference(document, "root")
    if (name and name != task.run.name) or (run_id and run_id != task.run.run_id) or (root and root != task.root):
        raise InvalidRequest("task.previous_status is of another run", fix="send the status of the run to continue")


# -- what the definition says -----------------------------------------------------------------------------------------


def labels_of(facts: Facts, task: Task) -> tuple[str, ...]:
    """Return the effective run labels: those of the definition, then those of the request, each once.

    Labels with the reserved prefix are left out: nobody but this coordinator says whose a run is.
    """
    given = (label.strip() for label in task.labels.split(","))
    every = (*facts.labels, *(label for label in given if label))
    labels = tuple(dict.fromkeys(label for label in every if not is_reserved(label)))
    check_labels(labels)
    return labels


def grant_of(facts: Facts, labels: tuple[str, ...]) -> SecretGrant:
    """Return the managed secrets that a definition declares, in the workspace that its labels name."""
    workspace = next((label.partition("=")[2] for label in labels if label.startswith("workspace=")), "")
    return SecretGrant(workspace=workspace, names=facts.secrets)


def _called(dag: Dag) -> Iterator[str]:
    steps: list[Step] = [*dag.steps, *dag.handlers.values()]
    while steps:
        step = steps.pop()
        if step.foreach is not None:
            steps.extend(step.foreach.steps)
        target = step.inputs.get("dag") if step.kind in ("dag.run", "dag.enqueue") else None
        if isinstance(target, str):
            yield target
