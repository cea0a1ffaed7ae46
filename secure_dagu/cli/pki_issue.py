"""`secure-dagu pki issue`: issue one certificate."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from pathlib import Path

from secure_dagu.cli import output, passphrases, pki
from secure_dagu.errors import ConfigError

HELP = "issue one certificate, into <home>/pki/issued/NAME or --out"
EXAMPLE = "secure-dagu pki issue worker gpu-1 --labels gpu=true,zone=eu --days 30"
_ROLES = ("worker", "dispatcher", "coordinator", "admin", "metrics")
"""Those of `dispatch.model.Role` that certificates name."""
_KINDS = ("P-256", "P-384", "Ed25519")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("role", metavar="ROLE", choices=_ROLES, help=", ".join(_ROLES))
    parser.add_argument(
        "name", metavar="NAME", help="whose it is; a worker's id is this name, or this name, @ and anything"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "-o", "--out", metavar="DIR", help="write NAME.crt, NAME.key and ca.crt there (default <home>/pki/issued/NAME)"
    )
    place.add_argument(
        "--here", action="store_true", help="write them to <home>/pki, where the processes of this host look for them"
    )
    pki.add_advertise(parser, "names and addresses, for the role coordinator (this host's own are added)")
    parser.add_argument(
        "--labels",
        metavar="K=V[,K=V…]",
        action="append",
        default=[],
        help="labels that it grants to a worker; secure-dagu/tenant=NAME bounds a worker or dispatcher to a tenant",
    )
    lifetime = parser.add_mutually_exclusive_group()
    lifetime.add_argument(
        "--days", metavar="N", type=int, help="lifetime in days, 1 to 90 (default: the role's profile)"
    )
    lifetime.add_argument("--lifetime", metavar="DURATION", help="the same as a duration, such as 24h")
    parser.add_argument(
        "--key", metavar="KIND", choices=_KINDS, help=f"{', '.join(_KINDS)} (default P-256, which every peer takes)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    passphrases.add_flag(parser)
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Issue it."""
    from secure_dagu.dispatch.model import Role
    from secure_dagu.pki.directory import issue
    from secure_dagu.security.grants import parse_grants

    done = issue(
        directory,
        Role(args.role),
        args.name,
        out=directory if args.here else Path(args.out) if args.out else None,
        advertised=args.advertise,
        lifetime=_lifetime(args),
        force=args.force,
        now=now,
        labels=parse_grants(args.labels),
        kind=args.key,
        passphrase=passphrases.source(args),
        actor=pki.actor(),
    )
    if args.json:
        output.print_json(pki.written(done))
    else:
        pki.print_written(done)
    return 0


def _lifetime(args: argparse.Namespace) -> timedelta | None:
    if args.days is not None:
        return timedelta(days=args.days)
    if args.lifetime is None:
        return None
    from secure_dagu.config.values import duration

    try:
        return duration(args.lifetime)
    except ValueError as problem:
        raise ConfigError(
            f"--lifetime {args.lifetime[:64]!r} is refused", why=str(problem), fix="write 24h or 90m"
        ) from problem
