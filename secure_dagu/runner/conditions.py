"""Evaluate preconditions, tests of repeat policies and command substitutions (workflow language, 2.11, 3.7, 3.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.dag.model import Precondition
from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, resolve, resolve_dynamic
from secure_dagu.errors import DefinitionError
from secure_dagu.run import patterns
from secure_dagu.run.snapshot import authored_condition
from secure_dagu.runner import process, shell
from secure_dagu.runner.output import Capture

if TYPE_CHECKING:
    from secure_dagu.runner.graph import Graph

SUBSTITUTION_S = 2.0
"""How long a command substitution may take (workflow language, section 2.11)."""


async def check_all(
    run: Graph, preconditions: Sequence[Precondition], scope: Scope, *, chosen: shell.Chosen, cwd: Path
) -> list[str]:
    """Evaluate every precondition, in order; return for each why it is not met, empty when it is.

    Raises:
        DefinitionError: one of them cannot be evaluated.
    """
    results = []
    for number, item in enumerate(preconditions):
        try:
            results.append(await why_unmet(run, item, scope, chosen=chosen, cwd=cwd))
        except DefinitionError as error:
            raise DefinitionError(f"preconditions[{number}] cannot be evaluated", why=str(error)) from None
    return results


def shown(preconditions: Sequence[Precondition], results: Sequence[str]) -> list[dict[str, object]]:
    """Return preconditions with their results, as a document shows them: `error` where one is not met."""
    pairs = zip(preconditions, results, strict=True)
    return [{**authored_condition(item), **({"error": result} if result else {})} for item, result in pairs]


async def why_unmet(run: Graph, item: Precondition, scope: Scope, *, chosen: shell.Chosen, cwd: Path) -> str:
    """Return why a precondition is not met, empty when it is; `negate` turns it around.

    Raises:
        DefinitionError: its `eval` failed, or its regex is none.
    """
    if item.expected is None:
        text = resolve(item.condition, scope, FieldMode.SHELL)
        argv = shell.inline_argv(chosen, text, stops_at_errors=False)
        code, _ = await _output(run, argv, scope, cwd)
        is_met, why = code == 0, f"condition was not met: {process.error_text(code)}"
    else:
        actual = await _actual(run, item, scope, chosen=chosen, cwd=cwd)
        is_met = patterns.line_equals(item.expected, actual)
        why = f'condition was not met: expected "{item.expected}", got "{actual[:200]}"'
    if not item.negate:
        return "" if is_met else why
    return "condition was met, and it is negated" if is_met else ""


async def _actual(run: Graph, item: Precondition, scope: Scope, *, chosen: shell.Chosen, cwd: Path) -> str:
    if not item.eval:
        return resolve(item.condition, scope, FieldMode.FIELD)
    dynamic = resolve_dynamic(item.eval, scope)
    results = [await substitute(run, command, scope, chosen=chosen, cwd=cwd) for command in dynamic.commands]
    return dynamic.fill(results)


async def substitute(run: Graph, command: str, scope: Scope, *, chosen: shell.Chosen, cwd: Path) -> str:
    """Run one command substitution; return its trimmed output.

    Raises:
        DefinitionError: it failed or took too long.
    """
    argv = shell.inline_argv(chosen, command, stops_at_errors=False)
    code, text = await _output(run, argv, scope, cwd, SUBSTITUTION_S)
    if code != 0:
        raise DefinitionError("a command substitution failed", why=process.error_text(code))
    return text.strip()


async def _output(
    run: Graph, argv: list[str], scope: Scope, cwd: Path, limit_s: float | None = None
) -> tuple[int, str]:
    """Run a helper command of the engine; its output is not logged. A stop of the run ends it."""
    captured = Capture(run.dag.max_output_bytes)
    try:
        async with asyncio.timeout(limit_s):
            code = await process.run(
                argv,
                env=scope.env.flat(),
                cwd=cwd,
                stdout=captured.write,
                stderr=lambda data: None,
                marker=f"{run.marker}checks/",
                stop=run.halt(),
                stopping=process.Stopping(grace_s=run.dag.max_clean_up_s),
            )
    except TimeoutError:
        return -9, ""
    except process.CannotStart:
        return 127, ""
    return code, captured.text() if not captured.is_over else ""
