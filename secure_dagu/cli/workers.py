"""`secure-dagu workers`: who is there, how busy, with which labels, and what its certificate proves."""

from __future__ import annotations

import argparse
import json

from secure_dagu.cli import remote
from secure_dagu.errors import NotFound

SUMMARY = "List the workers that a coordinator knows."
EXAMPLE = "secure-dagu workers --coordinators=coordinator.example.com:50055"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from secure_dagu.cli import render
    from secure_dagu.dispatch.operating import WorkerView

    async with remote.connect(args) as (coordinator, caller):
        try:
            found = await coordinator.fleet(caller)
        except NotFound:  # a coordinator without our extensions says less
            found = [WorkerView(info=info) for info in await coordinator.workers(caller)]
        if args.json:
            print(json.dumps({"workers": render.workers_as_json(found)}, ensure_ascii=False))
        else:
            print("\n".join(render.workers_table(found)))
    return 0
