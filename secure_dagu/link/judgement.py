"""Judge a certificate as a handshake does, without one: its chain by OpenSSL, then whatever `objection_to` finds.

The handshake calls `objection_to` itself, so that `secure-dagu pki verify` and a listener cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import Struct
from OpenSSL import crypto

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import InvalidRequest
from secure_dagu.link import material
from secure_dagu.link.material import Names
from secure_dagu.security.mapping import Holder, Rule
from secure_dagu.security.tls_signs import from_verify_code, identity_fault
from secure_dagu.security.verdict import Reason, Side

_WRONG_USE = 26
_WEAK_KEY = 66
"""X509_V_ERR codes of what OpenSSL checks only inside a handshake."""
_AFTER_THE_LEAF = range(47, 55)
"""Codes of name constraints: in a handshake they come after everything else, `objection_to` included."""


class Objection(Struct, frozen=True):
    """Why a certificate is refused."""

    reason: Reason
    detail: str


def objection_to(
    found: x509.Certificate, names: Names, *, host: str | None, rules: Sequence[Rule], trust_domain: str
) -> Holder | Objection:
    """Return who holds a certificate whose chain is good, or why it is refused all the same.

    Args:
        found: the other end's certificate.
        names: its names.
        host: the dialled name, at the client; None: we are the server.
        rules: by which certificates name their holders (`security.mapping`).
        trust_domain: that it must be of; empty: any.
    """
    if host is not None and not names.cover(host):
        return Objection(Reason.NAME_MISMATCH, f"dialled {host}, the certificate has {names}")
    try:
        holder = material.holder_of(found, names, rules)
    except InvalidRequest as bad:
        reason = Reason.NOT_A_COORDINATOR if host is not None else identity_fault(names.uris, "")
        return Objection(reason, bad.why or bad.what)
    identity = holder.identity
    if trust_domain not in ("", identity.trust_domain):
        reason = Reason.NOT_A_COORDINATOR if host is not None else Reason.FOREIGN_DOMAIN
        return Objection(reason, f"trust domain {identity.trust_domain} is not ours, {trust_domain}")
    if host is not None and identity.role is not Role.COORDINATOR:
        return Objection(Reason.NOT_A_COORDINATOR, f"it names {identity}")
    return holder


def judge(
    presented: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    *,
    side: Side,
    host: str | None = None,
    rules: Sequence[Rule] = (),
    trust_domain: str = "",
    at: datetime | None = None,
) -> Holder | Objection:
    """Return who holds the first of the presented certificates, or why `side` would refuse it at that moment.

    Args:
        presented: the certificate, then its chain.
        trusted: the CAs that `side` trusts.
        side: who judges: a server its client, a client its server.
        host: at the client, the dialled name; None: whatever the certificate says.
        rules: as `objection_to`.
        trust_domain: as `objection_to`.
        at: aware; None means now.
    """
    leaf, *chain = presented
    store = crypto.X509Store()
    for one in trusted:
        store.add_cert(crypto.X509.from_cryptography(one))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time((at or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None))
    context = crypto.X509StoreContext(
        store, crypto.X509.from_cryptography(leaf), [crypto.X509.from_cryptography(one) for one in chain]
    )
    names = material.names_of(leaf)
    dialled = host if host is not None or side is Side.SERVER else _any_name(names)
    own = objection_to(leaf, names, host=dialled, rules=rules, trust_domain=trust_domain)
    try:
        path = [one.to_cryptography() for one in context.get_verified_chain()]
    except crypto.X509StoreContextError as problem:
        code, depth = problem.errors[0], problem.errors[1]
        if code in _AFTER_THE_LEAF and isinstance(own, Objection):
            return own
        subject = material.subject_of(problem.certificate.to_cryptography())
        return Objection(from_verify_code(side, code), f"{problem} (depth {depth}, {subject!r})")
    wanted = ExtendedKeyUsageOID.CLIENT_AUTH if side is Side.SERVER else ExtendedKeyUsageOID.SERVER_AUTH
    for one in path:
        if _is_weak(one):
            return Objection(from_verify_code(side, _WEAK_KEY), f"{material.subject_of(one)!r} has a weak key or hash")
        usages = _usages(one)
        if usages is not None and wanted not in usages:
            return Objection(from_verify_code(side, _WRONG_USE), f"{material.subject_of(one)!r} is for something else")
    return own


def _any_name(names: Names) -> str:
    return next(iter((*names.dns, *(str(address) for address in names.ips))), "no name at all")


def _usages(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _is_weak(certificate: x509.Certificate) -> bool:
    """Tell what OpenSSL's security level 2, which our contexts have, refuses: less than 112 bits."""
    match certificate.public_key():
        case rsa.RSAPublicKey(key_size=size):
            is_weak = size < 2048
        case ec.EllipticCurvePublicKey(key_size=size):
            is_weak = size < 224
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            is_weak = False
        case _:
            is_weak = True
    is_own_root = certificate.issuer == certificate.subject  # whose signature nobody relies on
    used = None if is_own_root else certificate.signature_hash_algorithm
    return is_weak or isinstance(used, hashes.MD5 | hashes.SHA1)
