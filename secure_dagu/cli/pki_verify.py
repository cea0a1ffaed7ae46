"""`secure-dagu pki verify`: say whether a peer would accept a certificate."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from secure_dagu.cli import output, pki
from secure_dagu.errors import ConfigError

HELP = "say whether a peer would accept a certificate, and why not; exit 4 if not"
EXAMPLE = "secure-dagu pki verify gpu-1 --ca /etc/dagu/ca.crt"
REFUSED = 4
"""Exit code, that of `errors.Unauthenticated`."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "certificate", metavar="FILE|NAME", help="a PEM file with its chain, or a name in the standard place"
    )
    parser.add_argument(
        "--ca", metavar="FILE", help="what the peer trusts (default: ca.crt beside it, else <home>/pki)"
    )
    parser.add_argument(
        "--purpose", choices=("client", "server"), help="what it is presented as (default: what it is for)"
    )
    parser.add_argument("--host", metavar="NAME", help="the dialled name, for a server")
    parser.add_argument(
        "--at", metavar="TIME", help="when it is presented, such as 2027-01-31T12:00:00Z (default: now)"
    )
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Say it."""
    from msgspec import to_builtins  # --help needs none of it

    from secure_dagu.config.load import load
    from secure_dagu.pki.directory import find_certificate, ledger
    from secure_dagu.pki.verifying import verify

    file = find_certificate(directory, args.certificate)
    beside = file.with_name("ca.crt")
    verified = verify(
        file,
        Path(args.ca) if args.ca else beside if beside.exists() else directory / "ca.crt",
        at=_time(args.at) if args.at else now,
        purpose=args.purpose,
        host=args.host,
        rules=load(args).settings.peer.identity_rules,
        ledger=ledger(directory) if (directory / "ledger.jsonl").exists() else None,
    )
    if args.json:
        output.print_json({"file": str(file)} | to_builtins(verified))
        return 0 if verified.accepted else REFUSED
    for warning in verified.warnings:
        output.say(output.visible(f"warning: {warning}"))
    if verified.accepted:
        labels = f" with {', '.join(verified.labels)}" if verified.labels else ""
        print(output.visible(f"accepted as a {verified.purpose}: {verified.identity}{labels}"))
        return 0
    print(output.visible(f"refused as a {verified.purpose}: {verified.code}"))
    print(output.visible(f"  why: {verified.why} ({verified.detail})\n  fix: {verified.fix}"))
    return REFUSED


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as problem:
        raise ConfigError(f"--at {text[:40]!r} is no time", fix="write 2027-01-31T12:00:00Z") from problem
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
