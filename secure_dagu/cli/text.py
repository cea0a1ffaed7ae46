"""Small texts that many commands print: safe words, times, durations, tables. No input or output here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any


def safe(text: str, *, keep: str = "") -> str:
    """Return text from elsewhere with control characters made visible: a name must not move anybody's cursor."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else f"\\x{ord(char):02x}" for char in text)


def moment(text: Any) -> datetime | None:
    """Read a time of a status document; None for its several spellings of "no time" (protocol, section 4.1)."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def duration(start: datetime | None, end: datetime | None, *, now: datetime | None = None) -> str:
    """Return how long something took: `< 1s`, `45s`, `2m30s`, `1h0m5s`; empty when it never started.

    What has not ended lasts until `now`; None means this moment.
    """
    if start is None:
        return ""
    seconds = int(((end or now or datetime.now(UTC)) - start).total_seconds())
    minutes, rest = divmod(seconds, 60)
    if seconds < 1:
        return "< 1s"
    if not minutes:
        return f"{rest}s"
    return f"{minutes}m{rest}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m{rest}s"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as columns two spaces apart; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
