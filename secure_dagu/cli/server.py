"""`secure-dagu server`: Web UI and REST API alone."""

from __future__ import annotations

import argparse

from secure_dagu.cli import service

SUMMARY = "Run the web server alone: Web UI and REST API; scheduler and coordinator run elsewhere."
EXAMPLE = "secure-dagu server --port=8080"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    service.add_flags(parser, ("core", "paths", "tunnel", "peer", "client"))


async def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after an orderly stop."""
    from secure_dagu.assembly.start_all import run_server
    from secure_dagu.config.load import load

    service.configure(loaded := load(args))
    await run_server(loaded)
    return 0
