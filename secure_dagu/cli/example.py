"""`secure-dagu example`: workflows to start from."""

from __future__ import annotations

import argparse

from secure_dagu.errors import NotFound
from secure_dagu.local.first_start import EXAMPLES

SUMMARY = "List example workflows, or print one."
EXAMPLE = "secure-dagu example retry >retry.yaml"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("id", metavar="ID", nargs="?", default="", help="its name, or its number in the list")


async def run(args: argparse.Namespace) -> int:
    """Print it, or the list."""
    found = {path.stem.partition("-")[2]: path for path in sorted(EXAMPLES.glob("*.yaml"))}
    if not args.id:
        width = max(map(len, found))
        for number, (name, path) in enumerate(found.items(), start=1):
            print(f"{number:>2}. {name:<{width}}  {path.read_text().partition(chr(10))[0].removeprefix('# ')}")
        return 0
    by_number = dict(enumerate(found, start=1))
    name = by_number.get(int(args.id), "") if args.id.isascii() and args.id.isdigit() and len(args.id) < 4 else args.id
    if name not in found:
        raise NotFound(f"example '{args.id}' does not exist", fix="`secure-dagu example` lists them")
    print(found[name].read_text(), end="")
    return 0
