"""`secure-dagu join`: make this machine a member with a one-time token, and start its worker."""

from __future__ import annotations

import argparse
import sys

from secure_dagu.cli import output, service

SUMMARY = "Join a coordinator with a one-time token: get a certificate, write the configuration, start the worker."
EXAMPLE = "secure-dagu join sdj1.mJ5…@coordinator.example.com:50055"
MAX_LINE = 512


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "invitation",
        metavar="TOKEN@HOST:PORT",
        help="what `secure-dagu pki token` printed on the coordinator's host; - reads it from standard input",
    )
    parser.add_argument(
        "--pod-token",
        metavar="FILE",
        help="join as a pod, with this token of its service account; then say HOST:PORT alone, and --ca",
    )
    parser.add_argument("--ca", metavar="FILE", help="with --pod-token: the root certificate to trust")
    parser.add_argument("--no-start", action="store_true", help="do not start the worker")
    parser.add_argument("--force", action="store_true", help="replace the CA that this host trusts by the token's")
    service.add_flags(parser, ("worker",))


async def run(args: argparse.Namespace) -> int:
    """Join, then work until SIGTERM or SIGINT."""
    from pathlib import Path

    from secure_dagu.assembly import edge, joining
    from secure_dagu.config.load import load
    from secure_dagu.dispatch.model import Role
    from secure_dagu.errors import ConfigError

    text = sys.stdin.readline(MAX_LINE) if args.invitation == "-" else args.invitation
    if bool(args.pod_token) is not bool(args.ca):
        raise ConfigError("--pod-token and --ca go together", fix="give both, or none of them")
    if args.pod_token:
        loaded, to = load(args), joining.parse_place(text)
        token, ca = Path(args.pod_token), Path(args.ca)
        joined = await joining.join_as_pod(token, ca, to, loaded.home, proxy=edge.proxy_of(loaded))
    else:
        invitation, loaded = joining.parse_invitation(text), load(args)
        said = getattr(args, "config", None)
        file = Path(said) if said else loaded.home.config_file
        joined = await joining.join(invitation, loaded.home, file, proxy=edge.proxy_of(loaded), force=args.force)
    identity = joined.granted.identity
    output.say(f"joined as {identity}, until {joined.granted.not_after:%Y-%m-%d %H:%M}Z\n  {joined.certificate}")
    if joined.added:
        output.say(f"  {joined.config_file}: {', '.join(joined.added)}")
    if identity.role is not Role.WORKER:
        return 0
    if args.no_start:
        output.say("start it with:  secure-dagu worker")
        return 0
    return await service.run(args, "worker")
