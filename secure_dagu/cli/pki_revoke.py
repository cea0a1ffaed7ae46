"""`secure-dagu pki revoke`: refuse a certificate from now on."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from secure_dagu.cli import output, passphrases, pki

HELP = "revoke every live certificate of a name, or one serial, and sign the list that says so"
EXAMPLE = "secure-dagu pki revoke gpu-1 --reason keyCompromise"
_REASONS = (
    "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn",
)  # fmt: skip
"""Those of `pki.crl.REASONS`."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME|ROLE/NAME|SERIAL", help="whose certificates, or which one")
    parser.add_argument("--reason", metavar="WORD", choices=_REASONS, default="unspecified", help=", ".join(_REASONS))
    passphrases.add_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Revoke."""
    from secure_dagu.assembly.recording import crl_signed
    from secure_dagu.pki import crl
    from secure_dagu.pki.rotation import signers

    cas = signers(directory, passphrases.source(args))
    doomed = crl.find(cas[0].ledger, args.name, now=now)
    args.record(crl_signed())
    signed = crl.revoke(directory, cas, doomed, reason=args.reason, now=now, actor=pki.actor())
    if args.json:
        output.print_json(
            {
                "revoked": [
                    {"role": entry.role, "name": entry.name, "serial": entry.serial, "not_after": entry.not_after}
                    for entry in doomed
                ],
                "reason": args.reason,
                "crl": str(signed.file),
                "number": signed.number,
                "next_update": signed.next_update.isoformat(timespec="seconds"),
            }
        )
        return 0
    for entry in doomed:
        print(f"revoked {entry.role}/{entry.name}, serial {entry.serial}")
    print(f"list {signed.number} in {signed.file}, due again on {signed.next_update:%Y-%m-%d}")
    output.say(
        "A coordinator that reads this file refuses it within seconds; bring the file to every other coordinator."
    )
    return 0
