"""The accept loop: mutual TLS, or plaintext where it was chosen by name; each admitted link gets one private socket.

Limits stand before TLS, because a handshake costs a millisecond of processor time. Every accepted connection is one
task from accept to close; whatever it raises ends that connection alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import logging
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

from secure_dagu.dispatch.address import host_port
from secure_dagu.errors import ConfigError
from secure_dagu.link import context, enrol, private, proxy_header
from secure_dagu.link.context import ServerPolicy, UnsafePlaintext
from secure_dagu.link.handshake import Handshake
from secure_dagu.link.names import spelled
from secure_dagu.link.plaintext import Opening
from secure_dagu.link.register import Register
from secure_dagu.link.relay import End, Relay, TlsEnd, new_buffer
from secure_dagu.security.peer import Peer
from secure_dagu.security.revocation import REASON_OF
from secure_dagu.security.verdict import Reason, Side, Verdict

log = logging.getLogger(__name__)

ACCEPT_ROUND: Final = 64
"""Connections accepted before running ones get their turn."""
EMFILE_PAUSE_S: Final = 0.1
BACKEND_LIMIT_S: Final = 5.0
"""How long the gRPC server may take to accept a private connection."""


class Limits(Struct, frozen=True, kw_only=True):
    """What strangers may make us hold."""

    connections: int = 10_000
    per_address: int = 2_000
    """A NAT gateway or a TCP forwarder brings many workers from one address."""
    handshakes: int = 500
    """In progress at the same time; the rest is closed at once and comes back."""
    enrolments: int = 64
    """Exchanges of `link.enrol` in progress at the same time; the rest is closed at once."""
    enrolment_s: float = enrol.LIMIT_S
    """How long one of them may take."""


class _NoHeader(Exception):
    """A listed forwarder did not say for whom it forwards."""


class Listener:
    """One listening edge. `policy` may be assigned: new connections use the new one, running ones go on."""

    def __init__(
        self,
        *,
        policy: ServerPolicy | UnsafePlaintext,
        backends: Sequence[str],
        directory: Path,
        register: Register,
        limits: Limits,
        group: asyncio.TaskGroup,
        https: Callable[[], ServerPolicy] | None = None,
        forwarders: Sequence[proxy_header.Network] = (),
    ) -> None:
        self.policy = policy
        self._forwarders = forwarders
        self._https = https
        self.register = register
        self.addresses: list[tuple[str, int]] = []
        """Where it listens, with the real port when 0 was asked for."""
        self.connections = 0
        """Accepted and not yet closed, refused ones that still linger included."""
        self.handshakes = 0
        """In progress."""
        self.enrolments = 0
        """Exchanges of `link.enrol` in progress."""
        self.answer: enrol.Answerer | None = None
        """Who answers machines that join or renew; None: their protocols are refused. May be assigned."""
        self._backends, self._directory, self._limits, self._group = itertools.cycle(backends), directory, limits, group
        self._by_address: Counter[str] = Counter()
        self._buffer = new_buffer()
        self._loop = asyncio.get_running_loop()
        self._accepting: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Close the port and cut every link."""
        self.stop_accepting()
        for task in self._serving:
            task.cancel()

    def stop_accepting(self) -> None:
        """Close the port; live links go on."""
        for task in self._accepting:
            task.cancel()

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from these listening sockets."""
        for listening in sockets:
            host, port = listening.getsockname()[:2]
            self.addresses.append((host, port))
            task = self._group.create_task(self._accept(listening), name=f"accept {host}:{port}")
            task.add_done_callback(functools.partial(_close, listening))
            self._accepting.append(task)

    async def _accept(self, listening: socket.socket) -> None:
        taken = 0
        while True:
            try:
                sock, address = await self._loop.sock_accept(listening)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await asyncio.sleep(EMFILE_PAUSE_S)  # descriptors come back when connections close
                continue  # any other error belongs to the one connection that was about to be accepted
            self._admit(sock, address)
            taken += 1
            if taken % ACCEPT_ROUND == 0:
                await asyncio.sleep(0)

    def _admit(self, sock: socket.socket, address: tuple[str, int]) -> None:
        host, port = address[0], address[1]
        remote = host_port(host, port)
        limits, full = self._limits, ""
        if self.connections >= limits.connections:
            full = f"{limits.connections} connections"
        elif self._by_address[host] >= limits.per_address:
            full = f"{limits.per_address} connections from {host}"
        elif self.handshakes >= limits.handshakes:
            full = f"{limits.handshakes} handshakes in progress"
        if full:
            sock.close()
            self.register.refuse(
                Verdict(side=Side.SERVER, reason=Reason.OVER_LIMIT, address=remote, detail=f"limit: {full}")
            )
            return
        self.connections += 1
        self._by_address[host] += 1
        task = self._group.create_task(self._serve(sock, host, remote), name="link")
        self._serving.add(task)
        task.add_done_callback(functools.partial(self._served, sock, host))

    async def _serve(self, sock: socket.socket, host: str, remote: str) -> None:
        try:
            if proxy_header.is_listed(host, self._forwarders):
                remote = await self._behind(sock, remote)
            await self._link(sock, remote)
        except _NoHeader as error:
            self._refuse(remote, Reason.PROXY_HEADER, str(error))
        except OSError as error:
            self._refuse(remote, Reason.PEER_CLOSED, error.strerror or type(error).__name__)
        except Exception as error:  # a bug of ours must cost one connection, not the port: strangers could trigger it
            log.exception("link.failed")
            self._refuse(remote, Reason.OTHER, f"internal: {type(error).__name__}")

    async def _behind(self, sock: socket.socket, forwarder: str) -> str:
        """Return where a connection comes from that a listed forwarder brings.

        Raises:
            _NoHeader: it did not say so.
        """
        self.handshakes += 1
        try:
            source = await proxy_header.read_source(sock)
        except TimeoutError:
            raise _NoHeader("no PROXY protocol header came in time") from None
        except ValueError as error:
            raise _NoHeader(str(error)) from error
        finally:
            self.handshakes -= 1
        if source is None:
            return forwarder
        host, port = source
        return host_port(host, port)

    def _served(self, sock: socket.socket, host: str, task: asyncio.Task[None]) -> None:
        # In a callback, not in the task's `finally`: a task that is cancelled before its first step runs none of it.
        self._serving.discard(task)
        sock.close()
        self.connections -= 1
        self._by_address[host] -= 1
        if not self._by_address[host]:
            del self._by_address[host]

    async def _link(self, sock: socket.socket, remote: str) -> None:
        name = private.name_in(self._directory)
        opening = self._opening(connection=f"unix:{name}", address=remote)
        self.handshakes += 1
        try:
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                await self._loop.connect_accepted_socket(lambda: opening, sock)
            except BaseException:
                sock.close()
                raise
            outcome = await opening.finish()
        except BaseException:
            opening.abort()
            raise
        finally:
            self.handshakes -= 1
        if not isinstance(outcome, Verdict):
            outcome = self._still_stands(outcome)
        if isinstance(outcome, Verdict):
            self.register.refuse(outcome)
            await opening.refuse(outcome)
            return
        if isinstance(opening, Handshake):
            transport, ssl, early = opening.take()
            if opening.protocol in (context.JOIN, context.RENEW):
                await self._enrol(enrol.Exchange(transport, ssl, early, self._buffer), outcome)
                return
            link: End = TlsEnd(self._buffer, ssl, early)
        else:
            transport, early = opening.take()
            link = End(self._buffer, early)
        link.take_over(transport)
        await self._relay(link, outcome, name)

    def _in_use(self) -> ServerPolicy | UnsafePlaintext:
        return self.policy if self._https is None else self._https()

    def _still_stands(self, peer: Peer) -> Peer | Verdict:
        """Judge a peer again whose handshake began under a policy that was replaced meanwhile."""
        policy = self._in_use()
        objection = None if isinstance(policy, UnsafePlaintext) else policy.standing.objection(peer, datetime.now(UTC))
        if objection is None:
            return peer
        return Verdict(
            side=Side.SERVER, reason=REASON_OF[objection], address=peer.address, serial=peer.serial,
            detail="since its handshake began", subject=str(peer.identity or ""),
        )  # fmt: skip

    def _opening(self, *, connection: str, address: str) -> Handshake | Opening:
        policy = self._in_use()
        if isinstance(policy, UnsafePlaintext):
            return Opening(connection=connection, address=address, buffer=self._buffer)
        return Handshake(
            policy, connection=connection, address=address, host=None, buffer=self._buffer,
            enrols=self.answer is not None, https=self._https is not None,
        )  # fmt: skip

    async def _enrol(self, exchange: enrol.Exchange, peer: Peer) -> None:
        answer, full = self.answer, self.enrolments >= self._limits.enrolments
        self.enrolments += 1
        try:
            if answer is None or full:
                self._refuse(
                    peer.address, Reason.OVER_LIMIT, f"limit: {self._limits.enrolments} enrolments in progress"
                )
                await exchange.close()
                return
            verdict = await enrol.serve(exchange, peer, answer, limit_s=self._limits.enrolment_s)
            if verdict is not None:
                self.register.refuse(verdict)
        finally:
            self.enrolments -= 1

    async def _relay(self, link: End, peer: Peer, name: str) -> None:
        back = End(self._buffer)
        relay = Relay(link, back)
        try:
            try:
                await self._to_backend(back, peer, name, relay)
            except (OSError, TimeoutError) as error:
                self._refuse(peer.address, Reason.BACKEND, type(error).__name__)
                return
            await relay.run()
        finally:
            relay.abort()
            self.register.leave(peer)

    async def _to_backend(self, back: End, peer: Peer, name: str, relay: Relay) -> None:
        """Connect to a gRPC server under `name`, which is how it reports the peer of every call."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(name)
            try:
                self.register.enter(peer, relay.cut)  # before connect: the first call may arrive at once
                sock.setblocking(False)
                async with asyncio.timeout(BACKEND_LIMIT_S):
                    await _connect_unix(sock, next(self._backends))
            finally:
                Path(name).unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink in our own folder
            await self._loop.create_unix_connection(lambda: back, sock=sock)
        except BaseException:
            sock.close()
            raise

    def _refuse(self, remote: str, reason: Reason, detail: str) -> None:
        self.register.refuse(Verdict(side=Side.SERVER, reason=reason, address=remote, detail=detail))


def _close(listening: socket.socket, task: asyncio.Task[None]) -> None:
    listening.close()


async def _connect_unix(sock: socket.socket, path: str) -> None:
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(0.01)  # the backlog is full; a unix socket then says so instead of waiting
        else:
            return


@contextlib.asynccontextmanager
async def listen(
    *,
    bind: Sequence[tuple[str, int]],
    policy: ServerPolicy | UnsafePlaintext,
    backends: Sequence[str],
    directory: Path,
    register: Register,
    limits: Limits | None = None,
    https: Callable[[], ServerPolicy] | None = None,
    forwarders: Sequence[proxy_header.Network] = (),
) -> AsyncIterator[Listener]:
    """Listen on every `(host, port)` of `bind` and relay admitted links to the unix sockets `backends`, in turn.

    `directory` is a 0700 folder (`private.folder`) for the names of private connections. On exit the port closes and
    all links are cut; stop the gRPC server before, so that calls have ended. `https`: the backend is an
    HTTP/1.1 server; certificates are asked for but not demanded, under the policy that it returns for each connection.
    `forwarders`: who must say by the PROXY protocol for whom they forward; nobody else may.

    Raises:
        ConfigError: an address cannot be bound (in use by another process, no such address, not allowed).
    """
    private.check(directory)
    _raise_descriptor_limit()
    sockets = _bind(bind)
    async with asyncio.TaskGroup() as group:
        listener = Listener(
            policy=policy,
            backends=backends,
            directory=directory,
            register=register,
            limits=limits or Limits(),
            group=group,
            https=https,
            forwarders=forwarders,
        )
        listener.start(sockets)
        try:
            yield listener
        finally:
            listener.stop()


def _bind(addresses: Sequence[tuple[str, int]]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for host, port in addresses:
            sockets.append(bind_one(host, port))
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def bind_one(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address cannot be bound (in use by another process, no such address, not allowed).
    """
    where = host_port(host, port)
    try:
        found = socket.getaddrinfo(spelled(host) or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"cannot listen on {where}", why=str(error), fix="correct the bind address") from error
    try:
        # SO_REUSEADDR only lets us come back after a restart. SO_REUSEPORT would let a second coordinator share
        # the port without a word: it stays off.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        listening.bind(address)
        listening.listen(1024)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        fix = {
            errno.EADDRINUSE: f"another process listens on port {port}; stop it (`ss -ltnp`) or choose another port",
            errno.EACCES: "ports below 1024 need a privilege; choose a higher one",
            errno.EADDRNOTAVAIL: "this host does not have that address; bind to one that it has",
        }.get(error.errno or 0, "correct the bind address")
        raise ConfigError(f"cannot listen on {where}", why=error.strerror or str(error), fix=fix) from error
    return listening


def _raise_descriptor_limit() -> None:
    # Three descriptors a connection: the soft limit of 1,024 would end at 340 workers.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
