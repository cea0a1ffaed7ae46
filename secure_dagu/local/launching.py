"""Start runs and steer them, here or at a coordinator: `dispatch.operating.Launching`.

What runs here has a record here; what workers run is recorded at the coordinator, and only its definition is kept here,
under a hidden attempt, for retries. So a visible attempt says where a run lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dag.model import Dag
from secure_dagu.dispatch.match import Demand, label_set
from secure_dagu.dispatch.model import WorkerHealth, WorkerInfo
from secure_dagu.dispatch.operating import Outlook, Placement, StartRequest, Waiting
from secure_dagu.dispatch.placement import placement_of
from secure_dagu.dispatch.retrying import due_at, is_pending, retries_of
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotFound,
    NotRunning,
    Unavailable,
    UnknownCall,
    WrongState,
)
from secure_dagu.local import deciding, history, retention
from secure_dagu.local.forks import Forks
from secure_dagu.local.handing import hand_over, selector_of
from secure_dagu.local.places import Places
from secure_dagu.local.queue import Queues
from secure_dagu.local.queued import again, check_enabled, dequeue, document, enqueue, enqueue_again, enqueue_once
from secure_dagu.local.run_ids import new_run_id
from secure_dagu.local.runs import Retry, Start, new_attempt_id, start_of
from secure_dagu.local.starting import Starts
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus, TriggerType
from secure_dagu.store.records import Attempt, Record

AT_REST_S = 2.0
_GOES_ON = (RunStatus.RUNNING, RunStatus.NOT_STARTED, RunStatus.QUEUED)


class Options(Struct, frozen=True, kw_only=True):
    """What the settings say about starting."""

    profiles: Path
    """The folder of profiles."""
    base_config: Callable[[], str] = lambda: ""
    """Reads `base.yaml` as it is now."""
    distributed_by_default: bool = False
    queues_enabled: bool = True


class Launcher:
    """Implements `dispatch.operating.Launching`. Nothing is dispatched while `way` leads nowhere."""

    def __init__(self, places: Places, forks: Forks, options: Options, *, way: Way) -> None:
        """Take where runs are kept, what executes them here, and who has them executed elsewhere."""
        self.places = places
        self.way = way
        self._forks = forks
        self._options = options
        self._starts = Starts(places, base_config=options.base_config, profiles=options.profiles)

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, request: StartRequest) -> DagRunRef:
        """Start a run at once (`Launching.start`)."""
        start = await asyncio.to_thread(self._starts.of, request, queued=False)
        if request.once:
            return await self._launch_once(start)
        await self._check_new(request, start.run)
        return await self._launch(start)

    async def _launch_once(self, start: Start) -> DagRunRef:
        """Start a run whose id stands for this start; what an earlier call left half-done begins anew."""
        record = await asyncio.to_thread(self.places.records.find_any, start.run)
        kept = record.kept() if record is not None else None
        status = kept.status().get("status", RunStatus.NOT_STARTED) if kept is not None else RunStatus.NOT_STARTED
        if status != RunStatus.NOT_STARTED or await self._remote(start.run) is not None:
            return start.run
        if kept is not None and kept.is_alive():
            return start.run
        if record is not None:
            await asyncio.to_thread(self.places.records.remove, record)
        return await self._launch(start)

    async def _launch(self, start: Start) -> DagRunRef:
        if self.placement(start.loaded.main) is Placement.WORKERS:
            assert self.way.coordinator is not None, "without a coordinator everything is local"
            attempt = await asyncio.to_thread(self._recorded, start, hidden=True)
            try:
                await hand_over(self.way.coordinator, self.way.caller, start)
            except BaseException:
                await asyncio.to_thread(self._forget, start.run, attempt)
                raise
        else:
            attempt = await asyncio.to_thread(self._recorded, start)
            try:
                await self._execute(start.queue, start.run, attempt, await asyncio.to_thread(attempt.hold))
            except Unavailable as error:
                await asyncio.to_thread(self.fail_waiting, start.run, str(error))
                raise
        return start.run

    async def enqueue(self, request: StartRequest) -> DagRunRef:
        """Put a run into its queue (`Launching.enqueue`)."""
        check_enabled(enabled=self._options.queues_enabled)
        start = await asyncio.to_thread(self._starts.of, request, queued=True)
        if request.once:
            await asyncio.to_thread(enqueue_once, self.places, start, high=request.high_priority)
            return start.run
        await self._check_new(request, start.run)
        await asyncio.to_thread(enqueue, self.places, start, high=request.high_priority)
        return start.run

    async def outlook(self, dag: str) -> Outlook:
        """Tell where a DAG would run (`Launching.outlook`)."""
        main = (await asyncio.to_thread(self._starts.definition, dag)).main
        if self.placement(main) is Placement.LOCAL:
            return Outlook(placement=Placement.LOCAL)
        assert self.way.coordinator is not None, "without a coordinator everything is local"
        selector = selector_of(main)
        try:
            workers = await self.way.coordinator.workers(self.way.caller)
        except Unavailable:
            return Outlook(placement=Placement.WORKERS, selector=selector, waits_for=Waiting.COORDINATOR_UNREACHABLE)
        matching, waits_for = _expected(workers, selector)
        return Outlook(placement=Placement.WORKERS, selector=selector, matching_workers=matching, waits_for=waits_for)

    def placement(self, dag: Dag) -> Placement:
        """Return where a run goes."""
        return placement_of(
            dag,
            has_coordinator=self.way.coordinator is not None,
            distributed_by_default=self._options.distributed_by_default,
        )

    async def _check_new(self, request: StartRequest, run: DagRunRef) -> None:
        """Check that a run of this id, or of a DAG that runs once at a time, may begin."""
        if request.run_id and await self._remote(run) is not None:
            raise AlreadyExists(f"dag-run ID {run.run_id} already exists for DAG {run.name}", fix="use another id")
        if request.singleton and await self._is_active(run.name):
            raise AlreadyExists(f"DAG {run.name} is running or queued already", fix="wait for its end, or stop it")

    async def _is_active(self, name: str) -> bool:
        def here() -> bool:
            running = any(one.run.name == name and one.is_alive() for one in self.places.running.everywhere())
            queues = Queues(self.places.queues)
            return running or any(item.run.name == name for queue in queues.names() for item in queues.items(queue))

        if await asyncio.to_thread(here):
            return True
        if self.way.coordinator is None:
            return False
        found = await self.way.coordinator.runs(self.way.caller, name=name, run_id=None, limit=20)
        return any(not RunStatus(run.status).is_terminal for run in found)

    def _recorded(self, start: Start, *, hidden: bool = False) -> Attempt:
        now = datetime.now(UTC)
        record = self.places.records.create(start.run, now=now)
        attempt = record.add_attempt(new_attempt_id(record), now=now)
        return _prepared(attempt, start, hidden=hidden)

    def _forget(self, run: DagRunRef, attempt: Attempt) -> None:
        self.places.records.remove(Record(run, attempt.path.parent))

    async def _execute(
        self, queue: str, run: DagRunRef, attempt: Attempt, handle: int, *, item: str = "", root: Record | None = None
    ) -> None:
        """Execute an attempt that is held in a process of its own."""
        self.places.running.mark(queue, run, attempt)
        try:
            await self._forks.start(run, attempt, handle, item=item, root=root.run if root else None)
        except Unavailable:
            if attempt.is_alive():
                return  # who should have said that it runs was killed, and it runs
            self.places.running.unmark(queue, run, attempt)
            raise

    # ── what stands in a queue ───────────────────────────────────────────────────────────────────────────────────────

    async def start_queued(self, run: DagRunRef, *, queue: str, item: str) -> bool:
        """Start a run that stands in a queue; False: it does not wait any more, and its item may go.

        Raises:
            NotFound, DefinitionError: its record is damaged. Conflict: it is held just now. Unavailable,
                PreconditionFailed: not now.
        """
        found = await asyncio.to_thread(self._held_queued, run)
        if found is None:
            return False
        attempt, handle, start, retry = found
        if start is None:  # it runs here, and its own process reads the rest
            await self._execute(queue, run, attempt, handle, item=item)
            return True
        assert self.way.coordinator is not None, "without a coordinator everything is local"
        try:
            mark = self.places.running.mark_remote(queue, run)
            try:
                if not await self._has_it(run, retry):
                    await hand_over(self.way.coordinator, self.way.caller, replace(start, queue=queue), retry)
            except BaseException:
                mark.remove()
                raise
            await asyncio.to_thread(attempt.hide)
            await asyncio.to_thread(Path(item).unlink, missing_ok=True)
        finally:
            os.close(handle)
        return True

    async def _has_it(self, run: DagRunRef, retry: Retry | None) -> bool:
        """Tell whether the coordinator has a queued run already: we may have been killed right after."""
        known = await self._remote(run)
        if known is None or retry is None:
            return known is not None
        return bool(known.get("attemptId") != json.loads(retry.previous).get("attemptId"))

    def _held_queued(self, run: DagRunRef) -> tuple[Attempt, int, Start | None, Retry | None] | None:
        """Return a queued attempt, held, and where it goes: what it is started with if workers are to run it."""
        from secure_dagu.local.queued import retry_of

        record = self.places.records.find(run)
        attempt = record.latest() if record else None
        if attempt is None:
            return None
        handle = attempt.hold()
        try:
            if attempt.status().get("status") != RunStatus.QUEUED:
                os.close(handle)
                return None
            snapshot = attempt.definition()
            start = start_of(run, snapshot) if self._may_be_dispatched(snapshot) else None
            if start is not None and self.placement(start.loaded.main) is Placement.LOCAL:
                start = None
            return attempt, handle, start, retry_of(attempt, snapshot)
        except BaseException:
            os.close(handle)
            raise

    def _may_be_dispatched(self, snapshot: Mapping[str, Any]) -> bool:
        """Tell by what is noted beside a definition, without reading it."""
        if self.way.coordinator is None or snapshot.get("runLocally"):
            return False
        noted = "workerSelector" in snapshot
        return self._options.distributed_by_default or not noted or bool(snapshot["workerSelector"])

    def fail_waiting(self, run: DagRunRef, why: str) -> None:
        """End a run that cannot be started."""
        record = self.places.records.find(run)
        attempt = record.latest() if record else None
        if attempt is None:
            return
        with contextlib.suppress(Conflict), attempt.alive():
            found = attempt.status()
            if not found or found.get("status") in (RunStatus.QUEUED, RunStatus.NOT_STARTED):
                base = {"name": run.name, "dagRunId": run.run_id, "attemptId": attempt.attempt_id}
                at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                ended = {**base, **found, "status": int(RunStatus.FAILED), "error": why, "finishedAt": at}
                attempt.write(json.dumps(ended, ensure_ascii=False), final=True)

    # ── stop, remove ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self, run: DagRunRef, *, actor: str) -> None:
        """Ask for the end of a run (`Launching.stop`)."""
        if (record := await self._here(run)) is None:
            await self._cancel_remote(run)
        elif deciding.latest(record).status().get("status") == RunStatus.QUEUED:
            await asyncio.to_thread(dequeue, self.places, run)
        elif not await asyncio.to_thread(deciding.stop, await self._at_rest(record)):
            raise NotRunning(f"dag-run {run.run_id} is not running")

    async def _cancel_remote(self, run: DagRunRef) -> None:
        known = await self._remote(run)
        if known is None or self.way.coordinator is None:
            raise _unknown(run)
        if RunStatus(known.get("status", RunStatus.FAILED)).is_terminal and not is_pending(known):
            raise NotRunning(f"dag-run {run.run_id} is not running")
        verdict = await self.way.coordinator.cancel(self.way.caller, run=run, root=None)
        if not verdict.accepted:
            raise Conflict(f"dag-run {run.run_id} cannot be stopped", why=verdict.error)

    async def dequeue(self, run: DagRunRef, *, actor: str) -> None:
        """Take a queued run out of its queue (`Launching.dequeue`)."""
        if await self._here(run) is None and (known := await self._remote(run)) is not None:
            word = RunStatus(known.get("status", RunStatus.FAILED)).word
            raise WrongState(f"dag-run {run.run_id} is not queued", why=f"it is {word}")
        await asyncio.to_thread(dequeue, self.places, run)

    async def delete(self, run: DagRunRef) -> None:
        """Remove a finished run (`Launching.delete`)."""
        record = await self._here(run)
        if record is None:
            await self._delete_remote(run)
            return
        await self._at_rest(record)
        if retention.is_active(record):
            raise WrongState(f"dag-run {run.run_id} is running; stop or dequeue it before deleting")
        await asyncio.to_thread(retention.delete, self.places, record)

    async def _delete_remote(self, run: DagRunRef) -> None:
        """Remove a run that workers executed: at its coordinator, then what is kept of it here."""
        if self.way.coordinator is None or await self._remote(run) is None:
            raise _unknown(run)
        try:
            await self.way.coordinator.delete_run(self.way.caller, run=run)
        except UnknownCall as error:
            raise Conflict(
                f"dag-run {run.run_id} cannot be deleted", why="its coordinator, of another release, offers no way",
                fix="let the coordinator's retention remove it",
            ) from error  # fmt: skip
        record = await asyncio.to_thread(self.places.records.find_any, run)
        if record is not None:
            await asyncio.to_thread(retention.delete, self.places, record)

    # ── again ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def retry(
        self, run: DagRunRef, *, actor: str, step: str = "", downstream: bool = False, child: str = ""
    ) -> None:
        """Run again what did not succeed, or one step (`Launching.retry`)."""
        if (downstream or child) and not step:
            raise InvalidRequest("includeDownstream and subDAGRunId need a step", fix="name the step")
        record = await self._here(run)
        if record is None:
            await self._retry_remote(run, actor=actor, step=step, downstream=downstream, child=child)
        elif child:
            await self._retry_child(record, child, actor=actor, step=step, downstream=downstream)
        else:
            attempt = await self._at_rest(record)
            found = attempt.status()
            status = RunStatus(found.get("status", RunStatus.FAILED))
            if attempt.is_alive() or not status.is_terminal:
                raise Conflict(f"dag-run {run.run_id} cannot be retried", why=f"it is {status.word}")
            start = await asyncio.to_thread(self._kept, record, actor)
            _check_step(start, step)
            again_ = Retry(previous=attempt.document(), step=step, downstream=downstream)
            if start.loaded.main.queue and self._options.queues_enabled:
                await asyncio.to_thread(enqueue_again, self.places, record, again(start), again_)
            else:
                new = await asyncio.to_thread(_continued, record, start, again_)
                await self._execute(start.queue or run.name, run, new, new.hold())

    async def retry_automatically(self, run: DagRunRef) -> datetime | None:
        """Retry a failed run whose DAG asks for that (`Launching.retry_automatically`)."""
        record = await asyncio.to_thread(self.places.records.find_any, run)
        attempt = record.latest() if record is not None else None
        found = attempt.status() if attempt is not None else await self._remote(run)
        if record is None or found is None:
            return None  # its definition is kept where it was started
        start = await asyncio.to_thread(self._kept, record, found.get("triggerActor") or "")
        policy = start.loaded.main.retry
        at = due_at(found, policy)
        if at is None or policy is None:
            return None
        if at > datetime.now(UTC):
            return at
        counted = {**found, "autoRetryCount": retries_of(found) + 1, "autoRetryLimit": policy.limit}
        order = Retry(previous=json.dumps(counted, ensure_ascii=False))
        if self._options.queues_enabled:
            await asyncio.to_thread(enqueue_again, self.places, record, again(start), order, high=True)
        elif attempt is None:
            assert self.way.coordinator is not None, "it has the run"
            await hand_over(self.way.coordinator, self.way.caller, start, order)
        else:
            new = await asyncio.to_thread(_continued, record, start, order)
            await self._execute(start.queue or run.name, run, new, new.hold())
        return at

    async def _retry_child(self, root: Record, child: str, *, actor: str, step: str, downstream: bool) -> None:
        holder = await self._at_rest(root)
        found = history.child(root, child)
        if found is None:
            raise NotFound(f"sub dag-run ID not found: {child}", why=f"the run {root.run} has no such child")
        _, attempt = found
        if any(one.is_alive() for one in (attempt, holder)):
            raise Conflict(f"dag-run {child} cannot be retried", why="its run goes on", fix="wait for its end")
        run = DagRunRef(str(attempt.status()["name"]), child)
        start = replace(start_of(run, attempt.definition()), trigger=TriggerType.RETRY, actor=actor)
        _check_step(start, step)
        order = Retry(previous=attempt.document(), step=step, downstream=downstream)
        handle = holder.hold()
        note = {**start.snapshot(), "retryStep": order.step, "retryDownstream": order.downstream}
        attempt.write_definition(note)
        await self._execute(root.run.name, run, attempt, handle, root=root)

    async def _retry_remote(self, run: DagRunRef, *, actor: str, step: str, downstream: bool, child: str) -> None:
        known = await self._remote(run)
        if known is None or self.way.coordinator is None:
            raise _unknown(run)
        if child:
            raise InvalidRequest("a step of a child that workers ran cannot be retried alone", fix="retry the run")
        status = RunStatus(known.get("status", RunStatus.FAILED))
        if not status.is_terminal:
            raise Conflict(f"dag-run {run.run_id} cannot be retried", why=f"it is {status.word}")
        await self._continue_remote(run, Retry(previous=json.dumps(known), step=step, downstream=downstream), actor)

    async def _continue_remote(self, run: DagRunRef, retry: Retry, actor: str) -> None:
        """Let workers go on with a run, through its queue if its DAG names one."""
        assert self.way.coordinator is not None, "it has the run"
        record = await asyncio.to_thread(self.places.records.find_any, run)
        if record is None:
            raise NotFound(
                f"the definition of dag-run {run.run_id} is not kept here", why="it was dispatched elsewhere",
                fix="retry it where it was started",
            )  # fmt: skip
        start = await asyncio.to_thread(self._kept, record, actor)
        _check_step(start, retry.step)
        if start.loaded.main.queue and self._options.queues_enabled:
            await asyncio.to_thread(enqueue_again, self.places, record, again(start), retry)
        else:
            await hand_over(self.way.coordinator, self.way.caller, start, retry)

    async def reschedule(
        self, run: DagRunRef, *, actor: str, run_id: str = "", name: str = "", use_current: bool = False
    ) -> tuple[DagRunRef, bool]:
        """Start a new run as an earlier one was (`Launching.reschedule`)."""
        record = await asyncio.to_thread(self.places.records.find_any, run)
        if record is None:
            raise _unknown(run)
        old = await asyncio.to_thread(self._kept, record, actor)
        if use_current:
            old = await asyncio.to_thread(self._starts.current, old)
        new = DagRunRef(name or run.name, run_id or new_run_id())
        start = replace(old, run=new, trigger=TriggerType.MANUAL, schedule_time="", queue=new.name)
        if start.loaded.main.queue and self._options.queues_enabled:
            await asyncio.to_thread(enqueue, self.places, again(start))
            return new, True
        return await self._launch(start), False

    def _kept(self, record: Record, actor: str) -> Start:
        """Return what a run was started with, for another attempt of it."""
        attempt = record.kept()
        if attempt is None:
            raise NotFound("the definition of this run was not kept", why="its record has none")
        return replace(start_of(record.run, attempt.definition()), trigger=TriggerType.RETRY, actor=actor)

    # ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def set_step_status(
        self, run: DagRunRef, step: str, status: StepStatus, *, actor: str, child: str = ""
    ) -> None:
        """Correct the status of a step (`Launching.set_step_status`)."""
        record = await self._here(run)
        if record is None:
            if await self._remote(run) is None:
                raise _unknown(run)
            raise Conflict("steps that workers ran cannot be corrected", why="their coordinator keeps the record")
        attempt = deciding.latest(record)
        if child:
            found = history.child(record, child)
            if found is None:
                raise NotFound(f"sub dag-run ID not found: {child}")
            _, attempt = found
        await asyncio.to_thread(deciding.correct, attempt, step, status)

    async def approve(self, run: DagRunRef, step: str, inputs: Mapping[str, str], *, actor: str) -> bool:
        """Approve a waiting step (`Launching.approve`)."""
        return await self._decide(run, deciding.approval(step, inputs, actor=actor), actor)

    async def reject(self, run: DagRunRef, step: str, reason: str, *, actor: str) -> None:
        """Reject a waiting step (`Launching.reject`)."""
        await self._decide(run, deciding.rejection(step, reason, actor=actor), actor)

    async def push_back(self, run: DagRunRef, step: str, inputs: Mapping[str, str], *, actor: str) -> bool:
        """Let a waiting step and what led to it run again (`Launching.push_back`)."""
        return await self._decide(run, deciding.push_back(step, inputs, actor=actor), actor)

    async def complete_task(self, run: DagRunRef, step: str, fields: Mapping[str, Any], *, actor: str) -> bool:
        """Complete a human task (`Launching.complete_task`)."""
        return await self._decide(run, deciding.completion(step, fields, actor=actor), actor)

    async def _decide(self, run: DagRunRef, how: deciding.Decide, actor: str) -> bool:
        record = await self._here(run)
        if record is not None:
            await self._at_rest(record)
            _, goes_on = await asyncio.to_thread(deciding.decide, self.places, record, how)
            return goes_on
        known = await self._remote(run)
        kept = await asyncio.to_thread(self.places.records.find_any, run)
        if known is None or kept is None:
            raise _unknown(run)
        changed = await asyncio.to_thread(deciding.applied, self._kept, kept, known, how, actor)
        if changed != known:
            # The worker goes on with what is decided; what still waits for somebody waits again.
            await self._continue_remote(run, Retry(previous=json.dumps({**changed, "status": 7})), actor)
        return changed != known

    # ── who has it ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _at_rest(self, record: Record) -> Attempt:
        """Return the newest attempt; one whose last status is written is let go of within a moment."""
        attempt = deciding.latest(record)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AT_REST_S):
                while attempt.is_alive() and attempt.status().get("status") not in _GOES_ON:  # noqa: ASYNC110 - another process holds it
                    await asyncio.sleep(0.01)
        return attempt

    async def _here(self, run: DagRunRef) -> Record | None:
        return await asyncio.to_thread(self.places.records.find, run)

    async def _remote(self, run: DagRunRef) -> dict[str, Any] | None:
        """Return the document of a run that a coordinator has."""
        if self.way.coordinator is None:
            return None
        text = await self.way.coordinator.run_status(self.way.caller, run=run, root=None)
        found = json.loads(text) if text else None
        return found if isinstance(found, dict) else None


def _prepared(attempt: Attempt, start: Start, *, hidden: bool) -> Attempt:
    """Write down what an attempt is started with."""
    attempt.write_definition(start.snapshot())
    now = datetime.now(UTC)
    if hidden:
        attempt.hide()
        return Attempt(attempt.path.with_name("." + attempt.path.name))
    waits = {**document(start, attempt.attempt_id, now), "status": int(RunStatus.NOT_STARTED)}
    waits.pop("queuedAt")
    attempt.write(json.dumps(waits, ensure_ascii=False), final=True)
    return attempt


def _continued(record: Record, start: Start, retry: Retry) -> Attempt:
    """Make the attempt that continues a run at once."""
    attempt = record.add_attempt(new_attempt_id(record), now=datetime.now(UTC))
    attempt.write_previous(retry.previous)
    _prepared(attempt, start, hidden=False)
    attempt.write_definition({**start.snapshot(), "retryStep": retry.step, "retryDownstream": retry.downstream})
    return attempt


def _expected(workers: Sequence[WorkerInfo], selector: Mapping[str, str]) -> tuple[int, Waiting | None]:
    """Return how many healthy workers match, and what a run would wait for."""
    healthy = [worker for worker in workers if worker.health is WorkerHealth.HEALTHY]
    demand = Demand(label_set(selector), None)
    matching = [one for one in healthy if demand.is_met_by(one.worker, label_set(one.labels))]
    if not healthy:
        return 0, Waiting.NO_WORKER
    if not matching:
        return 0, Waiting.NO_MATCHING_WORKER
    is_full = all(one.stats.total_pollers and one.stats.busy_pollers >= one.stats.total_pollers for one in matching)
    return len(matching), Waiting.NO_CAPACITY if is_full else None


def _check_step(start: Start, step: str) -> None:
    if step and not any(step in (one.name, one.id) for one in start.loaded.main.steps):
        raise NotFound(f'the run has no step "{step}"', fix="name a step of the workflow that the run was made of")


def _unknown(run: DagRunRef) -> NotFound:
    return NotFound(f"dag-run ID {run.run_id} not found for DAG {run.name}")
