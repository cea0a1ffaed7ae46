"""`secure-dagu dequeue`: take a run out of a queue."""

from __future__ import annotations

import argparse

from secure_dagu.cli import workflow
from secure_dagu.errors import InvalidRequest, NotFound, WrongState

SUMMARY = "Take a run out of a queue: the named one, or the one that waits longest."
EXAMPLE = "secure-dagu dequeue nightly --dag-run etl:0Jf3kQ"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("queue", metavar="QUEUE", nargs="*", help="the queue")
    parser.add_argument("-d", "--dag-run", metavar="NAME:ID", default="", help="which run (default: the oldest)")


async def run(args: argparse.Namespace) -> int:
    """Take it out; its queued attempt is not listed any more."""
    from secure_dagu.local.queue import Queues
    from secure_dagu.local.queued import dequeue
    from secure_dagu.run.model import DagRunRef

    if len(args.queue) != 1:
        raise InvalidRequest(f"accepts 1 arg(s), received {len(args.queue)}")
    name, colon, run_id = args.dag_run.partition(":")
    if args.dag_run and not (name and colon and run_id):
        raise InvalidRequest(f'invalid dag-run "{args.dag_run}": expected name:id')
    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    item = Queues(places.queues).find(args.queue[0], DagRunRef(name, run_id) if args.dag_run else None)
    try:
        dequeue(places, item.run)
    except (NotFound, WrongState) as error:  # an item whose run is not queued goes too
        if not item.take():
            raise NotFound(f"no dag-run found in queue {item.queue}", why="somebody else took it out") from error
    fields = {"dag": item.run.name, "run-id": item.run.run_id, "queue": item.queue}
    workflow.echo_of(args, loaded)("INFO", "Dequeued dag-run", fields)
    return 0
