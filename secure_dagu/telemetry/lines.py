"""A line of a log as text: `time=… level=INFO msg="…" key=value` (command line reference, section 1). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f]+\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def line(fields: Mapping[str, Any]) -> str:
    """Return the fields as `key=value`; what is not one plain word is quoted as in JSON."""
    return " ".join(f"{escape(key)}={shown(value)}" for key, value in fields.items())


def shown(value: Any) -> str:
    """Return one value: a word as it is, everything else quoted as in JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return escape(text if _PLAIN.match(text) else json.dumps(text, ensure_ascii=False))


def escape(text: str) -> str:
    """Return `text` with control characters and direction marks as escapes: it stays on its line and has no colour."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)
