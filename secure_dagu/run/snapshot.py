"""RunState ↔ the status document of the wire and the store (protocol, section 4). Pure.

A document is assembled from the JSON of its nodes, and a node is encoded again only when it changed: a report of a
hundred-step run costs one node and one join.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from secure_dagu.dag.model import Step
from secure_dagu.run.machine import HANDLER_NODES, NodeState, Phase, RunState
from secure_dagu.run.model import RunStatus, StepStatus

_NO_CHARACTER = re.compile("[\ud800-\udfff]")


def encode(value: Any) -> str:
    """Return compact JSON that UTF-8 can carry: half a surrogate pair, which JSON can spell, becomes U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else _NO_CHARACTER.sub("\ufffd", text)


def time_text(moment: datetime | None) -> str:
    """Return RFC 3339 UTC seconds; empty for no time. `moment` is UTC."""
    return f"{moment.isoformat(timespec='seconds')[:19]}Z" if moment else ""


@dataclass(slots=True)
class Snapshots:
    """Makes the documents of one attempt.

    Attributes:
        head: the keys that never change, already as values: name, dagRunId, root, labels, …
        steps: the `step` object of each step as JSON text, in source order.
        logs: for each step, the paths of its stdout and stderr on this host.
    """

    head: Mapping[str, Any]
    steps: Sequence[str]
    logs: Sequence[tuple[str, str]]
    handler_steps: Mapping[str, str] = field(default_factory=dict)
    handler_logs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    mask: Callable[[str], str] = str
    """Hides secrets in what steps publish: later steps read it as it is, documents travel and are kept."""
    _known: list[NodeState | None] = field(default_factory=list)
    """The nodes as they were encoded last, and their JSON."""
    _texts: list[str] = field(default_factory=list)
    _head_text: str = ""

    def document(self, state: RunState, *, extra: Mapping[str, Any] | None = None) -> str:
        """Return the status document of `state`; `extra` are keys that were learnt on the way, such as `workingDir`."""
        if not self._head_text:
            self._known, self._texts = [None] * len(self.steps), [""] * len(self.steps)
            self._head_text = encode(dict(self.head))[1:-1]
        known = self._known
        for position, node in enumerate(state.nodes):
            if known[position] is not node:
                known[position] = node
                self._texts[position] = _node_text(self.steps[position], self.logs[position], node, self.mask)
        nodes = ",".join(self._texts)
        # What the run amounts to is decided before its last handlers run, but a report that says so ends the lease.
        status = state.status if state.phase is Phase.ENDED else RunStatus.RUNNING
        rest: dict[str, Any] = {"status": int(status), "pendingStepRetries": None, **(extra or {})}
        if state.started_at:
            rest["startedAt"] = time_text(state.started_at)
        if state.finished_at:
            rest["finishedAt"] = time_text(state.finished_at)
        if state.error:
            rest["error"] = state.error
        handlers = "".join(
            f',"{HANDLER_NODES[name]}":{self._handler(name, node)}' for name, node in state.handlers.items()
        )
        return f'{{{self._head_text},{encode(rest)[1:-1]},"nodes":[{nodes}]{handlers}}}'

    def _handler(self, name: str, node: NodeState) -> str:
        return _node_text(self.handler_steps[name], self.handler_logs[name], node, self.mask)


def _node_text(step: str, logs: tuple[str, str], node: NodeState, mask: Callable[[str], str]) -> str:
    has_run = node.started_at is not None
    values: dict[str, Any] = {
        "stdout": logs[0] if has_run else "",
        "stderr": logs[1] if has_run else "",
        "startedAt": time_text(node.started_at),
        "finishedAt": time_text(node.finished_at),
        "status": int(node.status),
    }
    if node.retry_count:
        values["retryCount"] = node.retry_count
    if node.retried_at:
        values["retriedAt"] = time_text(node.retried_at)
    if node.done_count:
        values["doneCount"] = node.done_count
    if node.is_kept:
        values["skippedByRetry"] = True
    if node.error:
        values["error"] = node.error
    if node.published:
        values.update((key, _masked(value, mask)) for key, value in node.published.items())
    return f'{{"step":{step},{encode(values)[1:]}'


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    """Return a published value with secrets hidden in each of its texts.

    JSON text stays JSON, and to the letter what it was where it hides nothing. A number that is a secret becomes text.
    """
    if isinstance(value, str):
        if value[:1] in ("{", "["):
            with contextlib.suppress(ValueError, RecursionError):
                parsed = json.loads(value)
                masked = _masked(parsed, mask)
                # Both are asked: of two equal keys only the last one is parsed, and the text has escapes.
                return value if masked == parsed and mask(value) == value else encode(masked)
        return mask(value)
    if isinstance(value, Mapping):
        return {mask(key): _masked(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, mask) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = encode(value)
        return value if mask(text) == text else mask(text)
    return value


def step_text(step: Step) -> str:
    """Return the `step` object of a node as JSON: what a reader of the run needs to know of its definition.

    Scripts and commands are the authored text, so a value that was inserted into them is never stored.
    """
    values: dict[str, Any] = {"name": step.name}
    if step.id:
        values["id"] = step.id
    if step.description:
        values["description"] = step.description
    if step.kind == "command":
        values["commands"] = [{"command": _first_word(line), "cmdWithArgs": line} for line in step.commands]
    elif step.kind == "script":
        values["script"] = step.script
    else:
        values["executorConfig"] = {"type": "dag" if step.kind == "dag.run" else step.kind}
    if step.kind == "dag.run":
        values["childDag"] = {"name": str(step.inputs.get("dag", ""))}
    if isinstance(step.output, str):
        values["output"] = step.output
    if step.depends:
        values["depends"] = list(step.depends)
    if step.continue_on.failure or step.continue_on.skipped or step.continue_on.mark_success:
        chosen = {
            "failure": step.continue_on.failure,
            "skipped": step.continue_on.skipped,
            "markSuccess": step.continue_on.mark_success,
        }
        values["continueOn"] = {key: True for key, value in chosen.items() if value}
    if step.preconditions:
        values["preconditions"] = [
            {
                **({"condition": item.condition} if item.condition else {"eval": item.eval}),
                **({"expected": item.expected} if item.expected is not None else {}),
                **({"negate": True} if item.negate else {}),
            }
            for item in step.preconditions
        ]
    if step.worker_selector:
        values["workerSelector"] = dict(step.worker_selector)
    if step.timeout_s:
        values["timeout"] = int(step.timeout_s * 1_000_000_000)
    return encode(values)


def _first_word(line: str) -> str:
    return line.split(maxsplit=1)[0] if line.strip() else ""


def kept_nodes(document: str, names: Sequence[str]) -> dict[int, NodeState]:
    """Return the nodes of an earlier attempt by position, for steps that the definition still has.

    What is malformed is left out, so that its step runs again.
    """
    index = {name: position for position, name in enumerate(names)}
    found: dict[int, NodeState] = {}
    try:
        values = json.loads(document).get("nodes") or []
    except (ValueError, AttributeError, RecursionError):
        return {}
    for value in values if isinstance(values, list) else ():
        try:
            position = index[value["step"]["name"]]
            found[position] = NodeState(
                status=StepStatus(value["status"]),
                started_at=_moment(value.get("startedAt")),
                finished_at=_moment(value.get("finishedAt")),
                error=_text(value.get("error")),
                retry_count=int(value.get("retryCount") or 0),
                retried_at=_moment(value.get("retriedAt")),
                done_count=int(value.get("doneCount") or 0),
                exit_code=0 if value["status"] == StepStatus.SUCCEEDED else None,
                is_kept=True,
                published={key: value[key] for key, check in PUBLISHED.items() if check(value.get(key))},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


PUBLISHED: Mapping[str, Callable[[Any], bool]] = {
    "outputVariables": _is_texts,
    "outputValue": _is_text,
    "outputsValue": _is_object_text,
    "stepOutputsValue": _is_object_text,
    "children": _is_list,
}
"""What a node keeps for others to read, the keys of `NodeState.published`, and what each must look like."""


def _moment(text: Any) -> datetime | None:
    """Return a time in UTC; it may come with any offset, and without one it is taken as UTC."""
    if not isinstance(text, str) or text in ("", "-"):
        return None
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
