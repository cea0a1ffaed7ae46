"""The fault matrix: the exact reason on the deciding side, and the matching cause on the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from secure_dagu.link import handshake
from secure_dagu.link.context import (
    ClientPolicy,
    MinimumTls,
    ServerPolicy,
    UnsafePlaintext,
    server_policy,
)
from secure_dagu.security.verdict import EXPLANATIONS, LinkRefused, Reason, Side, error_of
from tests.link.certs import CLIENT, DAY, SERVER, Ca, Pair, uri
from tests.link.conftest import Edge, client_of, open_dialer, open_edge, through


def raw_context(
    pair: Pair | None,
    ca: Ca,
    *,
    alpn: tuple[bytes, ...] = (b"h2",),
    highest: int = SSL.TLS1_3_VERSION,
    accepts: bool = False,
    verify: bool = True,
) -> SSL.Context:
    """Make a context that our own door would refuse to make: the other end's faults must reach the wire."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(highest)
    if pair is not None:
        (certificate, *_) = x509.load_pem_x509_certificates(pair.cert.read_bytes())
        context.use_certificate(certificate)
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
        context.use_privatekey(key)  # type: ignore[arg-type]  # an EC key, as made by `certs`
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


def faulty_client(good: ClientPolicy, context: SSL.Context) -> ClientPolicy:
    """Return our own dialer's policy over a faulty context."""
    return ClientPolicy(
        context=context, identity=good.identity, own=good.own, trust=good.trust, minimum=MinimumTls.V1_3
    )


async def fail(policy: ClientPolicy | UnsafePlaintext, host: str, port: int, folder: Path) -> tuple[Reason, str]:
    """Dial through the dialer; return its reason and words. gRPC's end must see a close."""
    async with asyncio.timeout(20), open_dialer(policy, host, port, folder) as dialer:
        reader, writer = await through(dialer)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        error = dialer.explain()
        assert error is not None
        assert dialer.failures == {error.verdict.reason: 1}
        assert dialer.attempts["ok"] == 0
        assert error.fix
        writer.close()
        return error.verdict.reason, str(error)


# ── certificates of clients ──────────────────────────────────────────────────────────────────────────────────────────

CLIENT_FAULTS: list[tuple[str, Callable[[Ca, Ca], Pair | None], Reason, Reason]] = [
    ("no certificate", lambda ca, other: None, Reason.NO_CLIENT_CERT, Reason.CLIENT_CERT_REQUIRED),
    ("wrong CA", lambda ca, other: other.worker(), Reason.UNTRUSTED_CA, Reason.CLIENT_CERT_UNTRUSTED),
    (
        "expired",
        lambda ca, other: ca.issue([uri("worker", "w")], begins=-2 * DAY, ends=-DAY),
        Reason.CERT_EXPIRED,
        Reason.CLIENT_CERT_EXPIRED,
    ),
    (
        "not yet valid",
        lambda ca, other: ca.issue([uri("worker", "w")], begins=timedelta(hours=2)),
        Reason.CERT_NOT_YET_VALID,
        Reason.CLIENT_CERT_REFUSED,
    ),
    (
        "wrong purpose",
        lambda ca, other: ca.issue([uri("worker", "w")], usages=[SERVER]),
        Reason.WRONG_PURPOSE,
        Reason.CLIENT_CERT_WRONG_PURPOSE,
    ),
    ("no URI", lambda ca, other: ca.issue([], names=["w"]), Reason.BAD_IDENTITY, Reason.CLIENT_IDENTITY_REFUSED),
    (
        "two URIs",
        lambda ca, other: ca.issue([uri("worker", "w"), uri("admin", "w")]),
        Reason.BAD_IDENTITY,
        Reason.CLIENT_IDENTITY_REFUSED,
    ),
    (
        "unknown role",
        lambda ca, other: ca.issue([uri("root", "w")]),
        Reason.BAD_IDENTITY,
        Reason.CLIENT_IDENTITY_REFUSED,
    ),
    (
        "another trust domain",
        lambda ca, other: ca.issue([uri("worker", "w", "elsewhere.example")]),
        Reason.BAD_IDENTITY,
        Reason.CLIENT_IDENTITY_REFUSED,
    ),
]


@pytest.mark.parametrize(
    ("make", "server", "client"), [row[1:] for row in CLIENT_FAULTS], ids=[r[0] for r in CLIENT_FAULTS]
)
async def test_a_faulty_client_certificate_is_named_on_both_sides(
    make: Callable[[Ca, Ca], Pair | None],
    server: Reason,
    client: Reason,
    edge: Edge,
    good_client: ClientPolicy,
    our_ca: Ca,
    other_ca: Ca,
    folder: Path,
) -> None:
    policy = faulty_client(good_client, raw_context(make(our_ca, other_ca), our_ca))
    seen, _ = await fail(policy, "localhost", edge.port, folder)
    event = await edge.until("refused")
    assert event.verdict is not None
    assert (event.verdict.reason, seen) == (server, client)
    assert edge.register.refused == {server: 1}
    assert edge.register.opened == 0
    await edge.idle()


async def test_a_coordinator_with_a_client_certificate_is_admitted_as_a_client(
    edge: Edge, our_ca: Ca, folder: Path
) -> None:
    """What it may call is the role table's business, per call."""
    pair = our_ca.issue([uri("coordinator", "two")], usages=[CLIENT])
    async with open_dialer(client_of(pair, our_ca), "localhost", edge.port, folder) as dialer:
        assert (await dialer.check()).identity is not None
        event = await edge.until("opened")
        assert str(event.peer and event.peer.identity) == "coordinator/two"


# ── certificates of servers ──────────────────────────────────────────────────────────────────────────────────────────

SERVER_FAULTS: list[tuple[str, Callable[[Ca, Ca], Pair], Reason, str]] = [
    ("wrong CA", lambda ca, other: other.coordinator(), Reason.UNTRUSTED_SERVER, "unknown ca"),
    (
        "wrong name",
        lambda ca, other: ca.coordinator("ci.example.com", "10.1.2.3"),
        Reason.NAME_MISMATCH,
        "internal error",
    ),
    ("wildcard", lambda ca, other: ca.coordinator("*.localhost", "*"), Reason.NAME_MISMATCH, "internal error"),
    (
        "common name only",
        lambda ca, other: ca.issue([uri("coordinator", "c")], usages=[SERVER], common_name="localhost"),
        Reason.NAME_MISMATCH,
        "internal error",
    ),
    (
        "expired",
        lambda ca, other: ca.issue(
            [uri("coordinator", "c")], usages=[SERVER], names=["localhost"], begins=-2 * DAY, ends=-DAY
        ),
        Reason.SERVER_EXPIRED,
        "certificate expired",
    ),
    (
        "not yet valid",
        lambda ca, other: ca.issue(
            [uri("coordinator", "c")], usages=[SERVER], names=["localhost"], begins=timedelta(hours=2)
        ),
        Reason.SERVER_NOT_YET_VALID,
        "bad certificate",
    ),
    (
        "a worker poses as the server",
        lambda ca, other: ca.issue([uri("worker", "w")], names=["localhost"]),
        Reason.SERVER_WRONG_PURPOSE,
        "unsupported certificate",
    ),
    (
        "a worker's role with a server's purpose",
        lambda ca, other: ca.issue([uri("worker", "w")], usages=[SERVER], names=["localhost"]),
        Reason.NOT_A_COORDINATOR,
        "internal error",
    ),
]


@pytest.mark.parametrize(
    ("make", "client", "alert"), [row[1:] for row in SERVER_FAULTS], ids=[r[0] for r in SERVER_FAULTS]
)
async def test_a_faulty_server_is_named_and_learns_it_by_an_alert(
    make: Callable[[Ca, Ca], Pair],
    client: Reason,
    alert: str,
    good_server: ServerPolicy,
    good_client: ClientPolicy,
    our_ca: Ca,
    other_ca: Ca,
    folder: Path,
) -> None:
    context = raw_context(make(our_ca, other_ca), our_ca, accepts=True)
    faulty = ServerPolicy(
        context=context, identity=good_server.identity, own=good_server.own, trust=(), minimum=MinimumTls.V1_3
    )
    async with open_edge(faulty, folder) as edge:
        reason, words = await fail(good_client, "localhost", edge.port, folder)
        assert reason is client
        if words and client is Reason.NAME_MISMATCH and "10.1.2.3" in words:
            assert "ci.example.com, 10.1.2.3" in words
            assert "dialled localhost" in words
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.PEER_ALERT
        assert alert in event.verdict.detail


async def test_a_wrong_name_prints_the_names_that_the_certificate_has(
    our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    pair = our_ca.coordinator("ci.example.com", "10.1.2.3")
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file)
    async with open_edge(policy, folder) as edge, open_dialer(good_client, "127.0.0.1", edge.port, folder) as dialer:
        with pytest.raises(
            LinkRefused, match=r"dialled 127\.0\.0\.1, the certificate has ci\.example\.com, 10\.1\.2\.3"
        ):
            await dialer.check()


# ── other protocols ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def serve(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """Open some other server on a free port."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


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


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (http, Reason.HTTP_SERVER),
        (picky_http, Reason.HTTP_SERVER),
        (h2c, Reason.PLAINTEXT_SERVER),
        (hang_up, Reason.CLOSED),
    ],
)
async def test_a_server_that_is_not_tls_is_named(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    reason: Reason,
    good_client: ClientPolicy,
    folder: Path,
) -> None:
    async with serve(talk) as port:
        seen, _ = await fail(good_client, "localhost", port, folder)
        assert seen is reason


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
        asyncio.timeout(10),
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


async def test_plaintext_to_a_tls_port_is_named_on_both_sides(edge: Edge, folder: Path) -> None:
    assert (await fail(UnsafePlaintext(), "localhost", edge.port, folder))[0] is Reason.SERVER_WANTS_TLS
    event = await edge.until("refused")
    assert event.verdict is not None
    assert event.verdict.reason is Reason.PLAINTEXT_CLIENT


async def test_tls_to_a_plaintext_port_is_named_on_both_sides(good_client: ClientPolicy, folder: Path) -> None:
    async with open_edge(UnsafePlaintext(), folder) as edge:
        assert (await fail(good_client, "localhost", edge.port, folder))[0] is Reason.PLAINTEXT_SERVER
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.TLS_CLIENT_ON_PLAINTEXT


async def test_http_to_the_tls_port_gets_an_answer_and_a_reason(edge: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert f"Content-Length: {len(body)}".encode() in head
    assert (await edge.until("refused")).verdict is not None
    assert edge.register.refused == {Reason.HTTP_CLIENT: 1}
    writer.close()


async def test_http_to_the_plaintext_port_gets_an_answer_and_a_reason(folder: Path) -> None:
    async with open_edge(UnsafePlaintext(), folder) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert edge.register.refused == {Reason.HTTP_CLIENT: 1}
        writer.close()


@pytest.mark.parametrize("alpn", [(b"http/1.1",), ()], ids=["another", "none"])
async def test_a_client_that_does_not_speak_http2_is_refused(
    alpn: tuple[bytes, ...], edge: Edge, our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    policy = faulty_client(good_client, raw_context(our_ca.worker(), our_ca, alpn=alpn))
    assert (await fail(policy, "localhost", edge.port, folder))[0] is Reason.ALPN
    assert (await edge.until("refused")).verdict is not None
    assert edge.register.refused[Reason.ALPN] == 1


async def test_a_server_that_does_not_agree_on_http2_is_refused(
    our_ca: Ca, good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    """An HTTPS port, or a proxy that ends TLS."""
    context = raw_context(our_ca.coordinator(), our_ca, alpn=(), accepts=True)
    faulty = ServerPolicy(
        context=context, identity=good_server.identity, own=good_server.own, trust=(), minimum=MinimumTls.V1_3
    )
    async with open_edge(faulty, folder) as edge:
        assert (await fail(good_client, "localhost", edge.port, folder))[0] is Reason.ALPN


async def test_tls_1_2_is_refused_on_both_sides_and_accepted_after_the_opt_in(
    edge: Edge, our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    old = raw_context(our_ca.worker(), our_ca, highest=SSL.TLS1_2_VERSION)
    assert (await fail(faulty_client(good_client, old), "localhost", edge.port, folder))[0] is Reason.PROTOCOL_VERSION
    assert edge.register.refused == {Reason.PROTOCOL_VERSION: 1}
    pair = our_ca.coordinator()
    edge.listener.policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file, minimum=MinimumTls.V1_2)
    async with open_dialer(faulty_client(good_client, old), "localhost", edge.port, folder) as dialer:
        peer = await dialer.check()
        assert peer.tls_version == "TLSv1.2"
        assert peer.cipher.startswith("ECDHE-ECDSA-")
        assert "GCM" in peer.cipher or "CHACHA20" in peer.cipher


# ── the network ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_name_that_does_not_resolve_is_named(good_client: ClientPolicy, folder: Path) -> None:
    reason, _ = await fail(good_client, "no-such-host.invalid", 1, folder)
    assert reason is Reason.DNS


async def test_a_closed_port_is_named(good_client: ClientPolicy, folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reason, words = await fail(good_client, "127.0.0.1", unused.getsockname()[1], folder)
    assert reason is Reason.REFUSED
    assert "nothing listens" in words


async def test_a_silent_server_is_named(
    good_client: ClientPolicy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_LIMIT_S", 0.3)  # the deadline is a setting of time, not a rule

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serve(silent) as port:
        assert (await fail(good_client, "localhost", port, folder))[0] is Reason.SILENT_SERVER


async def test_an_unfinished_handshake_ends_at_its_limit(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_LIMIT_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01")  # half a hello
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    assert (await edge.until("refused")).verdict is not None
    assert edge.register.refused == {Reason.HANDSHAKE_TIMEOUT: 1}
    writer.close()
    await edge.idle()


async def test_an_ipv6_literal_is_dialled_and_checked(our_ca: Ca, good_client: ClientPolicy, folder: Path) -> None:
    async with open_dialer(good_client, "::1", 1, folder) as dialer:
        assert dialer.authority == "[::1]:1"
        assert dialer.explain() is None
    reason, _ = await fail(good_client, "[::1]", 1, folder)
    assert reason in (Reason.REFUSED, Reason.UNREACHABLE)


@pytest.mark.parametrize("side", list(Side))
def test_every_reason_has_its_words_and_its_error(side: Side) -> None:
    from secure_dagu.security.verdict import Verdict

    for reason, words in EXPLANATIONS[side].items():
        verdict = Verdict(side=side, reason=reason, address="a:1")
        assert words.why
        assert words.fix
        assert verdict.label == reason.value
        if side is Side.CLIENT:
            assert error_of(verdict).fix == words.fix
            assert (error_of(verdict).exit_code == 5) is words.waits
    assert set(EXPLANATIONS[Side.SERVER]) | set(EXPLANATIONS[Side.CLIENT]) == set(Reason)
