"""TLS policy → context: the only maker of contexts, and the only place where plaintext is chosen.

A policy is a value: a listener or dialer holds one and replacing it is one assignment. New connections use the new one,
running ones go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.link import material
from secure_dagu.link.material import CertificateFacts
from secure_dagu.security.identity import Identity

ALPN: Final = b"h2"
_PARTIAL_WRITE: Final = 1
"""SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets: each write would end after one record of 16 KiB."""


class MinimumTls(Enum):
    """The oldest protocol version that is spoken."""

    V1_3 = SSL.TLS1_3_VERSION
    V1_2 = SSL.TLS1_2_VERSION
    """Opt-in for old peers; only ECDHE with an AEAD cipher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPolicy:
    """Mutual TLS on the accepting side."""

    context: SSL.Context
    identity: Identity
    own: CertificateFacts
    trust: tuple[CertificateFacts, ...]
    minimum: MinimumTls


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """Mutual TLS on the dialling side."""

    context: SSL.Context
    identity: Identity
    own: CertificateFacts
    trust: tuple[CertificateFacts, ...]
    minimum: MinimumTls


@dataclass(frozen=True, slots=True)
class UnsafePlaintext:
    """No TLS: nobody is proven and everything can be read. Chosen by name (`peer.insecure`), never inferred."""


def server_policy(
    *,
    cert: Path,
    key: Path,
    client_ca: Path,
    advertised: Sequence[str] = (),
    minimum: MinimumTls = MinimumTls.V1_3,
) -> ServerPolicy:
    """Make the accepting side's policy from its files.

    `advertised` are the names under which clients dial us; the certificate must cover each of them.

    Raises:
        ConfigError: a file is missing, unreadable, malformed, expired or unfit (`material.load`), or the certificate is
            not a coordinator's, so that every client would refuse it.
    """
    found = material.load(
        cert=cert, key=key, ca=client_ca, purpose=ExtendedKeyUsageOID.SERVER_AUTH, advertised=advertised
    )
    if found.identity.role is not Role.COORDINATOR:
        raise ConfigError(
            f"{cert} cannot be used",
            why=f"it names {found.identity}, and clients accept only a coordinator",
            fix="issue one with `secure-dagu pki issue coordinator NAME`",
        )
    context = _context(found, minimum)
    context.set_alpn_select_callback(_select_h2)
    return ServerPolicy(context=context, identity=found.identity, own=found.own, trust=found.trust, minimum=minimum)


def client_policy(*, cert: Path, key: Path, ca: Path, minimum: MinimumTls = MinimumTls.V1_3) -> ClientPolicy:
    """Make the dialling side's policy from its files; `ca` alone is trusted, never the system's roots.

    Raises:
        ConfigError: a file is missing, unreadable, malformed, expired or unfit (`material.load`).
    """
    found = material.load(cert=cert, key=key, ca=ca, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    context = _context(found, minimum)
    context.set_alpn_protos([ALPN])
    return ClientPolicy(context=context, identity=found.identity, own=found.own, trust=found.trust, minimum=minimum)


def probe_context() -> SSL.Context:
    """Make a context that presents nothing and trusts nobody: it can only learn whether a port speaks TLS.

    The verify callback refuses every certificate, so no connection can ever come of it.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_alpn_protos([ALPN])
    context.set_verify(SSL.VERIFY_PEER, _verify)
    return context


class CertificateJudge(Protocol):
    """Decides on one presented certificate; each connection carries its own as app data."""

    def judge(self, certificate: crypto.X509, *, code: int, depth: int) -> bool:
        """Record the fact and tell whether the handshake may go on. `code` 0: OpenSSL has no objection."""
        ...


class NoCommonProtocol(Exception):
    """The client offers ALPN, but not h2."""


def _context(found: material.Material, minimum: MinimumTls) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(minimum.value)
    context.set_cipher_list(b"ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2")  # rules TLS 1.2 only; 1.3 has AEAD suites alone
    # A resumed session is not verified again, so a revoked certificate would come back in (threat facts): no sessions.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.clear_mode(_PARTIAL_WRITE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection gives its 34 kB of record buffers back
    try:
        context.use_certificate(found.leaf)
        context.use_privatekey(found.key)
        for one in found.chain:
            context.add_extra_chain_cert(one)
        context.check_privatekey()
        _trust(context, found.trusted)
    except SSL.Error as error:
        raise ConfigError(
            f"{found.own.file} cannot be used",
            why=f"the TLS library refuses it: {words_of(error)}",
            fix="use ECDSA P-256, Ed25519 or RSA of at least 2048 bits, signed with SHA-256 or better",
        ) from error
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
    context.set_verify_depth(4)
    return context


def _trust(context: SSL.Context, trusted: Sequence[x509.Certificate]) -> None:
    store = context.get_cert_store()
    assert store is not None, "a context has a store"
    for one in trusted:
        store.add_cert(crypto.X509.from_cryptography(one))
    # An issuing CA alone may be the anchor, as in Go: otherwise its root would have to be handed out too.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


def _verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    judge: CertificateJudge | None = connection.get_app_data()
    return judge is not None and judge.judge(certificate, code=code if not ok else 0, depth=depth)


def _select_h2(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    raise NoCommonProtocol  # pyOpenSSL then sends the alert `no application protocol`, and raises this again


def words_of(error: SSL.Error) -> str:
    """Return the last reason in an OpenSSL error, such as `certificate verify failed`; empty when it names none."""
    stack = error.args[0] if error.args else ()
    return str(stack[-1][2]) if stack else ""
