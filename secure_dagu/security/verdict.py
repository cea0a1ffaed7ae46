"""Why a handshake or a dial ended: the closed list of faults, each with what, why and fix for both ends. Pure.

A fault has one code, whichever end sees it: the end that decides logs, counts and audits it, the other end learns it by
an alert or a last word and prints the same code (`security.tls_signs` reads both). The code is the metric label too
(metrics, B.4); `side` says which end counted. The table is long because it is everything that is ever said about a
link; docs/reference/errors.md is made from it and tests/link/test_faults.py walks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from msgspec import Struct

from secure_dagu.errors import ConfigError, SecureDaguError, Unauthenticated, Unavailable


class Side(StrEnum):
    """Which end of the link speaks."""

    SERVER = "server"
    CLIENT = "client"


class Reason(StrEnum):
    """The closed list of faults: of the client, of the server, of the protocol, of the way between them."""

    NO_CLIENT_CERT = "no_client_cert"
    UNTRUSTED_CA = "untrusted_ca"
    CERT_EXPIRED = "cert_expired"
    CERT_NOT_YET_VALID = "cert_not_yet_valid"
    CERT_REVOKED = "cert_revoked"
    CRL_UNUSABLE = "crl_unusable"
    WRONG_PURPOSE = "wrong_purpose"
    WEAK_KEY = "weak_key"
    BAD_CERTIFICATE = "bad_certificate"
    NO_IDENTITY = "no_identity"
    TWO_IDENTITIES = "two_identities"
    FOREIGN_DOMAIN = "foreign_domain"
    BAD_IDENTITY = "bad_identity"

    UNTRUSTED_SERVER = "untrusted_server"
    NAME_MISMATCH = "name_mismatch"
    SERVER_EXPIRED = "server_expired"
    SERVER_NOT_YET_VALID = "server_not_yet_valid"
    SERVER_REVOKED = "server_revoked"
    CLIENT_CRL_UNUSABLE = "client_crl_unusable"
    SERVER_WRONG_PURPOSE = "server_wrong_purpose"
    SERVER_WEAK_KEY = "server_weak_key"
    SERVER_BAD_CERTIFICATE = "server_bad_certificate"
    NOT_A_COORDINATOR = "not_a_coordinator"

    PLAINTEXT_CLIENT = "plaintext_client"
    PLAINTEXT_SERVER = "plaintext_server"
    HTTP_CLIENT = "http_client"
    HTTP_SERVER = "http_server"
    HTTP_PROXY = "http_proxy"
    NOT_TLS_SERVER = "not_tls_server"
    NOT_GRPC_SERVER = "not_grpc_server"
    PROTOCOL_VERSION = "protocol_version"
    NO_SHARED_CIPHER = "no_shared_cipher"
    ALPN = "alpn"

    HANDSHAKE_TIMEOUT = "handshake_timeout"
    TRUNCATED = "truncated"
    OVER_LIMIT = "over_limit"
    PROXY_HEADER = "proxy_header"
    PEER_ALERT = "peer_alert"
    PEER_CLOSED = "peer_closed"
    BACKEND = "backend"
    DNS = "dns"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    PROXY_REFUSED = "proxy_refused"
    CLOSED = "closed"
    OTHER = "other"


Result = Literal["ok", "refused", "dns", "tls", "timeout", "other"]
"""The `result` label of `secure_dagu_client_connect_attempts_total` (metrics, C.2)."""


class Explanation(Struct, frozen=True, kw_only=True):
    """The words for one fault at one end."""

    why: str
    fix: str
    waits: bool = False
    """Whether trying again without changing anything can help."""
    family: type[SecureDaguError] = Unauthenticated
    """Whose move it is, on the client: nobody's (Unavailable), the operator's (ConfigError), or the holder's."""


class Fault(Struct, frozen=True, kw_only=True):
    """One row: who finds it, and what each end says of it. An end without words never sees the fault."""

    decided_by: Side | None
    """The end that finds out by itself; None: either may."""
    server: Explanation | None = None
    client: Explanation | None = None

    def words(self, side: Side) -> Explanation:
        """Return what one end says."""
        found = self.server if side is Side.SERVER else self.client
        assert found is not None, "an end gives only verdicts that it has words for"
        return found


def _it(why: str, fix: str, *, waits: bool = False) -> Explanation:
    return Explanation(why=why, fix=fix, waits=waits)


def _later(why: str, fix: str) -> Explanation:
    return Explanation(why=why, fix=fix, waits=True, family=Unavailable)


def _operator(why: str, fix: str) -> Explanation:
    return Explanation(why=why, fix=fix, family=ConfigError)


_ISSUE = "issue one with `secure-dagu pki issue` from the CA that the other end trusts"
_CLOCK = "set both clocks by NTP, or issue the certificate again"
_REISSUE = "issue the client a new one with `secure-dagu pki issue ROLE NAME --force`"
_SERVER_REISSUE = "issue it a new one with `secure-dagu pki issue coordinator NAME --advertise … --force`"
_ROLE = "issue a certificate for the worker, dispatcher or admin role"
_POSES = "if this is our coordinator, issue it a coordinator certificate; otherwise somebody poses as it"
_STRONG = "issue a certificate with an ECDSA P-256, Ed25519 or RSA-3072 key"
_TRUST = "compare peer.client_ca_file on both ends; if they agree, somebody stands in between"
_FRESH_LIST = "run `secure-dagu pki crl --renew` on the host of the CA and bring ca.crl to the coordinator"
_PORTS = "that is a health port (8090 to 8092) or the web port (8080); the gRPC port is 50055 by default"
_RAW_TCP = "forward raw TCP to it (nginx `stream`, haproxy `mode tcp`); do not terminate TLS"

_CLIENT_AT_FAULT = {
    Reason.NO_CLIENT_CERT: Fault(
        decided_by=Side.SERVER,
        server=_it("the client sent no certificate", f"give it one: {_ISSUE}"),
        client=_operator(
            "the server wants a client certificate and we sent none", "set peer.cert_file and peer.key_file"
        ),
    ),
    Reason.UNTRUSTED_CA: Fault(
        decided_by=Side.SERVER,
        server=_it("no CA in peer.client_ca_file stands behind its certificate", f"if it belongs here, {_ISSUE}"),
        client=_it(
            "the server does not trust the CA of our certificate",
            "get a certificate from the coordinator's CA, or add ours to its peer.client_ca_file",
        ),
    ),
    Reason.CERT_EXPIRED: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate has expired", _REISSUE),
        client=_it(
            "the server says that our certificate has expired",
            "issue a new one with `secure-dagu pki issue ROLE NAME --force`; if it is fresh, compare the clocks",
        ),
    ),
    Reason.CERT_NOT_YET_VALID: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate is not yet valid", _CLOCK, waits=True),
        client=_later("the server does not take our certificate as valid yet", _CLOCK),
    ),
    Reason.CERT_REVOKED: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate is revoked", "if that is a mistake, issue a new certificate; revocation is final"),
        client=_it("the server says that our certificate is revoked", "have an administrator issue a new one"),
    ),
    Reason.CRL_UNUSABLE: Fault(
        decided_by=Side.SERVER,
        server=_it(
            "the revocation list is past its next update and the grace after it, so nobody can be admitted",
            "run `secure-dagu pki crl --renew` on the host of the CA and bring ca.crl here",
        ),
        client=_later("the coordinator's revocation list is too old, so it admits nobody", _FRESH_LIST),
    ),
    Reason.WRONG_PURPOSE: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate is not for clients (extended key usage lacks clientAuth)", _ROLE),
        client=_it("the server says that our certificate is not for clients", _ROLE),
    ),
    Reason.WEAK_KEY: Fault(
        decided_by=Side.SERVER,
        server=_it("its key, or its CA's key or signature, is too weak", f"if it belongs here, {_STRONG}"),
        client=_it("the key of our certificate is too weak for the server", _STRONG),
    ),
    Reason.BAD_CERTIFICATE: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate does not verify", _ISSUE),
        client=_it("the server refused our certificate", "the coordinator's log has the exact reason"),
    ),
    Reason.NO_IDENTITY: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate names no identity (it has no URI name)", _ISSUE),
        client=_it(
            "the server wants an identity and our certificate names none (it has no URI name)",
            "get a certificate with one spiffe://DOMAIN/ROLE/NAME: `secure-dagu pki issue ROLE NAME`",
        ),
    ),
    Reason.TWO_IDENTITIES: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate names more than one identity", f"exactly one URI name is wanted; {_ISSUE}"),
        client=_it(
            "our certificate names more than one identity",
            "get a certificate with exactly one URI name: `secure-dagu pki issue ROLE NAME`",
        ),
    ),
    Reason.FOREIGN_DOMAIN: Fault(
        decided_by=Side.SERVER,
        server=_it("its identity belongs to another trust domain", f"if it belongs here, {_ISSUE}"),
        client=_it(
            "our identity belongs to another trust domain than the coordinator's",
            "get a certificate from the coordinator's CA, or dial the coordinator of our own trust domain",
        ),
    ),
    Reason.BAD_IDENTITY: Fault(
        decided_by=Side.SERVER,
        server=_it("its certificate does not carry a spiffe URI with a known role", _ISSUE),
        client=_it(
            "the server trusts the CA of our certificate but not what it says",
            "it must carry exactly one spiffe://DOMAIN/ROLE/NAME; the coordinator's log has the exact words",
        ),
    ),
}

_SERVER_AT_FAULT = {
    Reason.UNTRUSTED_SERVER: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client does not trust the CA of our certificate", _TRUST),
        client=_it("no CA in our CA file stands behind the server's certificate", _TRUST),
    ),
    Reason.NAME_MISMATCH: Fault(
        decided_by=Side.CLIENT,
        server=_it(
            "the client dialled a name that our certificate does not have",
            "issue the coordinator's certificate with `--advertise` for each name that workers dial",
        ),
        client=_it(
            "the server's certificate is for other names",
            "dial one of its names, or issue it for this one: `secure-dagu pki issue coordinator NAME --advertise …`",
        ),
    ),
    Reason.SERVER_EXPIRED: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client says that our certificate has expired", f"{_SERVER_REISSUE}, or compare the clocks"),
        client=_it("the server's certificate has expired", _SERVER_REISSUE),
    ),
    Reason.SERVER_NOT_YET_VALID: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client does not take our certificate as valid yet", _CLOCK, waits=True),
        client=_later("the server's certificate is not yet valid", _CLOCK),
    ),
    Reason.SERVER_REVOKED: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client says that our certificate is revoked", _SERVER_REISSUE),
        client=_it("the server's certificate is revoked", "issue the coordinator a new one"),
    ),
    Reason.CLIENT_CRL_UNUSABLE: Fault(
        decided_by=Side.CLIENT,
        client=_it(
            "our revocation list is past its next update and the grace after it",
            "bring a fresh ca.crl here: `secure-dagu pki crl --renew` on the host of the CA makes it",
        ),
    ),
    Reason.SERVER_WRONG_PURPOSE: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client says that our certificate is not for servers", _SERVER_REISSUE),
        client=_it("the server's certificate is not for servers (extended key usage lacks serverAuth)", _POSES),
    ),
    Reason.SERVER_WEAK_KEY: Fault(
        decided_by=Side.CLIENT,
        server=_it("the key of our certificate is too weak for the client", _STRONG),
        client=_it("the server's key, or its CA's key or signature, is too weak", f"on the coordinator, {_STRONG}"),
    ),
    Reason.SERVER_BAD_CERTIFICATE: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client refused our certificate", "read the client's log for what it holds against it"),
        client=_it(
            "the server's certificate does not verify", "issue it again with `secure-dagu pki issue coordinator`"
        ),
    ),
    Reason.NOT_A_COORDINATOR: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client says that our certificate does not name a coordinator", _SERVER_REISSUE),
        client=_it("the server's certificate does not name a coordinator", _POSES),
    ),
}

_PROTOCOLS = {
    Reason.PLAINTEXT_CLIENT: Fault(
        decided_by=Side.SERVER,
        server=_it(
            "the client speaks without TLS to a port that speaks nothing else",
            "remove `peer.insecure` from the client and give it a certificate",
        ),
        client=_operator(
            "we speak without TLS (`peer.insecure`) and the server wants TLS",
            "remove `peer.insecure` here and configure a certificate",
        ),
    ),
    Reason.PLAINTEXT_SERVER: Fault(
        decided_by=None,
        server=_it(
            "the client wants TLS and this port was opened with `peer.insecure`",
            "remove `peer.insecure` here and configure a certificate",
        ),
        client=_operator(
            "the server speaks gRPC without TLS; nothing was sent",
            "remove `peer.insecure` there and configure a certificate (or choose `peer.insecure` here, knowingly)",
        ),
    ),
    Reason.HTTP_CLIENT: Fault(
        decided_by=Side.SERVER,
        server=_it(
            "a plain HTTP client came to the gRPC port",
            "health and metrics are on the health port (8091), the web server is on 8080",
        ),
    ),
    Reason.HTTP_SERVER: Fault(
        decided_by=Side.CLIENT, client=_operator("a plain HTTP server answers on that port", _PORTS)
    ),
    Reason.HTTP_PROXY: Fault(
        decided_by=Side.CLIENT,
        client=_operator("an HTTP reverse proxy or web server answers instead of the coordinator", _RAW_TCP),
    ),
    Reason.NOT_TLS_SERVER: Fault(
        decided_by=Side.CLIENT,
        client=_operator("what answers on that port is not TLS", "check the port (default 50055)"),
    ),
    Reason.NOT_GRPC_SERVER: Fault(
        decided_by=Side.CLIENT,
        client=_operator("what answers on that port does not speak gRPC", "check the port (default 50055)"),
    ),
    Reason.PROTOCOL_VERSION: Fault(
        decided_by=None,
        server=_it("both ends share no TLS version", "update the client, or set the minimum TLS version to 1.2 here"),
        client=_operator(
            "both ends share no TLS version", "update the server, or set the minimum TLS version to 1.2 here"
        ),
    ),
    Reason.NO_SHARED_CIPHER: Fault(
        decided_by=None,
        server=_it("the client offers no cipher suite or group that is allowed here", "update its TLS library"),
        client=_operator("both ends share no cipher suite or group", "update the server's TLS library"),
    ),
    Reason.ALPN: Fault(
        decided_by=None,
        server=_it("the client did not offer HTTP/2 (ALPN h2)", "use a gRPC client; browsers belong on the web port"),
        client=_operator(
            "the server does not speak HTTP/2 over TLS (ALPN h2)",
            "that is an HTTPS port or a proxy that ends TLS; forward TCP untouched instead",
        ),
    ),
}

_WAY = {
    Reason.HANDSHAKE_TIMEOUT: Fault(
        decided_by=None,
        server=_it(
            "the handshake was not finished within its limit", "look for a broken client or a scanner", waits=True
        ),
        client=_later(
            "connected, but the handshake was not finished within its limit",
            "the process may be frozen or the port may belong to something else",
        ),
    ),
    Reason.TRUNCATED: Fault(
        decided_by=None,
        server=_it(
            "the connection ended in the middle of the handshake",
            "look for a device that cuts connections (firewall, inspection), or read the client's log",
            waits=True,
        ),
        client=_later(
            "the connection ended in the middle of the handshake",
            "look for a device that cuts connections (firewall, inspection), or read the coordinator's log",
        ),
    ),
    Reason.OVER_LIMIT: Fault(
        decided_by=None,
        server=_it(
            "too many connections, in total, from this address, or in their handshake",
            "find out who opens them, or raise the limit",
            waits=True,
        ),
        client=_later("too many connections through this dialer", "this is a bug in the caller"),
    ),
    Reason.PROXY_HEADER: Fault(
        decided_by=Side.SERVER,
        server=_it(
            "what comes before TLS is not what was agreed with the forwarder",
            "list those forwarders in coordinator.proxy_protocol_from that send the PROXY protocol, version 2, and no "
            "others (haproxy `send-proxy-v2`)",
        ),
    ),
    Reason.PEER_ALERT: Fault(
        decided_by=Side.CLIENT,
        server=_it("the client refused this server during the handshake", "read its log for what it holds against us"),
    ),
    Reason.PEER_CLOSED: Fault(
        decided_by=None,
        server=_it(
            "the client went away before it said a word",
            "a port check does this; otherwise read the client's log",
            waits=True,
        ),
    ),
    Reason.BACKEND: Fault(
        decided_by=Side.SERVER,
        server=_it(
            "the gRPC server behind this port did not take the connection", "look for its error above", waits=True
        ),
    ),
    Reason.DNS: Fault(
        decided_by=Side.CLIENT,
        client=_later("its name cannot be resolved", "check the spelling and the name server"),
    ),
    Reason.REFUSED: Fault(
        decided_by=Side.CLIENT,
        client=_later("nothing listens on that port", "start the coordinator, or correct the port (default 50055)"),
    ),
    Reason.TIMEOUT: Fault(
        decided_by=Side.CLIENT,
        client=_later("no answer to the connection attempt", "look for a firewall, or a wrong address"),
    ),
    Reason.UNREACHABLE: Fault(
        decided_by=Side.CLIENT,
        client=_later("the network has no way there", "check routes, VPN and interface"),
    ),
    Reason.PROXY_REFUSED: Fault(
        decided_by=Side.CLIENT,
        client=_later(
            "the HTTP proxy opened no way there",
            "let it allow CONNECT to the coordinator's port, correct peer.proxy, or list the coordinator in "
            "peer.no_proxy",
        ),
    ),
    Reason.CLOSED: Fault(
        decided_by=Side.SERVER,
        client=_later(
            "the server closed the connection without a word",
            "read the coordinator's log; behind gRPC's own TLS this can mean that it refuses our certificate",
        ),
    ),
    Reason.OTHER: Fault(
        decided_by=None,
        server=_it("the TLS library gave up", "report it with the detail"),
        client=_it("the TLS library gave up", "report it with the detail"),
    ),
}

FAULTS: Mapping[Reason, Fault] = MappingProxyType({**_CLIENT_AT_FAULT, **_SERVER_AT_FAULT, **_PROTOCOLS, **_WAY})
"""Every fault with its words, in the order of the reference."""


class Verdict(Struct, frozen=True, kw_only=True):
    """Why one handshake or dial ended. `detail` is a fact of this case: names, an alert, a date; never a secret."""

    side: Side
    reason: Reason
    address: str
    detail: str = ""
    subject: str = ""
    """What the refused certificate calls itself, as far as it was seen."""
    serial: int = 0

    @property
    def _words(self) -> Explanation:
        return FAULTS[self.reason].words(self.side)

    @property
    def label(self) -> str:
        """Return the code: in logs, audit, errors, and the metric label (metrics, B.4)."""
        return self.reason.value

    @property
    def what(self) -> str:
        """Say what happened, with the code."""
        if self.side is Side.CLIENT:
            said = f"cannot connect to coordinator {self.address}"
        elif FAULTS[self.reason].decided_by is Side.CLIENT:
            said = f"a client at {self.address} did not accept this coordinator"
        else:
            said = f"a connection from {self.address} was refused"
        return f"{said} ({self.label})"

    @property
    def why(self) -> str:
        """Say why, with the detail."""
        base = self._words.why
        return f"{base} ({self.detail})" if self.detail else base

    @property
    def fix(self) -> str:
        """Say what to do next."""
        return self._words.fix

    @property
    def waits(self) -> bool:
        """Tell whether trying again later, with nothing changed, can help."""
        return self._words.waits

    @property
    def result(self) -> Result:
        """Return the `result` label of a connect attempt."""
        match self.reason:
            case Reason.DNS:
                return "dns"
            case Reason.REFUSED:
                return "refused"
            case Reason.TIMEOUT:
                return "timeout"
            case Reason.UNREACHABLE | Reason.CLOSED | Reason.OVER_LIMIT:
                return "other"
            case _:
                return "tls"

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


class _LinkError(SecureDaguError):
    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.what, why=verdict.why, fix=verdict.fix)
        self.reason = verdict.label


class LinkUnavailable(_LinkError, Unavailable):
    """The coordinator cannot be reached now; waiting can help."""

    code = "link-unavailable"


class LinkRefused(_LinkError, Unauthenticated):
    """One end does not accept the other's certificate; waiting does not help."""

    code = "link-refused"


class LinkMisconfigured(_LinkError, ConfigError):
    """What answers there does not speak what we were told to speak; waiting does not help."""

    code = "link-misconfigured"


LinkError = LinkUnavailable | LinkRefused | LinkMisconfigured


def error_of(verdict: Verdict) -> LinkError:
    """Make the error that a dialer keeps and its callers raise."""
    family = FAULTS[verdict.reason].words(verdict.side).family
    if family is Unavailable:
        return LinkUnavailable(verdict)
    return LinkMisconfigured(verdict) if family is ConfigError else LinkRefused(verdict)
