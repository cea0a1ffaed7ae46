"""The exception ledger: every weakening has an owner, a reason and an end. Pure.

A weakening is a setting that makes this host speak or admit more than it should. Its setting alone does not switch it
on: an entry of the ledger must be valid too, and when that ends, the weakening ends, in running processes as well.

The ledger is one JSON object a line, each carrying the SHA-256 of the line before it; lines are only ever appended.
The chain shows a changed, swapped or removed line in the middle. A removed tail does not show here: the audit log has
the hash of every line that was written (`Detail.HEAD` of `exception.granted` and `exception.withdrawn`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from types import MappingProxyType
from typing import Literal

import msgspec
from msgspec import Struct

from secure_dagu.errors import IntegrityViolation, InvalidRequest, NotFound


class Kind(StrEnum):
    """What can be weakened. The words of `secure-dagu exception grant` and of the metric's label `kind`."""

    PLAINTEXT = "plaintext"
    TLS_1_2 = "tls-1.2"
    POLICY_DRY_RUN = "policy-dry-run"
    UNGRANTED_LABELS = "ungranted-labels"
    METRICS_PUBLIC = "metrics-public"
    HTTP_PLAINTEXT = "http-plaintext"
    NO_LOGIN = "no-login"


class Weakness(Struct, frozen=True, kw_only=True):
    """What is said of one kind."""

    setting: str
    """The setting that asks for it."""
    means: str
    ends: str
    """What a running process does when the exception ends."""


WEAKNESSES: Mapping[Kind, Weakness] = MappingProxyType(
    {
        Kind.PLAINTEXT: Weakness(
            setting="peer.insecure=true",
            means="no TLS beyond this host: nobody is proven and everything can be read and changed on the way",
            ends="the port takes no new connections and hands out no more work; what runs may still report",
        ),
        Kind.TLS_1_2: Weakness(
            setting="peer.min_tls_version=1.2",
            means="TLS 1.2 is spoken too",
            ends="only TLS 1.3 is spoken; live TLS 1.2 connections are cut",
        ),
        Kind.POLICY_DRY_RUN: Weakness(
            setting="policy.mode=dry-run",
            means="the rules on labels and tenants are counted and not enforced",
            ends="they are enforced",
        ),
        Kind.UNGRANTED_LABELS: Weakness(
            setting="peer.ungranted_labels=allow",
            means="workers may claim labels that their certificates do not grant",
            ends="they may not",
        ),
        Kind.METRICS_PUBLIC: Weakness(
            setting="metrics=public",
            means="/metrics is served to everybody who reaches the health port from another host",
            ends="/metrics answers 403",
        ),
        Kind.HTTP_PLAINTEXT: Weakness(
            setting="tls.insecure=true or --insecure-http of a context",
            means="Web UI and REST API are spoken without TLS beyond this host: passwords can be read on the way",
            ends="the web server stops; commands in such a context are refused",
        ),
        Kind.NO_LOGIN: Weakness(
            setting="auth.mode=none",
            means="whoever reaches Web UI and REST API from another host is an admin",
            ends="the web server stops",
        ),
    }
)
"""Every kind, in the order of the reference."""

MAX_AGE = timedelta(days=90)
MAX_TEXT = 300
MAX_LINES = 10_000
MAX_BYTES = 4 * 1024 * 1024
START = "0" * 64
"""What the first line carries as the hash of the line before it."""


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line as it is written: an exception granted, or the end of one before its time."""

    number: int
    at: datetime
    action: Literal["grant", "revoke"]
    id: str
    kind: Kind
    owner: str
    """Who answers for it; for `revoke`, as it was granted."""
    reason: str
    until: datetime
    by: str
    """The user of this host who wrote the line."""
    prev: str
    """SHA-256 of the line before, hex."""


class Exemption(Struct, frozen=True, kw_only=True):
    """One exception and what became of it."""

    id: str
    kind: Kind
    owner: str
    reason: str
    granted_at: datetime
    until: datetime
    by: str
    revoked_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Tell whether it holds at this moment."""
        return self.revoked_at is None and self.granted_at <= now < self.until

    def state(self, now: datetime) -> str:
        """Return `valid`, `revoked`, `expired`, or `not yet` when the clock was set back."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.is_valid(now) else "expired" if now >= self.until else "not yet"


class Ledger(Struct, frozen=True, kw_only=True):
    """A ledger that was read whole: its exceptions in the order of granting, and where its chain ends."""

    exemptions: tuple[Exemption, ...] = ()
    number: int = 0
    head: str = START

    def valid(self, kind: Kind, now: datetime) -> Exemption | None:
        """Return the exception of a kind that holds now, of several the one that holds longest."""
        found = [item for item in self.exemptions if item.kind is kind and item.is_valid(now)]
        return max(found, key=lambda item: item.until, default=None)

    def get(self, name: str) -> Exemption:
        """Return the exception of an id.

        Raises:
            NotFound: there is none.
        """
        for item in self.exemptions:
            if item.id == name:
                return item
        raise NotFound(f"there is no exception {name[:50]!r}", fix="see `secure-dagu exception list --all`")


EMPTY = Ledger()


def read(text: bytes) -> Ledger:
    """Read a whole ledger.

    Raises:
        IntegrityViolation: a line is malformed, out of order, or not chained to the one before it; it is named.
    """
    if len(text) > MAX_BYTES or text.count(b"\n") > MAX_LINES:
        raise _broken(0, f"it is longer than {MAX_LINES} lines or {MAX_BYTES} bytes")
    if text and not text.endswith(b"\n"):
        raise _broken(text.count(b"\n") + 1, "the line is torn")
    found: dict[str, Exemption] = {}
    head, number = START, 0
    for number, raw in enumerate(text.splitlines(), 1):
        try:
            line = msgspec.json.decode(raw, type=Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise _broken(number, "it is no line of this ledger") from problem
        if line.prev != head or line.number != number:
            raise _broken(number, "it is not chained to the line before it")
        _apply(found, line)
        head = _hash(raw)
    return Ledger(exemptions=tuple(found.values()), number=number, head=head)


def _apply(found: dict[str, Exemption], line: Line) -> None:
    if line.at.tzinfo is None or line.until.tzinfo is None:
        raise _broken(line.number, "its times have no zone")
    known = found.get(line.id)
    if line.action == "revoke":
        if known is None or known.revoked_at is not None:
            raise _broken(line.number, "it ends an exception that does not stand")
        found[line.id] = msgspec.structs.replace(known, revoked_at=line.at)
        return
    if known is not None or not line.at < line.until <= line.at + MAX_AGE or not line.owner or not line.reason:
        raise _broken(line.number, "no such exception can be granted")
    found[line.id] = Exemption(
        id=line.id, kind=line.kind, owner=line.owner, reason=line.reason, granted_at=line.at, until=line.until,
        by=line.by,
    )  # fmt: skip


def granted(
    ledger: Ledger, *, kind: Kind, owner: str, reason: str, until: datetime, by: str, now: datetime
) -> tuple[bytes, Exemption, str]:
    """Return the line that grants an exception, the exception, and the chain's new head.

    Raises:
        InvalidRequest: no owner or reason, an end in the past or more than `MAX_AGE` away, or the ledger is full.
    """
    owner, reason = _text("owner", owner), _text("reason", reason)
    if until <= now:
        raise InvalidRequest("the exception would be over already", why=f"{until:%Y-%m-%d %H:%M}Z is past")
    if until > now + MAX_AGE:
        raise InvalidRequest(
            f"an exception lasts {MAX_AGE.days} days at most",
            why=f"{until:%Y-%m-%d %H:%M}Z is later",
            fix="choose an earlier end; it can be granted again then, if somebody still wants it",
        )
    line = Line(
        number=ledger.number + 1, at=now, action="grant", id=f"ex-{ledger.number + 1}", kind=kind, owner=owner,
        reason=reason, until=until, by=by, prev=ledger.head,
    )  # fmt: skip
    raw = _raw(line)
    return raw, read_back(ledger, line), _hash(raw[:-1])


def revoked(ledger: Ledger, name: str, *, by: str, now: datetime) -> tuple[bytes, Exemption, str]:
    """Return the line that ends an exception before its time, the exception, and the chain's new head.

    Raises:
        NotFound: there is no such exception.
        InvalidRequest: it is over already.
    """
    item = ledger.get(name)
    if (state := item.state(now)) in ("revoked", "expired"):
        raise InvalidRequest(f"{name} is over", why=f"it is {state}")
    line = Line(
        number=ledger.number + 1, at=now, action="revoke", id=item.id, kind=item.kind, owner=item.owner,
        reason=item.reason, until=item.until, by=by, prev=ledger.head,
    )  # fmt: skip
    raw = _raw(line)
    return raw, msgspec.structs.replace(item, revoked_at=now), _hash(raw[:-1])


def read_back(ledger: Ledger, line: Line) -> Exemption:
    """Return the exception that a line grants, judged by the same rules as when it is read."""
    if ledger.number >= MAX_LINES:
        raise InvalidRequest("the exception ledger is full", fix="move it away; its exceptions end with that")
    found = {item.id: item for item in ledger.exemptions}
    _apply(found, line)
    return found[line.id]


def command_for(kind: Kind, now: datetime) -> str:
    """Return the command that grants what is missing, for a third of the longest time that is allowed."""
    until = now + MAX_AGE / 3
    return f"secure-dagu exception grant {kind.value} --owner NAME --reason TEXT --until {until:%Y-%m-%d}"


def _text(what: str, text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > MAX_TEXT or not text.isprintable():
        raise InvalidRequest(f"the {what} is missing or not usable", why=f"1 to {MAX_TEXT} printable characters")
    return text


def _raw(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _hash(raw: bytes) -> str:
    return sha256(raw).hexdigest()


def _broken(number: int, why: str) -> IntegrityViolation:
    where = f"line {number} of the exception ledger" if number else "the exception ledger"
    return IntegrityViolation(
        f"{where} cannot be believed",
        why=why,
        fix="compare it with the audit log (exception.granted, exception.withdrawn); move it away to begin a new one, "
        "which ends every exception",
    )


def utc(moment: datetime) -> datetime:
    """Return a moment in UTC, without fractions."""
    return moment.astimezone(UTC).replace(microsecond=0)
