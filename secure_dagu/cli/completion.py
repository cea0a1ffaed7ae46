"""`secure-dagu completion`: a script that teaches a shell our commands and flags."""

from __future__ import annotations

import argparse

from secure_dagu.cli import flags
from secure_dagu.errors import SecureDaguError

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


def complete_contexts(parser: argparse.ArgumentParser) -> None:
    """Let argcomplete know the names of contexts: for --context, and for those that `context` takes."""
    for action in parser._actions:  # argparse has no public list of them
        if action.dest == "context" or (" context " in f"{parser.prog} " and action.dest == "name"):
            action.completer = _contexts  # type: ignore[attr-defined]  # where argcomplete looks for it
    for below in flags.parsers_below(parser).values():
        complete_contexts(below)


def _contexts(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    from secure_dagu.config.load import load
    from secure_dagu.contexts.book import LOCAL, Contexts

    try:
        return [LOCAL, *Contexts(load(parsed_args).settings.paths.contexts_dir).names()]
    except SecureDaguError:  # whoever runs the command learns why
        return []
