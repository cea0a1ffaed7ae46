"""Remember every certificate that a CA issued and what became of it: JSON lines, only ever appended to.

A line says that a certificate was issued, or that one was revoked. That one was superseded is nowhere written: it
follows from a later line for the same role and name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.errors import ConfigError
from secure_dagu.pki import files
from secure_dagu.security.grants import NOTHING, Grants


class Status(StrEnum):
    """What became of a certificate. That one has ended is no status: `not_after` says it."""

    VALID = "valid"
    SUPERSEDED = "superseded"
    """There is a newer one for the same role and name. It still works until its end."""
    REVOKED = "revoked"


class LedgerEntry(Struct, frozen=True, kw_only=True):
    """One issued certificate: one JSON object a line, times as ISO 8601 UTC, serial and fingerprints as hex."""

    serial: str
    name: str
    role: str
    identity: str
    """The spiffe URI."""
    issued_at: str
    not_before: str
    not_after: str
    names: tuple[str, ...] = ()
    """DNS names and addresses."""
    labels: tuple[str, ...] = ()
    """Granted labels, as `key=value`."""
    fingerprint: str
    """SHA-256 of the certificate."""
    key: str
    """Kind of its key, such as `P-256`."""
    key_fingerprint: str
    """SHA-256 of its public key."""
    issuer: str
    """SHA-256 of the certificate of the CA that signed it."""
    actor: str = ""
    """Who asked for it: an identity, `os:<user>`, or empty."""
    status: Status = Status.VALID
    status_at: str = ""
    """When it was revoked or superseded."""
    reason: str = ""
    """Why it was revoked."""

    @property
    def grants(self) -> Grants:
        """Return the granted labels."""
        pairs = (label.partition("=") for label in self.labels)
        return Grants(frozenset((key, value) for key, _, value in pairs)) if self.labels else NOTHING


Watch = Callable[[LedgerEntry], None]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(tell: Watch) -> Iterator[None]:
    """Call `tell` before each line that is written within: with what is issued, or with what is revoked.

    What it raises keeps the line from being written, and so the certificate from being handed out: an audit log that
    cannot be written stops its CA.
    """
    token = _watch.set(tell)
    try:
        yield
    finally:
        _watch.reset(token)


class Ledger:
    """The ledger file of one CA. Reading follows the file: what another process appends is seen at the next call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}
        self._latest: dict[tuple[str, str], str] = {}
        self._read_to = 0
        self._lines = 0
        self._inode = 0

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._path

    @property
    def exists(self) -> bool:
        """Tell whether anything was ever issued here."""
        return self._path.exists()

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Return every issued certificate, oldest first; none when nothing was issued.

        Raises:
            ConfigError: a line is damaged; the message gives its number.
        """
        self._follow()
        return tuple(self._entries.values())

    def find(self, serial: int | str) -> LedgerEntry | None:
        """Return the entry of a serial number (an integer, or hex)."""
        self._follow()
        return self._entries.get(_hex(serial))

    def knows(self, serial: int | str) -> bool:
        """Tell whether this CA's tool issued that serial. If not, somebody signs with the CA key outside it (T18).

        Costs one `stat` while the file is unchanged. ConfigError as in `entries`.
        """
        return self.find(serial) is not None

    def current(self, role: str, name: str) -> LedgerEntry | None:
        """Return the newest certificate of a role and name, revoked or not: what a renewal copies its rights from."""
        self._follow()
        serial = self._latest.get((role, name))
        return self._entries[serial] if serial is not None else None

    def with_key(self, key_fingerprint: str) -> tuple[LedgerEntry, ...]:
        """Return every certificate for one public key."""
        return tuple(entry for entry in self.entries() if entry.key_fingerprint == key_fingerprint)

    def append(self, entry: LedgerEntry) -> None:
        """Add an issued certificate durably.

        Raises:
            ConfigError: the disk refuses, and then the certificate is not handed out.
        """
        _tell(entry)
        fields = {key: value for key, value in msgspec.to_builtins(entry).items() if value not in ((), [], "")}
        fields.pop("status")
        self._write({"event": "issued"} | fields)

    def mark_revoked(self, serial: int | str, *, at: str, reason: str = "", actor: str = "") -> LedgerEntry:
        """Add durably that a certificate is revoked, and return its entry; one that already is stays as it was.

        Raises:
            ConfigError: no such certificate, or the disk refuses.
        """
        found = self.find(serial)
        if found is None:
            raise ConfigError(
                f"the ledger has no certificate {_hex(serial)}",
                why=f"{self._path} lists what this CA issued",
                fix="`secure-dagu pki list` shows the serial numbers",
            )
        if found.status is Status.REVOKED:
            return found
        _tell(replace(found, status=Status.REVOKED, status_at=at, reason=reason, actor=actor))
        self._write({"event": "revoked", "serial": found.serial, "at": at, "reason": reason, "actor": actor})
        self._follow()
        return self._entries[found.serial]

    def _write(self, record: Mapping[str, Any]) -> None:
        files.append_line(self._path, json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def _follow(self) -> None:
        """Read what was appended since the last call; all of it when the file was replaced."""
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            self._forget()
            return
        if (facts.st_ino, facts.st_size) == (self._inode, self._read_to):
            return
        if facts.st_ino != self._inode or facts.st_size < self._read_to:
            self._forget()
        with self._path.open("rb") as source:
            self._inode = os.fstat(source.fileno()).st_ino
            source.seek(self._read_to)
            data = source.read()
        whole, newline, _ = data.rpartition(b"\n")  # an unfinished last line was never acknowledged
        for line in whole.split(b"\n") if newline else ():
            self._lines += 1
            self._take(line)
        self._read_to += len(whole) + len(newline)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            match record.pop("event"):
                case "issued":
                    self._issued(msgspec.convert(record, LedgerEntry))
                case "revoked":
                    found = self._entries[record["serial"]]
                    self._entries[found.serial] = replace(
                        found, status=Status.REVOKED, status_at=str(record["at"]), reason=str(record["reason"])
                    )
                case other:
                    raise ValueError(f"unknown event {other!r}")  # noqa: TRY301 - one message for every damage
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            number, self._inode = self._lines, 0  # so that the next call reads it again and says it again
            raise ConfigError(
                f"line {number} of {self._path} is damaged",
                why="it is not an entry that pki wrote",
                fix="restore the ledger from your backup",
            ) from problem

    def _issued(self, entry: LedgerEntry) -> None:
        key = (entry.role, entry.name)
        before = self._entries.get(self._latest.get(key, ""))
        if before is not None and before.status is Status.VALID:
            self._entries[before.serial] = replace(before, status=Status.SUPERSEDED, status_at=entry.issued_at)
        self._entries[entry.serial] = entry
        self._latest[key] = entry.serial


def _tell(entry: LedgerEntry) -> None:
    tell = _watch.get()
    if tell is not None:
        tell(entry)


def _hex(serial: int | str) -> str:
    return f"{serial:x}" if isinstance(serial, int) else serial.lower().lstrip("0")
