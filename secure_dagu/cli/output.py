"""Say what went wrong: for a person on standard error, with --json as one document on standard output."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from typing import Any

from secure_dagu.errors import SecureDaguError


def open_streams() -> None:
    """Make standard input, output and error what every command counts on.

    /dev/null stands where one is closed (`>&-`): the next file that is opened would otherwise become the standard
    output of everything that runs here. Text is UTF-8 whatever the locale says, and what is no text is shown escaped.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_json(document: Any) -> None:
    """Print one stable document on standard output."""
    print(json.dumps(document, ensure_ascii=False, indent=2))


def say(text: str) -> None:
    """Print a line for people on standard error, where it cannot disturb a result.

    Where it cannot be written (the reader has left, the disk is full, the terminal is gone) it is lost, and so is what
    follows: nothing that a command does depends on somebody reading along.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        give_up(2)


def give_up(number: int) -> None:
    """Let nothing of what a stream still holds come out, where nobody reads it; Python would complain of it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def visible(text: str) -> str:
    """Return text with control characters made visible: part of a message may come from elsewhere."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def print_error(error: SecureDaguError, *, as_json: bool, as_line: bool = False) -> None:
    """Print one of our errors: what, why, fix; `as_line` is the form of the workflow commands, `Error: what: why`."""
    if as_json:
        print_json({"error": error.as_dict()})
        return
    if as_line:
        say(visible(f"Error: {error}" + (f"\n  fix: {error.fix}" if error.fix else "")))
        return
    reason = f" ({error.reason})" if error.reason and f"({error.reason})" not in error.what else ""
    lines = [f"error: {error.what}{reason}"]
    lines += [f"  {word}: {text}" for word, text in (("why", error.why), ("fix", error.fix)) if text]
    say(visible("\n".join(lines)))


def print_bug(problem: BaseException, *, number: str, is_debug: bool, as_json: bool, as_line: bool = False) -> None:
    """Print an unexpected error: an id for the report; the rest only when debugging, for it may hold values."""
    if is_debug:
        traceback.print_exception(problem)
    what = f"unexpected error {number} ({type(problem).__name__})"
    fix = "run it again with DAGU_DEBUG=true and report what it prints"
    if as_json:
        print_json({"error": {"code": "internal", "what": what, "why": "", "fix": fix}})
    else:
        say(f"{'Error' if as_line else 'error'}: {what}\n  why: this is a mistake in secure-dagu\n  fix: {fix}")
