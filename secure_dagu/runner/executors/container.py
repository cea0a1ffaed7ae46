"""`docker.run`, and the shell work of steps whose place is a container (workflow language, section 4.7)."""

from __future__ import annotations

from secure_dagu.dag import formats
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve
from secure_dagu.run.machine import Result
from secure_dagu.run.snapshot import shown_commands
from secure_dagu.runner import container_specs, containers, docker, shell
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import command
from secure_dagu.runner.executors.places import remote_scope
from secure_dagu.runner.executors.stopping import unless_stopped

SCRIPT = "_DAGU_INTERNAL_SCRIPT"
_WITH_SHEBANG = f"""\
f=$(mktemp) && trap 'rm -f "$f"' EXIT && printf %s "${SCRIPT}" > "$f" && unset {SCRIPT} && "$@" "$f"\
"""
"""Runs a script by its own first line: the text comes in a variable, because a container has no file of ours."""


async def execute(context: StepContext) -> Done:
    """Do the step's work in its container."""
    return await unless_stopped(context.stop, _execute(context))


async def _execute(context: StepContext) -> Done:
    step = context.step
    if step.kind in ("docker.run", "container.run"):
        return await _action(context)
    if step.container is None and context.container is not None:
        return await _commands(context, await context.container.room(context))
    async with containers.opened(context, step.container or context.dag.container, context.scope) as room:
        return await _commands(context, room)


async def _action(context: StepContext) -> Done:
    spec = container_specs.read_action(
        context.step.inputs,
        remote_scope(context.scope),
        root=context.root,
        run_id=context.request.task.run.run_id,
        env=context.scope.env.layer(Layer.STEP_ENV),
        resources=context.dag.resources,
    )
    async with docker.connected(docker.daemon_of(context.request.host_env)) as daemon:
        if spec.running:
            code = await containers.enter(daemon, spec, context)
        else:
            code = await containers.run_image(daemon, spec, context)
    return command.ended(context, code)


async def _commands(context: StepContext, room: containers.Room) -> Done:
    """Run the step's commands, in order, to the first failure."""
    container = context.step.container if context.step.container is not None else context.dag.container
    own = container.get("env") if isinstance(container, dict) else None
    scope = evaluate_env(container_specs.env_entries(own), remote_scope(context.scope), layer=Layer.CONTAINER)
    env, folder = containers.environment(scope), containers.folder_of(context, scope)
    lines, programs, variables = _programs(context, scope, room.spec.shell)
    context.show({"commands": shown_commands(lines)})
    for number, argv in enumerate(programs, start=1):
        done = command.ended(context, await room.run(argv, context, env={**env, **variables}, folder=folder))
        if done.result is not Result.SUCCEEDED:
            return command.failed(number, lines, done)
    return SUCCESS


def _programs(
    context: StepContext, scope: Scope, given: tuple[str, ...]
) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Return what is shown, the programs to run, and variables that they need besides."""
    step = context.step
    is_chosen = bool(step.shell.program or context.dag.shell.program)
    chosen = context.shell if is_chosen else shell.Chosen("/bin/sh", (), is_explicit=False)
    prefix = given or tuple(shell.command_argv(chosen, "")[:-1])
    if step.kind == "exec":
        words = [step.inputs["command"], *(step.inputs.get("args") or ())]
        argv = [resolve(formats.as_text(word), scope, FieldMode.FIELD) for word in words]
        return [" ".join(argv)], [argv], {}
    if step.kind == "script":
        text = resolve(step.script, scope, FieldMode.FIELD)
        interpreter = None if given or chosen.is_explicit else shell.shebang(text)
        if interpreter is not None:
            return [], [["/bin/sh", "-c", _WITH_SHEBANG, "sh", *interpreter]], {SCRIPT: text}
        return [], [[*prefix, text]], {}
    lines = [resolve(line, scope, FieldMode.FIELD) for line in step.commands]
    return lines, [[*prefix, line] for line in lines], {}
