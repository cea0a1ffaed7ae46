"""Make flags from the settings' declarations, so that a setting is described once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from secure_dagu.config.settings import all_settings
from secure_dagu.config.values import boolean


def add_common_flags(parser: argparse.ArgumentParser, *, with_context: bool = False) -> None:
    """Add the flags that every command takes; none of them sets a default, so they work before and after its name.

    `with_context`: whether the command can go to another server. The others take `--context local` all the same.
    """
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
    context = "at which server: one of `context list`, or local for this host (default: what `context use` chose)"
    parser.add_argument(
        "--context", metavar="NAME", default=argparse.SUPPRESS, help=context if with_context else argparse.SUPPRESS
    )
    # Dagu's profiler for its own authors: scripts may say it, and it means nothing here.
    parser.add_argument("--cpu-profile", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


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


def spell_out(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the words with each flag and its value as one: scripts count on how Dagu's flag library reads them.

    A flag that takes a value takes the next word, whatever that looks like (`--params -x`). One that takes none may be
    given as `--x=false`, which takes an earlier `--x` back; a bare boolean setting is true.
    """
    bare = {item.flag for item in all_settings().values() if item.is_bool and item.flag}
    spelled: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        flag = _flags(parser).get(name)
        if flag is None:
            spelled.append(word)
            parser = parsers_below(parser).get(word, parser)
        elif flag.nargs == 0 and equals:
            spelled = [one for one in spelled if _flags(parser).get(one) is not flag]
            try:
                spelled.extend([name] if boolean(value) else [])
            except ValueError as problem:
                parser.error(f"invalid argument for {name}: {problem}")
        elif flag.nargs == 0 or equals:
            spelled.append(word)
        elif name in bare:
            spelled.append(f"{name}=true")
        else:
            following = next(rest, None)
            spelled.append(word if following is None else f"{name}={following}")
    return spelled


def parsers_below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a command's own commands, by name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return parser._option_string_actions  # argparse has no public list of them
