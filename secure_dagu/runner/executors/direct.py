"""`action: exec`: a program and its arguments, no shell (workflow language, section 3.1)."""

from __future__ import annotations

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.run.snapshot import shown_commands
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import command


async def execute(context: StepContext) -> Done:
    """Run the program."""
    words = [context.step.inputs["command"], *(context.step.inputs.get("args") or ())]
    argv = [resolve(formats.as_text(word), context.scope, FieldMode.HOST) for word in words]
    context.show({"commands": shown_commands([" ".join(argv)])})
    return await command.run(context, argv)
