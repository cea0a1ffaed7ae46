"""`secure-dagu pki crl`: show the revocation list, or sign it anew before it is due."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from secure_dagu.cli import output, passphrases

HELP = "show the revocation list, or sign it anew with --renew"
EXAMPLE = "secure-dagu pki crl --renew"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--renew", action="store_true", help="sign it anew, with the next number and a new due date")
    passphrases.add_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Show or sign."""
    from secure_dagu.pki import crl

    if args.renew:
        from secure_dagu.assembly.recording import crl_signed
        from secure_dagu.pki.rotation import signers

        cas = signers(directory, passphrases.source(args))
        args.record(crl_signed())
        signed = crl.sign(directory, cas, now=now)
    else:
        signed = crl.read(directory)
    if args.json:
        output.print_json(
            {
                "file": str(signed.file),
                "number": signed.number,
                "this_update": signed.this_update.isoformat(timespec="seconds"),
                "next_update": signed.next_update.isoformat(timespec="seconds"),
                "stale": now >= signed.next_update,
                "revoked": [
                    {"serial": serial, "at": at.isoformat(timespec="seconds"), "reason": reason}
                    for serial, at, reason in signed.entries
                ],
            }
        )
        return 0
    state = "STALE since" if now >= signed.next_update else "due again on"
    print(f"list {signed.number} of {signed.this_update:%Y-%m-%d %H:%M}Z, {state} {signed.next_update:%Y-%m-%d %H:%M}Z")
    for serial, at, reason in signed.entries:
        print(f"{at:%Y-%m-%d %H:%M}Z  {serial}  {reason}")
    if not signed.entries:
        output.say("nobody is revoked")
    return 0
