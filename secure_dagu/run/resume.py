"""What a further attempt of a run takes over of the one before (workflow language, sections 3.9, 3.25 and 5.4). Pure.

A run that ended is retried: what failed or never ran starts again, with all that follows it. A run that waited for a
person or for a retry goes on: only what has not run yet starts, everything else stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from secure_dagu.dag.model import Step
from secure_dagu.dag.plan import Plan
from secure_dagu.errors import DefinitionError
from secure_dagu.run.machine import OWN_STORY, NodeState, reset_positions
from secure_dagu.run.model import RunStatus, StepStatus
from secure_dagu.run.retry import accepts
from secure_dagu.run.snapshot import kept_nodes

_EXIT = re.compile(r"(?:command \d+ failed: )?exit status (\d{1,3})")
_CALLS = frozenset({"dag.run", "foreach"})
"""Steps that wait because something below them waits: they look again."""


def taken_over(plan: Plan, previous: str, *, step: str = "", include_downstream: bool = False) -> dict[int, NodeState]:
    """Return nodes of this attempt by position, from the status document of the attempt before.

    Raises:
        DefinitionError: there is no such `step`.
    """
    if step and step not in plan.index:
        raise DefinitionError(f"there is no step {step!r} to retry")
    found = kept_nodes(previous, [known.name for known in plan.steps])
    nodes = [found.get(position, NodeState()) for position in range(len(plan.steps))]
    if not step and goes_on(document(previous)):
        again = frozenset(position for position, node in enumerate(nodes) if _starts(plan.steps[position], node.status))
    else:
        statuses = [node.status for node in nodes]
        again = reset_positions(plan, statuses, step=step, include_downstream=include_downstream)
    taken = {}
    for position, node in enumerate(nodes):
        if position not in again:
            taken[position] = _kept(plan.steps[position], node, is_single=bool(step))
        elif node.status is StepStatus.RETRYING or (node.status is StepStatus.NOT_STARTED and node.published):
            taken[position] = _carried(node)
    return taken


def goes_on(before: Mapping[str, Any]) -> bool:
    """Tell whether the attempt before stopped in the middle: it waits, or is queued."""
    return before.get("status") in (RunStatus.WAITING, RunStatus.QUEUED)


def document(text: str) -> Mapping[str, Any]:
    """Return the document of an earlier attempt; empty when it is none."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _starts(step: Step, status: StepStatus) -> bool:
    if status is StepStatus.WAITING:
        return step.kind in _CALLS and step.approval is None
    return status in (StepStatus.NOT_STARTED, StepStatus.RUNNING, StepStatus.RETRYING)


def _kept(step: Step, node: NodeState, *, is_single: bool) -> NodeState:
    if is_single and not node.status.is_terminal:  # the others keep even what they have not
        node = replace(node, status=StepStatus.ABORTED)
    elif node.status is StepStatus.FAILED:
        code = _EXIT.match(node.error)
        accepted = accepts(
            step.continue_on,
            exit_code=int(code[1]) if code else None,
            output_matches=bool(step.continue_on.outputs),
        )
        node = replace(node, is_accepted=accepted)
    return replace(node, is_kept=True)


def _carried(node: NodeState) -> NodeState:
    """Return a node that starts again and remembers why: its retries so far, or who pushed it back."""
    story = {
        key: value for key, value in node.published.items() if key in OWN_STORY and key not in ("children", "build")
    }
    if node.status is StepStatus.RETRYING:
        return NodeState(retry_count=node.retry_count, retried_at=node.retried_at, published=story)
    return NodeState(published=story)
