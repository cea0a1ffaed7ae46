"""What verified revocation lists say, and whether an admitted peer still stands. Pure.

`link.crl` reads and verifies the files; `pki.crl` signs them. What is here decides: a handshake, a live link and every
call ask the same `Standing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from msgspec import Struct, field

from secure_dagu.errors import SecureDaguError, Unauthenticated
from secure_dagu.security.admission import Deny, DenyReason
from secure_dagu.security.peer import Peer
from secure_dagu.security.verdict import Reason


class RevocationList(Struct, frozen=True, kw_only=True):
    """One CA's list, its signature verified."""

    issuer: str
    """SHA-256 of the CA's public key, hex, as in `Peer.issuers`."""
    issuer_name: str
    """For people only."""
    number: int
    """CRLNumber: grows with each list of this CA."""
    this_update: datetime
    next_update: datetime
    serials: frozenset[int]
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Why, in the words of RFC 5280, for those whose entry says it."""


class Revocation(Struct, frozen=True, kw_only=True):
    """All lists of one file: at least one, and one for each CA at most."""

    lists: tuple[RevocationList, ...]

    @property
    def number(self) -> int:
        """Return the highest number."""
        return max(item.number for item in self.lists)

    @property
    def this_update(self) -> datetime:
        """Return when the oldest list was signed."""
        return min(item.this_update for item in self.lists)

    @property
    def next_update(self) -> datetime:
        """Return when the first of the lists must have been replaced."""
        return min(item.next_update for item in self.lists)

    @property
    def entries(self) -> int:
        """Return how many certificates are revoked."""
        return sum(len(item.serials) for item in self.lists)

    def is_revoked(self, serial: int, issuer: str = "") -> bool:
        """Tell whether a certificate is revoked. `issuer` as in `Peer.issuers`; empty asks all CAs."""
        return any(serial in item.serials for item in self.lists if not issuer or item.issuer == issuer)

    def stale(self, now: datetime) -> bool:
        """Tell whether a list is past its next update."""
        return now >= self.next_update

    def of(self, issuer: str) -> RevocationList | None:
        """Return the list of one CA."""
        return next((item for item in self.lists if item.issuer == issuer), None)

    def pairs(self) -> frozenset[tuple[str, int]]:
        """Return every revoked certificate as (issuer, serial)."""
        return frozenset((item.issuer, serial) for item in self.lists for serial in item.serials)


def objection_to_successor(last: Revocation, new: Revocation, trusted: Iterable[str]) -> str:
    """Return why `new` may not replace `last`, empty when it may (threats reference, T26).

    A list of a CA that is still trusted must be there, and its number must not fall: else somebody plays back an old
    one that does not know the latest revocations.
    """
    still = frozenset(trusted)
    for before in last.lists:
        if before.issuer not in still:
            continue
        after = new.of(before.issuer)
        if after is None:
            return f"the list of {before.issuer_name!r} is missing, and number {before.number} of it was in use"
        if after.number < before.number:
            return f"the list of {before.issuer_name!r} has number {after.number}, and {before.number} was in use"
        if after.number == before.number and after.serials != before.serials:
            return f"two different lists of {before.issuer_name!r} have the number {after.number}"
    return ""


class Standing:
    """Whether a peer that was proven once may still speak: asked at the handshake, at each swap and at each call.

    Costs well under a microsecond. Expiry and role of a call are `admission.admit`'s.
    """

    __slots__ = ("_closes_at", "_pairs", "_serials", "_trusted", "revocation")

    def __init__(self, *, trusted: Iterable[str], revocation: Revocation | None = None, grace: timedelta) -> None:
        """Take the keys of the trusted CAs (as in `Peer.issuers`) and what is revoked.

        `grace`: how long a list may stay in use after its next update; then nobody is admitted.
        """
        self.revocation = revocation
        self._trusted = frozenset(trusted)
        self._pairs = revocation.pairs() if revocation else frozenset()
        self._serials = frozenset(serial for _, serial in self._pairs)
        self._closes_at = revocation.next_update + grace if revocation else None

    def objection(self, peer: Peer, now: datetime) -> DenyReason | None:
        """Return why this peer may not speak, None when it may. An unproven peer has no certificate to lose."""
        if peer.identity is None:
            return None
        if self._trusted.isdisjoint(peer.issuers):
            return DenyReason.UNTRUSTED_CA
        if peer.serial in self._serials and any((issuer, peer.serial) in self._pairs for issuer in peer.issuers):
            return DenyReason.CERT_REVOKED
        if self._closes_at is not None and now >= self._closes_at:
            return DenyReason.CRL_STALE
        return None

    def is_closed(self, now: datetime) -> bool:
        """Tell whether nobody is admitted, because the revocation list is too old."""
        return self._closes_at is not None and now >= self._closes_at


REASON_OF: Mapping[DenyReason, Reason] = MappingProxyType(
    {
        DenyReason.CERT_REVOKED: Reason.CERT_REVOKED,
        DenyReason.UNTRUSTED_CA: Reason.UNTRUSTED_CA,
        DenyReason.CRL_STALE: Reason.CRL_UNUSABLE,
    }
)
"""What each of `Standing`'s reasons is called where a handshake ends by it."""


def deny(peer: Peer, reason: DenyReason) -> Deny:
    """Return the refusal of a call for a reason that `Standing.objection` gave."""
    why, fix = _WORDS[reason]
    return Deny(reason, Unauthenticated(f"{peer.identity or 'the peer'} was refused", why=why, fix=fix))


def cut_error(reason: DenyReason) -> SecureDaguError:
    """Return what ends the open calls of peers that no longer stand."""
    why, fix = _WORDS[reason]
    return Unauthenticated("this call was ended", why=why, fix=fix)


_WORDS = {
    DenyReason.CERT_EXPIRED: (
        "the certificate that opened its connection has ended",
        "a renewed one is shown when it connects anew; without one, join the machine again",
    ),
    DenyReason.CERT_REVOKED: (
        "its certificate is revoked",
        "if that is a mistake, have an administrator issue a new certificate; revocation is final",
    ),
    DenyReason.UNTRUSTED_CA: (
        "the CA behind its certificate is no longer trusted",
        "get a certificate of the present CA: `secure-dagu pki issue ROLE NAME` on its host",
    ),
    DenyReason.CRL_STALE: (
        "the coordinator's revocation list is past its next update and the grace after it, so nobody is admitted",
        "run `secure-dagu pki crl --renew` on the host of the CA and bring ca.crl to the coordinator",
    ),
}
