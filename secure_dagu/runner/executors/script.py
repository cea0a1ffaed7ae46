"""Script form: the text in a private file, run by the shell or by its own first line, and always deleted."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.runner import shell
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import command
from secure_dagu.runner.output import raw


async def execute(context: StepContext) -> Done:
    """Run the script."""
    text = resolve(context.step.script, context.scope, FieldMode.SHELL)
    interpreter = None if context.shell.is_explicit else shell.shebang(text)
    # Beside the logs, in a folder that is ours alone, not in the working directory that steps share.
    handle, name = tempfile.mkstemp(prefix="script-", suffix=".sh", dir=context.request.folders.logs)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw(text))
        argv = [*interpreter, name] if interpreter else shell.script_argv(context.shell, name)
        done = await command.run(context, argv)
        return Done(result=done.result, exit_code=done.exit_code, error=done.error.replace(name, "script"))
    finally:
        Path(name).unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink in our own folder
