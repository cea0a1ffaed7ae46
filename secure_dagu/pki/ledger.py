"""Remember every certificate that a CA issued: JSON lines, only ever appended to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from secure_dagu.errors import ConfigError
from secure_dagu.pki import files


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One issued certificate as the ledger keeps it: one JSON object a line, times as ISO 8601 UTC."""

    serial: str
    """Lower-case hex."""
    name: str
    role: str
    not_after: str
    issued_at: str
    names: tuple[str, ...]
    fingerprint: str
    """SHA-256 of the certificate, hex."""


def append(path: Path, entry: LedgerEntry) -> None:
    """Add one entry durably; ConfigError when the disk refuses, and then the certificate is not handed out."""
    files.append_line(path, json.dumps(asdict(entry)).encode() + b"\n")


def read(path: Path) -> tuple[LedgerEntry, ...]:
    """Return every issued certificate, oldest first; none when nothing was issued.

    Raises:
        ConfigError: a line is damaged; the message gives its number.
    """
    if not path.exists():
        return ()
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            entries.append(LedgerEntry(**{**fields, "names": tuple(fields["names"])}))
        except (ValueError, TypeError, KeyError) as problem:
            raise ConfigError(
                f"line {number} of {path} is damaged",
                why="it is not an entry that pki wrote",
                fix="restore the ledger from your backup",
            ) from problem
    return tuple(entries)
