"""Actions that start no process: `noop`, `log.write`, `outputs.write`."""

from __future__ import annotations

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.run.machine import Result
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.output import raw


async def noop(context: StepContext) -> Done:
    """Succeed."""
    return SUCCESS


async def log_write(context: StepContext) -> Done:
    """Write a message to the step's output."""
    message = resolve(formats.as_text(context.step.inputs["message"]), context.scope, FieldMode.FIELD)
    context.stdout(raw(message if message.endswith("\n") else message + "\n"))
    return SUCCESS


async def outputs_write(context: StepContext) -> Done:
    """Publish values."""
    values = resolve_tree(context.step.inputs["values"], context.scope, FieldMode.FIELD)
    return Done(result=Result.SUCCEEDED, exit_code=0, outputs=values)
