"""Every TLS library that a peer may have takes what we issue, OpenSSL and BoringSSL (gRPC), and knows its limits."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from secure_dagu.dispatch.model import Role
from secure_dagu.pki import directory as pki
from secure_dagu.security.grants import parse_grants
from tests import needs
from tests.pki.forging import NOW, SERVER, Forged, forge, initialise


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CA with a coordinator under every kind of name, and a worker with labels."""
    where = tmp_path_factory.mktemp("home")
    initialise(where, "ci.example.com,host.tailnet.ts.net,dagu.svc.cluster.local,10.0.0.7,2001:db8::7,127.0.0.1")
    pki.issue(
        where, Role.WORKER, "gpu.1", out=where, advertised=(), lifetime=None, force=False, now=NOW,
        labels=parse_grants(["gpu=true,zone=eu"]),
    )  # fmt: skip
    return where


def openssl_verify(home: Path, file: Path, *words: str) -> str:
    openssl = needs.program("openssl", package="openssl")
    done = subprocess.run(
        [openssl, "verify", "-x509_strict", "-CAfile", home / "ca.crt", *words, file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ci.example.com", "host.tailnet.ts.net", "dagu.svc.cluster.local", "localhost"])
def test_openssl_takes_the_coordinator_strictly_under_each_name(home: Path, name: str) -> None:
    assert "OK" in openssl_verify(
        home, home / "coordinator.crt", "-purpose", "sslserver", "-verify_hostname", name
    )  # fmt: skip


@pytest.mark.parametrize("address", ["10.0.0.7", "2001:db8::7", "127.0.0.1", "::1"])
def test_openssl_takes_the_coordinator_under_each_address(home: Path, address: str) -> None:
    assert "OK" in openssl_verify(home, home / "coordinator.crt", "-purpose", "sslserver", "-verify_ip", address)


def test_openssl_takes_a_worker_whose_name_looks_like_a_host(home: Path) -> None:
    # Its common name would be held against the DNS constraints if it were `gpu.1`.
    assert "OK" in openssl_verify(home, home / "gpu.1.crt", "-purpose", "sslclient")
    assert "OK" not in openssl_verify(home, home / "gpu.1.crt", "-purpose", "sslserver")


@pytest.mark.parametrize(
    ("dns", "uris"),
    [
        (["ci.evil.org"], ["spiffe://secure-dagu/coordinator/c"]),
        (["example.com.evil.org"], ["spiffe://secure-dagu/coordinator/c"]),
        (["ci.example.com"], ["spiffe://other/coordinator/c"]),
        ([], ["spiffe://other/worker/w"]),
        ([], ["spiffe://sub.secure-dagu/worker/w"]),
    ],
)
def test_a_stolen_ca_key_names_nobody_outside_its_constraints(
    home: Path, tmp_path: Path, dns: list[str], uris: list[str]
) -> None:
    forged = forge(home, tmp_path, uris=uris, dns=dns, usages=(SERVER,))
    assert "permitted subtree violation" in openssl_verify(home, forged.cert)


def call(home: Path, client: Forged, target: str) -> str:
    """Call a server with gRPC's own TLS (BoringSSL), both ends with certificates; return how it ended."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: object) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"hello")

    trust = (home / "ca.crt").read_bytes()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    pair = ((home / "coordinator.key").read_bytes(), (home / "coordinator.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], trust, True))
    server.start()
    ours = grpc.ssl_channel_credentials(trust, client.key.read_bytes(), client.cert.read_bytes())
    try:
        with grpc.secure_channel(f"{target}:{port}", ours) as channel:
            answer: bytes = channel.unary_unary("/a/b")(b"", timeout=5)  # type: ignore[arg-type]
            return answer.decode()
    except grpc.RpcError as error:
        return str(error.code())
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost"])
def test_boringssl_takes_constraints_labels_and_addresses(home: Path, target: str) -> None:
    assert call(home, Forged(cert=home / "gpu.1.crt", key=home / "gpu.1.key"), target) == "hello"


def test_boringssl_refuses_ed25519_which_is_why_it_is_not_the_default(home: Path) -> None:
    made = pki.issue(
        home, Role.WORKER, "ed", out=None, advertised=(), lifetime=None, force=False, now=NOW, kind="Ed25519"
    )
    assert call(home, Forged(cert=made.certificate, key=made.key), "localhost") == "StatusCode.UNAVAILABLE"
    assert "OK" in openssl_verify(home, made.certificate, "-purpose", "sslclient")
