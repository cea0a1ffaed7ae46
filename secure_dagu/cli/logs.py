"""`secure-dagu logs`: the log of a run or of one of its steps, byte for byte."""

from __future__ import annotations

import argparse
import sys

from secure_dagu.cli import remote
from secure_dagu.errors import InvalidRequest

SUMMARY = "Print the log of a run or of one step; with --follow, as it grows."
EXAMPLE = "secure-dagu logs etl -r 0Jf3kQ --step=transform"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", help="the DAG's name")
    parser.add_argument("-r", "--run-id", metavar="ID", help="which run (default: the newest)")
    parser.add_argument("--step", metavar="NAME", help="one step's output (default: the run's own log)")
    parser.add_argument("--stderr", action="store_true", help="the step's standard error instead of its output")
    parser.add_argument("-f", "--follow", action="store_true", help="show all steps live, to the end of the run")
    remote.add_flags(parser, json_output=False)


async def run(args: argparse.Namespace) -> int:
    """Copy the log to standard output."""
    from secure_dagu.cli import render
    from secure_dagu.dispatch.model import LogStream

    if args.follow and (args.step or args.stderr):
        raise InvalidRequest("--follow shows every step", fix="leave out --step and --stderr, or --follow")
    if args.stderr and not args.step:
        raise InvalidRequest("--stderr belongs to one step", fix="name it with --step")
    async with remote.connect(args) as (coordinator, caller):
        ref = await remote.find_run(coordinator, caller, args.dag, args.run_id)
        if args.follow:
            follower = render.Follower()
            async for event in coordinator.follow(caller, run=ref, with_logs=True):
                for line in follower.lines(event):
                    print(line, flush=True)
            return 0
        stream = LogStream.SCHEDULER if not args.step else LogStream.STDERR if args.stderr else LogStream.STDOUT
        step = args.step or "scheduler"
        async for piece in coordinator.read_log(caller, run=ref, step=step, stream=stream, offset=0):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return 0
