"""`secure-dagu pki list`: the ledger of every certificate that the CA here issued."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.cli import output, pki
from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.pki.ledger import LedgerEntry

HELP = "list every certificate that the CA here issued"
EXAMPLE = "secure-dagu pki list --role worker --status valid --expires-within 14d"
_STATUSES = ("valid", "superseded", "revoked", "ended")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--role", metavar="ROLE", help="only of this role")
    parser.add_argument("--name", metavar="NAME", help="only of this name")
    parser.add_argument("--serial", metavar="HEX", help="only the one with this serial number")
    parser.add_argument(
        "--status",
        metavar="STATUS",
        choices=_STATUSES,
        help=f"only {', '.join(_STATUSES)}; superseded: there is a newer one for that name",
    )
    parser.add_argument("--label", metavar="K=V", help="only those that grant this label")
    parser.add_argument(
        "--expires-within", metavar="Nd", help="only those that end in that many days or hours: 14d, 36h"
    )
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """List them."""
    from secure_dagu.pki.directory import ledger

    entries = tuple(_wanted(ledger(directory).entries(), args, now))
    if args.json:
        output.print_json({"certificates": [_document(entry, now) for entry in entries]})
        return 0
    if not entries:
        output.say(f"no such certificate was issued from {directory}")
        return 0
    width = max(4, *(len(entry.name) for entry in entries))
    print(f"{'ROLE':<12} {'NAME':<{width}} {'STATUS':<10} {'UNTIL':<17} {'':<14} SERIAL")
    for entry in entries:
        until = datetime.fromisoformat(entry.not_after)
        labels = f"  {','.join(entry.labels)}" if entry.labels else ""
        print(
            f"{entry.role:<12} {entry.name:<{width}} {_status(entry, now):<10} {until:%Y-%m-%d %H:%M}Z "
            f"{pki.left(until, now):<14} {entry.serial}{output.visible(labels)}"
        )
    return 0


def _wanted(entries: tuple[LedgerEntry, ...], args: argparse.Namespace, now: datetime) -> Iterator[LedgerEntry]:
    latest = now + _span(args.expires_within) if args.expires_within else None
    for entry in entries:
        if (
            args.role in (None, entry.role)
            and args.name in (None, entry.name)
            and (args.serial is None or entry.serial == args.serial.lower().lstrip("0"))
            and args.status in (None, _status(entry, now))
            and (args.label is None or args.label in entry.labels)
            and (latest is None or now < datetime.fromisoformat(entry.not_after) <= latest)
        ):
            yield entry


def _status(entry: LedgerEntry, now: datetime) -> str:
    """Return the status; one that has ended says that, unless it was revoked before."""
    has_ended = datetime.fromisoformat(entry.not_after) <= now
    return "ended" if has_ended and entry.status.value != "revoked" else entry.status.value


def _document(entry: LedgerEntry, now: datetime) -> dict[str, object]:
    from msgspec import to_builtins  # --help needs none of it

    found: dict[str, object] = to_builtins(entry)
    return found | {"status": _status(entry, now)}


def _span(text: str) -> timedelta:
    units = {"d": "days", "h": "hours"}
    if text[:-1].isdigit() and len(text) <= 6 and text[-1] in units:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    raise ConfigError(f"--expires-within {text[:20]!r} is refused", fix="write 14d or 36h")
