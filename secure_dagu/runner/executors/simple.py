"""Actions that start no process: `noop`, `log.write`, `outputs.write`, `router.route`."""

from __future__ import annotations

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.run.machine import ROUTER_VALUE, Result
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.masking import raw


async def noop(context: StepContext) -> Done:
    """Succeed."""
    return SUCCESS


async def log_write(context: StepContext) -> Done:
    """Write a message to the step's output."""
    message = resolve(formats.as_text(context.step.inputs["message"]), context.scope, FieldMode.FIELD)
    context.stdout(raw(message if message.endswith("\n") else message + "\n"))
    return SUCCESS


async def route(context: StepContext) -> Done:
    """Resolve the value that the run's machine chooses branches by (workflow language, section 3.27)."""
    value = resolve(formats.as_text(context.step.inputs["value"]), context.scope, FieldMode.FIELD)
    return Done(result=Result.SUCCEEDED, exit_code=0, kept={ROUTER_VALUE: value})


async def outputs_write(context: StepContext) -> Done:
    """Publish values."""
    values = resolve_tree(context.step.inputs["values"], context.scope, FieldMode.FIELD)
    return Done(result=Result.SUCCEEDED, exit_code=0, outputs=values)
