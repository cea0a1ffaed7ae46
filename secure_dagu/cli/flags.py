"""Make flags from the settings' declarations, so that a setting is described once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from secure_dagu.config.settings import all_settings


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command takes; none of them sets a default, so they work before and after its name."""
    parser.add_argument(
        "--dagu-home", metavar="DIR", default=argparse.SUPPRESS, help="home directory (variable DAGU_HOME)"
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="settings (default <home>/config.yaml)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="no summary and no log lines, only errors"
    )


def add_settings_flags(parser: argparse.ArgumentParser, sections: Iterable[str]) -> None:
    """Add the flags of these sections (`coordinator`, `worker`, `peer`, `client`); their values stay raw text.

    `config.load.load` finds them in the parsed arguments under their keys, such as `worker.id`.
    """
    declared = all_settings().values()
    for section in sections:
        group = parser.add_argument_group(f"{section} settings")
        for item in declared:
            if item.section == section and item.flag:
                default = f"default {item.default}, " if item.default else ""
                group.add_argument(
                    *([item.short] if item.short else []),
                    item.flag,
                    dest=item.key,
                    metavar=item.word,
                    help=f"{item.help} ({default}variable {item.env[0]})".replace("%", "%%"),
                )


def spell_out_booleans(argv: Sequence[str]) -> list[str]:
    """Return the arguments with each bare boolean settings flag as `--flag=true`: its value never is the next word."""
    bare = {item.flag for item in all_settings().values() if item.is_bool and item.flag}
    return [f"{word}=true" if word in bare else word for word in argv]
