"""RunState ↔ the status document of the wire and the store (protocol, section 4). Pure.

A document is assembled from the JSON of its nodes, and a node is encoded again only when it changed: a report of a
hundred-step run costs one node and one join.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from secure_dagu.dag import formats
from secure_dagu.dag.model import Precondition, Step
from secure_dagu.run.machine import HANDLER_NODES, NEW_NODE, NodeState, Phase, RunState
from secure_dagu.run.model import RunStatus, StepStatus

MAX_SHOWN = 4096
"""Characters of one command line in a document."""
_NO_CHARACTER = re.compile("[\ud800-\udfff]")


def encode(value: Any) -> str:
    """Return compact JSON that UTF-8 can carry: half a surrogate pair, which JSON can spell, becomes U+FFFD."""
    return _carried(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def encode_published(value: Any) -> str:
    """Return the same for what a step publishes: its numbers are written as a reference inserts them."""
    return _carried(formats.compact_json(value))


def _carried(text: str) -> str:
    return text if text.isascii() else _NO_CHARACTER.sub("\ufffd", text)


def time_text(moment: datetime | None) -> str:
    """Return RFC 3339 UTC seconds; empty for no time. `moment` is UTC."""
    return f"{moment.isoformat(timespec='seconds')[:19]}Z" if moment else ""


class Snapshots(Struct):
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
        rest: dict[str, Any] = {
            "status": int(status),
            "pendingStepRetries": _pending(state),
            **_masked(extra or {}, self.mask),
        }
        if state.started_at:
            rest["startedAt"] = time_text(state.started_at)
        if state.finished_at:
            rest["finishedAt"] = time_text(state.finished_at)
        if state.error:
            rest["error"] = state.error
        handlers = "".join(
            f',"{HANDLER_NODES[name]}":{self._handler(name, state.handlers.get(name, NEW_NODE))}'
            for name in self.handler_steps
        )
        return f'{{{self._head_text},{encode(rest)[1:-1]},"nodes":[{nodes}]{handlers}}}'

    def _handler(self, name: str, node: NodeState) -> str:
        return _node_text(self.handler_steps[name], self.handler_logs[name], node, self.mask)


def _pending(state: RunState) -> list[dict[str, str]] | None:
    """Return `pendingStepRetries`: which steps the scheduler starts again, and after how long."""
    if not state.has_external_retry:
        return None
    found = zip(state.plan.steps, state.nodes, strict=True)
    return [
        {"stepName": step.name, "interval": _go_duration(node.pause_s)}
        for step, node in found
        if node.status is StepStatus.RETRYING
    ] or None


def _go_duration(seconds: float) -> str:
    """Return whole seconds the way that peers read them: `1h0m0s`, `1m0s`, `5s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _node_text(step: str, logs: tuple[str, str], node: NodeState, mask: Callable[[str], str]) -> str:
    is_reused = node.published.get("build", {}).get("decision") == "reuse"
    has_run = node.started_at is not None and not is_reused
    if node.shown is not None:
        step = encode({**json.loads(step), **_masked(node.shown, mask)})
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
                return value if masked == parsed and mask(value) == value else encode_published(masked)
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

    Commands are the authored text until the step has started, when what really ran takes their place, with secrets
    masked. The text of a script is in the definition only.
    """
    values: dict[str, Any] = {"name": step.name}
    if step.id:
        values["id"] = step.id
    if step.description:
        values["description"] = step.description
    if step.kind == "command":
        values["commands"] = shown_commands(step.commands)
    elif step.kind == "exec":
        words = (step.inputs.get("command", ""), *(step.inputs.get("args") or ()))
        values["commands"] = shown_commands([" ".join(formats.as_text(word) for word in words)])
    elif step.kind == "human.task":
        values["humanTask"] = {"prompt": step.inputs.get("prompt", ""), "form": step.inputs.get("form")}
    elif step.kind != "script":
        values["executorConfig"] = {"type": "dag" if step.kind == "dag.run" else step.kind}
        if step.operation:
            values["commands"] = shown_commands([step.operation])
    if step.approval is not None:
        values["approval"] = {
            "prompt": step.approval.prompt,
            "input": list(step.approval.input),
            "required": list(step.approval.required),
            "rewindTo": step.approval.rewind_to,
        }
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
        values["preconditions"] = [authored_condition(item) for item in step.preconditions]
    if step.worker_selector:
        values["workerSelector"] = dict(step.worker_selector)
    if step.timeout_s:
        values["timeout"] = int(step.timeout_s * 1_000_000_000)
    return encode(values)


def authored_condition(item: Precondition) -> dict[str, Any]:
    """Return a precondition as a document shows it before it was evaluated."""
    return {
        **({"condition": item.condition} if item.condition else {"eval": item.eval}),
        **({"expected": item.expected} if item.expected is not None else {}),
        **({"negate": True} if item.negate else {}),
    }


def shown_commands(lines: Sequence[str]) -> list[dict[str, str]]:
    """Return `commands` of a step object, long ones cut: a document travels many times."""
    cut = [line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}…" for line in lines]
    return [{"command": _first_word(line), "cmdWithArgs": line} for line in cut]


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
                shown=_shown(value["step"]) if value.get("startedAt") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue
    return found


def _shown(step: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a node of an earlier attempt showed of its step: its commands as they ran, its task as it asks."""
    lines, task = step.get("commands"), step.get("humanTask")
    shown: dict[str, Any] = {}
    if isinstance(lines, list):
        texts = [line.get("cmdWithArgs") for line in lines if isinstance(line, dict)]
        shown["commands"] = shown_commands([text for text in texts if isinstance(text, str)])
    if isinstance(task, dict):
        shown["humanTask"] = {"prompt": _text(task.get("prompt")), "form": task.get("form")}
    return shown or None


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


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


PUBLISHED: Mapping[str, Callable[[Any], bool]] = {
    "outputVariables": _is_texts,
    "outputValue": _is_text,
    "outputsValue": _is_object_text,
    "stepOutputsValue": _is_object_text,
    "children": _is_list,
    "build": _is_texts,
    "statusDetails": _is_list,
    "routerValue": _is_text,
    "humanTaskInput": _is_object,
    "humanTaskCompletedBy": _is_text,
    "approvalInputs": _is_texts,
    "approvedAt": _is_text,
    "approvedBy": _is_text,
    "rejectedAt": _is_text,
    "rejectedBy": _is_text,
    "rejectionReason": _is_text,
    "approvalIteration": _is_count,
    "pushBackInputs": _is_texts,
    "pushBackHistory": _is_list,
    "pushBackPreviousStdout": _is_text,
}
"""What a node keeps for others to read, the keys of `NodeState.published`, and what each must look like."""


def _moment(text: Any) -> datetime | None:
    """Return a time in UTC; it may come with any offset, and without one it is taken as UTC."""
    if not isinstance(text, str) or text in ("", "-"):
        return None
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
