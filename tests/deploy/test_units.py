"""systemd units, image and Compose files: hardened as they say, and the processes run with exactly what they set."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from tests.needs import program
from tests.ports import free_port
from tests.system.hosts import PROGRAM, Host

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
COMPOSE = ROOT / "deploy/compose"


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_a_unit_exposes_little_and_its_flags_exist(unit: Path) -> None:
    analyze = program("systemd-analyze", package="systemd")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-400:]
    text = unit.read_text()
    command = re.search(r"^ExecStart=/opt/secure-dagu/bin/secure-dagu (\S+)$", text, re.MULTILINE)
    if command is not None:
        helped = subprocess.run([PROGRAM, command[1], "--help"], capture_output=True, text=True, timeout=60, check=True)
        assert "usage:" in helped.stdout
        assert "Type=notify" in text
    assert "EnvironmentFile=-/etc/secure-dagu/" in text or command is None
    assert (
        f"`{unit.stem.split('@')[0]}" in (ROOT / "deploy/systemd/README.md").read_text()
        or "-scheduler`" in (ROOT / "deploy/systemd/README.md").read_text()
    )


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """Whatever it would warn about when it loads them; the programs are not installed here, so others stand in."""
    analyze = program("systemd-analyze", package="systemd")
    for unit in UNITS:
        text = unit.read_text().replace("/opt/secure-dagu/bin/secure-dagu", "/bin/true")
        (tmp_path / unit.name).write_text(text.replace("/usr/bin/tailscale", "/bin/true"))
    (tmp_path / "tailscaled.service").write_text("[Service]\nExecStart=/bin/true\n")
    names = [unit.name.replace("@", "@coordinator.example.com") for unit in UNITS]
    for instance, unit in zip(names, UNITS, strict=True):
        if instance != unit.name:
            (tmp_path / instance).symlink_to(unit.name)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in names)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_service_tells_systemd_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    home, where = Host(tmp_path / "home"), tmp_path / "notify"
    home.home.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(where))
        manager.settimeout(30)

        class Managed(Host):
            @property
            def environment(self) -> dict[str, str]:
                return {**super().environment, "NOTIFY_SOCKET": str(where)}

        with Managed(home.home).service("server", f"--port={free_port()}") as service:
            assert manager.recv(100) == b"READY=1"
            service.wait_for(r"\bready\b")
            assert service.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"


# ── image ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_dockerfile_keeps_to_its_rules() -> None:
    text = (ROOT / "deploy/container/Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert [name for _, name in stages] == ["build", "runtime", "control-plane", "worker"]
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[3:]:
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1:] in (["1000:1000"], []), stage[:40]
        assert "sudo" not in stage
    assert "--require-hashes" in text
    assert re.search(r'^ENTRYPOINT \["/usr/bin/tini"', text, re.MULTILINE)
    assert not re.search(r"^(CMD|ENTRYPOINT) [^\[]", text, re.MULTILINE), "a shell form needs a shell"
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, str(ROOT / "deploy/container/Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_everything_that_the_image_copies_is_there_and_pinned_tools_are_those_of_the_lock() -> None:
    text = (ROOT / "deploy/container/Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
    locked = (ROOT / "requirements.txt").read_text()
    for name, version in re.findall(r'"(setuptools|wheel)==([\d.]+)"', text):
        assert f"\n{name}=={version} " in locked or f"{name}=={version} \\" in locked, f"{name}: see requirements.txt"


# ── Compose ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return the file, merged."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((COMPOSE / "compose.yaml").read_text())
    return found


def test_every_service_is_hardened_and_sees_only_its_own_key(compose: dict[str, Any]) -> None:
    mounted: list[str] = []
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service["user"].startswith("0"), name
        assert "privileged" not in service
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        mounted += [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./pki")]
        assert not any("docker.sock" in volume or volume.startswith("./ca") for volume in service["volumes"])
        for key, value in service.get("environment", {}).items():
            assert not re.search(r"(PASSWORD|SECRET|TOKEN)$", key), f"{name}: {key} belongs into a file, not {value}"
    assert len(mounted) == len(set(mounted)) == 3
    assert compose["networks"]["control"]["internal"] is True


def test_the_processes_run_with_exactly_these_settings(compose: dict[str, Any], tmp_path: Path) -> None:
    """No container engine runs here: names become localhost and mounts become folders, nothing else changes."""
    folder = tmp_path / "compose"
    shutil.copytree(COMPOSE, folder)
    env = {"PATH": f"{PROGRAM.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([folder / "prepare.sh"], env=env, check=True, capture_output=True, text=True, timeout=60)
    again = subprocess.run([folder / "prepare.sh"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1
    web, peers, health = free_port(), free_port(), free_port()

    def host(name: str, **more: str) -> Host:
        service = compose["services"][name]
        mount = next(v for v in service["volumes"] if v.endswith(":/tls:ro")).split(":")[0]

        class Contained(Host):
            @property
            def environment(self) -> dict[str, str]:
                found = {key: str(value) for key, value in service["environment"].items()}
                for key, value in found.items():
                    value = value.replace("/tls/", f"{folder / mount}/").replace("/run/secrets", f"{folder}/secrets")
                    value = value.replace("control-plane:50055", f"localhost:{peers}")
                    found[key] = "127.0.0.1" if key in ("DAGU_HOST", "DAGU_COORDINATOR_HOST") else value
                return {**super().environment, **found, **more}

        made = Contained(tmp_path / name)
        made.home.mkdir()
        return made

    plane = host("control-plane", DAGU_PORT=str(web), DAGU_COORDINATOR_PORT=str(peers),
                 DAGU_COORDINATOR_HEALTH_PORT=str(health), DAGU_SCHEDULER_PORT="0")  # fmt: skip
    worker = host("worker-1", DAGU_WORKER_HEALTH_PORT="0")
    with plane.service(*compose["services"]["control-plane"]["command"]) as running:
        running.wait_for(r"msg=ready\s")
        probe = compose["services"]["control-plane"]["healthcheck"]["test"][2:]
        plane.ok(*probe)
        with worker.service(*compose["services"]["worker-1"]["command"]) as working:
            import ssl

            trust = ssl.create_default_context(cafile=folder / "pki/control-plane/ca.crt")
            password = (folder / "secrets/admin_password").read_text().strip()
            with httpx.Client(base_url=f"https://localhost:{web}/api/v1", verify=trust, timeout=20) as api:
                said = api.post("/auth/login", json={"username": "admin", "password": password})
                assert said.status_code == 200, said.text
                api.headers["Authorization"] = f"Bearer {said.json()['token']}"
                until = time.monotonic() + 60
                while (started := api.post("/dags/example-hello/start", json={})).status_code != 200:
                    assert time.monotonic() < until, started.text + working.text
                    time.sleep(0.2)
                run_id = started.json()["dagRunId"]
                while True:
                    answer = api.get(f"/dag-runs/example-hello/{run_id}")
                    assert answer.status_code == 200, answer.text + running.text[-1500:]
                    found = answer.json()["dagRunDetails"]
                    if found["statusLabel"] == "succeeded":
                        break
                    assert time.monotonic() < until, found
                    time.sleep(0.1)
                assert found["workerId"] == "worker-1"
            scraper = ssl.create_default_context(cafile=folder / "pki/metrics/ca.crt")
            scraper.load_cert_chain(folder / "pki/metrics/prometheus.crt", folder / "pki/metrics/prometheus.key")
            with httpx.Client(verify=scraper) as prometheus:
                shown = prometheus.get(f"https://localhost:{web}/api/v1/metrics")
                assert "secure_dagu_peer_connections" in shown.text
                assert prometheus.get(f"https://localhost:{web}/api/v1/dags").status_code in (401, 403)
            assert working.stop() == 0
        assert running.stop() == 0
