"""What OpenSSL, an alert or a peer's first bytes say → the reason behind it. Pure.

Each side reads a verify code, an error word or an alert through its own table, so that the deciding side and the other
end name the same cause (transport facts, sections 5 and 8). An alert stands for several causes; what the refused end
knows of its own certificate (`Own`) tells them apart. What no alert can say comes as a last word (`last_word`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from secure_dagu.security.verdict import FAULTS, Reason, Side, Verdict

PROXY_HEADER: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""How the PROXY protocol, version 2, begins."""

_UNTRUSTED_CODES = (2, 18, 19, 20, 21, 24, 27, 30)
"""X509_V_ERR: issuer missing (2, 20), self-signed (18, 19), first certificate unverifiable (21), invalid CA (24),
untrusted (27), authority key id mismatch (30)."""
_CRL_CODES = (3, 8, 11, 12, 33, 35, 36, 44)

_SERVER_VERIFY = {
    9: Reason.CERT_NOT_YET_VALID,
    10: Reason.CERT_EXPIRED,
    23: Reason.CERT_REVOKED,
    26: Reason.WRONG_PURPOSE,
    66: Reason.WEAK_KEY,
    67: Reason.WEAK_KEY,
    68: Reason.WEAK_KEY,
}
_CLIENT_VERIFY = {
    9: Reason.SERVER_NOT_YET_VALID,
    10: Reason.SERVER_EXPIRED,
    23: Reason.SERVER_REVOKED,
    26: Reason.SERVER_WRONG_PURPOSE,
    66: Reason.SERVER_WEAK_KEY,
    67: Reason.SERVER_WEAK_KEY,
    68: Reason.SERVER_WEAK_KEY,
}
"""X509_V_ERR: key of the certificate (66) or of a CA (67) too small, signature digest of a CA too weak (68)."""


def from_verify_code(side: Side, code: int) -> Reason:
    """Read an X509_V_ERR code from the verify callback."""
    if side is Side.SERVER:
        if code in _CRL_CODES:
            return Reason.CRL_UNUSABLE
        return Reason.UNTRUSTED_CA if code in _UNTRUSTED_CODES else _SERVER_VERIFY.get(code, Reason.BAD_CERTIFICATE)
    if code in _UNTRUSTED_CODES:
        return Reason.UNTRUSTED_SERVER
    return _CLIENT_VERIFY.get(code, Reason.SERVER_BAD_CERTIFICATE)


_ABOUT_BOTH = {
    "protocol version": Reason.PROTOCOL_VERSION,
    "insufficient security": Reason.NO_SHARED_CIPHER,
    "handshake failure": Reason.NO_SHARED_CIPHER,
    "no application protocol": Reason.ALPN,
}
_ABOUT_CLIENT = _ABOUT_BOTH | {
    "certificate required": Reason.NO_CLIENT_CERT,
    "unknown ca": Reason.UNTRUSTED_CA,
    "certificate expired": Reason.CERT_EXPIRED,
    "certificate revoked": Reason.CERT_REVOKED,
    "unsupported certificate": Reason.WRONG_PURPOSE,
    # What our own listener's OpenSSL says when a certificate verifies but its identity is refused.
    "internal error": Reason.BAD_IDENTITY,
    "bad certificate": Reason.BAD_CERTIFICATE,
    "certificate unknown": Reason.BAD_CERTIFICATE,
    "access denied": Reason.BAD_CERTIFICATE,
}
_ABOUT_SERVER = _ABOUT_BOTH | {
    "unknown ca": Reason.UNTRUSTED_SERVER,
    "certificate expired": Reason.SERVER_EXPIRED,
    "certificate revoked": Reason.SERVER_REVOKED,
    "unsupported certificate": Reason.SERVER_WRONG_PURPOSE,
    # What our own dialer's OpenSSL says when a certificate verifies but is not that of whom it dialled.
    "internal error": Reason.NAME_MISMATCH,
    "bad certificate": Reason.SERVER_BAD_CERTIFICATE,
    "certificate unknown": Reason.SERVER_BAD_CERTIFICATE,
}
YOUNG: timedelta = timedelta(days=7)
"""`bad certificate` is the alert for one that is not yet valid; of an older one no clock can be that late."""


class Own(Struct, frozen=True, kw_only=True):
    """What an end knows of its own certificate when the other end refuses it."""

    not_before: datetime
    not_after: datetime
    is_weak: bool
    uris: tuple[str, ...]
    other_domain: str = ""
    """The trust domain that the other end proved; empty when it proved none."""
    dialled: str = ""
    """The server name that the client asked for, where we are the server; empty for an address."""
    reached: str = ""
    """Our own address at which the connection came in, where we are the server; not the dialled one behind NAT."""
    covers_dialled: bool | None = None
    """Whether our certificate has that name; None when it is not known."""


def from_alert(side: Side, alert: str, own: Own | None = None) -> Reason:
    """Read an alert that the other end sent to `side`: what it holds against us."""
    if side is Side.SERVER:
        reason = _ABOUT_SERVER.get(alert, Reason.PEER_ALERT)
        if own is None:
            return reason
        if reason is Reason.NAME_MISMATCH and not _names_a_coordinator(own.uris):
            return Reason.NOT_A_COORDINATOR if own.covers_dialled is not False else reason
        if reason is Reason.NAME_MISMATCH and own.covers_dialled:
            return Reason.PEER_ALERT
        if reason is Reason.SERVER_BAD_CERTIFICATE and alert == "bad certificate":
            return _bad_because(own, Reason.SERVER_WEAK_KEY, Reason.SERVER_NOT_YET_VALID) or reason
        return reason
    reason = _ABOUT_CLIENT.get(alert, Reason.OTHER)
    if own is None:
        return reason
    if reason is Reason.BAD_IDENTITY:
        return identity_fault(own.uris, own.other_domain)
    if reason is Reason.BAD_CERTIFICATE and alert == "bad certificate":
        return _bad_because(own, Reason.WEAK_KEY, Reason.CERT_NOT_YET_VALID) or reason
    return reason


def _bad_because(own: Own, weak: Reason, early: Reason) -> Reason | None:
    if own.is_weak:
        return weak
    return early if own.not_before > datetime.now(UTC) - YOUNG else None


def alert_words(side: Side, alert: str, own: Own | None) -> str:
    """Return the detail of a refusal: the alert, and the fact of our own certificate that it is about."""
    said = f"alert: {alert}"
    if own is None:
        return said
    if alert == "certificate expired":
        return f"{said}; ours ends on {own.not_after:%Y-%m-%d %H:%M}Z"
    if alert == "bad certificate":
        return f"{said}; ours begins on {own.not_before:%Y-%m-%d %H:%M}Z"
    if alert == "internal error" and side is Side.SERVER and own.dialled:
        return f"{said}; the client dialled {own.dialled[:253]}"
    if alert == "internal error" and side is Side.SERVER and own.reached:
        return f"{said}; the client dialled an address, and the connection came to {own.reached}"
    return said


def identity_fault(uris: Sequence[str], domain: str) -> Reason:
    """Name what is wrong with the URI names of a certificate whose identity was refused; both ends ask this.

    `domain`: the trust domain that was wanted, empty for any.
    """
    if not uris:
        return Reason.NO_IDENTITY
    if len(uris) > 1:
        return Reason.TWO_IDENTITIES
    if domain and uris[0].startswith("spiffe://") and not uris[0].startswith(f"spiffe://{domain}/"):
        return Reason.FOREIGN_DOMAIN
    return Reason.BAD_IDENTITY


def _names_a_coordinator(uris: Sequence[str]) -> bool:
    return len(uris) == 1 and uris[0].partition("spiffe://")[2].split("/")[1:2] == ["coordinator"]


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


def from_error(side: Side, word: str, first: bytes, own: Own | None = None) -> Reason:
    """Read an OpenSSL error word; `first` are the first bytes that the other end sent."""
    alert = alert_in(word)
    if alert is not None:
        return from_alert(side, alert, own)
    if side is Side.SERVER:
        if word == "peer did not return a certificate":
            return Reason.NO_CLIENT_CERT
        if word in _NOT_TLS and first.startswith(PROXY_HEADER):
            return Reason.PROXY_HEADER
        if word in _NOT_TLS:
            return Reason.HTTP_CLIENT if speaks_http(first) else Reason.PLAINTEXT_CLIENT
        return _ERRORS.get(word, Reason.OTHER)
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


# ── last words: what an end that refuses says where TLS has no alert for it ──────────────────────────────────────────

LAST_WORD_BYTES = 1024
"""A last word is not longer, and the other end looks no further for one."""
_MARK = b"secure-dagu fault="
_CODE = re.compile(rb"secure-dagu fault=([a-z_]{1,32});")
_INADEQUATE_SECURITY = 0xC
"""Error code of HTTP/2: the transport does not meet what this end wants."""


def last_word(verdict: Verdict) -> bytes:
    """Say why in HTTP/2: a GOAWAY with debug data.

    No settings before it: other gRPC clients would print the words, but take the connection for one that stood and
    dial again at once, hundreds of times a second, where they now wait as after a failed dial.
    """
    data = b"%s%s; %s" % (_MARK, verdict.label.encode(), _for_the_other_end(verdict).encode())
    data = data[: LAST_WORD_BYTES - 64]
    header = (8 + len(data)).to_bytes(3, "big") + b"\x07\x00" + bytes(4)
    return header + bytes(4) + _INADEQUATE_SECURITY.to_bytes(4, "big") + data


def http_answer(verdict: Verdict) -> bytes:
    """Say why in HTTP/1.1."""
    body = f"{_MARK.decode()}{verdict.label}; this port speaks gRPC, not HTTP: {verdict.fix}\n".encode()
    head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def told_in(said: bytes) -> Reason | None:
    """Return the fault that a last word names; None when there is no last word in what the server said."""
    found = _CODE.search(said[:LAST_WORD_BYTES])
    if found is None:
        return None
    try:
        reason = Reason(found[1].decode())
    except ValueError:
        return None
    return reason if FAULTS[reason].client is not None else None


def _for_the_other_end(verdict: Verdict) -> str:
    words = FAULTS[verdict.reason].client
    return f"{words.why}; fix: {words.fix}" if words is not None else f"{verdict.why}; fix: {verdict.fix}"
