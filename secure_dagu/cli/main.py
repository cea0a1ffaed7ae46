"""The program `secure-dagu`: parse the command line, run one command, turn its outcome into an exit code.

Parsing imports no grpc, TLS, SQL or pydantic: command modules import such things inside `run`
(tests/cli/test_main.py holds them to it).
"""

from __future__ import annotations

import secure_dagu.cli.lean  # isort: skip  # noqa: F401 - first: what follows would import what it puts off

import argparse
import errno
import re
import secrets
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn, Protocol, cast

from secure_dagu import __version__
from secure_dagu.cli import flags, output
from secure_dagu.errors import SecureDaguError, Unavailable

_INVALID_CHOICE = re.compile(r"argument (?P<what>\w+): invalid choice: '(?P<word>.*)' \(choose from (?P<choices>.*)\)")
_WORD = re.compile(r"[\w-]+")

_FULL = (errno.ENOSPC, errno.EDQUOT)  # whatever was written where: no mistake of ours

BUG = 70
USAGE = 2
INTERRUPTED = 130
EXIT_CODES = """exit codes:
  0 done   1 the workflow, the request or the run failed   2 wrong usage   3 configuration
  4 not proven or not allowed   5 cannot be reached now   6 data is not what was promised   70 a bug   130 stopped"""


class Reach(Enum):
    """What a command makes of the context that `context use` chose. None overlooks one that --context names."""

    CONTEXT = "goes to its server"
    HERE = "is about runs of this host and refuses, lest somebody takes them for the server's"
    NONE = "has nothing to do with it"


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives, whether it moves many bytes and so runs on uvloop, how it fails, and where it acts.

    Workflow commands fail as scripts expect of them (command line reference, section 1): exit code 1 for everything,
    `Error: …` on standard error.
    """

    module: str
    uses_network: bool = False
    is_workflow: bool = False
    reach: Reach = Reach.NONE


COMMANDS = {
    "start": Command("secure_dagu.cli.start", is_workflow=True, reach=Reach.CONTEXT),
    "dry": Command("secure_dagu.cli.dry", is_workflow=True),
    "validate": Command("secure_dagu.cli.validate", is_workflow=True),
    "enqueue": Command("secure_dagu.cli.enqueue", is_workflow=True, reach=Reach.CONTEXT),
    "dequeue": Command("secure_dagu.cli.dequeue", is_workflow=True, reach=Reach.CONTEXT),
    "exec": Command("secure_dagu.cli.exec", is_workflow=True, reach=Reach.HERE),
    "retry": Command("secure_dagu.cli.retry", is_workflow=True, reach=Reach.CONTEXT),
    "restart": Command("secure_dagu.cli.restart", is_workflow=True, reach=Reach.CONTEXT),
    "stop": Command("secure_dagu.cli.stop", is_workflow=True, reach=Reach.CONTEXT),
    "human-task": Command("secure_dagu.cli.human_task", is_workflow=True, reach=Reach.HERE),
    "status": Command("secure_dagu.cli.status", is_workflow=True, reach=Reach.CONTEXT),
    "history": Command("secure_dagu.cli.history", is_workflow=True, reach=Reach.CONTEXT),
    "ls": Command("secure_dagu.cli.ls", is_workflow=True, reach=Reach.HERE),
    "ps": Command("secure_dagu.cli.ps", is_workflow=True, reach=Reach.HERE),
    "rm": Command("secure_dagu.cli.rm", is_workflow=True, reach=Reach.HERE),
    "cleanup": Command("secure_dagu.cli.cleanup", is_workflow=True, reach=Reach.HERE),
    "schema": Command("secure_dagu.cli.schema", is_workflow=True),
    "example": Command("secure_dagu.cli.example", is_workflow=True),
    "profile": Command("secure_dagu.cli.profile", is_workflow=True),
    "context": Command("secure_dagu.cli.context", is_workflow=True),
    "start-all": Command("secure_dagu.cli.start_all", uses_network=True),
    "server": Command("secure_dagu.cli.server", uses_network=True),
    "scheduler": Command("secure_dagu.cli.scheduler", uses_network=True),
    "coordinator": Command("secure_dagu.cli.coordinator", uses_network=True),
    "worker": Command("secure_dagu.cli.worker", uses_network=True),
    "dispatch": Command("secure_dagu.cli.dispatch", uses_network=True),
    "logs": Command("secure_dagu.cli.logs", uses_network=True),
    "artifacts": Command("secure_dagu.cli.artifacts", uses_network=True),
    "workers": Command("secure_dagu.cli.workers", uses_network=True),
    "drain": Command("secure_dagu.cli.drain", uses_network=True),
    "cancel": Command("secure_dagu.cli.cancel", uses_network=True),
    "up": Command("secure_dagu.cli.up", uses_network=True),
    "join": Command("secure_dagu.cli.join", uses_network=True),
    "pki": Command("secure_dagu.cli.pki"),
    "health": Command("secure_dagu.cli.health", uses_network=True),
    "doctor": Command("secure_dagu.cli.doctor"),
    "policy": Command("secure_dagu.cli.policy"),
    "exception": Command("secure_dagu.cli.exception"),
    "audit": Command("secure_dagu.cli.audit"),
    "config": Command("secure_dagu.cli.config"),
    "completion": Command("secure_dagu.cli.completion", is_workflow=True),
    "help": Command("secure_dagu.cli.help", is_workflow=True),
    "version": Command("secure_dagu.cli.version", is_workflow=True),
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
        # argparse makes one for each argument that is declared, and without a width it imports shutil to look at the
        # terminal, and all of its archive formats with it.
        options.setdefault("formatter_class", partial(argparse.RawDescriptionHelpFormatter, width=80))
        super().__init__(allow_abbrev=False, **options)
        self.set_defaults(parser=self)  # the innermost one wins: whose flags to compare a misspelt one with

    def format_help(self) -> str:
        """Write it as wide as the terminal."""
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        raise UsageError(message, self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    output.open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        args = parse(words)
    except UsageError as problem:
        return _print_usage_error(problem, as_json=as_json)
    except SystemExit as done:  # argparse, after --help
        return done.code if isinstance(done.code, int) else USAGE
    is_workflow = COMMANDS[args.command].is_workflow
    return outcome(lambda: _run(args), as_json=getattr(args, "json", False), is_workflow=is_workflow)


def outcome(run: Callable[[], int], *, as_json: bool, is_workflow: bool = False) -> int:
    """Return the exit code of a command, after saying what went wrong if something did (conventions, "Errors")."""
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except BaseException as problem:  # the process edge
        code = _print_problem(problem, as_json=as_json, is_workflow=is_workflow)
        return 1 if is_workflow and code != INTERRUPTED else code
    return code


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; those after `--` go to a command that takes parameters.

    Raises:
        UsageError: with the nearest known word for one that is misspelt.
    """
    parser = build_parser(_command_of(words))
    if _is_completing():
        import argcomplete  # only a shell that asks for completions needs it

        from secure_dagu.cli import completion

        completion.complete_contexts(parser)
        argcomplete.autocomplete(parser)
    for word in words:
        if not word.isascii() and any("\ud800" <= char <= "\udfff" for char in word):  # bytes that are no UTF-8
            raise UsageError(f"an argument is not UTF-8 text: {word}", parser)
    own, params = _split(words)
    args, unknown = parser.parse_known_args(flags.spell_out(own, parser))
    if isinstance(getattr(args, "dag", None), list) and not any(word.startswith("-") for word in unknown):
        args.dag += unknown  # argparse takes no words on both sides of a flag
    elif unknown:
        raise UsageError(_about(unknown[0], args.parser), args.parser)
    if args.command is None:
        parser.print_help()
        raise SystemExit(0)
    if params is not None:
        if not hasattr(args, "params"):
            raise UsageError("this command takes no parameters after --", args.parser)
        args.params = [*args.params, *params]
    return args


def build_parser(only: str = "") -> Parser:
    """Return the parser of the whole program, or of one command: its file alone is imported then."""
    parser = Parser(
        prog="secure-dagu",
        description="Run Dagu workflows on many machines, every connection proven on both sides.",
        epilog=f"example:  secure-dagu pki init --advertise ci.example.com\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"secure-dagu {__version__}")
    flags.add_common_flags(parser, with_context=True)
    listed = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        if (only and name != only) or find_spec(command.module) is None:
            continue
        module = cast(CommandModule, import_module(command.module))
        one = listed.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=f"example:  {module.EXAMPLE}\n\n{EXIT_CODES}",
        )
        module.add(one)
        flags.add_common_flags(one, with_context=command.reach is Reach.CONTEXT)
        one.set_defaults(module=module)
    return parser


def _run(args: argparse.Namespace) -> int:
    args.quiet = getattr(args, "quiet", False)
    if getattr(args, "cpu_profile", False):
        output.say("warning: --cpu-profile means nothing here")
    running = _coroutine(args)
    if COMMANDS[args.command].uses_network:
        import uvloop  # pays off only where many bytes move

        return uvloop.run(running)
    import asyncio  # a third of the time that --help would take

    return asyncio.run(running)


def _coroutine(args: argparse.Namespace) -> Coroutine[Any, Any, int]:
    """Return what runs the command: on this host, unless it goes to the server of a context."""
    reach, said = COMMANDS[args.command].reach, getattr(args, "context", "")
    if said != "local" and (said or reach is not Reach.NONE):
        from secure_dagu.cli import elsewhere

        if there := elsewhere.chosen(args, said):
            if reach is not Reach.CONTEXT:
                raise elsewhere.only_here(args, there, is_named=bool(said))
            return elsewhere.run(args, there)
    return cast(CommandModule, args.module).run(args)


def _command_of(words: Sequence[str]) -> str:
    """Return the command that the words name, empty when that is not plain: no word, a wrong one, the whole help."""
    before = ""
    for word in words:
        if not word.startswith("-") and before not in ("-c", "--config", "--dagu-home", "--context"):
            return word if word in COMMANDS and not _is_completing() else ""
        before = word
    return ""


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
    import difflib  # only a command line with a mistake pays for it

    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _print_usage_error(problem: UsageError, *, as_json: bool) -> int:
    message, prog = str(problem), problem.parser.prog
    command = prog.partition(" ")[2]
    # An unknown command and the workflow commands answer as scripts expect it.
    first = command.partition(" ")[0]
    is_workflow = not command or (first in COMMANDS and COMMANDS[first].is_workflow)
    if wrong := _INVALID_CHOICE.fullmatch(message):
        what = "command" if wrong["what"] == "COMMAND" else wrong["what"]
        message = f"unknown {what} {wrong['word']!r}{_nearest(wrong['word'], _WORD.findall(wrong['choices']))}"
    fix = f"see `{prog} --help`"
    if as_json:
        output.print_json({"error": {"code": "usage", "what": message, "why": "", "fix": fix}})
    elif is_workflow:
        output.say(output.visible(f"Error: {message}" + ("" if command else f"\nRun '{prog} --help' for usage.")))
    else:
        output.say(output.visible(f"error: {message}\n  fix: {fix}"))
    return 1 if is_workflow else USAGE


def _print_problem(problem: BaseException, *, as_json: bool, is_workflow: bool) -> int:
    ours = _ours(problem)
    if ours is not None:
        output.print_error(ours, as_json=as_json, as_line=is_workflow)
        return ours.exit_code
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in _leaves(problem)):
        return INTERRUPTED
    from secure_dagu.config.load import wants_debug

    output.print_bug(problem, number=secrets.token_hex(4), is_debug=wants_debug(), as_json=as_json, as_line=is_workflow)
    return BUG


def _ours(problem: BaseException) -> SecureDaguError | None:
    """Return the error to tell if all that went wrong is ours: a TaskGroup wraps what its tasks raise."""
    leaves = _leaves(problem)
    ours = [leaf for leaf in leaves if isinstance(leaf, SecureDaguError)]
    if ours and len(ours) == len(leaves):
        return ours[0]
    full = [leaf for leaf in leaves if isinstance(leaf, OSError) and leaf.errno in _FULL]
    if full and len(full) == len(leaves):
        return Unavailable("nothing more can be written", why=full[0].strerror or "", fix="make room on the disk")
    return None


def _leaves(problem: BaseException) -> list[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        return [leaf for inner in problem.exceptions for leaf in _leaves(inner)]
    return [problem]


def _reader_is_gone() -> int:
    """End quietly when whoever read our output (`| head`) has left."""
    output.give_up(1)
    return 0


def _is_completing() -> bool:
    from secure_dagu.config.load import is_completing

    return is_completing()


if __name__ == "__main__":
    sys.exit(main())
