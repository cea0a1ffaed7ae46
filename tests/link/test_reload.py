"""Swapped policies: new links use the new one, live ones go on, and those who no longer stand are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from secure_dagu.errors import ConfigError
from secure_dagu.link import context, crl, material
from secure_dagu.link.context import ClientPolicy, ServerPolicy
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.verdict import LinkError, LinkRefused, LinkUnavailable, Reason
from tests.link.certs import Ca, Pair
from tests.link.conftest import SETTINGS, Edge, client_of, open_dialer, open_edge, through

DAY = timedelta(days=1)


def serial_of(pair: Pair) -> int:
    """Return the serial number of a pair."""
    return x509.load_pem_x509_certificate(pair.cert.read_bytes()).serial_number


def signed_list(
    ca: Ca,
    *serials: int,
    number: int | None = 1,
    next_update: timedelta = DAY,
    issuer: x509.Name | None = None,
    authority_key: bool = True,
) -> bytes:
    """Return a revocation list as PEM."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer or ca.certificate.subject)
        .last_update(now - 2 * DAY)
        .next_update(now + next_update)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if authority_key:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - DAY).build()
        )
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def policy_of(pair: Pair, cas: Sequence[Ca], folder: Path, *lists: bytes, grace: timedelta = DAY) -> ServerPolicy:
    """Return a coordinator's policy that trusts some CAs and has read some lists."""
    bundle = folder / "bundle.pem"
    bundle.write_bytes(b"".join(ca.file.read_bytes() for ca in cas))
    found = context.server_material(cert=pair.cert, key=pair.key, client_ca=bundle)
    read = crl.verify(b"".join(lists), found.trusted, file=folder / "ca.crl") if lists else None
    return context.server_from(found, lists=read, grace=grace)


async def refusal(policy: ClientPolicy, port: int, folder: Path) -> LinkError:
    """Dial once and return why that did not work."""
    async with open_dialer(policy, "localhost", port, folder) as dialer:
        with pytest.raises((LinkRefused, LinkUnavailable)) as caught:
            await dialer.check()
        assert isinstance(caught.value, LinkRefused | LinkUnavailable)
        return caught.value


async def test_new_links_show_the_new_certificate_and_live_ones_go_on(
    edge: Edge, our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    fresh = our_ca.coordinator()
    async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        assert await reader.readexactly(len(SETTINGS)) == SETTINGS
        edge.listener.policy = policy_of(fresh, [our_ca], folder)
        assert (await dialer.check()).serial == serial_of(fresh)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()


async def test_a_dialer_shows_its_new_certificate_at_the_next_dial(edge: Edge, our_ca: Ca, folder: Path) -> None:
    first, second = our_ca.worker(), our_ca.worker()
    async with open_dialer(client_of(first, our_ca), "localhost", edge.port, folder) as dialer:
        await dialer.check()
        dialer.policy = client_of(second, our_ca)
        await dialer.check()
    assert {event.peer.serial for event in edge.events if event.peer} == {serial_of(first), serial_of(second)}


async def test_a_revoked_certificate_is_refused_with_its_own_alert_and_others_are_not(
    our_ca: Ca, folder: Path, good_client: ClientPolicy
) -> None:
    revoked = our_ca.worker("stolen")
    policy = policy_of(our_ca.coordinator(), [our_ca], folder, signed_list(our_ca, serial_of(revoked)))
    async with open_edge(policy, folder) as edge:
        error = await refusal(client_of(revoked, our_ca), edge.port, folder)
        assert error.verdict.reason is Reason.CERT_REVOKED
        event = await edge.until("refused")
        assert event.verdict is not None
        assert (event.verdict.reason, event.verdict.serial) == (Reason.CERT_REVOKED, serial_of(revoked))
        async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
            await dialer.check()


async def test_peers_carry_the_keys_of_their_cas(
    edge: Edge, our_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        server = await dialer.check()
    opened = await edge.until("opened")
    assert opened.peer is not None
    assert opened.peer.issuers == server.issuers == (crl.key_of(our_ca.certificate),)


async def test_dropping_a_ca_ends_the_links_that_are_built_on_it(
    our_ca: Ca, other_ca: Ca, folder: Path, good_client: ClientPolicy
) -> None:
    pair = our_ca.coordinator()
    theirs = other_ca.worker("old")
    async with open_edge(policy_of(pair, [our_ca, other_ca], folder), folder) as edge:
        both = folder / "both.pem"
        both.write_bytes(our_ca.file.read_bytes() + other_ca.file.read_bytes())
        old = context.client_policy(cert=theirs.cert, key=theirs.key, ca=both)
        async with (
            open_dialer(old, "localhost", edge.port, folder) as leaving,
            open_dialer(good_client, "localhost", edge.port, folder) as staying,
        ):
            gone, gone_writer = await through(leaving)
            kept, kept_writer = await through(staying)
            for reader in (gone, kept):
                await reader.readexactly(len(SETTINGS))
            fresh = policy_of(pair, [our_ca], folder)
            edge.listener.policy = fresh
            now = datetime.now(UTC)
            objections = {peer.identity and peer.identity.name: fresh.standing.objection(peer, now)
                          for peer in edge.register.peers()}  # fmt: skip
            assert objections == {"old": DenyReason.UNTRUSTED_CA, "w1": None}
            assert edge.register.cut(lambda peer: fresh.standing.objection(peer, now) is not None) == 1
            async with asyncio.timeout(60):
                assert await gone.read() == b""
            kept_writer.write(b"x")
            assert await kept.readexactly(1) == b"x"
            for writer in (gone_writer, kept_writer):
                writer.close()
        error = await refusal(old, edge.port, folder)
        assert error.verdict.reason is Reason.UNTRUSTED_CA


async def test_a_dialer_ends_links_to_coordinators_that_no_longer_stand(
    edge: Edge, our_ca: Ca, other_ca: Ca, good_client: ClientPolicy, folder: Path
) -> None:
    async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
        reader, writer = await through(dialer)
        await reader.readexactly(len(SETTINGS))
        theirs = client_of(other_ca.worker(), other_ca)
        dialer.policy = theirs
        now = datetime.now(UTC)
        assert dialer.cut(lambda peer: theirs.standing.objection(peer, now) is not None) == 1
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()


async def test_a_handshake_that_began_before_a_swap_is_judged_by_the_new_policy(our_ca: Ca, folder: Path) -> None:
    """The client holds its last flight back until the list that revokes it is in force."""
    revoked, pair = our_ca.worker("slow"), our_ca.coordinator()
    async with open_edge(policy_of(pair, [our_ca], folder), folder) as edge:
        gate = asyncio.Event()
        arrived = asyncio.Event()

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", edge.port)
            up_writer.write(await reader.read(1 << 16))
            writer.write(await up_reader.read(1 << 16))
            late = await reader.read(1 << 16)
            arrived.set()
            await gate.wait()
            up_writer.write(late)
            while data := await up_reader.read(1 << 16):
                writer.write(data)
            for one in (writer, up_writer):
                one.close()

        proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
        async with proxy, open_dialer(client_of(revoked, our_ca), "localhost",
                                      proxy.sockets[0].getsockname()[1], folder) as dialer:  # fmt: skip
            dialling = asyncio.create_task(dialer.check())
            async with asyncio.timeout(60):
                await arrived.wait()
                edge.listener.policy = policy_of(pair, [our_ca], folder, signed_list(our_ca, serial_of(revoked)))
                gate.set()
                event = await edge.until("refused")
                assert event.verdict is not None
                assert event.verdict.reason is Reason.CERT_REVOKED
                await asyncio.wait([dialling])
        assert len(edge.register) == 0


async def test_a_list_past_its_grace_closes_the_port_and_within_it_does_not(
    our_ca: Ca, folder: Path, good_client: ClientPolicy
) -> None:
    stale = signed_list(our_ca, next_update=-timedelta(hours=1))
    pair = our_ca.coordinator()
    async with open_edge(policy_of(pair, [our_ca], folder, stale, grace=timedelta(hours=2)), folder) as edge:
        async with open_dialer(good_client, "localhost", edge.port, folder) as dialer:
            await dialer.check()
        edge.listener.policy = policy_of(pair, [our_ca], folder, stale, grace=timedelta(minutes=30))
        assert (await refusal(good_client, edge.port, folder)).verdict.reason is Reason.CRL_UNUSABLE
        event = await edge.until("refused")
        assert event.verdict is not None
        assert event.verdict.reason is Reason.CRL_UNUSABLE


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda ours, other: b"", "empty"),
        (lambda ours, other: signed_list(ours)[:-60], "cut off"),
        (lambda ours, other: signed_list(ours).replace(b"\nM", b"\nX", 1), "cut off"),
        (lambda ours, other: signed_list(other), "none of its lists"),
        (lambda ours, other: signed_list(other, issuer=ours.certificate.subject, authority_key=False), "signature"),
        (lambda ours, other: signed_list(ours, number=None), "number"),
        (lambda ours, other: signed_list(ours) + signed_list(ours), "two lists"),
        (lambda ours, other: signed_list(ours) + ours.file.read_bytes(), "something else"),
    ],
    ids=["empty", "truncated", "damaged", "another CA's", "forged", "unnumbered", "doubled", "with a certificate"],
)  # fmt: skip
def test_an_unfit_list_is_refused_with_its_reason(
    our_ca: Ca, other_ca: Ca, tmp_path: Path, make: object, fragment: str
) -> None:
    file = tmp_path / "ca.crl"
    file.write_bytes(make(our_ca, other_ca))  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        crl.read(file, material.read_trust(our_ca.file))
    assert fragment in caught.value.why


def test_an_older_list_is_refused_once_a_newer_one_was_in_use(our_ca: Ca, tmp_path: Path) -> None:
    file, trusted = tmp_path / "ca.crl", material.read_trust(our_ca.file)
    file.write_bytes(signed_list(our_ca, 7, number=5))
    last = crl.read(file, trusted).revocation
    file.write_bytes(signed_list(our_ca, number=4))
    with pytest.raises(ConfigError, match="4"):
        crl.read(file, trusted, last=last)
    file.write_bytes(signed_list(our_ca, number=5))
    with pytest.raises(ConfigError, match="two different lists"):
        crl.read(file, trusted, last=last)
    file.write_bytes(signed_list(our_ca, 7, 8, number=6))
    assert crl.read(file, trusted, last=last).revocation.is_revoked(8)


def test_a_list_of_ten_thousand_is_read_in_a_moment(our_ca: Ca, tmp_path: Path) -> None:
    file = tmp_path / "ca.crl"
    file.write_bytes(signed_list(our_ca, *range(1, 10_001)))
    assert crl.read(file, material.read_trust(our_ca.file)).revocation.entries == 10_000
