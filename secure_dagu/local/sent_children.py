"""A sub-DAG of a local run that workers execute: a root run at the coordinator, mirrored into its parent's record.

The coordinator knows nothing of the parent, which is only here; stopping the parent cancels the child.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from msgspec import Struct

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, Operation, Task
from secure_dagu.errors import Unavailable
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.runner.api import ChildRequest
from secure_dagu.store.records import Attempt

CANCEL_S = 30.0


class Remote(Struct, frozen=True, kw_only=True):
    """The way from a run of this host to workers."""

    connect: Callable[[], AbstractAsyncContextManager[tuple[Coordinator, Caller]]]
    """Opens the way to a coordinator; nothing is opened before the first child needs it."""
    distributed_by_default: bool = False


async def send(remote: Remote, request: ChildRequest, attempt: Attempt, *, before: str, profile: str) -> dict[str, Any]:
    """Have a child executed by workers; return its final document. Cancelling this call cancels the child."""
    async with remote.connect() as (coordinator, caller):
        accepted = await coordinator.dispatch(caller, _task(request, before=before, profile=profile))
        try:
            return await _mirrored(coordinator, caller, accepted, request, attempt)
        except asyncio.CancelledError:
            async with asyncio.timeout(CANCEL_S):
                await coordinator.cancel(caller, run=accepted.run, root=None)
                await _mirrored(coordinator, caller, accepted, request, attempt)
            raise


def _task(request: ChildRequest, *, before: str, profile: str) -> Task:
    run = DagRunRef(request.dag, request.run_id)
    return Task(
        operation=Operation.RETRY if before else Operation.START,
        run=run,
        root=run,
        definition=request.definition,
        params=request.params,
        worker_selector=request.worker_selector,
        previous_status="",  # the coordinator has its own
        base_config=request.base_config,
        bundle=request.bundle,
        profile_name=profile,
        parallel_item=request.parallel_item,
        definition_id=request.dag,
    )


async def _mirrored(
    coordinator: Coordinator, caller: Caller, task: Task, request: ChildRequest, attempt: Attempt
) -> dict[str, Any]:
    final: dict[str, Any] = {}
    async for event in coordinator.follow(caller, run=task.run, with_logs=False):
        if event.status:
            final = {
                **json.loads(event.status),
                "root": {"name": request.root.name, "id": request.root.run_id},
                "parent": {"name": request.parent.name, "id": request.parent.run_id},
            }
            is_over = RunStatus(final["status"]).is_terminal
            attempt.write(json.dumps(final, ensure_ascii=False), final=is_over)
            if final["status"] == RunStatus.WAITING:
                return final
    if not final:
        raise Unavailable(f"the coordinator told nothing of the child {task.run}", fix="look at its log")
    return final
