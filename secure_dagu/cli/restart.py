"""`secure-dagu restart`: stop the running run of a workflow and start it anew."""

from __future__ import annotations

import argparse
import contextlib

from secure_dagu.cli import workflow
from secure_dagu.errors import Conflict

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
    records = [find_run(places, dag, args.run_id)] if args.run_id else places.records.runs(dag)
    found = [(record.run, attempt) for record in records if (attempt := record.latest()) is not None]
    running = [(run, attempt) for run, attempt in found if attempt.is_alive()]
    if not running:
        status = RunStatus(found[0][1].status().get("status", 0)) if found else RunStatus.NOT_STARTED
        raise Conflict(f"DAG {dag} is not running, current status: {status.word}")
    run, attempt = running[0]
    old = start_of(run, attempt.definition())
    start = replace(  # before anything is stopped: what is wrong with it changes nothing
        old,
        run=DagRunRef(dag, new_run_id()),
        trigger=TriggerType.MANUAL,
        actor=workflow.actor(),
        schedule_time=workflow.schedule_time(args),
        **workflow.profile_of(loaded, old.profile),
    )
    said = workflow.echo_of(args, loaded)
    attempt.request_cancel()
    said("INFO", "Dag-run stop requested", {"dag": dag, "run-id": run.run_id})
    async with workflow.stop_on_signals() as stop:
        while attempt.is_alive() and not stop.is_set():  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(LOOK_EVERY_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(old.loaded.main.restart_wait_s or 0):
                await stop.wait()
        if stop.is_set():
            return 0
    runs = LocalRuns(places, echo=said, remote=workflow.remote_of(args, loaded))
    return await workflow.run_to_end(args, runs, start, record=runs.record(start))
