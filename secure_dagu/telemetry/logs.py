"""Log lines: an event name and fields, as JSON or as text, redacted and bounded before they are rendered.

Import this module before any other that logs (`assembly` and `cli` do): it loads structlog without `rich`,
`greenlet` and `pickle`, which cost every process 3.5 MiB for a traceback style, a kind of thread and copies of loggers
that we do not use.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

from secure_dagu.telemetry import lines
from secure_dagu.trimmed import trimmed

with trimmed(missing=("rich", "greenlet"), hollow=("pickle",)):
    import structlog

MAX_TEXT = 2000
"""Characters of one field; a traceback may have ten times as many."""
MAX_FIELDS = 40
MASK = "[redacted]"
_SECRET_WORDS = frozenset(
    {
        "password", "passphrase", "secret", "token", "authorization", "cookie", "params", "environment", "env",
        "body", "definition", "document", "data", "value", "private_key", "credentials",
    }
)  # fmt: skip
_SECRET_ENDINGS = ("_password", "_passphrase", "_secret", "_token", "_credentials", "_private_key")
_SECRET_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}",
    re.DOTALL,
)
_LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARN"}
_KEYS = {"run": "run-id", "attempt": "attempt-id", "worker": "worker-id"}

Event = MutableMapping[str, Any]


def configure(*, json_lines: bool, debug: bool = False, stream: TextIO | None = None) -> None:
    """Set up logging for this process; lines go to `stream`, standard error by default, in colour on a terminal."""
    out = stream or sys.stderr
    number = logging.DEBUG if debug else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            clean,
            _as_json if json_lines else _Text(for_people=out.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    # What libraries say through the standard module becomes a line of the same shape.
    root = logging.getLogger()
    root.handlers[:] = [_Libraries()]
    root.setLevel(logging.WARNING)


def clean(_logger: object, _method: str, event: Event) -> Event:
    """Bound and redact one event; every value leaves as a short string, number, boolean, None, list or mapping.

    Names are those that log collectors know from Dagu: `time`, `level`, `msg`, then keys in kebab-case.
    """
    error = event.pop("exc_info", None)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields: Event = {"time": now, "level": _LEVELS.get(event.pop("level", "info"), "ERROR")}
    fields["msg"] = _text(str(event.pop("event", "")))
    for key, value in list(event.items())[:MAX_FIELDS]:
        name = _KEYS.get(key) or _text(key)[:64].replace("_", "-")
        fields[name] = MASK if _is_secret(key) else _value(value, 0)
    if error:
        fields["exception"] = _text(_trace(error), limit=10 * MAX_TEXT)
    return fields


def _is_secret(key: str) -> bool:
    lowered = key.lower()
    return lowered in _SECRET_WORDS or lowered.endswith(_SECRET_ENDINGS)


def _value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < 3:
        if isinstance(value, Mapping):
            some = list(value.items())[:MAX_FIELDS]
            return {_text(str(k))[:64]: MASK if _is_secret(str(k)) else _value(v, depth + 1) for k, v in some}
        if isinstance(value, list | tuple | set | frozenset):
            return [_value(item, depth + 1) for item in list(value)[:MAX_FIELDS]]
    return _text(str(value))


def _text(text: str, limit: int = MAX_TEXT) -> str:
    text = _SECRET_TEXT.sub(MASK, text)
    return text if len(text) <= limit else text[:limit] + "…"


def _trace(error: Any) -> str:
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else str(error)


def _as_json(_logger: object, _method: str, event: Event) -> str:
    # ASCII only: every control character, line separator and direction mark leaves as an escape.
    return json.dumps(event, separators=(",", ":"), default=str)


class _Text:
    """Render one line: for collectors `time=… level=… msg=… key=value`, shorter and in colour on a terminal.

    A traceback follows, indented.
    """

    _COLOURS: Mapping[str, str] = {"DEBUG": "\x1b[2m", "INFO": "", "WARN": "\x1b[33m", "ERROR": "\x1b[31m"}

    def __init__(self, *, for_people: bool) -> None:
        self._for_people = for_people

    def __call__(self, _logger: object, _method: str, event: Event) -> str:
        trace = event.pop("exception", "")
        if self._for_people:
            when, level, name = event.pop("time"), event.pop("level"), lines.escape(event.pop("msg"))
            text = f"{when} {level:<5} {name} {lines.line(event)}".rstrip()
            if colour := self._COLOURS[level]:
                text = f"{colour}{text}\x1b[0m"
        else:
            text = lines.line(event)
        return "\n".join((text, *(f"    {lines.escape(row)}" for row in trace.splitlines())))


class _Libraries(logging.Handler):
    """Hands the records of libraries on as events."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        say = log.error if record.levelno >= logging.ERROR else log.warning
        try:
            say("library.said", library=record.name, message=record.getMessage(), exc_info=record.exc_info)
        except Exception:
            self.handleError(record)
