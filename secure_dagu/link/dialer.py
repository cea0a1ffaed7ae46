"""The way out: a private unix socket that gRPC dials, and behind it TLS to one coordinator, with a precise verdict.

A dial resolves, connects, proves, reads once before it writes (`handshake`), and only then relays; never in plaintext
unless that was chosen by name. When it fails, the cause is kept *before* gRPC sees the closed socket, because gRPC by
itself can only say `Socket closed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from secure_dagu.dispatch.address import host_port
from secure_dagu.link import private, probe, proxying
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from secure_dagu.link.handshake import Handshake, own_of
from secure_dagu.link.names import spelled
from secure_dagu.link.register import Happening, LinkEvent, OnEvent, ignore
from secure_dagu.link.relay import End, Relay, TlsEnd, new_buffer
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.peer import Peer
from secure_dagu.security.tls_signs import (
    Own,
    alert_in,
    alert_words,
    from_error,
    from_first_bytes,
    is_tls,
)
from secure_dagu.security.verdict import LinkError, Reason, Result, Side, Verdict, error_of

log = logging.getLogger(__name__)

CONNECT_LIMIT_S: Final = 3.0
"""Name resolution and TCP together: a wrong address must be known within 5 s of the first call (`OwnedRoute`)."""
MAX_ADDRESSES: Final = 4
MAX_LINKS: Final = 64
"""Live links of one dialer; gRPC keeps one, and two while it reconnects."""


_CLIENT_REASON: Final = {
    DenyReason.CERT_REVOKED: Reason.SERVER_REVOKED,
    DenyReason.UNTRUSTED_CA: Reason.UNTRUSTED_SERVER,
    DenyReason.CRL_STALE: Reason.CLIENT_CRL_UNUSABLE,
}


class Dialer:
    """The link to one coordinator (`wire.link.Link`). Made by `Dialers.connect`; dialling happens when gRPC connects.

    `policy` may be assigned: the next dial uses it, running links go on.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        policy: ClientPolicy | UnsafePlaintext,
        directory: Path,
        group: asyncio.TaskGroup,
        on_event: OnEvent,
        buffer: memoryview,
        proxy: proxying.Proxy | None = None,
    ) -> None:
        self.host, self.port, self.policy = host.strip("[]"), port, policy
        self.address = host_port(self.host, port)
        self.last_error: LinkError | None = None
        """Why the last dial or link ended badly; None once the server has spoken."""
        self.attempts: Counter[Result] = Counter()
        """Dials by result (metrics, C.2)."""
        self.failures: Counter[Reason] = Counter()
        """Failed dials by reason."""
        self.peer: Peer | None = None
        """The coordinator at the other end of the newest live link."""
        self.connected = 0
        """Live links."""
        self._proxy = proxy if proxy is not None and proxy.serves(self.host, port) else None
        self._path = private.name_in(directory)
        self._group, self._on_event, self._buffer = group, on_event, buffer
        self._loop = asyncio.get_running_loop()
        self._listening = private.listen(self._path)
        self._links: set[asyncio.Task[None]] = set()
        self._live: dict[Relay, Peer] = {}
        self._accepting = group.create_task(self._accept(), name=f"dialer {self.address}")

    @property
    def target(self) -> str:
        """Return what gRPC dials."""
        return f"unix:{self._path}"

    @property
    def authority(self) -> str:
        """Return the coordinator's name, sent as `:authority`."""
        return self.address

    def explain(self) -> LinkError | None:
        """Return why the last dial or link ended badly; None once the server has spoken."""
        return self.last_error

    def proves(self, host: str) -> bool:
        """Tell whether the certificate at the other end of the live link is for this host too."""
        peer = self.peer
        wanted = host.strip("[]").rstrip(".").lower()
        return peer is not None and peer.is_proven and any(name.rstrip(".").lower() == wanted for name in peer.names)

    @property
    def is_closed(self) -> bool:
        """Tell whether `close` has finished."""
        return self._accepting.done()

    async def close(self) -> None:
        """Close the private socket and cut every link."""
        doomed = [self._accepting, *self._links]
        for task in doomed:
            task.cancel()
        Path(self._path).unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink in our own folder
        await asyncio.wait(doomed)
        self._listening.close()  # not before: the loop still watches it, and the number may be another socket's by then

    def cut(self, doomed: Callable[[Peer], bool]) -> int:
        """End every live link whose coordinator is `doomed`; return how many. gRPC dials again."""
        hit = [relay for relay, peer in self._live.items() if doomed(peer)]
        for relay in hit:
            relay.cut()
        return len(hit)

    async def check(self) -> Peer:
        """Dial once without gRPC, and close: for a doctor, and to prove an address before it is used.

        Raises:
            LinkUnavailable, LinkRefused, LinkMisconfigured: the verdict as an error.
        """
        outcome = await self._dial()
        if isinstance(outcome, Verdict):
            raise self._note(outcome)
        _, transport, peer = outcome
        transport.abort()
        return peer

    # ── the private socket ───────────────────────────────────────────────────────────────────────────────────────────

    async def _accept(self) -> None:
        with self._listening:
            while True:
                try:
                    sock, _ = await self._loop.sock_accept(self._listening)
                except OSError:
                    await asyncio.sleep(0.1)  # out of descriptors: gRPC waits in the backlog meanwhile
                    continue
                if len(self._links) >= MAX_LINKS:
                    sock.close()
                    self._note(self._verdict(Reason.OVER_LIMIT))
                    continue
                task = self._group.create_task(self._carry(sock), name=f"link to {self.address}")
                self._links.add(task)
                task.add_done_callback(functools.partial(self._carried, sock))

    async def _carry(self, sock: socket.socket) -> None:
        try:
            outcome = await self._dial()
            if isinstance(outcome, Verdict):
                self._note(outcome)  # before the socket closes: gRPC's caller asks for it at once
            else:
                await self._relay(sock, *outcome)
        except OSError as error:
            self._note(self._verdict(Reason.CLOSED, error.strerror or type(error).__name__))
        except Exception as error:  # a bug of ours costs one link, which gRPC dials again, not the worker
            log.exception("dial.failed")
            self._note(self._verdict(Reason.OTHER, f"internal: {type(error).__name__}"))
        finally:
            sock.close()

    def _carried(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._links.discard(task)
        sock.close()  # a task that was cancelled before its first step has closed nothing

    # ── the dial ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _dial(self) -> tuple[End, asyncio.Transport, Peer] | Verdict:
        """Return an open, proven link, or why there is none."""
        if not isinstance(self.policy, UnsafePlaintext) and self.policy.standing.is_closed(_now()):
            return self._verdict(Reason.CLIENT_CRL_UNUSABLE, "nothing was dialled")
        connected = await reach(self.host, self.port, proxy=self._proxy)
        if isinstance(connected, Verdict):
            return connected
        policy = self.policy
        if isinstance(policy, UnsafePlaintext):
            link = _PlainLink(self._buffer, self._heard)
            transport, _ = await self._loop.create_connection(lambda: link, sock=connected)
            transport.pause_reading()
            return link, transport, Peer(connection="", address=self.address)
        shake = Handshake(policy, connection="", address=self.address, host=self.host, buffer=self._buffer)
        try:
            await self._loop.create_connection(lambda: shake, sock=connected)
            outcome = await shake.finish()
        except BaseException:
            connected.close()
            shake.abort()
            raise
        if isinstance(outcome, Verdict):
            await shake.refuse(outcome)
            if self._proxy is not None:
                return _seen_through(self._proxy, outcome)
            unnamed = outcome.reason in (Reason.NOT_TLS_SERVER, Reason.CLOSED, Reason.HANDSHAKE_TIMEOUT)
            if unnamed and not is_tls(shake.first_bytes):
                return await probe.without_tls(outcome, host=self.host, port=self.port)
            return outcome
        opened, ssl, early = shake.take()
        current = self.policy  # it may have been replaced since the handshake began
        objection = None if isinstance(current, UnsafePlaintext) else current.standing.objection(outcome, _now())
        if objection is not None:
            opened.abort()
            return self._verdict(_CLIENT_REASON[objection], "since its handshake began")
        secure = TlsEnd(self._buffer, ssl, early)
        secure.take_over(opened)
        return secure, opened, outcome

    async def _relay(self, sock: socket.socket, link: End, transport: asyncio.Transport, peer: Peer) -> None:
        back = End(self._buffer)
        relay = Relay(link, back, self._link_ended)
        self.connected += 1
        self.peer = self._live[relay] = peer
        if peer.is_proven:
            self._succeeded()
        self._tell(Happening.OPENED, peer)
        try:
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(lambda: back, sock)
            await relay.run()
        finally:
            relay.abort()
            transport.abort()
            self.connected -= 1
            del self._live[relay]
            if self.peer is peer:
                self.peer = next(reversed(self._live.values()), None)
            self._tell(Happening.CLOSED, peer)
        if isinstance(link, _PlainLink) and not link.first and self._proxy is None:
            silent = self._verdict(Reason.CLOSED, "it said nothing")
            self._note(await probe.with_tls(silent, host=self.host, port=self.port))

    def _link_ended(self, relay: Relay) -> None:
        if relay.tls_error:  # an alert that came after the first silence
            alert, own = alert_in(relay.tls_error), self._own(self._live.get(relay))
            words = alert_words(Side.CLIENT, alert, own) if alert else relay.tls_error
            self._note(self._verdict(from_error(Side.CLIENT, relay.tls_error, b"", own), words))
        elif self.last_error is None:
            self.last_error = error_of(self._verdict(Reason.CLOSED, "a live link ended"))

    def _own(self, peer: Peer | None) -> Own | None:
        policy = self.policy
        if isinstance(policy, UnsafePlaintext):
            return None
        return own_of(policy.own, other_domain=peer.identity.trust_domain if peer and peer.identity else "")

    def _heard(self, first: bytes) -> None:
        """Judge a plaintext server by its first bytes, before gRPC sees them."""
        reason = Reason.PLAINTEXT_CLIENT if is_tls(first) else from_first_bytes(first)
        if reason is Reason.PLAINTEXT_SERVER:
            self._succeeded()
        else:
            self._note(self._verdict(reason or Reason.NOT_GRPC_SERVER))

    def _succeeded(self) -> None:
        self.attempts["ok"] += 1
        self.last_error = None

    # ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _verdict(self, reason: Reason, detail: str = "") -> Verdict:
        return Verdict(side=Side.CLIENT, reason=reason, address=self.address, detail=detail)

    def _note(self, verdict: Verdict) -> LinkError:
        self.last_error = error_of(verdict)
        self.attempts[verdict.result] += 1
        self.failures[verdict.reason] += 1
        self._on_event(LinkEvent(happening=Happening.REFUSED, side=Side.CLIENT, address=self.address, verdict=verdict))
        return self.last_error

    def _tell(self, happening: Happening, peer: Peer) -> None:
        self._on_event(LinkEvent(happening=happening, side=Side.CLIENT, address=self.address, peer=peer))


def _now() -> datetime:
    return datetime.now(UTC)


def _seen_through(proxy: proxying.Proxy, verdict: Verdict) -> Verdict:
    """Say that a proxy stands in between: one that opens TLS itself shows a certificate of its own."""
    words = f"through the proxy {proxy.address}"
    if verdict.reason in (Reason.UNTRUSTED_SERVER, Reason.ALPN):
        words += ", which seems to open TLS itself; let it pass this name through"
    return replace(verdict, detail=f"{verdict.detail}; {words}" if verdict.detail else words)


async def reach(host: str, port: int, *, proxy: proxying.Proxy | None = None) -> socket.socket | Verdict:
    """Resolve and connect within `CONNECT_LIMIT_S`; return the connected socket, or why there is none.

    `proxy`: who is asked for the way, and resolves the name; None: nobody.
    """
    if proxy is None:
        return await _reach(host, port)
    found = await _reach(proxy.host, proxy.port)
    if isinstance(found, Verdict):
        where = host_port(host, port)
        words = f"the proxy {proxy.address} cannot be reached: {found.reason.value}"
        return replace(found, reason=Reason.PROXY_REFUSED, address=where, detail=words)
    try:
        refusal = await proxying.connect(found, proxy, host, port)
    except BaseException:
        found.close()
        raise
    if refusal is not None:
        found.close()
        return refusal
    return found


async def _reach(host: str, port: int) -> socket.socket | Verdict:
    where = host_port(host, port)
    verdict = functools.partial(Verdict, side=Side.CLIENT, address=where)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            found = await loop.getaddrinfo(spelled(host), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return verdict(reason=Reason.DNS, detail=error.strerror or "")
    except (TimeoutError, UnicodeError):
        return verdict(reason=Reason.DNS, detail="no answer from the name server, or no host name at all")
    refusal = verdict(reason=Reason.UNREACHABLE)
    found = found[:MAX_ADDRESSES]
    for family, kind, proto, _, address in found:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(CONNECT_LIMIT_S / len(found)):
                await loop.sock_connect(sock, (spelled(str(address[0])), *address[1:]))
        except TimeoutError:
            sock.close()
            refusal = verdict(reason=Reason.TIMEOUT, detail=str(address[0]))
        except OSError as error:
            sock.close()
            refused = error.errno == errno.ECONNREFUSED
            refusal = verdict(
                reason=Reason.REFUSED if refused else Reason.UNREACHABLE, detail=f"{address[0]}: {error.strerror}"
            )
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    return refusal


class _PlainLink(End):
    """A link without TLS; it shows the server's first bytes to the dialer: they name a server that is none of ours."""

    def __init__(self, buffer: memoryview, heard: Callable[[bytes], None]) -> None:
        super().__init__(buffer)
        self._heard = heard
        self.first = b""

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what came."""
        if not self.first:
            self.first = bytes(self._buffer[: min(nbytes, 16)])
            self._heard(self.first)
        if self._other is None:
            self._early += bytes(self._buffer[:nbytes])  # it spoke before the private end was there
        else:
            super().buffer_updated(nbytes)


class Dialers:
    """Makes dialers that share one private folder and one buffer, and closes them all."""

    def __init__(
        self,
        policy: ClientPolicy | UnsafePlaintext,
        directory: Path,
        on_event: OnEvent,
        group: asyncio.TaskGroup,
        proxy: proxying.Proxy | None,
    ) -> None:
        self._policy, self._directory, self._on_event, self._group = policy, directory, on_event, group
        self._proxy = proxy
        self._buffer = new_buffer()
        self._made: set[Dialer] = set()

    async def connect(self, host: str, port: int) -> Dialer:
        """Make the link to one coordinator (`wire.link.Connect`). `host` is a name or an IP literal."""
        self._made = {dialer for dialer in self._made if not dialer.is_closed}
        made = Dialer(
            host=host,
            port=port,
            policy=self._policy,
            directory=self._directory,
            group=self._group,
            on_event=self._on_event,
            buffer=self._buffer,
            proxy=self._proxy,
        )
        self._made.add(made)
        return made

    def use(self, policy: ClientPolicy | UnsafePlaintext) -> None:
        """Swap the policy: the next dials use it, running links go on."""
        self._policy = policy
        for dialer in self._made:
            dialer.policy = policy

    def cut(self, doomed: Callable[[Peer], bool]) -> int:
        """End every live link whose coordinator is `doomed`; return how many."""
        return sum(dialer.cut(doomed) for dialer in self._made)

    async def close(self) -> None:
        """Close every dialer."""
        for dialer in self._made:
            await dialer.close()


@contextlib.asynccontextmanager
async def dialers(
    *,
    policy: ClientPolicy | UnsafePlaintext,
    directory: Path,
    on_event: OnEvent = ignore,
    proxy: proxying.Proxy | None = None,
) -> AsyncIterator[Dialers]:
    """Open the way out. `directory` is a 0700 folder (`private.folder`). On exit every link is cut.

    `proxy`: through which coordinators are reached, except those that it passes over.

    Raises:
        ConfigError: the folder is not ours alone.
    """
    private.check(directory)
    async with asyncio.TaskGroup() as group:
        made = Dialers(policy, directory, on_event, group, proxy)
        try:
            yield made
        finally:
            await made.close()
