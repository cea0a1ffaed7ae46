"""`secure-dagu worker`: take tasks from coordinators and execute them."""

from __future__ import annotations

import argparse

from secure_dagu.cli import service

SUMMARY = "Run a worker: take tasks from coordinators and execute them."
EXAMPLE = "secure-dagu worker --worker.coordinators=coordinator.example.com:50055 --worker.labels=gpu=true"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    service.add_flags(parser, ("worker", "peer"))


async def run(args: argparse.Namespace) -> int:
    """Work until SIGTERM or SIGINT, then drain."""
    return await service.run(args, "worker")
