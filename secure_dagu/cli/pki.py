"""`secure-dagu pki`: make a CA, issue certificates, look at them. Each action is a file of its own."""

from __future__ import annotations

import argparse
import inspect
from datetime import datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags

if TYPE_CHECKING:
    from secure_dagu.pki.directory import Written

SUMMARY = "Make a CA, issue certificates, look at them."
EXAMPLE = "secure-dagu pki init --advertise ci.example.com && secure-dagu pki issue worker gpu-1"
ACTIONS = (
    "init", "issue", "token", "list", "inspect", "verify", "lint", "renew", "revoke", "crl", "rotate", "passphrase",
    "issue-ca",
)  # fmt: skip
"""Modules `cli.pki_<action>`; one that is not part of this build is not listed."""
_SIGNING = ("init", "issue", "token", "renew", "revoke", "rotate", "crl", "passphrase", "issue-ca")
"""Actions that are recorded in the audit log of commands, or do not happen; they find `args.record`. What enters the
ledger is recorded by itself."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name in ACTIONS:
        if (module := _module(name)) is not None:
            action = actions.add_parser(name, help=module.HELP, epilog=f"example:  {module.EXAMPLE}")
            module.add(action)
            flags.add_common_flags(action)


async def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from secure_dagu.config.load import home_of
    from secure_dagu.pki.authority import utc_now
    from secure_dagu.security.shield import shield

    shield()
    home, now = home_of(args), utc_now()
    module = _module(args.action)
    if args.action not in _SIGNING:
        return await _done(module.run(args, home.pki_dir, now))
    from secure_dagu.assembly.recording import commands_trail, of_ledger
    from secure_dagu.pki.ledger import watched

    with commands_trail(home) as record, watched(lambda entry: record(of_ledger(entry))):
        args.record = record
        return await _done(module.run(args, home.pki_dir, now))


async def _done(result: Any) -> int:
    """Return the exit code of an action; one that asks another host is a coroutine."""
    return int(await result if inspect.isawaitable(result) else result)


def _module(name: str) -> Any:
    found = f"secure_dagu.cli.pki_{name.replace('-', '_')}"
    return import_module(found) if find_spec(found) is not None else None


# ── what several actions say ─────────────────────────────────────────────────────────────────────────────────────────


def actor() -> str:
    """Return who runs this command, for the ledger."""
    from secure_dagu.assembly.recording import user

    return f"os:{user()}"


def add_advertise(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --advertise, and --dns for those who know it by that name."""
    parser.add_argument("--advertise", "--dns", metavar="NAME[,NAME…]", action="append", default=[], help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def written(done: Written) -> dict[str, Any]:
    """Return the stable JSON shape of an issued certificate."""
    return {
        "identity": done.uri,
        "names": list(done.entry.names),
        "labels": list(done.entry.labels),
        "serial": done.entry.serial,
        "not_after": done.entry.not_after,
        "certificate": str(done.certificate),
        "key": str(done.key),
        "ca": str(done.ca),
    }


def print_written(done: Written) -> None:
    """Say what was issued, for people."""
    names = f" for {', '.join(done.entry.names)}" if done.entry.names else ""
    labels = f" with {', '.join(done.entry.labels)}" if done.entry.labels else ""
    print(f"{done.entry.role}/{done.entry.name}{names}{labels}, until {done.entry.not_after[:10]}")
    print(f"  {done.certificate}\n  {done.key}")


def left(until: datetime, now: datetime) -> str:
    """Say how much time is left."""
    if until <= now:
        return "ended"
    rest = until - now
    return f"{rest.days} days left" if rest >= timedelta(days=2) else f"{rest.total_seconds() / 3600:.0f} hours left"


def iso(moment: datetime) -> str:
    """Return a time for JSON."""
    return moment.isoformat(timespec="seconds")
