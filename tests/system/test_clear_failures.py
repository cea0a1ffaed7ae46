"""Each way to get it wrong, through the real commands: what happened, why, what to do."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests import needs
from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import PROGRAM


def ask(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the simplest operator command."""
    return cluster.host.run("workers", *words)


def refused(done: subprocess.CompletedProcess[str], code: int, *fragments: str) -> None:
    """Check the exit code and that the message says all of `fragments`, and how to mend it."""
    assert done.returncode == code, f"exit {done.returncode}: {done.stderr}"
    for fragment in fragments:
        assert fragment in done.stderr, f"{fragment!r} is missing in: {done.stderr}"
    assert "fix:" in done.stderr


def test_nothing_listens_there(cluster: Cluster) -> None:
    port = free_port()
    refused(ask(cluster, f"--coordinators=localhost:{port}"), 5, f"localhost:{port}", "nothing listens")


def test_a_worker_waits_for_a_coordinator_that_is_not_there_yet(cluster: Cluster) -> None:
    with cluster.unready_worker("w1") as worker:
        worker.wait_for("nothing listens")
        with cluster.coordinator():
            worker.wait_for("coordinator.reached")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_the_health_port_is_not_the_coordinator_port(cluster: Cluster) -> None:
    with cluster.coordinator():
        refused(ask(cluster, f"--coordinators=localhost:{cluster.health_port}"), 3, "HTTP", "50055")


class WebPage(socketserver.BaseRequestHandler):
    """Answers what a web server answers to anything that is not HTTP."""

    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@contextmanager
def web_server() -> Iterator[int]:
    """Serve what a UI's port serves."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WebPage) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_a_web_port_is_named_as_such_and_the_worker_gives_up(cluster: Cluster) -> None:
    with web_server() as port, cluster.unready_worker("w1", f"--worker.coordinators=localhost:{port}") as worker:
        assert worker.wait() == 3
        assert "HTTP" in worker.text
        assert "fix" in worker.text


def test_a_name_that_does_not_resolve(cluster: Cluster) -> None:
    refused(ask(cluster, "--coordinators=no-such-host.invalid:50055"), 5, "no-such-host.invalid", "resolve")


def test_tls_against_plaintext(cluster: Cluster) -> None:
    with cluster.coordinator("--peer.insecure=true"):
        refused(ask(cluster, cluster.operator), 3, "without TLS", "peer.insecure")


def test_plaintext_against_tls(cluster: Cluster) -> None:
    with cluster.coordinator() as coordinator:
        refused(ask(cluster, cluster.operator, "--peer.insecure=true"), 3, "TLS", "peer.insecure")
        coordinator.wait_for("plaintext_client")


def with_files_of(cluster: Cluster, folder: Path, name: str, ca: Path | None = None) -> list[str]:
    """Return the flags that present another certificate."""
    return [
        f"--peer.cert-file={folder / name}.crt",
        f"--peer.key-file={folder / name}.key",
        f"--peer.client-ca-file={ca or folder / 'ca.crt'}",
    ]


def test_a_coordinator_of_another_ca(cluster: Cluster) -> None:
    other = cluster.new_host("other")
    other.ok("pki", "init", "--advertise", "localhost")
    pki = other.home / "pki"
    with cluster.coordinator() as coordinator:
        refused(ask(cluster, cluster.operator, *with_files_of(cluster, pki, "operator")), 4, "CA")
        coordinator.wait_for("untrusted_server")


def test_a_client_of_another_ca(cluster: Cluster) -> None:
    other = cluster.new_host("other")
    other.ok("pki", "init", "--advertise", "localhost")
    flags = with_files_of(cluster, other.home / "pki", "operator", ca=cluster.host.home / "pki" / "ca.crt")
    with cluster.coordinator() as coordinator:
        done = ask(cluster, cluster.operator, *flags)
        # Our own files are compared first: a certificate that this CA did not sign never leaves the host.
        assert done.returncode in (3, 4)
        assert "CA" in done.stderr
        if done.returncode == 4:
            coordinator.wait_for("untrusted_ca")


def test_a_name_that_the_certificate_does_not_have_prints_those_it_has(cluster: Cluster) -> None:
    with cluster.coordinator("--coordinator.host=0.0.0.0"):
        refused(ask(cluster, f"--coordinators=127.0.0.2:{cluster.port}"), 4, "127.0.0.2", "localhost", "127.0.0.1")


def test_the_advertised_name_must_be_in_the_certificate(cluster: Cluster) -> None:
    done = cluster.host.run("coordinator", "--coordinator.advertise=elsewhere.example.com")
    refused(done, 3, "elsewhere.example.com", "localhost", "coordinator.crt")


def test_an_expired_certificate(cluster: Cluster, tmp_path: Path) -> None:
    faketime = needs.program("faketime", package="faketime")
    old = tmp_path / "old"
    command = [faketime, "-f", "-400d", str(PROGRAM), "pki", "issue", "worker", "old", "--out", str(old)]
    subprocess.run(command, env=cluster.host.environment, check=True, capture_output=True)
    host = cluster.new_host("old-host")
    with cluster.unready_worker("old", *with_files_of(cluster, old, "old"), host=host) as worker:
        assert worker.wait() == 3
        assert "(cert_expired)" in worker.text
        assert "expired on" in worker.text


def test_no_client_certificate_is_a_start_up_error(cluster: Cluster) -> None:
    bare = cluster.new_host("bare")
    refused(bare.run("workers", cluster.operator), 3, "operator.crt", "pki issue")
    refused(bare.run("worker", "--worker.id=w9", f"--worker.coordinators={cluster.address}"), 3, "w9.crt")


def test_a_client_without_certificate_is_refused_by_name_on_the_coordinator(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.host.home / "pki" / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    with cluster.coordinator() as coordinator:
        with (
            socket.create_connection(("localhost", cluster.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
            pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
        ):
            secure.recv(64)
        coordinator.wait_for("no_client_cert")


def test_a_worker_certificate_may_not_dispatch(cluster: Cluster, tmp_path: Path) -> None:
    dag = tmp_path / "d.yaml"
    dag.write_text("steps:\n  - run: echo hi\n")
    host = cluster.worker_host("w1")
    with cluster.coordinator() as coordinator:
        flags = with_files_of(cluster, host.home / "pki", "w1")
        refused(
            cluster.host.run("dispatch", str(dag), cluster.operator, *flags), 4, "(not_owner)", "worker", "dispatch"
        )
        refused(cluster.host.run("workers", cluster.operator, *flags), 4, "(role_not_allowed)", "worker")
        coordinator.wait_for("role_not_allowed")


def test_an_operator_certificate_may_not_work(cluster: Cluster) -> None:
    with (
        cluster.coordinator() as coordinator,
        cluster.unready_worker("w1", *with_files_of(cluster, cluster.host.home / "pki", "operator")) as worker,
    ):
        assert worker.wait() == 4
        coordinator.wait_for("role_not_allowed")


def test_a_worker_may_not_take_another_name(cluster: Cluster) -> None:
    flags = with_files_of(cluster, cluster.worker_host("w1").home / "pki", "w1")
    with cluster.coordinator() as coordinator, cluster.unready_worker("w2", *flags) as worker:
        assert worker.wait() in (3, 4)
        assert "w1" in worker.text
        if worker.process.returncode == 4:
            coordinator.wait_for("worker_id_mismatch")


def test_an_http_reverse_proxy_in_front_is_named(cluster: Cluster, tmp_path: Path) -> None:
    nginx = needs.program("nginx", package="nginx-light")
    port = free_port()
    pki = cluster.host.home / "pki"
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"""
        daemon off; error_log {tmp_path}/error.log; pid {tmp_path}/nginx.pid; events {{}}
        http {{
          access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;
          fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
          server {{
            listen 127.0.0.1:{port} ssl http2;
            ssl_protocols TLSv1.3; ssl_certificate {pki}/coordinator.crt; ssl_certificate_key {pki}/coordinator.key;
            location / {{ return 502; }}
          }}
        }}
        """
    )
    proxy = subprocess.Popen([nginx, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        until_listening(port)
        refused(ask(cluster, f"--coordinators=localhost:{port}"), 3, "proxy")
    finally:
        proxy.terminate()
        proxy.wait(timeout=10)


def until_listening(port: int) -> None:
    """Wait until somebody listens on `port`."""

    async def connect() -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    asyncio.run(connect())


def test_an_advertised_address_that_the_worker_cannot_reach_is_said_in_three_places(
    cluster: Cluster, tmp_path: Path
) -> None:
    # 127.0.0.1 answers; 127.0.0.3 is advertised, but nobody listens there.
    cluster.host.ok("pki", "issue", "coordinator", "moved", "--advertise=127.0.0.3,localhost", "--out", str(tmp_path))
    dag = tmp_path / "hello.yaml"
    dag.write_text("steps:\n  - id: a\n    run: echo hi\n")
    with (
        cluster.coordinator(
            "--coordinator.advertise=127.0.0.3",
            "--coordinator.host=127.0.0.1",
            *with_files_of(cluster, tmp_path, "moved"),
        ) as coordinator,
        cluster.worker("w1") as worker,
    ):
        cluster.host.ok("dispatch", str(dag), cluster.operator, "--run-id=o1", "--follow")
        began = coordinator.at("task.claimed.*o1")
        assert worker.at("owner.unreachable") - began < timedelta(seconds=8)  # 5 s to say it
        assert coordinator.at("run.warned") - began < timedelta(seconds=8)
        status = json.loads(cluster.host.ok("status", "hello", "-r", "o1", cluster.operator, "--json"))
        assert any("127.0.0.3" in warning for warning in status["run"]["warnings"])


def test_a_second_coordinator_on_the_port_is_refused(cluster: Cluster) -> None:
    words = ("coordinator", f"--coordinator.port={cluster.port}", "--coordinator.advertise=localhost",
             "--coordinator.health-port=0")  # fmt: skip
    other = cluster.new_host("other")
    other.ok("pki", "init", "--advertise", "localhost")
    with cluster.coordinator():
        refused(other.run(*words), 3, str(cluster.port), "in use")
        refused(cluster.host.run(*words), 5, "audit", "one writer", "its own")  # the same data, too


@pytest.mark.parametrize("missing", ["coordinator.crt", "coordinator.key", "ca.crt"])
def test_a_coordinator_with_a_part_of_its_certificates_missing_does_not_start(cluster: Cluster, missing: str) -> None:
    (cluster.host.home / "pki" / missing).unlink()
    done = cluster.host.run("coordinator", f"--coordinator.port={cluster.port}", "--coordinator.advertise=localhost")
    refused(done, 3, missing)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", cluster.port), timeout=1)


def test_a_misspelt_flag_names_the_nearest(cluster: Cluster) -> None:
    done = cluster.host.run("coordinator", "--coordinator.advertize=localhost")
    assert done.returncode == 2
    assert "--coordinator.advertise" in done.stderr
