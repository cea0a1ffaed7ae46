"""Take in what workers report, and give it back to those who ask (protocol, sections 3.9, 5, 6, 8.3).

The judgement is `dispatch.reporting`; this shell parses the document once, puts our paths in place of the worker's,
writes it once, and wakes who follows the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import structlog
from msgspec import Struct

from secure_dagu.audit.events import Action, Detail, Outcome, Trail, by, run_target
from secure_dagu.coordinator import documents, intake
from secure_dagu.coordinator.attempts import as_known, known_attempt
from secure_dagu.coordinator.dispatching import MAX_CHILDREN
from secure_dagu.coordinator.documents import Document, word
from secure_dagu.coordinator.endings import Endings
from secure_dagu.coordinator.finisher import Finisher
from secure_dagu.coordinator.followers import PIECE, Changes, follow
from secure_dagu.coordinator.ledger import MAX_WARNINGS, Entry, KnownAttempt, Ledger, is_limited
from secure_dagu.coordinator.tenants import Tenants
from secure_dagu.coordinator.uploads import Uploads
from secure_dagu.dispatch import machine
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.machine import Finished
from secure_dagu.dispatch.model import (
    ACCEPTED,
    ArtifactInfo,
    ArtifactPart,
    Caller,
    LogPart,
    LogStream,
    RunEvent,
    RunSummary,
    StreamIdentity,
    Uploaded,
    Verdict,
    WorkerId,
)
from secure_dagu.dispatch.operating import ListedRun, LogPage, RunFilter, Waiting, Window, matches
from secure_dagu.dispatch.reporting import LEASE_GONE, Accept, Held, Refuse, Reported, Stored, decide
from secure_dagu.errors import InvalidRequest, LeaseLost, NotFound, Refused
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus
from secure_dagu.security.grants import is_reserved
from secure_dagu.store.api import AttemptRow, NewAttempt, Report, Store
from secure_dagu.store.blobs import Blobs, LogPlace, log_name, read_pieces
from secure_dagu.store.log_windows import page_of
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

MAX_LISTED = 1_000
_DEFAULT_LISTED = 100
_BATCH = 500
_MOST_BATCHES = 500
"""How many batches of rows one list may look at, where SQL cannot tell which ones it wants."""
_MAX_WARNING = 1_000
_ARCHIVE = re.compile(r"dag-run_\d{8}_\d{6}Z_([-a-zA-Z0-9_]{1,64})")


class _Incoming(Struct, frozen=True, kw_only=True):
    """A report, read once."""

    caller: Caller
    about: Reported
    document: Document
    labels: str


class Reports:
    """Implement `dispatch.api.RunReports`."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        ledger: Ledger,
        endings: Endings,
        changes: Changes,
        uploads: Uploads,
        finisher: Finisher,
        clock: Clock,
        trail: Trail,
        tenants: Tenants,
        why_waits: Callable[[Entry], Waiting | None],
        log_charset: str = "utf-8",
    ) -> None:
        self._log_charset = log_charset
        self._tenants = tenants
        self._why_waits = why_waits
        self._store = store
        self._blobs = blobs
        self._ledger = ledger
        self._endings = endings
        self._changes = changes
        self._uploads = uploads
        self._finisher = finisher
        self._clock = clock
        self._trail = trail
        self._names: dict[tuple[str, LogStream], str] = {}

    # -- status -------------------------------------------------------------------------------------------------------

    async def report_status(self, caller: Caller, *, status: str, source_file: str, labels: str) -> Verdict:
        """Record a status document (`RunReports.report_status`)."""
        incoming = _read(caller, status, labels)
        try:
            return await self._finisher.finish(self._report(incoming))
        except LeaseLost:
            self._note_refused(incoming, LEASE_GONE)
            return Verdict(accepted=False, error=LEASE_GONE)

    async def _report(self, incoming: _Incoming) -> Verdict:
        about = incoming.about
        entry = self._ledger.get(about.claim)
        if entry is None:
            return await self._judge(incoming, None)
        async with entry.writing:
            # It may have ended while we waited for our turn.
            return await self._judge(incoming, entry if self._ledger.get(entry.key) is entry else None)

    async def _judge(self, incoming: _Incoming, entry: Entry | None) -> Verdict:
        about = incoming.about
        known = None if entry is None else await known_attempt(self._store, entry, about.derived_key)
        if known is not None:
            stored: Stored | None = self._stored(known)
        else:
            row = await self._store.latest(run=about.run, root=about.root)
            known = None if row is None else as_known(row)
            stored = None if known is None else self._stored(known)
        decision = decide(about, self._held(entry), stored)
        if isinstance(decision, Refuse):
            log.warning("status.refused", run=str(about.run), worker=about.worker, why=decision.error)
            self._note_refused(incoming, decision.error)
            return Verdict(accepted=False, error=decision.error)
        if decision is Accept.REPEAT:
            return ACCEPTED
        assert entry is not None, "only a lease makes a report acceptable"
        if decision is Accept.CREATE:
            return await self._create(incoming, entry)
        assert known is not None, "STORE is about an attempt that is stored"
        await self._record(incoming, entry, known)
        return ACCEPTED

    def _note_refused(self, incoming: _Incoming, why: str) -> None:
        target = run_target(incoming.about.run)
        self._trail.note(by(incoming.caller, Action.REPORT_REFUSED, target, outcome=Outcome.DENIED, reason=why))

    def _held(self, entry: Entry | None) -> Held | None:
        if entry is None:
            return None
        return Held(
            key=entry.key, run=entry.run, root=entry.root, attempt_id=entry.attempt_id, worker=entry.state.worker,
            is_fresh=entry.is_held_by(entry.state.worker, self._clock.now()),
        )  # fmt: skip

    def _stored(self, known: KnownAttempt) -> Stored:
        return Stored(
            key=known.key, attempt_id=known.attempt_id, claim_key=known.claim_key, status=RunStatus(known.status),
            worker=known.worker, has_live_claim=self._ledger.get(known.claim_key) is not None,
        )  # fmt: skip

    async def _record(self, incoming: _Incoming, entry: Entry, known: KnownAttempt) -> None:
        """Write a believed report; at the end of the task's own run, end the task with it."""
        about, document = incoming.about, incoming.document
        status = RunStatus(about.status)
        is_own = known.key == entry.key
        ends_task = is_own and (status.is_terminal or status is RunStatus.WAITING)
        after = machine.advance(entry.state, Finished(about.worker, status), self._clock.now()) if ends_task else None
        if is_own:
            _set_or_drop(document, "triggerActor", entry.trigger_actor)  # who started a run is not the worker's to say
            if entry.definition_id:
                document["definitionId"] = entry.definition_id
        if entry.parent is not None and is_own:
            document["parent"] = {"name": entry.parent.name, "id": entry.parent.run_id}
        # A child that a new attempt of its task runs again gets a folder of its own.
        archive = (known.archive if known.claim_key == entry.key else "") or self._archive(about, document)
        self._rewrite(about, document, archive=archive, labels=known.labels)
        self._warn(about, document, known)
        await self._store.report(
            Report(
                key=known.key, revision=known.revision, document=documents.text_of(document), claim_key=entry.key,
                status=int(status), worker=about.worker, archive=archive,
                error=word(document, "error")[: documents.MAX_ERROR].replace("\0", ""),
                started_at=documents.milliseconds(document, "startedAt"),
                finished_at=documents.milliseconds(document, "finishedAt") if status.is_terminal else 0,
                ends_task=ends_task, summary=documents.summary_of(document),
            )
        )  # fmt: skip
        known.revision += 1
        known.status, known.worker, known.archive, known.claim_key = int(status), about.worker, archive, entry.key
        entry.attempts[known.key] = known
        if after is not None:
            self._endings.let_go(entry, after)
            _observe_duration(document)
            details: dict[Detail, str | int] = {Detail.STATUS: status.word, Detail.ATTEMPT: entry.attempt_id}
            self._trail.note(by(incoming.caller, Action.RUN_ENDED, run_target(about.run), details=details))
            log.info("run.reported_end", run=str(about.run), status=status.word, worker=about.worker)
        self._changes.status_changed(about.root, about.run)

    async def _create(self, incoming: _Incoming, entry: Entry) -> Verdict:
        """Make the run of a child inside the task with its first report (protocol, section 3.9 step 6; gap G14)."""
        about, document = incoming.about, incoming.document
        try:
            intake.check_run(about.run)
        except InvalidRequest as error:
            return Verdict(accepted=False, error=f"stale attempt: {error.what}")
        if entry.children >= MAX_CHILDREN:
            return Verdict(accepted=False, error=f"stale attempt: a run may have {MAX_CHILDREN} children")
        if await self._store.has_attempt_id(root=about.root, attempt_id=about.attempt_id):
            return Verdict(accepted=False, error=LEASE_GONE)
        now = self._clock.now()
        labels = _labels(document, incoming.labels)
        parent = documents.reference(document, "parent")
        row = AttemptRow(
            key=about.derived_key, attempt_id=about.attempt_id, run=about.run, root=about.root,
            parent=parent if parent is not None and self._is_inside(entry, parent) else entry.run, claim_key=entry.key,
            status=int(RunStatus.NOT_STARTED), worker=about.worker, archive="", labels=labels, error="",
            created_at=int(now.timestamp() * 1000), started_at=0, finished_at=0, revision=1,
        )  # fmt: skip
        await self._store.add_attempt(NewAttempt(row=row, document="{}"))
        entry.children += 1
        await self._record(incoming, entry, as_known(row))
        return ACCEPTED

    def _is_inside(self, entry: Entry, run: DagRunRef) -> bool:
        return run == entry.run or any(run == known.run for known in entry.attempts.values())

    def _rewrite(self, about: Reported, document: Document, *, archive: str, labels: tuple[str, ...]) -> None:
        place = LogPlace(about.root, about.attempt_id)
        document["attemptKey"] = about.derived_key
        document["claimKey"] = about.claim
        document["root"] = {"name": about.root.name, "id": about.root.run_id}
        document["workerId"] = about.worker
        documents.rewrite(
            document, folder=self._blobs.log_folder(place), file_name=self._log_name, labels=labels,
            archive=self._blobs.archive_folder(archive) if archive else "",
        )  # fmt: skip

    def _log_name(self, step: str, stream: LogStream) -> str:
        # The same few hundred names come several times a second.
        name = self._names.get((step, stream))
        if name is None:
            if len(self._names) > 20_000:
                self._names.clear()
            name = self._names[(step, stream)] = log_name(step, stream)
        return name

    def _archive(self, about: Reported, document: Document) -> str:
        """Settle the artifact folder at the first report that asks for one (protocol, section 6.2; gap G4)."""
        wanted = word(document, "archiveDir")
        if not wanted:
            return ""
        folder = wanted.rstrip("/").rsplit("/", 1)[-1]
        match = _ARCHIVE.fullmatch(folder)
        if match is None or match[1] != about.run.run_id:
            folder = f"dag-run_{self._clock.now():%Y%m%d_%H%M%S}Z_{about.run.run_id}"
        return self._blobs.new_archive(about.run.name, folder, other=about.derived_key.partition(":")[0])

    def _warn(self, about: Reported, document: Document, known: KnownAttempt) -> None:
        """Log each new warning of a run once. `warnings` is our own key: a list of texts."""
        warnings = document.get("warnings")
        if warnings is None:
            return
        if not isinstance(warnings, list):
            del document["warnings"]
            return
        texts = [text[:_MAX_WARNING] for text in warnings[:MAX_WARNINGS] if isinstance(text, str)]
        document["warnings"] = texts
        for text in texts:
            if text not in known.warned and len(known.warned) < MAX_WARNINGS:
                known.warned.add(text)
                log.warning("run.warned", run=str(about.run), worker=about.worker, warning=text)

    # -- uploads ------------------------------------------------------------------------------------------------------

    async def stream_logs(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]) -> Uploaded:
        """Write log bytes (`RunReports.stream_logs`)."""
        return await self._uploads.logs(caller, identity, parts)

    async def stream_artifacts(
        self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]
    ) -> Uploaded:
        """Store artifact files (`RunReports.stream_artifacts`)."""
        return await self._uploads.artifacts(caller, identity, parts)

    # -- given back ---------------------------------------------------------------------------------------------------

    async def run_status(self, caller: Caller, *, run: DagRunRef, root: DagRunRef | None) -> str | None:
        """Return the latest status document of a run (`RunReports.run_status`)."""
        if not run.name or not run.run_id:
            raise InvalidRequest("dag_name and dag_run_id are required")
        is_child = root is not None and bool(root.name) and bool(root.run_id)
        top = root if root is not None and is_child else run
        if is_limited(caller) and not self._ledger.held_in_tree(caller, top, self._clock.now()):
            raise Refused("a worker may read only runs of its own tree", why="it holds no lease there")
        if is_child and top == run:
            return None  # the protocol: a run is not its own child (section 8.3)
        await self._tenants.check_run(caller, top, "GetDAGRunStatus")
        self._note_read(caller, run, "status")
        row = await self._store.latest(run=run, root=top)
        if row is None:
            return None
        return self._as_it_waits(row, await self._store.document(row.key))

    def _as_it_waits(self, row: AttemptRow, document: str) -> str:
        """Return a document with why its run waits, if it does."""
        entry = self._ledger.get(row.key)
        reason = self._why_waits(entry) if entry is not None else None
        return documents.waiting(document, reason, self._clock.now()) if reason is not None else document

    async def runs(self, caller: Caller, *, name: str | None, run_id: str | None, limit: int) -> Sequence[RunSummary]:
        """List root runs, newest first (`RunReports.runs`)."""
        self._trail.note(
            by(caller, Action.RUN_READ, f"run:{name or '*'}/{run_id or '*'}", details={Detail.WHAT: "list"})
        )
        rows = await self._store.roots(
            name=name or None, run_id=run_id or None, limit=min(limit, MAX_LISTED) if limit > 0 else _DEFAULT_LISTED
        )
        return [_summary(row) for row in rows if self._tenants.shown(caller, row, "ListRuns")]

    async def find_runs(
        self, caller: Caller, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None
    ) -> Sequence[ListedRun]:
        """Return root runs that match (`RunReports.find_runs`)."""
        # A process asks itself for each line of its pages: no identity looks, and DAG by DAG it would fill the log.
        name = wanted.name if caller.identity or not caller.proven else ""
        self._trail.note(by(caller, Action.RUN_READ, f"run:{name or '*'}/*", details={Detail.WHAT: "list"}))
        limit, found = max(1, min(limit, MAX_LISTED)), list[ListedRun]()
        batch = limit
        for _ in range(_MOST_BATCHES):
            rows = await self._store.listed(wanted, limit=batch, before=before)
            for listed in rows:
                row, text = listed.row, listed.summary
                before = listed.made_at, f"{row.run.name}/{row.run.run_id}"
                if not self._tenants.shown(caller, row, "FindRuns"):
                    continue
                if (wanted.name_part or wanted.run_id_part or wanted.labels) and not matches(json.loads(text), wanted):
                    continue
                revision = f"{row.key}:{row.revision}"
                found.append(
                    ListedRun(at=before[0], ident=before[1], document=self._as_it_waits(row, text), revision=revision)
                )
                if len(found) == limit:
                    return found
            if len(rows) < batch:
                break
            batch = _BATCH
            await asyncio.sleep(0)  # others have a turn
        return found

    async def count_runs(self, caller: Caller, *, since: datetime, until: datetime | None) -> Mapping[int, int]:
        """Return how many root runs have each status (`RunReports.count_runs`)."""
        self._trail.note(by(caller, Action.RUN_READ, "run:*/*", details={Detail.WHAT: "count"}))
        ends = int(until.timestamp() * 1000) if until is not None else 2**62
        return dict(await self._store.count(since=int(since.timestamp() * 1000), until=ends))

    async def follow(self, caller: Caller, *, run: DagRunRef, with_logs: bool) -> AsyncIterator[RunEvent]:
        """Yield a run as it happens (`RunReports.follow`)."""
        await self._found(caller, run, "FollowRun")
        self._note_read(caller, run, "log" if with_logs else "status")
        events = follow(run, with_logs=with_logs, store=self._store, blobs=self._blobs, changes=self._changes)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def read_log(
        self, caller: Caller, *, run: DagRunRef, step: str, stream: int, offset: int
    ) -> AsyncIterator[bytes]:
        """Yield a stored log from `offset` (`RunReports.read_log`)."""
        if offset < 0 or stream not in _STREAMS:
            raise InvalidRequest("a log is read from an offset of a known stream")
        row = await self._found(caller, run, "ReadLog")
        self._note_read(caller, run, "log")
        with _closing(self._blobs.read_log(LogPlace(row.root, row.attempt_id), step, LogStream(stream))) as fd:
            for piece in read_pieces(fd, offset, PIECE):
                yield piece

    async def log_page(self, caller: Caller, *, run: DagRunRef, step: str, stream: int, window: Window) -> LogPage:
        """Return some lines of a stored log (`RunReports.log_page`)."""
        if stream not in _STREAMS:
            raise InvalidRequest("a log is read from a known stream")
        row = await self._found(caller, run, "ReadLogPage")
        self._note_read(caller, run, "log")
        with _closing(self._blobs.read_log(LogPlace(row.root, row.attempt_id), step, LogStream(stream))) as fd:
            charset = self._log_charset if step else "utf-8"  # a run's own log is ours
            return await asyncio.to_thread(lambda: page_of(fd, window, charset=charset))

    async def artifacts(self, caller: Caller, *, run: DagRunRef) -> Sequence[ArtifactInfo]:
        """List the artifact files of a run (`RunReports.artifacts`)."""
        row = await self._found(caller, run, "ListArtifacts")
        self._note_read(caller, run, "artifacts")
        return self._blobs.artifacts(row.archive) if row.archive else []

    async def read_artifact(self, caller: Caller, *, run: DagRunRef, path: str) -> AsyncIterator[bytes]:
        """Yield one artifact file (`RunReports.read_artifact`)."""
        row = await self._found(caller, run, "ReadArtifact")
        if not row.archive:
            raise NotFound(f"run {run} has no artifacts")
        self._note_read(caller, run, "artifacts")
        with _closing(self._blobs.read_artifact(row.archive, path)) as fd:
            for piece in read_pieces(fd, 0, PIECE):
                yield piece

    def _note_read(self, caller: Caller, run: DagRunRef, what: str) -> None:
        self._trail.note(by(caller, Action.RUN_READ, run_target(run), details={Detail.WHAT: what}))

    async def _found(self, caller: Caller, run: DagRunRef, method: str) -> AttemptRow:
        row = await self._store.find(run)
        if row is None:
            raise NotFound(f"run {run} is unknown", fix="list the runs")
        await self._tenants.check_run(caller, row.root, method)
        return row


_STREAMS = frozenset(int(stream) for stream in LogStream)


def _read(caller: Caller, status: str, labels: str) -> _Incoming:
    document = documents.parse(status)
    run = DagRunRef(word(document, "name"), word(document, "dagRunId"))
    attempt_id = word(document, "attemptId")
    if not caller.worker or not run.name or not run.run_id or not intake.is_attempt_id(attempt_id):
        raise InvalidRequest("worker, DAG run, and attempt identity are required")
    about = Reported(
        worker=WorkerId(caller.worker), run=run, root=documents.reference(document, "root") or run,
        attempt_id=AttemptId(attempt_id), attempt_key=AttemptKey(word(document, "attemptKey")),
        claim_key=AttemptKey(word(document, "claimKey")), status=documents.number(document, "status"),
        named_worker=word(document, "workerId"),
    )  # fmt: skip
    return _Incoming(caller=caller, about=about, document=document, labels=labels)


def _labels(document: Document, given: str) -> tuple[str, ...]:
    reported = document.get("labels")
    texts = reported if isinstance(reported, list) else given.split(",")
    labels = (text.strip()[: intake.MAX_ID] for text in texts[: intake.MAX_PAIRS] if isinstance(text, str))
    return tuple(dict.fromkeys(label for label in labels if label and not is_reserved(label)))


def _set_or_drop(document: Document, key: str, value: str) -> None:
    if value:
        document[key] = value
    else:
        document.pop(key, None)


def _observe_duration(document: Document) -> None:
    started, finished = (documents.milliseconds(document, key) for key in ("startedAt", "finishedAt"))
    if started and finished >= started:
        metrics.DAG_RUN_DURATION.observe((finished - started) / 1000, dag=word(document, "name"))


def _moment(milliseconds: int) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _summary(row: AttemptRow) -> RunSummary:
    return RunSummary(
        run=row.run, root=row.root, status=row.status, worker=row.worker, error=row.error,
        created_at=datetime.fromtimestamp(row.created_at / 1000, UTC), started_at=_moment(row.started_at),
        finished_at=_moment(row.finished_at),
    )  # fmt: skip


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
