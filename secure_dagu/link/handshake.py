"""One handshake on memory BIOs: → `Peer`, or `Verdict` with its alert flushed to the other end.

The verify callback decides everything about a presented certificate *inside* the handshake: OpenSSL has checked chain,
dates and purpose; we check the identity (both sides) and the dialled name (client). A refusal there becomes an alert:
the other end can name the cause, and a client whose server is the wrong one has not yet shown its own certificate.

TLS 1.3 lets a client finish before the server has looked at the client's certificate. The alert that refuses it is the
first thing that the client reads afterwards, and a write could lose it. So a client reads once before it writes: a gRPC
server speaks first, and after a short silence we go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL, crypto

from secure_dagu.link import context, crl, judgement, material
from secure_dagu.link.context import ClientPolicy, JoinPolicy, NoCommonProtocol, ServerPolicy
from secure_dagu.link.names import server_name
from secure_dagu.security.grants import NOTHING, Grants
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.tls_signs import (
    Own,
    alert_in,
    alert_words,
    from_error,
    from_verify_code,
    http_answer,
    last_word,
    told_in,
)
from secure_dagu.security.verdict import Reason, Side, Verdict

HANDSHAKE_LIMIT_S: Final = 10.0
"""From the first byte to the last; half-open handshakes must not pile up (threat T15)."""
SILENCE_S: Final = 0.5
"""How long a client waits for the server's first word before it goes on."""
LINGER_S: Final = 1.0
"""How long a refused end stays readable: an immediate close sends a reset, and the alert would be lost."""

OWN_DECISION: Final = frozenset({3, 11, 12, 33})
"""X509_V_ERR codes that we overrule: no list of that CA (one that was there before may not vanish, which `crl.read`
sees to), and a list outside its dates (how long one may stay in use is `Standing`'s)."""
UNKNOWN_ROOT: Final = 19
"""X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN: the chain is complete, and its root is in no trust store."""
_FLUSH_BYTES: Final = 1 << 16
_FIRST_BYTES: Final = 64
_HTTPS_ONLY: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: 32\r\n\r\nthis port speaks https, not http"
)
_TLS_ALERT_PROTOCOL_VERSION: Final = b"\x15\x03\x03\x00\x02\x02\x46"


class Handshake(asyncio.BufferedProtocol):
    """Drive one connection's handshake; afterwards `take` what the relay goes on with.

    `host` is the dialled name, None on the accepting side. `buffer` is scratch space shared by all connections of one
    loop: nothing stays in it between two calls. `enrols`: the accepting side also speaks the protocols of `link.enrol`.
    `protocol`: what the dialling side wants to speak. `https`: the accepting side speaks HTTP/1.1 and asks for a
    certificate without demanding one; a `Peer` without identity has shown none.
    """

    def __init__(
        self,
        policy: ServerPolicy | ClientPolicy | JoinPolicy,
        *,
        connection: str,
        address: str,
        host: str | None,
        buffer: memoryview,
        enrols: bool = False,
        protocol: bytes = context.ALPN,
        https: bool = False,
    ) -> None:
        self._pin = policy.pin if isinstance(policy, JoinPolicy) else ""
        self._own = None if isinstance(policy, JoinPolicy) else policy.own
        self._rules = () if isinstance(policy, JoinPolicy) else policy.rules
        # Rules name every trust domain that is admitted; without them it is our own.
        self._trust_domain = "" if isinstance(policy, JoinPolicy) or policy.rules else policy.identity.trust_domain
        self._enrols = enrols
        self._https = https
        self.protocol = context.HTTP if https else context.JOIN if self._pin else protocol
        """What is spoken once the handshake has succeeded."""
        self._connection, self._address, self._host, self._buffer = connection, address, host, buffer
        self._side = Side.SERVER if host is None else Side.CLIENT
        self._ssl = SSL.Connection(policy.context, None)
        self._ssl.set_app_data(self)
        if host is None:
            self._ssl.set_accept_state()
            if https:
                assert isinstance(policy, ServerPolicy), "only servers speak HTTPS here"
                self._ssl.set_verify(SSL.VERIFY_PEER if policy.trust else SSL.VERIFY_NONE)
        else:
            self._ssl.set_connect_state()
            if self.protocol != context.ALPN:
                self._ssl.set_alpn_protos([self.protocol])
            if any(letter.isalpha() for letter in host) and ":" not in host:  # an IP literal is no server name
                self._ssl.set_tlsext_host_name(server_name(host))
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._done: asyncio.Future[Peer | Verdict] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._first = b""
        self._early = b""
        self._peer: Peer | None = None
        self._identity: Identity | None = None
        self._grants: Grants = NOTHING
        self._names: tuple[str, ...] = ()
        self._serial = 0
        self._issuers: dict[int, str] = {}
        self._not_after: datetime | None = None
        self._subject = ""
        self._is_pinned = False
        self._offered = "the client offered other protocols"
        self._objection: tuple[Reason, str] | None = None

    # ── what the owner calls ─────────────────────────────────────────────────────────────────────────────────────────

    async def finish(self) -> Peer | Verdict:
        """Wait for the outcome, at most `HANDSHAKE_LIMIT_S`; then `refuse` after a `Verdict`, `take` after a `Peer`."""
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                return await self._done
        except TimeoutError:
            return self._verdict(Reason.HANDSHAKE_TIMEOUT)

    def take(self) -> tuple[asyncio.Transport, SSL.Connection, bytes]:
        """Hand over the (paused) transport, the TLS state, and what the other end has already said."""
        assert self._transport is not None
        assert self._peer is not None, "only a proven connection is handed over"
        self._ssl.set_app_data(None)  # breaks the reference cycle: an idle connection keeps no handshake alive
        early, self._early = self._early, b""
        return self._transport, self._ssl, early

    async def refuse(self, verdict: Verdict) -> None:
        """Close so that the other end reads our last word: half-close, read on for `LINGER_S`, then close.

        After the handshake there is no alert for a refusal: a client is then told in HTTP/2.
        """
        self._ssl.set_app_data(None)
        if self._side is Side.SERVER and self._peer is not None and self.protocol == context.ALPN:
            with contextlib.suppress(SSL.Error):
                self._ssl.send(last_word(verdict))
            self._flush()
        transport = self._transport
        if transport is not None:
            await say_last_word(transport, self._gone)

    def abort(self) -> None:
        """Drop the connection."""
        self._ssl.set_app_data(None)
        if self._transport is not None:
            self._transport.abort()

    @property
    def first_bytes(self) -> bytes:
        """Return the first bytes that the other end sent: they name a server that is not TLS."""
        return self._first

    # ── what OpenSSL asks ────────────────────────────────────────────────────────────────────────────────────────────

    def judge(self, certificate: crypto.X509, *, code: int, depth: int) -> bool:
        """Decide on one certificate of the presented chain (`context.CertificateJudge`)."""
        if code in OWN_DECISION:
            return True
        if code == UNKNOWN_ROOT and self._pin:
            self._is_pinned = _fingerprint(certificate) == self._pin
            if self._is_pinned:
                return True
        if code != 0:
            found = certificate.to_cryptography()
            self._subject, self._serial = material.subject_of(found), found.serial_number
            reason = from_verify_code(self._side, code)
            detail = f"OpenSSL verify code {code} at depth {depth} for {self._subject!r}"
            if reason in (Reason.CERT_EXPIRED, Reason.SERVER_EXPIRED):
                detail = f"{self._subject!r} ended on {found.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
            elif reason in (Reason.CERT_NOT_YET_VALID, Reason.SERVER_NOT_YET_VALID):
                detail = f"{self._subject!r} begins on {found.not_valid_before_utc:%Y-%m-%d %H:%M}Z"
            self._objection = reason, detail
            return False
        if depth > 0:
            self._issuers[depth] = crl.key_of(certificate.to_cryptography())
            return True
        found = certificate.to_cryptography()
        self._subject, self._serial = material.subject_of(found), found.serial_number
        self._not_after = found.not_valid_after_utc
        self._objection = self._objection_to(found)
        return self._objection is None

    def _objection_to(self, found: x509.Certificate) -> tuple[Reason, str] | None:
        if self._pin and not self._is_pinned:
            return Reason.UNTRUSTED_SERVER, "its chain does not end in the CA of the token"
        names = material.names_of(found)
        judged = judgement.objection_to(
            found, names, host=self._host, rules=self._rules, trust_domain=self._trust_domain
        )
        if isinstance(judged, judgement.Objection):
            return judged.reason, judged.detail
        self._identity, self._grants = judged.identity, judged.grants
        if self._side is Side.CLIENT:
            self._names = (*names.dns, *(str(address) for address in names.ips))
        return None

    def choose(self, offered: Sequence[bytes]) -> bytes:
        """Choose the protocol (`context.CertificateJudge`).

        It decides whether a certificate is asked for: always, but for a machine that joins.
        """
        if self._https:
            if context.HTTP in offered:
                return context.HTTP
            raise NoCommonProtocol
        if context.ALPN in offered:
            return context.ALPN
        if context.JOIN in offered or context.RENEW in offered:
            self._offered = "it wants to enrol, which is not offered here"
        if self._enrols and context.RENEW in offered:
            self.protocol = context.RENEW
        elif self._enrols and context.JOIN in offered and self._ssl.get_protocol_version() == SSL.TLS1_3_VERSION:
            self.protocol = context.JOIN
            self._ssl.set_verify(SSL.VERIFY_NONE)
        else:
            raise NoCommonProtocol
        return self.protocol

    # ── what the transport calls ─────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start: a client speaks first."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class, only of that shape
        self._transport = transport
        if self._side is Side.CLIENT:
            self._advance()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes from the wire; after the outcome they are thrown away."""
        if self._done.done():
            return
        if len(self._first) < _FIRST_BYTES:
            self._first += bytes(self._buffer[: min(nbytes, _FIRST_BYTES - len(self._first))])
        self._ssl.bio_write(self._buffer[:nbytes])
        if self._peer is None:
            self._advance()
        else:
            self._listen()

    def eof_received(self) -> bool:
        """Note that the other end is done; the transport stays ours to close."""
        self._leave("it closed")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self._leave(f"{type(exc).__name__}" if exc else "it closed")

    def _leave(self, how: str) -> None:
        if not self._done.done():
            when = (
                "after the handshake" if self._peer else "before it said a word" if not self._first else "in the middle"
            )
            silent = Reason.CLOSED if self._side is Side.CLIENT else Reason.PEER_CLOSED
            in_the_middle = self._first and not self._peer
            self._settle(self._verdict(Reason.TRUNCATED if in_the_middle else silent, f"{how} {when}"))
        if not self._gone.done():
            self._gone.set_result(None)

    # ── the steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self) -> None:
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            self._flush()
        except NoCommonProtocol:
            self._flush()
            self._settle(self._verdict(Reason.ALPN, self._offered))
        except SSL.Error as error:
            self._flush()
            self._settle(self._failed(error))
        else:
            self._flush()
            self._shaken()

    def _shaken(self) -> None:
        agreed = self._ssl.get_alpn_proto_negotiated()
        if agreed != self.protocol and not (self._https and not agreed):  # a simple HTTP client offers none
            self._settle(self._verdict(Reason.ALPN, "no protocol was agreed"))
            return
        may_be_nobody = self._side is Side.SERVER and self.protocol in (context.JOIN, context.HTTP)
        if self._identity is None and not may_be_nobody:  # cannot happen while verification is on; absent means denied
            self._settle(self._verdict(Reason.OTHER, "no certificate was judged"))
            return
        self._peer = Peer(
            connection=self._connection,
            address=self._address,
            identity=self._identity,
            serial=self._serial,
            issuers=tuple(self._issuers[depth] for depth in sorted(self._issuers)),
            not_after=self._not_after,
            names=self._names,
            grants=self._grants,
            tls_version=self._ssl.get_protocol_version_name(),
            cipher=self._ssl.get_cipher_name() or "",
            group=self._ssl.get_group_name() or "",
            opened_at=datetime.now(UTC),
        )
        if self._side is Side.SERVER:
            self._prove()
        else:
            self._loop.call_later(SILENCE_S, self._prove)
            self._listen()  # the server's first words may have come with its last handshake bytes

    def _listen(self) -> None:
        try:
            self._early += self._ssl.recv(1 << 14)
        except SSL.WantReadError:
            return
        except SSL.ZeroReturnError:
            self._leave("it closed")
        except SSL.Error as error:
            self._flush()
            self._settle(self._failed(error))
        else:
            told = told_in(self._early) if self.protocol == context.ALPN else None
            if told is not None:
                self._settle(self._verdict(told, "in its last word"))
            self._prove()

    def _prove(self) -> None:
        if not self._done.done():
            assert self._transport is not None
            assert self._peer is not None
            self._transport.pause_reading()  # what comes now belongs to the relay
            self._settle(self._peer)

    def _failed(self, error: SSL.Error) -> Verdict:
        word = context.words_of(error)
        if self._objection is not None and word == "certificate verify failed":
            return self._verdict(*self._objection)
        alert = alert_in(word)
        own = self.own() if alert else None
        verdict = self._verdict(
            from_error(self._side, word, self._first, own), alert_words(self._side, alert, own) if alert else word
        )
        if self._side is Side.SERVER and not self._transport_closing():
            assert self._transport is not None
            # OpenSSL itself says nothing to those who are not TLS.
            if verdict.reason is Reason.HTTP_CLIENT:
                self._transport.write(_HTTPS_ONLY if self._https else http_answer(verdict))
            elif verdict.reason is Reason.PLAINTEXT_CLIENT:
                self._transport.write(_TLS_ALERT_PROTOCOL_VERSION)
        return verdict

    def own(self) -> Own | None:
        """Return what we know of our own certificate, for a refusal by the other end."""
        if self._own is None:
            return None
        dialled = self._ssl.get_servername() if self._side is Side.SERVER else None
        return own_of(
            self._own,
            other_domain=self._identity.trust_domain if self._identity else "",
            dialled=dialled.decode("ascii", "replace") if dialled else "",
            reached=self._reached() if self._side is Side.SERVER else "",
        )

    def _reached(self) -> str:
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) and name else ""

    def _verdict(self, reason: Reason, detail: str = "") -> Verdict:
        return Verdict(
            side=self._side,
            reason=reason,
            address=self._address,
            detail=detail,
            subject=self._subject,
            serial=self._serial,
        )

    def _settle(self, outcome: Peer | Verdict) -> None:
        if not self._done.done():
            self._done.set_result(outcome)

    def _flush(self) -> None:
        try:
            data = self._ssl.bio_read(_FLUSH_BYTES)
        except SSL.WantReadError:
            return
        if not self._transport_closing():
            assert self._transport is not None
            self._transport.write(data)

    def _transport_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()


def _fingerprint(certificate: crypto.X509) -> str:
    return certificate.to_cryptography().fingerprint(hashes.SHA256()).hex()


def own_of(facts: material.CertificateFacts, *, other_domain: str = "", dialled: str = "", reached: str = "") -> Own:
    """Return what a refused end knows of its own certificate (`tls_signs.from_alert`)."""
    return Own(
        not_before=facts.not_before,
        not_after=facts.not_after,
        is_weak=facts.is_weak,
        uris=facts.names.uris,
        other_domain=other_domain,
        dialled=dialled,
        covers_dialled=facts.names.cover(dialled) if dialled else None,
        reached=reached,
    )


async def say_last_word(transport: asyncio.Transport, gone: asyncio.Future[None]) -> None:
    """Half-close so that what was written arrives, wait up to `LINGER_S` for the other end's close, then close."""
    try:
        if not transport.is_closing():
            transport.resume_reading()
            if transport.can_write_eof():
                transport.write_eof()
            async with asyncio.timeout(LINGER_S):
                await gone
    except (TimeoutError, OSError):
        pass  # the other end stays, or is gone: both end in the close below
    finally:
        transport.abort()
