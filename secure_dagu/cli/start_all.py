"""`secure-dagu start-all`: web server, scheduler and coordinator in one process."""

from __future__ import annotations

import argparse

from secure_dagu.cli import service

SUMMARY = "Run everything on one machine: Web UI, REST API, scheduler, queues and, if asked for, a coordinator."
EXAMPLE = "secure-dagu start-all --coordinator.host=0.0.0.0 --coordinator.advertise=ci.example.com"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    service.add_flags(
        parser, ("core", "paths", "scheduler", "tunnel", "coordinator", "peer", "policy", "client", "audit", "pki")
    )


async def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after an orderly stop."""
    from secure_dagu.assembly.start_all import run_start_all
    from secure_dagu.config.load import load

    service.configure(loaded := load(args))
    await run_start_all(loaded)
    return 0
