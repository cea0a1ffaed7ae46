"""How a shell is asked to run a command line or a script (workflow language, section 3.1). Pure.

Nothing is quoted or expanded here: the text reaches the shell as one argument or as a file. What an author may write
beside it is limited by one rule: no argument may carry a command of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from msgspec import Struct

from secure_dagu.dag.model import Shell
from secure_dagu.errors import DefinitionError

UNIX = frozenset({"sh", "bash", "zsh", "ksh", "ash", "dash"})
POWERSHELL = frozenset({"powershell", "pwsh"})
_POWERSHELL_FRAME = (
    "$ErrorActionPreference='Stop'; $OutputEncoding=[Console]::OutputEncoding=[System.Text.Encoding]::UTF8; "
    "try {{ {text} }} catch {{ [Console]::Error.WriteLine($_); exit 1 }}; if ($LASTEXITCODE) {{ exit $LASTEXITCODE }}"
)
"""Errors end the text, `Write-Error` among them, and the exit code of the last program is that of the shell."""


class Chosen(Struct, frozen=True):
    """The shell of a step. `is_explicit`: the step itself names it, so nothing is added to its arguments."""

    program: str
    args: tuple[str, ...]
    is_explicit: bool
    packages: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Return the program's base name, which decides how it is called."""
        return re.split(r"[/\\]", self.program)[-1].lower().removesuffix(".exe")


def choose(step: Shell, dag: Shell, default: str, host: str) -> Chosen:
    """Return the shell of a step: its own, the DAG's, the configured one, the host's `$SHELL`, `sh`.

    Raises:
        DefinitionError: it is `direct`, which is no shell.
    """
    packages = step.packages or dag.packages
    words = shlex.split(default) if default else []
    if step.program:
        chosen = Chosen(step.program, step.args, True, packages)
    elif dag.program:
        chosen = Chosen(dag.program, dag.args, False, packages)
    elif words:
        chosen = Chosen(words[0], tuple(words[1:]), False, packages)
    else:
        chosen = Chosen(host or "sh", (), False, packages)
    if chosen.program == "direct":
        raise DefinitionError("`direct` is not a shell", fix="use `action: exec` to run a program without a shell")
    return chosen


def command_argv(shell: Chosen, text: str) -> list[str]:
    """Return the arguments that run one command line.

    Raises:
        DefinitionError: a configured argument carries a command of its own; the text has a line break.
    """
    if has_line_break(text):
        raise DefinitionError(
            "the resolved command text contains a line break",
            fix="use a block (`run: |`) to run a script, or remove the line break from the value",
        )
    return inline_argv(shell, text, stops_at_errors=not shell.is_explicit)


def inline_argv(shell: Chosen, text: str, *, stops_at_errors: bool) -> list[str]:
    """Return the arguments that run `text`, which may have several lines.

    Raises:
        DefinitionError: a configured argument carries a command of its own, or packages are for another shell.
    """
    _check_packages(shell)
    if shell.family in POWERSHELL:
        flag, args = _carrier(shell, r"-(?i:c|command)", r"-(?i:e|ec|enc.*)|-(?i:command):.*", "-Command")
        added = [option for option in ("-NoProfile", "-NonInteractive") if not _has(args, option)]
        return [shell.program, *args, *added, flag, _POWERSHELL_FRAME.format(text=text)]
    if shell.family == "cmd":
        flag, args = _carrier(shell, r"/[cC]", r"/[cC].+", "/c")
        return [shell.program, *args, flag, text]
    if shell.family == "nix-shell":
        flag, args = _carrier(shell, r"--run", r"--run=.*", "--run")
        return [shell.program, *args, *_nix(shell), flag, f"set -e; {text}" if stops_at_errors else text]
    is_unix = shell.family in UNIX
    flag, args = _carrier(shell, "-c", r"-[^-]*c.*" if is_unix else r"-c.+", "-c")
    added = ["-e"] if is_unix and stops_at_errors and not _stops_at_errors(args) else []
    return [shell.program, *args, *added, flag, text]


def script_argv(shell: Chosen, path: str) -> list[str]:
    """Return the arguments that run a script file.

    Raises:
        DefinitionError: a configured argument reads its commands from somewhere else.
    """
    _check_packages(shell)
    args = list(shell.args)
    if shell.family in POWERSHELL:
        _refuse_in_script(args, r"-(?i:c|command)(?::.*)?|-(?i:e|ec|enc.*)|-(?i:f|file)(?=.)")
        if args and re.fullmatch(r"-(?i:f|file)", args[-1]):
            args.pop()
        _refuse_in_script(args, r"-(?i:f|file)")
        added = [option for option in ("-NoProfile", "-NonInteractive") if not _has(args, option)]
        policy = [] if _has(args, "-ExecutionPolicy") else ["-ExecutionPolicy", "Bypass"]
        return [shell.program, *args, *added, *policy, "-File", path]
    if shell.family == "cmd":
        _refuse_in_script(args, r"/[cC].+")
        return [shell.program, *(arg for arg in args if arg.lower() != "/c"), "/c", path]
    if shell.family == "nix-shell":
        _refuse_in_script(args, r"--run(?:=.*)?|--command(?:=.*)?")
        inner = f"sh {shlex.quote(path)}" if shell.is_explicit else f"sh -e {shlex.quote(path)}"
        return [shell.program, *args, *_nix(shell), "--run", inner]
    if shell.family in UNIX:
        _refuse_in_script(args, r"-[^-]*[cs].*")
        added = [] if shell.is_explicit or _stops_at_errors(args) else ["-e"]
        return [shell.program, *args, *added, path]
    return [shell.program, *args, path]


def script_suffix(shell: Chosen) -> str:
    """Return how the name of a script file ends; some shells look at it."""
    if shell.family in POWERSHELL:
        return ".ps1"
    return ".bat" if shell.family == "cmd" else ".sh"


def has_line_break(text: str) -> bool:
    """Tell whether a shell would see more than one line."""
    return "\n" in text or "\r" in text


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
    if not words or not words[0]:
        raise DefinitionError("the script's first line names no interpreter")
    return words


def _carrier(shell: Chosen, pattern: str, refused: str, default: str) -> tuple[str, list[str]]:
    """Return the flag before the text, and the arguments before the flag.

    A configured flag may stand last, where it is used; elsewhere, twice, or with a command in it, it is refused.
    """
    args = list(shell.args)
    flag = args.pop() if args and re.fullmatch(pattern, args[-1]) else default
    for arg in args:
        if re.fullmatch(pattern, arg) or re.fullmatch(refused, arg, re.S):
            raise DefinitionError(f"the shell argument {arg!r} is refused", why="it carries a command of its own")
    return flag, args


def _refuse_in_script(args: Sequence[str], pattern: str) -> None:
    for arg in args:
        if re.fullmatch(pattern, arg, re.S):
            raise DefinitionError(
                f"the shell argument {arg!r} is refused in script form", why="it reads its commands elsewhere"
            )


def _check_packages(shell: Chosen) -> None:
    if shell.packages and shell.family != "nix-shell":
        raise DefinitionError("shell_packages needs nix-shell", why=f"the shell of this step is {shell.family}")


def _nix(shell: Chosen) -> list[str]:
    packages = [word for package in shell.packages for word in ("-p", package)]
    is_told = _has(shell.args, "--pure") or _has(shell.args, "--impure")
    return packages if is_told else ["--pure", *packages]


def _stops_at_errors(args: Sequence[str]) -> bool:
    return any(re.fullmatch(r"-[a-zA-Z]*e[a-zA-Z]*", arg) for arg in args)


def _has(args: Sequence[str], option: str) -> bool:
    return option.lower() in (arg.lower() for arg in args)
