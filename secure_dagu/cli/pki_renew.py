"""`secure-dagu pki renew`: renew certificates of this host now, with new keys."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import output, passphrases, pki
from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.pki.holder import Granted

HELP = "renew the certificates of this host now: with the CA if it is here, else at a coordinator"
EXAMPLE = "secure-dagu pki renew gpu-1"
_NOT_LEAVES = ("ca", "issuing")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="file name without .crt (default: all in <home>/pki)")
    passphrases.add_flag(parser)
    pki.add_json(parser)


async def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Renew each; stop at the first that cannot be."""
    done = [(path, await _renew(path, args, directory, now)) for path in _certificates(directory, args.name)]
    if args.json:
        output.print_json({"renewed": [_fields(path, granted) for path, granted in done]})
        return 0
    for path, granted in done:
        print(f"{granted.identity}, until {granted.not_after:%Y-%m-%d}\n  {path}")
    return 0


def _certificates(directory: Path, name: str | None) -> list[Path]:
    here = [
        path
        for path in sorted(directory.glob("*.crt"))
        if path.stem not in _NOT_LEAVES and path.with_suffix(".key").exists()
    ]
    found = [path for path in here if name in (None, path.stem)]
    if not found:
        raise ConfigError(
            f"there is no certificate{f' of {name!r}' if name else ''} with its key in {directory}",
            why="a machine renews its own: its key never leaves it",
            fix="run this on that machine; `secure-dagu pki token` lets one whose certificate has ended join again",
        )
    return found


async def _renew(path: Path, args: argparse.Namespace, directory: Path, now: datetime) -> Granted:
    from secure_dagu.pki import holder
    from secure_dagu.pki.directory import ca_key_file

    is_here = ca_key_file(directory).exists()
    granted = _sign(path, args, directory, now) if is_here else await _ask(path, args, directory)
    holder.keep(directory, granted, stem=path.stem)
    return granted


def _sign(path: Path, args: argparse.Namespace, directory: Path, now: datetime) -> Granted:
    from secure_dagu.pki.enrolment import Desk
    from secure_dagu.pki.holder import Wish
    from secure_dagu.pki.term import read_term

    wish = Wish()
    desk = Desk(directory, passphrases.source(args))
    return wish.granted(desk.renew_here(read_term(path), wish.to_renew(), now=now).document)


async def _ask(path: Path, args: argparse.Namespace, directory: Path) -> Granted:
    from secure_dagu.assembly import edge, renewal
    from secure_dagu.config.load import load
    from secure_dagu.dispatch.model import Role
    from secure_dagu.link import context

    policy = context.client_policy(cert=path, key=path.with_suffix(".key"), ca=directory / "ca.crt")
    loaded = load(args)
    settings = loaded.settings
    is_worker = policy.identity.role is Role.WORKER and settings.worker.coordinators
    coordinators = settings.worker.coordinators if is_worker else settings.client.coordinators
    return await renewal.ask(policy, coordinators, edge.proxy_of(loaded))


def _fields(path: Path, granted: Granted) -> dict[str, Any]:
    return {
        "identity": granted.identity.uri,
        "labels": list(granted.labels),
        "not_after": pki.iso(granted.not_after),
        "certificate": str(path),
    }
