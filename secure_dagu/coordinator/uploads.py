"""Take in log and artifact streams: each message is checked against the lease, then written (protocol, sections 5, 6).

Writes go to the page cache on the loop's thread: 32 KiB cost about ten microseconds there, a hop to a thread fifty.
The page cache survives the death of this process, so nothing is flushed to the disk on this path.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from msgspec import Struct

from secure_dagu.audit.events import Action, Trail, by, run_target
from secure_dagu.coordinator import intake
from secure_dagu.coordinator.attempts import known_attempt
from secure_dagu.coordinator.followers import Changes
from secure_dagu.coordinator.ledger import Entry, Ledger
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.model import (
    ArtifactPart,
    Caller,
    LogPart,
    LogStream,
    StreamIdentity,
    Uploaded,
    WorkerId,
)
from secure_dagu.errors import InvalidRequest, LimitExceeded, PreconditionFailed
from secure_dagu.run.model import AttemptKey, attempt_key
from secure_dagu.store.api import Store
from secure_dagu.store.blobs import Blobs, LogPlace, NewFile
from secure_dagu.store.folder import write_failure
from secure_dagu.telemetry import metrics

MAX_PART = 4 * 1024 * 1024
MAX_OPEN_FILES = 256
MAX_FILES_OF_RUN = 20_000
MAX_STEP_NAME = 1_024

_LOG_BYTES = {
    LogStream.STDOUT: metrics.LOG_BYTES.labels("stdout"),
    LogStream.STDERR: metrics.LOG_BYTES.labels("stderr"),
    LogStream.SCHEDULER: metrics.LOG_BYTES.labels("scheduler"),
    LogStream.UNSPECIFIED: metrics.LOG_BYTES.labels("stdout"),
}


class UploadLimits(Struct, frozen=True, kw_only=True):
    """Bounds of what one task may store."""

    log_bytes: int = 10 * 1024**3
    artifact_bytes: int = 50 * 1024**3


class _OpenLog:
    """One log file while its call lasts."""

    __slots__ = ("fd", "is_positioned", "size")

    def __init__(self, fd: int, *, is_positioned: bool) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self.is_positioned = is_positioned

    def write(self, data: bytes, offset: int) -> None:
        done = os.pwrite(self.fd, data, offset)
        while done < len(data):  # a full disk or a signal: the next call says which
            done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        self.size = max(self.size, offset + len(data))


class Uploads:
    """Write what workers stream."""

    def __init__(
        self, *, store: Store, blobs: Blobs, ledger: Ledger, changes: Changes, clock: Clock, trail: Trail,
        limits: UploadLimits,
    ) -> None:  # fmt: skip
        self._store = store
        self._blobs = blobs
        self._ledger = ledger
        self._changes = changes
        self._clock = clock
        self._trail = trail
        self._limits = limits

    # -- logs ---------------------------------------------------------------------------------------------------------

    async def logs(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[LogPart]) -> Uploaded:
        """Write log bytes at their offsets (`RunReports.stream_logs`)."""
        entry, worker = await self._authorised(caller, identity)
        self._trail.note(by(caller, Action.LOG_WRITTEN, run_target(identity.run)))
        place = LogPlace(identity.root, identity.attempt_id)
        if entry.log_bytes is None:
            entry.log_bytes = self._blobs.log_bytes(place)
        files: dict[tuple[str, LogStream], _OpenLog] = {}
        chunks = written = 0
        try:
            async for part in parts:
                chunks += 1
                self._check(entry, worker)
                file = self._log_file(files, place, part)
                if part.is_final:
                    if file is not None:
                        _finish_log(file, part)
                        os.close(files.pop((part.step, part.stream)).fd)
                        self._changes.log_grew(identity.root, identity.run, (part.step, part.stream))
                elif file is not None:
                    self._write_log(entry, file, part)
                    written += len(part.data)
                    _LOG_BYTES[part.stream].inc(len(part.data))
                    self._changes.log_grew(identity.root, identity.run, (part.step, part.stream))
        except OSError as error:
            raise write_failure(error) from error
        finally:
            for file in files.values():
                os.close(file.fd)
        return Uploaded(chunks, written)

    def _log_file(
        self, files: dict[tuple[str, LogStream], _OpenLog], place: LogPlace, part: LogPart
    ) -> _OpenLog | None:
        """Return the file of a part; None when there is nothing to write: no file is made for nothing."""
        file = files.get((part.step, part.stream))
        if file is not None:
            if file.is_positioned != (part.offset is not None):
                raise InvalidRequest("failed to create writer: log stream write mode changed")
            return file
        if not part.step or len(part.step) > MAX_STEP_NAME:
            raise InvalidRequest("step_name is required", why=f"and at most {MAX_STEP_NAME} characters")
        if part.is_final:
            if not part.offset:
                return None
        elif not part.data:
            return None
        if len(files) >= MAX_OPEN_FILES:
            raise LimitExceeded(f"more than {MAX_OPEN_FILES} open logs in one stream", fix="end some with a final part")
        file = _OpenLog(self._blobs.open_log(place, part.step, part.stream), is_positioned=part.offset is not None)
        files[(part.step, part.stream)] = file
        return file

    def _write_log(self, entry: Entry, file: _OpenLog, part: LogPart) -> None:
        size = len(part.data)
        if size > MAX_PART:
            raise LimitExceeded(f"a log part is larger than {MAX_PART} bytes")
        if part.offset is None:
            offset = file.size = os.fstat(file.fd).st_size
        else:
            offset = part.offset
            if offset > file.size:
                file.size = os.fstat(file.fd).st_size  # another call of the same worker may have written meanwhile
                if offset > file.size:
                    raise InvalidRequest("failed to write data: log chunk byte offset exceeds current file size")
        growth = offset + size - file.size
        if growth > 0:
            assert entry.log_bytes is not None, "counted when the stream began"
            if entry.log_bytes + growth > self._limits.log_bytes:
                raise LimitExceeded(f"the logs of a run are limited to {self._limits.log_bytes} bytes")
            entry.log_bytes += growth
        file.write(part.data, offset)

    # -- artifacts ----------------------------------------------------------------------------------------------------

    async def artifacts(self, caller: Caller, identity: StreamIdentity, parts: AsyncIterator[ArtifactPart]) -> Uploaded:
        """Store artifact files (`RunReports.stream_artifacts`)."""
        entry, worker = await self._authorised(caller, identity)
        known = await known_attempt(self._store, entry, _key_of(identity))
        if known is None or not known.archive:
            raise PreconditionFailed(
                "failed to create artifact writer: no artifact directory in the run status yet",
                fix="report a status with archiveDir first",
            )
        self._trail.note(by(caller, Action.ARTIFACT_WRITTEN, run_target(identity.run)))
        chunks = written = files = 0
        open_file: NewFile | None = None
        open_path = ""
        result = "error"
        try:
            async for part in parts:
                chunks += 1
                self._check(entry, worker)
                self._count_artifact(entry, part)
                if open_file is None or part.path != open_path:
                    if open_file is not None:  # files come one after the other; what has no end is dropped
                        open_file.close()
                    files += 1
                    _check_files(files)
                    open_file, open_path = self._blobs.new_artifact(known.archive, part.path), part.path
                open_file.write(part.data)
                written += len(part.data)
                if part.is_final:
                    open_file.keep()
                    open_file = None
                    metrics.ARTIFACT_FILES.labels("ok").inc()
            result = "ok"
        except (InvalidRequest, LimitExceeded, PreconditionFailed):
            result = "rejected"
            raise
        finally:
            metrics.ARTIFACT_BYTES.labels(result).inc(written)
            if open_file is not None:
                open_file.close()
        return Uploaded(chunks, written)

    def _count_artifact(self, entry: Entry, part: ArtifactPart) -> None:
        if len(part.data) > MAX_PART:
            raise LimitExceeded(f"an artifact part is larger than {MAX_PART} bytes")
        entry.artifact_bytes += len(part.data)
        if entry.artifact_bytes > self._limits.artifact_bytes:
            raise LimitExceeded(f"the artifacts of a run are limited to {self._limits.artifact_bytes} bytes")

    # -- who may ------------------------------------------------------------------------------------------------------

    async def _authorised(self, caller: Caller, identity: StreamIdentity) -> tuple[Entry, WorkerId]:
        """Return the task under whose lease the stream writes, and its worker (protocol, section 5.5; gap G17)."""
        worker = caller.worker
        if not worker or not identity.run.name or not identity.run.run_id or not identity.attempt_id:
            raise InvalidRequest("worker, DAG run, and attempt identity are required")
        if identity.worker and identity.worker != worker:
            raise PreconditionFailed("stale attempt: superseded by newer attempt", why="another worker is named")
        derived = _key_of(identity)
        claim = identity.claim_key or derived
        if identity.run == identity.root and claim != derived:
            raise InvalidRequest("attempt key does not match stream metadata")
        entry = self._ledger.held(caller, claim, self._clock.now())
        is_own = entry.run == identity.run and entry.attempt_id == identity.attempt_id and entry.key == derived
        if entry.root != identity.root or (identity.run == entry.run and not is_own):
            raise _superseded()
        if not is_own and await known_attempt(self._store, entry, derived) is None:
            await self._check_new_child(identity)
        return entry, worker

    async def _check_new_child(self, identity: StreamIdentity) -> None:
        """Check that a child inside the task, whose first report is still on its way, names a folder of its own."""
        intake.check_run(identity.run)
        if identity.attempt_id != identity.run.run_id:
            raise _superseded()
        stored = await self._store.latest(run=identity.run, root=identity.root)
        if stored is not None or await self._store.has_attempt_id(root=identity.root, attempt_id=identity.attempt_id):
            raise _superseded()

    def _check(self, entry: Entry, worker: WorkerId) -> None:
        if not entry.is_held_by(worker, self._clock.now()) or self._ledger.get(entry.key) is not entry:
            raise PreconditionFailed("stale attempt: lease no longer active", fix="stop the run")


def _check_files(count: int) -> None:
    if count > MAX_FILES_OF_RUN:
        raise LimitExceeded(f"a run may have {MAX_FILES_OF_RUN} artifact files")


def _finish_log(file: _OpenLog, part: LogPart) -> None:
    """End a log: its length is what the final part says. Data in a final part is ignored (protocol, section 1.5)."""
    if part.offset is None:
        return
    if part.offset > os.fstat(file.fd).st_size:
        raise InvalidRequest("failed to write data: log chunk byte offset exceeds current file size")
    os.ftruncate(file.fd, part.offset)


def _key_of(identity: StreamIdentity) -> AttemptKey:
    return attempt_key(root=identity.root, run=identity.run, attempt_id=identity.attempt_id)


def _superseded() -> PreconditionFailed:
    return PreconditionFailed("stale attempt: superseded by newer attempt", fix="stop the run")
