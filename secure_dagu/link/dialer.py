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
from pathlib import Path
from typing import Final

from secure_dagu.link import private, probe
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from secure_dagu.link.handshake import Handshake
from secure_dagu.link.register import Happening, LinkEvent, OnEvent, ignore
from secure_dagu.link.relay import End, Relay, TlsEnd, new_buffer
from secure_dagu.security.peer import Peer
from secure_dagu.security.tls_signs import alert_in, from_error, from_first_bytes, is_tls
from secure_dagu.security.verdict import LinkError, Reason, Result, Side, Verdict, error_of

log = logging.getLogger(__name__)

CONNECT_LIMIT_S: Final = 3.0
"""Name resolution and TCP together: a wrong address must be known within 5 s of the first call (`OwnedRoute`)."""
MAX_ADDRESSES: Final = 4
MAX_LINKS: Final = 64
"""Live links of one dialer; gRPC keeps one, and two while it reconnects."""


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
    ) -> None:
        self.host, self.port, self.policy = host.strip("[]"), port, policy
        self.address = f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
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
        self._path = private.name_in(directory)
        self._group, self._on_event, self._buffer = group, on_event, buffer
        self._loop = asyncio.get_running_loop()
        self._listening = private.listen(self._path)
        self._links: set[asyncio.Task[None]] = set()
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
        connected = await self._connect()
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
            await shake.refuse()
            unnamed = outcome.reason in (Reason.NOT_TLS_SERVER, Reason.CLOSED, Reason.SILENT_SERVER)
            if unnamed and not is_tls(shake.first_bytes):
                return await probe.without_tls(outcome, host=self.host, port=self.port)
            return outcome
        opened, ssl, early = shake.take()
        secure = TlsEnd(self._buffer, ssl, early)
        secure.take_over(opened)
        return secure, opened, outcome

    async def _connect(self) -> socket.socket | Verdict:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                found = await self._loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            return self._verdict(Reason.DNS, error.strerror or "")
        except (TimeoutError, UnicodeError):
            return self._verdict(Reason.DNS, "no answer from the name server, or no host name at all")
        refusal = self._verdict(Reason.UNREACHABLE)
        found = found[:MAX_ADDRESSES]
        for family, kind, proto, _, address in found:
            sock = socket.socket(family, kind, proto)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                async with asyncio.timeout(CONNECT_LIMIT_S / len(found)):
                    await self._loop.sock_connect(sock, address)
            except TimeoutError:
                sock.close()
                refusal = self._verdict(Reason.TIMEOUT, str(address[0]))
            except OSError as error:
                sock.close()
                refused = error.errno == errno.ECONNREFUSED
                refusal = self._verdict(
                    Reason.REFUSED if refused else Reason.UNREACHABLE, f"{address[0]}: {error.strerror}"
                )
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        return refusal

    async def _relay(self, sock: socket.socket, link: End, transport: asyncio.Transport, peer: Peer) -> None:
        back = End(self._buffer)
        relay = Relay(link, back, self._link_ended)
        self.connected += 1
        self.peer = peer
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
            if self.peer is peer:
                self.peer = None
            self._tell(Happening.CLOSED, peer)
        if isinstance(link, _PlainLink) and not link.first:
            silent = self._verdict(Reason.CLOSED, "it said nothing")
            self._note(await probe.with_tls(silent, host=self.host, port=self.port))

    def _link_ended(self, relay: Relay) -> None:
        if relay.tls_error:  # an alert that came after the first silence
            alert = alert_in(relay.tls_error)
            reason = from_error(Side.CLIENT, relay.tls_error, b"")
            self._note(self._verdict(reason, f"alert: {alert}" if alert else relay.tls_error))
        elif self.last_error is None:
            self.last_error = error_of(self._verdict(Reason.CLOSED, "a live link ended"))

    def _heard(self, first: bytes) -> None:
        """Judge a plaintext server by its first bytes, before gRPC sees them."""
        reason = Reason.SERVER_WANTS_TLS if is_tls(first) else from_first_bytes(first)
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
        self, policy: ClientPolicy | UnsafePlaintext, directory: Path, on_event: OnEvent, group: asyncio.TaskGroup
    ) -> None:
        self._policy, self._directory, self._on_event, self._group = policy, directory, on_event, group
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
        )
        self._made.add(made)
        return made

    def use(self, policy: ClientPolicy | UnsafePlaintext) -> None:
        """Swap the policy: the next dials use it, running links go on."""
        self._policy = policy
        for dialer in self._made:
            dialer.policy = policy

    async def close(self) -> None:
        """Close every dialer."""
        for dialer in self._made:
            await dialer.close()


@contextlib.asynccontextmanager
async def dialers(
    *, policy: ClientPolicy | UnsafePlaintext, directory: Path, on_event: OnEvent = ignore
) -> AsyncIterator[Dialers]:
    """Open the way out. `directory` is a 0700 folder (`private.folder`). On exit every link is cut.

    Raises:
        ConfigError: the folder is not ours alone.
    """
    private.check(directory)
    async with asyncio.TaskGroup() as group:
        made = Dialers(policy, directory, on_event, group)
        try:
            yield made
        finally:
            await made.close()
