"""`secure-dagu help`: the help of the program or of one command."""

from __future__ import annotations

import argparse

from secure_dagu.cli import flags
from secure_dagu.errors import InvalidRequest

SUMMARY = "Print the help of a command; the same as COMMAND --help."
EXAMPLE = "secure-dagu help pki issue"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("words", metavar="COMMAND", nargs="*", help="a command, and one of its own")


async def run(args: argparse.Namespace) -> int:
    """Print it."""
    from secure_dagu.cli.main import build_parser  # it knows every command, and so this one

    parser: argparse.ArgumentParser = build_parser("".join(args.words[:1]))
    for word in args.words:
        below = flags.parsers_below(parser).get(word)
        if below is None:
            raise InvalidRequest(f"unknown command {word!r}", fix=f"see `{parser.prog} --help`")
        parser = below
    parser.print_help()
    return 0
