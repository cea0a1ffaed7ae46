"""`secure-dagu completion`: a script that teaches a shell our commands and flags."""

from __future__ import annotations

import argparse

SUMMARY = "Print a completion script for a shell."
EXAMPLE = 'eval "$(secure-dagu completion bash)"'


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "powershell"), help="which shell")


async def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["secure-dagu"], shell=args.shell))
    return 0
