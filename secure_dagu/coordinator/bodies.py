"""A task as JSON, as the store keeps it until the task ends."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct
from msgspec.structs import fields

from secure_dagu.dispatch.model import BundleRef, Operation, Task, WorkerId
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef

_PLAIN = (
    "definition", "params", "step", "include_downstream", "previous_status", "labels", "base_config", "schedule_time",
    "external_step_retry", "queue_name", "source_file", "profile_name", "retry_path", "trigger_actor", "definition_id",
    "parallel_item",
)  # fmt: skip


class SecretGrant(Struct, frozen=True, kw_only=True):
    """What managed secrets a task may ask for, settled when it was dispatched (gap G23)."""

    workspace: str
    names: frozenset[tuple[str, str]]
    """(variable name, reference) pairs."""


NO_SECRETS = SecretGrant(workspace="", names=frozenset())


def to_json(task: Task, grant: SecretGrant) -> str:
    """Return the task and its grant as one JSON text."""
    body: dict[str, Any] = {name: value for name in _PLAIN if (value := getattr(task, name))}
    body |= {
        "operation": int(task.operation),
        "run": [task.run.name, task.run.run_id],
        "root": [task.root.name, task.root.run_id],
        "attempt_id": task.attempt_id,
        "attempt_key": task.attempt_key,
        "secrets": [grant.workspace, sorted(grant.names)],
    }
    if task.parent is not None:
        body["parent"] = [task.parent.name, task.parent.run_id]
    if task.worker_selector:
        body["worker_selector"] = dict(task.worker_selector)
    if task.target_worker is not None:
        body["target_worker"] = task.target_worker
    if task.bundle is not None:
        body["bundle"] = {field.name: getattr(task.bundle, field.name) for field in fields(BundleRef)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> tuple[Task, SecretGrant]:
    """Return what `to_json` was given."""
    body = json.loads(text)
    workspace, names = body["secrets"]
    task = Task(
        operation=Operation(body["operation"]),
        run=DagRunRef(*body["run"]),
        root=DagRunRef(*body["root"]),
        parent=DagRunRef(*body["parent"]) if "parent" in body else None,
        worker_selector=body.get("worker_selector", {}),
        target_worker=WorkerId(body["target_worker"]) if "target_worker" in body else None,
        bundle=BundleRef(**body["bundle"]) if "bundle" in body else None,
        attempt_id=AttemptId(body["attempt_id"]),
        attempt_key=AttemptKey(body["attempt_key"]),
        **{name: body[name] for name in _PLAIN if name in body},
    )
    return task, SecretGrant(workspace=workspace, names=frozenset((name, ref) for name, ref in names))
