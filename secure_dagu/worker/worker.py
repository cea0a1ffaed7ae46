"""The worker: poll listed coordinators, run what they hand out, stop in an orderly way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from secure_dagu.dispatch.api import Routes
from secure_dagu.dispatch.model import Caller, Claim, Owner, RunningTask, WorkerStats
from secure_dagu.errors import InvalidRequest, SecureDaguError, Unavailable
from secure_dagu.run.model import AttemptKey
from secure_dagu.worker.desk import OPEN_POLLS, Desk
from secure_dagu.worker.lease import Held, OwnerLink
from secure_dagu.worker.seam import Execute, Tools, Workspaces
from secure_dagu.worker.timings import Timings

log = structlog.get_logger()


class Worker:
    """Take tasks from coordinators and execute them, never more than `max_active_runs` at once."""

    def __init__(
        self,
        *,
        caller: Caller,
        routes: Routes,
        names: Sequence[str],
        labels: Mapping[str, str],
        max_active_runs: int,
        execute: Execute,
        workspaces: Workspaces,
        host_env: Mapping[str, str],
        default_shell: str = "",
        public_url: str = "",
        timings: Timings = Timings(),  # noqa: B008  a frozen value
    ) -> None:
        """Take everything that the worker needs; nothing happens before `run`.

        Args:
            caller: ourselves; `caller.worker` is the worker id.
            names: the addresses of `routes.listed()`, in the same order, for logs and health.
            labels: what tasks may select this worker by.
            execute: the run engine.
            workspaces: makes the private folders of an attempt.
            host_env: the filtered environment of this host, which is all that steps see of it.
        """
        self._caller = caller
        self._routes = routes
        self._max_active_runs = max_active_runs
        self._timings = timings
        self._tools = Tools(
            caller=caller,
            execute=execute,
            workspaces=workspaces,
            anyone=routes.anyone(),
            timings=timings,
            host_env=dict(host_env),
            default_shell=default_shell,
            public_url=public_url,
        )
        listed = routes.listed()
        self._slots = asyncio.Semaphore(max_active_runs)
        self._desks = tuple(
            Desk(
                name=name,
                coordinator=coordinator,
                caller=caller,
                labels=labels,
                timings=timings,
                slots=self._slots,
                is_only_one=len(listed) == 1,
                stats=self._stats,
                claimed=self._claimed,
                heard=self._heard,
                noticed=self._end_if_hopeless,
            )
            for name, coordinator in zip(names, listed, strict=True)
        )
        self._links: dict[Owner | str, OwnerLink] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = asyncio.Event()
        self._is_at_once = False
        self._services: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Work until `drain` has done its part.

        Raises:
            SecureDaguError: no listed coordinator can work without somebody's help; running tasks were stopped.
        """
        log.info("worker.started", worker=self._caller.worker, slots=self._max_active_runs)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for desk in self._desks:
                    self._services.append(group.create_task(desk.be_present(), name=f"presence at {desk.name}"))
                pollers = [
                    group.create_task(desk.poll_forever(), name=f"poller {n} at {desk.name}")
                    for desk in self._desks
                    for n in range(min(OPEN_POLLS, self._max_active_runs))
                ]
                await self._draining.wait()
                for poller in pollers:
                    poller.cancel()
                await self._finish_jobs()
                for service in self._services:
                    service.cancel()
                for desk in self._desks:
                    group.create_task(desk.leave(), name=f"leave {desk.name}")
        except BaseExceptionGroup as errors:
            raise _only_one(errors) from None
        finally:
            self._group = None
            log.info("worker.stopped", worker=self._caller.worker)

    def drain(self) -> None:
        """Take no new task and let the running ones finish; called a second time, stop at once.

        After `timings.drain_timeout_s` what still runs is stopped and reported as aborted.
        """
        if self._draining.is_set():
            log.warning("worker.stopping_at_once", running=len(self._jobs))
            self._is_at_once = True
            for job in self._jobs:
                job.cancel()
            return
        log.info("worker.draining", running=len(self._jobs))
        self._draining.set()
        for desk in self._desks:
            desk.drain()

    @property
    def is_ready(self) -> bool:
        """Tell whether this worker takes tasks: some listed coordinator works and we are not draining."""
        return not self._draining.is_set() and any(desk.trouble.works for desk in self._desks)

    def objections(self) -> list[SecureDaguError]:
        """Return why this worker takes no tasks, for `/ready`; nothing when `is_ready`."""
        if self.is_ready:
            return []
        if self._draining.is_set():
            return [Unavailable("the worker is draining", why="it was told to stop, and finishes what it runs")]
        return [desk.trouble.error or Unavailable(f"{desk.name} has not answered yet") for desk in self._desks]

    @property
    def running(self) -> int:
        """Return how many tasks are being worked on."""
        return len(self._jobs)

    def health(self) -> dict[str, Any]:
        """Return the facts for `/health`: status, each coordinator's state or reason, running tasks."""
        return {
            "status": "draining" if self._draining.is_set() else "healthy",
            "ready": self.is_ready,
            "coordinators": {desk.name: _state(desk) for desk in self._desks},
            "running": len(self._jobs),
        }

    def _claimed(self, desk: Desk, claim: Claim) -> None:
        """Take over a claim and the slot that its poll held."""
        if self._group is None or self._is_at_once:
            self._slots.release()  # not acknowledged, so it goes back to the queue by itself
            return
        job = self._group.create_task(self._work(desk, claim), name=f"task {claim.task.run}")
        self._jobs.add(job)
        self._idle.clear()
        job.add_done_callback(self._job_done)

    def _job_done(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        self._slots.release()
        if not self._jobs:
            self._idle.set()

    async def _work(self, desk: Desk, claim: Claim) -> None:
        """Acknowledge one claim and run its task; whatever goes wrong stays with this task."""
        # With the first task: an idle worker needs neither.
        from secure_dagu.worker.checks import check_claim
        from secure_dagu.worker.job import Job, acknowledge

        task = claim.task
        try:
            check_claim(claim)
        except InvalidRequest as error:
            log.error("task.refused", coordinator=desk.name, **error.as_dict())  # noqa: TRY400  no bug, no trace
            return
        link = self._link(claim.owner, desk)
        accepted = await acknowledge(claim, link, caller=self._caller, timings=self._timings)
        link.note_problem()
        if not accepted:
            return
        running = RunningTask(
            run=task.run,
            root=task.root,
            parent=task.parent,
            attempt_key=task.attempt_key or AttemptKey(f"{task.run.run_id}:poller-0"),
            started_at=datetime.now(UTC),
        )
        if await link.is_already_over(running):
            log.info("task.dropped", run=str(task.run), why="it was cancelled before it started")
            return
        held = Held(running, orphan_timeout_s=self._timings.orphan_timeout_s)
        link.hold(held)
        started = time.monotonic()
        log.info("task.started", run=str(task.run), attempt=running.attempt_key, owner=link.name)
        try:
            owner_id = claim.owner.id if claim.owner else ""
            await Job(task=task, link=link, owner_id=owner_id, held=held, tools=self._tools).perform()
        except Exception:  # the edge of one task: its bug must not end the other runs
            log.exception("task.crashed", run=str(task.run))
        finally:
            link.release(held)
            log.info("task.ended", run=str(task.run), took_s=round(time.monotonic() - started, 3))

    def _link(self, owner: Owner | None, desk: Desk) -> OwnerLink:
        """Return the standing link to an owner, made at its first task."""
        key = owner or desk.name
        if key in self._links:
            return self._links[key]
        assert self._group is not None, "claims are only taken while running"
        if len(self._links) >= MAX_LINKS:
            self._drop_idle_links()
        link = self._links[key] = OwnerLink(
            route=self._routes.owned(owner, served_by=desk.coordinator),
            name=owner.address if owner else desk.name,
            is_leasing=owner is not None,
            caller=self._caller,
            timings=self._timings,
        )
        link.task = self._group.create_task(link.run(), name=f"owner {link.name}")
        self._services.append(link.task)
        return link

    def _drop_idle_links(self) -> None:
        """Forget owners without tasks, so that a coordinator that names ever new ones costs no memory."""
        for key, link in tuple(self._links.items()):
            if not link.held and link.task is not None:
                link.task.cancel()
                self._services.remove(link.task)
                del self._links[key]

    def _stats(self) -> WorkerStats:
        running = tuple(held.running for link in self._links.values() for held in link.held.values())
        total = len(running) if self._draining.is_set() else self._max_active_runs  # draining: no free poller
        return WorkerStats(total_pollers=total, busy_pollers=len(running), running=running)

    def _heard(self, desk: Desk, stopped: Sequence[AttemptKey]) -> None:
        """Take a heartbeat answer: presence is all the lease that a task without an owner has."""
        if (link := self._links.get(desk.name)) is not None:
            link.renewed()
        if stopped:
            for link in self._links.values():
                link.stop(stopped)

    def _end_if_hopeless(self) -> None:
        """Raise the trouble when no listed coordinator can work without somebody's help.

        A worker that has been accepted before bears it for a moment: files may be half-way through a renewal.
        """
        troubles = [desk.trouble for desk in self._desks]
        if any(trouble.hopeless_since is None for trouble in troubles):
            return
        if any(trouble.ever_worked for trouble in troubles):
            latest = max(trouble.hopeless_since or 0.0 for trouble in troubles)
            if time.monotonic() - latest < self._timings.hopeless_for_s:
                return
        error = troubles[0].error
        assert error is not None, "a hopeless coordinator has an error"
        raise error

    async def _finish_jobs(self) -> None:
        """Let running tasks finish, then stop them, then give up their reports."""
        if await self._is_idle_within(self._timings.drain_timeout_s):
            return
        for link in self._links.values():
            link.stop(tuple(link.held), "the worker is shutting down")
        if await self._is_idle_within(self._timings.deliver_s):
            return
        for job in self._jobs:
            job.cancel()

    async def _is_idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


MAX_LINKS = 32
"""Owners remembered at once; more are only possible with a coordinator that invents them."""


def _state(desk: Desk) -> str:
    if desk.trouble.works:
        return "connected"
    return str(desk.trouble.error) if desk.trouble.error else "connecting"


def _only_one(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return our own error out of a task group's, the whole group when there is anything else in it."""
    ours, others = errors.split(SecureDaguError)
    if ours is None or others is not None:
        return errors
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
