"""Where a step's output goes: its log file, what it publishes, and never a secret in either (see `masking`).

The log file is the worker's spool: bytes once written never change, and whoever ships them is told how many there are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from secure_dagu.dag.model import DeclaredOutput
from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.runner.masking import Masker

TAIL_BYTES = 4096
TAIL_LINES = 10
"""How much of stderr the error of a failed command repeats."""


class LogFile:
    """One step's stream on disk, masked, appended to by every attempt of the step.

    The file is made with its first byte; `is_made` makes it at once, for one that somebody will look for.
    """

    def __init__(
        self,
        path: Path,
        masker: Masker,
        told: Callable[[Path, int], None],
        *,
        mode: int = 0o600,
        is_made: bool = False,
    ) -> None:
        self.path = path
        self._masker = masker
        self._told = told
        self._mode = mode
        self._fd = -1
        self._begin: int | None = None
        """How large the file was when it was opened."""
        self.size = 0
        if is_made:
            self._open()

    def write(self, data: bytes) -> None:
        """Append."""
        self._put(self._masker.feed(data))

    def close(self) -> None:
        """Write what was held back and close the file; closing twice is harmless."""
        try:
            self._put(self._masker.finish())
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._fd < 0:
            self._open()
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self.size += len(data)
        self._told(self.path, self.size)

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, self._mode)
        self.size = os.fstat(self._fd).st_size
        if self._begin is None:
            self._begin = self.size

    def tail(self) -> str:
        """Return the last lines written since the file was opened, as they stand there; see `TAIL_LINES`."""
        if self._begin is None:
            return ""
        begin = max(self._begin, self.size - TAIL_BYTES)
        with self.path.open("rb") as file:
            file.seek(begin)
            lines = file.read(TAIL_BYTES).decode(errors="replace").rstrip().splitlines()
        if begin > self._begin and len(lines) > 1:
            lines = lines[1:]  # the first one is only half there
        return "\n".join(lines[-TAIL_LINES:])


class Capture(Struct):
    """The stdout of one execution in memory, as later steps read it: unmasked, bounded."""

    limit_bytes: int
    _data: bytearray = field(default_factory=bytearray)
    is_over: bool = False

    def write(self, data: bytes) -> None:
        """Keep data up to the limit."""
        if self.is_over:
            return
        if len(self._data) + len(data) > self.limit_bytes:
            self.is_over = True
            self._data.clear()
            return
        self._data += data

    def text(self) -> str:
        """Return the trimmed text.

        Raises:
            LimitExceeded: more than `max_output_size` was written.
        """
        if self.is_over:
            raise LimitExceeded(
                "the captured output is too large",
                why=f"max_output_size is {self.limit_bytes} bytes",
                fix="write large results to an artifact, or raise max_output_size",
            )
        return self._data.decode(errors="replace").strip()


def read_output_file(text: str, declared: Sequence[DeclaredOutput]) -> dict[str, str]:
    """Read what a step wrote to `DAGU_OUTPUT_FILE` (workflow language, section 3.6 d).

    Raises:
        DefinitionError: a malformed line, an undeclared, duplicate or missing name, a `json` value that is none.
    """
    known = {item.name: item for item in declared}
    values: dict[str, str] = {}
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        equals, heredoc = line.find("="), line.find("<<")
        if equals >= 0 and (heredoc < 0 or equals < heredoc):
            name, value = line[:equals], line[equals + 1 :]
        elif heredoc > 0 and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", line[heredoc + 2 :]):
            name, end = line[:heredoc], line[heredoc + 2 :]
            try:
                closing = lines.index(end, at)
            except ValueError:
                raise DefinitionError(f"the output {name!r} is not closed", why=f"no line {end!r} follows") from None
            value = "\n".join(lines[at:closing])
            at = closing + 1
        else:
            raise DefinitionError(
                f"line {at} of the output file is malformed", why="expected name=value or name<<DELIMITER"
            )
        if name not in known:
            raise DefinitionError(f"undeclared step output {name!r}", fix="declare it under `outputs`")
        if name in values:
            raise DefinitionError(f"the output {name!r} was written twice")
        if known[name].type == "json":
            try:
                json.loads(value)
            except (ValueError, RecursionError) as error:
                raise DefinitionError(f"the output {name!r} is not JSON", why=str(error)) from None
        values[name] = value
    for name in known:
        if name not in values:
            raise DefinitionError(f"output {name!r} not emitted", fix="write it to $DAGU_OUTPUT_FILE")
    return values


def output_variables(name: str, value: str) -> Mapping[str, str]:
    """Return the `outputVariables` of a node: `{"NAME": "NAME=value"}` (protocol, section 4.3)."""
    return {name: f"{name}={value}"}
