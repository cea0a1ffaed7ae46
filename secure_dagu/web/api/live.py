"""Live updates: each topic is computed once for all its readers, and each reader gets the newest of each topic.

A topic has one task while somebody reads it. It computes the payload when a run that it is about changes and on its
tick, and hands it to the readers when its content is another. What a slow reader has not taken yet is replaced.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from secure_dagu.dispatch.operating import Runs
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.run.model import DagRunRef
from secure_dagu.telemetry import web_series
from secure_dagu.web.api.shapes import encoded

log = structlog.get_logger()

_REST = 4
"""A topic rests this many times as long as its payload took to make: it keeps a fifth of one core at most."""
_LEAST_REST_S = 0.02
_AFTER_FAILURE_S = 1.0


class Topic(Struct, frozen=True, kw_only=True):
    """Something that can be watched."""

    text: str
    """As the reader wrote it; it is in every frame."""
    kind: str
    produce: Callable[[], Awaitable[Any]]
    """Return the payload, ready for JSON."""
    every_s: float
    """How often it is looked at even if no run changed."""
    dag: str | None = None
    """The DAG whose runs it is about; empty: any. None: runs do not touch it."""
    run_id: str = ""
    view: str = ""
    """Readers of one text with different rights have different views."""

    @property
    def key(self) -> tuple[str, str]:
        """Return what is computed once."""
        return self.text, self.view


class Complaint(Struct, frozen=True, kw_only=True):
    """Why a topic is not carried."""

    topic: str
    code: str
    message: str


class Reader:
    """One open stream: which topics it carries, and what it has not been sent yet."""

    def __init__(self, owner: Any, *, first_id: int = 0) -> None:
        """Make one for whoever `owner` names; its frames are numbered from `first_id` + 1."""
        self.session = str(uuid.uuid4())
        self.owner = owner
        self.topics: dict[str, Topic] = {}
        self.wake = asyncio.Event()
        self.is_over = False
        self._pending: dict[str, bytes] = {}
        self._controls: list[bytes] = []
        self._id = first_id

    def offer(self, topic: str, data: bytes) -> None:
        """Let it be sent `data` of a topic, in the place of what was not sent yet."""
        self._pending[topic] = data
        self.wake.set()

    def forget(self, topic: str) -> None:
        """Do not send what is left of a topic."""
        self._pending.pop(topic, None)

    def control(self, complaints: Iterable[Complaint] = ()) -> None:
        """Let it be told what it is subscribed to, and what it is not."""
        body: dict[str, Any] = {"sessionID": self.session, "subscribed": sorted(self.topics)}
        if errors := [msgspec.to_builtins(item) for item in complaints]:
            body["errors"] = errors
        self._controls = [*self._controls[-20:], b"event: control\ndata: %b\n\n" % msgspec.json.encode(body)]
        self.wake.set()

    def end(self) -> None:
        """Let the stream end."""
        self.is_over = True
        self.wake.set()

    def take(self, limit: int) -> bytes:
        """Return frames to send, at least one if there is one, of about `limit` bytes; empty when there is nothing."""
        frames, size = list(self._controls), 0
        self._controls.clear()
        web_series.SSE_MESSAGES.labels("control").inc(len(frames))
        while self._pending and (size < limit or not frames):
            topic = next(iter(self._pending))
            data = self._pending.pop(topic)
            self._id += 1
            frames.append(b"id: %d\nevent: message\n%b" % (self._id, data))
            size += len(data)
            web_series.SSE_MESSAGES.labels("message").inc()
        if not self._pending:
            self.wake.clear()
        return b"".join(frames)


class _Feed:
    """One topic while it has readers."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.readers: set[Reader] = set()
        self.is_touched = asyncio.Event()
        self.data = b""
        self.complaint: Complaint | None = None
        self._digest = b""

    async def keep(self) -> None:
        """Compute and hand on until cancelled."""
        while True:
            self.is_touched.clear()
            started = time.monotonic()
            await self._look()
            took = time.monotonic() - started
            web_series.SSE_FETCH_SECONDS.labels(self.topic.kind).observe(took)
            pause = _AFTER_FAILURE_S if self.complaint else max(_LEAST_REST_S, _REST * took)
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self.topic.every_s - pause)):
                    await self.is_touched.wait()

    async def _look(self) -> None:
        try:
            payload = encoded(await self.topic.produce())
        except SecureDaguError as error:
            self._complain(Complaint(topic=self.topic.text, code=error.code, message=str(error)))
            return
        except Exception:
            log.exception("live.failed", topic_type=self.topic.kind)
            self._complain(
                Complaint(topic=self.topic.text, code="internal_error", message="An unexpected error occurred")
            )
            return
        self.complaint = None
        if (digest := sha256(payload).digest()) == self._digest:
            return
        self._digest = digest
        name = json.dumps(self.topic.text).encode()
        self.data = b'data: {"topic":%b,"payload":%b}\n\n' % (name, payload)
        for reader in self.readers:
            reader.offer(self.topic.text, self.data)

    def _complain(self, complaint: Complaint) -> None:
        """Tell the readers once what is wrong."""
        web_series.SSE_FETCH_ERRORS.labels(self.topic.kind).inc()
        if complaint != self.complaint:
            self.complaint = complaint
            for reader in self.readers:
                reader.control([complaint])


class Hub:
    """All readers and all topics of this process."""

    def __init__(self, runs: Runs, *, max_clients: int) -> None:
        """Make one; nothing is computed outside `serving`."""
        self.readers: dict[str, Reader] = {}
        self._runs = runs
        self._max_clients = max_clients
        self._feeds: dict[tuple[str, str], _Feed] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._by_dag: dict[str, set[_Feed]] = {}
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Compute topics until left; then every stream ends."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            watch = group.create_task(self._watch())
            try:
                yield
            finally:
                self.end()
                self._group = None
                for task in (watch, *self._tasks.values()):
                    task.cancel()

    def end(self) -> None:
        """End every stream: the server stops."""
        for reader in self.readers.values():
            reader.end()

    def open(self, reader: Reader) -> None:
        """Take a reader in.

        Raises:
            Unavailable: there are `max_clients` already, or the server stops.
        """
        if len(self.readers) >= self._max_clients or self._group is None:
            raise Unavailable(
                "no more live updates", why=f"{len(self.readers)} streams are open", fix="see sse.max_clients"
            )
        self.readers[reader.session] = reader
        web_series.SSE_SESSIONS.set(len(self.readers))

    def close(self, reader: Reader) -> None:
        """Let a reader go."""
        self.readers.pop(reader.session, None)
        web_series.SSE_SESSIONS.set(len(self.readers))
        for text in list(reader.topics):
            self.unsubscribe(reader, text)

    def subscribe(self, reader: Reader, topic: Topic) -> None:
        """Let a reader have a topic; what is known of it already is offered at once."""
        if topic.text in reader.topics or self._group is None:
            return
        reader.topics[topic.text] = topic
        feed = self._feeds.get(topic.key)
        if feed is None:
            feed = self._feeds[topic.key] = _Feed(topic)
            if topic.dag is not None:
                self._by_dag.setdefault(topic.dag, set()).add(feed)
            self._tasks[topic.key] = self._group.create_task(feed.keep())
        feed.readers.add(reader)
        if feed.data:
            reader.offer(topic.text, feed.data)

    def unsubscribe(self, reader: Reader, text: str) -> None:
        """Take a topic from a reader; without readers it is computed no longer."""
        topic = reader.topics.pop(text, None)
        if topic is None:
            return
        reader.forget(text)
        feed = self._feeds[topic.key]
        feed.readers.discard(reader)
        if feed.readers:
            return
        del self._feeds[topic.key]
        if topic.dag is not None:
            feeds = self._by_dag[topic.dag]
            feeds.discard(feed)
            if not feeds:
                del self._by_dag[topic.dag]
        self._tasks.pop(topic.key).cancel()

    async def _watch(self) -> None:
        """Touch what a change of a run is about. Without such hints the ticks of the topics are left."""
        while True:
            try:
                async for run in self._runs.changes():
                    self._touch(run)
            except SecureDaguError as error:
                log.warning("live.no_changes", why=str(error))
            await asyncio.sleep(_AFTER_FAILURE_S)

    def _touch(self, run: DagRunRef) -> None:
        for dag in ("", run.name):
            for feed in self._by_dag.get(dag, ()):
                if feed.topic.run_id in ("", run.run_id):
                    feed.is_touched.set()
