"""What a build DAG would do if it ran now: the decisions of a dry run, without locks and without executing anything.

Workflow language, sections 3.17 and 5.6.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from secure_dagu.dag import recipes
from secure_dagu.dag.model import Definition, Step
from secure_dagu.dag.plan import make_plan
from secure_dagu.dag.recipes import NO_PATHS, Decision, Reason, StepPaths, Verdict
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve
from secure_dagu.errors import SecureDaguError
from secure_dagu.runner import environment
from secure_dagu.runner.api import RunRequest
from secure_dagu.runner.build import Judged, Planned, find_paths, judge, recipe_of, shown
from secure_dagu.runner.files import path_below
from secure_dagu.runner.shell import choose


def preview(request: RunRequest, definition: Definition) -> Mapping[str, Mapping[str, str]]:
    """Return the `build` object of each node as a run would decide now, without locks and without executing anything.

    What only a run knows, such as parameters with `eval` and the outputs of steps, is taken as not known.

    Raises:
        DefinitionError: a cycle, two producers of one path, a path that cannot be used.
    """
    dag = definition.main
    place = Planned(request=request, dag=dag, work_dir=request.folders.work)
    scope = environment.known_scope(place, request.task.params)
    paths = find_paths(place, scope)
    read_from = recipes.edges(dag, paths)
    plan = make_plan(dag, read_from)
    declared = {step.id: paths[step.name].declared() for step in dag.steps if step.id and step.name in paths}
    scope = replace(scope, declared=declared)
    has_secrets = bool(dag.secrets or request.profile_secrets or request.inherited_secrets)
    decisions: dict[str, Decision] = {}
    shows: dict[str, Mapping[str, str]] = {}
    for step in (plan.steps[position] for position in plan.order):
        files = paths.get(step.name, NO_PATHS)
        try:
            judged = _judged_now(place, step, files, scope, has_secrets=has_secrets)
        except (OSError, SecureDaguError) as error:
            judged = Judged(decision=Decision(Verdict.NONE, Reason.EVALUATION_FAILED, str(error)))
        standing = recipes.standing(dag, step, has_secrets=has_secrets, no_reuse=request.no_reuse)
        made = {paths[name].output for name in read_from.get(step.name, ())}
        if standing and judged.decision.reason is Reason.INPUT_MISSING and files.inputs[judged.decision.detail] in made:
            judged = Judged(decision=standing)  # it will be there by then
        decisions[step.name] = recipes.preview(step, read_from.get(step.name, ()), decisions, judged.decision)
        judged = replace(judged, decision=decisions[step.name])
        producer = judged.manifest.producer if judged.decision.verdict is Verdict.REUSE and judged.manifest else ""
        shows[step.name] = shown(judged, "preview", files, producer)
    return shows


def _judged_now(place: Planned, step: Step, files: StepPaths, scope: Scope, *, has_secrets: bool) -> Judged:
    request, dag = place.request, place.dag
    scope = replace(scope, build_inputs=files.inputs)
    cwd = environment.root_dir(place, scope)
    if step.working_dir:
        cwd = path_below(cwd, resolve(step.working_dir, scope, FieldMode.FIELD))
    chosen = choose(step.shell, dag.shell, request.default_shell, request.host_env.get("SHELL", ""))
    managed = {"PWD": str(cwd), "DAG_RUN_STEP_NAME": step.name}
    scope = evaluate_env(step.env, scope.with_env(Layer.STEP_MANAGED, managed), layer=Layer.STEP_ENV)
    recipe = recipe_of(place, step, scope, files, chosen=chosen, cwd=cwd)
    return judge(request, dag, step, files, recipe, has_secrets=has_secrets, control_ran=False, stop=lambda: False)
