"""How a shell is asked to run a command line or a script (workflow language, section 3.1). Pure.

Nothing is quoted or expanded here: the text reaches the shell as one argument or as a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from secure_dagu.dag.model import Shell
from secure_dagu.errors import DefinitionError

UNIX = frozenset({"sh", "bash", "zsh", "ksh", "ash", "dash"})


@dataclass(frozen=True, slots=True)
class Chosen:
    """The shell of a step. `is_explicit`: the step itself names it, so nothing is added to its arguments."""

    program: str
    args: tuple[str, ...]
    is_explicit: bool

    @property
    def family(self) -> str:
        """Return the program's base name, which decides how it is called."""
        return PurePath(self.program).name.lower().removesuffix(".exe")


def choose(step: Shell, dag: Shell, default: str, host: str) -> Chosen:
    """Return the shell of a step: its own, the DAG's, the configured one, the host's `$SHELL`, `sh`."""
    for shell, is_explicit in ((step, True), (dag, False)):
        if shell.packages:
            raise DefinitionError("shell_packages needs nix-shell", why="this version runs no nix-shell")
        if shell.program:
            return Chosen(shell.program, shell.args, is_explicit)
    words = shlex.split(default) if default else []
    if not words:
        return Chosen(host or "sh", (), is_explicit=False)
    return Chosen(words[0], tuple(words[1:]), is_explicit=False)


def command_argv(shell: Chosen, text: str) -> list[str]:
    """Return the arguments that run one command line.

    Raises:
        DefinitionError: a configured argument carries a command of its own; the text has a line break.
    """
    if "\n" in text or "\r" in text:
        raise DefinitionError(
            "the resolved command text contains a line break",
            fix="use a block (`run: |`) to run a script, or remove the line break from the value",
        )
    args = list(shell.args)
    for position, arg in enumerate(args):
        # `-c` may stand last, as the carrier of our text; combined or elsewhere it would run something else.
        is_last = position == len(args) - 1
        is_carrier = (
            arg.startswith("-") and not arg.startswith("--") and "c" in arg[1:] and not (arg == "-c" and is_last)
        )
        if is_carrier and (shell.family in UNIX or arg.startswith("-c")):
            raise DefinitionError(f"the shell argument {arg!r} is refused", why="it carries a command of its own")
    if args and args[-1] == "-c":
        args.pop()
    return [shell.program, *args, *_fail_fast(shell), "-c", text]


def script_argv(shell: Chosen, path: str) -> list[str]:
    """Return the arguments that run a script file.

    Raises:
        DefinitionError: a configured argument reads its commands from somewhere else.
    """
    if shell.family in UNIX:
        for arg in shell.args:
            if arg.startswith("-") and not arg.startswith("--") and set(arg[1:]) & {"c", "s"}:
                raise DefinitionError(
                    f"the shell argument {arg!r} is refused in script form", why="it reads its commands elsewhere"
                )
    return [shell.program, *shell.args, *_fail_fast(shell), path]


def _fail_fast(shell: Chosen) -> Sequence[str]:
    """Return `-e` where the step did not choose the shell itself."""
    if shell.family not in UNIX or shell.is_explicit or "-e" in shell.args:
        return ()
    return ("-e",)


def shebang(script: str) -> list[str] | None:
    """Return the interpreter's words of a script that begins with `#!`, None when it does not.

    Raises:
        DefinitionError: no command, an unterminated quote or a trailing backslash.
    """
    if not script.startswith("#!"):
        return None
    line = script[2:].split("\n", 1)[0].strip(" \t\r")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise DefinitionError("the script's first line cannot be read", why=str(error)) from None
    if not words:
        raise DefinitionError("the script's first line names no interpreter")
    return words
