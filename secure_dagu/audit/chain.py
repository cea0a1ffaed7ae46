"""The chain: one canonical JSON line a record, each holding the number and the hash of the one before. Pure.

A line is `{"seq":N,"prev":"<hash before>",…,"hash":"<own hash>"}` and a newline, without white space and with its
members in the order of `Record`. The own hash is SHA-256 over the line as it is without its `hash` member. So a record
is checked by its bytes alone, in about two microseconds, and whoever changes one must change all that follow; the
signed checkpoints among them (`audit.checkpoints`) are what he cannot make.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256

import msgspec
from msgspec import Struct, field

from secure_dagu.audit.events import Action, Event

START = "0" * 64
"""What the first record holds as the hash before it."""
MAX_LINE = 64 * 1024
"""Bytes of a line; bounded texts and the closed list of details stay far below."""

_TAIL = len(',"hash":""}\n') + 64
_BEGINNING = re.compile(rb'\{"seq":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})",')
_CHECKPOINT = f'"action":"{Action.AUDIT_CHECKPOINT}"'.encode()


class Place(Struct, frozen=True):
    """A place in the chain: the last record's number and hash."""

    seq: int = 0
    hash: str = START


class Origin(Struct, frozen=True, kw_only=True):
    """Where records come from."""

    host: str
    source: str
    """Which part of the program: `coordinator`, or `command`."""


class Record(Struct, frozen=True, kw_only=True):
    """One line, read. The members are those of AU-3: what, when (UTC), where, source, outcome, identity."""

    seq: int
    prev: str
    time: str
    host: str
    source: str
    action: str
    outcome: str
    actor: str = ""
    serial: str = ""
    address: str = ""
    target: str = ""
    reason: str = ""
    details: Mapping[str, str | int] = field(default_factory=dict)
    hash: str = ""


class Flaw(StrEnum):
    """What is wrong with a line."""

    TORN = "torn"
    """The file ends inside a line."""
    MALFORMED = "malformed"
    """It is no record."""
    ALTERED = "altered"
    """Its content is not what its hash was made of."""
    MISSING = "missing"
    """A record that should be here is not: it was deleted, or moved."""
    INSERTED = "inserted"
    """A record that does not belong here."""
    UNLINKED = "unlinked"
    """It does not hold the hash of the record before, which was replaced."""


class Broken(Struct, frozen=True):
    """The first bad record: its number and what is wrong."""

    seq: int
    flaw: Flaw
    text: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def line_of(event: Event, *, after: Place, at: datetime, origin: Origin) -> tuple[bytes, Place]:
    """Return the line of an event and the place that it makes. `at`: aware UTC."""
    seq = after.seq + 1
    body = _encode(
        {
            "seq": seq,
            "prev": after.hash,
            "time": text_of(at),
            "host": origin.host,
            "source": origin.source,
            "action": event.action.value,
            "outcome": event.outcome.value,
            "actor": event.actor,
            "serial": event.serial,
            "address": event.address,
            "target": event.target,
            "reason": event.reason,
            "details": {key.value: value for key, value in event.details.items()},
        }
    )
    own = sha256(body).hexdigest()
    return b'%b,"hash":"%b"}\n' % (body[:-1], own.encode()), Place(seq, own)


def follows(line: bytes, after: Place) -> Place | Broken:
    """Return the place that a line makes, or why it cannot follow `after`."""
    expected = after.seq + 1
    if not line.endswith(b"\n"):
        return Broken(expected, Flaw.TORN, "the file ends inside a line")
    found = _BEGINNING.match(line)
    if found is None or line[-_TAIL : -_TAIL + 9] != b',"hash":"' or line[-3:] != b'"}\n':
        return Broken(expected, Flaw.MALFORMED, "the line is no record")
    own = sha256(line[:-_TAIL] + b"}").hexdigest()
    if own.encode() != line[-67:-3]:
        return Broken(expected, Flaw.ALTERED, "its content is not what its hash was made of")
    seq = int(found[1])
    if seq > expected:
        return Broken(expected, Flaw.MISSING, f"record {seq} stands in its place")
    if seq < expected:
        return Broken(seq, Flaw.INSERTED, f"record {seq} stands in the place of {expected} as well")
    if found[2].decode() != after.hash:
        first = max(after.seq, 1)
        return Broken(first, Flaw.UNLINKED, f"record {seq} was written after another record {first}")
    return Place(seq, own)


def is_checkpoint(line: bytes) -> bool:
    """Tell whether a line is a checkpoint. Quotes inside texts are escaped, so no text can look like one."""
    return _CHECKPOINT in line


def read(line: bytes) -> Record:
    """Read a line that `follows` has passed.

    Raises:
        ValueError: it is no record.
    """
    return _decode(line)


def before(line: bytes) -> Place | None:
    """Return the place that a line says it follows; None when it is no record."""
    found = _BEGINNING.match(line)
    return None if found is None else Place(int(found[1]) - 1, found[2].decode())


def place_of(line: bytes) -> Place | None:
    """Return the place that a line says it makes; None when it is no record or its hash is wrong."""
    after = before(line)
    place = None if after is None else follows(line, after)
    return place if isinstance(place, Place) else None


def text_of(moment: datetime) -> str:
    """Return a moment as records hold it: UTC, microseconds, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
