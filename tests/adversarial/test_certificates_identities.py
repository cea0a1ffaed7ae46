"""T09, T10, T18: certificates signed with our own CA's key that must get nobody in.

Each is presented in a real handshake: to a listening coordinator by a client that has no scruples, and to our dialer
by a server that has none. `secure-dagu pki verify` must say the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from secure_dagu.dispatch.model import Role
from secure_dagu.link import judgement, material, private
from secure_dagu.link.context import client_policy, server_policy
from secure_dagu.pki import directory as pki
from secure_dagu.pki.facts import read_certificates
from secure_dagu.pki.lint import lint_file
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.pki.verifying import verify
from secure_dagu.security import grants
from secure_dagu.security.mapping import Holder
from secure_dagu.security.verdict import LinkRefused, Side
from tests.link.conftest import Edge, open_dialer, open_edge
from tests.pki.forging import CLIENT, NOW, SERVER, Forged, forge, initialise

WORKER = "spiffe://secure-dagu/worker/gpu-1"
COORDINATOR = "spiffe://secure-dagu/coordinator/main"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("home")
    initialise(where)
    pki.issue(where, Role.WORKER, "gpu-1", out=where, advertised=(), lifetime=None, force=False, now=NOW)
    return where


@pytest.fixture
def folder() -> Iterator[Path]:
    with private.folder() as made:
        yield made


@pytest.fixture
async def edge(home: Path, folder: Path) -> AsyncIterator[Edge]:
    policy = server_policy(
        cert=home / "coordinator.crt", key=home / "coordinator.key", client_ca=home / "ca.crt"
    )  # fmt: skip
    async with open_edge(policy, folder) as opened:
        yield opened


def labels(value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(grants.OID), value)


CLIENTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "two spiffe URIs": ({"uris": [WORKER, "spiffe://secure-dagu/admin/root"]}, {"two_identities"}),
    "a spiffe URI and another": ({"uris": [WORKER, "https://secure-dagu/x"]}, {"two_identities"}),
    "a common name only": ({"common_name": "gpu-1"}, {"no_identity"}),
    "a common name that is an identity": ({"common_name": WORKER}, {"no_identity"}),
    "a DNS name that is an identity": ({"dns": ["gpu-1.local"]}, {"no_identity"}),
    "an unknown role": ({"uris": ["spiffe://secure-dagu/root/gpu-1"]}, {"bad_identity"}),
    "a path behind the name": ({"uris": [WORKER + "/../../admin/root"]}, {"bad_identity"}),
    "an identity in capitals": ({"uris": ["SPIFFE://secure-dagu/worker/gpu-1"]}, {"bad_identity"}),
    "a name with a newline": ({"uris": ["spiffe://secure-dagu/worker/gpu-1%0a"]}, {"bad_identity"}),
    # our own CA's constraints stop this one before anybody reads the identity
    "another trust domain": ({"uris": ["spiffe://other/worker/gpu-1"]}, {"bad_certificate", "foreign_domain"}),
    "a server's purpose": ({"uris": [WORKER], "usages": (SERVER,)}, {"wrong_purpose"}),
    "no purpose that is ours": (
        {"uris": [WORKER], "usages": (x509.ObjectIdentifier("1.3.6.1.5.5.7.3.4"),)}, {"wrong_purpose"}
    ),
    "RSA-1024": ({"uris": [WORKER], "key": rsa.generate_private_key(65537, 1024)}, {"weak_key"}),
    "labels that are no text": ({"uris": [WORKER], "extensions": [labels(b"\x30\x00")]}, {"bad_identity"}),
    "labels with a line too many": (
        {"uris": [WORKER], "extensions": [labels(b"\x0c\x06gpu=1\n")]}, {"bad_identity"}
    ),
    "too many labels": (
        {"uris": [WORKER], "extensions": [labels(b"\x0c\x82\x10\x05" + b"a" * 4101)]}, {"bad_identity"}
    ),
}  # fmt: skip


def knock(port: int, home: Path, client: Forged) -> None:
    """Shake hands as a client that checks nothing and presents whatever it has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(client.cert, client.key)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw) as tls,
    ):
        tls.recv(100)


@pytest.mark.parametrize("what", CLIENTS)
async def test_a_client_certificate_of_our_own_ca_that_must_get_nobody_in(
    what: str, edge: Edge, home: Path, tmp_path: Path
) -> None:
    fields, codes = CLIENTS[what]
    forged = forge(home, tmp_path, **fields)
    await asyncio.to_thread(knock, edge.port, home, forged)
    event = await edge.until("refused")
    assert event.verdict is not None
    assert event.verdict.reason.value in codes
    assert edge.register.opened == 0
    said = verify(forged.cert, home / "ca.crt", at=NOW, purpose="client")
    assert not said.accepted
    assert said.code == event.verdict.reason.value


async def test_the_same_client_with_a_good_certificate_gets_in(edge: Edge, home: Path) -> None:
    await asyncio.to_thread(knock, edge.port, home, Forged(cert=home / "gpu-1.crt", key=home / "gpu-1.key"))
    await edge.until("opened")


SERVERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a common name only": ({"uris": [COORDINATOR], "common_name": "localhost"}, {"name_mismatch"}),
    "an address as a DNS name": (
        {"uris": [COORDINATOR], "dns": ["127.0.0.1"]}, {"name_mismatch", "server_bad_certificate"}
    ),
    "a wildcard": ({"uris": [COORDINATOR], "dns": ["*.local", "*"]}, {"name_mismatch", "server_bad_certificate"}),
    "a worker's identity": (
        {"uris": [WORKER], "dns": ["localhost"], "ips": ["127.0.0.1"]}, {"not_a_coordinator"}
    ),
    "two identities": (
        {"uris": [COORDINATOR, WORKER], "dns": ["localhost"], "ips": ["127.0.0.1"]}, {"not_a_coordinator"}
    ),
    "no identity": ({"dns": ["localhost"], "ips": ["127.0.0.1"]}, {"not_a_coordinator"}),
    "a client's purpose": (
        {"uris": [COORDINATOR], "ips": ["127.0.0.1"], "usages": (CLIENT,)}, {"server_wrong_purpose"}
    ),
    "RSA-1024": (
        {"uris": [COORDINATOR], "ips": ["127.0.0.1"], "key": rsa.generate_private_key(65537, 1024)},
        {"server_weak_key"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SERVERS)
def test_a_server_certificate_of_our_own_ca_that_no_client_takes(what: str, home: Path, tmp_path: Path) -> None:
    fields, codes = SERVERS[what]
    forged = forge(home, tmp_path, **({"usages": (SERVER,)} | fields))
    judged = judgement.judge(
        read_certificates(forged.cert), material.read_trust(home / "ca.crt"), side=Side.CLIENT, host="127.0.0.1"
    )
    assert isinstance(judged, judgement.Objection)
    assert judged.reason.value in codes


@pytest.mark.parametrize("what", ["a worker's identity", "an address as a DNS name", "a client's purpose"])
async def test_our_dialer_refuses_such_a_server_before_it_says_a_word(
    what: str, home: Path, tmp_path: Path, folder: Path
) -> None:
    fields, codes = SERVERS[what]
    forged = forge(home, tmp_path, **({"usages": (SERVER,)} | fields))
    heard: list[bytes] = []
    async with rogue(forged, heard) as port:
        ours = client_policy(cert=home / "gpu-1.crt", key=home / "gpu-1.key", ca=home / "ca.crt")
        async with open_dialer(ours, "127.0.0.1", port, folder) as dialer:
            with pytest.raises(LinkRefused) as refusal:
                await dialer.check()
    assert refusal.value.verdict.reason.value in codes
    assert heard == []


@contextlib.asynccontextmanager
async def rogue(forged: Forged, heard: list[bytes]) -> AsyncIterator[int]:
    """Serve TLS with a certificate that should not be, and note what clients say inside."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(forged.cert, forged.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if data := await reader.read(100):
                heard.append(data)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


def test_a_certificate_that_is_a_ca_gives_no_right_to_sign(home: Path, tmp_path: Path) -> None:
    below = forge(home, tmp_path / "ca", uris=[WORKER], is_ca=True)
    assert [finding.rule for finding in lint_file(below.cert, load_profiles(), NOW)]
    # whoever holds it signs an admin with it: the path length of our CA ends that
    (tmp_path / "ca/ca.crt").write_bytes(below.cert.read_bytes())
    (tmp_path / "ca/ca.key").write_bytes(below.key.read_bytes())
    admin = forge(tmp_path / "ca", tmp_path / "leaf", uris=["spiffe://secure-dagu/admin/root"])
    chain = [*read_certificates(admin.cert), *read_certificates(below.cert)]
    judged = judgement.judge(chain, material.read_trust(home / "ca.crt"), side=Side.SERVER)
    assert isinstance(judged, judgement.Objection)
    good = judgement.judge(
        read_certificates(home / "gpu-1.crt"), material.read_trust(home / "ca.crt"), side=Side.SERVER
    )
    assert isinstance(good, Holder)


def test_a_good_looking_certificate_that_was_signed_outside_the_tool_is_detectable(home: Path, tmp_path: Path) -> None:
    forged = forge(home, tmp_path, uris=["spiffe://secure-dagu/admin/root"])
    ledger = pki.ledger(home)
    assert not ledger.knows(forged.certificate.serial_number)
    assert ledger.knows(read_certificates(home / "gpu-1.crt")[0].serial_number)
    said = verify(forged.cert, home / "ca.crt", at=NOW, ledger=ledger)
    assert said.accepted
    assert "outside" in said.warnings[0]
    assert verify(home / "gpu-1.crt", home / "ca.crt", at=NOW, ledger=ledger).warnings == ()
