"""`secure-dagu pki passphrase`: set, change or remove the passphrase of the CA's key."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from secure_dagu.cli import output, passphrases, pki

HELP = "set, change or remove the passphrase that protects the CA's key"
EXAMPLE = "secure-dagu pki passphrase"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    passphrases.add_flag(parser)
    new = parser.add_mutually_exclusive_group()
    new.add_argument("--new-passphrase-file", metavar="FILE", help="the new one (default: asked for twice)")
    new.add_argument("--remove", action="store_true", help="keep the key without a passphrase from now on")
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Change it."""
    from secure_dagu.assembly.recording import ca_key_protected
    from secure_dagu.pki.directory import change_passphrase

    new = None if args.remove else passphrases.new(args.new_passphrase_file)
    path = change_passphrase(directory, passphrases.source(args), new)
    args.record(ca_key_protected("passphrase" if new is not None else "none"))
    if args.json:
        output.print_json({"key": str(path), "is_protected": new is not None})
        return 0
    print(f"{path} is now {'under a passphrase' if new is not None else 'without a passphrase'}.")
    if new is not None:
        print("Copies in backups and on this disk's free blocks are as they were.")
    return 0
