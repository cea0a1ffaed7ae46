"""The exception ledger on values: what can be granted, how it ends, and that it cannot be edited."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.errors import IntegrityViolation, InvalidRequest, NotFound
from secure_dagu.security.exceptions import (
    EMPTY,
    MAX_AGE,
    WEAKNESSES,
    Kind,
    Ledger,
    command_for,
    granted,
    read,
    revoked,
)

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def add(
    text: bytes, kind: Kind = Kind.PLAINTEXT, *, owner: str = "alice", reason: str = "lab", days: float = 30,
    now: datetime = NOW,
) -> bytes:  # fmt: skip
    line, _, head = granted(
        read(text), kind=kind, owner=owner, reason=reason, until=now + timedelta(days=days), by="root", now=now
    )
    assert read(text + line).head == head
    return text + line


def end(text: bytes, name: str, now: datetime = NOW) -> bytes:
    line, item, head = revoked(read(text), name, by="root", now=now)
    assert item.revoked_at == now
    assert read(text + line).head == head
    return text + line


def test_an_exception_holds_from_its_grant_to_its_end_and_not_a_moment_longer() -> None:
    ledger = read(add(b""))
    found = ledger.valid(Kind.PLAINTEXT, NOW)
    assert found is not None
    assert (found.owner, found.reason, found.id, found.by) == ("alice", "lab", "ex-1", "root")
    assert ledger.valid(Kind.PLAINTEXT, NOW + 30 * DAY - timedelta(microseconds=1)) is not None
    assert ledger.valid(Kind.PLAINTEXT, NOW + 30 * DAY) is None
    assert ledger.valid(Kind.PLAINTEXT, NOW - DAY) is None, "the clock was set back"
    assert ledger.valid(Kind.TLS_1_2, NOW) is None, "one weakening excuses no other"


def test_the_longest_of_several_counts_and_revoking_one_leaves_the_others() -> None:
    text = add(add(b"", days=10), days=20)
    found = read(text).valid(Kind.PLAINTEXT, NOW)
    assert found is not None
    assert found.id == "ex-2"
    text = end(text, "ex-2", NOW + DAY)
    left = read(text).valid(Kind.PLAINTEXT, NOW + 2 * DAY)
    assert left is not None
    assert left.id == "ex-1"
    assert read(end(text, "ex-1", NOW + DAY)).valid(Kind.PLAINTEXT, NOW + 2 * DAY) is None


@pytest.mark.parametrize(
    ("owner", "reason"), [("", "x"), ("x", ""), (" ", "x"), ("x", "\t"), ("a" * 301, "x"), ("x\0", "x")]
)
def test_owner_and_reason_must_be_said(owner: str, reason: str) -> None:
    with pytest.raises(InvalidRequest):
        add(b"", owner=owner, reason=reason)


def test_ninety_days_is_the_longest() -> None:
    add(b"", days=90)
    with pytest.raises(InvalidRequest, match="90 days"):
        add(b"", days=90.001)
    with pytest.raises(InvalidRequest, match="over already"):
        add(b"", days=0)


def test_what_is_over_or_unknown_cannot_be_revoked() -> None:
    text = add(b"", days=1)
    with pytest.raises(NotFound):
        end(text, "ex-2")
    with pytest.raises(InvalidRequest, match="over"):
        end(text, "ex-1", NOW + 2 * DAY)
    with pytest.raises(InvalidRequest, match="over"):
        end(end(text, "ex-1"), "ex-1")


LEDGER = end(add(add(add(b""), Kind.TLS_1_2), Kind.POLICY_DRY_RUN), "ex-2")


@given(st.integers(0, len(LEDGER) - LEDGER.rindex(b"\n", 0, -1) + 0), st.integers(0, 255))
def test_a_changed_byte_before_the_last_line_is_found(at: int, byte: int) -> None:
    body = LEDGER.rindex(b"\n", 0, -1)
    at = at % body
    changed = LEDGER[:at] + bytes([byte]) + LEDGER[at + 1 :]
    if changed != LEDGER:
        with pytest.raises(IntegrityViolation):
            read(changed)


def test_lines_cannot_be_left_out_swapped_repeated_or_torn() -> None:
    lines = LEDGER.splitlines(keepends=True)
    for bad in (
        lines[1:], [lines[0], *lines[2:]], [lines[1], lines[0], *lines[2:]], [*lines, lines[-1]],
        [lines[0], lines[0], *lines[1:]], [*lines[:-1], lines[-1][:-2]], [*lines, b"\n"], [*lines, b"{}\n"],
    ):  # fmt: skip
        with pytest.raises(IntegrityViolation):
            read(b"".join(bad))
    with pytest.raises(IntegrityViolation, match="line 2"):
        read(b"".join([lines[0], *lines[2:]]))


def test_a_line_that_no_command_writes_is_refused_even_if_it_is_chained() -> None:
    """Whoever edits the last line can chain it, but cannot make it last for a year or leave the owner out."""
    line = add(b"", days=1)
    for old, new in ((b"2026-11-26", b"2027-11-26"), (b'"alice"', b'""'), (b'"lab"', b'""'), (b"grant", b"revoke")):
        assert old in line
        with pytest.raises(IntegrityViolation):
            read(line.replace(old, new, 1))


def test_a_ledger_is_bounded() -> None:
    with pytest.raises(IntegrityViolation):
        read(b"x" * (5 * 1024 * 1024))
    with pytest.raises(InvalidRequest, match="full"):
        granted(Ledger(number=10_000), kind=Kind.TLS_1_2, owner="a", reason="b", until=NOW + DAY, by="root", now=NOW)


def test_every_kind_says_what_it_means_how_it_ends_and_how_it_is_granted() -> None:
    assert set(WEAKNESSES) == set(Kind)
    for kind in Kind:
        assert command_for(kind, NOW).startswith(f"secure-dagu exception grant {kind.value} --owner ")
    assert read(b"") == EMPTY
    assert timedelta(days=90) == MAX_AGE
