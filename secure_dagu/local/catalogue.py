"""All runs of an installation (`dispatch.operating.Runs`): this host's records and a coordinator's, as one list.

A run that was handed to the coordinator is the coordinator's, whatever its old record here says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from secure_dagu.dispatch.model import ArtifactInfo
from secure_dagu.dispatch.operating import (
    LATEST,
    Condition,
    Document,
    FoundRun,
    ListedRun,
    LogPage,
    RunFilter,
    RunPage,
    Window,
)
from secure_dagu.dispatch.queueing import from_fields
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import InvalidRequest, NotFound, SecureDaguError, Unavailable
from secure_dagu.local import history
from secure_dagu.local.places import Places
from secure_dagu.local.reading import (
    conditions_of,
    cursor_of,
    files_of,
    has_files,
    listed,
    log_path,
    log_stream,
    nodes_of,
    place_in,
    ref_of,
)
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.run.outputs import outputs_document
from secure_dagu.store.folder import Folder
from secure_dagu.store.log_windows import BLOCK, open_log, page
from secure_dagu.store.records import Attempt, Record
from secure_dagu.store.run_index import FOLDERS_EVERY_S, Row, RunIndex

log = structlog.get_logger()
A = TypeVar("A")
B = TypeVar("B")

LOOK_EVERY_S: Final = 0.5
"""How often live views hear of changes."""
_WATCHED: Final = 200
_QUEUED_HINTS: Final = 1_000


class Catalogue:
    """Look at all runs. Enter `watching` where `changes` is used."""

    def __init__(
        self,
        places: Places,
        *,
        way: Way,
        reader: str = "server",
    ) -> None:
        """Take where this host keeps runs, and the coordinator that has the others.

        Args:
            places: of this host.
            way: to the coordinator.
            reader: which kind of process looks: each keeps an index of its own.
        """
        self._places, self._way = places, way
        self._index = RunIndex(places.dag_runs_dir, history.current, reader=reader)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="run-index")
        """Lists wait for an index that is being made; on threads of everybody they would hold up all other requests."""
        self._missing: set[str] = set()
        """What the coordinator did not tell when it was last asked."""
        self._listeners: set[asyncio.Queue[DagRunRef]] = set()

    def when_ended(self, listener: Callable[[Document], None]) -> None:
        """Call `listener` with each root run of this host that ends, once, on any thread. Needs `watching`."""
        self._index.ended = listener

    def close(self) -> None:
        """Let go of the index."""
        self._reader.shutdown(cancel_futures=True)
        self._index.close()

    async def _indexed(self, work: Callable[[], A]) -> A:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    # ── lists ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def find(self, wanted: RunFilter, *, limit: int, cursor: str = "") -> RunPage:
        """Return one page (`Runs.find`)."""
        if not 1 <= limit <= 500:
            raise InvalidRequest("limit is 1 to 500")
        before = place_in(cursor)
        here, theirs = await _both(
            self._indexed(lambda: self._index.find(wanted, limit=limit + 1, before=before)),
            self._theirs(wanted, limit + 1, before),
        )
        found = [(row.at, row.ident, row.document) for row in here]
        found += [(row.at, row.ident, json.loads(row.document)) for row in theirs]
        owned = {row.ident for row in theirs}
        merged = sorted(
            (row for number, row in enumerate(found) if number >= len(here) or row[1] not in owned),
            key=lambda row: row[:2], reverse=True,
        )[: limit + 1]  # fmt: skip
        listed_here = {ident for _, ident, _ in merged[:limit]} - owned
        noted = await asyncio.to_thread(self._noted, [row for row in here if row.ident in listed_here])
        shown = tuple(self._listed(document, noted.get(ident, ())) for _, ident, document in merged[:limit])
        last = merged[limit - 1] if len(merged) > limit else None
        return RunPage(runs=shown, next_cursor=cursor_of(last[0], last[1]) if last is not None else "")

    async def count(self, *, since: datetime, until: datetime | None = None) -> Mapping[RunStatus, int]:
        """Return how many root runs have each status (`Runs.count`)."""
        here, theirs = await _both(
            self._indexed(lambda: self._index.count(since, until)), self._their_count(since, until)
        )
        return Counter(here) + Counter({RunStatus(status): number for status, number in theirs.items()})

    async def _theirs(self, wanted: RunFilter, limit: int, before: tuple[int, str] | None) -> Sequence[ListedRun]:
        if self._way.coordinator is None:
            return ()
        try:
            found = await self._way.coordinator.find_runs(self._way.caller, wanted, limit=limit, before=before)
        except SecureDaguError as problem:  # what is here is shown all the same; the system page says what is wrong
            self._note("list", problem)
            return ()
        self._missing.discard("list")
        return found

    async def _their_count(self, since: datetime, until: datetime | None) -> Mapping[int, int]:
        if self._way.coordinator is None:
            return {}
        try:
            counted = await self._way.coordinator.count_runs(self._way.caller, since=since, until=until)
        except SecureDaguError as problem:
            self._note("count", problem)
            return {}
        self._missing.discard("count")
        return counted

    def _note(self, what: str, problem: SecureDaguError) -> None:
        """Log that the coordinator's runs are missing, once until they are there again."""
        if what not in self._missing:
            log.warning("runs.coordinator_not_asked", missing=what, **problem.as_dict())
        self._missing.add(what)

    def _noted(self, rows: Sequence[Row]) -> Mapping[str, tuple[Condition, ...]]:
        """Return why runs of this host's queues wait, by their identity in lists."""
        return {
            row.ident: _conditions(Attempt(self._places.dag_runs_dir / row.place / row.attempt))
            for row in rows
            if row.document.get("status") == RunStatus.QUEUED
        }

    def _listed(self, document: Document, noted: tuple[Condition, ...]) -> FoundRun:
        return FoundRun(
            document=document,
            conditions=noted or conditions_of(document),
            has_artifacts=bool(document.get("archiveDir")),
        )

    # ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, run: DagRunRef, *, child: str = "") -> FoundRun:
        """Return a run whole (`Runs.get`)."""
        document, attempt = await self._document(run, child)
        conditions = conditions_of(document)
        if attempt is not None and document.get("status") == RunStatus.QUEUED:
            conditions = await asyncio.to_thread(_conditions, attempt)
        archive = document.get("archiveDir")
        has_artifacts = bool(archive) and (
            self._is_elsewhere(document, attempt) or await asyncio.to_thread(has_files, Path(str(archive)))
        )
        return FoundRun(document=document, conditions=conditions, has_artifacts=has_artifacts)

    async def children(self, run: DagRunRef, *, child: str = "") -> Sequence[Document]:
        """Return the runs that this one called (`Runs.children`)."""
        document, _ = await self._document(run, child)
        found = []
        for node in nodes_of(document):
            for called in [*listed(node.get("children")), *listed(node.get("childrenRepeated"))]:
                run_id = str(called.get("dagRunId") or "") if isinstance(called, dict) else ""
                if not run_id:
                    continue
                try:
                    found.append((await self._document(run, run_id))[0])
                except NotFound:  # called, and not begun yet
                    bare = {"name": called.get("dagName") or "", "dagRunId": run_id, "status": 0}
                    found.append({**bare, "params": called.get("params") or ""})
        return found

    async def definition(self, run: DagRunRef, *, child: str = "") -> str:
        """Return the YAML that the run was started with (`Runs.definition`)."""
        document, attempt = await self._document(run, child)
        if attempt is None and not child:
            record = await asyncio.to_thread(self._places.records.find_any, ref_of(document))
            attempt = await asyncio.to_thread(record.kept) if record is not None else None  # hidden, kept for retries
        if attempt is not None:
            return str((await asyncio.to_thread(attempt.definition))["definition"])
        assert self._way.coordinator is not None, "who else has it"
        text = await self._way.coordinator.dag_text(self._way.caller, str(document.get("name") or run.name))
        if text is None:
            raise NotFound("the definition of this run was not kept", why="it was not started on this host")
        return text

    async def outputs(self, run: DagRunRef, *, child: str = "") -> Document | None:
        """Return the outputs of a finished run (`Runs.outputs`)."""
        document, _ = await self._document(run, child)
        try:
            return outputs_document(dict(document))
        except (ValueError, LookupError, TypeError, AttributeError):  # a worker wrote the document, of any shape
            return None

    # ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def log(
        self, run: DagRunRef, window: Window, *, step: str = "", stream: str = "stdout", child: str = ""
    ) -> LogPage:
        """Return lines of a log (`Runs.log`)."""
        document, attempt = await self._document(run, child)
        path = log_path(document, step, stream)
        try:
            if self._is_elsewhere(document, attempt):
                assert self._way.coordinator is not None, "who else has it"
                which = log_stream(step, stream)
                return await self._way.coordinator.log_page(
                    self._way.caller, run=ref_of(document), step=step, stream=which, window=window
                )
            charset = self._places.log_charset if step else "utf-8"
            return await asyncio.to_thread(lambda: page(path, window, charset=charset))
        except NotFound:
            return _EMPTY  # nothing is written yet

    async def log_bytes(
        self, run: DagRunRef, *, step: str = "", stream: str = "stdout", child: str = "", offset: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield a log from a byte offset to its present end (`Runs.log_bytes`)."""
        document, attempt = await self._document(run, child)
        path = log_path(document, step, stream)
        if self._is_elsewhere(document, attempt):
            assert self._way.coordinator is not None, "who else has it"
            which = log_stream(step, stream)
            async for piece in self._way.coordinator.read_log(
                self._way.caller, run=ref_of(document), step=step, stream=which, offset=offset
            ):
                yield piece
            return
        handle = await asyncio.to_thread(open_log, path)
        try:
            while piece := await asyncio.to_thread(os.pread, handle, BLOCK, offset):
                offset += len(piece)
                yield piece
        finally:
            os.close(handle)

    def _is_elsewhere(self, document: Document, attempt: Attempt | None) -> bool:
        """Tell whether the coordinator has a run's files: its own runs', and those of children that were sent there."""
        return attempt is None or (self._way.coordinator is not None and document.get("workerId", "local") not in _HERE)

    # ── artifacts ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def artifacts(self, run: DagRunRef, *, child: str = "") -> Sequence[ArtifactInfo]:
        """List the files of a run (`Runs.artifacts`)."""
        document, attempt = await self._document(run, child)
        if self._is_elsewhere(document, attempt):
            assert self._way.coordinator is not None, "who else has it"
            return await self._way.coordinator.artifacts(self._way.caller, run=ref_of(document))
        archive = document.get("archiveDir")
        return await asyncio.to_thread(files_of, Path(str(archive))) if archive else ()

    async def artifact_bytes(self, run: DagRunRef, path: str, *, child: str = "") -> AsyncIterator[bytes]:
        """Yield one file (`Runs.artifact_bytes`)."""
        document, attempt = await self._document(run, child)
        if self._is_elsewhere(document, attempt):
            assert self._way.coordinator is not None, "who else has it"
            async for piece in self._way.coordinator.read_artifact(self._way.caller, run=ref_of(document), path=path):
                yield piece
            return
        parts = path.split("/")
        if not document.get("archiveDir") or not all(parts) or {".", ".."} & set(parts) or "\\" in path:
            raise NotFound("the run has no such file")
        folder = Folder(Path(str(document["archiveDir"])))
        try:
            handle = await asyncio.to_thread(folder.open_read, parts[:-1], parts[-1])
        except InvalidRequest as error:
            raise NotFound("the run has no such file") from error
        try:
            offset = 0
            while piece := await asyncio.to_thread(os.pread, handle, BLOCK, offset):
                offset += len(piece)
                yield piece
        finally:
            os.close(handle)

    # ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look for changes for the time of the context."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._watch(), name="changes of runs")
            try:
                yield
            finally:
                task.cancel()

    async def changes(self) -> AsyncIterator[DagRunRef]:
        """Yield root runs as they change (`Runs.changes`)."""
        heard: asyncio.Queue[DagRunRef] = asyncio.Queue(_QUEUED_HINTS)
        self._listeners.add(heard)
        try:
            while True:
                yield await heard.get()
        finally:
            self._listeners.discard(heard)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        theirs: dict[str, str] | None = None
        looked_at_folders = loop.time()
        while True:
            try:
                changed = await self._indexed(self._index.refresh)
                if loop.time() - looked_at_folders > FOLDERS_EVERY_S / 2:  # before a list has to
                    looked_at_folders = loop.time()
                    await self._indexed(self._index.look_at_folders)
            except Unavailable as problem:
                log.warning("runs.not_watched", **problem.as_dict())
                changed = []
            for run in changed:
                self._tell(run)
            theirs = await self._looked_at_theirs(theirs) if self._listeners else None
            await asyncio.sleep(LOOK_EVERY_S)

    async def _looked_at_theirs(self, before: dict[str, str] | None) -> dict[str, str] | None:
        """Tell which of the coordinator's newest runs, and of those that may change, changed; return how they are."""
        if self._way.coordinator is None:
            return None
        active = RunFilter(statuses=frozenset(status for status in RunStatus if not status.is_terminal))
        rows = [*await self._theirs(active, _WATCHED, None), *await self._theirs(RunFilter(), _WATCHED, None)]
        if "list" in self._missing:
            return before
        now = {row.ident: row.revision for row in rows}
        if before is not None:
            for ident, revision in now.items():
                if before.get(ident) != revision:
                    self._tell(DagRunRef(*ident.split("/", 1)))
        return now

    def _tell(self, run: DagRunRef) -> None:
        for heard in self._listeners:
            if not heard.full():  # a slow listener misses hints, and looks by itself now and then
                heard.put_nowait(run)

    # ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _document(self, run: DagRunRef, child: str) -> tuple[Document, Attempt | None]:
        """Return a document, and the attempt where it is this host's; None: the coordinator's.

        Raises:
            NotFound: nobody has the run.
        """
        if run.run_id == LATEST:
            newest = (await self.find(RunFilter(name=run.name), limit=1)).runs
            if not newest:
                raise NotFound(f"DAG {run.name} has no runs")
            run = DagRunRef(run.name, str(newest[0].document["dagRunId"]))
        record = await asyncio.to_thread(self._places.records.find, run)
        here = await asyncio.to_thread(_of_record, record, child) if record is not None else None
        is_settled = here is not None and here[0].get("status") not in (RunStatus.QUEUED, RunStatus.NOT_STARTED)
        if is_settled or self._way.coordinator is None:
            if here is None:
                raise _unknown(run, child)
            return here
        text = await self._from_coordinator(run, child)
        if text is not None:
            return json.loads(text), None
        if here is None:
            raise _unknown(run, child)
        return here

    async def _from_coordinator(self, run: DagRunRef, child: str) -> str | None:
        assert self._way.coordinator is not None, "asked only then"
        wanted, root = (DagRunRef(run.name, child), run) if child else (run, None)
        try:
            return await self._way.coordinator.run_status(self._way.caller, run=wanted, root=root)
        except NotFound:
            return None


async def _both(here: Coroutine[Any, Any, A], theirs: Coroutine[Any, Any, B]) -> tuple[A, B]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(here), group.create_task(theirs)
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()


_HERE = ("local", "")
"""Worker ids of what this host executed."""
_EMPTY = LogPage(content="", line_count=0, total_lines=0, has_more=False)


def _of_record(record: Record, child: str) -> tuple[Document, Attempt] | None:
    if not child:
        attempt = record.latest()
        return (history.current(record, attempt), attempt) if attempt is not None else None
    found = history.child(record, child)
    if found is None:
        return None
    inner, attempt = found
    return history.current(inner, attempt, root=record), attempt


def _conditions(attempt: Attempt) -> tuple[Condition, ...]:
    return tuple(found for one in attempt.conditions() if (found := from_fields(one)) is not None)


def _unknown(run: DagRunRef, child: str) -> NotFound:
    return NotFound(f"dag-run ID {child or run.run_id} not found for DAG {run.name}")
