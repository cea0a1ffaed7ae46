"""`secure-dagu exception`: who answers for a weakening, why, and until when."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags, output
from secure_dagu.errors import InvalidRequest

if TYPE_CHECKING:
    from secure_dagu.security.exceptions import Exemption

SUMMARY = "Grant, list and revoke exceptions: every weakening needs an owner, a reason and an end."
EXAMPLE = 'secure-dagu exception grant plaintext --owner alice --reason "lab network, no uplink" --until 30d'
KINDS = (
    "plaintext", "tls-1.2", "policy-dry-run", "ungranted-labels", "metrics-public", "http-plaintext", "no-login",
)  # fmt: skip
"""Those of `security.exceptions.Kind`."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    grant = actions.add_parser("grant", help="allow a weakening on this host", epilog=f"example:  {EXAMPLE}")
    grant.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    grant.add_argument("--owner", metavar="NAME", required=True, help="who answers for it")
    grant.add_argument("--reason", metavar="TEXT", required=True, help="why it is needed")
    grant.add_argument(
        "--until", metavar="WHEN", required=True,
        help="its end, at most 90 days away: a day that it still covers (2026-12-31, UTC), a moment "
        "(2026-12-31T18:00Z), or how long (30d, 12h)",
    )  # fmt: skip
    listed = actions.add_parser(
        "list", help="print those that hold", epilog="example:  secure-dagu exception list --all"
    )
    listed.add_argument("--all", action="store_true", help="with those that are over")
    revoke = actions.add_parser(
        "revoke", help="end an exception now, in running services within a second",
        epilog="example:  secure-dagu exception revoke ex-3",
    )  # fmt: skip
    revoke.add_argument("id", metavar="ID", help="as `exception list` prints it")
    for action in (grant, listed, revoke):
        action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_common_flags(action)


async def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from secure_dagu.assembly import exceptions, recording
    from secure_dagu.config.load import home_of
    from secure_dagu.security.exceptions import Kind

    home = home_of(args)
    now = datetime.now(UTC)
    if args.action == "list":
        ledger = exceptions.read_ledger(home)
        items = [item for item in ledger.exemptions if args.all or item.is_valid(now)]
        _print(items, now, as_json=args.json)
        return 0
    user = recording.user()
    if args.action == "grant":
        until = moment(args.until, now)
        with recording.commands_trail(home) as record:
            item = exceptions.grant(
                home, kind=Kind(args.kind), owner=args.owner, reason=args.reason, until=until, by=user, record=record
            )
    else:
        with recording.commands_trail(home) as record:
            item = exceptions.revoke(home, args.id, by=user, record=record)
    _print([item], now, as_json=args.json)
    return 0


def moment(text: str, now: datetime) -> datetime:
    """Return the end that somebody asked for: a day (its end), a moment, or a time from now.

    Raises:
        InvalidRequest: it is none of them.
    """
    from secure_dagu.config.values import duration

    number, unit = text[:-1], text[-1:]
    try:
        if unit == "d" and number.isdecimal():
            return now + timedelta(days=int(number))
        if text[:4].isdecimal() and text[4:5] == "-":
            found = datetime.fromisoformat(text)
            if len(text) == len("2026-12-31"):
                found += timedelta(days=1)
            return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
        return now + duration(text)
    except (ValueError, OverflowError) as problem:
        raise InvalidRequest(
            f"{text[:64]!r} is no end of an exception", fix="say a day such as 2026-12-31, or how long, such as 30d"
        ) from problem


def _print(items: list[Exemption], now: datetime, *, as_json: bool) -> None:
    rows = [_row(item, now) for item in items]
    if as_json:
        output.print_json({"exceptions": rows})
        return
    if not rows:
        print("no exception holds here")
        return
    columns = ("id", "kind", "state", "until", "owner", "reason")
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    for row in ({column: column.upper() for column in columns}, *rows):
        line = "  ".join(f"{row[column]:<{width}}" for column, width in zip(columns, widths, strict=True))
        print(output.visible(line.rstrip()))


def _row(item: Exemption, now: datetime) -> dict[str, Any]:
    return {
        "id": item.id,
        "kind": item.kind.value,
        "state": item.state(now),
        "granted_at": item.granted_at.isoformat(),
        "until": item.until.isoformat(timespec="seconds"),
        "owner": item.owner,
        "reason": item.reason,
        "by": item.by,
    }
