"""Run sub-DAGs on other workers: dispatch, wait, cancel (protocol, sections 3.10 and 3.13).

The wait asks for the status, quickly at first and then each second. Following the run would be quicker, but it is an
operator's right: a worker's certificate does not carry it, and each try would be an audited refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, Operation, SecretRequest, StateEntry, StateRef, StateSource, Task
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.run.model import AttemptId, DagRunRef
from secure_dagu.runner.api import ChildRequest, ChildResult, Enqueued
from secure_dagu.worker import documents
from secure_dagu.worker.timings import Timings, full_jitter

log = structlog.get_logger()

_DISPATCH_RETRIES = 3
_FIRST_QUESTION_S = 0.05
_GLOBAL_WORKSPACE = ""


class RemoteChildren:
    """Children of one task, dispatched through the coordinator that holds the task's lease."""

    def __init__(
        self,
        *,
        owner: Coordinator,
        anyone: Coordinator,
        caller: Caller,
        task: Task,
        attempt_id: AttemptId,
        timings: Timings,
    ) -> None:
        """Take the ways: `owner` knows our lease, `anyone` is good enough for reading a definition."""
        self._owner = owner
        self._anyone = anyone
        self._caller = caller
        self._task = task
        self._attempt_id = attempt_id
        self._timings = timings

    async def run(self, request: ChildRequest) -> ChildResult:
        """Dispatch a child, or continue the one that a former attempt left behind, and wait for its end.

        Cancelling this call asks for the child's end and waits for that, at most `timings.child_cancel_s`.

        Raises:
            SecureDaguError: it cannot be dispatched, or its status could not be learned many times in a row.
        """
        child = _child_task(request, self._task)
        before = await self._owner.run_status(self._caller, run=child.run, root=child.root)
        status = documents.status_of(before) if before else None
        if before and status is not None and status.is_success:
            return ChildResult(status=status, document=before)
        try:
            if before is None or status is None:
                await self._dispatch(child)
            elif status.is_terminal:
                await self._dispatch(_continued(child, before))
                return await self._wait(child, left_behind=before)
            return await self._wait(child)
        except asyncio.CancelledError:
            await self._cancel(child)
            raise

    async def dag_text(self, name: str) -> str | None:
        """Return the YAML of a definition in the coordinator's DAG folder, None when unknown."""
        return await self._anyone.dag_text(self._caller, name)

    async def resolve_secret(self, *, name: str, ref: str) -> str:
        """Return a managed secret for the lease of this task."""
        request = SecretRequest(
            name=name,
            ref=ref,
            workspace=_workspace(self._task.labels),
            check_only=False,
            attempt_key=self._task.attempt_key,
            attempt_id=self._attempt_id,
        )
        return await self._owner.resolve_secret(self._caller, request)

    async def enqueue(self, request: ChildRequest, *, queue: str) -> Enqueued:
        """Dispatch a child and do not wait; whoever takes it reports its own run.

        Raises:
            SecureDaguError: it cannot be dispatched.
        """
        child = replace(_child_task(request, self._task), queue_name=queue or request.dag)
        before = await self._owner.run_status(self._caller, run=child.run, root=child.root)
        if before is None:
            await self._dispatch(child)
        return Enqueued(queue=child.queue_name, already_exists=before is not None)

    async def get_state(self, ref: StateRef) -> StateEntry | None:
        """Return a value that the coordinator keeps."""
        return await self._owner.get_state(self._caller, ref)

    async def put_state(
        self, ref: StateRef, value: bytes, *, expected_version: int | None, create_only: bool, updated_by: StateSource
    ) -> StateEntry:
        """Write a value that the coordinator keeps."""
        return await self._owner.put_state(
            self._caller,
            ref,
            value,
            expected_version=expected_version,
            create_only=create_only,
            updated_by=updated_by,
        )

    async def delete_state(self, ref: StateRef) -> bool:
        """Remove a value that the coordinator keeps."""
        return await self._owner.delete_state(self._caller, ref)

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        """List values that the coordinator keeps."""
        return await self._owner.list_state(self._caller, scope=scope, namespace=namespace, prefix=prefix, limit=limit)

    async def _dispatch(self, child: Task) -> None:
        for failures in range(1, _DISPATCH_RETRIES + 2):
            try:
                await self._owner.dispatch(self._caller, child)
            except Unavailable:
                if failures > _DISPATCH_RETRIES:
                    raise
                await asyncio.sleep(full_jitter(failures, first_s=1.0, cap_s=30.0))
            else:
                log.info("child.dispatched", run=str(self._task.run), child=str(child.run))
                return

    async def _wait(self, child: Task, *, left_behind: str = "") -> ChildResult:
        """Ask until the child has ended; `left_behind` is an older attempt's document, which does not count."""
        pause = _FIRST_QUESTION_S
        misses = 0
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._timings.child_poll_s)
            try:
                document = await self._owner.run_status(self._caller, run=child.run, root=child.root)
                error = None
            except SecureDaguError as failure:
                document, error = None, failure
            status = documents.status_of(document) if document else None
            if document is None or status is None:
                misses += 1
                if misses >= self._timings.child_misses:
                    raise error or Unavailable(
                        f"the status of child {child.run} could not be learned",
                        why=f"the coordinator did not know it {misses} times in a row",
                    )
                continue
            misses = 0
            if status.is_terminal and document != left_behind:
                return ChildResult(status=status, document=document)

    async def _cancel(self, child: Task) -> None:
        """Ask for the child's end and see it happen, within a limit: we are being stopped ourselves."""
        try:
            async with asyncio.timeout(self._timings.child_cancel_s):
                await self._owner.cancel(self._caller, run=child.run, root=child.root)
                await self._wait(child)
        except (SecureDaguError, TimeoutError) as error:
            log.warning("child.not_stopped", run=str(self._task.run), child=str(child.run), why=str(error))


def _child_task(request: ChildRequest, parent: Task) -> Task:
    return Task(
        operation=Operation.START,
        run=DagRunRef(request.dag, request.run_id),
        root=request.root,
        parent=request.parent,
        definition=request.definition,
        params=request.params,
        worker_selector=request.worker_selector,
        base_config=request.base_config,
        bundle=request.bundle,
        profile_name=parent.profile_name,
        external_step_retry=parent.external_step_retry,
        parallel_item=request.parallel_item,
    )


def _continued(child: Task, before: str) -> Task:
    return replace(child, operation=Operation.RETRY, previous_status=before)


def _workspace(labels: str) -> str:
    """Return the workspace among a task's labels; empty is the global one."""
    for label in labels.split(","):
        key, _, value = label.strip().partition("=")
        if key == "workspace":
            return value
    return _GLOBAL_WORKSPACE
