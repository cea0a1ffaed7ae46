"""What can be asked of another server, in the words of this host's commands: names, runs, logs, changes."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from secure_dagu.contexts import answers
from secure_dagu.contexts.answers import Details, Log, Started, Summary, given
from secure_dagu.contexts.client import Client, Nothing, Query, segment
from secure_dagu.errors import Conflict, InvalidRequest, NotFound
from secure_dagu.run.model import DagRunRef, RunStatus

MAX_PAGE: Final = 500
"""Runs that a server gives at once."""
MAX_PAGES: Final = 100
TAIL: Final = 50
"""Last lines of a stream."""
LATEST: Final = "latest"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}\Z")


class Wanted(Struct, frozen=True, kw_only=True):
    """What a run is started or queued with. What is empty is not said."""

    run_id: str
    params: str = ""
    name: str = ""
    labels: Sequence[str] = ()
    profile: str = ""
    no_reuse: bool = False
    queue: str = ""

    @property
    def body(self) -> Mapping[str, Any]:
        """Return the JSON body."""
        return given(
            dagRunId=self.run_id,
            params=self.params,
            dagName=self.name,
            labels=list(self.labels),
            profile=self.profile,
            noReuse=self.no_reuse,
            queue=self.queue,
        )


class Filter(Struct, frozen=True, kw_only=True):
    """Which runs. Empty means any."""

    name: str = ""
    since: datetime | None = None
    until: datetime | None = None
    statuses: frozenset[RunStatus] = frozenset()
    labels: Sequence[str] = ()
    run_id_part: str = ""

    @property
    def query(self) -> Query:
        """Return the query; without dates a server of Dagu's gives the runs of today only."""
        found = [("status", str(int(status))) for status in sorted(self.statuses)]
        found.append(("fromDate", str(int(self.since.timestamp()) if self.since else 0)))
        if self.until is not None:
            found.append(("toDate", str(int(self.until.timestamp()))))
        if self.labels:
            found.append(("labels", ",".join(self.labels)))
        if self.run_id_part:
            found.append(("dagRunId", self.run_id_part))
        return found


class Definition(Struct, frozen=True, kw_only=True):
    """A definition of the other server."""

    file: str
    dag: str
    """Its own name, under which its runs are kept."""


class Server:
    """Another server."""

    def __init__(self, client: Client) -> None:
        """Take the way to it."""
        self._client = client

    @property
    def where(self) -> str:
        """Return the server as errors name it."""
        return self._client.where

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def definition_of(self, word: str) -> Definition:
        """Return the definition that a word means: its file's name, or the name of one DAG.

        Raises:
            NotFound: there is none there. Conflict: several have that name. InvalidRequest: it is a file of this host.
        """
        try:
            page = await self._client.get(f"/dags/{segment(name_of(word))}", answers.DagPage)
        except NotFound:
            pass
        else:
            return Definition(file=word, dag=(page.dag.name if page.dag is not None else "") or word)
        listed = await self._client.get("/dags", answers.DagList, [("name", word), ("perPage", "1000")])
        found = [one.file_name for one in listed.dags or () if one.dag is not None and one.dag.name == word]
        if len(found) > 1:
            raise Conflict(f"several DAGs are called {word}", why=", ".join(found[:20]), fix="say the file's name")
        if not found:
            raise NotFound(f"failed to load DAG from {word}", why=f"{self.where} has none of that name")
        return Definition(file=name_of(found[0]), dag=word)

    async def dag_of(self, word: str) -> str:
        """Return the name under which the runs of a DAG are kept; its file may be gone, or be called otherwise."""
        try:
            page = await self._client.get(f"/dags/{segment(name_of(word))}", answers.DagPage)
        except NotFound:
            return word
        return (page.dag.name if page.dag is not None else "") or word

    # ── look ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, run: DagRunRef, *, child: str = "") -> Details:
        """Return a run, or one below it.

        Raises:
            NotFound: there is none.
        """
        return (await self._client.get(_path(run, child), answers.RunPage)).details

    def document(self, found: Details) -> dict[str, Any]:
        """Return a run as its status document."""
        return found.whole(self._client.context.server)

    async def log(self, run: DagRunRef, step: str, stream: str, *, child: str = "") -> Log:
        """Return the last lines of a step's stream.

        Raises:
            NotFound: there is none.
        """
        if step in ("", ".", ".."):
            raise NotFound("there is no such log")
        path = f"{_path(run, child)}/steps/{segment(step)}/log"
        return await self._client.get(path, Log, [("stream", stream), ("tail", str(TAIL))])

    async def runs(self, wanted: Filter, *, limit: int) -> AsyncGenerator[Summary, None]:
        """Yield runs, newest first."""
        path = f"/dag-runs/{segment(wanted.name)}" if wanted.name else "/dag-runs"
        cursor, left = "", limit
        for _ in range(MAX_PAGES):
            query = [*wanted.query, ("limit", str(min(left, MAX_PAGE)))]
            page = await self._client.get(path, answers.RunList, query if not cursor else [*query, ("cursor", cursor)])
            for one in (page.dag_runs or ())[:left]:
                left -= 1
                yield one
            cursor = page.next_cursor
            if not cursor or left <= 0:
                return

    async def queued(self, queue: str) -> AsyncGenerator[DagRunRef, None]:
        """Yield the runs that wait in a queue, in its order; none when there is no such queue."""
        cursor = ""
        for _ in range(MAX_PAGES):
            query = [("limit", str(MAX_PAGE))] + ([("cursor", cursor)] if cursor else [])
            try:
                page = await self._client.get(f"/queues/{segment(queue)}/items", answers.QueueItems, query)
            except NotFound:
                return
            for one in page.items or ():
                yield DagRunRef(one.name, one.dag_run_id)
            if not (cursor := page.next_cursor):
                return

    # ── change ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, file: str, wanted: Wanted) -> str:
        """Start a run at once; return its id."""
        return (await self._client.post(f"/dags/{segment(file)}/start", wanted.body, Started)).dag_run_id

    async def enqueue(self, file: str, wanted: Wanted) -> str:
        """Put a run into its queue; return its id."""
        return (await self._client.post(f"/dags/{segment(file)}/enqueue", wanted.body, Started)).dag_run_id

    async def again(self, run: DagRunRef, *, run_id: str, name: str = "") -> Started:
        """Start a new run as an earlier one was."""
        return await self._client.post(f"{_path(run)}/reschedule", given(dagRunId=run_id, dagName=name), Started)

    async def stop(self, run: DagRunRef) -> None:
        """Ask for the end of a run.

        Raises:
            NotRunning: nothing of it goes on.
        """
        await self._client.post(f"{_path(run)}/stop", {}, Nothing)

    async def retry(self, run: DagRunRef, *, step: str, downstream: bool, child: str) -> None:
        """Run again what did not succeed, or one step."""
        body = given(dagRunId=run.run_id, stepName=step, includeDownstream=downstream, subDAGRunId=child)
        await self._client.post(f"{_path(run)}/retry", body, Nothing)

    async def dequeue(self, run: DagRunRef) -> None:
        """Take a queued run out of its queue."""
        path = f"{_path(run)}/dequeue"
        answer = await self._client.send("POST", path, body={})
        if answer.status == 405:  # a server of Dagu's changes this by GET
            answer = await self._client.send("GET", path)
        if not 200 <= answer.status < 300:
            raise self._client.problem(answer)


def name_of(word: str) -> str:
    """Return the word as the name of a DAG of another server.

    Raises:
        InvalidRequest: it is a path, or a file of this host.
    """
    if "/" in word or word.endswith((".yaml", ".yml")):
        raise InvalidRequest(
            f"{word} cannot be used in another context", why="it is a file of this host, and the DAG must be there",
            fix="say the name of a DAG of that server, or `--context local`",
        )  # fmt: skip
    if not _NAME.match(word):
        raise InvalidRequest(f"{word[:80]!r} is no name of a DAG", fix="see the DAGs of that server in its Web UI")
    return word


def _path(run: DagRunRef, child: str = "") -> str:
    base = f"/dag-runs/{segment(run.name)}/{segment(run.run_id)}"
    return f"{base}/sub-dag-runs/{segment(child)}" if child else base
