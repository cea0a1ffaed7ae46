"""The program `secure-dagu`: parse the command line, run one command, turn its outcome into an exit code.

Parsing imports no grpc, TLS, SQL or pydantic: command modules import such things inside `run`
(tests/cli/test_main.py holds them to it).
"""

from __future__ import annotations

import argparse
import difflib
import re
import secrets
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn, Protocol, cast

from secure_dagu import __version__
from secure_dagu.cli import flags, output
from secure_dagu.errors import SecureDaguError

_INVALID_CHOICE = re.compile(r"argument (?P<what>\w+): invalid choice: '(?P<word>.*)' \(choose from (?P<choices>.*)\)")
_WORD = re.compile(r"[\w-]+")

BUG = 70
USAGE = 2
INTERRUPTED = 130
EXIT_CODES = """exit codes:
  0 done   1 the workflow, the request or the run failed   2 wrong usage   3 configuration
  4 not proven or not allowed   5 cannot be reached now   6 data is not what was promised   70 a bug   130 stopped"""


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives, and whether it talks to the network and so runs on uvloop."""

    module: str
    uses_network: bool = False


COMMANDS = {
    "coordinator": Command("secure_dagu.cli.coordinator", uses_network=True),
    "worker": Command("secure_dagu.cli.worker", uses_network=True),
    "dispatch": Command("secure_dagu.cli.dispatch", uses_network=True),
    "status": Command("secure_dagu.cli.status", uses_network=True),
    "logs": Command("secure_dagu.cli.logs", uses_network=True),
    "artifacts": Command("secure_dagu.cli.artifacts", uses_network=True),
    "workers": Command("secure_dagu.cli.workers", uses_network=True),
    "cancel": Command("secure_dagu.cli.cancel", uses_network=True),
    "pki": Command("secure_dagu.cli.pki"),
    "config": Command("secure_dagu.cli.config"),
    "completion": Command("secure_dagu.cli.completion"),
    "version": Command("secure_dagu.cli.version"),
}
"""Name → command, in the order of `--help`. One whose module is not part of this build is not listed."""


class CommandModule(Protocol):
    """What a command's file holds."""

    SUMMARY: str
    EXAMPLE: str

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> Coroutine[Any, Any, int]:
        """Do it; return the exit code."""


class UsageError(Exception):
    """The command line cannot be understood."""

    def __init__(self, message: str, parser: argparse.ArgumentParser) -> None:
        self.parser = parser
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, which would turn a misspelt flag into another one."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        self.set_defaults(parser=self)  # the innermost one wins: whose flags to compare a misspelt one with

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        raise UsageError(message, self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        args = parse(words)
    except UsageError as problem:
        return _print_usage_error(problem, as_json=as_json)
    except SystemExit as done:  # argparse, after --help
        return done.code if isinstance(done.code, int) else USAGE
    return outcome(lambda: _run(args), as_json=getattr(args, "json", False))


def outcome(run: Callable[[], int], *, as_json: bool) -> int:
    """Return the exit code of a command, after saying what went wrong if something did (conventions, "Errors")."""
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except BaseException as problem:  # the process edge
        return _print_problem(problem, as_json=as_json)
    return code


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; those after `--` go to a command that takes parameters.

    Raises:
        UsageError: with the nearest known word for one that is misspelt.
    """
    parser = build_parser()
    if _is_completing():
        import argcomplete  # only a shell that asks for completions needs it

        argcomplete.autocomplete(parser)
    own, params = _split(words)
    args, unknown = parser.parse_known_args(flags.spell_out_booleans(own))
    if unknown:
        raise UsageError(_about(unknown[0], args.parser), args.parser)
    if args.command is None:
        parser.print_help()
        raise SystemExit(USAGE)
    if params is not None:
        if not hasattr(args, "params"):
            raise UsageError("this command takes no parameters after --", args.parser)
        args.params = [*args.params, *params]
    return args


def build_parser() -> Parser:
    """Return the parser of the whole program."""
    parser = Parser(
        prog="secure-dagu",
        description="Run Dagu workflows on many machines, every connection proven on both sides.",
        epilog=f"example:  secure-dagu pki init --advertise ci.example.com\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"secure-dagu {__version__}")
    flags.add_common_flags(parser)
    listed = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        if find_spec(command.module) is None:
            continue
        module = cast(CommandModule, import_module(command.module))
        one = listed.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=f"example:  {module.EXAMPLE}\n\n{EXIT_CODES}",
        )
        module.add(one)
        flags.add_common_flags(one)
        one.set_defaults(module=module)
    return parser


def _run(args: argparse.Namespace) -> int:
    args.quiet = getattr(args, "quiet", False)
    running = cast(CommandModule, args.module).run(args)
    if COMMANDS[args.command].uses_network:
        import uvloop  # pays off only where many bytes move

        return uvloop.run(running)
    import asyncio  # a third of the time that --help would take

    return asyncio.run(running)


def _split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Cut at the first `--`; argparse would lose what follows it behind an option."""
    if "--" not in words:
        return list(words), None
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])


def _about(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    name = word.partition("=")[0]
    return f"unknown flag {name}{_nearest(name, [flag for flag in _flags_of(parser) if flag.startswith('--')])}"


def _flags_of(parser: argparse.ArgumentParser) -> list[str]:
    return list(parser._option_string_actions)  # argparse has no public list of them


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _print_usage_error(problem: UsageError, *, as_json: bool) -> int:
    message = str(problem)
    if wrong := _INVALID_CHOICE.fullmatch(message):
        what = "command" if wrong["what"] == "COMMAND" else wrong["what"]
        message = f"unknown {what} {wrong['word']!r}{_nearest(wrong['word'], _WORD.findall(wrong['choices']))}"
    fix = f"see `{problem.parser.prog} --help`"
    if as_json:
        output.print_json({"error": {"code": "usage", "what": message, "why": "", "fix": fix}})
    else:
        output.say(output.visible(f"error: {message}\n  fix: {fix}"))
    return USAGE


def _print_problem(problem: BaseException, *, as_json: bool) -> int:
    ours = _ours(problem)
    if ours is not None:
        output.print_error(ours, as_json=as_json)
        return ours.exit_code
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in _leaves(problem)):
        return INTERRUPTED
    from secure_dagu.config.load import wants_debug

    output.print_bug(problem, number=secrets.token_hex(4), is_debug=wants_debug(), as_json=as_json)
    return BUG


def _ours(problem: BaseException) -> SecureDaguError | None:
    """Return the error to tell if all that went wrong is ours: a TaskGroup wraps what its tasks raise."""
    leaves = _leaves(problem)
    ours = [leaf for leaf in leaves if isinstance(leaf, SecureDaguError)]
    return ours[0] if ours and len(ours) == len(leaves) else None


def _leaves(problem: BaseException) -> list[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        return [leaf for inner in problem.exceptions for leaf in _leaves(inner)]
    return [problem]


def _reader_is_gone() -> int:
    """End quietly when whoever read our output (`| head`) has left; Python would complain once more at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _is_completing() -> bool:
    from secure_dagu.config.load import is_completing

    return is_completing()


if __name__ == "__main__":
    sys.exit(main())
