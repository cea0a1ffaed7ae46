"""Ask for the passphrase of a CA key: from a file, a systemd credential or the terminal, never from an argument."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.pki.opening import Passphrase
    from secure_dagu.security.secret import Secret


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every action that uses a CA key."""
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="passphrase of the CA's key, or PIN of its token (default: the systemd credential ca-passphrase, else "
        "asked for)",
    )


def source(args: argparse.Namespace) -> Passphrase | None:
    """Return what gives the passphrase when one is needed; None: there is no file, no credential and no terminal."""
    from secure_dagu.config.load import process_environment
    from secure_dagu.pki.passphrase import unattended

    file = getattr(args, "passphrase_file", None)
    found = unattended(Path(file) if file else None, process_environment())
    if found is None and sys.stdin.isatty():
        return lambda: ask("Passphrase of the CA's key: ")
    return found


def new(file: str | None) -> Secret:
    """Return a passphrase that is to be set: from a file, else asked for twice.

    Raises:
        ConfigError: too short, not the same twice, or nobody to ask.
    """
    from secure_dagu.pki.passphrase import check_new, read_file

    if file:
        return check_new(read_file(Path(file)))
    if not sys.stdin.isatty():
        raise ConfigError(
            "a passphrase is needed", why="there is no terminal to ask at", fix="give it in a file of mode 0600"
        )
    secret = check_new(ask("New passphrase for the CA's key: "))
    if not secret.matches(ask("Once more: ").reveal()):
        raise ConfigError("the two passphrases differ", why="nothing was changed", fix="try again")
    return secret


def ask(prompt: str) -> Secret:
    """Ask at the terminal, without echo."""
    from secure_dagu.security.secret import Secret

    return Secret(getpass.getpass(prompt))
