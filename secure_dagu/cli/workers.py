"""`secure-dagu workers`: who is there, how busy, with which labels."""

from __future__ import annotations

import argparse
import json

from secure_dagu.cli import remote, render

SUMMARY = "List the workers that a coordinator knows."
EXAMPLE = "secure-dagu workers --coordinators=coordinator.example.com:50055"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Print the list."""
    async with remote.connect(args) as (coordinator, caller):
        found = await coordinator.workers(caller)
        if args.json:
            print(json.dumps({"workers": render.workers_as_json(found)}, ensure_ascii=False))
        else:
            print("\n".join(render.workers_table(found)))
    return 0
