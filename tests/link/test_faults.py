"""The fault matrix: every fault over real sockets, and both ends give it the same code.

`MATRIX` has a scene for every row of `security.verdict.FAULTS`; a row without one fails the last test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from msgspec.structs import replace
from OpenSSL import SSL, crypto

from secure_dagu.link import crl, handshake, material
from secure_dagu.link.context import (
    ClientPolicy,
    MinimumTls,
    ServerPolicy,
    UnsafePlaintext,
    client_from,
    client_material,
    server_from,
    server_material,
    server_policy,
)
from secure_dagu.link.listener import Limits
from secure_dagu.security.verdict import FAULTS, LinkRefused, Reason, Side, Verdict, error_of
from tests import needs
from tests.link.certs import CLIENT, DAY, SERVER, Ca, Pair, uri
from tests.link.conftest import Edge, client_of, open_dialer, open_edge, through


def raw_context(
    pair: Pair | None,
    ca: Ca,
    *,
    alpn: tuple[bytes, ...] = (b"h2",),
    highest: int = SSL.TLS1_3_VERSION,
    ciphers: bytes = b"DEFAULT:@SECLEVEL=2",
    accepts: bool = False,
    verify: bool = True,
) -> SSL.Context:
    """Make a context that our own door would refuse to make: the other end's faults must reach the wire."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(highest)
    context.set_cipher_list(ciphers)
    if pair is not None:
        (certificate, *_) = x509.load_pem_x509_certificates(pair.cert.read_bytes())
        context.use_certificate(certificate)
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
        context.use_privatekey(key)  # type: ignore[arg-type]  # an EC or RSA key, as made by `certs`
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(ca.certificate))

    def judge(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
        own: object = connection.get_app_data()
        return (
            own.judge(certificate, code=code if not ok else 0, depth=depth)
            if isinstance(own, handshake.Handshake)
            else bool(ok)
        )

    context.set_verify(SSL.VERIFY_PEER if verify else SSL.VERIFY_NONE, judge)
    if accepts:
        context.set_alpn_select_callback(lambda _, offered: alpn[0] if alpn else SSL.NO_OVERLAPPING_PROTOCOLS)
    elif alpn:
        context.set_alpn_protos(list(alpn))
    return context


WEAK = b"DEFAULT:@SECLEVEL=0"


def facts_of(pair: Pair) -> material.CertificateFacts:
    """Return what an end knows of its own certificate."""
    return material.facts_of(pair.cert, x509.load_pem_x509_certificate(pair.cert.read_bytes()))


def faulty_client(good: ClientPolicy, context: SSL.Context, pair: Pair | None = None) -> ClientPolicy:
    """Return our own dialer's policy over a faulty context."""
    own = facts_of(pair) if pair is not None else good.own
    return replace(good, context=context, minimum=MinimumTls.V1_3, own=own)


def faulty_server(good: ServerPolicy, context: SSL.Context, pair: Pair) -> ServerPolicy:
    """Return our own listener's policy over a faulty context."""
    return replace(good, context=context, trust=(), own=facts_of(pair))


async def fail(policy: ClientPolicy | UnsafePlaintext, host: str, port: int, folder: Path) -> Verdict:
    """Dial through the dialer; return its verdict. gRPC's end must see a close."""
    async with asyncio.timeout(60), open_dialer(policy, host, port, folder) as dialer:
        reader, writer = await through(dialer)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        error = dialer.explain()
        assert error is not None
        verdict = error.verdict
        assert dialer.failures == {verdict.reason: 1}
        assert dialer.attempts["ok"] == 0
        assert f"({verdict.label})" in str(error), "the code is printed"
        assert error.as_dict()["reason"] == verdict.label
        assert error.why
        assert error.fix
        writer.close()
        return verdict


# ── the matrix ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Stage:
    """What a scene plays with."""

    ca: Ca
    other_ca: Ca
    server: ServerPolicy
    client: ClientPolicy
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    async def meet(
        self, server: ServerPolicy | UnsafePlaintext, client: ClientPolicy | UnsafePlaintext, host: str = "localhost"
    ) -> Seen:
        """Let our dialer dial our listener."""
        async with open_edge(server, self.folder) as edge:
            learnt = await fail(client, host, edge.port, self.folder)
            return Seen(server=await self.decided(edge), client=learnt)

    async def decided(self, edge: Edge) -> Verdict:
        """Return the one verdict of the listener."""
        event = await edge.until("refused")
        assert event.verdict is not None
        assert edge.register.refused == {event.verdict.reason: 1}
        assert edge.register.opened == 0
        await edge.idle()
        return event.verdict

    async def with_certificate(self, pair: Pair | None, ciphers: bytes = b"DEFAULT:@SECLEVEL=2") -> Seen:
        """Let a client with this certificate dial."""
        return await self.meet(
            self.server, faulty_client(self.client, raw_context(pair, self.ca, ciphers=ciphers), pair)
        )

    async def with_server(self, pair: Pair, ciphers: bytes = b"DEFAULT:@SECLEVEL=2") -> Seen:
        """Let a server with this certificate be dialled."""
        context = raw_context(pair, self.ca, accepts=True, ciphers=ciphers)
        return await self.meet(faulty_server(self.server, context, pair), self.client)

    def listed_server(self, list_file: Path) -> ServerPolicy:
        """Return a good server that reads a revocation list."""
        pair = self.ca.coordinator()
        found = server_material(cert=pair.cert, key=pair.key, client_ca=self.ca.file)
        return server_from(found, lists=crl.read(list_file, found.trusted), grace=timedelta(hours=1))

    def listed_client(self, list_file: Path) -> ClientPolicy:
        """Return a good client that reads a revocation list."""
        pair = self.ca.worker()
        found = client_material(cert=pair.cert, key=pair.key, ca=self.ca.file)
        return client_from(found, lists=crl.read(list_file, found.trusted), grace=timedelta(hours=1))


@dataclass(kw_only=True)
class Seen:
    """What each end said of a scene; None for an end that was not ours."""

    server: Verdict | None = None
    client: Verdict | None = None


Scene = Callable[[Stage], Awaitable[Seen]]
MATRIX: list[tuple[str, Reason, Scene]] = []


def scene(name: str, reason: Reason) -> Callable[[Scene], Scene]:
    """Enter a scene into the matrix."""

    def enter(play: Scene) -> Scene:
        MATRIX.append((name, reason, play))
        return play

    return enter


def client_with(name: str, reason: Reason, make: Callable[[Stage], Pair | None], ciphers: bytes = b"DEFAULT") -> None:
    """Enter the scene of a client with a faulty certificate."""
    MATRIX.append((name, reason, lambda stage: stage.with_certificate(make(stage), ciphers)))


def server_with(name: str, reason: Reason, make: Callable[[Stage], Pair], ciphers: bytes = b"DEFAULT") -> None:
    """Enter the scene of a server with a faulty certificate."""
    MATRIX.append((name, reason, lambda stage: stage.with_server(make(stage), ciphers)))


W = [uri("worker", "w")]
C = [uri("coordinator", "c")]
HOUR = timedelta(hours=1)

client_with("no certificate", Reason.NO_CLIENT_CERT, lambda s: None)
client_with("wrong CA", Reason.UNTRUSTED_CA, lambda s: s.other_ca.worker())
client_with("expired", Reason.CERT_EXPIRED, lambda s: s.ca.issue(W, begins=-2 * DAY, ends=-DAY))
client_with("not yet valid", Reason.CERT_NOT_YET_VALID, lambda s: s.ca.issue(W, begins=2 * HOUR))
client_with("wrong purpose", Reason.WRONG_PURPOSE, lambda s: s.ca.issue(W, usages=[SERVER]))
client_with("weak key", Reason.WEAK_KEY, lambda s: s.ca.issue(W, is_weak=True), WEAK)
client_with("no URI", Reason.NO_IDENTITY, lambda s: s.ca.issue([], names=["w"]))
client_with("two URIs", Reason.TWO_IDENTITIES, lambda s: s.ca.issue([*W, uri("admin", "w")]))
client_with("unknown role", Reason.BAD_IDENTITY, lambda s: s.ca.issue([uri("root", "w")]))
client_with("no spiffe URI", Reason.BAD_IDENTITY, lambda s: s.ca.issue(["https://test.example/worker/w"]))
client_with("other domain", Reason.FOREIGN_DOMAIN, lambda s: s.ca.issue([uri("worker", "w", "elsewhere.example")]))

server_with("server of a wrong CA", Reason.UNTRUSTED_SERVER, lambda s: s.other_ca.coordinator())
server_with("wrong name", Reason.NAME_MISMATCH, lambda s: s.ca.coordinator("ci.example.com", "10.1.2.3"))
server_with("wildcard", Reason.NAME_MISMATCH, lambda s: s.ca.coordinator("*.localhost", "*"))
server_with("CN only", Reason.NAME_MISMATCH, lambda s: s.ca.issue(C, usages=[SERVER], common_name="localhost"))
server_with(
    "server expired",
    Reason.SERVER_EXPIRED,
    lambda s: s.ca.issue(C, usages=[SERVER], names=["localhost"], begins=-2 * DAY, ends=-DAY),
)
server_with(
    "server not yet valid",
    Reason.SERVER_NOT_YET_VALID,
    lambda s: s.ca.issue(C, usages=[SERVER], names=["localhost"], begins=2 * HOUR),
)
server_with("a worker poses as the server", Reason.SERVER_WRONG_PURPOSE, lambda s: s.ca.issue(W, names=["localhost"]))
server_with(
    "weak server key",
    Reason.SERVER_WEAK_KEY,
    lambda s: s.ca.issue(C, usages=[SERVER], names=["localhost"], is_weak=True),
    WEAK,
)
server_with(
    "a worker's role with a server's purpose",
    Reason.NOT_A_COORDINATOR,
    lambda s: s.ca.issue(W, usages=[SERVER], names=["localhost"]),
)


@scene("revoked", Reason.CERT_REVOKED)
async def revoked(stage: Stage) -> Seen:
    """Let a revoked worker dial."""
    pair = stage.ca.worker()
    return await stage.meet(stage.listed_server(stage.ca.crl(pair)), client_of(pair, stage.ca))


@scene("server revoked", Reason.SERVER_REVOKED)
async def server_revoked(stage: Stage) -> Seen:
    """Dial a revoked coordinator."""
    pair = stage.ca.coordinator()
    server = server_policy(cert=pair.cert, key=pair.key, client_ca=stage.ca.file)
    return await stage.meet(server, stage.listed_client(stage.ca.crl(pair)))


@scene("stale CRL", Reason.CRL_UNUSABLE)
async def stale_list(stage: Stage) -> Seen:
    """Dial a coordinator whose list is too old: no alert has a name for that, so it says it in HTTP/2."""
    return await stage.meet(stage.listed_server(stage.ca.crl(ends=-2 * HOUR)), stage.client)


@scene("stale CRL of the client", Reason.CLIENT_CRL_UNUSABLE)
async def own_stale_list(stage: Stage) -> Seen:
    """Nothing is dialled with a list that is too old."""
    async with open_edge(stage.server, stage.folder) as edge:
        client = stage.listed_client(stage.ca.crl(ends=-2 * HOUR))
        learnt = await fail(client, "localhost", edge.port, stage.folder)
        assert not edge.events
        return Seen(client=learnt)


@scene("TLS 1.2 client", Reason.PROTOCOL_VERSION)
async def old_client(stage: Stage) -> Seen:
    """Offer TLS 1.2 only."""
    old = raw_context(stage.ca.worker(), stage.ca, highest=SSL.TLS1_2_VERSION)
    return await stage.meet(stage.server, faulty_client(stage.client, old))


@scene("TLS 1.2 server", Reason.PROTOCOL_VERSION)
async def old_server(stage: Stage) -> Seen:
    """Dial a server that has TLS 1.2 only."""
    pair = stage.ca.coordinator()
    old = raw_context(pair, stage.ca, highest=SSL.TLS1_2_VERSION, accepts=True)
    return await stage.meet(faulty_server(stage.server, old, pair), stage.client)


@scene("no shared cipher", Reason.NO_SHARED_CIPHER)
async def no_cipher(stage: Stage) -> Seen:
    """Offer only a suite of TLS 1.2 that is not AEAD, to a server with the opt-in for 1.2."""
    old = raw_context(
        stage.ca.worker(), stage.ca, highest=SSL.TLS1_2_VERSION, ciphers=b"ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=1"
    )
    pair = stage.ca.coordinator()
    server = server_policy(cert=pair.cert, key=pair.key, client_ca=stage.ca.file, minimum=MinimumTls.V1_2)
    return await stage.meet(server, faulty_client(stage.client, old))


@scene("not HTTP/2", Reason.ALPN)
async def other_protocol(stage: Stage) -> Seen:
    """Offer another protocol."""
    return await stage.meet(
        stage.server, faulty_client(stage.client, raw_context(stage.ca.worker(), stage.ca, alpn=(b"http/1.1",)))
    )


@scene("no ALPN at all", Reason.ALPN)
async def no_protocol(stage: Stage) -> Seen:
    """Offer no protocol."""
    return await stage.meet(
        stage.server, faulty_client(stage.client, raw_context(stage.ca.worker(), stage.ca, alpn=()))
    )


@scene("plaintext to TLS", Reason.PLAINTEXT_CLIENT)
async def plaintext_to_tls(stage: Stage) -> Seen:
    """Speak without TLS to a TLS port."""
    return await stage.meet(stage.server, UnsafePlaintext())


@scene("TLS to plaintext", Reason.PLAINTEXT_SERVER)
async def tls_to_plaintext(stage: Stage) -> Seen:
    """Speak TLS to a port without."""
    async with open_edge(UnsafePlaintext(), stage.folder) as edge:
        learnt = await fail(stage.client, "localhost", edge.port, stage.folder)
        event = await edge.until("refused")
        assert Reason.HTTP_CLIENT not in edge.register.refused
        return Seen(server=event.verdict, client=learnt)


@scene("HTTP client", Reason.HTTP_CLIENT)
async def http_client(stage: Stage) -> Seen:
    """Come with a browser; the answer has the code too."""
    async with open_edge(stage.server, stage.folder) as edge:
        answer = await ask_http(edge.port)
        assert b"fault=http_client" in answer
        return Seen(server=await stage.decided(edge))


@scene("HTTP client at a plaintext port", Reason.HTTP_CLIENT)
async def http_client_without_tls(stage: Stage) -> Seen:
    """Come with a browser to a port without TLS."""
    async with open_edge(UnsafePlaintext(), stage.folder) as edge:
        assert b"fault=http_client" in await ask_http(edge.port)
        return Seen(server=await stage.decided(edge))


@scene("stalled client", Reason.HANDSHAKE_TIMEOUT)
async def stalled_client(stage: Stage) -> Seen:
    """Stop in the middle of the first message, through a forwarder that passes on no more."""
    stage.monkeypatch.setattr(handshake, "HANDSHAKE_LIMIT_S", 0.3)  # the deadline is a setting of time, not a rule
    async with open_edge(stage.server, stage.folder) as edge, forwarder(edge.port, passes=20, then="wait") as port:
        learnt = await fail(stage.client, "localhost", port, stage.folder)
        return Seen(server=(await edge.until("refused")).verdict, client=learnt)  # a probe without TLS came after it


@scene("truncated", Reason.TRUNCATED)
async def truncated(stage: Stage) -> Seen:
    """Cut the connection in the server's first message."""
    async with (
        open_edge(stage.server, stage.folder) as edge,
        forwarder(edge.port, passes=1 << 16, answers=20, then="close") as port,
    ):
        learnt = await fail(stage.client, "localhost", port, stage.folder)
        return Seen(server=await stage.decided(edge), client=learnt)


@scene("port check", Reason.PEER_CLOSED)
async def port_check(stage: Stage) -> Seen:
    """Connect and leave."""
    async with open_edge(stage.server, stage.folder) as edge:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.close()
        return Seen(server=await stage.decided(edge))


@scene("limit", Reason.OVER_LIMIT)
async def over_limit(stage: Stage) -> Seen:
    """Connect where nobody may."""
    async with open_edge(stage.server, stage.folder, Limits(connections=0)) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        assert await reader.read() == b""
        writer.close()
        return Seen(server=await stage.decided(edge))


@scene("another alert", Reason.PEER_ALERT)
async def another_alert(stage: Stage) -> Seen:
    """Refuse a good coordinator for a reason of one's own."""

    def refuse(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
        return depth > 0

    context = raw_context(stage.ca.worker(), stage.ca)
    context.set_verify(SSL.VERIFY_PEER, refuse)
    async with open_edge(stage.server, stage.folder) as edge:
        await fail(faulty_client(stage.client, context), "localhost", edge.port, stage.folder)
        return Seen(server=await stage.decided(edge))


@scene("backend gone", Reason.BACKEND)
async def no_backend(stage: Stage) -> Seen:
    """Take away the gRPC server."""
    async with open_edge(stage.server, stage.folder) as edge:
        (stage.folder / "backend").unlink()
        async with open_dialer(stage.client, "localhost", edge.port, stage.folder) as dialer:
            reader, writer = await through(dialer)
            assert await reader.read() == b""
            writer.close()
        return Seen(server=(await edge.until("refused")).verdict)


def dialled(name: str, reason: Reason, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> None:
    """Enter the scene of our dialer and some other server."""

    async def play(stage: Stage) -> Seen:
        async with serve(talk) as port:
            return Seen(client=await fail(stage.client, "localhost", port, stage.folder))

    MATRIX.append((name, reason, play))


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as an HTTP/1 server does: bad requests too."""
    await reader.read(1 << 16)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def picky_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer only what looks like HTTP."""
    if not (await reader.read(1 << 16)).startswith(b"\x16"):
        writer.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n")
        await writer.drain()


async def h2c(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greet as a plaintext gRPC server does."""
    writer.write(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64")
    await writer.drain()
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close without a word."""


async def mail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greet as a mail server does."""
    writer.write(b"220 mail.example.com ESMTP\r\n")
    await writer.drain()
    await reader.read(1 << 16)


dialled("HTTP server", Reason.HTTP_SERVER, http)
dialled("HTTP server that knows no TLS", Reason.HTTP_SERVER, picky_http)
dialled("h2c server", Reason.PLAINTEXT_SERVER, h2c)
dialled("server that hangs up", Reason.CLOSED, hang_up)
dialled("mail server", Reason.NOT_TLS_SERVER, mail)


@scene("mail server without TLS", Reason.NOT_GRPC_SERVER)
async def mail_without_tls(stage: Stage) -> Seen:
    """Dial a mail server in plaintext."""
    async with serve(mail) as port:
        return Seen(client=await fail(UnsafePlaintext(), "localhost", port, stage.folder))


@scene("unresolvable", Reason.DNS)
async def unresolvable(stage: Stage) -> Seen:
    """Dial a name that does not exist."""
    return Seen(client=await fail(stage.client, "no-such-host.invalid", 1, stage.folder))


@scene("closed port", Reason.REFUSED)
async def closed_port(stage: Stage) -> Seen:
    """Dial a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return Seen(client=await fail(stage.client, "127.0.0.1", unused.getsockname()[1], stage.folder))


@scene("no answer", Reason.TIMEOUT)
async def no_answer(stage: Stage) -> Seen:
    """Dial a port whose queue is full: the kernel then drops what comes, as a firewall does."""
    stage.monkeypatch.setattr("secure_dagu.link.dialer.CONNECT_LIMIT_S", 0.4)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        return Seen(client=await fail(stage.client, "127.0.0.1", full.getsockname()[1], stage.folder))


@scene("no route", Reason.UNREACHABLE)
async def no_route(stage: Stage) -> Seen:
    """Dial the broadcast address, which TCP never reaches."""
    return Seen(client=await fail(stage.client, "255.255.255.255", 1, stage.folder))


ELSEWHERE = {
    Reason.HTTP_PROXY: "gRPC's answer names it: tests/system/test_doctor.py",
    Reason.BAD_CERTIFICATE: "what no other row covers, such as a refusal by a foreign server: test_unknown_objections",
    Reason.SERVER_BAD_CERTIFICATE: "as above",
    Reason.OTHER: "a bug of ours or of the library",
    Reason.PROXY_HEADER: "it comes before TLS: test_proxy_header",
    Reason.PROXY_REFUSED: "the proxy says it: test_proxying",
}


@pytest.mark.parametrize(("reason", "play"), [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
async def test_both_ends_give_a_fault_the_same_code(
    reason: Reason,
    play: Scene,
    our_ca: Ca,
    other_ca: Ca,
    good_server: ServerPolicy,
    good_client: ClientPolicy,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(
        ca=our_ca, other_ca=other_ca, server=good_server, client=good_client, folder=folder, monkeypatch=monkeypatch
    )
    async with asyncio.timeout(60):
        seen = await play(stage)
    for side, verdict in ((Side.SERVER, seen.server), (Side.CLIENT, seen.client)):
        if verdict is None:
            continue
        assert (verdict.side, verdict.reason) == (side, reason), f"{verdict}"
        assert verdict.address
        assert reason.value in verdict.what
    assert seen.server or seen.client
    if seen.server and seen.server.serial and FAULTS[reason].decided_by is Side.SERVER:
        assert seen.server.subject, "what the certificate calls itself goes into log and audit"


def test_every_fault_has_a_scene_at_each_of_its_ends() -> None:
    played = {reason for _, reason, _ in MATRIX}
    assert played | set(ELSEWHERE) == set(FAULTS)
    assert not played & set(ELSEWHERE)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_fault_has_its_words_and_its_error(reason: Reason) -> None:
    fault = FAULTS[reason]
    assert fault.server or fault.client
    for side, words in ((Side.SERVER, fault.server), (Side.CLIENT, fault.client)):
        if words is None:
            continue
        verdict = Verdict(side=side, reason=reason, address="a:1")
        assert words.why
        assert words.fix
        assert verdict.label == reason.value
        if side is Side.CLIENT:
            assert error_of(verdict).fix == words.fix
            assert (error_of(verdict).exit_code == 5) is words.waits


@pytest.mark.parametrize(
    ("side", "reason", "twice"),
    [(Side.SERVER, Reason.BAD_CERTIFICATE, True), (Side.CLIENT, Reason.SERVER_BAD_CERTIFICATE, False)],
)
async def test_unknown_objections(
    side: Side, reason: Reason, twice: bool, good_server: ServerPolicy, our_ca: Ca, folder: Path
) -> None:
    """What OpenSSL holds against a certificate and we have no word for: a CA that may not sign this name."""
    stage_ca = Ca(folder / "narrow", permitted="elsewhere.example")
    if side is Side.SERVER:
        pair = our_ca.coordinator()
        server = server_policy(cert=pair.cert, key=pair.key, client_ca=stage_ca.file)
        worker = stage_ca.worker()
        client = replace(client_of(our_ca.worker(), our_ca), context=raw_context(worker, our_ca), own=facts_of(worker))
    else:
        pair = stage_ca.coordinator()
        server = faulty_server(good_server, raw_context(pair, our_ca, accepts=True), pair)
        client = client_of(our_ca.worker(), stage_ca)
    async with open_edge(server, folder) as edge:
        learnt = await fail(client, "localhost", edge.port, folder)
        event = await edge.until("refused")
        assert event.verdict is not None
        assert (event.verdict if side is Side.SERVER else learnt).reason is reason
        assert (learnt if side is Side.SERVER else event.verdict).reason is reason
        assert twice == (FAULTS[reason].decided_by is Side.SERVER)


# ── details ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_coordinator_with_a_client_certificate_is_admitted_as_a_client(
    edge: Edge, our_ca: Ca, folder: Path
) -> None:
    """What it may call is the role table's business, per call."""
    pair = our_ca.issue([uri("coordinator", "two")], usages=[CLIENT])
    async with open_dialer(client_of(pair, our_ca), "localhost", edge.port, folder) as dialer:
        assert (await dialer.check()).identity is not None
        event = await edge.until("opened")
        assert str(event.peer and event.peer.identity) == "coordinator/two"


async def test_a_wrong_name_prints_the_names_on_both_ends(our_ca: Ca, good_client: ClientPolicy, folder: Path) -> None:
    pair = our_ca.coordinator("ci.example.com", "10.1.2.3")
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file)
    async with open_edge(policy, folder) as edge, open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        with pytest.raises(LinkRefused, match=r"dialled localhost, the certificate has ci\.example\.com, 10\.1\.2\.3"):
            await dialer.check()
        event = await edge.until("refused")
        assert event.verdict is not None
        assert "the client dialled localhost" in event.verdict.why


async def test_a_wrong_address_is_named_too(our_ca: Ca, good_client: ClientPolicy, folder: Path) -> None:
    pair = our_ca.coordinator("ci.example.com")
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file)
    async with open_edge(policy, folder) as edge:
        assert (await fail(good_client, "127.0.0.1", edge.port, folder)).reason is Reason.NAME_MISMATCH
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.NAME_MISMATCH
        assert "the client dialled an address, and the connection came to 127.0.0.1" in event.verdict.why


async def test_nothing_but_a_client_hello_reaches_a_plaintext_server(good_client: ClientPolicy, folder: Path) -> None:
    """No fallback: a worker that is pointed at an h2c port does not send a byte of RPC (threat T08)."""
    heard: list[bytes] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        heard.append(await reader.read())

    async with serve(record) as port:
        await fail(good_client, "localhost", port, folder)
    assert len(heard) == 1
    assert heard[0][:2] == b"\x16\x03"
    assert b"PRI *" not in heard[0]


@pytest.mark.parametrize(("talk", "reason"), [(http, Reason.HTTP_SERVER), (hang_up, Reason.CLOSED)])
async def test_a_plaintext_dialer_names_what_is_no_grpc_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], reason: Reason, folder: Path
) -> None:
    async with (
        asyncio.timeout(60),
        serve(talk) as port,
        open_dialer(UnsafePlaintext(), "localhost", port, folder) as dialer,
    ):
        reader, writer = await through(dialer)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await reader.read()
        error = dialer.explain()
        assert error is not None
        assert error.verdict.reason is reason
        writer.close()


async def test_a_server_that_does_not_agree_on_http2_is_refused(
    our_ca: Ca, good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    """An HTTPS port, or a proxy that ends TLS."""
    context = raw_context(our_ca.coordinator(), our_ca, alpn=(), accepts=True)
    faulty = replace(good_server, context=context, trust=())
    async with open_edge(faulty, folder) as edge:
        assert (await fail(good_client, "localhost", edge.port, folder)).reason is Reason.ALPN


async def test_tls_1_2_is_accepted_after_the_opt_in(
    edge: Edge, our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    old = raw_context(our_ca.worker(), our_ca, highest=SSL.TLS1_2_VERSION)
    pair = our_ca.coordinator()
    edge.listener.policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file, minimum=MinimumTls.V1_2)
    async with open_dialer(faulty_client(good_client, old), "localhost", edge.port, folder) as dialer:
        peer = await dialer.check()
        assert peer.tls_version == "TLSv1.2"
        assert peer.cipher.startswith("ECDHE-ECDSA-")
        assert "GCM" in peer.cipher or "CHACHA20" in peer.cipher


async def test_a_silent_server_is_named(
    good_client: ClientPolicy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_LIMIT_S", 0.3)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serve(silent) as port:
        assert (await fail(good_client, "localhost", port, folder)).reason is Reason.HANDSHAKE_TIMEOUT


async def test_an_ipv6_literal_is_dialled_and_checked(our_ca: Ca, good_client: ClientPolicy, folder: Path) -> None:
    async with open_dialer(good_client, "::1", 1, folder) as dialer:
        assert dialer.authority == "[::1]:1"
        assert dialer.explain() is None
    verdict = await fail(good_client, "[::1]", 1, folder)
    assert verdict.reason in (Reason.REFUSED, Reason.UNREACHABLE)


# ── clients that are not ours ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_plaintext_grpc_client_of_another_kind_is_counted_and_keeps_its_distance(edge: Edge) -> None:
    """It must take our answer for a failed dial, or it would dial again at once, a thousand times a second."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await check_health(channel)
    await edge.until("refused")
    assert set(edge.register.refused) == {Reason.PLAINTEXT_CLIENT}
    assert edge.register.refused[Reason.PLAINTEXT_CLIENT] <= 2


async def test_a_grpc_client_of_another_kind_keeps_its_distance_from_a_stale_list(our_ca: Ca, folder: Path) -> None:
    pair, worker = our_ca.coordinator(), our_ca.worker()
    found = server_material(cert=pair.cert, key=pair.key, client_ca=our_ca.file)
    policy = server_from(found, lists=crl.read(our_ca.crl(ends=-HOUR), found.trusted))
    files = grpc.ssl_channel_credentials(our_ca.file.read_bytes(), worker.key.read_bytes(), worker.cert.read_bytes())
    async with (
        open_edge(policy, folder) as edge,
        grpc.aio.secure_channel(f"localhost:{edge.port}", files) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await check_health(channel)
        assert edge.register.refused[Reason.CRL_UNUSABLE] in (1, 2)


async def check_health(channel: grpc.aio.Channel) -> None:
    """Ask as any gRPC client does."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
    await call(b"", timeout=1)


@pytest.mark.parametrize(
    ("flags", "reason", "says"),
    [
        ((), Reason.NO_CLIENT_CERT, "certificate required"),
        (("-tls1_2",), Reason.PROTOCOL_VERSION, "protocol version"),
        (("expired",), Reason.CERT_EXPIRED, "certificate expired"),
        (("stranger",), Reason.UNTRUSTED_CA, "unknown ca"),
        (("server",), Reason.WRONG_PURPOSE, "unsupported certificate"),
    ],
)
async def test_openssl_is_told_by_the_alert(
    flags: Sequence[str], reason: Reason, says: str, edge: Edge, our_ca: Ca, other_ca: Ca
) -> None:
    openssl = needs.program("openssl", package="openssl")
    pairs: dict[str, Callable[[], Pair]] = {
        "expired": lambda: our_ca.issue(W, begins=-2 * DAY, ends=-DAY),
        "stranger": other_ca.worker,
        "server": lambda: our_ca.issue(W, usages=[SERVER]),
    }
    words = list(flags)
    if flags and flags[0] in pairs:
        pair = pairs[flags[0]]()
        words = ["-cert", str(pair.cert), "-key", str(pair.key)]
    said = await openssl_client(openssl, edge.port, our_ca, words)
    assert says in said
    event = await edge.until("refused")
    assert event.verdict is not None
    assert event.verdict.reason is reason


async def openssl_client(openssl: str, port: int, ca: Ca, words: Sequence[str]) -> str:
    """Run `openssl s_client`; return what it said."""
    process = await asyncio.create_subprocess_exec(
        openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(ca.file), "-alpn", "h2", *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            return (await process.stdout.read()).decode()
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


# ── other servers ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def serve(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> AsyncIterator[int]:
    """Open some other server on a free port."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            told = talk(reader, writer)
            assert isinstance(told, Awaitable)
            await told
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def forwarder(to: int, *, passes: int, then: str, answers: int = 1 << 16) -> AsyncIterator[int]:
    """Forward TCP: `passes` bytes there, `answers` bytes back, then wait until the edge gives up, or close both."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", to)
        try:
            outer.write((await reader.read(1 << 16))[:passes])
            if then == "wait":
                await inner.read()
            else:
                writer.write((await inner.read(1 << 16))[:answers])
                await writer.drain()
        finally:
            outer.close()

    async with serve(forward) as port:
        yield port


async def ask_http(port: int) -> bytes:
    """Send a request; return the whole answer, whose length must be as it says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert f"Content-Length: {len(body)}".encode() in head
    return body
