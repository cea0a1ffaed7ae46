"""`secure-dagu cancel`: ask for the end of a run."""

from __future__ import annotations

import argparse
import json

from secure_dagu.cli import remote
from secure_dagu.errors import NotFound

SUMMARY = "Stop a run: its processes get their stop signal at once."
EXAMPLE = "secure-dagu cancel etl -r 0Jf3kQ"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", help="the DAG's name")
    parser.add_argument("-r", "--run-id", metavar="ID", help="which run (default: the newest)")
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Ask once; asking for a finished run changes nothing and is no error."""
    async with remote.connect(args) as (coordinator, caller):
        ref = await remote.find_run(coordinator, caller, args.dag, args.run_id)
        verdict = await coordinator.cancel(caller, run=ref, root=None)
        if not verdict.accepted:
            raise NotFound(f"run {ref} was not cancelled", why=verdict.error)
        if args.json:
            print(json.dumps({"run": {"name": ref.name, "runId": ref.run_id}, "cancelRequested": True}))
        else:
            print(f"asked {ref} to stop")
    return 0
