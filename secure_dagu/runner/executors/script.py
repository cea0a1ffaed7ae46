"""Script form: the text in a private file, run by the shell or by its own first line, and always deleted."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.run.model import SCRIPT_PREFIX
from secure_dagu.runner import shell
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import command
from secure_dagu.runner.masking import raw


async def execute(context: StepContext) -> Done:
    """Run the script."""
    text = resolve(context.step.script, context.scope, FieldMode.SHELL)
    interpreter = None if context.shell.is_explicit else shell.shebang(text)
    # In the system's temporary folder (mode 0600), not in the working directory that steps share.
    handle, name = tempfile.mkstemp(prefix=SCRIPT_PREFIX, suffix=shell.script_suffix(context.shell))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw(text))
        argv = [*interpreter, name] if interpreter else shell.script_argv(context.shell, name)
        done = await command.run(context, argv)
        return Done(result=done.result, exit_code=done.exit_code, error=without_script(done.error, name, text))
    finally:
        Path(name).unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink in our own folder


def without_script(error: str, path: str, text: str) -> str:
    """Return an error without the script's path and without its lines: `line 3: not found` is all that a reader needs.

    Shells repeat a line that they cannot parse. Words that stand alone may be anything, so only longer lines are found.
    """
    error = re.sub(re.escape(path) + r": (?:line )?(\d+):", r"line \1:", error).replace(path, "script")
    error = error.replace(Path(path).name, "script")
    for line in {line.strip() for line in text.splitlines()}:
        if " " in line and len(line) > 3:
            error = error.replace(line, "…")
    return error
