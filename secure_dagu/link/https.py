"""TLS towards somebody's HTTPS port, for clients that send a token there: the server is always proven.

By the authorities of this host, or by those of one file and no others. Nothing here can switch that off, and nothing
of it writes the secrets of a connection anywhere (`SSLKEYLOGFILE` is not read).
"""

from __future__ import annotations

import ssl
from pathlib import Path

from msgspec import Struct

from secure_dagu.errors import ConfigError
from secure_dagu.link.material import MAX_FILE_BYTES


def client_context(ca: Path | None) -> ssl.SSLContext:
    """Return the context of a client without a certificate. `ca`: whom to believe, PEM; None: this host's authorities.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # names and certificates are checked
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca is None:
        made.set_default_verify_paths()
        return made
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an issuing CA alone may be the anchor, as everywhere here
    try:
        with ca.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode("ascii", "replace")
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"{ca} cannot be used", why=f"it has more than {MAX_FILE_BYTES} bytes")
        made.load_verify_locations(cadata=text)
    except ssl.SSLError:
        raise _no_certificate(ca) from None
    except ValueError:
        raise _no_certificate(ca) from None
    except OSError as error:
        raise ConfigError(
            f"{ca} cannot be read", why=error.strerror or str(error), fix="name the file of the CA, PEM"
        ) from error
    return made


def _no_certificate(ca: Path) -> ConfigError:
    return ConfigError(f"{ca} cannot be used", why="it holds no certificate", fix="name the file of the CA, PEM")


class Fault(Struct, frozen=True, kw_only=True):
    """Why a server was not believed, or did not come to speak TLS."""

    code: str
    why: str
    fix: str


_STRANGER = Fault(
    code="untrusted_server",
    why="no authority that is believed here has signed its certificate",
    fix="name the file of its CA with --ca-file, such as pki/ca.crt of the server's home",
)
_OTHER_NAME = Fault(
    code="name_mismatch",
    why="its certificate is for other names",
    fix="call it by a name that its certificate has, or issue one for this name",
)
_CERTIFICATES = {
    9: Fault(
        code="not_yet_valid", why="its certificate is not valid yet", fix="look at the clocks of this host and of it"
    ),
    10: Fault(
        code="expired", why="its certificate has ended", fix="renew it there; if it is valid, look at this clock"
    ),
    18: _STRANGER,
    19: _STRANGER,
    20: _STRANGER,
    21: _STRANGER,
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
"""By OpenSSL's X509_V_ERR_… numbers."""
_SIGNS = {
    "WRONG_VERSION_NUMBER": Fault(
        code="not_tls", why="what listens there speaks no TLS", fix="correct the port, or let the server speak HTTPS"
    ),
    "TLSV1_ALERT_PROTOCOL_VERSION": Fault(
        code="old_tls", why="it speaks no TLS 1.3", fix="let the server, or the proxy in front of it, speak TLS 1.3"
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": Fault(
        code="wants_certificate",
        why="it takes clients with a certificate only, as a coordinator's own port does",
        fix="name the port of the web server: the REST API is there",
    ),
}
_SIGNS["UNSUPPORTED_PROTOCOL"] = _SIGNS["TLSV1_ALERT_PROTOCOL_VERSION"]
_SIGNS["HTTP_REQUEST"] = _SIGNS["WRONG_VERSION_NUMBER"]

CODES = frozenset({"bad_certificate", "tls", *(one.code for one in (*_CERTIFICATES.values(), *_SIGNS.values()))})
"""Every code of a fault."""


def fault_of(problem: BaseException | None) -> Fault | None:
    """Return what went wrong in TLS, from an error or what caused it; None: it was something else."""
    seen: list[BaseException] = []
    while problem is not None and problem not in seen:
        seen.append(problem)
        if isinstance(problem, ssl.SSLCertVerificationError):
            told = f"its certificate is not good: {problem.verify_message}"
            return _CERTIFICATES.get(
                problem.verify_code, Fault(code="bad_certificate", why=told, fix="let the server have another one")
            )
        if isinstance(problem, ssl.SSLError):
            reason = problem.reason or "no reason given"
            other = f"the TLS library says: {reason.replace('_', ' ').lower()}"
            return _SIGNS.get(reason, Fault(code="tls", why=other, fix="see what listens there"))
        problem = problem.__cause__ or problem.__context__
    return None


class Proven(Struct, frozen=True, kw_only=True):
    """What a live connection says of its server."""

    version: str
    until: str
    """When its certificate ends, as OpenSSL writes it."""


def proven_by(connection: object) -> Proven | None:
    """Return what is known of the server at the other end; None: this is no TLS connection."""
    if not isinstance(connection, ssl.SSLObject | ssl.SSLSocket):
        return None
    certificate = connection.getpeercert() or {}
    return Proven(version=connection.version() or "TLS", until=str(certificate.get("notAfter", "")))
