"""What an error tells a person to do must be something that this version can do."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from secure_dagu.cli.main import build_parser

SOURCES = sorted((Path(__file__).resolve().parents[2] / "secure_dagu").rglob("*.py"))


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the sub-commands of a parser."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def test_every_command_that_an_error_names_exists() -> None:
    top = commands_of(build_parser())
    pki = commands_of(top["pki"])
    named = {
        found
        for source in SOURCES
        for found in re.findall(r"`secure-dagu (?:--context \S+ )?([a-z-]+(?: [a-z-]+)?)", source.read_text())
    }
    assert named
    for words in sorted(named):
        command, _, sub = words.partition(" ")
        assert command in top, words
        if command == "pki" and sub:
            assert sub in pki, words
