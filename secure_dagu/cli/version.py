"""`secure-dagu version`: which version this is."""

from __future__ import annotations

import argparse

from secure_dagu import __version__

SUMMARY = "Print the version."
EXAMPLE = "secure-dagu version"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


async def run(args: argparse.Namespace) -> int:
    """Print it."""
    print(__version__)
    return 0
