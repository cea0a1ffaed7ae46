"""The enrolment protocols on the wire: who is asked for a certificate, who is pinned, and what an exchange may cost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from secure_dagu.errors import Refused
from secure_dagu.link import enrol
from secure_dagu.link.context import ClientPolicy, JoinPolicy, MinimumTls, ServerPolicy, join_policy, server_policy
from secure_dagu.link.enrol import MAX_REQUEST, ask
from secure_dagu.link.listener import Limits
from secure_dagu.security.peer import Peer
from secure_dagu.security.verdict import LinkMisconfigured, LinkRefused, LinkUnavailable, Reason
from tests.link.certs import SERVER, Ca, uri
from tests.link.conftest import Edge, open_dialer, open_edge, through

LINK_ERRORS = (LinkUnavailable, LinkRefused, LinkMisconfigured)

pytestmark = pytest.mark.usefixtures("settled")


def load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def pin_of(ca: Ca) -> str:
    return ca.certificate.fingerprint(hashes.SHA256()).hex()


@contextlib.asynccontextmanager
async def enrolling(policy: ServerPolicy, folder: Path, limits: Limits | None = None) -> AsyncIterator[Edge]:
    """Open an edge that answers with who asks and what was said."""

    async def answer(peer: Peer, request: bytes) -> bytes:
        return f"{peer.identity or 'somebody'} said ".encode() + request

    async with open_edge(policy, folder, limits) as edge:
        edge.listener.answer = answer
        yield edge


@contextlib.asynccontextmanager
async def raw(
    edge: Edge, ca: Ca, *, alpn: str = "secure-dagu-enrol/1", maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect as a stranger would, with a TLS client that is not ours and no certificate."""
    client = ssl.create_default_context(cafile=str(ca.file))
    client.maximum_version = maximum
    client.set_alpn_protocols([alpn])
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, ssl=client, server_hostname="localhost")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_machine_without_a_certificate_joins_and_is_nobody(
    good_server: ServerPolicy, our_ca: Ca, folder: Path
) -> None:
    async with enrolling(good_server, folder) as edge:
        assert await ask(join_policy(pin_of(our_ca)), "localhost", edge.port, b"hello") == b"somebody said hello"
        assert await ask(join_policy(pin_of(our_ca)), "127.0.0.1", edge.port, b"hello") == b"somebody said hello"
        await edge.idle()
        assert len(edge.register) == 0
        assert edge.events == []


async def test_renewing_proves_both_ends(good_server: ServerPolicy, good_client: ClientPolicy, folder: Path) -> None:
    async with enrolling(good_server, folder) as edge:
        assert await ask(good_client, "localhost", edge.port, b"more") == b"worker/w1 said more"
        await edge.idle()


async def test_an_ordinary_link_works_beside_it(
    good_server: ServerPolicy, good_client: ClientPolicy, folder: Path
) -> None:
    async with (
        enrolling(good_server, folder) as edge,
        open_dialer(good_client, "localhost", edge.port, folder) as dialer,
    ):
        reader, writer = await through(dialer)
        assert await reader.readexactly(9)
        writer.close()


async def test_nothing_is_said_to_a_server_whose_root_is_not_the_pinned_one(
    our_ca: Ca, other_ca: Ca, folder: Path
) -> None:
    """Threat T24 turned round: whoever sits in the way must not get the token."""
    heard: list[bytes] = []

    async def answer(peer: Peer, request: bytes) -> bytes:
        heard.append(request)
        return b""

    pair = other_ca.coordinator()
    async with open_edge(server_policy(cert=pair.cert, key=pair.key, client_ca=other_ca.file), folder) as edge:
        edge.listener.answer = answer
        with pytest.raises(LinkRefused) as refused:
            await ask(join_policy(pin_of(our_ca)), "localhost", edge.port, b"secret")
        assert refused.value.verdict.reason is Reason.UNTRUSTED_SERVER
        await edge.idle()
    assert heard == []


async def test_a_server_that_only_shows_the_pinned_root_beside_its_own_chain_is_refused(
    our_ca: Ca, folder: Path
) -> None:
    """A root's certificate is public: to send it is no proof. The leaf says that this root issued it, falsely."""
    good = our_ca.coordinator()
    policy = server_policy(cert=good.cert, key=good.key, client_ca=our_ca.file)  # its context sends our root
    key = ec.generate_private_key(ec.SECP256R1())
    real = x509.load_pem_x509_certificate(good.cert.read_bytes())
    forged = (
        x509.CertificateBuilder(extensions=list(real.extensions))
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "main")]))
        .issuer_name(real.issuer)
        .public_key(key.public_key())
        .serial_number(real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    policy.context.use_certificate(forged)
    policy.context.use_privatekey(key)
    async with enrolling(policy, folder) as edge:
        with pytest.raises(LinkRefused) as refused:
            await ask(join_policy(pin_of(our_ca)), "localhost", edge.port, b"secret")
        assert refused.value.verdict.reason is Reason.SERVER_BAD_CERTIFICATE
        assert "verify code 7" in refused.value.verdict.detail
        await edge.idle()


@pytest.mark.parametrize("role", ["worker", "admin"])
async def test_a_server_that_is_no_coordinator_is_refused(our_ca: Ca, folder: Path, role: str) -> None:
    """Some member of the cluster must not collect the tokens of the others."""
    pair = our_ca.issue([uri(role, "w1")], usages=(SERVER,), names=("localhost",))
    good = our_ca.coordinator()
    policy = server_policy(cert=good.cert, key=good.key, client_ca=our_ca.file)
    policy.context.use_certificate(x509.load_pem_x509_certificate(pair.cert.read_bytes()))
    policy.context.use_privatekey(load_key(pair.key))
    async with enrolling(policy, folder) as edge:
        with pytest.raises(LinkRefused) as refused:
            await ask(join_policy(pin_of(our_ca)), "localhost", edge.port, b"secret")
        assert refused.value.verdict.reason is Reason.NOT_A_COORDINATOR
        await edge.idle()


async def test_the_name_that_was_dialled_must_be_the_servers(our_ca: Ca, folder: Path) -> None:
    pair = our_ca.coordinator("elsewhere.example.com")
    async with enrolling(server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file), folder) as edge:
        with pytest.raises(LinkRefused) as refused:
            await ask(join_policy(pin_of(our_ca)), "localhost", edge.port, b"secret")
        assert refused.value.verdict.reason is Reason.NAME_MISMATCH
        await edge.idle()


async def test_other_protocols_still_need_a_certificate(good_server: ServerPolicy, our_ca: Ca, folder: Path) -> None:
    async with enrolling(good_server, folder) as edge:
        for number, alpn in enumerate(("h2", "secure-dagu-renew/1"), start=1):
            async with raw(edge, our_ca, alpn=alpn) as (reader, _):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await reader.readexactly(1)
            event = await edge.until("refused", number)
            assert event.verdict is not None
            assert event.verdict.reason is Reason.NO_CLIENT_CERT
        await edge.idle()


async def test_a_coordinator_that_does_not_enrol_refuses_the_protocol(
    good_server: ServerPolicy, good_client: ClientPolicy, our_ca: Ca, folder: Path
) -> None:
    async with open_edge(good_server, folder) as edge:
        policies: list[JoinPolicy | ClientPolicy] = [join_policy(pin_of(our_ca)), good_client]
        for number, policy in enumerate(policies, start=1):
            with pytest.raises(Refused, match="gives out no certificates"):
                await ask(policy, "localhost", edge.port, b"x")
            event = await edge.until("refused", number)
            assert event.verdict is not None
            assert (event.verdict.reason, event.verdict.detail) == (
                Reason.ALPN,
                "it wants to enrol, which is not offered here",
            )
        await edge.idle()


async def test_joining_takes_tls_1_3_even_where_1_2_is_allowed(our_ca: Ca, folder: Path) -> None:
    pair = our_ca.coordinator()
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=our_ca.file, minimum=MinimumTls.V1_2)
    async with enrolling(policy, folder) as edge:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with raw(edge, our_ca, maximum=ssl.TLSVersion.TLSv1_2):
                pass
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.ALPN
        await edge.idle()


@pytest.mark.parametrize(("size", "is_answered"), [(MAX_REQUEST, True), (MAX_REQUEST + 1, False), (1 << 22, False)])
async def test_a_request_has_a_size(
    good_server: ServerPolicy, our_ca: Ca, folder: Path, size: int, is_answered: bool
) -> None:
    async with enrolling(good_server, folder) as edge, raw(edge, our_ca) as (reader, writer):
        assert await reader.readline() == enrol.GREETING + b"\n"
        with contextlib.suppress(ConnectionError):
            writer.write(b"x" * size + b"\n")
            await writer.drain()
            answer = await reader.read()
            assert (len(answer) > size) == is_answered
        await edge.idle()
        assert bool(edge.register.refused) != is_answered


async def test_one_exchange_a_connection(good_server: ServerPolicy, our_ca: Ca, folder: Path) -> None:
    async with enrolling(good_server, folder) as edge, raw(edge, our_ca) as (reader, writer):
        assert await reader.readline() == enrol.GREETING + b"\n"
        writer.write(b"one\ntwo\n")
        assert await reader.read() == b"somebody said one\n"


async def test_whoever_says_nothing_is_not_waited_for_longer_than_the_limit(
    good_server: ServerPolicy, our_ca: Ca, folder: Path
) -> None:
    async with enrolling(good_server, folder, Limits(enrolment_s=0.2)) as edge, raw(edge, our_ca) as (reader, writer):
        assert await reader.readline() == enrol.GREETING + b"\n"
        assert await reader.read() == b""
        writer.close()
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.HANDSHAKE_TIMEOUT
        await edge.idle()


async def test_enrolments_have_a_number(good_server: ServerPolicy, our_ca: Ca, folder: Path) -> None:
    async with enrolling(good_server, folder, Limits(enrolments=2)) as edge, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            reader, _ = await stack.enter_async_context(raw(edge, our_ca))
            assert await reader.readline()
        reader, _ = await stack.enter_async_context(raw(edge, our_ca))
        assert await reader.read() == b""
        assert edge.register.refused == {Reason.OVER_LIMIT: 1}


async def test_a_bug_in_the_answer_costs_one_connection(good_server: ServerPolicy, our_ca: Ca, folder: Path) -> None:
    async def broken(peer: Peer, request: bytes) -> bytes:
        raise ValueError("a bug")

    async with open_edge(good_server, folder) as edge:
        edge.listener.answer = broken
        with pytest.raises(LINK_ERRORS):
            await ask(join_policy(pin_of(our_ca)), "localhost", edge.port, b"x")
        await edge.idle()
        assert edge.register.refused == {Reason.OTHER: 1}


async def test_a_server_that_closes_or_is_not_there_is_named(our_ca: Ca) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(LINK_ERRORS) as refused:
            await ask(join_policy(pin_of(our_ca)), "127.0.0.1", free.getsockname()[1], b"x")
    assert refused.value.verdict.reason is Reason.REFUSED
