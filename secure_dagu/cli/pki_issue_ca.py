"""`secure-dagu pki issue-ca`: sign an issuing CA with the offline root."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from secure_dagu.cli import output, passphrases, pki

HELP = "sign the request of an issuing CA, on the host of the offline root"
EXAMPLE = "secure-dagu pki issue-ca issuing.csr --out /media/stick"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("request", metavar="FILE", help="what `secure-dagu pki init --issuing-ca` wrote")
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="write issuing.crt and ca.crt here")
    parser.add_argument("--force", action="store_true", help="replace an issuing.crt that exists")
    passphrases.add_flag(parser)
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Sign it."""
    from secure_dagu.pki.issuing import sign_request

    out = Path(args.out)
    entry = sign_request(
        directory,
        Path(args.request),
        out,
        now=now,
        passphrase=passphrases.source(args),
        actor=pki.actor(),
        force=args.force,
    )
    files = [str(out / "issuing.crt"), str(out / "ca.crt")]
    if args.json:
        output.print_json({"serial": entry.serial, "not_after": entry.not_after, "files": files})
        return 0
    print(f"issuing CA of {entry.identity.removeprefix('spiffe://')}, until {entry.not_after[:10]}")
    print("\n".join(f"  {file}" for file in files))
    print(f"Next, on the coordinator: secure-dagu pki init --issuing-ca --certificate {out} --advertise NAME")
    return 0
