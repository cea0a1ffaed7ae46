"""`secure-dagu cleanup`: the former name of `rm --history`."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta

from secure_dagu.cli import output, remote, rm
from secure_dagu.errors import InvalidRequest

SUMMARY = "Remove old runs of a workflow (deprecated: use `rm --history`)."
EXAMPLE = "secure-dagu cleanup --retention-days 30 etl"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", nargs="*", help="a workflow: its name, its file's name, or a path")
    parser.add_argument("--retention-days", metavar="N", default="0", help="keep runs of the last N days (default 0)")
    parser.add_argument("-y", "--yes", dest="force", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    remote.add_flags(parser, json_output=False)
    parser.set_defaults(history=True, definition=False)


async def run(args: argparse.Namespace) -> int:
    """Do what `rm --history` does."""
    if len(args.dag) != 1:
        raise InvalidRequest(f"accepts 1 arg(s), received {len(args.dag)}")
    if not re.fullmatch(r"\d{1,5}", args.retention_days):
        raise InvalidRequest(f"invalid retention-days value '{args.retention_days}': must be a non-negative integer")
    if not args.quiet:
        output.say("warning: `cleanup` is deprecated; use `rm --history`")
    days = int(args.retention_days)
    if not days:
        return await rm.remove(args, args.dag[0], age=None, older_than="")
    return await rm.remove(args, args.dag[0], age=timedelta(days=days), older_than=f"{days}d")
