"""Lines of the log that a person sees on stderr (command line reference, section 1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from secure_dagu.cli import output
from secure_dagu.telemetry import lines

Echo = Callable[[str, str, Mapping[str, str]], None]


def line(level: str, message: str, fields: Mapping[str, str], *, as_json: bool = False) -> str:
    """Return one line: `time=… level=INFO msg="…" key=value`, or the same as JSON."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if as_json:
        return json.dumps({"time": now, "level": level, "msg": message, **fields}, ensure_ascii=False)
    given = {key: value for key, value in fields.items() if value}
    return lines.line({"time": now, "level": level, "msg": message, **given})


def to_stderr(*, as_json: bool = False) -> Echo:
    """Return an echo that prints to standard error."""

    def echo(level: str, message: str, fields: Mapping[str, str]) -> None:
        output.say(line(level, message, fields, as_json=as_json))

    return echo


def silent(level: str, message: str, fields: Mapping[str, str]) -> None:
    """Say nothing (`--quiet`)."""
