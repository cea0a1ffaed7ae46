"""Command form: each line in a shell of its own, in order, to the first failure (workflow language, section 3.1)."""

from __future__ import annotations

from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.run.machine import Result
from secure_dagu.runner import process, shell
from secure_dagu.runner.context import SUCCESS, Done, StepContext


async def execute(context: StepContext) -> Done:
    """Run the command lines."""
    commands = context.step.commands
    for number, line in enumerate(commands, start=1):
        argv = shell.command_argv(context.shell, resolve(line, context.scope, FieldMode.SHELL))
        done = await run(context, argv)
        if done.result is not Result.SUCCEEDED:
            prefix = f"command {number} failed: " if len(commands) > 1 and done.error else ""
            return Done(result=done.result, exit_code=done.exit_code, error=prefix + done.error)
    return SUCCESS


async def run(context: StepContext, argv: list[str]) -> Done:
    """Run one program of a step."""
    if context.stop.is_set():
        return Done(result=Result.ABORTED)
    try:
        code = await process.run(
            argv,
            env=context.env,
            cwd=context.cwd,
            stdout=context.stdout,
            stderr=context.stderr,
            marker=context.marker,
            stop=context.stop,
            stopping=context.stopping,
        )
    except process.CannotStart as error:
        return Done(result=Result.FAILED, exit_code=127, error=str(error))
    if code == 0:
        return SUCCESS
    result = Result.ABORTED if context.stop.is_set() else Result.FAILED
    return Done(result=result, exit_code=code if code > 0 else 128 - code, error=process.error_text(code))
