"""`secure-dagu server` and `start-all` as a person runs them."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from secure_dagu.assembly.tunnel import Node, open_tunnel
from secure_dagu.config.load import load
from tests.ports import free_port
from tests.runner.harness import alive
from tests.system.conftest import Cluster
from tests.system.hosts import Host

PASSWORD = "correct horse"
SLOW = "steps:\n  - id: a\n    run: sleep {seconds}; echo done\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return an empty machine."""
    (tmp_path / "home").mkdir()
    return Host(tmp_path / "home")


_CLIENTS: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close every client of a test."""
    yield
    while _CLIENTS:
        _CLIENTS.pop().close()


class Api:
    """A person at the API of a server."""

    def __init__(self, url: str, verify: ssl.SSLContext | bool = True) -> None:
        self.client = httpx.Client(base_url=f"{url}/api/v1", timeout=20, verify=verify)
        _CLIENTS.append(self.client)

    def set_up(self, token: str = "") -> None:
        """Make the first admin and log in."""
        body = {"username": "ada", "password": PASSWORD, "setupToken": token}
        answer = self.client.post("/auth/setup", json=body)
        assert answer.status_code == 200, answer.text
        self.client.headers["Authorization"] = f"Bearer {answer.json()['token']}"

    def status(self, name: str, run_id: str) -> str:
        """Return how a run stands."""
        answer = self.client.get(f"/dag-runs/{name}/{run_id}")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["dagRunDetails"]["statusLabel"])

    def until(self, name: str, run_id: str, wanted: str, *, timeout_s: float = 60) -> None:
        """Wait until a run has a status."""
        until = time.monotonic() + timeout_s
        while (found := self.status(name, run_id)) != wanted:
            assert time.monotonic() < until, f"it is {found}, not {wanted}"
            time.sleep(0.05)


def test_one_command_gives_a_working_system_with_a_login(host: Host) -> None:
    port = free_port()
    with host.service("start-all", f"--port={port}", "--scheduler.port=0") as service:
        service.wait_for(r"msg=ready\s")
        api = Api(f"http://127.0.0.1:{port}")
        assert api.client.get("/dags").status_code == 401
        api.set_up()
        started = api.client.post("/dags/example-hello/start", json={})
        assert started.status_code == 200, started.text
        api.until("example-hello", started.json()["dagRunId"], "succeeded")
        queued = api.client.post("/dags/example-chain/enqueue", json={})
        api.until("example-chain", queued.json()["dagRunId"], "succeeded")
        log = api.client.get(f"/dag-runs/example-hello/{started.json()['dagRunId']}/log").json()
        assert log["content"]
        assert "example-hello" in host.ok("history")
        assert service.stop() == 0
    assert not (host.home / "pki").exists()
    keys = [host.home / "data" / "auth" / "token_secret", *(host.home / "data" / "users").glob("*.json")]
    assert all(stat.S_IMODE(os.stat(key).st_mode) == 0o600 for key in keys)


def test_sigterm_lets_runs_finish_and_begins_nothing_new(host: Host) -> None:
    port = free_port()
    (host.home / "dags").mkdir()
    (host.home / "dags" / "slow.yaml").write_text(SLOW.format(seconds=4))
    with host.service("start-all", f"--port={port}", "--scheduler.port=0") as service:
        service.wait_for(r"msg=ready\s")
        api = Api(f"http://127.0.0.1:{port}")
        api.set_up()
        run_id = api.client.post("/dags/slow/start", json={}).json()["dagRunId"]
        api.until("slow", run_id, "running")
        service.signal(signal.SIGTERM)
        service.wait_for("runs.draining")
        assert api.client.get("/ready").status_code == 503
        assert service.wait() == 0
    assert json.loads(host.ok("history", "slow", "-f", "json"))[0]["status"] == "succeeded"


def test_runs_outlive_a_server_that_is_killed(host: Host) -> None:
    port = free_port()
    (host.home / "dags").mkdir()
    (host.home / "dags" / "slow.yaml").write_text(SLOW.format(seconds=4))
    with host.service("server", f"--port={port}") as service:
        service.wait_for(r"msg=ready\s")
        api = Api(f"http://127.0.0.1:{port}")
        api.set_up()
        run_id = api.client.post("/dags/slow/start", json={}).json()["dagRunId"]
        api.until("slow", run_id, "running")
        service.signal(signal.SIGKILL)
        service.wait()
    with host.service("server", f"--port={port}") as service:
        service.wait_for(r"msg=ready\s")
        again = Api(f"http://127.0.0.1:{port}")
        again.client.headers["Authorization"] = api.client.headers["Authorization"]
        again.until("slow", run_id, "succeeded")
        assert service.stop() == 0


@pytest.mark.parametrize("command", ["server", "start-all"])
def test_a_port_in_use_ends_the_start_with_what_to_do(host: Host, command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = host.run(command, f"--port={port}")
    assert done.returncode == 3
    assert f"127.0.0.1:{port}" in done.stderr
    assert "another process listens" in done.stderr


def test_beyond_loopback_it_speaks_https_with_the_pki_of_the_host_and_asks_for_the_setup_token(host: Host) -> None:
    port = free_port()
    refused = host.run("server", "--host=0.0.0.0", f"--port={port}")
    assert refused.returncode == 3
    assert "needs a certificate" in refused.stderr
    host.ok("pki", "init", "--advertise", "localhost")
    with host.service("server", "--host=0.0.0.0", f"--port={port}") as service:
        service.wait_for("web.needs_setup")
        service.wait_for(r"msg=ready\s")
        trust = ssl.create_default_context(cafile=host.home / "pki" / "ca.crt")
        api = Api(f"https://localhost:{port}", verify=trust)
        with pytest.raises(AssertionError, match="setup token"):
            api.set_up()
        token = host.home / "data" / "auth" / "setup_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert token.read_text().strip() not in service.text
        api.set_up(token.read_text().strip())
        answer = api.client.get("/dags")
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}/api/v1/health").raise_for_status()
        trust.load_cert_chain(host.home / "pki" / "operator.crt", host.home / "pki" / "operator.key")
        by_certificate = Api(f"https://localhost:{port}", verify=trust)
        assert by_certificate.client.get("/auth/me").json()["user"]["role"] == "admin"
        assert service.stop() == 0


@pytest.fixture
def exposed(host: Host) -> Host:
    """Return a machine with a CA."""
    host.ok("pki", "init", "--advertise", "localhost")
    return host


@pytest.mark.parametrize(("setting", "kind"), [("DAGU_TLS_INSECURE", "http-plaintext"), ("DAGU_AUTH_MODE", "no-login")])
def test_less_than_https_and_a_login_beyond_loopback_needs_an_exception(
    exposed: Host, setting: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"DAGU_TLS_INSECURE": "true", "DAGU_AUTH_MODE": "none"}[setting]
    (exposed.home / "config.yaml").write_text("tls: {insecure: true}\n" if value == "true" else "auth: {mode: none}\n")
    done = exposed.run("server", "--host=0.0.0.0", f"--port={free_port()}")
    assert done.returncode == 3
    assert f"exception grant {kind}" in done.stderr


@pytest.mark.parametrize(
    ("text", "kind"), [("tls: {insecure: true}\n", "http-plaintext"), ("auth: {mode: none}\n", "no-login")]
)
def test_the_web_server_stops_when_its_exception_ends(exposed: Host, text: str, kind: str) -> None:
    (exposed.home / "config.yaml").write_text(text)
    exposed.ok("exception", "grant", kind, "--owner", "ada", "--reason", "a test", "--until", "1d")
    port = free_port()
    is_https = kind == "no-login"
    trust = ssl.create_default_context(cafile=exposed.home / "pki" / "ca.crt") if is_https else False
    url = f"{'https' if is_https else 'http'}://localhost:{port}/api/v1/health"
    with exposed.service("server", "--host=0.0.0.0", f"--port={port}") as service:
        service.wait_for(r"msg=ready\s")
        with httpx.Client(verify=trust) as kept, socket.create_connection(("127.0.0.1", port)):
            kept.get(url)  # it answers
            exposed.ok("exception", "revoke", "ex-1")
            service.wait_for("web.stopped")
            until = time.monotonic() + 60
            while True:
                try:
                    kept.get(url)
                except httpx.HTTPError:
                    break
                assert time.monotonic() < until, "it still answers"
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, verify=trust)
        assert service.stop() == 0


@pytest.mark.parametrize(("words", "is_told"), [(("--scheduler.port=18090",), True), (("--scheduler.port=0",), False)])
def test_start_all_says_that_its_scheduler_has_no_port(host: Host, words: tuple[str, ...], is_told: bool) -> None:
    port = free_port()
    with host.service("start-all", f"--port={port}", *words) as service:
        service.wait_for(r"msg=ready\s")
        assert ("setting.unused" in service.text) == is_told
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/health", timeout=20)
        assert answer.status_code == 200
        assert service.stop() == 0


def test_start_all_runs_dispatched_runs_on_workers(cluster: Cluster) -> None:
    web = free_port()
    dags = cluster.host.home / "dags"
    dags.mkdir()
    (dags / "remote.yaml").write_text(
        "worker_selector:\n  gpu: 'true'\nsteps:\n  - id: a\n    run: echo on the worker\n"
    )
    words = [
        "start-all", f"--port={web}", "--scheduler.port=0", f"--coordinator.port={cluster.port}",
        "--coordinator.advertise=localhost", f"--coordinator.health-port={cluster.health_port}",
    ]  # fmt: skip
    worker = cluster.worker_host("w1", labels="gpu=true")
    with cluster.host.service(*words) as service:
        service.wait_for(r"msg=ready\s")
        flags = ["worker", "--worker.id=w1", "--worker.labels=gpu=true", f"--worker.coordinators={cluster.address}"]
        with worker.service(*flags, "--worker.health-port=0") as working:
            api = Api(f"http://127.0.0.1:{web}")
            api.set_up()
            until = time.monotonic() + 60
            while not api.client.get("/workers").json()["workers"]:
                assert time.monotonic() < until, working.text
                time.sleep(0.1)
            for verb in ("start", "enqueue"):
                answer = api.client.post(f"/dags/remote/{verb}", json={})
                assert answer.status_code == 200, answer.text
                run_id = answer.json()["dagRunId"]
                api.until("remote", run_id, "succeeded")
                details = api.client.get(f"/dag-runs/remote/{run_id}").json()["dagRunDetails"]
                assert details["workerId"] == "w1"
                step = api.client.get(f"/dag-runs/remote/{run_id}/steps/a/log").json()
                assert step["content"] == "on the worker\n"
            listed = [run["dagRunId"] for run in api.client.get("/dag-runs").json()["dagRuns"]]
            assert len(listed) == len(set(listed)) == 2
            for run_id in listed:
                assert api.client.delete(f"/dag-runs/remote/{run_id}").status_code == 204
                assert api.client.delete(f"/dag-runs/remote/{run_id}").status_code == 404
            assert api.client.get("/dag-runs").json()["dagRuns"] == []
            kept = cluster.host.home.rglob("*")
            assert not [path for path in kept if path.is_file() and any(run_id in str(path) for run_id in listed)]
            assert working.stop() == 0
        assert service.stop() == 0


FAKE = """\
#!/bin/sh
if [ "$1" = status ]; then
    echo '{"BackendState": "Running", "Self": {"DNSName": "box.tail1234.ts.net."}}'
    exit 0
fi
echo "$@" > "$HOME/being-written-$$"
mv "$HOME/being-written-$$" "$HOME/tunnel-arguments"
exec sleep 60
"""


def test_the_tunnel_exposes_only_an_installation_with_a_login_and_only_its_web_server(host: Host) -> None:
    """Tailscale itself cannot run here: a program of its name stands for it, up to the line where it would connect."""
    bin_ = host.home / "bin"
    bin_.mkdir()
    (bin_ / "tailscale").write_text(FAKE)
    (bin_ / "tailscale").chmod(0o755)

    class WithTailscale(Host):
        @property
        def environment(self) -> dict[str, str]:
            found = super().environment
            return {**found, "PATH": f"{self.home / 'bin'}:{found['PATH']}"}

    machine, port = WithTailscale(host.home), free_port()
    refused = machine.run("server", "--tunnel", f"--port={port}")
    assert refused.returncode == 3
    assert "no account yet" in refused.stderr
    with machine.service("server", f"--port={port}") as service:
        service.wait_for(r"msg=ready\s")
        Api(f"http://127.0.0.1:{port}").set_up()
        assert service.stop() == 0
    with machine.service("server", "--tunnel", f"--port={port}") as service:
        service.wait_for(r"tunnel.opened.*https://box.tail1234.ts.net/")
        until = time.monotonic() + 60
        while not (host.home / "tunnel-arguments").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert (host.home / "tunnel-arguments").read_text().split() == [
            "serve", "--yes", "--https=443", f"http://127.0.0.1:{port}",
        ]  # fmt: skip
        login = f"http://127.0.0.1:{port}/login"
        assert httpx.get(login, headers={"Host": "box.tail1234.ts.net"}).status_code == 200
        assert httpx.get(login, headers={"Host": "box.example.com"}).status_code == 421
        assert service.stop() == 0


async def test_a_tunnel_that_closes_spares_those_of_other_servers_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes are found by a mark, and all tunnels once had the same."""
    fake = '#!/bin/sh\necho $$ > "$HOME/new" && mv "$HOME/new" "$HOME/pid"\nexec sleep 60\n'
    (tmp_path / "tailscale").write_text(fake)
    (tmp_path / "tailscale").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load(argparse.Namespace(), {"DAGU_HOME": str(tmp_path), "HOME": str(tmp_path)})

    async def started() -> int:
        async with asyncio.timeout(60):
            while not (tmp_path / "pid").exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        (tmp_path / "pid").unlink()
        return pid

    node = Node(name="box.tail1234.ts.net", url="https://box.tail1234.ts.net/")
    async with open_tunnel(loaded, node, port=1):
        staying = await started()
        async with open_tunnel(loaded, node, port=2):
            closing = await started()
        assert not alive(closing)
        assert alive(staying)
    assert not alive(staying)


def test_a_second_start_all_on_one_data_directory_is_refused_and_the_audit_log_stays_good(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.home.mkdir()
    with host.service("start-all", f"--port={free_port()}") as first:
        first.wait_for("scheduler.active")
        second = host.run("start-all", f"--port={free_port()}")
        assert (second.returncode, "stop the other server, start-all or coordinator" in second.stderr) == (5, True)
        assert first.stop() == 0
    assert "good" in host.ok("audit", "verify")
