"""`secure-dagu pki token`: let one machine join, once."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import output
from secure_dagu.dispatch.address import host_port

if TYPE_CHECKING:
    from secure_dagu.pki.tokens import Offer

HELP = "make a one-time token by which a machine gets its certificate from this coordinator"
EXAMPLE = "secure-dagu pki token --worker gpu-1 --labels gpu=true --ttl 1h"
_ROLES = ("worker", "dispatcher", "coordinator", "admin", "metrics")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--worker", metavar="NAME", help="for a worker of this name")
    what.add_argument("--name", metavar="NAME", help="for somebody of this name, with --role")
    what.add_argument("--list", action="store_true", help="list the tokens that wait for their use")
    what.add_argument("--withdraw", metavar="NAME", help="remove every token for this name")
    parser.add_argument("--role", metavar="ROLE", choices=_ROLES, default="worker", help=", ".join(_ROLES))
    parser.add_argument(
        "--labels",
        metavar="K=V[,K=V…]",
        action="append",
        help="labels that the worker may claim (default: those of its newest certificate; '' for none)",
    )
    parser.add_argument(
        "--advertise", metavar="NAME[,NAME…]", action="append", default=[], help="names, for the role coordinator"
    )
    parser.add_argument(
        "--lifetime", metavar="DURATION", help="of the certificate, such as 24h (default: the role's profile)"
    )
    parser.add_argument("--ttl", metavar="DURATION", default="1h", help="how long the token lasts (default 1h)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Make, list or withdraw."""
    from secure_dagu.pki.tokens import Tokens

    if args.list:
        _print_offers(Tokens(directory).waiting(now), as_json=args.json)
        return 0
    if args.withdraw:
        for offer in Tokens(directory).withdraw(args.withdraw):
            args.record(_event(offer, is_withdrawn=True))
            output.say(f"withdrawn: a token for {offer.role.value}/{offer.name}")
        return 0
    return _make(args, directory, now)


def _make(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    from secure_dagu.config.load import load
    from secure_dagu.dispatch.model import Role
    from secure_dagu.pki.enrolment import make_token
    from secure_dagu.security.grants import parse_grants

    token, offer = make_token(
        directory,
        Role(args.role if args.worker is None else "worker"),
        args.worker or args.name,
        labels=None if args.labels is None else parse_grants(args.labels),
        advertised=args.advertise,
        lifetime=None if args.lifetime is None else _duration(args.lifetime),
        ttl=_duration(args.ttl),
        now=now,
    )
    args.record(_event(offer))
    coordinator = load(args).settings.coordinator
    host = coordinator.advertise[0]
    place = host_port(host, coordinator.port)
    line = f"{token.reveal()}@{place}"
    if args.json:
        output.print_json({"token": line, **_fields(offer)})
        return 0
    print(line)
    granted = f" with {', '.join(offer.labels)}" if offer.labels else ""
    output.say(
        f"for {offer.role.value}/{offer.name}{granted}, once, until {offer.until}\n"
        "on the new machine:  secure-dagu join followed by that line"
    )
    return 0


def _duration(text: str) -> timedelta:
    from secure_dagu.config.values import duration
    from secure_dagu.errors import ConfigError

    try:
        return duration(text)
    except ValueError as problem:
        raise ConfigError(f"{text!r} is no duration", why=str(problem), fix="such as 30m, 1h or 24h") from problem


def _event(offer: Offer, *, is_withdrawn: bool = False) -> Any:
    from secure_dagu.assembly.recording import token_event

    return token_event(offer, is_withdrawn=is_withdrawn)


def _fields(offer: Offer) -> dict[str, Any]:
    return {
        "role": offer.role.value,
        "name": offer.name,
        "labels": list(offer.labels),
        "names": list(offer.names),
        "until": offer.until,
    }


def _print_offers(offers: tuple[Offer, ...], *, as_json: bool) -> None:
    if as_json:
        output.print_json({"tokens": [_fields(offer) for offer in offers]})
        return
    if not offers:
        output.say("no token waits for its use")
        return
    width = max(4, *(len(offer.name) for offer in offers))
    print(f"{'ROLE':<12} {'NAME':<{width}} {'UNTIL':<26} LABELS")
    for offer in offers:
        print(f"{offer.role.value:<12} {offer.name:<{width}} {offer.until:<26} {','.join(offer.labels)}")
