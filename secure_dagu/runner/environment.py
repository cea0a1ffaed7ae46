"""What the steps of a run see: parameters, managed values, environment, dotenv files, secrets.

Workflow language, sections 2.6, 2.8, 3.4 and 3.21. `first_scope` reads nothing; `evaluate` may run command
substitutions, read files and fetch secrets.
"""

from __future__ import annotations

import io
import os
import re
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from secure_dagu.dag import params
from secure_dagu.dag.model import Dag, SecretDef, Shell
from secure_dagu.dag.scope import Env, Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve, resolve_dynamic
from secure_dagu.dispatch.model import Operation
from secure_dagu.errors import DefinitionError, SecureDaguError
from secure_dagu.run import resume
from secure_dagu.run.model import TriggerType
from secure_dagu.run.snapshot import time_text
from secure_dagu.runner import conditions, shell
from secure_dagu.runner.api import RunRequest
from secure_dagu.runner.files import path_below, read_bounded
from secure_dagu.runner.streams import run_log

if TYPE_CHECKING:
    from secure_dagu.runner.runner import Execution

MAX_FILE_BYTES = 2**20
"""A dotenv file or a file that holds a secret."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")


def first_scope(request: RunRequest, dag: Dag, work_dir: Path) -> Scope:
    """Return what is known before anything is evaluated."""
    task = request.task
    context = {
        "dag.name": task.run.name,
        "run.id": task.run.run_id,
        "attempt.id": request.attempt_id,
        "attempt.started_at": time_text(datetime.now(UTC)),
        "paths.log_file": str(run_log(request.folders)),
        "paths.work_dir": str(work_dir),
        "trigger.type": trigger(request).name.lower(),
    }
    if task.schedule_time:
        context["run.scheduled_at"] = _utc(task.schedule_time)
    if task.parent:
        context |= {"run.root_name": task.root.name, "run.root_id": task.root.run_id}
    if task.trigger_actor:
        context["trigger.actor"] = task.trigger_actor
    if task.profile_name:
        context |= {"profile.name": task.profile_name, "profile.resolved_at": context["attempt.started_at"]}
    if dag.artifacts.enabled:
        context["paths.artifacts_dir"] = str(request.folders.artifacts)
    managed = {"DAGU_EXECUTABLE": _executable()}
    if task.external_step_retry:
        managed["DAGU_EXTERNAL_STEP_RETRY"] = "1"
    env = (
        Env(ambient=request.process_env)
        .with_layer(Layer.HOST, dict(request.host_env))
        .with_layer(Layer.PROFILE, dict(request.inherited_env))
        .with_layer(Layer.MANAGED, managed)
    )
    return Scope(env=env, consts=dag.consts, context=context)


def trigger(request: RunRequest) -> TriggerType:
    """Return what started a run."""
    if request.task.parent is not None:
        return TriggerType.SUBDAG
    if request.trigger is not None:
        return request.trigger
    before = resume.document(request.task.previous_status)
    if request.task.operation is Operation.RETRY and not resume.goes_on(before):
        return TriggerType.RETRY
    try:
        return TriggerType(before.get("triggerType", TriggerType.UNKNOWN))  # as told at the start
    except ValueError:
        return TriggerType.UNKNOWN


async def evaluate(run: Execution, scope: Scope, caller_params: str) -> tuple[Scope, tuple[str, ...]]:
    """Return the scope that steps start from, and the values that must never be seen.

    Raises:
        SecureDaguError: a parameter's `eval` or a secret failed.
    """
    dag, request = run.dag, run.request
    bound = await _parameters(run, scope, caller_params)
    managed = _protected(request, bound, dag, run.work_dir)
    scope = _with_params(scope, bound)
    # Root `env` may read managed values and name one anew; the last word is `PROTECTED` (section 2.6).
    scope = scope.with_env(Layer.MANAGED, {**scope.env.layer(Layer.MANAGED), **managed})
    run.note_params(bound.as_list())
    scope = evaluate_env(dag.env, scope, layer=Layer.ROOT_ENV)
    scope = scope.with_env(Layer.DOTENV, _dotenv(run, scope))
    scope = scope.with_env(Layer.INJECTED, {**request.profile_env, **request.profile_secrets})
    scope = scope.with_env(Layer.PROTECTED, managed)
    secrets = {item.name: await _secret(run, item, scope) for item in dag.secrets}
    hidden = (*secrets.values(), *request.profile_secrets.values(), *request.inherited_secrets)
    return scope.with_env(Layer.SECRETS, secrets), hidden


class Place(Protocol):
    """A run as far as its directories matter: one that goes on, or one that is only planned."""

    @property
    def request(self) -> RunRequest: ...

    @property
    def dag(self) -> Dag: ...

    @property
    def work_dir(self) -> Path: ...

    def log(self, level: str, message: str, **fields: str) -> None: ...


def known_scope(place: Place, caller_params: str) -> Scope:
    """Return the scope of a run as far as it is known without running or fetching anything.

    Raises:
        DefinitionError: the parameters do not fit.
    """
    dag, request = place.dag, place.request
    scope = _with_params(first_scope(request, dag, place.work_dir), params.bind_params(dag, caller_params).params())
    scope = evaluate_env(dag.env, scope, layer=Layer.ROOT_ENV)
    scope = scope.with_env(Layer.DOTENV, _dotenv(place, scope))
    return scope.with_env(Layer.INJECTED, {**request.profile_env, **request.profile_secrets})


def check_secrets(place: Place, caller_params: str) -> None:
    """Read the secrets that this host keeps, to find out whether they are there: a dry run does (section 3.21).

    Raises:
        DefinitionError: one is not.
    """
    scope = known_scope(place, caller_params)
    for item in place.dag.secrets:
        if not item.ref:
            _own_secret(place, item, scope)


def root_dir(run: Place, scope: Scope) -> Path:
    """Return the directory of the run's steps: the DAG's own, `--default-working-dir`, else the run's work directory.

    A relative one is below the directory of the DAG's file, where that is on this host (section 3.4).
    """
    base = run.request.dag_dir or run.work_dir
    if run.dag.working_dir:
        return path_below(base, resolve(run.dag.working_dir, scope, FieldMode.FIELD))
    if run.request.default_working_dir:
        return path_below(base, run.request.default_working_dir)
    return run.work_dir


async def _parameters(run: Execution, scope: Scope, caller_params: str) -> params.Params:
    binding = params.bind_params(run.dag, caller_params)
    if not binding.pending:
        return binding.finish()
    # Not the DAG's own shell, whose references may need these very parameters (section 2.11).
    host = scope.env.find("SHELL", host=True) or ""
    chosen = shell.choose(Shell(), Shell(), run.request.default_shell, host)
    for definition in binding.pending:
        dynamic = resolve_dynamic(definition.eval, _with_params(scope, binding.params()))
        try:
            results = [
                await conditions.substitute(run, command, scope, chosen=chosen, cwd=run.work_dir)
                for command in dynamic.commands
            ]
        except SecureDaguError as error:
            binding = binding.fail(definition, str(error))
        else:
            binding = binding.supply(definition, dynamic.fill(results))
    return binding.finish()


def _protected(request: RunRequest, bound: params.Params, dag: Dag, work_dir: Path) -> dict[str, str]:
    values = {
        "DAG_NAME": request.task.run.name,
        "DAG_RUN_ID": request.task.run.run_id,
        "DAG_RUN_LOG_FILE": str(run_log(request.folders)),
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


def _dotenv(run: Place, scope: Scope) -> dict[str, str]:
    """Return what dotenv files say: each in the working directory, else beside the DAG's file; missing ones count not.

    Relative paths only come from there; a file that cannot be read or parsed is a warning. An empty list is no file.
    """
    values: dict[str, str] = {}
    if not run.dag.dotenv:
        return values
    places = [root_dir(run, scope), *([run.request.dag_dir] if run.request.dag_dir else [])]
    for name in dict.fromkeys((".env", *run.dag.dotenv)):
        asked = resolve(name, scope, FieldMode.HOST)
        path = next((path for place in places if (path := path_below(place, asked)).exists()), None)
        if path is None:
            continue
        try:
            text = read_bounded(path, MAX_FILE_BYTES, what=f"the dotenv file {name!r}", follow=True)
        except DefinitionError as error:
            run.log("WARN", "Dotenv file not read", err=str(error))
            continue
        from dotenv.parser import parse_stream  # only for runs that have such a file

        # Not with the library's interpolation: that one sees this process's environment, which no step may.
        for line in parse_stream(io.StringIO(text)):
            if line.error:
                run.log("WARN", "Dotenv line not read", file=name, line=str(line.original.line))
            elif line.key is not None and line.value is not None:
                values[line.key] = _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), line.value)
    return values


async def _secret(run: Execution, item: SecretDef, scope: Scope) -> str:
    """Resolve a declared secret (section 3.21)."""
    if item.ref:
        return await run.children.resolve_secret(name=item.name, ref=item.ref)
    return _own_secret(run, item, scope)


def _own_secret(run: Place, item: SecretDef, scope: Scope) -> str:
    """Read a secret that this host keeps."""
    if item.provider == "env":
        value = scope.env.find(item.key, host=True)
        if value is None:
            raise DefinitionError(
                f"secret {item.name}: the variable {item.key} is not set here",
                fix="set it; on a worker, name it in env_passthrough of the worker's configuration",
            )
        return value
    if item.provider == "file":
        what = f"the file {item.key!r} of the secret {item.name}"
        path = path_below(root_dir(run, scope), item.key)
        if run.request.dag_dir is not None and not path.exists():
            path = path_below(run.request.dag_dir, item.key)
        # Links are followed: Kubernetes mounts secrets as links.
        return read_bounded(path, MAX_FILE_BYTES, what=what, follow=True)
    raise DefinitionError(f"secret {item.name}: provider {item.provider!r} is not supported by this version")


def _utc(text: str) -> str:
    """Return an RFC 3339 time in UTC; anything else as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return time_text(moment.astimezone(UTC)) if moment.tzinfo else text


@cache
def _executable() -> str:
    """Return the absolute path of the program that runs this: the one beside the interpreter, else what was called."""
    beside = Path(sys.executable).with_name("secure-dagu")
    return str(beside) if beside.exists() else os.path.abspath(sys.argv[0])
