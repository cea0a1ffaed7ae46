"""Decide whether one call may go on. Runs for every RPC and every message of a stream, so it must stay cheap."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from secure_dagu.dispatch.model import Caller, Role, WorkerId
from secure_dagu.errors import Refused, SecureDaguError, Unauthenticated
from secure_dagu.security.grants import TENANT
from secure_dagu.security.identity import Identity, acts_as
from secure_dagu.security.peer import Peer
from secure_dagu.security.roles import METHODS_OF, UNPROVEN_METHODS


class DenyReason(StrEnum):
    """Why a call was refused: the closed set of the metric label `reason` (metrics reference, C.2)."""

    WORKER_ID_MISMATCH = "worker_id_mismatch"
    ROLE_NOT_ALLOWED = "role_not_allowed"
    UNKNOWN_IDENTITY = "unknown_identity"
    CERT_EXPIRED = "cert_expired"
    CERT_REVOKED = "cert_revoked"
    CRL_STALE = "crl_stale"
    """The revocation list is too old: nobody is admitted."""
    UNTRUSTED_CA = "untrusted_ca"
    """Its CA has left the bundle since the link was opened."""
    NOT_OWNER = "not_owner"
    """The object of the call is somebody else's: no lease, another tree."""
    LABEL_NOT_GRANTED = "label_not_granted"
    """A claimed label is not granted by the certificate (`security.policy`)."""
    OTHER_TENANT = "other_tenant"
    """The run belongs to a tenant that the certificate does not grant (`security.policy`)."""


class Allow(Struct, frozen=True):
    """Go on, as this caller."""

    caller: Caller


class Deny(Struct, frozen=True):
    """Stop. `reason` is for the metric and the audit log, `error` for the peer."""

    reason: DenyReason
    error: SecureDaguError


def admit(peer: Peer | None, method: str, claimed_worker: str | None, now: datetime) -> Allow | Deny:
    """Return who calls, or why the call is refused (threats reference, "Role × RPC", T01, T06).

    Args:
        peer: the other end as its handshake proved it; None when the register does not know the connection.
        method: the full name, `/package.Service/Method`.
        claimed_worker: the `worker_id` that the message carries; None when such messages have none. An empty one is
            no claim: the certificate's name stands, and the servicer refuses it where the protocol requires the field.
        now: aware UTC.
    """
    if peer is None:
        return Deny(
            DenyReason.UNKNOWN_IDENTITY,
            Unauthenticated("the connection is not known", why="it did not pass the TLS edge"),
        )
    identity = peer.identity
    if identity is None:
        return _admit_unproven(method, claimed_worker, peer.address)
    # On every call, not only at the handshake: a connection may outlive the certificate that opened it.
    if peer.not_after is None or now >= peer.not_after:
        return _expired(peer, identity)
    role = identity.role
    name = identity.name
    if role is _WORKER:
        if method not in _WORKER_METHODS:
            return _role_not_allowed(identity, method)
        if not claimed_worker:
            return _worker(identity.trust_domain, name, name, peer.serial, peer.address)
        # The length first: what is accepted is remembered below.
        if len(claimed_worker) <= MAX_WORKER_ID and acts_as(name, claimed_worker):
            return _worker(identity.trust_domain, name, claimed_worker, peer.serial, peer.address)
        return _mismatch(identity, claimed_worker)
    if method not in METHODS_OF.get(role, _NOTHING):
        return _role_not_allowed(identity, method)
    return Allow(_caller(peer, identity))


MAX_WORKER_ID = 255
"""Longest worker id in characters that is accepted from a proven worker."""

_WORKER = Role.WORKER
_WORKER_METHODS = METHODS_OF[Role.WORKER]
_NOTHING: frozenset[str] = frozenset()
_NO_TENANTS: frozenset[str] = frozenset()


# Remembered because making two frozen values costs more than deciding; bounded because callers choose what follows `@`.
@lru_cache(maxsize=8192)
def _worker(trust_domain: str, name: str, worker_id: str, serial: int, address: str) -> Allow:
    return Allow(
        Caller(
            role=_WORKER, name=name, proven=True, worker=WorkerId(worker_id),
            identity=Identity(trust_domain, _WORKER, name).uri, serial=_hex(serial), address=address,
        )
    )  # fmt: skip


def _hex(serial: int) -> str:
    return f"{serial:x}" if serial else ""


def _caller(peer: Peer, identity: Identity) -> Caller:
    return Caller(
        role=identity.role, name=identity.name, proven=True, identity=identity.uri, serial=_hex(peer.serial),
        address=peer.address, tenants=peer.grants.values(TENANT) if peer.grants else _NO_TENANTS,
    )  # fmt: skip


def _admit_unproven(method: str, claimed_worker: str | None, address: str) -> Allow | Deny:
    """Without certificates nobody is more than what it says; only secrets stay closed."""
    if method in UNPROVEN_METHODS:
        worker = WorkerId(claimed_worker) if claimed_worker else None
        return Allow(
            Caller(role=Role.ANONYMOUS, name=claimed_worker or "", proven=False, worker=worker, address=address)
        )
    error = Refused(
        f"{method} is refused over an unproven link",
        why="this coordinator runs with peer.insecure, so nobody can prove who asks",
        fix="turn peer.insecure off on both ends and issue certificates with `secure-dagu pki issue ROLE NAME`",
    )
    return Deny(DenyReason.ROLE_NOT_ALLOWED, error)


def _expired(peer: Peer, identity: Identity) -> Deny:
    when = f"its certificate ended on {peer.not_after:%Y-%m-%d %H:%M}Z" if peer.not_after else "it has no end date"
    fix = f"issue a new one with `secure-dagu pki issue {identity.role.value} {identity.name} --force`"
    return Deny(DenyReason.CERT_EXPIRED, Unauthenticated(f"{identity} was refused", why=when, fix=fix))


def _role_not_allowed(identity: Identity, method: str) -> Deny:
    error = Refused(
        f"{identity} may not call {method[:200]}",
        why=f"the role {identity.role.value} does not include it",
        fix="use a certificate of a role that does (`secure-dagu pki issue ROLE NAME`)",
    )
    return Deny(DenyReason.ROLE_NOT_ALLOWED, error)


def _mismatch(identity: Identity, claimed: str) -> Deny:
    error = Refused(
        f"{identity} may not act as worker {claimed[:200]!r}",
        why="a worker id must be the name in the certificate, or that name followed by @ and anything",
        fix=f"start the worker with --worker.id={identity.name}, or issue a certificate for the other name",
    )
    return Deny(DenyReason.WORKER_ID_MISMATCH, error)
