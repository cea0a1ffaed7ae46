"""Sub-DAGs of a run on this host: run in this process, recorded under the root run (workflow language, 3.14)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from secure_dagu.dag.load import load_definition
from secure_dagu.dispatch.model import Operation, StateEntry, StateRef, StateSource, Task
from secure_dagu.dispatch.operating import Placement
from secure_dagu.dispatch.placement import placed
from secure_dagu.errors import NotFound
from secure_dagu.local import definitions
from secure_dagu.local.sent_children import Remote, send
from secure_dagu.local.state import StateFolder
from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType, attempt_key
from secure_dagu.runner.api import ChildRequest, ChildResult, Enqueued
from secure_dagu.runner.files import schema_reader
from secure_dagu.runner.masking import Masker
from secure_dagu.store.records import Record

if TYPE_CHECKING:
    from secure_dagu.local.runs import LocalRuns, Start


class LocalChildren:
    """Implements `runner.api.ChildRuns` for one attempt of a run."""

    def __init__(self, runs: LocalRuns, *, start: Start, root: Record, task: Task) -> None:
        """Take who runs them, what the parent was started with, and the record that all of the tree goes under."""
        self._runs = runs
        self._start = start
        self._root = root
        self._task = task
        self._state = StateFolder(runs.places.state_dir)

    async def run(self, request: ChildRequest) -> ChildResult:
        """Run a child to its end, or take over what an earlier attempt of its parent left.

        Cancelling this call stops the child and waits for its end.
        """
        run = DagRunRef(request.dag, request.run_id)
        record = self._root.child(run)
        latest = record.latest()
        before = latest.document() if latest else ""
        if before:
            status = RunStatus(json.loads(before)["status"])
            if status.is_success:
                return ChildResult(status=status, document=before)
        from secure_dagu.local.runs import new_attempt_id  # that module imports this one

        start = self._child_start(request, run)
        snapshot = {**start.snapshot(), "params": Masker(request.secrets).text(request.params)}
        attempt = record.begin_attempt(new_attempt_id(record), snapshot, now=datetime.now(UTC))
        task = replace(
            self._task,
            operation=Operation.RETRY if before else Operation.START,
            run=run,
            parent=request.parent,
            definition=request.definition,
            params=request.params,
            step="",
            include_downstream=False,
            previous_status=before,
            attempt_id=attempt.attempt_id,
            attempt_key=attempt_key(root=request.root, run=run, attempt_id=attempt.attempt_id),
            labels="",
            queue_name="",
            source_file=start.source_file,
            parallel_item=request.parallel_item,
            definition_id=request.dag,
        )
        remote = self._runs.remote
        if remote is not None and self._goes_to_workers(request, start, remote):
            final = await send(remote, request, attempt, before=before, profile=start.profile)
            return ChildResult(status=RunStatus(final["status"]), document=json.dumps(final))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            with attempt.alive():
                child = group.create_task(
                    self._runs.execute(record, attempt, task, start, root=self._root, stop=stop), name=f"child {run}"
                )
                try:
                    final = await asyncio.shield(child)
                except asyncio.CancelledError:
                    stop.set()
                    await child
                    raise
        return ChildResult(status=RunStatus(final["status"]), document=json.dumps(final))

    def _goes_to_workers(self, request: ChildRequest, start: Start, remote: Remote) -> bool:
        placement = placed(
            local_only=start.loaded.main.run_locally and not request.worker_selector,
            selector=request.worker_selector,
            has_coordinator=True,
            distributed_by_default=remote.distributed_by_default,
        )
        return placement is Placement.WORKERS

    def _child_start(self, request: ChildRequest, run: DagRunRef) -> Start:
        source = self._start.source_file if request.is_local else self._source_of(request.called or request.dag)
        return replace(
            self._start,
            run=run,
            loaded=load_definition(
                request.definition,
                name=request.dag,
                base_config=request.base_config,
                is_child=True,
                read_schema=schema_reader(*([Path(source).parent] if source else []), Path.cwd()),
            ),
            inherited_env=request.env,
            inherited_secrets=request.secrets,
            source_file=source,
            params=request.params,
            base_config=request.base_config,
            labels=(),
            queue="",
            trigger=TriggerType.SUBDAG,
        )

    def _source_of(self, name: str) -> str:
        path = definitions.find(name, self._runs.places.dags_dir)
        return str(path) if path else ""

    async def enqueue(self, request: ChildRequest, *, queue: str) -> Enqueued:
        """Record a child as queued and put it into a queue; a scheduler starts it."""
        from secure_dagu.local.queued import enqueue  # that module imports this one

        run = DagRunRef(request.dag, request.run_id)
        start = replace(
            self._child_start(request, run),
            queue=queue or load_definition(request.definition, name=request.dag).main.queue or request.dag,
        )
        known = self._runs.places.records.find(run)
        if known is not None:
            return Enqueued(queue=start.queue, already_exists=True)
        enqueue(self._runs.places, start)
        return Enqueued(queue=start.queue)

    async def dag_text(self, name: str) -> str | None:
        """Return the YAML of a definition, found as the command line finds it."""
        path = definitions.find(name, self._runs.places.dags_dir)
        return definitions.read(path) if path else None

    async def resolve_secret(self, *, name: str, ref: str) -> str:
        """Refuse: managed secrets are the coordinator's, and this run has none."""
        raise NotFound(
            f"secret {name}: the reference {ref!r} cannot be resolved here",
            why="managed secrets are kept by a coordinator, and this run goes without one",
            fix="dispatch the workflow, or use the provider `env` or `file`",
        )

    async def get_state(self, ref: StateRef) -> StateEntry | None:
        """Return a value of this host."""
        return self._state.get(ref)

    async def put_state(
        self, ref: StateRef, value: bytes, *, expected_version: int | None, create_only: bool, updated_by: StateSource
    ) -> StateEntry:
        """Write a value of this host."""
        return self._state.put(
            ref, value, expected_version=expected_version, create_only=create_only, updated_by=updated_by
        )

    async def delete_state(self, ref: StateRef) -> bool:
        """Remove a value of this host."""
        return self._state.delete(ref)

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        """List values of this host."""
        return self._state.list(scope=scope, namespace=namespace, prefix=prefix, limit=limit)
