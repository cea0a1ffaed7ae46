"""A dry run: the document of a run in which every step succeeds, made without executing anything (section 5.6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from secure_dagu.dag.model import DagType
from secure_dagu.errors import DefinitionError
from secure_dagu.local.places import Places
from secure_dagu.local.runs import Start, request_of, task_of
from secure_dagu.run.machine import HANDLER_NODES
from secure_dagu.run.model import AttemptId, RunStatus, StepStatus
from secure_dagu.run.snapshot import step_text, time_text


def document(start: Start, places: Places) -> dict[str, Any]:
    """Return what a run would leave if every step succeeded.

    Raises:
        DefinitionError: it cannot be planned, or a secret that this host keeps is not there.
    """
    now = time_text(datetime.now(UTC))
    dag = start.loaded.main
    if dag.secrets:
        _check_secrets(start, places)
    builds = _builds(start, places)
    return {
        "name": start.run.name,
        "dagRunId": start.run.run_id,
        "status": int(RunStatus.SUCCEEDED),
        "startedAt": now,
        "finishedAt": now,
        "params": start.params,
        "nodes": [
            {**_node(step_text(step), now), **({"build": builds[step.name]} if step.name in builds else {})}
            for step in dag.steps
        ],
        **{HANDLER_NODES[name]: _node(step_text(step), now) for name, step in dag.handlers.items()},
    }


def _builds(start: Start, places: Places) -> Mapping[str, Mapping[str, str]]:
    """Return what a build DAG's steps would decide, by name; nothing for other DAGs.

    Raises:
        DefinitionError: it cannot be planned.
    """
    if start.loaded.main.type is not DagType.BUILD:
        return {}
    from secure_dagu.runner.build_preview import preview  # only for them

    task = task_of(start, AttemptId("dry"), None)
    try:
        return preview(request_of(places, task, start, created=datetime.now(UTC)), start.loaded)
    except DefinitionError as error:
        raise DefinitionError(f"failed to setup execution plan: {error.what}", why=error.why, fix=error.fix) from error


def _check_secrets(start: Start, places: Places) -> None:
    from secure_dagu.runner import environment  # only for workflows with secrets
    from secure_dagu.runner.build import Planned

    request = request_of(places, task_of(start, AttemptId("dry"), None), start, created=datetime.now(UTC))
    place = Planned(request=request, dag=start.loaded.main, work_dir=request.folders.work)
    environment.check_secrets(place, request.task.params)


def _node(step: str, now: str) -> dict[str, Any]:
    return {
        "step": json.loads(step),
        "status": int(StepStatus.SUCCEEDED),
        "startedAt": now,
        "finishedAt": now,
        "stdout": "",
        "stderr": "",
    }
