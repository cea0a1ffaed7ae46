"""The summary tree of a run (command line reference, section 2): a status document as lines for people."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.cli.text import duration, moment, safe
from secure_dagu.run.model import SCRIPT_PREFIX, RunStatus, StepStatus

HANDLERS = ("onInit", "onSuccess", "onFailure", "onAbort", "onWait", "onExit")
WIDTH = 80
LAST_LINES = 50
TAIL_BYTES = 256 * 1024
"""How much of a stream is shown at most; a longer last line loses its beginning."""
_PIECE_BYTES = 2**20
_IN_SCRIPT = re.compile(rf"\S*/{re.escape(SCRIPT_PREFIX)}\w{{8}}\.\w+: (?:line )?(\d+):")
"""How a shell says where in its script something went wrong; the file is gone, the line is what helps."""


class Tail(Struct, frozen=True):
    """The last lines of a stream, and how many came before them."""

    lines: tuple[str, ...]
    hidden: int = 0


Reader = Callable[[str], Tail | None]
"""Gives the end of a stream by the path in its node; None when it is empty or not there."""


def read_tail(path: str) -> Tail | None:
    """Return the end of a file, read in pieces of a fixed size; None when it is empty or not there."""
    try:
        with Path(path).open("rb", buffering=0) as file:
            total, last = 0, b""
            size = file.seek(0, 2)
            file.seek(0)
            for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
                total += piece.count(b"\n")
                last = piece[-1:]
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except (OSError, ValueError):
        return None
    if not data.strip():
        return None
    total += last != b"\n"
    lines = data.decode(errors="replace").removesuffix("\n").split("\n")[-LAST_LINES:]
    return Tail(tuple(line.removesuffix("\r") for line in lines), total - len(lines))


def tree(document: Mapping[str, Any], *, read: Reader = read_tail, now: datetime | None = None) -> list[str]:
    """Return the summary of a run.

    Args:
        document: its status document (protocol, section 4); one of another program is read as well.
        read: gives the end of a stream by the path in its node.
        now: how far steps that still run have come; None means this moment.
    """
    now = now or datetime.now(UTC)
    status = RunStatus(document.get("status") or 0)
    took = duration(moment(document.get("startedAt")), moment(document.get("finishedAt")), now=now)
    lines = [f"{status.title} - {_begin(document)}", "", f"dag: {safe(_text(document, 'name'))}{_in_brackets(took)}"]
    shown = [*(document.get("nodes") or ()), *(document[key] for key in HANDLERS if document.get(key))]
    facts = list(_run_facts(document, shown))
    lines += [f"{'├─' if index < len(facts) - 1 or shown else '└─'}{fact}" for index, fact in enumerate(facts)]
    if facts and shown:
        lines.append("│")
    for index, node in enumerate(shown):
        is_last = index == len(shown) - 1
        branch, stem = ("└─", "  ") if is_last else ("├─", "│ ")
        lines.append(branch + _title(node, now))
        lines += [stem + line for line in _details(node, read)]
        if not is_last:
            lines.append(stem)
    word = "Status" if status in (RunStatus.RUNNING, RunStatus.NOT_STARTED) else "Result"
    return [*lines, "", f"{word}: {status.title}"]


def _begin(document: Mapping[str, Any]) -> str:
    began = moment(document.get("startedAt")) or moment(document.get("queuedAt"))
    if began is None and isinstance(document.get("createdAt"), int):
        began = datetime.fromtimestamp(document["createdAt"] / 1000, UTC)
    return began.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if began else "-"


def _run_facts(document: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if document.get("log"):
        yield f"log: {safe(_text(document, 'log'))}"
    error = _text(document, "error")
    # Most often it repeats what the first failed step says of itself.
    if error and not any(_first_line(node) and _first_line(node) in error for node in nodes):
        yield f"error: {safe(error)}"


def _first_line(node: Mapping[str, Any]) -> str:
    return _text(node, "error").strip().partition("\n")[0]


def _title(node: Mapping[str, Any], now: datetime) -> str:
    status = StepStatus(node.get("status") or 0)
    name = safe(_text(node["step"], "name"))
    if status is StepStatus.NOT_STARTED:
        return name
    if status is StepStatus.SKIPPED:
        return f"{name} [{status.word}]"  # it was looked at, not started
    took = duration(moment(node.get("startedAt")), moment(node.get("finishedAt")), now=now)
    return f"{name}{_in_brackets(took)} [{status.word}]"


def _details(node: Mapping[str, Any], read: Reader) -> Iterator[str]:
    """Yield the lines below a step: groups with an empty line between them; the last entry ends the branch."""
    groups = [group for group in (_commands(node), *_streams(node, read), _rest(node)) if group]
    for index, group in enumerate(groups):
        is_last_group = index == len(groups) - 1
        for position, (head, *below) in enumerate(group):
            is_last = is_last_group and position == len(group) - 1
            yield f"{'└─' if is_last else '├─'}{head}"
            yield from (f"{' ' if is_last else '│'}   {line}" for line in below)
        if not is_last_group:
            yield "│"


def _commands(node: Mapping[str, Any]) -> list[list[str]]:
    """Return the command lines; the text of a script is not repeated."""
    found = node["step"].get("commands") or ()
    lines = [line.get("cmdWithArgs") or line.get("command") for line in found if isinstance(line, dict)]
    return [[safe(line)] for line in lines if isinstance(line, str) and line]


def _streams(node: Mapping[str, Any], read: Reader) -> Iterator[list[list[str]]]:
    paths = {word: node.get(word) for word in ("stdout", "stderr")}
    if paths["stdout"] == paths["stderr"]:  # one log for both
        paths.pop("stderr")
    for word, path in paths.items():
        tail = read(path) if isinstance(path, str) and path else None
        if tail is not None:
            before = [f"... ({tail.hidden} more lines)"] if tail.hidden else []
            yield [[f"{word}: {safe(str(path))}", *before, *(one for line in tail.lines for one in _wrapped(line))]]


def _wrapped(line: str) -> list[str]:
    """Return a line of output as lines of at most 80 columns with their frame; a longer word stays whole."""
    room = WIDTH - len("│ │   ")
    text = safe(_IN_SCRIPT.sub(r"line \1:", line.strip()), keep="\t")
    return textwrap.TextWrapper(
        room, break_long_words=False, break_on_hyphens=False, expand_tabs=False, replace_whitespace=False
    ).wrap(text) or [""]


def _rest(node: Mapping[str, Any]) -> list[list[str]]:
    """Return what else became of a step, one entry each."""
    entries = []
    for child in node.get("children") or ():
        params = f" [{safe(_text(child, 'params'))}]" if child.get("params") else ""
        entries.append([f"subdag: {safe(_text(child, 'dagRunId'))}{params}"])
    if build := node.get("build"):
        reason = f" ({safe(_text(build, 'reason'))})" if build.get("reason") else ""
        entries.append([f"build: {safe(_text(build, 'decision'))}{reason}"])
    if node.get("status") == StepStatus.WAITING:
        entries += _questions(node["step"])
    if node.get("error"):
        first, *more = _text(node, "error").strip().split("\n")
        entries.append([f"error: {safe(first)}", *(safe(line, keep="\t") for line in more)])
    return entries


def _questions(step: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield what a step that waits asks of a person."""
    asked = step.get("humanTask") or step.get("approval") or {}
    if asked.get("prompt"):
        first, *more = _text(asked, "prompt").strip().split("\n")
        yield [f"prompt: {safe(first)}", *map(safe, more)]
    if asked.get("form"):
        yield [f"form: {safe(json.dumps(asked['form'], ensure_ascii=False))}"]


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
