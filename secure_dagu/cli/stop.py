"""`secure-dagu stop`: ask runs on this host to stop."""

from __future__ import annotations

import argparse

from secure_dagu.cli import workflow

SUMMARY = "Ask the running runs of a workflow to stop, or one of them."
EXAMPLE = "secure-dagu stop etl -r 0Jf3kQ"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_dag(parser, with_params=False)
    parser.add_argument("-r", "--run-id", metavar="ID", default="", help="which run (default: all that run)")


async def run(args: argparse.Namespace) -> int:
    """Request it; returns when the request is on record."""
    name = workflow.dag_argument(args)
    loaded = workflow.settings_of(args)
    places, said = workflow.places_of(loaded), workflow.echo_of(args, loaded)
    dag = workflow.dag_name(name, places)
    from secure_dagu.local import deciding
    from secure_dagu.local.runs import find_run

    records = [find_run(places, dag, args.run_id)] if args.run_id else list(places.records.runs(dag))
    stopped = 0
    for record in records:
        attempt = record.latest()
        if attempt is not None and deciding.stop(attempt):
            stopped += 1
            said("INFO", "Dag-run stop requested", {"dag": dag, "run-id": record.run.run_id})
    if not stopped:
        said("INFO", "No running DAG runs found", {"dag": dag, "run-id": args.run_id})
    return 0
