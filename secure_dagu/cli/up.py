"""`secure-dagu up`: everything that one person needs on the first machine."""

from __future__ import annotations

import argparse

from secure_dagu.cli import passphrases, service

SUMMARY = "Start a coordinator and a worker on this machine, with a CA of its own, and say how the next machine joins."
EXAMPLE = "secure-dagu up"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--no-worker", action="store_true", help="no worker on this machine")
    parser.add_argument(
        "--invite", metavar="NAME", default="", help="name of the next machine (default worker-2, worker-3, …)"
    )
    passphrases.add_flag(parser)
    service.add_flags(parser, ("coordinator", "worker", "pki"))


async def run(args: argparse.Namespace) -> int:
    """Prepare what is missing, then serve and work until SIGTERM or SIGINT."""
    from pathlib import Path

    from secure_dagu.assembly import up
    from secure_dagu.config import write
    from secure_dagu.config.load import load

    first = load(args)
    said = getattr(args, "config", None)
    file = first.config_file or (Path(said) if said else first.home.config_file)
    added = write.add_missing(file, up.settings_of_host(first))
    service.configure(loaded := load(args))
    done = up.prepare(loaded, has_worker=not args.no_worker, passphrase=passphrases.source(args))
    lines = [f"made {item}" for item in done.made]
    if added:
        lines.append(f"wrote {file}: {', '.join(added)}")

    def ready() -> None:
        line = up.invite(loaded, args.invite)
        minutes = int(up.INVITATION_TTL.total_seconds() / 60)
        lines.append(
            f"the next machine joins with (once, within {minutes} minutes; `secure-dagu pki token` makes more):"
        )
        print("\n".join(lines), f"\n  secure-dagu join {line}\n", sep="\n", flush=True)

    await up.run(loaded, has_worker=not args.no_worker, ready=ready)
    return 0
