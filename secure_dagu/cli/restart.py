"""`secure-dagu restart`: stop the running run of a workflow and start it anew."""

from __future__ import annotations

import argparse

from secure_dagu.cli import workflow
from secure_dagu.errors import Conflict, NotFound

SUMMARY = "Stop the running run of a workflow and start a new one with its parameters."
EXAMPLE = "secure-dagu restart etl"
LOOK_EVERY_S = 0.1


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_dag(parser, with_params=False)
    parser.add_argument("-r", "--run-id", metavar="ID", default="", help="which run (default: the one that runs)")
    workflow.add_options(parser, "schedule-time")


async def run(args: argparse.Namespace) -> int:
    """Stop the old run, wait as the workflow says, run the new one to its end."""
    import asyncio

    from msgspec.structs import replace

    from secure_dagu.local.run_ids import new_run_id
    from secure_dagu.local.runs import LocalRuns, find_run, start_of
    from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType

    name = workflow.dag_argument(args)
    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    dag = workflow.dag_name(name, places)
    candidates = [find_run(places, dag, args.run_id)] if args.run_id else list(places.records.runs(dag))
    running = [record for record in candidates if (attempt := record.latest()) is not None and attempt.is_alive()]
    if not running:
        newest = candidates[0].latest() if candidates else None
        status = RunStatus(newest.status().get("status", 0)) if newest else RunStatus.NOT_STARTED
        raise Conflict(f"DAG {dag} is not running, current status: {status.word}")
    record = running[0]
    attempt = record.latest()
    if attempt is None:
        raise NotFound(f"DAG {dag} has no run")
    old = start_of(record.run, attempt.definition())
    said = workflow.echo_of(args, loaded)
    attempt.request_cancel()
    said("INFO", "Dag-run stop requested", {"dag": dag, "run-id": record.run.run_id})
    while attempt.is_alive():  # noqa: ASYNC110 - another process's end
        await asyncio.sleep(LOOK_EVERY_S)
    if old.loaded.main.restart_wait_s:
        await asyncio.sleep(old.loaded.main.restart_wait_s)
    start = replace(
        old,
        run=DagRunRef(dag, new_run_id()),
        trigger=TriggerType.MANUAL,
        actor=workflow.actor(),
        schedule_time=workflow.schedule_time(args),
        **workflow.profile_of(loaded, old.profile),
    )
    runs = LocalRuns(places, echo=said, remote=workflow.remote_of(args, loaded))
    return await workflow.run_to_end(args, runs, start, record=runs.record(start))
