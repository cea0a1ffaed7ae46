"""The compliance report of real processes: as they are made, with everything weakened, and to whom it is shown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import Host

PASSWORD = "correct horse"
CONTROLS = (
    "peer_mtls", "tls_min_12", "cert_validity", "audit_enabled", "auth_enabled", "api_tls", "secrets_not_in_env",
    "fs_permissions",
)  # fmt: skip


@dataclass(frozen=True)
class Telling(Host):
    """A machine that keeps a secret in an environment variable."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "DAGU_AUTH_TOKEN_SECRET": "x" * 40}


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {control["id"]: control["status"] for control in report["controls"]}


def gauge(text: str) -> dict[str, str]:
    name = 'secure_dagu_compliance_control_status{control="'
    lines = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return {control: value for control, _, value in (line.partition('"} ') for line in lines)}


def test_a_server_as_it_is_made_passes_and_tells_only_who_may_read_the_audit_log(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    host, port = Host(tmp_path / "home"), free_port()
    with (
        host.service("start-all", f"--port={port}", "--scheduler.port=0") as service,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20) as client,
    ):
        service.wait_for(r"msg=ready\s")
        assert client.get("/compliance/report").status_code == 401
        made = client.post("/auth/setup", json={"username": "ada", "password": PASSWORD}).json()
        admin = {"Authorization": f"Bearer {made['token']}"}
        other = {"username": "dev", "password": PASSWORD, "role": "developer"}
        assert client.post("/users", json=other, headers=admin).status_code == 201
        login = client.post("/auth/login", json={"username": "dev", "password": PASSWORD}).json()
        answer = client.get("/compliance/report", headers={"Authorization": f"Bearer {login['token']}"})
        assert answer.status_code == 403
        report = client.get("/compliance/report", headers=admin).json()
        assert statuses(report) == dict.fromkeys(CONTROLS, "pass"), report
        assert report["passed"] is True
        assert (report["exceptions"], report["totalExceptions"]) == ([], 0)
        assert all(all(control["references"].values()) for control in report["controls"])
        assert report["audit"]["entries"] > report["audit"]["checkedEntries"]
        newest = client.get("/audit", params={"action": "audit_read"}, headers=admin).json()["entries"]
        assert "compliance" in [entry.get("resourceId") for entry in newest]
        head = next(
            log for log in client.get("/audit/verify", headers=admin).json()["logs"] if log["log"] == "server"
        )  # fmt: skip
        assert head["ok"]
        assert head["entries"] > report["audit"]["entries"]
        assert gauge(client.get("/metrics", headers=admin).text) == dict.fromkeys(CONTROLS, "1.0")
        assert service.stop() == 0


def test_the_report_tells_when_the_audit_log_was_last_verified_and_that_it_was_changed(cluster: Cluster) -> None:
    web, first = free_port(), cluster.host.home / "data" / "audit" / "000000000001.jsonl"
    (cluster.host.home / "config.yaml").write_text("audit: {verify_interval: 100ms}\nauth: {mode: none}\n")
    words = [
        "start-all", f"--port={web}", "--scheduler.port=0", f"--coordinator.port={cluster.port}",
        "--coordinator.advertise=localhost", f"--coordinator.health-port={cluster.health_port}",
    ]  # fmt: skip
    cluster.host.ok("exception", "grant", "no-login", "--owner", "ada", "--reason", "a test", "--until", "2d")
    with (
        cluster.host.service(*words) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{web}/api/v1", timeout=20) as client,
    ):
        service.wait_for(r"msg=ready\s")
        began = datetime.now(UTC).timestamp()

        def look() -> tuple[dict[str, Any], dict[str, str], list[str]]:
            report = client.get("/compliance/report").json()
            lines = client.get("/metrics").text.splitlines()
            heads = [line for line in lines if line.startswith("secure_dagu_audit_chain_head_info{")]
            return report, dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#")), heads

        def until(holds: Callable[[dict[str, Any], dict[str, str]], bool]) -> tuple[dict[str, Any], list[str]]:
            ends = time.monotonic() + 60
            while True:
                report, series, heads = look()
                if holds(report, series):
                    return report, heads
                assert time.monotonic() < ends, (report, service.text)
                time.sleep(0.05)

        report, heads = until(
            lambda report, series: (
                report["audit"]["checkedWhole"]
                and float(series["secure_dagu_audit_chain_last_verified_timestamp_seconds"]) >= began
            )
        )
        assert datetime.fromisoformat(report["audit"]["checkedAt"]).timestamp() >= began - 1
        assert len(heads) == 1
        assert statuses(report)["audit_enabled"] == "pass"
        checked = report["audit"]["checkedEntries"]
        until(lambda report, _: report["audit"]["checkedEntries"] > checked)

        good = first.read_bytes()
        at = good.index(b"process.started")
        with first.open("r+b") as file:  # one letter, in a file that is being written
            file.seek(at)
            file.write(b"P")
        bad, _ = until(lambda report, series: series["secure_dagu_audit_chain_valid"] == "0.0")
        bad, _ = until(lambda report, series: statuses(report)["audit_enabled"] == "fail")
        assert "at record" in next(item["why"] for item in bad["controls"] if item["id"] == "audit_enabled")
        service.wait_for("audit.damaged")
        last = bad["audit"]["checkedEntries"]
        assert look()[0]["audit"]["checkedEntries"] == last, "what is damaged was not verified"
        with first.open("r+b") as file:
            file.seek(at)
            file.write(b"p")
        until(lambda report, series: series["secure_dagu_audit_chain_valid"] == "1.0")
        assert service.stop() == 0


def test_a_server_with_everything_weakened_says_what_and_who_answers_for_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "data" / "users").mkdir(parents=True)
    (home / "data" / "users").chmod(0o755)
    (home / "config.yaml").write_text("tls: {insecure: true}\nauth: {mode: none}\npeer: {insecure: true}\n")
    host, port = Telling(home), free_port()
    for kind in ("http-plaintext", "no-login"):
        host.ok("exception", "grant", kind, "--owner", "ada", "--reason", "a test", "--until", "2d")
    with host.service("server", "--host=0.0.0.0", f"--port={port}") as service:
        service.wait_for(r"msg=ready\s")
        report = httpx.get(f"http://127.0.0.1:{port}/api/v1/compliance/report", timeout=20).json()
        shown = gauge(httpx.get(f"http://127.0.0.1:{port}/api/v1/metrics", timeout=20).text)
        assert service.stop() == 0
    good = ("cert_validity", "audit_enabled")
    assert statuses(report) == {name: "pass" if name in good else "fail" for name in CONTROLS}, report
    assert shown == {name: "1.0" if name in good else "0.0" for name in CONTROLS}
    assert report["passed"] is False
    assert [(item["kind"], item["owner"]) for item in report["exceptions"]] == [
        ("http-plaintext", "ada"), ("no-login", "ada"),
    ]  # fmt: skip
    told = json.dumps(report)
    assert "DAGU_AUTH_TOKEN_SECRET" in told
    assert "x" * 40 not in told
    assert f"{home / 'data' / 'users'} (mode 0755)" in told


@pytest.mark.parametrize(("mode", "status"), [(0o600, "1.0"), (0o604, "0.0")])
def test_a_coordinator_shows_the_controls_that_it_has(cluster: Cluster, mode: int, status: str) -> None:
    (cluster.host.home / "pki" / "spare.key").touch(mode=0o600)
    (cluster.host.home / "pki" / "spare.key").chmod(mode)
    with cluster.coordinator() as service:
        text = httpx.get(f"http://127.0.0.1:{cluster.health_port}/metrics", timeout=20).text
        assert service.stop() == 0
    has = [name for name in CONTROLS if name not in ("auth_enabled", "api_tls")]
    assert gauge(text) == dict.fromkeys(has, "1.0") | {"fs_permissions": status}
