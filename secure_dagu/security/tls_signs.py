"""What OpenSSL, an alert or a peer's first bytes say → the reason behind it. Pure.

Each side reads a verify code, an error word or an alert through its own table, so that the deciding side and the other
end name the same cause (transport facts, sections 5 and 8).
"""

from __future__ import annotations

from secure_dagu.security.verdict import Reason, Side

_UNTRUSTED_CODES = (2, 18, 19, 20, 21, 24, 27, 30)
"""X509_V_ERR: issuer missing (2, 20), self-signed (18, 19), first certificate unverifiable (21), invalid CA (24),
untrusted (27), authority key id mismatch (30)."""
_CRL_CODES = (3, 8, 11, 12, 33, 35, 36, 44)

_SERVER_VERIFY = {
    9: Reason.CERT_NOT_YET_VALID,
    10: Reason.CERT_EXPIRED,
    23: Reason.CERT_REVOKED,
    26: Reason.WRONG_PURPOSE,
}
_CLIENT_VERIFY = {
    9: Reason.SERVER_NOT_YET_VALID,
    10: Reason.SERVER_EXPIRED,
    23: Reason.SERVER_REVOKED,
    26: Reason.SERVER_WRONG_PURPOSE,
}


def from_verify_code(side: Side, code: int) -> Reason:
    """Read an X509_V_ERR code from the verify callback."""
    if side is Side.SERVER:
        if code in _CRL_CODES:
            return Reason.CRL_UNUSABLE
        return Reason.UNTRUSTED_CA if code in _UNTRUSTED_CODES else _SERVER_VERIFY.get(code, Reason.BAD_CERTIFICATE)
    if code in _UNTRUSTED_CODES:
        return Reason.UNTRUSTED_SERVER
    return _CLIENT_VERIFY.get(code, Reason.SERVER_BAD_CERTIFICATE)


_ALERTS_ABOUT_US = {
    "certificate required": Reason.CLIENT_CERT_REQUIRED,
    "unknown ca": Reason.CLIENT_CERT_UNTRUSTED,
    "certificate expired": Reason.CLIENT_CERT_EXPIRED,
    "certificate revoked": Reason.CLIENT_CERT_REVOKED,
    "unsupported certificate": Reason.CLIENT_CERT_WRONG_PURPOSE,
    # What our own listener's OpenSSL says when a certificate verifies but its identity is refused.
    "internal error": Reason.CLIENT_IDENTITY_REFUSED,
    "bad certificate": Reason.CLIENT_CERT_REFUSED,
    "certificate unknown": Reason.CLIENT_CERT_REFUSED,
    "access denied": Reason.CLIENT_CERT_REFUSED,
    "protocol version": Reason.PROTOCOL_VERSION,
    "insufficient security": Reason.NO_SHARED_CIPHER,
    "handshake failure": Reason.NO_SHARED_CIPHER,
    "no application protocol": Reason.ALPN,
}
_ERRORS = {
    "unsupported protocol": Reason.PROTOCOL_VERSION,
    "version too low": Reason.PROTOCOL_VERSION,
    "no protocols available": Reason.PROTOCOL_VERSION,
    "no shared cipher": Reason.NO_SHARED_CIPHER,
    "no suitable key share": Reason.NO_SHARED_CIPHER,
    "no suitable groups": Reason.NO_SHARED_CIPHER,
}
_NOT_TLS = ("wrong version number", "packet length too long", "http request", "https proxy request", "bad record type")


def alert_in(word: str) -> str | None:
    """Return the alert's name inside an OpenSSL error word such as `tlsv1 alert unknown ca`; None for other words."""
    _, found, name = word.partition("alert ")
    return name if found else None


def from_error(side: Side, word: str, first: bytes) -> Reason:
    """Read an OpenSSL error word; `first` are the first bytes that the other end sent."""
    alert = alert_in(word)
    if side is Side.SERVER:
        if alert is not None:
            return Reason.PROTOCOL_VERSION if alert == "protocol version" else Reason.PEER_ALERT
        if word == "peer did not return a certificate":
            return Reason.NO_CLIENT_CERT
        if word in _NOT_TLS:
            return Reason.HTTP_CLIENT if speaks_http(first) else Reason.PLAINTEXT_CLIENT
        return _ERRORS.get(word, Reason.OTHER)
    if alert is not None:
        return _ALERTS_ABOUT_US.get(alert, Reason.OTHER)
    if word in _NOT_TLS:
        return from_first_bytes(first) or Reason.NOT_TLS_SERVER
    return _ERRORS.get(word, Reason.OTHER)


def from_first_bytes(first: bytes) -> Reason | None:
    """Name a server that is not TLS by the first bytes it sent; None when they do not tell."""
    if first.startswith(b"HTTP/1"):
        return Reason.HTTP_SERVER
    # An HTTP/2 server speaks first: a frame header whose type byte is 4 (SETTINGS), or 7 (GOAWAY).
    if len(first) >= 9 and first[0] == 0 and first[3] in (4, 7):
        return Reason.PLAINTEXT_SERVER
    return None


def speaks_http(first: bytes) -> bool:
    """Tell whether these first bytes are an HTTP/1 request; the HTTP/2 preface (`PRI *`) is not."""
    method, space, _ = first.partition(b" ")
    return bool(space) and method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"PATCH")


def is_client_hello(first: bytes) -> bool:
    """Tell whether these first bytes start a TLS handshake record."""
    return first[:2] == b"\x16\x03"


def is_tls(first: bytes) -> bool:
    """Tell whether these first bytes are a TLS handshake or alert record."""
    return first[:2] in (b"\x16\x03", b"\x15\x03")
