"""`jq.filter` (workflow language, section 4.4), and jq programs for `data.pick`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError
from secure_dagu.run.machine import Result
from secure_dagu.runner import process
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.files import path_below, read_bounded

CHILD = Path(__file__).parent.parent / "jq_child.py"
MAX_INPUT = 16 * 2**20
FILE = "file://"


async def execute(context: StepContext) -> Done:
    """Print the results of a jq program."""
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    text = _text(context, options)
    form = "raw" if options.boolean("raw") else "pretty"
    return await run(context, options.text("filter"), text, form=form, stdout=context.stdout)


def _text(context: StepContext, options: Options) -> str:
    if "input" in options:
        return read_file(context, options.needed("input"))
    data = options.any("data")
    if isinstance(data, str):
        return read_file(context, data.removeprefix(FILE)) if data.startswith(FILE) else data
    return formats.compact_json(data)


def read_file(context: StepContext, name: str) -> str:
    """Return the text of an input file of the author's."""
    return read_bounded(path_below(context.cwd, name), MAX_INPUT, what=name, follow=True)


async def run(context: StepContext, program: str, data: str, *, form: str, stdout: process.Sink) -> Done:
    """Run a jq program over JSON text in a process of its own; `form` is one of `jq_child`."""
    problem = bytearray()

    def keep(text: bytes) -> None:
        if len(problem) < 4096:
            problem.extend(text)

    handle, name = tempfile.mkstemp(prefix="secure-dagu-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            json.dump({"filter": program, "data": data, "form": form}, file)
        code = await process.run(
            [sys.executable, "-I", str(CHILD), name],
            env=context.env,
            cwd=context.cwd,
            stdout=stdout,
            stderr=keep,
            marker=context.marker,
            stop=context.stop,
            stopping=context.stopping,
        )
    except process.CannotStart as error:
        raise DefinitionError("jq cannot be started", why=str(error)) from None
    finally:
        Path(name).unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink of our own file
    if context.stop.is_set():
        return Done(result=Result.ABORTED)
    if code == 0:
        return Done(result=Result.SUCCEEDED, exit_code=0)
    why = problem.decode(errors="replace").strip() or "it was killed"
    (context.stderr or context.stdout)(f"{why}\n".encode())
    return Done(result=Result.FAILED, exit_code=1, error=why.partition("\n")[0])


async def results(context: StepContext, program: str, data: Any, limit: int) -> list[Any] | Done:
    """Return all results of a program over a value; how it ended, if not well.

    Raises:
        DefinitionError: the results have more than `limit` bytes.
    """
    found = bytearray()

    def keep(text: bytes) -> None:
        if len(found) <= limit:
            found.extend(text)

    done = await run(context, program, formats.compact_json(data), form="compact", stdout=keep)
    if done.result is not Result.SUCCEEDED:
        return done
    if len(found) > limit:
        raise DefinitionError("the selection is too large", why=f"the limit is {limit} bytes")
    return [json.loads(line) for line in found.decode().split("\n") if line]
