"""Follow one run: its documents and log bytes as they arrive, woken from memory, read from the store and files."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterable, Iterator

from secure_dagu.coordinator import documents
from secure_dagu.dispatch.model import LogPart, LogStream, RunEvent
from secure_dagu.errors import LimitExceeded, NotFound
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.store.api import AttemptRow, Store
from secure_dagu.store.blobs import Blobs, LogPlace

PIECE = 256 * 1024
MAX_FOLLOWERS = 500
MAX_TRACKED = 10_000
"""Streams that one follower tracks: more steps than that are not followed, only stored."""
_STREAMS = (LogStream.STDOUT, LogStream.STDERR, LogStream.UNSPECIFIED)
_Stream = tuple[str, LogStream]
_SCHEDULER: _Stream = ("scheduler", LogStream.SCHEDULER)


class _Follower:
    """What one `follow` has been told and not yet passed on."""

    __slots__ = ("dirty", "has_status", "wake")

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.has_status = True
        self.dirty: set[_Stream] = set()


class Changes:
    """Who follows which run. Without followers a change costs one dictionary lookup."""

    def __init__(self) -> None:
        self._followers: dict[tuple[DagRunRef, DagRunRef], set[_Follower]] = {}
        self._count = 0
        self.is_closing = False

    def status_changed(self, root: DagRunRef, run: DagRunRef) -> None:
        """Tell that a run has a new document."""
        for follower in self._followers.get((root, run), ()):
            follower.has_status = True
            follower.wake.set()

    def log_grew(self, root: DagRunRef, run: DagRunRef, stream: _Stream) -> None:
        """Tell that a stream of a run has new bytes."""
        for follower in self._followers.get((root, run), ()):
            follower.dirty.add(stream)
            follower.wake.set()

    def close(self) -> None:
        """End every follower: the coordinator is going away."""
        self.is_closing = True
        for followers in self._followers.values():
            for follower in followers:
                follower.wake.set()

    @contextlib.contextmanager
    def following(self, root: DagRunRef, run: DagRunRef) -> Iterator[_Follower]:
        """Listen to a run for the time of the context."""
        if self._count >= MAX_FOLLOWERS:
            raise LimitExceeded(f"more than {MAX_FOLLOWERS} followers", fix="end some, or read the status instead")
        follower = _Follower()
        self._followers.setdefault((root, run), set()).add(follower)
        self._count += 1
        try:
            yield follower
        finally:
            self._count -= 1
            followers = self._followers[(root, run)]
            followers.discard(follower)
            if not followers:
                del self._followers[(root, run)]


async def follow(
    run: DagRunRef, *, with_logs: bool, store: Store, blobs: Blobs, changes: Changes
) -> AsyncGenerator[RunEvent, None]:
    """Yield what happens to the latest attempt of a run, from its beginning to its end (`RunReports.follow`)."""
    row = await store.find(run)
    if row is None:
        raise NotFound(f"run {run} is unknown", fix="list the runs")
    with changes.following(row.root, row.run) as follower, _Tail(blobs, row) as tail:
        sent = ""
        while True:
            has_status, follower.has_status = follower.has_status, False
            dirty, follower.dirty = follower.dirty, set()
            is_over = False
            if has_status:
                latest = await store.latest(run=row.run, root=row.root)
                if latest is None:
                    raise NotFound(f"run {run} was deleted")
                if latest.key != row.key:  # a new attempt has begun: its logs are in another folder
                    row = latest
                    tail.restart(row)
                text = await store.document(row.key)
                is_over = RunStatus(latest.status).is_terminal
                if with_logs:
                    tail.learn(text)
                if text != sent and not is_over:
                    sent = text
                    yield RunEvent(status=text)
            if with_logs:
                for event in tail.read(None if has_status else dirty):
                    yield event
            if is_over:
                yield RunEvent(status=text if text != sent else "", ended=True)
                return
            if changes.is_closing:
                return
            await follower.wake.wait()
            follower.wake.clear()


class _Tail:
    """The log files of one attempt and how far they have been read."""

    def __init__(self, blobs: Blobs, row: AttemptRow) -> None:
        self._blobs = blobs
        self._place = LogPlace(row.root, row.attempt_id)
        self._offsets: dict[_Stream, int] = {}
        self._names: set[str] = set()

    def __enter__(self) -> _Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self._offsets.clear()

    def restart(self, row: AttemptRow) -> None:
        """Go over to another attempt."""
        self._place = LogPlace(row.root, row.attempt_id)
        self._offsets.clear()
        self._names.clear()

    def learn(self, text: str) -> None:
        """Learn the steps' names from a document: streams that grew before anybody listened are found by them."""
        if text:
            self._names.update(name for name, _ in documents.nodes(documents.parse(text)))

    def read(self, streams: set[_Stream] | None) -> Iterable[RunEvent]:
        """Yield what these streams hold beyond what was read; None means all that are known."""
        if streams is None:
            known = [_SCHEDULER, *((name, stream) for name in sorted(self._names) for stream in _STREAMS)]
            streams = {*known, *self._offsets}
        for stream in sorted(streams)[:MAX_TRACKED]:
            yield from self._read_one(stream)

    def _read_one(self, stream: _Stream) -> Iterable[RunEvent]:
        step, kind = stream
        try:
            fd = self._blobs.read_log(self._place, step, kind)
        except NotFound:
            return
        try:
            offset = self._offsets.get(stream, 0)
            while data := os.pread(fd, PIECE, offset):
                part = LogPart(step=step, stream=kind, data=data, offset=offset, is_final=False)
                offset += len(data)
                self._offsets[stream] = offset
                yield RunEvent(log=part)
        finally:
            os.close(fd)
