"""`secure-dagu scheduler`: start what is due, and work on the queues."""

from __future__ import annotations

import argparse

from secure_dagu.cli import service

SUMMARY = "Run a scheduler: start workflows by their schedules, work on the queues, find runs whose process is gone."
EXAMPLE = "secure-dagu scheduler --dags=/srv/dags"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    service.add_flags(parser, ("paths", "scheduler", "peer", "client"))


async def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after an orderly stop."""
    from secure_dagu.assembly.scheduler import run_scheduler
    from secure_dagu.config.load import load

    service.configure(loaded := load(args))
    await run_scheduler(loaded)
    return 0
