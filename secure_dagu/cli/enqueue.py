"""`secure-dagu enqueue`: put a run of a workflow into a queue."""

from __future__ import annotations

import argparse

from secure_dagu.cli import start, workflow

SUMMARY = "Put a run of a workflow into a queue; a scheduler starts it."
EXAMPLE = "secure-dagu enqueue etl --queue nightly -- YEAR=2025"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_dag(parser)
    workflow.add_options(
        parser, "run-id", "name", "labels", "profile", "default-working-dir", "no-reuse", "trigger-type",
        "schedule-time", "trigger-actor",
    )  # fmt: skip
    parser.add_argument("-u", "--queue", metavar="QUEUE", default="", help="which queue (default: the DAG's)")


async def run(args: argparse.Namespace) -> int:
    """Record it as queued."""
    name = workflow.dag_argument(args)
    workflow.check_trigger(args.trigger_type)
    from msgspec.structs import replace

    from secure_dagu.local.queued import check_enabled, enqueue

    loaded = workflow.settings_of(args)
    check_enabled(enabled=loaded.settings.queues.enabled)
    places = workflow.places_of(loaded)
    queued = start.new(args, loaded, places, name)
    queued = replace(queued, queue=args.queue or queued.loaded.main.queue or queued.run.name)
    enqueue(places, queued)
    fields = {"dag": queued.run.name, "run-id": queued.run.run_id, "queue": queued.queue, "params": queued.params}
    workflow.echo_of(args, loaded)("INFO", "Enqueued dag-run", fields)
    return 0
