"""Why a handshake or a dial ended: the closed list of reasons, each with what, why and fix. Pure.

What OpenSSL reports becomes a reason in `security.tls_signs`. A reason's value is its metric label (metrics, B.4).
`waits` says whether trying again without changing anything can help.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from secure_dagu.errors import ConfigError, SecureDaguError, Unauthenticated, Unavailable


class Side(StrEnum):
    """Which end of the link decided."""

    SERVER = "server"
    CLIENT = "client"


class Reason(StrEnum):
    """The closed list. The first block is decided by listeners, the second by dialers."""

    NO_CLIENT_CERT = "no_client_cert"
    UNTRUSTED_CA = "untrusted_ca"
    CERT_EXPIRED = "cert_expired"
    CERT_NOT_YET_VALID = "cert_not_yet_valid"
    CERT_REVOKED = "cert_revoked"
    CRL_UNUSABLE = "crl_unusable"
    WRONG_PURPOSE = "wrong_purpose"
    BAD_CERTIFICATE = "bad_certificate"
    BAD_IDENTITY = "bad_identity"
    PLAINTEXT_CLIENT = "plaintext_client"
    HTTP_CLIENT = "http_client"
    TLS_CLIENT_ON_PLAINTEXT = "tls_client_on_plaintext"
    PROTOCOL_VERSION = "protocol_version"
    NO_SHARED_CIPHER = "no_shared_cipher"
    ALPN = "alpn"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    OVER_LIMIT = "over_limit"
    PEER_ALERT = "peer_alert"
    PEER_CLOSED = "peer_closed"
    BACKEND = "backend"
    OTHER = "other"

    DNS = "dns"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    CLOSED = "closed"
    SILENT_SERVER = "silent_server"
    UNTRUSTED_SERVER = "untrusted_server"
    NAME_MISMATCH = "name_mismatch"
    SERVER_EXPIRED = "server_expired"
    SERVER_NOT_YET_VALID = "server_not_yet_valid"
    SERVER_REVOKED = "server_revoked"
    SERVER_WRONG_PURPOSE = "server_wrong_purpose"
    SERVER_BAD_CERTIFICATE = "server_bad_certificate"
    NOT_A_COORDINATOR = "not_a_coordinator"
    CLIENT_CERT_REQUIRED = "client_cert_required"
    CLIENT_CERT_UNTRUSTED = "client_cert_untrusted"
    CLIENT_CERT_EXPIRED = "client_cert_expired"
    CLIENT_CERT_REVOKED = "client_cert_revoked"
    CLIENT_CERT_WRONG_PURPOSE = "client_cert_wrong_purpose"
    CLIENT_IDENTITY_REFUSED = "client_identity_refused"
    CLIENT_CERT_REFUSED = "client_cert_refused"
    PLAINTEXT_SERVER = "plaintext_server"
    HTTP_SERVER = "http_server"
    NOT_TLS_SERVER = "not_tls_server"
    NOT_GRPC_SERVER = "not_grpc_server"
    SERVER_WANTS_TLS = "server_wants_tls"


Result = Literal["ok", "refused", "dns", "tls", "timeout", "other"]
"""The `result` label of `secure_dagu_client_connect_attempts_total` (metrics, C.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The words for one reason on one side."""

    why: str
    fix: str
    waits: bool = False
    family: type[SecureDaguError] = Unauthenticated
    """Whose move it is, on the client: nobody's (Unavailable), the operator's (ConfigError), or the holder's."""


_ISSUE = "issue one with `secure-dagu pki issue` from the CA that the other end trusts"
_CLOCK = "set both clocks by NTP, or issue the certificate again"

_SERVER: dict[Reason, Explanation] = {
    Reason.NO_CLIENT_CERT: Explanation(why="the client sent no certificate", fix=f"give it one: {_ISSUE}"),
    Reason.UNTRUSTED_CA: Explanation(
        why="no CA in peer.client_ca_file stands behind its certificate", fix=f"if it belongs here, {_ISSUE}"
    ),
    Reason.CERT_EXPIRED: Explanation(
        why="its certificate has expired",
        fix="issue the client a new one with `secure-dagu pki issue ROLE NAME --force`",
    ),
    Reason.CERT_NOT_YET_VALID: Explanation(why="its certificate is not yet valid", fix=_CLOCK, waits=True),
    Reason.CERT_REVOKED: Explanation(
        why="its certificate is revoked", fix="if that is a mistake, issue a new certificate; revocation is final"
    ),
    Reason.CRL_UNUSABLE: Explanation(
        why="the revocation list is missing, stale or not signed by its CA, so nobody can be admitted",
        fix="publish a fresh revocation list",
    ),
    Reason.WRONG_PURPOSE: Explanation(
        why="its certificate is not for clients (extended key usage lacks clientAuth)",
        fix="issue a certificate for the worker, dispatcher or admin role",
    ),
    Reason.BAD_CERTIFICATE: Explanation(why="its certificate does not verify", fix=_ISSUE),
    Reason.BAD_IDENTITY: Explanation(
        why="its certificate does not carry exactly one spiffe URI with a known role", fix=_ISSUE
    ),
    Reason.PLAINTEXT_CLIENT: Explanation(
        why="the client speaks without TLS to a port that speaks nothing else",
        fix="remove `peer.insecure` from the client and give it a certificate",
    ),
    Reason.HTTP_CLIENT: Explanation(
        why="a plain HTTP client came to the gRPC port",
        fix="health and metrics are on the health port (8091), the web server is on 8080",
    ),
    Reason.TLS_CLIENT_ON_PLAINTEXT: Explanation(
        why="the client wants TLS and this port was opened with `peer.insecure`",
        fix="remove `peer.insecure` here and configure a certificate",
    ),
    Reason.PROTOCOL_VERSION: Explanation(
        why="the client offers only TLS versions below the minimum",
        fix="update the client, or set the minimum TLS version to 1.2 here",
    ),
    Reason.NO_SHARED_CIPHER: Explanation(
        why="the client offers no cipher suite or group that is allowed here", fix="update the client's TLS library"
    ),
    Reason.ALPN: Explanation(
        why="the client did not offer HTTP/2 (ALPN h2)", fix="use a gRPC client; browsers belong on the web port"
    ),
    Reason.HANDSHAKE_TIMEOUT: Explanation(
        why="the handshake was not finished within its limit", fix="look for a broken client or a scanner", waits=True
    ),
    Reason.OVER_LIMIT: Explanation(
        why="too many connections, in total, from this address, or in their handshake",
        fix="find out who opens them, or raise the limit",
        waits=True,
    ),
    Reason.PEER_ALERT: Explanation(
        why="the client refused this server during the handshake",
        fix="read the client's log for what it holds against us",
    ),
    Reason.PEER_CLOSED: Explanation(
        why="the client went away during the handshake",
        fix="a port check does this; otherwise read the client's log",
        waits=True,
    ),
    Reason.BACKEND: Explanation(
        why="the gRPC server behind this port did not take the connection", fix="look for its error above", waits=True
    ),
    Reason.OTHER: Explanation(why="the TLS library gave up", fix="report it with the detail"),
}

_CLIENT: dict[Reason, Explanation] = {
    Reason.DNS: Explanation(
        why="its name cannot be resolved", fix="check the spelling and the name server", waits=True, family=Unavailable
    ),
    Reason.REFUSED: Explanation(
        why="nothing listens on that port",
        fix="start the coordinator, or correct the port (default 50055)",
        waits=True,
        family=Unavailable,
    ),
    Reason.TIMEOUT: Explanation(
        why="no answer to the connection attempt",
        fix="look for a firewall, or a wrong address",
        waits=True,
        family=Unavailable,
    ),
    Reason.UNREACHABLE: Explanation(
        why="the network has no way there", fix="check routes, VPN and interface", waits=True, family=Unavailable
    ),
    Reason.CLOSED: Explanation(
        why="the server closed the connection without a word",
        fix="read the coordinator's log; behind gRPC's own TLS this can mean that it refuses our certificate",
        waits=True,
        family=Unavailable,
    ),
    Reason.SILENT_SERVER: Explanation(
        why="connected, but the server says nothing",
        fix="the process may be frozen or the port may belong to something else",
        waits=True,
        family=Unavailable,
    ),
    Reason.UNTRUSTED_SERVER: Explanation(
        why="no CA in our CA file stands behind the server's certificate",
        fix="compare peer.client_ca_file on both ends; if they agree, somebody stands in between",
    ),
    Reason.NAME_MISMATCH: Explanation(
        why="the server's certificate is for other names",
        fix="dial one of its names, or issue it for this one: `secure-dagu pki issue coordinator NAME --advertise …`",
    ),
    Reason.SERVER_EXPIRED: Explanation(
        why="the server's certificate has expired",
        fix="issue it a new one with `secure-dagu pki issue coordinator NAME --advertise … --force`",
    ),
    Reason.SERVER_NOT_YET_VALID: Explanation(
        why="the server's certificate is not yet valid", fix=_CLOCK, waits=True, family=Unavailable
    ),
    Reason.SERVER_REVOKED: Explanation(
        why="the server's certificate is revoked", fix="issue the coordinator a new one"
    ),
    Reason.SERVER_WRONG_PURPOSE: Explanation(
        why="the server's certificate is not for servers (extended key usage lacks serverAuth)",
        fix="if this is our coordinator, issue it a coordinator certificate; otherwise somebody poses as it",
    ),
    Reason.SERVER_BAD_CERTIFICATE: Explanation(
        why="the server's certificate does not verify", fix="issue it again with `secure-dagu pki issue coordinator`"
    ),
    Reason.NOT_A_COORDINATOR: Explanation(
        why="the server's certificate does not name a coordinator",
        fix="if this is our coordinator, issue it a coordinator certificate; otherwise somebody poses as it",
    ),
    Reason.CLIENT_CERT_REQUIRED: Explanation(
        why="the server wants a client certificate and we sent none",
        fix="set peer.cert_file and peer.key_file",
        family=ConfigError,
    ),
    Reason.CLIENT_CERT_UNTRUSTED: Explanation(
        why="the server does not trust the CA of our certificate",
        fix="get a certificate from the coordinator's CA, or add ours to its peer.client_ca_file",
    ),
    Reason.CLIENT_CERT_EXPIRED: Explanation(
        why="the server says that our certificate is expired or not yet valid",
        fix="issue a new one with `secure-dagu pki issue ROLE NAME --force`; if it is fresh, compare the clocks",
    ),
    Reason.CLIENT_CERT_REVOKED: Explanation(
        why="the server says that our certificate is revoked", fix="have an administrator issue a new one"
    ),
    Reason.CLIENT_CERT_WRONG_PURPOSE: Explanation(
        why="the server says that our certificate is not for clients",
        fix="issue a certificate for the worker, dispatcher or admin role",
    ),
    Reason.CLIENT_IDENTITY_REFUSED: Explanation(
        why="the server trusts the CA of our certificate but not what it says",
        fix="it must carry exactly one spiffe://DOMAIN/ROLE/NAME; the coordinator's log has the exact words",
    ),
    Reason.CLIENT_CERT_REFUSED: Explanation(
        why="the server refused our certificate", fix="the coordinator's log has the exact reason"
    ),
    Reason.PLAINTEXT_SERVER: Explanation(
        why="the server speaks gRPC without TLS; nothing was sent",
        fix="remove `peer.insecure` there and configure a certificate (or choose `peer.insecure` here, knowingly)",
        family=ConfigError,
    ),
    Reason.HTTP_SERVER: Explanation(
        why="a plain HTTP server answers on that port",
        fix="that is a health port (8090 to 8092) or the web port (8080); the gRPC port is 50055 by default",
        family=ConfigError,
    ),
    Reason.NOT_TLS_SERVER: Explanation(
        why="what answers on that port is not TLS", fix="check the port (default 50055)", family=ConfigError
    ),
    Reason.NOT_GRPC_SERVER: Explanation(
        why="what answers on that port does not speak gRPC", fix="check the port (default 50055)", family=ConfigError
    ),
    Reason.SERVER_WANTS_TLS: Explanation(
        why="we speak without TLS (`peer.insecure`) and the server wants TLS",
        fix="remove `peer.insecure` here and configure a certificate",
        family=ConfigError,
    ),
    Reason.ALPN: Explanation(
        why="the server does not speak HTTP/2 over TLS (ALPN h2)",
        fix="that is an HTTPS port or a proxy that ends TLS; forward TCP untouched instead",
        family=ConfigError,
    ),
    Reason.PROTOCOL_VERSION: Explanation(
        why="both ends share no TLS version",
        fix="update the server, or set the minimum TLS version to 1.2 here",
        family=ConfigError,
    ),
    Reason.NO_SHARED_CIPHER: Explanation(
        why="both ends share no cipher suite or group", fix="update the server's TLS library", family=ConfigError
    ),
    Reason.OVER_LIMIT: Explanation(
        why="too many connections through this dialer",
        fix="this is a bug in the caller",
        waits=True,
        family=Unavailable,
    ),
    Reason.OTHER: Explanation(why="the TLS library gave up", fix="report it with the detail"),
}

EXPLANATIONS: dict[Side, dict[Reason, Explanation]] = {Side.SERVER: _SERVER, Side.CLIENT: _CLIENT}
"""Every reason that a side can give, with its words. A reason absent here cannot be given by that side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why one handshake or dial ended. `detail` is a fact of this case: names, an alert, a date; never a secret."""

    side: Side
    reason: Reason
    address: str
    detail: str = ""
    subject: str = ""
    """What the refused certificate calls itself, as far as it was seen."""
    serial: int = 0

    @property
    def label(self) -> str:
        """Return the metric label (metrics, B.4)."""
        return self.reason.value

    @property
    def what(self) -> str:
        """Say what happened."""
        if self.side is Side.SERVER:
            return f"a connection from {self.address} was refused"
        return f"cannot connect to coordinator {self.address}"

    @property
    def why(self) -> str:
        """Say why, with the detail."""
        base = EXPLANATIONS[self.side][self.reason].why
        return f"{base} ({self.detail})" if self.detail else base

    @property
    def fix(self) -> str:
        """Say what to do next."""
        return EXPLANATIONS[self.side][self.reason].fix

    @property
    def waits(self) -> bool:
        """Tell whether trying again later, with nothing changed, can help."""
        return EXPLANATIONS[self.side][self.reason].waits

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
            case Reason.UNREACHABLE | Reason.CLOSED | Reason.SILENT_SERVER | Reason.OVER_LIMIT:
                return "other"
            case _:
                return "tls"

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


class LinkUnavailable(Unavailable):
    """The coordinator cannot be reached now; waiting can help."""

    code = "link-unavailable"

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.what, why=verdict.why, fix=verdict.fix)


class LinkRefused(Unauthenticated):
    """One end does not accept the other's certificate; waiting does not help."""

    code = "link-refused"

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.what, why=verdict.why, fix=verdict.fix)


class LinkMisconfigured(ConfigError):
    """What answers there does not speak what we were told to speak; waiting does not help."""

    code = "link-misconfigured"

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.what, why=verdict.why, fix=verdict.fix)


LinkError = LinkUnavailable | LinkRefused | LinkMisconfigured


def error_of(verdict: Verdict) -> LinkError:
    """Make the error that a dialer keeps and its callers raise."""
    family = EXPLANATIONS[verdict.side][verdict.reason].family
    if family is Unavailable:
        return LinkUnavailable(verdict)
    return LinkMisconfigured(verdict) if family is ConfigError else LinkRefused(verdict)
