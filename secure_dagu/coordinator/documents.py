"""Status documents as the coordinator writes and rewrites them (protocol, section 4)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from secure_dagu.dispatch.model import LogStream, Task
from secure_dagu.dispatch.operating import Waiting, in_lists
from secure_dagu.dispatch.queueing import as_fields, conditions
from secure_dagu.errors import InvalidRequest
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus

Document = dict[str, Any]
MAX_DOCUMENT_BYTES = 12 * 1024 * 1024
MAX_NODES = 20_000
MAX_ERROR = 4_000
HANDLER_NODES = {
    "onInit": "on_init", "onExit": "on_exit", "onSuccess": "on_success", "onFailure": "on_failure",
    "onAbort": "on_abort", "onWait": "on_wait",
}  # fmt: skip
"""Key of a handler in the document, and the log name of one without a step name (protocol, section 5.3)."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_UNFINISHED = (StepStatus.NOT_STARTED, StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.WAITING)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def parse(text: str) -> Document:
    """Return a reported document.

    Raises:
        InvalidRequest: it is empty, too large, or no JSON object.
    """
    if not text:
        raise InvalidRequest("status is required", fix="send the whole status document")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest("failed to convert status: too large", why=f"the limit is {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest("failed to convert status: not JSON", fix="send one JSON object") from None
    if not isinstance(document, dict):
        raise InvalidRequest("failed to convert status: not a JSON object", fix="send one JSON object")
    if _SURROGATE.search(text):  # half a character cannot be stored, hashed or shown
        try:
            text_of(document).encode()
        except UnicodeEncodeError:
            raise InvalidRequest("failed to convert status: not Unicode", fix="send whole characters") from None
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def text_of(document: Document) -> str:
    """Return the document as compact JSON."""
    return _encode(document)


def summary_of(document: Document) -> str:
    """Return the document as lists show it, as compact JSON."""
    return _encode(in_lists(document))


def word(document: Document, key: str) -> str:
    """Return a text field; empty when it is missing or no text."""
    value = document.get(key)
    return value if isinstance(value, str) else ""


def number(document: Document, key: str) -> int:
    """Return an integer field; -1 when it is missing or no integer."""
    value = document.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def reference(document: Document, key: str) -> DagRunRef | None:
    """Return a reference such as `root`; None when it is missing or incomplete."""
    value = document.get(key)
    if not isinstance(value, dict):
        return None
    name, run_id = word(value, "name"), word(value, "id")
    return DagRunRef(name, run_id) if name and run_id else None


def milliseconds(document: Document, key: str) -> int:
    """Return a time field as Unix milliseconds; 0 when there is none (protocol, section 4.1)."""
    text = word(document, key)
    if len(text) < 20:
        return 0
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0


def stamp(now: datetime) -> str:
    """Return a moment as the documents spell it: RFC 3339, seconds, `Z`."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def nodes(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield every node with its log name: steps in order, then handlers. What is no node is passed over."""
    steps = document.get("nodes")
    if isinstance(steps, list):
        for node in steps[:MAX_NODES]:
            if isinstance(node, dict):
                yield _log_name(node, "step"), node
    for key, unnamed in HANDLER_NODES.items():
        node = document.get(key)
        if isinstance(node, dict):
            yield _log_name(node, unnamed), node


def _log_name(node: Document, unnamed: str) -> str:
    step = node.get("step")
    return (word(step, "name") if isinstance(step, dict) else "") or unnamed


# -- written here -----------------------------------------------------------------------------------------------------


def initial(task: Task, *, labels: tuple[str, ...], now: datetime) -> Document:
    """Return the first document of an attempt: not started (protocol, section 4.6)."""
    document: Document = {
        "name": task.run.name, "dagRunId": task.run.run_id, "attemptId": task.attempt_id,
        "attemptKey": task.attempt_key, "status": int(RunStatus.NOT_STARTED), "startedAt": stamp(now),
        "createdAt": int(now.timestamp() * 1000), "pendingStepRetries": None,
    }  # fmt: skip
    if not task.is_root:
        document["root"] = _ref(task.root)
    if task.parent is not None:
        document["parent"] = _ref(task.parent)
    if labels:
        document["labels"] = list(labels)
    for key, value in (
        ("triggerActor", task.trigger_actor), ("scheduleTime", task.schedule_time),
        ("definitionId", task.definition_id), ("params", task.params), ("parallelItem", task.parallel_item),
        ("procGroup", task.queue_name),
    ):  # fmt: skip
        if value:
            document[key] = value
    return document


def waiting(text: str, reason: Waiting, now: datetime) -> str:
    """Return a document with why its run waits."""
    return _encode({**parse(text), "conditions": [as_fields(one) for one in conditions(reason, now)]})


def ended(document: Document, status: RunStatus, *, error: str, now: datetime) -> Document:
    """Return the document with the run ended by the coordinator: unfinished nodes end with it (section 3.16)."""
    step_status = int(StepStatus.ABORTED if status is RunStatus.ABORTED else StepStatus.FAILED)
    for _, node in nodes(document):
        if node.get("status") in _UNFINISHED:
            node["status"] = step_status
            node["error"] = error
            if node.get("startedAt") not in (None, "", "-"):
                node["finishedAt"] = stamp(now)
    document.update(status=int(status), error=error, finishedAt=stamp(now))
    return document


def rewrite(
    document: Document,
    *,
    folder: str,
    file_name: Callable[[str, LogStream], str],
    archive: str,
    labels: tuple[str, ...],
) -> None:
    """Put the coordinator's paths and labels in place of the worker's (protocol, sections 3.9 step 5 and 5.3)."""
    for name, node in nodes(document):
        node["stdout"] = f"{folder}/{file_name(name, LogStream.STDOUT)}"
        node["stderr"] = f"{folder}/{file_name(name, LogStream.STDERR)}"
    document["log"] = f"{folder}/{file_name('', LogStream.SCHEDULER)}"
    if archive:
        document["archiveDir"] = archive
    else:
        document.pop("archiveDir", None)
    if labels:
        document["labels"] = list(labels)
    else:
        document.pop("labels", None)
    document.pop("tags", None)


def _ref(run: DagRunRef) -> Document:
    return {"name": run.name, "id": run.run_id}
