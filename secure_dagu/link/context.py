"""TLS policy → context: the only maker of contexts, and the only place where plaintext is chosen.

A policy is a value: a listener or dialer holds one and replacing it is one assignment. New connections use the new one,
running ones go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.link import crl, material
from secure_dagu.link.material import CertificateFacts
from secure_dagu.security.grants import Grants
from secure_dagu.security.identity import Identity
from secure_dagu.security.mapping import Holder, Rule
from secure_dagu.security.revocation import Standing
from secure_dagu.trimmed import TYPING, trimmed

with trimmed(instead=TYPING):
    from OpenSSL import SSL, crypto

ALPN: Final = b"h2"
HTTP: Final = b"http/1.1"
"""Protocol of the health port: a certificate is asked for, and who shows none may do less."""
JOIN: Final = b"secure-dagu-enrol/1"
"""Protocol of a machine that has no certificate yet: none is asked for, and it reaches nothing but `link.enrol`."""
RENEW: Final = b"secure-dagu-renew/1"
"""Protocol of a machine that renews its certificate, which it proves as everywhere."""
_PARTIAL_WRITE: Final = 1
"""SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets: each write would end after one record of 16 KiB."""


class MinimumTls(Enum):
    """The oldest protocol version that is spoken."""

    V1_3 = SSL.TLS1_3_VERSION
    V1_2 = SSL.TLS1_2_VERSION
    """Opt-in for old peers; only ECDHE with an AEAD cipher."""


class ServerPolicy(Struct, frozen=True, kw_only=True):
    """Mutual TLS on the accepting side."""

    context: SSL.Context
    identity: Identity
    own: CertificateFacts
    trust: tuple[CertificateFacts, ...]
    rules: tuple[Rule, ...] = ()
    """By which the peers' certificates name their holders."""
    minimum: MinimumTls
    standing: Standing
    """Whether a peer may still speak under this policy, also one whose link is older than it."""


class ClientPolicy(Struct, frozen=True, kw_only=True):
    """Mutual TLS on the dialling side."""

    context: SSL.Context
    identity: Identity
    grants: Grants
    """The labels that our certificate grants us."""
    own: CertificateFacts
    trust: tuple[CertificateFacts, ...]
    rules: tuple[Rule, ...] = ()
    """By which the peers' certificates name their holders."""
    minimum: MinimumTls
    standing: Standing
    """Whether a peer may still speak under this policy, also one whose link is older than it."""


class JoinPolicy(Struct, frozen=True, kw_only=True):
    """The dialling side before it has a certificate: presents nothing, trusts one root by its fingerprint."""

    context: SSL.Context
    pin: str
    """SHA-256 of the root certificate, hex."""


class UnsafePlaintext(Struct, frozen=True):
    """No TLS: nobody is proven and everything can be read. Chosen by name (`peer.insecure`), never inferred."""


def server_material(
    *, cert: Path, key: Path, client_ca: Path, advertised: Sequence[str] = (), rules: Sequence[Rule] = ()
) -> material.Material:
    """Read and check the accepting side's files.

    `advertised` are the names under which clients dial us; the certificate must cover each of them. `rules` say whom
    certificates name, ours and the clients' (`security.mapping`).

    Raises:
        ConfigError: a file is missing, unreadable, malformed, expired or unfit (`material.load`), or the certificate is
            not a coordinator's, so that every client would refuse it.
    """
    found = material.load(
        cert=cert,
        key=key,
        ca=client_ca,
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        advertised=advertised,
        rules=rules,
    )
    if found.identity.role is not Role.COORDINATOR:
        raise ConfigError(
            f"{cert} cannot be used",
            why=f"it names {found.identity}, and clients accept only a coordinator",
            fix="issue one with `secure-dagu pki issue coordinator NAME`",
        )
    return found


def server_from(
    found: material.Material,
    *,
    minimum: MinimumTls = MinimumTls.V1_3,
    lists: crl.Lists | None = None,
    grace: timedelta = timedelta(),
) -> ServerPolicy:
    """Make the accepting side's policy.

    `lists` say who is revoked; `grace` after their next update nobody is admitted any more.

    Raises:
        ConfigError: the TLS library refuses the certificate or key.
    """
    context = _context(found, minimum, lists)
    context.set_alpn_select_callback(_select)
    _present_root(context, found)
    return ServerPolicy(
        context=context,
        identity=found.identity,
        own=found.own,
        trust=found.trust,
        rules=found.rules,
        minimum=minimum,
        standing=_standing(found, lists, grace),
    )


def server_policy(
    *,
    cert: Path,
    key: Path,
    client_ca: Path,
    advertised: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    minimum: MinimumTls = MinimumTls.V1_3,
) -> ServerPolicy:
    """Make the accepting side's policy from its files (`server_material`, `server_from`)."""
    found = server_material(cert=cert, key=key, client_ca=client_ca, advertised=advertised, rules=rules)
    return server_from(found, minimum=minimum)


def https_policy(*, cert: Path, key: Path, ca: Path, like: ServerPolicy | ClientPolicy) -> ServerPolicy:
    """Make the policy of an HTTPS port with a server certificate of its own, from any CA.

    Clients are judged by the CAs in `ca`, and as `like` judges its peers.

    Raises:
        ConfigError: a file is missing, unreadable, malformed, expired or unfit (`material.load`).
    """
    found = material.load(
        cert=cert,
        key=key,
        ca=ca,
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        rules=like.rules,
        holder=Holder(identity=like.identity),
    )
    return replace(server_from(found, minimum=like.minimum), standing=like.standing)


def web_policy(*, cert: Path, key: Path) -> ServerPolicy:
    """Make the policy of an HTTPS port that takes no client certificates; the server certificate is from any CA.

    Raises:
        ConfigError: a file is missing, unreadable, malformed, expired or unfit (`material.load`).
    """
    nobody = Holder(identity=Identity("web.invalid", Role.COORDINATOR, "web"))  # no peer is ever compared with it
    found = material.load(cert=cert, key=key, ca=None, purpose=ExtendedKeyUsageOID.SERVER_AUTH, holder=nobody)
    return server_from(found)


def client_material(*, cert: Path, key: Path, ca: Path, rules: Sequence[Rule] = ()) -> material.Material:
    """Read and check the dialling side's files; `ca` alone is trusted, never the system's roots.

    Raises:
        ConfigError: a file is missing, unreadable, malformed, expired or unfit (`material.load`).
    """
    return material.load(cert=cert, key=key, ca=ca, purpose=ExtendedKeyUsageOID.CLIENT_AUTH, rules=rules)


def client_from(
    found: material.Material,
    *,
    minimum: MinimumTls = MinimumTls.V1_3,
    lists: crl.Lists | None = None,
    grace: timedelta = timedelta(),
) -> ClientPolicy:
    """Make the dialling side's policy; the arguments are those of `server_from`.

    Raises:
        ConfigError: the TLS library refuses the certificate or key.
    """
    context = _context(found, minimum, lists)
    context.set_alpn_protos([ALPN])
    return ClientPolicy(
        context=context,
        identity=found.identity,
        grants=found.grants,
        own=found.own,
        trust=found.trust,
        rules=found.rules,
        minimum=minimum,
        standing=_standing(found, lists, grace),
    )


def client_policy(
    *, cert: Path, key: Path, ca: Path, rules: Sequence[Rule] = (), minimum: MinimumTls = MinimumTls.V1_3
) -> ClientPolicy:
    """Make the dialling side's policy from its files (`client_material`, `client_from`)."""
    return client_from(client_material(cert=cert, key=key, ca=ca, rules=rules), minimum=minimum)


def join_policy(pin: str) -> JoinPolicy:
    """Make the policy of a machine that joins: the server's chain must end in the root with this fingerprint.

    There is no trust store, so OpenSSL objects to every chain; `Handshake.judge` lets that one objection pass when it
    is about the pinned root, and signatures, dates and purposes are then checked as always.
    """
    context = _strict(MinimumTls.V1_3)
    context.set_alpn_protos([JOIN])
    context.set_verify(SSL.VERIFY_PEER, _verify)
    return JoinPolicy(context=context, pin=pin)


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

    def choose(self, offered: Sequence[bytes]) -> bytes:
        """Return the protocol to speak, on the accepting side.

        Raises:
            NoCommonProtocol: none of those that the client offers.
        """
        ...


class NoCommonProtocol(Exception):
    """The client offers ALPN, but nothing that is spoken here."""


def _standing(found: material.Material, lists: crl.Lists | None, grace: timedelta) -> Standing:
    return Standing(
        trusted=(crl.key_of(ca) for ca in found.trusted),
        revocation=lists.revocation if lists is not None else None,
        grace=grace,
    )


def _context(found: material.Material, minimum: MinimumTls, lists: crl.Lists | None) -> SSL.Context:
    context = _strict(minimum)
    try:
        context.use_certificate(found.leaf)
        context.use_privatekey(found.key)
        for one in found.chain:
            context.add_extra_chain_cert(one)
        context.check_privatekey()
        _trust(context, found.trusted, lists)
    except SSL.Error as error:
        raise ConfigError(
            f"{found.own.file} cannot be used",
            why=f"the TLS library refuses it: {words_of(error)}",
            fix="use ECDSA P-256, Ed25519 or RSA of at least 2048 bits, signed with SHA-256 or better",
        ) from error
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
    return context


def _strict(minimum: MinimumTls) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(minimum.value)
    context.set_cipher_list(b"ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2")  # rules TLS 1.2 only; 1.3 has AEAD suites alone
    # A resumed session is not verified again, so a revoked certificate would come back in (threat facts): no sessions.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.clear_mode(_PARTIAL_WRITE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection gives its 34 kB of record buffers back
    context.set_verify_depth(4)
    return context


def _present_root(context: SSL.Context, found: material.Material) -> None:
    """Send the root with our chain: a machine that joins knows nothing but its fingerprint. Others skip it."""
    last = (found.leaf, *found.chain)[-1]
    for one in found.trusted:
        if one != last and material.is_issued_by(last, one):
            context.add_extra_chain_cert(one)
            return


def _trust(context: SSL.Context, trusted: Sequence[x509.Certificate], lists: crl.Lists | None) -> None:
    store = context.get_cert_store()
    assert store is not None, "a context has a store"
    for one in trusted:
        store.add_cert(crypto.X509.from_cryptography(one))
    # An issuing CA alone may be the anchor, as in Go: otherwise its root would have to be handed out too.
    flags = crypto.X509StoreFlags.PARTIAL_CHAIN
    if lists is not None:  # OpenSSL itself must find a revoked one, or the other end would not get the right alert
        for listed in lists.crls:
            store.add_crl(listed)
        flags |= crypto.X509StoreFlags.CRL_CHECK
    store.set_flags(flags)


def _verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    judge: CertificateJudge | None = connection.get_app_data()
    return judge is not None and judge.judge(certificate, code=code if not ok else 0, depth=depth)


def _select(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    judge: CertificateJudge | None = connection.get_app_data()
    if judge is None:
        raise NoCommonProtocol  # pyOpenSSL then sends the alert `no application protocol`, and raises this again
    return judge.choose(offered)


def words_of(error: SSL.Error) -> str:
    """Return the last reason in an OpenSSL error, such as `certificate verify failed`; empty when it names none."""
    stack = error.args[0] if error.args else ()
    return str(stack[-1][2]) if stack else ""
