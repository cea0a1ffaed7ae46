"""Decide who gets a certificate over the network, and sign it: for a token, or for a certificate that is still good.

What a signing request asks for is never looked at: subject, names, usages and lifetime come from the token or, at a
renewal, from the newest entry of that role and name in the ledger, so a right that was taken away does not come back
(threats T24, T25). A stranger learns one thing from a refusal: that it was one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest, Refused, SecureDaguError
from secure_dagu.pki import directory, pods, requests
from secure_dagu.pki.asking import Answer, JoinRequest, Problem, RenewRequest
from secure_dagu.pki.authority import Authority, Issued, check_request
from secure_dagu.pki.keys import fingerprint
from secure_dagu.pki.ledger import LedgerEntry, Status
from secure_dagu.pki.names import OWN_HOST, parse_names
from secure_dagu.pki.opening import Passphrase
from secure_dagu.pki.profiles import Profile, load_profiles
from secure_dagu.pki.term import Term
from secure_dagu.pki.tokens import MAX_TTL, Offer, Token, Tokens
from secure_dagu.security.grants import NOTHING, Grants, parse_grants
from secure_dagu.security.peer import Peer

MAX_FAILURES: Final = 10
"""Refused joins of one address in a row; after that one in `FAILURE_S` seconds is looked at."""
FAILURE_S: Final = 6.0
MAX_ADDRESSES: Final = 4096
"""Of which failures are remembered; the oldest is forgotten first."""


class Decision(Struct, frozen=True, kw_only=True):
    """The answer, and what the record of it must say."""

    answer: Answer
    entry: LedgerEntry | None = None
    """Of the new certificate; None: refused."""
    reason: str = ""
    """A word for why it was refused, for the log alone."""
    detail: str = ""
    """The same in a sentence."""
    offer: Offer | None = None
    """Of a token that was recognised."""

    @property
    def document(self) -> bytes:
        """Return the answer as JSON."""
        return msgspec.json.encode(self.answer)


JOIN_REFUSED: Final = Answer(
    problem=Problem(
        code=Refused.code,
        what="the coordinator did not accept the token",
        why="it is unknown, was used, has ended, or the request with it was not acceptable; its log says which",
        fix="make a new one with `secure-dagu pki token` on the coordinator's host",
    )
)
"""The one answer to every join that is refused."""


class Desk:
    """Answers the machines that join or renew. Thread-safe; each call takes a few milliseconds, most of it the disk."""

    def __init__(self, pki_dir: Path, passphrase: Passphrase | None, *, pods_file: Path | None = None) -> None:
        """Open the CA in `pki_dir`. `pods_file`: which pods may join (`pki.pods`), read again at each; None: none.

        Raises:
            ConfigError: there is no CA key here, or it cannot be opened; the file cannot be used.
        """
        self._pki_dir, self._passphrase, self._pods_file = pki_dir, passphrase, pods_file
        if pods_file is not None:
            pods.read_cluster(pods_file)
        self._profiles = load_profiles().roles
        self._tokens = Tokens(pki_dir)
        self._failures = Failures()
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._ca = directory.open_ca(pki_dir, passphrase)

    def join(self, request: bytes, *, address: str, now: datetime) -> Decision:
        """Redeem a token. Never raises one of our errors: whatever is wrong is a refusal, and looks the same."""
        with self._lock:
            if self._failures.are_too_many(address, now):
                return Decision(answer=JOIN_REFUSED, reason="too_many", detail="too many refused before from there")
            decision = self._join(request, now)
            if decision.entry is None:
                self._failures.count(address, now)
            return decision

    def _join(self, request: bytes, now: datetime) -> Decision:
        try:
            said = msgspec.json.decode(request, type=JoinRequest)
        except msgspec.MsgspecError as problem:
            return _no("malformed", str(problem))
        offer = None
        try:
            offer = self._vouched(said.pod_token, now) if said.pod_token else self._tokens.find(said.secret, now)
        except SecureDaguError as problem:
            return _no("token" if isinstance(problem, InvalidRequest) else "authority", str(problem))
        if offer is None:
            return _no("token", "the token is unknown, was used, or has ended")
        profile, csr = self._profiles[offer.role], said.csr.encode()
        try:
            requests.key_of(csr, profile.keys)  # a machine that sends a bad one may send a better one
            if not self._use_up(said, offer, now):
                return _no("token", "the token was used before", offer)
            labels, lifetime = parse_grants(offer.labels), timedelta(seconds=offer.lifetime_s) or None
            actor = offer.actor if said.pod_token else "token"
            made = self._sign(csr, profile, offer.name, offer.names, labels, lifetime, now, actor=actor)
        except InvalidRequest as problem:
            return _no("request", str(problem), offer)
        except SecureDaguError as problem:
            return _no("authority", str(problem), offer)
        return self._yes(made, offer)

    def _vouched(self, token: str, now: datetime) -> Offer | None:
        """Return what a pod gets that its cluster vouches for; None where no pods join."""
        return pods.offer_for(token, pods.read_cluster(self._pods_file), now) if self._pods_file is not None else None

    def _use_up(self, said: JoinRequest, offer: Offer, now: datetime) -> bool:
        if said.pod_token:
            return self._tokens.spend(said.pod_token, offer, now)
        return self._tokens.take(said.secret, now) is not None

    def renew(self, peer: Peer, request: bytes, *, now: datetime) -> Decision:
        """Give the holder of a proven certificate a new one for a new key, with the rights that the ledger gives it."""
        with self._lock:
            try:
                return self._renew(peer, msgspec.json.decode(request, type=RenewRequest).csr.encode(), now)
            except msgspec.MsgspecError as problem:
                return _not_renewed(InvalidRequest("the request is malformed", why=str(problem)))
            except SecureDaguError as problem:
                return _not_renewed(problem)

    def renew_here(self, shown: Term, request: bytes, *, now: datetime) -> Decision:
        """Renew a certificate that lies on the CA's own host: also one that has ended, for whoever asks has the CA."""
        with self._lock:
            try:
                csr = msgspec.json.decode(request, type=RenewRequest).csr.encode()
                return self._certify(self._rights(shown.serial, shown.identity), csr, now)
            except SecureDaguError as problem:
                return _not_renewed(problem)

    def _renew(self, peer: Peer, csr: bytes, now: datetime) -> Decision:
        if peer.identity is None or peer.not_after is None or now >= peer.not_after:
            raise _refused("its certificate has ended", "let it join with a new token")
        newest = self._rights(peer.serial, peer.identity.uri)
        if not csr:
            return Decision(answer=Answer(ca=self._authority().trust_pem.decode()))
        return self._certify(newest, csr, now)

    def _certify(self, newest: LedgerEntry, csr: bytes, now: datetime) -> Decision:
        ca = self._authority()
        profile = self._profiles[Role(newest.role)]
        if ca.ledger.with_key(fingerprint(requests.key_of(csr, profile.keys))):
            raise InvalidRequest("the certificate was not renewed", why="its new key is one that was used before")
        return self._yes(
            self._sign(
                csr, profile, newest.name, newest.names, newest.grants, _lifetime_of(newest, ca, profile), now,
                actor=newest.identity,
            )
        )  # fmt: skip

    def _rights(self, serial: int, identity: str) -> LedgerEntry:
        """Return the entry that says what the holder of a certificate may be.

        Raises:
            Refused: it was not issued here, is revoked, or its rights were taken away.
        """
        ledger = self._authority().ledger
        shown = ledger.find(serial)
        if shown is None or shown.identity != identity:
            raise _refused("this CA has no record of its certificate", "issue it a new one from this CA")
        if shown.status is Status.REVOKED:
            raise _refused("it is revoked", "revocation is final; if that was a mistake, let it join with a new token")
        newest = ledger.current(shown.role, shown.name)
        if newest is None or newest.status is Status.REVOKED:
            raise _refused("a newer certificate of that name is revoked", "let it join with a new token")
        return newest

    def _sign(
        self, csr: bytes, profile: Profile, name: str, names: tuple[str, ...], labels: Grants,
        lifetime: timedelta | None, now: datetime, *, actor: str,
    ) -> Issued:  # fmt: skip
        return self._authority().sign(
            csr, profile, name, now=now, names=parse_names(names), labels=labels or NOTHING, lifetime=lifetime,
            actor=actor,
        )  # fmt: skip

    def _yes(self, made: Issued, offer: Offer | None = None) -> Decision:
        entry = made.entry
        return Decision(
            answer=Answer(
                certificate=made.certificate.decode(), ca=self._ca.trust_pem.decode(), role=entry.role,
                name=entry.name, labels=entry.labels,
            ),
            entry=entry,
            offer=offer,
        )  # fmt: skip

    def _authority(self) -> Authority:
        """Return the CA, opened anew when its files have changed: a rotation puts another one there."""
        now = self._signature()
        if now != self._seen:
            self._ca, self._seen = directory.open_ca(self._pki_dir, self._passphrase), now
        return self._ca

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(self._pki_dir / name) for name in ("ca.crt", "ca.key", "issuing.crt", "issuing.key"))


class Failures:
    """How often strangers were refused: a bucket of `MAX_FAILURES` for each address, refilled in time."""

    def __init__(self) -> None:
        self._full_at: OrderedDict[str, datetime] = OrderedDict()

    def are_too_many(self, address: str, now: datetime) -> bool:
        """Tell whether the bucket of an address (`host:port`) is empty."""
        full_at = self._full_at.get(_host(address), now)
        return full_at - now > timedelta(seconds=FAILURE_S * (MAX_FAILURES - 1))

    def count(self, address: str, now: datetime) -> None:
        """Take one from the bucket."""
        host = _host(address)
        self._full_at[host] = max(self._full_at.pop(host, now), now) + timedelta(seconds=FAILURE_S)
        if len(self._full_at) > MAX_ADDRESSES:
            self._full_at.popitem(last=False)


def _host(address: str) -> str:
    """Return what shares a bucket: an IPv4 address, or the /64 of an IPv6 one, which one customer has to himself."""
    host = address.rpartition(":")[0]
    if not host.startswith("["):
        return host
    import ipaddress

    try:
        return str(ipaddress.ip_network((host.strip("[]").partition("%")[0], 64), strict=False))
    except ValueError:
        return host


def make_token(
    pki_dir: Path,
    role: Role,
    name: str,
    *,
    labels: Grants | None,
    advertised: Sequence[str] = (),
    lifetime: timedelta | None = None,
    ttl: timedelta,
    now: datetime,
    actor: str = "",
) -> tuple[Token, Offer]:
    """Make a token for one certificate. The CA's key is not needed for it, only its presence.

    Args:
        labels: that the certificate grants; None: those of the newest certificate of that role and name, if any.
        advertised: DNS names and addresses, for a coordinator; what every coordinator's host is called is added.
        lifetime: of the certificate; None: the profile's.
        ttl: of the token, at most `tokens.MAX_TTL`.

    Raises:
        ConfigError: the certificate could not be issued, or there is no CA key here.
    """
    if not directory.ca_key_file(pki_dir).exists():
        raise ConfigError(
            "machines cannot join here",
            why=f"there is no CA key in {pki_dir}, so this coordinator cannot sign certificates",
            fix="issue the certificate where the CA is and bring it to the machine; under an offline root, give this "
            "host an issuing CA",
        )
    if not timedelta(seconds=1) <= ttl <= MAX_TTL:
        raise ConfigError(
            f"a token does not last {ttl}", why=f"1 second to {MAX_TTL.days} days are", fix="change --ttl"
        )
    newest = directory.ledger(pki_dir).current(role.value, name)
    if labels is None:
        labels = newest.grants if newest is not None and newest.status is not Status.REVOKED else NOTHING
    names = parse_names(advertised)
    if role is Role.COORDINATOR and names:
        names = tuple(dict.fromkeys((*names, *OWN_HOST)))
    check_request(load_profiles().roles[role], name, names, labels, lifetime)
    offer = Offer(
        role=role,
        name=name,
        labels=tuple(f"{label}={value}" for label, value in sorted(labels.pairs)),
        names=tuple(str(one) for one in names),
        lifetime_s=int(lifetime.total_seconds()) if lifetime else 0,
        made_at=now.isoformat(timespec="seconds"),
        until=(now + ttl).isoformat(timespec="seconds"),
        actor=actor,
    )
    return Token(pin=pin_of(pki_dir), secret=Tokens(pki_dir).make(offer, now)), offer


def pin_of(pki_dir: Path) -> str:
    """Return the fingerprint that a token carries: the SHA-256 of the root in which the coordinator's chain ends, hex.

    That is the root of what the coordinator presents, which in the middle of a rotation is not yet the new one.

    Raises:
        ConfigError: there is no certificate of a coordinator here, or its root is not what peers are told to trust.
    """
    served, trusted = pki_dir / f"{directory.COORDINATOR}.crt", pki_dir / "ca.crt"
    try:
        last = x509.load_pem_x509_certificates(served.read_bytes())[-1]
        roots = x509.load_pem_x509_certificates(trusted.read_bytes())
    except (OSError, ValueError) as problem:
        raise ConfigError(
            "no join token can be made", why=str(problem), fix="issue the coordinator its certificate first"
        ) from problem
    for root in roots:
        try:
            last.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return root.fingerprint(hashes.SHA256()).hex()
    raise ConfigError(
        "no join token can be made",
        why=f"the root of {served} is not in {trusted}",
        fix="issue the coordinator's certificate again, or restore ca.crt",
    )


def _lifetime_of(newest: LedgerEntry, ca: Authority, profile: Profile) -> timedelta:
    """Return how long the next certificate lasts: as long as the last one, unless the end of a former CA cut that."""
    if newest.issuer != ca.certificate.fingerprint(hashes.SHA256()).hex():
        return profile.lifetime
    return min(datetime.fromisoformat(newest.not_after) - datetime.fromisoformat(newest.issued_at), profile.longest)


def _no(reason: str, detail: str, offer: Offer | None = None) -> Decision:
    return Decision(answer=JOIN_REFUSED, reason=reason, detail=detail, offer=offer)


def _refused(why: str, fix: str) -> Refused:
    return Refused("the certificate was not renewed", why=why, fix=fix)


def _not_renewed(problem: SecureDaguError) -> Decision:
    return Decision(
        answer=Answer(problem=Problem(code=problem.code, what=problem.what, why=problem.why, fix=problem.fix)),
        reason=problem.code,
        detail=str(problem),
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
