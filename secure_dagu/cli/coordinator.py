"""`secure-dagu coordinator`: hand tasks to workers."""

from __future__ import annotations

import argparse

from secure_dagu.cli import service

SUMMARY = "Run a coordinator: take workflows in, hand them to workers, keep what they report."
EXAMPLE = "secure-dagu coordinator --coordinator.host=0.0.0.0 --coordinator.advertise=coordinator.example.com"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    service.add_flags(parser, ("coordinator", "peer", "policy", "audit", "pki"))


async def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    return await service.run(args, "coordinator")
