"""Machines join, and keep their certificates fresh, through the real commands: one home for each pretended host."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.needs import program
from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import PROGRAM, Host, Service

LINE = r"secure-dagu join (sdj1\.\S+@localhost:\d+)"


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Host, Host]:
    """Return two empty machines."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return Host(tmp_path / "first"), Host(tmp_path / "second")


def token(cluster: Cluster, *words: str) -> str:
    """Make a token on the coordinator's host; return the line to join with."""
    made = cluster.host.ok("pki", "token", *words, "-c", str(configured(cluster)))
    return made.strip()


def configured(cluster: Cluster) -> Path:
    """Write down where the cluster's coordinator is, as a person would."""
    file = cluster.host.home / "config.yaml"
    file.write_text(f"coordinator:\n  port: {cluster.port}\n  advertise: [localhost]\n")
    return file


def serial_of(file: Path) -> int:
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number


@contextmanager
def at(host: Host, offset: str, *words: str) -> Iterator[Service]:
    """Run a service on a machine whose clock is `offset` from ours.

    The program itself is started with what faketime would set: faketime stays between, and would leave it behind.
    """
    faketime = program("faketime", package="faketime")
    shown = subprocess.run([faketime, "-f", offset, "env"], capture_output=True, text=True, check=True).stdout
    preload = dict(line.partition("=")[::2] for line in shown.splitlines() if line.startswith("LD_PRELOAD="))
    environment = host.environment | preload | {"FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    process = subprocess.Popen(
        [str(PROGRAM), *words], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    running = Service(process)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        running.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_from_nothing_to_a_working_cluster_of_two_hosts_in_two_commands(
    hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """The target: three commands and sixty seconds, from empty machines to a run on the second one."""
    first, second = hosts
    dag = tmp_path / "hello.yaml"
    dag.write_text("steps:\n  - run: echo hello from $DAG_RUN_ID\n")
    flags = [
        f"--coordinator.port={free_port()}", "--coordinator.advertise=localhost", "--coordinator.host=127.0.0.1",
        "--coordinator.health-port=0", "--worker.health-port=0",
    ]  # fmt: skip
    began = time.monotonic()
    with first.service("up", *flags) as up:  # command 1
        found = re.search(LINE, up.wait_for(LINE))
        assert found is not None
        with second.service("join", found[1], "--worker.health-port=0") as worker:  # command 2
            worker.wait_for("coordinator.reached")
            took = time.monotonic() - began
            print(f"two hosts in {took:.1f} s")
            assert took < 60
            # The second machine is a member that does work.
            names = {row["id"] for row in json.loads(first.ok("workers", "--json"))["workers"]}
            assert "worker-2" in names
            assert len(names) == 2
            up.wait_for("worker.appeared worker-id=worker-2")
            told = first.ok("dispatch", str(dag), "--follow", "--run-id=r1")
            assert "hello from r1" in told
        assert up.stop() == 0
    assert "PRIVATE" not in up.text
    # A second start finds everything there, and makes nothing anew.
    before = serial_of(first.home / "pki" / "ca.crt")
    with first.service("up", "--coordinator.health-port=0", "--worker.health-port=0") as again:
        again.wait_for(LINE)
        again.wait_for("coordinator.reached")
    assert serial_of(first.home / "pki" / "ca.crt") == before
    assert "made a CA" not in again.text


def test_a_machine_joins_with_its_labels_and_its_own_settings_stay(cluster: Cluster) -> None:
    host = cluster.new_host("gpu")
    config = host.home / "config.yaml"
    config.write_text("# mine\nworker:\n  max_active_runs: 3  # enough\n")
    line = token(cluster, "--worker", "gpu-1", "--labels", "gpu=true,zone=eu")
    with cluster.coordinator() as coordinator:
        with host.service("join", line, "--worker.health-port=0") as worker:
            worker.wait_for("coordinator.reached")
            listed = json.loads(cluster.host.ok("workers", cluster.operator, "--json"))["workers"]
            assert [(row["id"], row["labels"]) for row in listed] == [("gpu-1", {"gpu": "true", "zone": "eu"})]
        coordinator.wait_for("enrolment.joined identity=spiffe://secure-dagu/worker/gpu-1")
        again = host.run("join", line, "--no-start")
        assert again.returncode == 4
        assert "did not accept the token" in again.stderr
        coordinator.wait_for("enrolment.refused reason=token")
    text = config.read_text()
    assert text.startswith("# mine\nworker:\n  max_active_runs: 3  # enough\n")
    assert "id: gpu-1" in text
    assert f"- localhost:{cluster.port}" in text
    for name, mode in (("gpu-1.key", 0o600), ("gpu-1.crt", 0o644), ("ca.crt", 0o644)):
        assert stat.S_IMODE((host.home / "pki" / name).stat().st_mode) == mode
    secret = line.partition("@")[0].rpartition(".")[2]
    for found in [*cluster.host.home.rglob("*"), *host.home.rglob("*")]:
        assert not found.is_file() or secret.encode() not in found.read_bytes()
    assert secret not in coordinator.text + worker.text


def test_an_operator_joins_and_works_from_elsewhere(cluster: Cluster) -> None:
    laptop = cluster.new_host("laptop")
    line = token(cluster, "--role", "admin", "--name", "alice")
    with cluster.coordinator():
        said = subprocess.run(
            [str(PROGRAM), "join", "-"], env=laptop.environment, input=line + "\n", capture_output=True, text=True,
            check=True, timeout=30,
        )  # fmt: skip
        assert "joined as admin/alice" in said.stderr
        assert json.loads(laptop.ok("workers", "--json"))["workers"] == []


def test_certificates_are_renewed_by_hand_on_either_end(cluster: Cluster) -> None:
    host = cluster.worker_host("w1")
    file = host.home / "pki" / "w1.crt"
    (host.home / "config.yaml").write_text(f"worker:\n  coordinators: [localhost:{cluster.port}]\n")
    before, own = serial_of(file), serial_of(cluster.host.home / "pki" / "coordinator.crt")
    with cluster.coordinator() as coordinator:
        with cluster.worker("w1", host=host) as worker:
            assert "worker/w1" in host.ok("pki", "renew", "w1")
            worker.wait_for("certificates.loaded")
            coordinator.wait_for("enrolment.renewed identity=spiffe://secure-dagu/worker/w1")
            assert "coordinator/coordinator" in cluster.host.ok("pki", "renew", "coordinator")
            coordinator.wait_for("certificates.loaded")
        # The old one is superseded, the new one works.
        with cluster.worker("w1", host=host):
            pass
    assert serial_of(file) != before
    assert serial_of(cluster.host.home / "pki" / "coordinator.crt") != own
    listed = json.loads(cluster.host.ok("pki", "list", "--json"))["certificates"]
    assert [row["status"] for row in listed if row["name"] == "w1"] == ["superseded", "valid"]


def test_a_worker_renews_by_itself_past_half_of_its_lifetime_without_a_break(cluster: Cluster) -> None:
    host = cluster.worker_host("w1")
    before = serial_of(host.home / "pki" / "w1.crt")
    words = ["--worker.id=w1", "--worker.health-port=0", f"--worker.coordinators=localhost:{cluster.port}"]
    with cluster.coordinator() as coordinator, at(host, "+21d", "worker", *words) as worker:
        worker.wait_for("renewal.done identity=spiffe://secure-dagu/worker/w1")
        worker.wait_for("certificates.loaded")
        coordinator.wait_for("enrolment.renewed identity=spiffe://secure-dagu/worker/w1")
    assert serial_of(host.home / "pki" / "w1.crt") != before


def test_a_machine_that_slept_past_the_end_says_the_command_that_brings_it_back(cluster: Cluster) -> None:
    host = cluster.worker_host("w1")
    words = ["--worker.id=w1", "--worker.health-port=0", f"--worker.coordinators=localhost:{cluster.port}"]
    with cluster.coordinator(), at(host, "+31d", "worker", *words) as worker:
        assert worker.wait() == 3
    assert "secure-dagu pki token --worker w1" in worker.text
    assert "secure-dagu join" in worker.text


def test_a_coordinator_with_the_ca_comes_back_by_itself_after_its_certificate_ended(cluster: Cluster) -> None:
    words = ["--coordinator.health-port=0", f"--coordinator.port={cluster.port}", "--coordinator.advertise=localhost"]
    with at(cluster.host, "+100d", "coordinator", *words) as coordinator:
        coordinator.wait_for("renewal.done_late identity=spiffe://secure-dagu/coordinator/coordinator")
        coordinator.wait_for("coordinator.ready")


def test_a_revoked_worker_gets_no_new_certificate(cluster: Cluster) -> None:
    host = cluster.worker_host("w1")
    (host.home / "config.yaml").write_text(f"worker:\n  coordinators: [localhost:{cluster.port}]\n")
    with cluster.coordinator():
        cluster.host.ok("pki", "revoke", "w1")
        refused = host.run("pki", "renew", "w1")
    assert refused.returncode == 4
    assert "revoked" in refused.stderr


def test_where_the_ca_key_is_not_nobody_joins_and_both_ends_say_so(cluster: Cluster) -> None:
    line = token(cluster, "--worker", "gpu-1")
    (cluster.host.home / "pki" / "ca.key").unlink()
    with cluster.coordinator() as coordinator:
        assert "no CA key" in coordinator.wait_for("enrolment.not_offered")
        refused = cluster.new_host("gpu").run("join", line, "--no-start")
    assert refused.returncode == 4
    assert "gives out no certificates" in refused.stderr
    assert "no CA key" in cluster.host.run("pki", "token", "--worker", "x").stderr


def test_an_encrypted_ca_signs_with_a_passphrase_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("a long enough sentence\n")
    (tmp_path / "passphrase").chmod(0o600)
    secret = f"--passphrase-file={tmp_path / 'passphrase'}"
    home = tmp_path / "coordinator"
    home.mkdir()
    host, port, gpu = Host(home), free_port(), Host(tmp_path / "gpu")
    gpu.home.mkdir()
    host.ok("pki", "init", "--advertise", "localhost", secret)
    (home / "config.yaml").write_text(
        f"coordinator:\n  port: {port}\n  advertise: [localhost]\n  health_port: 0\n"
        f"pki:\n  passphrase_file: {tmp_path / 'passphrase'}\n"
    )
    line = host.ok("pki", "token", "--worker", "gpu-1").strip()
    with host.service("coordinator") as coordinator:
        coordinator.wait_for("coordinator.ready")
        gpu.ok("join", line, "--no-start")
    (home / "config.yaml").write_text(f"coordinator:\n  port: {port}\n  advertise: [localhost]\n  health_port: 0\n")
    with host.service("coordinator") as coordinator:
        assert "passphrase" in coordinator.wait_for("enrolment.not_offered")
        coordinator.wait_for("coordinator.ready")


def test_joining_another_cluster_or_on_the_host_of_a_ca_is_refused_before_the_token_is_spent(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Cluster(tmp_path / "other")
    worker = other.worker_host("w1")
    line = token(cluster, "--worker", "gpu-1")
    with cluster.coordinator():
        moved = worker.run("join", line, "--no-start")
        assert moved.returncode == 3
        assert "belongs to another CA" in moved.stderr
        on_ca = other.host.run("join", line, "--no-start")
        assert on_ca.returncode == 3
        assert "a CA of its own" in on_ca.stderr
        cluster.new_host("fresh").ok("join", line, "--no-start")


def test_tokens_are_listed_and_withdrawn_and_every_step_is_audited(cluster: Cluster) -> None:
    line = token(cluster, "--worker", "gpu-1", "--labels", "gpu=true")
    assert "gpu-1" in cluster.host.ok("pki", "token", "--list")
    cluster.host.ok("pki", "token", "--withdraw", "gpu-1")
    second = token(cluster, "--worker", "gpu-2")
    with cluster.coordinator():
        assert cluster.new_host("a").run("join", line, "--no-start").returncode == 4
        cluster.new_host("b").ok("join", second, "--no-start")
    records = [
        json.loads(one)
        for file in cluster.host.home.rglob("audit/*")
        if file.suffix in (".jsonl", ".log")
        for one in file.read_text().splitlines()
    ]
    actions = {record["action"]: record for record in records}
    assert {"enrolment.token_issued", "enrolment.token_withdrawn", "enrolment.refused", "enrolment.joined"} <= set(
        actions
    )
    joined = actions["enrolment.joined"]
    assert joined["address"].startswith("127.0.0.1:")
    assert joined["details"]["subject"] == "spiffe://secure-dagu/worker/gpu-2"
