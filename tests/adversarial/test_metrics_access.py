"""Threat T23, boundary B7: who reads /metrics, tried by everybody who may not, against real processes."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.link.certs import SERVER, Ca
from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import PATIENCE_S

TOKEN = "canary-0123456789abcdef"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def issued(cluster: Cluster, role: str, name: str) -> Path:
    """Issue a certificate; return its folder."""
    out = cluster.root / f"{role}-{name}"
    cluster.host.ok("pki", "issue", role, name, "--out", str(out))
    return out


def connection(port: int, ca: Path, pair: tuple[Path, Path] | None = None) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(ca))
    if pair is not None:
        context.load_cert_chain(*map(str, pair))
    return http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE_S)


def get(asked: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, str]:
    asked.request("GET", path, headers=headers)
    answer = asked.getresponse()
    return answer.status, answer.read().decode()


def of(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.crt", folder / f"{name}.key"


def test_only_metrics_and_admin_certificates_read_metrics(cluster: Cluster, tmp_path: Path) -> None:
    ca = cluster.host.home / "pki/ca.crt"
    scraper, worker, admin = (
        issued(cluster, role, role) for role in ("metrics", "worker", "admin")
    )  # fmt: skip
    stranger = Ca(tmp_path / "other").issue(["spiffe://secure-dagu/metrics/x"])
    with cluster.coordinator("--coordinator.metrics-access=tls") as service:
        port = cluster.health_port
        with closing(connection(port, ca)) as nobody:  # probes have no certificate
            assert get(nobody, "/health")[0] == get(nobody, "/ready")[0] == 200
            status, text = get(nobody, "/metrics")
            assert (status, "secure_dagu" in text) == (403, False)
        with closing(connection(port, ca, of(worker, "worker"))) as wrong_role:
            assert get(wrong_role, "/metrics")[0] == 403
        with closing(connection(port, ca, of(admin, "admin"))) as operator:
            assert get(operator, "/metrics")[0] == 200
        with closing(connection(port, ca, (stranger.cert, stranger.key))) as foreign, pytest.raises(OSError):
            get(foreign, "/metrics")
        with closing(http.client.HTTPConnection("localhost", port, timeout=PATIENCE_S)) as plain:
            status, text = get(plain, "/metrics")
            assert (status, "https" in text) == (400, True)
        with closing(connection(port, ca, of(scraper, "metrics"))) as prometheus:
            text = get(prometheus, "/metrics")[1]
            assert 'secure_dagu_peer_authz_failures_total{grpc_method="metrics",reason="role_not_allowed"} 1.0' in text
            assert 'secure_dagu_tls_handshake_failures_total{reason="untrusted_ca",side="server"} 1.0' in text
            # Revoked while its connection is open: the next scrape on it is refused.
            cluster.host.ok("pki", "revoke", "metrics/metrics")
            service.wait_for("certificates.loaded")
            assert get(prometheus, "/metrics")[0] == 403
        with closing(connection(port, ca, of(scraper, "metrics"))) as again, pytest.raises(OSError):
            get(again, "/metrics")
        service.wait_for("link.refused.*cert_revoked")
    actions = (cluster.host.home / "data/audit").rglob("*.jsonl")
    recorded = [json.loads(line) for file in actions for line in file.read_text().splitlines()]
    assert [item for item in recorded if "/metrics" in str(item.get("target", item))]


def test_a_scraper_may_do_nothing_else(cluster: Cluster) -> None:
    scraper = issued(cluster, "metrics", "metrics")
    cert, key = of(scraper, "metrics")
    with cluster.coordinator("--coordinator.metrics-access=tls"):
        refused = cluster.host.run(
            "workers", cluster.operator, f"--peer.cert-file={cert}", f"--peer.key-file={key}",
            f"--peer.client-ca-file={scraper / 'ca.crt'}",
        )  # fmt: skip
    assert refused.returncode == 4
    assert "may not call" in refused.stderr


def test_a_token_is_asked_for_and_crosses_no_network_in_the_clear(cluster: Cluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    (cluster.host.home / "config.yaml").write_text(f"metrics_token_file: {token}\n")
    ca = cluster.host.home / "pki/ca.crt"
    with cluster.coordinator("--coordinator.metrics-access=token", "--coordinator.health-host=0.0.0.0") as service:
        with closing(connection(cluster.health_port, ca)) as asked:
            assert get(asked, "/metrics")[0] == 401
            assert get(asked, "/metrics", Authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
            assert get(asked, "/metrics", Authorization=f"Bearer {TOKEN}é".encode().decode("latin-1"))[0] == 401
            status, text = get(asked, "/metrics", Authorization=f"Bearer {TOKEN}")
            assert status == 200
            assert TOKEN not in text
        assert TOKEN not in service.text


@pytest.mark.parametrize("mode", [0o644, 0o640], ids=["readable by others", "too short"])
def test_a_token_that_others_may_read_is_refused_at_start(cluster: Cluster, tmp_path: Path, mode: int) -> None:
    token = tmp_path / "token"
    token.write_text("short" if mode == 0o640 else TOKEN)
    token.chmod(mode)
    (cluster.host.home / "config.yaml").write_text(f"metrics_token_file: {token}\n")
    words = ("--coordinator.advertise=localhost", f"--coordinator.port={cluster.port}")
    done = cluster.host.run(
        "coordinator", *words, f"--coordinator.health-port={cluster.health_port}", "--coordinator.metrics-access=token"
    )
    assert done.returncode == 3
    assert "token" in done.stderr
    assert TOKEN not in done.stderr


def test_a_worker_speaks_https_with_a_server_certificate_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    scraper = issued(cluster, "metrics", "metrics")
    port = free_port()
    words = [f"--worker.health-port={port}", "--worker.metrics-access=tls"]
    host = cluster.worker_host("w1")
    with cluster.coordinator():
        done = host.run(
            "worker", "--worker.id=w1", f"--worker.coordinators={cluster.address}", *words, timeout_s=PATIENCE_S
        )
        assert done.returncode == 3
        assert "health_cert_file" in done.stderr
        web = Ca(tmp_path / "web")
        pair = web.issue([], usages=[SERVER], names=["localhost"])
        (host.home / "config.yaml").write_text(f"health_cert_file: {pair.cert}\nhealth_key_file: {pair.key}\n")
        with cluster.worker("w1", *words, host=host):
            with closing(connection(port, web.file, of(scraper, "metrics"))) as prometheus:
                text = get(prometheus, "/metrics")[1]
            assert 'secure_dagu_certificate_not_after_timestamp_seconds{role="https",source="health_cert_file"}' in text
            with closing(connection(port, web.file, of(host.home / "pki", "w1"))) as wrong_role:
                assert get(wrong_role, "/metrics")[0] == 403


def test_a_worker_without_coordinator_is_alive_and_not_ready(cluster: Cluster) -> None:
    port = free_port()
    with cluster.unready_worker("w1", f"--worker.health-port={port}") as service:
        service.wait_for("coordinator.unreachable")
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as asked:
            assert get(asked, "/health")[0] == 200
            status, text = get(asked, "/ready")
            assert status == 503
            assert json.loads(text)["because"][0]["fix"]
            with cluster.coordinator():
                end = time.monotonic() + PATIENCE_S
                while get(asked, "/ready")[0] != 200:
                    assert time.monotonic() < end
                    service.wait_for("coordinator.reached")


def test_idle_strangers_do_not_keep_a_scraper_out_for_long(cluster: Cluster) -> None:
    """Half-open handshakes are limited in number and in time; the rest of the port answers meanwhile."""
    scraper = issued(cluster, "metrics", "metrics")
    ca = cluster.host.home / "pki/ca.crt"
    with cluster.coordinator("--coordinator.metrics-access=tls"):
        idle = [socket.create_connection(("localhost", cluster.health_port)) for _ in range(20)]
        try:
            with closing(connection(cluster.health_port, ca, of(scraper, "metrics"))) as prometheus:
                assert get(prometheus, "/metrics")[0] == 200
        finally:
            for one in idle:
                one.close()
