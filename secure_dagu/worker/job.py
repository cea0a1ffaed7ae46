"""One claimed task from its acknowledgement to its terminal report."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from secure_dagu.dispatch.model import Caller, Claim, LogStream, StreamIdentity, Task
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.run.model import AttemptId, attempt_key
from secure_dagu.runner.api import RunFolders, RunRequest
from secure_dagu.worker import artifacts, bundles, documents
from secure_dagu.worker.children import RemoteChildren
from secure_dagu.worker.lease import Held, OwnerLink
from secure_dagu.worker.logs import Goal, LogShipper
from secure_dagu.worker.seam import Tools
from secure_dagu.worker.statuses import StatusReporter
from secure_dagu.worker.timings import Timings

log = structlog.get_logger()


async def acknowledge(claim: Claim, link: OwnerLink, *, caller: Caller, timings: Timings) -> bool:
    """Turn the claim into a lease; False when the task is not ours (any more), which is no error.

    A claim without a token needs no acknowledgement (protocol, section 3.5).
    """
    if not claim.token:
        return True
    loop = asyncio.get_running_loop()
    until = loop.time() + timings.ack_for_s
    while True:
        try:
            verdict = await link.route.acknowledge(caller, token=claim.token, attempt_key=claim.task.attempt_key)
        except Unavailable as error:
            if loop.time() + timings.ack_retry_s > until:
                log.warning("task.dropped", run=str(claim.task.run), **error.as_dict())
                return False
            await asyncio.sleep(timings.ack_retry_s)
        except SecureDaguError as error:
            log.warning("task.dropped", run=str(claim.task.run), **error.as_dict())
            return False
        else:
            if not verdict.accepted:
                log.info("task.dropped", run=str(claim.task.run), why=verdict.error)
            return verdict.accepted


class Job:
    """Execute one acknowledged task and deliver what it leaves behind.

    It is the runner's observer, too: documents go to the status reporter, output to the log shipper.
    """

    def __init__(self, *, task: Task, link: OwnerLink, owner_id: str, held: Held, tools: Tools) -> None:
        """Take the task, its lease and the way to its owner."""
        assert tools.caller.worker is not None, "a worker has a worker id"
        self._task = task
        self._link = link
        self._held = held
        self._tools = tools
        self._worker = tools.caller.worker
        # Without an attempt id the run id takes its place (protocol, section 2.1).
        self._attempt_id = task.attempt_id or AttemptId(task.run.run_id)
        self._attempt_key = task.attempt_key or attempt_key(root=task.root, run=task.run, attempt_id=self._attempt_id)
        self._final = ""
        self._identity = StreamIdentity(
            worker=self._worker,
            run=task.run,
            root=task.root,
            attempt_id=self._attempt_id,
            claim_key=task.attempt_key,
            owner_id=owner_id,
        )
        self._statuses = StatusReporter(
            reports=link.route,
            caller=tools.caller,
            task=task,
            timings=tools.timings,
            is_hopeless=lambda: held.is_orphaned,
            refused=lambda why: held.stop_because(f"the coordinator refused its report: {why}"),
        )
        self._logs = LogShipper(
            reports=link.route,
            caller=tools.caller,
            identity=self._identity,
            timings=tools.timings,
            is_hopeless=lambda: held.is_orphaned,
        )

    def status_changed(self, document: str, *, final: bool = False) -> None:
        """Take a status document from the runner; the final one waits until everything else has arrived."""
        if final:
            self._final = document
        else:
            self._statuses.changed(document)

    def log_written(self, step: str, stream: LogStream, path: Path, size: int) -> None:
        """Take notice of output from the runner."""
        self._logs.written(step, stream, path, size)

    def line_logged(self, level: str, message: str, fields: Mapping[str, str]) -> None:
        """Say nothing: the line travels with the run's log."""

    async def perform(self) -> None:
        """Run the task to its end and deliver logs, artifacts and the final status, in this order (section 3.7)."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                folders = await stack.enter_async_context(self._tools.workspaces(self._task, self._attempt_id))
                bundle = await self._fetch_bundle(folders)
            except SecureDaguError as error:
                log.warning("run.not_prepared", run=str(self._task.run), **error.as_dict())
                await self._statuses.deliver(self._failed(str(error)))
                return
            await self._execute(folders, bundle)
            final = self._final or self._statuses.newest or self._failed("the run ended without a status")
            final = await self._upload_artifacts(folders, final)
            self._logs.complete(Goal.ALL)
            await self._logs.ship()
            await self._statuses.deliver(final)

    async def _fetch_bundle(self, folders: RunFolders) -> Path | None:
        if self._task.bundle is None:
            return None
        archive = folders.work / f"{self._task.bundle.digest}.tar.gz"
        await bundles.fetch(
            self._tools.anyone, self._tools.caller, self._task.bundle, archive, timings=self._tools.timings
        )
        return archive

    async def _execute(self, folders: RunFolders, bundle: Path | None) -> None:
        """Run the steps while statuses and logs flow; return when every step's stream has arrived."""
        tools, task = self._tools, self._task
        problem = self._link.note_problem()
        request = RunRequest(
            task=task,
            attempt_id=self._attempt_id,
            attempt_key=self._attempt_key,
            claim_key=task.attempt_key,
            worker=self._worker,
            folders=folders,
            host_env=tools.host_env,
            default_shell=tools.default_shell,
            public_url=tools.public_url,
            warnings=(f"owner.unreachable: {problem}",) if problem else (),
            bundle=bundle,
        )
        children = RemoteChildren(
            owner=self._link.route,
            anyone=tools.anyone,
            caller=tools.caller,
            task=task,
            attempt_id=self._attempt_id,
            timings=tools.timings,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._statuses.report_forever(), name=f"statuses of {task.run}")
            group.create_task(self._logs.ship(), name=f"logs of {task.run}")
            try:
                await tools.execute(request, self, children, stop=self._held.stop)
            except Exception as error:  # the edge of one run: its bug must not end the other runs
                self._broke_down(error)
            self._held.is_over = True
            self._statuses.close()
            self._logs.complete(Goal.STEPS if self._may_have_artifacts() else Goal.ALL)

    def _broke_down(self, error: Exception) -> None:
        """Make a failed document of an error that the run engine let through."""
        if isinstance(error, SecureDaguError):
            text = str(error)
        else:
            incident = uuid.uuid4().hex[:12]
            log.exception("run.crashed", run=str(self._task.run), incident=incident, exc_info=error)
            text = f"internal error of worker {self._worker} (incident {incident})"
        newest = self._statuses.newest
        self._final = documents.as_failed(newest, text, now=datetime.now(UTC)) if newest else self._failed(text)

    def _may_have_artifacts(self) -> bool:
        return '"archiveDir"' in self._final

    async def _upload_artifacts(self, folders: RunFolders, final: str) -> str:
        """Upload artifacts and return the final document, changed to failed when they could not be delivered."""
        if not self._may_have_artifacts() or not documents.archive_dir(final) or not artifacts.exist(folders.artifacts):
            return final
        # The coordinator makes the folder when a report names it, so one must have been accepted before the upload.
        if not self._statuses.has_announced_archive:
            await self._statuses.deliver(documents.as_running(final))
        try:
            await artifacts.upload(
                reports=self._link.route,
                caller=self._tools.caller,
                identity=self._identity,
                folder=folders.artifacts,
                timings=self._tools.timings,
                is_hopeless=lambda: self._held.is_orphaned,
            )
        except SecureDaguError as error:
            log.warning("artifacts.lost", run=str(self._task.run), **error.as_dict())
            return documents.with_failure(final, f"failed to upload artifacts: {error}")
        return final

    def _failed(self, error: str) -> str:
        return documents.failed(
            self._task,
            attempt_id=self._attempt_id,
            attempt_key=self._attempt_key,
            worker=self._worker,
            error=error,
            now=datetime.now(UTC),
        )
