"""Who still stands: revoked, untrusted, a list that is too old; which list may follow which."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dispatch.model import Role
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.revocation import (
    REASON_OF,
    Revocation,
    RevocationList,
    Standing,
    cut_error,
    deny,
    objection_to_successor,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
OLD, NEW = "a" * 64, "b" * 64


def listed(issuer: str = OLD, *serials: int, number: int = 1, until: datetime = NOW + HOUR) -> RevocationList:
    """Return one CA's list."""
    return RevocationList(
        issuer=issuer, issuer_name=f"CA {issuer[0]}", number=number, this_update=NOW - HOUR, next_update=until,
        serials=frozenset(serials),
    )  # fmt: skip


def peer(serial: int = 1, *issuers: str) -> Peer:
    """Return a worker with a certificate."""
    return Peer(
        connection="unix:/x", address="192.0.2.1:1", identity=Identity("example", Role.WORKER, "w1"), serial=serial,
        issuers=issuers or (OLD,), not_after=NOW + HOUR,
    )  # fmt: skip


def standing(*lists: RevocationList, trusted: tuple[str, ...] = (OLD, NEW), grace: timedelta = HOUR) -> Standing:
    """Return what is decided by these lists."""
    return Standing(trusted=trusted, revocation=Revocation(lists=lists) if lists else None, grace=grace)


def test_a_peer_stands_while_its_ca_is_trusted_and_nobody_revoked_it() -> None:
    assert standing().objection(peer(), NOW) is None
    assert standing(listed(OLD, 2)).objection(peer(1), NOW) is None


def test_a_revoked_peer_does_not_stand_and_is_told_so() -> None:
    assert standing(listed(OLD, 1)).objection(peer(1), NOW) is DenyReason.CERT_REVOKED
    assert "revoked" in deny(peer(), DenyReason.CERT_REVOKED).error.why


def test_the_same_serial_of_another_ca_is_another_certificate() -> None:
    assert standing(listed(OLD, 1), listed(NEW)).objection(peer(1, NEW), NOW) is None


def test_a_peer_whose_ca_left_the_bundle_does_not_stand() -> None:
    assert standing(trusted=(NEW,)).objection(peer(1, OLD), NOW) is DenyReason.UNTRUSTED_CA
    assert standing(trusted=(NEW,)).objection(peer(1, OLD, NEW), NOW) is None, "an intermediate under a trusted root"
    assert standing().objection(replace(peer(), issuers=()), NOW) is DenyReason.UNTRUSTED_CA, "absent means denied"


def test_a_list_may_be_stale_for_the_grace_and_then_nobody_stands() -> None:
    held = standing(listed(until=NOW), grace=HOUR)
    assert held.revocation is not None
    assert held.revocation.stale(NOW)
    assert held.objection(peer(), NOW + HOUR - timedelta(seconds=1)) is None
    assert held.objection(peer(), NOW + HOUR) is DenyReason.CRL_STALE
    assert held.is_closed(NOW + HOUR)


def test_the_oldest_list_decides_when_the_port_closes() -> None:
    held = standing(listed(OLD, until=NOW + 5 * HOUR), listed(NEW, until=NOW), grace=timedelta())
    assert held.is_closed(NOW)


def test_an_unproven_peer_has_no_certificate_to_lose() -> None:
    assert standing(listed(OLD, 0)).objection(Peer(connection="unix:/x", address="192.0.2.1:1"), NOW) is None


@pytest.mark.parametrize("reason", [DenyReason.CERT_REVOKED, DenyReason.UNTRUSTED_CA, DenyReason.CRL_STALE])
def test_every_objection_has_words_and_a_name_at_the_handshake(reason: DenyReason) -> None:
    assert reason in REASON_OF
    assert cut_error(reason).why
    assert cut_error(reason).fix


@pytest.mark.parametrize(
    ("new", "fragment"),
    [
        ([listed(OLD, 1, number=6)], ""),
        ([listed(OLD, 1, number=5)], ""),
        ([listed(OLD, 1, number=4)], "number 4"),
        ([listed(OLD, number=5)], "two different"),
        ([listed(NEW, number=9)], "missing"),
        ([listed(OLD, 1, number=5), listed(NEW)], ""),
    ],
    ids=["newer", "the same", "older", "the same number with other content", "vanished", "another CA beside it"],
)
def test_which_list_may_follow(new: list[RevocationList], fragment: str) -> None:
    last = Revocation(lists=(listed(OLD, 1, number=5),))
    found = objection_to_successor(last, Revocation(lists=tuple(new)), [OLD, NEW])
    assert fragment in found if fragment else not found


def test_the_list_of_a_ca_that_is_gone_may_go_too() -> None:
    last = Revocation(lists=(listed(OLD, 1, number=5), listed(NEW, number=2)))
    assert not objection_to_successor(last, Revocation(lists=(listed(NEW, number=3),)), [NEW])


@given(serials=st.frozensets(st.integers(1, 50)), serial=st.integers(1, 50), issuer=st.sampled_from([OLD, NEW]))
def test_exactly_those_on_the_list_of_their_ca_are_revoked(serials: frozenset[int], serial: int, issuer: str) -> None:
    revocation = Revocation(lists=(listed(OLD, *serials),))
    expected = issuer == OLD and serial in serials
    assert revocation.is_revoked(serial, issuer) is expected
    found = Standing(trusted=[OLD, NEW], revocation=revocation, grace=HOUR).objection(peer(serial, issuer), NOW)
    assert (found is DenyReason.CERT_REVOKED) is expected
