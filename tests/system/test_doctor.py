"""`secure-dagu doctor` against each broken set-up: it names the layer at fault, and both ends give the same code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import PROGRAM, Host, Service
from tests.system.test_clear_failures import until_listening

LAYERS = (
    "config", "library", "proxy", "files", "key", "certificate", "identity", "labels", "renewal", "revocation", "name",
    "route", "tls", "grpc", "clock", "admission", "advertised", "idle",
)  # fmt: skip


class Stage:
    """A running coordinator, the host of worker `w1`, and the doctor."""

    def __init__(self, cluster: Cluster, coordinator: Service) -> None:
        self.cluster, self.coordinator = cluster, coordinator
        self.worker = cluster.worker_host("w1")

    def doctor(self, *words: str, port: int | None = None, host: Host | None = None) -> Diagnosis:
        """Run it as `w1`."""
        at = f"--worker.coordinators=localhost:{port or self.cluster.port}"
        said = [word.partition("=")[0] for word in words]
        more = [at] if "--worker.coordinators" not in said and "--as" not in said else []
        return diagnose(host or self.worker, "--worker.id=w1", *more, *words)


class Diagnosis:
    """What the doctor printed with --json."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.exit_code = done.returncode
        self.document: dict[str, Any] = json.loads(done.stdout)
        self.checks: list[dict[str, str]] = self.document["checks"]
        self.stderr = done.stderr

    @property
    def failed(self) -> list[dict[str, str]]:
        """Return the checks that failed."""
        return [check for check in self.checks if check["state"] == "fail"]

    def of(self, name: str) -> dict[str, str]:
        """Return the first check of a name."""
        return next(check for check in self.checks if check["check"] == name)

    def names(self, layer: str, code: str, exit_code: int, *fragments: str) -> None:
        """Check that this layer is named as the one at fault, and that all before it are not."""
        assert [(check["check"], check["code"]) for check in self.failed] == [(layer, code)], self.checks
        assert self.exit_code == exit_code == self.document["exit_code"]
        assert self.document["ok"] is False
        found = self.failed[0]
        assert found is self.checks[-1], "nothing behind the fault is tried"
        assert found["what"]
        assert found["why"]
        assert found["fix"]
        text = f"{found['what']} {found['why']} {found['fix']}"
        for fragment in fragments:
            assert fragment in text


def diagnose(host: Host, *words: str, prefix: Sequence[str] = ()) -> Diagnosis:
    """Run the doctor on a host."""
    done = subprocess.run(
        [*prefix, str(PROGRAM), "doctor", "--json", *words],
        env=host.environment,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.stdout, done.stderr
    return Diagnosis(done)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Return a coordinator that listens on every address of this host."""
    cluster = Cluster(tmp_path_factory.mktemp("doctor"))
    with cluster.coordinator("--coordinator.host=0.0.0.0") as coordinator:
        yield Stage(cluster, coordinator)


# ── what works ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_is_well_as_a_worker(stage: Stage) -> None:
    found = stage.doctor("--idle=300ms")
    assert found.exit_code == 0, found.checks
    assert found.document["ok"] is True
    assert [check["check"] for check in found.checks] == [name for name in LAYERS if name != "labels"]
    assert {(check["state"], check["code"]) for check in found.checks} == {("ok", "ok")}
    assert set(found.checks[0]) == {"check", "state", "code", "target", "what", "why", "fix"}
    assert "TLSv1.3" in found.of("tls")["what"]
    assert "OpenSSL" in found.of("library")["what"]
    assert "FIPS" in found.of("library")["what"]
    listed = json.loads(stage.cluster.host.ok("workers", stage.cluster.operator, "--json"))
    assert listed["workers"] == [], "no worker appears because somebody asked"


def test_all_is_well_as_an_operator_in_words(stage: Stage) -> None:
    said = stage.cluster.host.ok("doctor", "--as=operator", stage.cluster.operator)
    assert "Everything works." in said
    assert max(map(len, said.splitlines())) < 200


def test_a_tcp_forwarder_passes(stage: Stage, tmp_path: Path) -> None:
    nginx = needs.program("nginx", package="nginx-light")
    module = needs.file(Path("/usr/lib/nginx/modules/ngx_stream_module.so"), package="libnginx-mod-stream")
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"load_module {module}; daemon off; error_log {tmp_path}/e.log; pid {tmp_path}/pid; events {{}}\n"
        f"stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{stage.cluster.port}; }} }}\n"
    )
    with running([nginx, "-c", str(config)], port):
        found = stage.doctor(port=port)
    assert found.exit_code == 0, found.checks
    assert found.of("advertised")["state"] == "ok"


# ── the way there ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_does_not_resolve(stage: Stage) -> None:
    found = stage.doctor("--worker.coordinators=no-such-host.invalid:50055")
    found.names("name", "dns", 5, "no-such-host.invalid")


def test_a_closed_port(stage: Stage) -> None:
    found = diagnose(stage.worker, "--worker.id=w1", f"--worker.coordinators=localhost:{free_port()}")
    found.names("route", "refused", 5, "nothing listens", "127.0.0.1")


def test_a_proxy_is_told_and_never_asked_for_loopback(stage: Stage) -> None:
    env = {**stage.worker.environment, "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [str(PROGRAM), "doctor", "--json", "--worker.id=w1", f"--worker.coordinators={stage.cluster.address}"],
        env=env, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    found = Diagnosis(done)
    assert found.exit_code == 0
    assert "passed over: loopback" in found.of("proxy")["what"]
    assert found.of("admission")["state"] == "ok"


def test_a_connection_that_is_cut_while_idle(stage: Stage) -> None:
    with cutting_forwarder(stage.cluster.port, idle_s=0.4) as port:
        found = stage.doctor("--idle=2s", port=port)
    assert found.exit_code == 0, found.checks
    assert (found.of("idle")["state"], found.of("idle")["code"]) == ("warn", "idle_cut")


# ── what is there ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_health_port(stage: Stage) -> None:
    found = stage.doctor(port=stage.cluster.health_port)
    found.names("tls", "http_server", 3, "health port", "50055")


def test_a_plaintext_coordinator(stage: Stage, tmp_path: Path) -> None:
    other = Cluster(tmp_path)
    with other.coordinator("--peer.insecure=true") as coordinator:
        stage.doctor(port=other.port).names("tls", "plaintext_server", 3, "without TLS", "peer.insecure")
        coordinator.wait_for("link.refused.*plaintext_server")


def test_plaintext_to_a_coordinator_with_tls(stage: Stage) -> None:
    found = stage.doctor("--peer.insecure=true")
    assert found.of("files")["code"] == "plaintext"
    found.names("grpc", "plaintext_client", 3, "wants TLS")
    stage.coordinator.wait_for("link.refused.*plaintext_client")


def test_an_http_proxy_with_the_coordinators_own_certificate(stage: Stage, tmp_path: Path) -> None:
    with http_proxy(stage.cluster.host, tmp_path) as port:
        found = stage.doctor(port=port)
    found.names("grpc", "http_proxy", 3, "raw TCP")


def test_an_http_proxy_without_tls(stage: Stage, tmp_path: Path) -> None:
    with http_proxy(None, tmp_path) as port:
        found = stage.doctor(port=port)
    assert found.failed[0]["check"] == "tls"
    assert found.failed[0]["code"] in ("http_server", "plaintext_server")
    assert found.exit_code == 3


def test_interception_prints_the_issuer_that_it_saw(stage: Stage, tmp_path: Path) -> None:
    firewall = Host(tmp_path / "firewall")
    firewall.home.mkdir()
    firewall.ok("pki", "init", "--advertise", "localhost", "--trust-domain", "firewall.example")
    with http_proxy(firewall, tmp_path) as port:
        found = stage.doctor(port=port)
    found.names("tls", "untrusted_server", 4, "firewall.example", "intercepts", "secure-dagu CA of secure-dagu")


def test_a_name_that_the_certificate_does_not_have(stage: Stage) -> None:
    found = stage.doctor(f"--worker.coordinators=127.0.0.2:{stage.cluster.port}")
    found.names("tls", "name_mismatch", 4, "dialled 127.0.0.2", "localhost", "127.0.0.1")
    stage.coordinator.wait_for("link.refused.*name_mismatch.*the connection came to 127.0.0.2")


# ── our own files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_certificate(stage: Stage, tmp_path: Path) -> None:
    found = stage.doctor(host=Host(tmp_path))
    found.names("files", "no_certificate_files", 3, "w1.crt", "pki issue")


def test_a_key_that_others_may_read(stage: Stage) -> None:
    host = stage.cluster.worker_host("careless")
    key = host.home / "pki" / "careless.key"
    key.chmod(0o644)
    found = diagnose(host, "--worker.id=careless", f"--worker.coordinators={stage.cluster.address}")
    found.names("key", "key_file", 3, "0644", "chmod 600", str(key))


def test_a_key_of_another_certificate(stage: Stage) -> None:
    host = stage.cluster.worker_host("mixed")
    pki = host.home / "pki"
    (pki / "mixed.key").write_bytes((stage.worker.home / "pki" / "w1.key").read_bytes())
    found = diagnose(host, "--worker.id=mixed", f"--worker.coordinators={stage.cluster.address}")
    found.names("key", "key_mismatch", 3, "mixed.key", "mixed.crt")


def test_an_expired_certificate(stage: Stage) -> None:
    faketime = needs.program("faketime", package="faketime")
    found = diagnose(
        stage.worker, "--worker.id=w1", f"--worker.coordinators={stage.cluster.address}",
        prefix=[faketime, "-f", "+40d"],
    )  # fmt: skip
    found.names("certificate", "cert_expired", 3, "our certificate has expired", "ended on", "secure-dagu join")


def test_a_certificate_that_our_own_list_revokes(stage: Stage) -> None:
    """Known here before anything is dialled."""
    host = stage.cluster.worker_host("lost")
    stage.cluster.host.ok("pki", "revoke", "lost")
    listed = f"--peer.crl-file={stage.cluster.host.home}/pki/ca.crl"
    found = diagnose(host, "--worker.id=lost", f"--worker.coordinators={stage.cluster.address}", listed)
    found.names("revocation", "cert_revoked", 3, "revoked", "on this host")


def test_a_revocation_list_that_is_too_old(tmp_path: Path) -> None:
    """Nothing is dialled with it, so no coordinator is needed."""
    faketime = needs.program("faketime", package="faketime")
    cluster = Cluster(tmp_path)
    worker = cluster.worker_host("w1")
    done = subprocess.run(
        [faketime, "-f", "-35d", str(PROGRAM), "pki", "crl", "--renew"],
        env=cluster.host.environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = diagnose(
        worker, "--worker.id=w1", f"--worker.coordinators={cluster.address}",
        f"--peer.crl-file={cluster.host.home}/pki/ca.crl",
    )  # fmt: skip
    found.names("revocation", "client_crl_unusable", 3, "next update", "ca.crl")


def test_a_coordinator_whose_certificate_has_ended(stage: Stage, tmp_path: Path) -> None:
    faketime = needs.program("faketime", package="faketime")
    old = Host(tmp_path / "old")
    (old.home / "pki").mkdir(parents=True)
    command = [
        faketime, "-f", "-400d", str(PROGRAM), "pki", "issue", "coordinator", "coordinator", "--advertise=localhost",
        "--out", str(old.home / "pki"),
    ]  # fmt: skip
    done = subprocess.run(command, env=stage.cluster.host.environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with http_proxy(old, tmp_path) as port:
        found = stage.doctor(port=port)
    found.names("tls", "server_expired", 4, "our clock says", "ended on")


def test_a_clock_that_is_wrong(stage: Stage) -> None:
    faketime = needs.program("faketime", package="faketime")
    found = diagnose(
        stage.worker, "--worker.id=w1", f"--worker.coordinators={stage.cluster.address}", prefix=[faketime, "-f", "+2h"]
    )
    assert found.exit_code == 0, found.checks
    assert found.of("clock")["code"] == "clock_skew"
    assert "ahead of" in found.of("clock")["what"]


def test_a_certificate_of_another_role(stage: Stage) -> None:
    pki = stage.cluster.host.home / "pki"
    found = stage.doctor(
        f"--peer.cert-file={pki}/operator.crt", f"--peer.key-file={pki}/operator.key",
        f"--peer.client-ca-file={pki}/ca.crt",
    )  # fmt: skip
    assert (found.failed[0]["check"], found.failed[0]["code"]) == ("identity", "role_not_allowed")
    assert found.exit_code == 4


def test_labels_that_are_not_granted(stage: Stage) -> None:
    found = stage.doctor("--worker.labels=gpu=true")
    assert found.of("labels")["state"] == "warn"
    found.names("admission", "label_not_granted", 4, "gpu=true", "pki issue worker w1")
    stage.coordinator.wait_for("call.refused.*label_not_granted")


def test_a_revoked_certificate(stage: Stage) -> None:
    host = stage.cluster.worker_host("stolen")
    stage.cluster.host.ok("pki", "revoke", "stolen")
    until = time.monotonic() + 60
    found = diagnose(host, "--worker.id=stolen", f"--worker.coordinators={stage.cluster.address}")
    # The coordinator looks at its list each second; a dial that is under way just then is cut later than its handshake.
    while [check["check"] for check in found.failed] != ["tls"] and time.monotonic() < until:
        found = diagnose(host, "--worker.id=stolen", f"--worker.coordinators={stage.cluster.address}")
    found.names("tls", "cert_revoked", 4, "revoked")
    line = stage.coordinator.wait_for("link.refused.*cert_revoked")
    assert "subject=" in line


def test_an_advertised_address_that_cannot_be_reached(stage: Stage, tmp_path: Path) -> None:
    stage.cluster.host.ok(
        "pki", "issue", "coordinator", "moved", "--advertise=127.0.0.3,localhost", "--out", str(tmp_path)
    )
    port, files = free_port(), [
        f"--peer.cert-file={tmp_path}/moved.crt", f"--peer.key-file={tmp_path}/moved.key",
        f"--peer.client-ca-file={tmp_path}/ca.crt",
    ]  # fmt: skip
    home = Host(tmp_path / "home")
    home.home.mkdir()
    words = [
        "coordinator", f"--coordinator.port={port}", "--coordinator.health-port=0", "--coordinator.host=127.0.0.1",
        "--coordinator.advertise=127.0.0.3", *files,
    ]  # fmt: skip
    with home.service(*words) as coordinator:
        coordinator.wait_for("coordinator.ready")
        found = stage.doctor(port=port)
    assert found.exit_code == 0, found.checks
    assert (found.of("advertised")["state"], found.of("advertised")["code"]) == ("warn", "refused")
    assert f"127.0.0.3:{port}" in found.of("advertised")["what"]


def test_a_configuration_that_cannot_be_used_is_a_check_too(stage: Stage) -> None:
    found = stage.doctor("--worker.max-active-runs=none")
    found.names("config", "config", 3, "worker.max_active_runs")


# ── what stands in the way ───────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def running(words: list[str], port: int) -> Iterator[None]:
    """Run a server until it listens, and end it."""
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        until_listening(port)
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def http_proxy(host: Host | None, folder: Path) -> Iterator[int]:
    """Run nginx as an HTTP proxy, with the coordinator's certificate of a host, or without TLS."""
    nginx = needs.program("nginx", package="nginx-light")
    port = free_port()
    tls = ""
    if host is not None:
        pki = host.home / "pki"
        tls = (
            f"ssl_protocols TLSv1.3; ssl_certificate {pki}/coordinator.crt; ssl_certificate_key {pki}/coordinator.key;"
        )
    config = folder / "http.conf"
    config.write_text(
        f"""
        daemon off; error_log {folder}/error.log; pid {folder}/nginx.pid; events {{}}
        http {{
          access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
          fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          server {{ listen 127.0.0.1:{port} {"ssl http2" if tls else ""}; {tls} location / {{ return 502; }} }}
        }}
        """
    )
    with running([nginx, "-c", str(config)], port):
        yield port


@contextmanager
def cutting_forwarder(to: int, *, idle_s: float) -> Iterator[int]:
    """Forward TCP and cut a connection over which nothing has come for a while, as a load balancer does."""
    ready, ports = threading.Event(), []
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(None) as limit:
                while True:
                    limit.reschedule(loop.time() + idle_s)
                    if not (data := await reader.read(1 << 16)):
                        return
                    writer.write(data)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", to)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, outer))
            group.create_task(pump(inner, writer))

    async def serve(stop: asyncio.Event) -> None:
        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        async with server:
            ports.append(server.sockets[0].getsockname()[1])
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(stop)), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        with contextlib.suppress(RuntimeError):
            loop.close()
