"""`secure-dagu status`: how a run stands, or the newest runs."""

from __future__ import annotations

import argparse
import json

from secure_dagu.cli import remote, render
from secure_dagu.errors import NotFound

SUMMARY = "Show how a run stands; without a DAG, list the newest runs."
EXAMPLE = "secure-dagu status etl -r 0Jf3kQ"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", nargs="?", help="the DAG's name (default: list the newest runs of all)")
    parser.add_argument("-r", "--run-id", metavar="ID", help="which run (default: the newest)")
    parser.add_argument("-n", "--limit", metavar="N", type=int, default=20, help="how many runs to list (default 20)")
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Print the run, or the list."""
    async with remote.connect(args) as (coordinator, caller):
        if not args.dag:
            runs = await coordinator.runs(caller, name=None, run_id=args.run_id, limit=args.limit)
            if args.json:
                print(json.dumps({"runs": render.runs_as_json(runs)}, ensure_ascii=False))
            else:
                print("\n".join(render.runs_table(runs)))
            return 0
        ref = await remote.find_run(coordinator, caller, args.dag, args.run_id)
        document = await coordinator.run_status(caller, run=ref, root=None)
        if document is None:
            raise NotFound(f"there is no run {ref}", fix=f"list the runs with `secure-dagu status {args.dag}`")
        if args.json:
            print(json.dumps({"run": render.run_as_json(document)}, ensure_ascii=False))
        else:
            print("\n".join(render.run_tree(document)))
    return 0
