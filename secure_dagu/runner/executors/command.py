"""Command form: each line in a shell of its own, in order, to the first failure (workflow language, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.errors import DefinitionError
from secure_dagu.run.machine import Result
from secure_dagu.run.snapshot import shown_commands
from secure_dagu.runner import process, shell
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.limits import joining

NOTHING: Mapping[str, Any] = {"commands": []}
RECENT = "recent stderr (tail):"


async def execute(context: StepContext) -> Done:
    """Run the command lines."""
    lines = [resolve(line, context.scope, FieldMode.SHELL) for line in context.step.commands]
    for number, line in enumerate(lines, start=1):
        try:
            argv = shell.command_argv(context.shell, line)
        except DefinitionError as error:
            if number == 1:
                context.show(NOTHING)  # what did not start is not repeated anywhere
            return failed(number, lines, Done(result=Result.FAILED, exit_code=1, error=str(error)))
        if number == 1:
            context.show({"commands": shown_commands([line for line in lines if not shell.has_line_break(line)])})
        done = await run(context, argv)
        if done.result is not Result.SUCCEEDED:
            return failed(number, lines, done)
    return SUCCESS


def failed(number: int, lines: list[str], done: Done) -> Done:
    """Return how a list of commands ended whose `number`th failed."""
    if len(lines) == 1 or not done.error:
        return done
    return Done(result=done.result, exit_code=done.exit_code, error=f"command {number} failed: {done.error}")


async def run(context: StepContext, argv: list[str]) -> Done:
    """Run one program of a step."""
    if context.stop.is_set():
        return Done(result=Result.ABORTED)
    if context.limits is not None:
        argv = joining(context.limits, argv)
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
        context.show(NOTHING)
        return Done(result=Result.FAILED, exit_code=127, error=str(error))
    return ended(context, code)


def ended(context: StepContext, code: int) -> Done:
    """Return what the exit code of a program means for its step; negative for the signal that ended it."""
    if code == 0:
        return SUCCESS
    result = Result.ABORTED if context.stop.is_set() else Result.FAILED
    text, recent = process.error_text(code), context.recent_stderr()
    if recent:
        text = f"{text}\n{RECENT}\n{recent}"
    return Done(result=result, exit_code=code if code > 0 else 128 - code, error=text)
