"""Questions about runs that several coordinators answer together: each keeps its own runs and knows no others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from secure_dagu.dispatch.model import Caller, RunSummary
from secure_dagu.errors import NotFound, SecureDaguError, Unavailable, UnknownCall
from secure_dagu.run.model import DagRunRef
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.client import RemoteCoordinator, Transport

if TYPE_CHECKING:
    from secure_dagu.dispatch.operating import ListedRun, RunFilter

T = TypeVar("T")


class GatheringCoordinator(RemoteCoordinator):
    """Anyone, but for lists, the status and the end of the records of runs: those are everybody's."""

    def __init__(self, transport: Transport, present: Callable[[], Awaitable[Sequence[Channel]]]) -> None:
        """Take how to ask anyone, and who is there."""
        super().__init__(transport)
        self._present = present

    async def runs(self, caller: Caller, *, name: str | None, run_id: str | None, limit: int) -> Sequence[RunSummary]:
        """List root runs, newest first; those of who does not answer are missing."""
        found = await self._all(lambda one: one.runs(caller, name=name, run_id=run_id, limit=limit))
        return sorted((run for runs in found for run in runs), key=lambda run: run.created_at, reverse=True)[:limit]

    async def find_runs(
        self, caller: Caller, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None
    ) -> Sequence[ListedRun]:
        """List root runs by filter; those of who does not answer are missing."""
        found = await self._all(lambda one: one.find_runs(caller, wanted, limit=limit, before=before))
        by_ident = {run.ident: run for runs in found for run in runs}
        return sorted(by_ident.values(), key=lambda run: (run.at, run.ident), reverse=True)[:limit]

    async def count_runs(self, caller: Caller, *, since: datetime, until: datetime | None) -> Mapping[int, int]:
        """Count root runs by status; those of who does not answer are missing."""
        found = await self._all(lambda one: one.count_runs(caller, since=since, until=until))
        return sum((Counter(dict(counted)) for counted in found), Counter())

    async def run_status(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> str | None:
        """Return the status document of a run; None: nobody who answers knows it."""
        found = await self._all(lambda one: one.run_status(caller, run=run, root=root))
        return next((document for document in found if document is not None), None)

    async def delete_run(self, caller: Caller, *, run: DagRunRef) -> None:
        """Delete a run where it is kept.

        Raises:
            SecureDaguError: nobody has deleted it; what was said by who has it, else by who may have it.
        """
        deleted, problems = await self._asked(lambda one: one.delete_run(caller, run=run))
        if not deleted:
            raise min(problems, key=_ignorance)

    async def _all(self, ask: Callable[[RemoteCoordinator], Awaitable[T]]) -> Sequence[T]:
        """Return what each one answers.

        Raises:
            SecureDaguError: nobody answers.
        """
        answers, problems = await self._asked(ask)
        if not answers:
            raise problems[0]
        return answers

    async def _asked(
        self, ask: Callable[[RemoteCoordinator], Awaitable[T]]
    ) -> tuple[Sequence[T], Sequence[SecureDaguError]]:
        """Return what each one answers, and why the others do not."""
        channels = await self._present()
        answers: list[T] = []
        problems: list[SecureDaguError] = []

        async def asked(channel: Channel | None) -> None:
            try:
                if channel is not None and (problem := await channel.absence()) is not None:
                    raise problem
                answers.append(await ask(RemoteCoordinator(channel or self.transport)))
            except SecureDaguError as error:
                problems.append(error)

        if len(channels) < 2:
            await asked(None)
            return answers, problems
        async with asyncio.TaskGroup() as group:
            for channel in channels:
                group.create_task(asked(channel))
        return answers, problems


def _ignorance(error: SecureDaguError) -> int:
    """Return how little an error says of a run: 0 from who has it, most from who has not."""
    kinds = (Unavailable, UnknownCall, NotFound)
    return next((place for place, kind in enumerate(kinds, 1) if isinstance(error, kind)), 0)
