"""What stands before a run's first step: definition, plan, parameters, environment, secrets.

`prepare` reads and checks, and runs nothing; `environment` may run command substitutions and fetch secrets.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.dag import params
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag, Definition, Shell
from secure_dagu.dag.plan import Plan, make_plan
from secure_dagu.dag.scope import Env, Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve, resolve_dynamic
from secure_dagu.dispatch.model import Operation
from secure_dagu.errors import DefinitionError, SecureDaguError
from secure_dagu.run.machine import HANDLER_NODES, NodeState, reset_positions
from secure_dagu.run.model import RunStatus, StepStatus, TriggerType
from secure_dagu.run.retry import accepts
from secure_dagu.run.snapshot import Snapshots, encode, kept_nodes, step_text, time_text
from secure_dagu.runner import shell
from secure_dagu.runner.api import RunRequest
from secure_dagu.runner.files import path_below, read_bounded
from secure_dagu.runner.workspace import unpack_bundle

if TYPE_CHECKING:
    from secure_dagu.runner.runner import Execution

MAX_FILE_BYTES = 2**20
"""A dotenv file or a file that holds a secret."""
_PROCESS_STARTED_MS = time.time_ns() // 1_000_000
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_TAKEN_OVER = ("createdAt", "queuedAt", "scheduleTime", "parallelItem", "autoRetryCount", "profileName")
"""What a retry keeps of the earlier attempt (protocol, section 3.12)."""
_EXIT = re.compile(r"(?:command \d+ failed: )?exit status (\d{1,3})")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that can begin."""

    definition: Definition
    plan: Plan
    kept: Mapping[int, NodeState]
    scope: Scope
    snapshots: Snapshots
    extra: Mapping[str, Any]
    log_names: Mapping[str, str]
    """File stem of each node's logs, by node name; unique where names collide after cleaning."""
    work_dir: Path


async def prepare(request: RunRequest) -> Prepared:
    """Load the definition, make the plan, bind parameters, unpack the bundle.

    Raises:
        DefinitionError: it does not load, has a cycle, or the parameters do not fit.
    """
    task = request.task
    definition = load_definition(
        task.definition, name=task.run.name, base_config=task.base_config, is_child=not task.is_root
    )
    dag = definition.main
    for step in (*dag.steps, *dag.handlers.values()):
        if step.output_schema is not None:
            raise DefinitionError(f"{step.position}: output_schema is not supported by this version")
    if dag.artifacts.enabled:
        request.folders.artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
    plan = make_plan(dag)
    binding = params.bind_params(dag, _caller_params(request))
    work_dir = request.folders.work
    if request.bundle is not None:
        work_dir = request.folders.work / "workspace"
        await unpack_bundle(request.bundle, work_dir)
    log_names = _log_names([*(step.name for step in dag.steps), *HANDLER_NODES.values()])
    logs = request.folders.logs
    scope = _first_scope(request, dag, work_dir)
    head = _head(request, dag, work_dir, warnings=definition.warnings)
    pairs = {name: (f"{logs / stem}.stdout.log", f"{logs / stem}.stderr.log") for name, stem in log_names.items()}
    snapshots = Snapshots(
        head=head,
        steps=[step_text(step) for step in dag.steps],
        logs=[pairs[step.name] for step in dag.steps],
        handler_steps={name: step_text(replace(step, name=HANDLER_NODES[name])) for name, step in dag.handlers.items()},
        handler_logs={name: pairs[HANDLER_NODES[name]] for name in dag.handlers},
    )
    return Prepared(
        definition=definition,
        plan=plan,
        kept=_kept(request, plan),
        scope=replace(scope, params_json=binding.verbatim_json),
        snapshots=snapshots,
        extra={},
        log_names=log_names,
        work_dir=work_dir,
    )


async def environment(run: Execution, scope: Scope) -> tuple[Scope, tuple[str, ...]]:
    """Return the scope that steps start from, and the values that must never be seen (workflow language, section 2.6).

    Raises:
        SecureDaguError: a parameter's `eval` or a secret failed.
    """
    dag, request = run.dag, run.request
    chosen = shell.choose(Shell(), dag.shell, request.default_shell, request.host_env.get("SHELL", ""))
    binding = params.bind_params(dag, _caller_params(request))
    from secure_dagu.runner.steps import substitute  # steps import the executors, which a definition may not need

    for definition in binding.pending:
        known = binding.params()
        dynamic = resolve_dynamic(definition.eval, _with_params(scope, known))
        try:
            results = [
                await substitute(run, command, scope, chosen=chosen, cwd=run.work_dir) for command in dynamic.commands
            ]
        except SecureDaguError as error:
            binding = binding.fail(definition, str(error))
        else:
            binding = binding.supply(definition, dynamic.fill(results))
    bound = binding.finish()
    scope = _with_params(scope, bound)
    run.note_params(bound.as_list())
    scope = evaluate_env(dag.env, scope, layer=Layer.ROOT_ENV)
    scope = scope.with_env(Layer.DOTENV, _dotenv(run, scope))
    scope = scope.with_env(Layer.PROTECTED, _protected(request, bound, run.dag, run.work_dir))
    secrets = await _secrets(run, scope)
    return scope.with_env(Layer.SECRETS, secrets), tuple(secrets.values())


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


def _caller_params(request: RunRequest) -> str:
    """Return the caller's parameter text: the task's own, else on a retry that of the earlier attempt."""
    task = request.task
    if task.params or task.operation is not Operation.RETRY or not task.previous_status:
        return task.params
    listed = _document(task.previous_status).get("paramsList") or []
    words = dict(str(word).partition("=")[::2] for word in listed if "=" in str(word))
    return encode(words) if words else ""


def _document(text: str) -> Mapping[str, Any]:
    """Return the document of an earlier attempt; empty when it is none."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _kept(request: RunRequest, plan: Plan) -> Mapping[int, NodeState]:
    """Return the nodes of an earlier attempt that a retry does not execute again."""
    task = request.task
    if task.operation is not Operation.RETRY or not task.previous_status:
        return {}
    found = kept_nodes(task.previous_status, [step.name for step in plan.steps])
    if task.step and task.step not in plan.index:
        raise DefinitionError(f"there is no step {task.step!r} to retry")
    statuses = [
        found[position].status if position in found else StepStatus.NOT_STARTED for position in range(len(plan.steps))
    ]
    again = reset_positions(plan, statuses, step=task.step, include_downstream=task.include_downstream)
    kept: dict[int, NodeState] = {}
    for position, step in enumerate(plan.steps):
        if position in again:
            continue
        node = found.get(position, NodeState())
        if not node.status.is_terminal:  # only in a retry of one step: the others keep even what they have not
            node = replace(node, status=StepStatus.ABORTED)
        elif node.status is StepStatus.FAILED:
            code = _EXIT.match(node.error)
            accepted = accepts(
                step.continue_on,
                exit_code=int(code[1]) if code else None,
                output_matches=bool(step.continue_on.outputs),
            )
            node = replace(node, is_accepted=accepted)
        kept[position] = replace(node, is_kept=True)
    return kept


def _head(request: RunRequest, dag: Dag | None, work_dir: Path, *, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the keys of a document that never change."""
    task = request.task
    previous = task.operation is Operation.RETRY
    before = _document(task.previous_status) if previous else {}
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
        "log": str(request.folders.logs / "scheduler.log"),
        "workingDir": str(work_dir),
    }
    if task.parent is not None:
        head["parent"] = {"name": task.parent.name, "id": task.parent.run_id}
        head["triggerType"] = int(TriggerType.SUBDAG)
    elif previous:
        head["triggerType"] = int(TriggerType.RETRY)
    optional = {
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
    if dag is not None and dag.artifacts.enabled:
        head["archiveDir"] = str(request.folders.artifacts)
    return head


def _first_scope(request: RunRequest, dag: Dag, work_dir: Path) -> Scope:
    task = request.task
    context = {
        "dag.name": task.run.name,
        "run.id": task.run.run_id,
        "attempt.id": request.attempt_id,
        "attempt.started_at": time_text(datetime.now(UTC)),
        "paths.log_file": str(request.folders.logs / "scheduler.log"),
        "paths.work_dir": str(work_dir),
        "trigger.type": "subdag" if task.parent else "retry" if task.operation is Operation.RETRY else "unknown",
    }
    if task.schedule_time:
        context["run.scheduled_at"] = task.schedule_time
    if task.parent:
        context |= {"run.root_name": task.root.name, "run.root_id": task.root.run_id}
    if task.trigger_actor:
        context["trigger.actor"] = task.trigger_actor
    if dag.artifacts.enabled:
        context["paths.artifacts_dir"] = str(request.folders.artifacts)
    managed = {"DAGU_EXTERNAL_STEP_RETRY": "1"} if task.external_step_retry else {}
    if task.parallel_item:
        managed["ITEM"] = task.parallel_item
    env = Env().with_layer(Layer.HOST, dict(request.host_env)).with_layer(Layer.MANAGED, managed)
    return Scope(env=env, consts=dag.consts, context=context)


def _protected(request: RunRequest, bound: params.Params, dag: Dag, work_dir: Path) -> dict[str, str]:
    values = {
        "DAG_NAME": request.task.run.name,
        "DAG_RUN_ID": request.task.run.run_id,
        "DAG_RUN_LOG_FILE": str(request.folders.logs / "scheduler.log"),
        "DAG_RUN_WORK_DIR": str(work_dir),
    }
    if dag.artifacts.enabled:
        values["DAG_RUN_ARTIFACTS_DIR"] = str(request.folders.artifacts)
    if bound.json:
        values |= {"DAG_PARAMS_JSON": bound.json, "DAGU_PARAMS_JSON": bound.json}
    return values


def _with_params(scope: Scope, bound: params.Params) -> Scope:
    scope = replace(scope, params=bound.named, params_json=bound.json)
    return scope.with_env(Layer.PARAMS, bound.env)


def _dotenv(run: Execution, scope: Scope) -> dict[str, str]:
    """Return what dotenv files below the working directory say; missing ones are ignored."""
    values: dict[str, str] = {}
    for name in dict.fromkeys((".env", *run.dag.dotenv)):
        path = path_below(run.work_dir, resolve(name, scope, FieldMode.HOST))
        if not path.exists():
            continue
        try:
            text = read_bounded(path, MAX_FILE_BYTES, what=f"the dotenv file {name!r}", follow=True)
        except DefinitionError as error:
            run.log("WARN", "Dotenv file not read", err=str(error))
            continue
        from dotenv import dotenv_values  # only for runs that have such a file

        # Not with its own interpolation: that one sees this process's environment, which no step may.
        for key, value in dotenv_values(stream=io.StringIO(text), interpolate=False).items():
            if value is not None:
                values[key] = _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), value)
    return values


async def _secrets(run: Execution, scope: Scope) -> dict[str, str]:
    """Resolve declared secrets (workflow language, section 3.21)."""
    values: dict[str, str] = {}
    for item in run.dag.secrets:
        if item.ref:
            values[item.name] = await run.children.resolve_secret(name=item.name, ref=item.ref)
        elif item.provider == "env":
            value = scope.env.find(item.key, host=True)
            if value is None:
                raise DefinitionError(
                    f"secret {item.name}: the variable {item.key} is not set on this worker",
                    fix="set it, and name it in env_passthrough of the worker's configuration",
                )
            values[item.name] = value
        elif item.provider == "file":
            what = f"the file {item.key!r} of the secret {item.name}"
            # Links are followed: Kubernetes mounts secrets as links.
            values[item.name] = read_bounded(path_below(run.work_dir, item.key), MAX_FILE_BYTES, what=what, follow=True)
        else:
            raise DefinitionError(f"secret {item.name}: provider {item.provider!r} is not supported by this version")
    return values


def _log_names(nodes: list[str]) -> dict[str, str]:
    """Return a file stem for each node: its name with unsafe characters as `_`, numbered where two are alike."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for node in nodes:
        stem = base = _UNSAFE.sub("_", node)[:100]
        number = 2
        while stem in taken:
            stem, number = f"{base}_{number}", number + 1
        taken.add(stem)
        stems[node] = stem
    return stems
