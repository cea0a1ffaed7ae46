"""What stands before a run's first step: definition, plan, names of logs, what a retry keeps.

`prepare` reads and checks, and runs nothing; what steps see is in `runner.environment`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dag import formats, params
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag, DagType, Definition
from secure_dagu.dag.plan import Plan, make_plan
from secure_dagu.dag.scope import Scope
from secure_dagu.dispatch.model import Operation
from secure_dagu.dispatch.retrying import limit_of
from secure_dagu.run import resume
from secure_dagu.run.machine import HANDLER_NODES, NodeState
from secure_dagu.run.model import RunStatus
from secure_dagu.run.snapshot import Snapshots, encode, step_text, time_text
from secure_dagu.runner import environment
from secure_dagu.runner.api import RunRequest
from secure_dagu.runner.streams import LogPaths, log_paths, log_stems, run_log

if TYPE_CHECKING:
    from secure_dagu.dag.recipes import StepPaths

_PROCESS_STARTED_MS = time.time_ns() // 1_000_000
_TAKEN_OVER = (
    "createdAt",
    "queuedAt",
    "scheduleTime",
    "parallelItem",
    "autoRetryCount",
    "profileName",
)
"""What a retry keeps of the earlier attempt (protocol, section 3.12)."""


class Prepared(Struct, frozen=True, kw_only=True):
    """A run that can begin."""

    definition: Definition
    plan: Plan
    kept: Mapping[int, NodeState]
    scope: Scope
    snapshots: Snapshots
    extra: Mapping[str, Any]
    log_names: Mapping[str, str]
    """File stem of each node's logs, by node name; unique where names collide after cleaning."""
    logs: Mapping[str, LogPaths]
    """The log files of each node, by node name."""
    work_dir: Path
    build_paths: Mapping[str, StepPaths]
    """The files of a build DAG's steps, by step name."""


async def prepare(request: RunRequest) -> Prepared:
    """Load the definition, make the plan, bind parameters, unpack the bundle.

    Raises:
        DefinitionError: it does not load, has a cycle, or the parameters do not fit.
    """
    task = request.task
    definition = request.loaded or load_definition(
        task.definition, name=task.run.name, base_config=task.base_config, is_child=not task.is_root
    )
    dag = definition.main
    if dag.artifacts.enabled:
        request.folders.artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
    binding = params.bind_params(dag, caller_params(request))
    work_dir = request.folders.work
    if request.bundle is not None:
        from secure_dagu.runner.workspace import unpack_bundle  # it brings a logging library of 100 ms

        work_dir = request.folders.work / "workspace"
        await unpack_bundle(request.bundle, work_dir)
    build_paths, read_from = _files(request, dag, work_dir)
    plan = make_plan(dag, read_from)
    handlers = {name: replace(step, name=HANDLER_NODES[name]) for name, step in dag.handlers.items()}
    log_names = log_stems([*(step.name for step in dag.steps), *HANDLER_NODES.values()])
    logs = {
        step.name: log_paths(request.folders, log_names[step.name], dag, step)
        for step in (*dag.steps, *handlers.values())
    }
    kept = _taken_over(request, plan)
    logs |= _logs_of_kept(request, plan, kept)
    scope = environment.first_scope(request, dag, work_dir)
    head = _head(request, dag, work_dir, warnings=definition.warnings)
    pairs = {name: (str(found.stdout), str(found.stderr)) for name, found in logs.items()}
    snapshots = Snapshots(
        head=head,
        steps=[step_text(step) for step in dag.steps],
        logs=[pairs[step.name] for step in dag.steps],
        handler_steps={name: step_text(step) for name, step in handlers.items()},
        handler_logs={name: pairs[HANDLER_NODES[name]] for name in dag.handlers},
    )
    return Prepared(
        definition=definition,
        plan=plan,
        kept=kept,
        scope=replace(scope, params_json=binding.verbatim_json),
        snapshots=snapshots,
        extra={},
        log_names=log_names,
        logs=logs,
        work_dir=work_dir,
        build_paths=build_paths,
    )


def _files(
    request: RunRequest, dag: Dag, work_dir: Path
) -> tuple[Mapping[str, StepPaths], Mapping[str, tuple[str, ...]]]:
    """Return the files that steps of a build DAG read and make, and from which steps each reads; none in other DAGs."""
    if dag.type is not DagType.BUILD:
        return {}, {}
    from secure_dagu.dag.recipes import edges  # only for them
    from secure_dagu.runner.build import Planned, find_paths

    place = Planned(request=request, dag=dag, work_dir=work_dir)
    paths = find_paths(place, environment.known_scope(place, caller_params(request)))
    return paths, edges(dag, paths)


def not_loaded(request: RunRequest, error: str) -> str:
    """Return the document of a run whose definition does not load (protocol, section 3.7)."""
    now = time_text(datetime.now(UTC))
    head = _head(request, None, request.folders.work)
    return encode(
        {
            **head,
            "status": int(RunStatus.FAILED),
            "startedAt": now,
            "finishedAt": now,
            "error": error,
            "params": request.task.params,
            "pendingStepRetries": None,
            "nodes": [],
        }
    )


def caller_params(request: RunRequest) -> str:
    """Return the caller's parameter text: the task's own, else on a retry that of the earlier attempt."""
    task = request.task
    if task.params or task.operation is not Operation.RETRY or not task.previous_status:
        return task.params
    listed = resume.document(task.previous_status).get("paramsList") or []
    words = dict(str(word).partition("=")[::2] for word in listed if "=" in str(word))
    return formats.sorted_json(words) if words else ""


def _taken_over(request: RunRequest, plan: Plan) -> Mapping[int, NodeState]:
    task = request.task
    if task.operation is not Operation.RETRY or not task.previous_status:
        return {}
    return resume.taken_over(plan, task.previous_status, step=task.step, include_downstream=task.include_downstream)


def _logs_of_kept(request: RunRequest, plan: Plan, kept: Mapping[int, NodeState]) -> dict[str, LogPaths]:
    """Return the log files that kept steps have from the attempt before (workflow language, section 5.4).

    Only on the author's host: elsewhere the files are those of another machine, and their names somebody else's word.
    """
    names = {plan.steps[position].name for position, node in kept.items() if node.is_kept}
    if not names or not request.folders.log_suffix:
        return {}
    found = {}
    for node in resume.document(request.task.previous_status).get("nodes") or ():
        name, paths = node["step"]["name"], LogPaths(Path(node.get("stdout") or ""), Path(node.get("stderr") or ""))
        if name in names and paths.stdout.is_file() and paths.stderr.is_file():
            found[name] = paths
    return found


def _head(request: RunRequest, dag: Dag | None, work_dir: Path, *, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the keys of a document that never change."""
    task = request.task
    previous = task.operation is Operation.RETRY
    before = resume.document(task.previous_status) if previous else {}
    head: dict[str, Any] = {
        "root": {"name": task.root.name, "id": task.root.run_id},
        "name": task.run.name,
        "dagRunId": task.run.run_id,
        "attemptId": request.attempt_id,
        "attemptKey": request.attempt_key,
        "workerId": request.worker,
        "pid": os.getpid(),
        "pidStartedAt": _PROCESS_STARTED_MS,
        "createdAt": time.time_ns() // 1_000_000,
        "procGroup": task.queue_name or task.run.name,
        "definitionId": task.definition_id or task.run.name,
        "log": str(run_log(request.folders)),
        "workingDir": str(work_dir),
    }
    if task.parent is not None:
        head["parent"] = {"name": task.parent.name, "id": task.parent.run_id}
    optional = {
        "triggerType": int(environment.trigger(request)),
        "claimKey": request.claim_key,
        "triggerActor": task.trigger_actor,
        "scheduleTime": task.schedule_time,
        "parallelItem": task.parallel_item,
        "profileName": task.profile_name,
        "labels": [label for label in task.labels.split(",") if label],
        "warnings": list(dict.fromkeys((*request.warnings, *warnings))),
    }
    if previous:
        optional |= {key: before[key] for key in _TAKEN_OVER if key in before}
    head.update({key: value for key, value in optional.items() if value})
    if dag is not None and dag.retry is not None and task.is_root:
        head["autoRetryLimit"] = limit_of(resume.document(task.previous_status), dag.retry)
    if dag is not None and dag.artifacts.enabled:
        head["archiveDir"] = str(request.folders.artifacts)
    return head
