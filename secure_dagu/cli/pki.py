"""`secure-dagu pki`: make a CA, issue certificates, look at them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags, output
from secure_dagu.dispatch.model import Role

if TYPE_CHECKING:
    from secure_dagu.pki.directory import Written

SUMMARY = "Make a CA, issue certificates, look at them."
EXAMPLE = "secure-dagu pki init --advertise ci.example.com && secure-dagu pki issue worker gpu-1"
_ROLES = tuple(role.value for role in Role if role is not Role.ANONYMOUS)


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    init = actions.add_parser(
        "init",
        help="make a CA in <home>/pki, with a certificate for the coordinator and one for the operator",
        epilog="example:  secure-dagu pki init --advertise ci.example.com,10.0.0.7",
    )
    _add_advertise(init, "names and addresses under which workers dial the coordinator (default: this host's name)")
    init.add_argument(
        "--trust-domain",
        metavar="NAME",
        default="secure-dagu",
        help="first part of every identity (default secure-dagu)",
    )
    issue = actions.add_parser(
        "issue",
        help="issue one certificate, into <home>/pki/issued/NAME or --out",
        epilog="example:  secure-dagu pki issue worker gpu-1 --days 30",
    )
    issue.add_argument("role", metavar="ROLE", choices=_ROLES, help=", ".join(_ROLES))
    issue.add_argument(
        "name", metavar="NAME", help="whose it is; a worker's id is this name, or this name, @ and anything"
    )
    issue.add_argument("-o", "--out", metavar="DIR", help="write NAME.crt, NAME.key and ca.crt here")
    _add_advertise(issue, "names and addresses, for the role coordinator (this host's own are added)")
    issue.add_argument("--days", metavar="N", type=int, help="lifetime in days, 1 to 397 (default: the role's profile)")
    issue.add_argument("--force", action="store_true", help="replace files that exist")
    show = actions.add_parser(
        "show", help="say what a certificate contains", epilog="example:  secure-dagu pki show gpu-1"
    )
    show.add_argument("certificate", metavar="FILE|NAME", help="a PEM file, or a name in the standard place")
    listed = actions.add_parser("list", help="list every certificate that the CA here issued")
    for action in (init, issue, show, listed):
        action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_common_flags(action)


def _add_advertise(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--advertise", "--dns", metavar="NAME[,NAME…]", action="append", default=[], help=text)


async def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from secure_dagu.config.load import home_of
    from secure_dagu.pki.authority import utc_now

    action = {"init": _init, "issue": _issue, "show": _show, "list": _list}[args.action]
    action(args, home_of(args).pki_dir, utc_now())
    return 0


def _init(args: argparse.Namespace, directory: Path, now: datetime) -> None:
    import socket

    from secure_dagu.pki.directory import initialise

    advertised = args.advertise or [socket.gethostname()]
    done = initialise(directory, advertised=advertised, trust_domain=args.trust_domain, now=now)
    if args.json:
        output.print_json(
            {
                "directory": str(done.directory),
                "trust_domain": done.trust_domain,
                "ca": str(done.directory / "ca.crt"),
                "ca_not_after": _iso(done.ca_not_after),
                "coordinator": _written(done.coordinator),
                "operator": _written(done.operator),
            }
        )
        return
    print(f"CA of {done.trust_domain} in {done.directory}, until {done.ca_not_after:%Y-%m-%d}")
    _print_written(done.coordinator)
    _print_written(done.operator)
    print(f"Keep {done.directory / 'ca.key'} safe: whoever has it can be anyone.")
    print("Next: secure-dagu pki issue worker NAME")


def _issue(args: argparse.Namespace, directory: Path, now: datetime) -> None:
    from secure_dagu.pki.directory import issue

    done = issue(
        directory,
        Role(args.role),
        args.name,
        out=Path(args.out) if args.out else None,
        advertised=args.advertise,
        days=args.days,
        force=args.force,
        now=now,
    )
    if args.json:
        output.print_json(_written(done))
        return
    _print_written(done)


def _show(args: argparse.Namespace, directory: Path, now: datetime) -> None:
    from secure_dagu.pki.directory import find_certificate
    from secure_dagu.pki.facts import read_facts

    path = find_certificate(directory, args.certificate)
    facts = read_facts(path)
    if args.json:
        times = {"not_before": _iso(facts.not_before), "not_after": _iso(facts.not_after)}
        output.print_json({"file": str(path)} | asdict(facts) | times)
        return
    lines = [
        ("file", str(path)),
        ("identity", facts.identity or "(a CA)" if facts.is_ca else facts.identity or "(none: peers will refuse it)"),
        ("names", ", ".join(facts.names)),
        ("may", "sign certificates" if facts.is_ca else ", ".join(f"be a {word}" for word in facts.usage)),
        (
            "valid",
            f"{facts.not_before:%Y-%m-%d %H:%M}Z to {facts.not_after:%Y-%m-%d %H:%M}Z ({_left(facts.not_after, now)})",
        ),
        ("subject", facts.subject),
        ("issuer", facts.issuer),
        ("key", facts.key),
        ("serial", facts.serial),
        ("SHA-256", facts.fingerprint),
    ]
    for word, text in lines:
        if text:
            print(output.visible(f"{word:<9} {text}"))


def _list(args: argparse.Namespace, directory: Path, now: datetime) -> None:
    from secure_dagu.pki.directory import ledger

    entries = ledger(directory)
    if args.json:
        output.print_json({"certificates": [asdict(entry) for entry in entries]})
        return
    if not entries:
        output.say(f"nothing was issued from {directory}")
        return
    width = max(4, *(len(entry.name) for entry in entries))
    print(f"{'ROLE':<12} {'NAME':<{width}} {'UNTIL':<17} {'':<14} SERIAL")
    for entry in entries:
        until = datetime.fromisoformat(entry.not_after)
        print(f"{entry.role:<12} {entry.name:<{width}} {until:%Y-%m-%d %H:%M}Z {_left(until, now):<14} {entry.serial}")


def _written(done: Written) -> dict[str, Any]:
    return {
        "identity": done.uri,
        "names": list(done.entry.names),
        "serial": done.entry.serial,
        "not_after": done.entry.not_after,
        "certificate": str(done.certificate),
        "key": str(done.key),
        "ca": str(done.ca),
    }


def _print_written(done: Written) -> None:
    names = f" for {', '.join(done.entry.names)}" if done.entry.names else ""
    print(f"{done.entry.role}/{done.entry.name}{names}, until {done.entry.not_after[:10]}")
    print(f"  {done.certificate}\n  {done.key}")


def _left(until: datetime, now: datetime) -> str:
    if until <= now:
        return "ended"
    left = until - now
    return f"{left.days} days left" if left >= timedelta(days=2) else f"{left.total_seconds() / 3600:.0f} hours left"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
