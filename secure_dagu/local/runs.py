"""Run workflows on this host, without a coordinator: one attempt from its record to its last status.

The same runner executes them as on a worker; what a worker sends to a coordinator is written into the run's record.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Definition
from secure_dagu.dispatch.model import LogStream, Operation, Task
from secure_dagu.errors import NotFound, Unavailable
from secure_dagu.local.places import Places
from secure_dagu.local.sent_children import Remote
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, TriggerType, attempt_key
from secure_dagu.run.outputs import outputs_document
from secure_dagu.run.snapshot import time_text
from secure_dagu.runner.api import ChildRuns, RunRequest
from secure_dagu.runner.files import schema_reader
from secure_dagu.store.records import SILENT_S, Attempt, Record

Echo = Callable[[str, str, Mapping[str, str]], None]
"""Take a line of a run's log: level, message, fields."""

WORKER = "local"
LOOK_EVERY_S = 0.1
"""How often a run looks whether somebody asked for its stop."""


class Start(Struct, frozen=True, kw_only=True):
    """What a new run is started with; kept in its record, so that a retry does the same."""

    run: DagRunRef
    loaded: Definition
    source_file: str = ""
    params: str = ""
    labels: tuple[str, ...] = ()
    base_config: str = ""
    queue: str = ""
    profile: str = ""
    profile_env: Mapping[str, str] = field(default_factory=dict)
    profile_secrets: Mapping[str, str] = field(default_factory=dict)
    """Never kept."""
    inherited_env: Mapping[str, str] = field(default_factory=dict)
    """What a child sees of its parent; never kept."""
    inherited_secrets: tuple[str, ...] = ()
    default_working_dir: str = ""
    no_reuse: bool = False
    trigger: TriggerType = TriggerType.MANUAL
    actor: str = ""
    schedule_time: str = ""
    worker: str = WORKER

    def snapshot(self) -> dict[str, Any]:
        """Return what the record keeps."""
        return {
            "name": self.run.name,
            "definition": self.loaded.text,
            "sourceFile": self.source_file,
            "params": self.params,
            "labels": list(self.labels),
            "baseConfig": self.base_config,
            "queue": self.queue,
            "profile": self.profile,
            "defaultWorkingDir": self.default_working_dir,
            "noReuse": self.no_reuse,
            "actor": self.actor,
            "scheduleTime": self.schedule_time,
            "trigger": int(self.trigger),
            "workerSelector": self.loaded.main.worker_selector,
            "runLocally": self.loaded.main.run_locally,
        }

    def with_profile(self, variables: Mapping[str, str], secrets: Mapping[str, str]) -> Start:
        """Return it with what its profile says now."""
        return replace(self, profile_env=variables, profile_secrets=secrets)


def start_of(run: DagRunRef, snapshot: Mapping[str, Any]) -> Start:
    """Return what a record keeps as what a run is started with.

    Raises:
        DefinitionError: the kept definition does not load.
    """
    base_config = str(snapshot.get("baseConfig") or "")
    source = str(snapshot.get("sourceFile") or "")
    reader = schema_reader(*([Path(source).parent] if source else []), Path.cwd())
    return Start(
        run=run,
        loaded=load_definition(str(snapshot["definition"]), name=run.name, base_config=base_config, read_schema=reader),
        source_file=source,
        params=str(snapshot.get("params") or ""),
        labels=tuple(str(label) for label in snapshot.get("labels") or ()),
        base_config=base_config,
        queue=str(snapshot.get("queue") or ""),
        profile=str(snapshot.get("profile") or ""),
        default_working_dir=str(snapshot.get("defaultWorkingDir") or ""),
        no_reuse=bool(snapshot.get("noReuse")),
        actor=str(snapshot.get("actor") or ""),
        schedule_time=str(snapshot.get("scheduleTime") or ""),
        trigger=TriggerType(snapshot.get("trigger") or TriggerType.MANUAL),
    )


class Retry(Struct, frozen=True, kw_only=True):
    """What is run again of an earlier attempt: everything that did not succeed, or one step."""

    previous: str
    """The status document of that attempt."""
    step: str = ""
    downstream: bool = False


def find_run(places: Places, name: str, run_id: str) -> Record:
    """Return a run by its id.

    Raises:
        NotFound: there is none.
    """
    record = places.records.find(DagRunRef(name, run_id))
    if record is None:
        raise NotFound(f"failed to find the record for dag-run ID {run_id}: dag-run ID not found: {run_id}")
    return record


def new_attempt_id(record: Record) -> AttemptId:
    """Return six hex digits that no attempt of the run has, and that are not its id."""
    taken = {attempt.attempt_id for attempt in record.attempts()} | {record.run.run_id}
    while True:
        found = secrets.token_hex(3)
        if found not in taken:
            return AttemptId(found)


class _Observer:
    """Write what the runner tells into the record."""

    def __init__(self, attempt: Attempt, echo: Echo) -> None:
        self._attempt = attempt
        self._echo = echo
        self._pending = ""
        self._changed = asyncio.Event()
        self._rests_until = 0.0
        self.final = ""

    def status_changed(self, document: str, *, final: bool = False) -> None:
        """Write the newest status at once, unless that is what this process mostly does; the final one to the disk."""
        if final:
            self.final = document
            self._pending = ""
            self._attempt.write(document, final=True)
        elif time.monotonic() < self._rests_until:
            self._pending = document
            self._changed.set()
        else:
            self._write(document)

    def _write(self, document: str) -> None:
        began = time.monotonic()
        self._attempt.write(document)
        ended = time.monotonic()
        self._rests_until = ended + 20 * (ended - began)

    def log_written(self, step: str, stream: LogStream, path: Path, size: int) -> None:
        """Nothing to do: the file is where it stays."""

    def line_logged(self, level: str, message: str, fields: Mapping[str, str]) -> None:
        """Say it."""
        self._echo(level, message, fields)

    async def write_forever(self) -> None:
        """Write what came while it rested."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(max(0.0, self._rests_until - time.monotonic()))
            self._changed.clear()
            document, self._pending = self._pending, ""
            if document:
                self._write(document)


@contextlib.asynccontextmanager
async def _stoppable(
    attempt: Attempt, stop: asyncio.Event, observer: _Observer, places: Places
) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set with `stop`, or when the record says that a stop was requested."""
    own = asyncio.Event()

    async def look() -> None:
        beat_at = 0.0
        if places.silent_s != SILENT_S:
            attempt.may_be_silent(places.silent_s)
        while not attempt.is_cancel_requested():
            if time.monotonic() >= beat_at:
                attempt.beat()
                beat_at = time.monotonic() + places.beat_every_s
            await asyncio.sleep(LOOK_EVERY_S)
        own.set()

    async def pass_on() -> None:
        await stop.wait()
        own.set()

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(work, name=name)
            for work, name in ((look(), "look for a stop"), (pass_on(), "stop"), (observer.write_forever(), "status"))
        ]
        try:
            yield own
        finally:
            for task in tasks:
                task.cancel()


class LocalRuns:
    """Start, retry and stop runs of this host."""

    def __init__(self, places: Places, *, echo: Echo, remote: Remote | None = None) -> None:
        """Take where runs are kept, who hears their log lines, and the way to workers for sub-DAGs that select some."""
        self.places = places
        self.remote = remote
        self._echo = echo

    def record(self, start: Start) -> Record:
        """Make the record of a new run.

        Raises:
            Conflict: the DAG has a run of that id.
        """
        return self.places.records.create(start.run, now=datetime.now(UTC))

    async def run(
        self,
        record: Record,
        start: Start,
        *,
        stop: asyncio.Event,
        retry: Retry | None = None,
        attempt_id: AttemptId | None = None,
        attempt: Attempt | None = None,
        is_held: bool = False,
    ) -> dict[str, Any]:
        """Run one attempt of a root run to its end; return its final status document.

        Args:
            record, start: the run, and what it was started with.
            stop: set to stop it.
            retry: continue an earlier attempt; None: from the beginning.
            attempt_id: that of the new attempt; None: a fresh one.
            attempt: an attempt on record that becomes this one; None: a new one.
            is_held: this process holds that attempt already, and has marked it as running.
        """
        if attempt is None:
            attempt = self._begun(record, start, attempt_id or new_attempt_id(record))
        else:
            attempt.write_definition(start.snapshot())
        task = task_of(start, attempt.attempt_id, retry)
        running, queue = self.places.running, start.queue or start.run.name
        with contextlib.ExitStack() as stack:
            if not is_held:
                stack.callback(running.unmark, queue, start.run, attempt)  # once nobody holds it any more
                stack.enter_context(attempt.alive())
                running.mark(queue, start.run, attempt)
            final = await self.execute(record, attempt, task, start, root=record, stop=stop)
        from secure_dagu.local import retention  # after the run: nobody waits for it

        retention.clean(self.places, start.loaded.main, keep=record)
        return final

    def _begun(self, record: Record, start: Start, attempt_id: AttemptId) -> Attempt:
        try:
            return record.begin_attempt(attempt_id, start.snapshot(), now=datetime.now(UTC))
        except Unavailable:
            if not record.attempts():
                self.places.records.remove(record)  # the id is free again
            raise

    async def retry_child(
        self, root: Record, child: Record, start: Start, retry: Retry, *, stop: asyncio.Event, is_held: bool = False
    ) -> dict[str, Any]:
        """Run a step of a child run again, in a new attempt of the child; its parents stay as they are.

        `is_held`: this process holds the root's attempt already.
        """
        attempt = child.begin_attempt(new_attempt_id(child), start.snapshot(), now=datetime.now(UTC))
        parent = json.loads(retry.previous)["parent"]
        task = replace(
            task_of(start, attempt.attempt_id, retry),
            root=root.run,
            parent=DagRunRef(parent["name"], parent["id"]),
            attempt_key=attempt_key(root=root.run, run=start.run, attempt_id=attempt.attempt_id),
        )
        with contextlib.ExitStack() as stack:
            if not is_held:
                stack.enter_context(root.attempts()[-1].alive())
            stack.enter_context(attempt.alive())
            return await self.execute(child, attempt, task, start, root=root, stop=stop)

    async def execute(
        self, record: Record, attempt: Attempt, task: Task, start: Start, *, root: Record, stop: asyncio.Event
    ) -> dict[str, Any]:
        """Execute an attempt whose record stands; return its final document. Children come here as well."""
        from secure_dagu.local.children import LocalChildren
        from secure_dagu.runner.runner import execute

        observer = _Observer(attempt, self._echo)
        request = request_of(self.places, task, start, created=_created(record))
        for folder in (request.folders.logs, request.folders.work):
            _make(folder)
        children: ChildRuns = LocalChildren(self, start=start, root=root, task=task)
        try:
            async with _stoppable(attempt, stop, observer, self.places) as stopping:
                await execute(request, observer, children, stop=stopping)
        except Exception:  # our own bug: the record must not say that the run still goes on
            attempt.write(json.dumps(_broken_down(task, attempt), ensure_ascii=False), final=True)
            raise
        final: dict[str, Any] = json.loads(observer.final)
        outputs = outputs_document(final)
        if outputs is not None:
            attempt.write_outputs(outputs)
        return final


def request_of(places: Places, task: Task, start: Start, *, created: datetime) -> RunRequest:
    """Return what the run engine is asked for; `created` is when the run was made."""
    folders = places.folders(
        start.loaded.main,
        run=task.run,
        root=task.root,
        attempt_id=task.attempt_id,
        created=created,
        archive=_archive(task.previous_status),
    )
    return RunRequest(
        task=task,
        attempt_id=task.attempt_id,
        attempt_key=task.attempt_key,
        claim_key=task.attempt_key,
        worker=start.worker,
        folders=folders,
        host_env=places.host_env,
        default_shell=places.default_shell,
        public_url=places.public_url,
        trigger=start.trigger,
        default_working_dir=start.default_working_dir,
        profile_env=start.profile_env,
        profile_secrets=start.profile_secrets,
        no_reuse=start.no_reuse,
        materializations=places.materializations,
        dag_dir=Path(start.source_file).parent if start.source_file else None,
        inherited_env=start.inherited_env,
        inherited_secrets=start.inherited_secrets,
        process_env=places.process_env,
        loaded=start.loaded,
    )


def task_of(start: Start, attempt_id: AttemptId, retry: Retry | None) -> Task:
    """Return the task of a run that is executed on this host, as its runner reads it."""
    run = start.run
    return Task(
        operation=Operation.RETRY if retry else Operation.START,
        run=run,
        root=run,
        definition=start.loaded.text,
        params=start.params,
        step=retry.step if retry else "",
        include_downstream=retry.downstream if retry else False,
        previous_status=retry.previous if retry else "",
        attempt_id=attempt_id,
        attempt_key=attempt_key(root=run, run=run, attempt_id=attempt_id),
        labels=",".join(start.labels),
        base_config=start.base_config,
        schedule_time=start.schedule_time,
        queue_name=start.queue,
        source_file=start.source_file,
        profile_name=start.profile,
        trigger_actor=start.actor,
    )


def _created(record: Record) -> datetime:
    """Return when a run was made: that of its first attempt."""
    attempts = record.attempts()
    stamp = attempts[0].path.name[2:20] if attempts else ""
    try:
        return datetime.strptime(stamp[:15], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.now(UTC)


def _broken_down(task: Task, attempt: Attempt) -> dict[str, Any]:
    """Return the last document of an attempt as that of one that failed because of a mistake of ours."""
    now = time_text(datetime.now(UTC))
    known = {"name": task.run.name, "dagRunId": task.run.run_id, "attemptId": attempt.attempt_id, "startedAt": now}
    error = "internal error: the engine broke down"
    return {**known, **attempt.status(), "status": int(RunStatus.FAILED), "finishedAt": now, "error": error}


def _archive(document: str) -> str:
    """Return where an earlier attempt keeps its artifacts, empty when it has none."""
    if not document:
        return ""
    found = json.loads(document).get("archiveDir")
    return found if isinstance(found, str) else ""


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"the folder {folder} cannot be made",
            why=os.strerror(error.errno or 0),
            fix="look at the disk and the rights of paths.log_dir and paths.data_dir",
        ) from error
