"""`secure-dagu drain`: give a worker no new task, or give it tasks again."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from secure_dagu.cli import remote

if TYPE_CHECKING:
    from secure_dagu.dispatch.api import Coordinator
    from secure_dagu.dispatch.model import Caller

SUMMARY = "Give a worker no new task and let it finish what it runs; the coordinator remembers it."
EXAMPLE = "secure-dagu drain gpu-1 --wait"
LOOK_EVERY_S = 0.5


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("worker", metavar="WORKER", help="its id, or the name in its certificate")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--wait", action="store_true", help="return when it runs nothing any more")
    how.add_argument("--undo", action="store_true", help="give it tasks again")
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Ask once, and wait if told to."""
    import asyncio

    from secure_dagu.dispatch.model import WorkerId

    async with remote.connect(args) as (coordinator, caller):
        await coordinator.drain(caller, worker=WorkerId(args.worker), draining=not args.undo)
        if args.wait:
            while await _running(coordinator, caller, args.worker):  # noqa: ASYNC110 - it is on another host
                await asyncio.sleep(LOOK_EVERY_S)
    if args.json:
        print(json.dumps({"worker": args.worker, "draining": not args.undo, "idle": bool(args.wait)}))
    elif args.undo:
        print(f"{args.worker} is given tasks again")
    else:
        print(f"{args.worker} is given no new task" + (" and runs nothing" if args.wait else ""))
    return 0


async def _running(coordinator: Coordinator, caller: Caller, worker: str) -> int:
    """Return how many tasks the worker runs: by the coordinator's record, or by its own word where that says more.

    Another coordinator may hold some of them; only the worker's heartbeat tells of those.
    """
    from secure_dagu.security.identity import acts_as

    views = await coordinator.fleet(caller)
    mine = [view for view in views if acts_as(worker, view.info.worker)]
    return sum(max(view.held_tasks, len(view.info.stats.running)) for view in mine)
