"""What `/health` and `/ready` of the web server look at: disk, runs, audit log, scheduler, coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from secure_dagu.assembly.disk import Disk
from secure_dagu.dispatch.operating import Fleet, RunFilter, Runs
from secure_dagu.errors import SecureDaguError
from secure_dagu.web.api.deps import Check

ASK_S: Final = 3.0
"""A probe that hears nothing for longer takes it for a no."""


def checks(
    *, disk: Disk, runs: Runs, fleet: Fleet, own_scheduler: Callable[[], str] | None, has_coordinator: bool,
    is_stopping: Callable[[], bool], audit_problem: Callable[[], str],
) -> Mapping[str, Callable[[], Awaitable[Check]]]:  # fmt: skip
    """Return what is looked at, by name.

    Args:
        disk: of the data directory.
        runs: read once for each question.
        fleet: asked for the other services.
        own_scheduler: why the scheduler of this process does not work; None: it has none, so one must be registered.
        has_coordinator: whether there is to be one.
        is_stopping: whether this server is about to end.
        audit_problem: why nothing can be recorded; empty: it can.
    """

    async def store() -> Check:
        return _of(disk.objection())

    async def list_runs() -> Check:
        return await _asked(lambda: runs.find(RunFilter(), limit=1))

    async def scheduler() -> Check:
        if own_scheduler is not None:
            return _of(own_scheduler())
        if any(one.status == "active" for one in await fleet.schedulers()):
            return _of("")
        return _of("no scheduler is active: schedules and queues stand still", is_own=False)

    async def coordinator() -> Check:
        return await _asked(fleet.workers, is_own=False)

    async def audit() -> Check:
        return _of(audit_problem())

    async def server() -> Check:
        return _of("the server is stopping" if is_stopping() else "")

    found = {"store": store, "runs": list_runs, "audit": audit, "scheduler": scheduler, "server": server}
    return {**found, "coordinator": coordinator} if has_coordinator else found


async def _asked(ask: Callable[[], Awaitable[object]], *, is_own: bool = True) -> Check:
    try:
        async with asyncio.timeout(ASK_S):
            await ask()
    except TimeoutError:
        return _of("no answer in time", is_own=is_own)
    except SecureDaguError as problem:
        return _of(problem.what, is_own=is_own)
    return _of("", is_own=is_own)


def _of(problem: str, *, is_own: bool = True) -> Check:
    return Check(ok=not problem, message=problem, is_own=is_own)
