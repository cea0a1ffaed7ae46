"""Read durations as Go writes them: `1h30m`, `500ms`, `1.5s`. Pure."""

from __future__ import annotations

import math
import re

from secure_dagu.errors import DefinitionError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
MAX_S = 2**63 / 1e9
"""A Go duration is 64 bits of nanoseconds: about 292 years."""


def seconds(value: object, *, field: str) -> float:
    """Return the seconds of a duration: a number, its text, or Go syntax (workflow language, section 8, note 11).

    Raises:
        DefinitionError: it is none, negative, or longer than Go can say; names `field`.
    """
    found = _seconds(value)
    if found is None or not 0 <= found <= MAX_S:
        raise DefinitionError(
            f"{field} is not a duration", why=f"it is {str(value)[:50]!r}, not seconds nor such as 1h30m or 500ms"
        )
    return found


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not _WHOLE.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
