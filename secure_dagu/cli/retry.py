"""`secure-dagu retry`: run again what did not succeed of a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from secure_dagu.cli import workflow
from secure_dagu.errors import Conflict, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secure_dagu.config.load import Loaded
    from secure_dagu.dag.model import Step
    from secure_dagu.local.places import Places
    from secure_dagu.store.records import Record

SUMMARY = "Run again what did not succeed of a run, or one step of it."
EXAMPLE = "secure-dagu retry etl -r 0Jf3kQ --step load"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_dag(parser, with_params=False)
    parser.add_argument("-r", "--run-id", metavar="ID", default="", help="which run (required)")
    parser.add_argument("--step", metavar="NAME", default="", help="only this step")
    parser.add_argument("--downstream", action="store_true", help="and the steps that depend on it")
    parser.add_argument("-s", "--sub-run-id", metavar="ID", default="", help="the step is one of that child run")
    workflow.add_options(parser, "default-working-dir", "worker-id")


async def run(args: argparse.Namespace) -> int:
    """Run the new attempt to its end; a DAG with a named queue is put into it instead."""
    name = workflow.dag_argument(args)
    if not args.run_id:
        raise InvalidRequest('required flag(s) "run-id" not set')
    if not args.step and (args.downstream or args.sub_run_id):
        flag = "--downstream" if args.downstream else "--sub-run-id"
        raise InvalidRequest(f"{flag} requires --step")
    from msgspec.structs import replace

    from secure_dagu.local.queued import again as queued_again
    from secure_dagu.local.queued import enqueue_again
    from secure_dagu.local.runs import LocalRuns, Retry, find_run, start_of
    from secure_dagu.run.model import RunStatus, TriggerType

    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    record = find_run(places, workflow.dag_name(name, places), args.run_id)
    if args.sub_run_id:
        return await _retry_child(args, loaded, places, record)
    attempt = record.attempts()[-1]
    document = attempt.status()
    status = RunStatus(document.get("status", RunStatus.FAILED))
    if attempt.is_alive() or status is RunStatus.QUEUED:
        raise Conflict(
            f"dag-run {args.run_id} cannot be retried",
            why=f"it is {status.word}" if status in (RunStatus.QUEUED, RunStatus.RUNNING) else "its run goes on",
            fix="wait for its end, or stop it",
        )
    kept = start_of(record.run, attempt.definition())
    if args.step and args.step not in _names(kept.loaded.main.steps):
        raise NotFound(f'the run has no step "{args.step}"', fix="name a step of the workflow that the run was made of")
    begin = replace(
        kept,
        trigger=TriggerType.RETRY,
        actor=workflow.actor(),
        worker=args.worker_id,
        default_working_dir=args.default_working_dir or kept.default_working_dir,
        **workflow.profile_of(loaded, kept.profile),
    )
    runs = LocalRuns(places, echo=workflow.echo_of(args, loaded), remote=workflow.remote_of(args, loaded))
    again = Retry(previous=attempt.document(), step=args.step, downstream=args.downstream)
    if begin.loaded.main.queue and loaded.settings.queues.enabled:
        begin = queued_again(begin)
        enqueue_again(places, record, begin, again)
        fields = {"dag": record.run.name, "run-id": record.run.run_id, "queue": begin.queue}
        workflow.echo_of(args, loaded)("INFO", "Enqueued dag-run", fields)
        return 0
    return await workflow.run_to_end(args, runs, begin, record=record, retry=again)


async def _retry_child(args: argparse.Namespace, loaded: Loaded, places: Places, root: Record) -> int:
    """Run a step of a child run again."""
    from msgspec.structs import replace

    from secure_dagu.local import history
    from secure_dagu.local.runs import LocalRuns, Retry, start_of
    from secure_dagu.run.model import DagRunRef, TriggerType

    found = history.child(root, args.sub_run_id)
    if found is None:
        raise NotFound(f"sub dag-run ID not found: {args.sub_run_id}", why=f"the run {root.run} has no such child")
    child, attempt = found
    document = attempt.status()
    if any(one.is_alive() for one in (attempt, root.attempts()[-1])):
        raise Conflict(f"dag-run {args.sub_run_id} cannot be retried", why="its run goes on", fix="wait for its end")
    kept = start_of(DagRunRef(str(document["name"]), args.sub_run_id), attempt.definition())
    begin = replace(
        kept,
        trigger=TriggerType.RETRY,
        actor=workflow.actor(),
        worker=args.worker_id,
        default_working_dir=args.default_working_dir or kept.default_working_dir,
    )
    runs = LocalRuns(places, echo=workflow.echo_of(args, loaded), remote=workflow.remote_of(args, loaded))
    again = Retry(previous=attempt.document(), step=args.step, downstream=args.downstream)
    async with workflow.stop_on_signals(is_here=True) as stop:
        final = await runs.retry_child(root, child, begin, again, stop=stop)
    return workflow.show_end(args, final)


def _names(steps: Sequence[Step]) -> set[str]:
    return {name for step in steps for name in (step.name, step.id) if name}
