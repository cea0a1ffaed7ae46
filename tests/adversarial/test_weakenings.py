"""A weakening never starts by its setting alone, and never outlives its exception: real commands and processes."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Cluster
from tests.system.hosts import PATIENCE_S

ANYWHERE = "--coordinator.host=0.0.0.0"
INSECURE = "--peer.insecure=true"
TLS_1_2 = "--peer.min-tls-version=1.2"
DRY_RUN = "--policy.mode=dry-run"
ALLOW = "--peer.ungranted-labels=allow"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Return a cluster with certificates and nothing running."""
    return Cluster(tmp_path)


def grant(cluster: Cluster, kind: str, until: str = "30d", *, host: Any = None) -> str:
    """Grant an exception; return its id."""
    told = (host or cluster.host).ok(
        "exception", "grant", kind, "--owner", "alice", "--reason", "a test", "--until", until, "--json"
    )
    return str(json.loads(told)["exceptions"][0]["id"])


def get(cluster: Cluster, path: str) -> tuple[int, str]:
    """Ask the health port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}{path}", timeout=PATIENCE_S) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def series(cluster: Cluster, name: str) -> dict[str, float]:
    """Return one metric by its labels."""
    _, text = get(cluster, "/metrics")
    return {labels: float(value) for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.M)}


def audited(cluster: Cluster, action: str, folder: str = "data/audit") -> list[dict[str, Any]]:
    """Return the events of an action."""
    lines = [
        line for file in sorted((cluster.host.home / folder).glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    return [event for event in map(json.loads, lines) if event.get("action") == action]


def is_shut(port: int) -> bool:
    """Tell whether a port soon takes no connection any more."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
        except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited in the backlog as the port was shut
            return True
    return False


def speaks(cluster: Cluster, version: ssl.TLSVersion) -> str:
    """Do a handshake as worker `w0` in one TLS version; return the version, or the alert that ended it."""
    folder = cluster.root / "w0" / "pki"
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "w0.crt", folder / "w0.key")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    try:
        with (
            socket.create_connection(("127.0.0.1", cluster.port), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return secure.version() or ""
    except ssl.SSLError as refused:
        return refused.reason or str(refused)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ((ANYWHERE, INSECURE), "plaintext"),
        ((TLS_1_2,), "tls-1.2"),
        ((DRY_RUN,), "policy-dry-run"),
        ((ALLOW,), "ungranted-labels"),
        (("--coordinator.metrics-access=public", "--coordinator.health-host=0.0.0.0"), "metrics-public"),
    ],
)
def test_each_weakening_is_refused_with_the_command_that_admits_it_and_that_command_works(
    cluster: Cluster, flags: tuple[str, ...], kind: str
) -> None:
    words: tuple[str, ...] = (
        "coordinator",
        f"--coordinator.port={cluster.port}",
        f"--coordinator.health-port={cluster.health_port}",
    )
    words += ("--coordinator.advertise=localhost",)
    refused = cluster.host.run(*words, *flags)
    assert refused.returncode == 3
    assert "needs an exception" in refused.stderr
    command = re.search(
        rf"secure-dagu (exception grant {kind} \S+ NAME --reason TEXT --until \d{{4}}-\d\d-\d\d)", refused.stderr
    )
    assert command, refused.stderr
    cluster.host.ok(*command[1].split())
    with cluster.coordinator(*flags) as running:
        assert "exception.in_force" in running.text
        assert "owner=NAME" in running.text
        told = json.loads(get(cluster, "/health")[1])["exceptions"]
        assert [(one["kind"], one["owner"]) for one in told] == [(kind, "NAME")]
        assert series(cluster, "secure_dagu_security_exceptions")[f'kind="{kind}"'] == 1
        assert series(cluster, "secure_dagu_security_exception_expiry_timestamp_seconds")[f'kind="{kind}"'] > 1.7e9
        assert running.stop() == 0
    assert len(audited(cluster, "exception.granted", "audit")) == 1
    weakened = audited(cluster, "transport.weakened") + audited(cluster, "policy.changed")
    assert len(weakened) == 1


def test_plaintext_that_stays_on_this_host_needs_no_exception(cluster: Cluster) -> None:
    with cluster.coordinator(INSECURE) as running:
        running.wait_for("exception.not_needed")
        assert json.loads(get(cluster, "/health")[1])["exceptions"] == []


def test_those_who_dial_without_tls_need_one_too(cluster: Cluster) -> None:
    far = "192.0.2.1:50055"
    host = cluster.new_host("w1")
    worker = host.run("worker", "--worker.id=w1", f"--worker.coordinators=localhost:1,{far}", INSECURE)
    assert (worker.returncode, "exception grant plaintext" in worker.stderr) == (3, True), worker.stderr
    operator = host.run("workers", f"--coordinators={far}", INSECURE)
    assert (operator.returncode, "exception grant plaintext" in operator.stderr) == (3, True), operator.stderr


def test_plaintext_takes_no_new_connection_after_its_end(cluster: Cluster) -> None:
    grant(cluster, "plaintext", "8s")
    with cluster.coordinator(ANYWHERE, INSECURE) as running:
        with socket.create_connection(("127.0.0.1", cluster.port), timeout=PATIENCE_S):
            pass
        running.wait_for("exception.ended.*peer.insecure=true.*why=expired")
        assert is_shut(cluster.port)
        code, ready = get(cluster, "/ready")
        assert (code, "exception for plaintext has ended" in ready) == (503, True)
        assert json.loads(get(cluster, "/health")[1])["exceptions"] == []
        assert series(cluster, "secure_dagu_security_exceptions")['kind="plaintext"'] == 0
        assert running.stop() == 0  # so that what was noted is on disk
    assert [event["reason"] for event in audited(cluster, "exception.expired")] == ["expired"]
    assert cluster.host.run("coordinator", ANYWHERE, INSECURE, f"--coordinator.port={cluster.port}").returncode == 3


def test_tls_1_2_is_turned_off_when_its_exception_is_revoked_and_1_3_goes_on(cluster: Cluster) -> None:
    cluster.worker_host("w0")
    name = grant(cluster, "tls-1.2")
    with cluster.coordinator(TLS_1_2) as running:
        assert speaks(cluster, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        cluster.host.ok("exception", "revoke", name)
        running.wait_for("exception.ended.*why=revoked")
        assert speaks(cluster, ssl.TLSVersion.TLSv1_2) == "TLSV1_ALERT_PROTOCOL_VERSION"
        assert speaks(cluster, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


def test_dry_run_becomes_enforcement_and_the_worker_learns_why(cluster: Cluster) -> None:
    name = grant(cluster, "policy-dry-run")
    host = cluster.worker_host("w1")  # its certificate grants no labels
    with cluster.coordinator(DRY_RUN) as running, cluster.worker("w1", "--worker.labels=gpu=true", host=host) as worker:
        worker.wait_for("worker.labels_not_granted.*gpu=true")
        running.wait_for("call.would_be_refused.*label_not_granted.*gpu=true")
        counted = series(cluster, "secure_dagu_peer_would_deny_total")
        assert any("label_not_granted" in labels for labels in counted), counted
        cluster.host.ok("exception", "revoke", name)
        running.wait_for("exception.ended.*policy.mode")
        running.wait_for("call.refused.*label_not_granted")
        worker.wait_for("its certificate grants no labels")
        assert worker.wait() == 4
        dag = cluster.root / "gpu.yaml"
        dag.write_text("worker_selector: {gpu: 'true'}\nsteps:\n  - run: echo hi\n")
        told = cluster.host.run("dispatch", str(dag), cluster.operator, "--json")
        assert (told.returncode, json.loads(told.stdout)["error"]["code"]) == (1, "no-authorised-worker"), told
        assert running.stop() == 0
    assert audited(cluster, "call.would_be_denied")
    assert audited(cluster, "call.label_refused")


def test_a_ledger_that_was_edited_ends_everything_and_starts_nothing(cluster: Cluster) -> None:
    grant(cluster, "policy-dry-run")
    grant(cluster, "tls-1.2")
    file = cluster.host.home / "exceptions.jsonl"
    with cluster.coordinator(DRY_RUN) as running:
        file.write_bytes(file.read_bytes().replace(b"a test", b"A TEST", 1))
        running.wait_for("exceptions.unreadable.*line 2")
        running.wait_for("exception.ended.*policy.mode")
    assert cluster.host.run("coordinator", DRY_RUN).returncode == 6
    assert cluster.host.run("exception", "list").returncode == 6


@pytest.mark.parametrize("mode", [0o644, 0o620])
def test_a_ledger_that_others_could_read_or_write_is_not_believed(cluster: Cluster, mode: int) -> None:
    grant(cluster, "tls-1.2")
    file = cluster.host.home / "exceptions.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(mode)
    refused = cluster.host.run("coordinator", TLS_1_2)
    assert (refused.returncode, "mode 0600" in refused.stderr) == (3, True), refused.stderr


def test_a_ledger_behind_a_link_is_not_followed(cluster: Cluster) -> None:
    grant(cluster, "tls-1.2")
    file = cluster.host.home / "exceptions.jsonl"
    os.rename(file, cluster.root / "elsewhere")
    file.symlink_to(cluster.root / "elsewhere")
    assert cluster.host.run("coordinator", TLS_1_2).returncode == 3
    assert cluster.host.run("exception", "list").returncode == 3


def test_granting_asks_for_owner_reason_and_a_near_end(cluster: Cluster) -> None:
    def said(*words: str) -> tuple[int, str]:
        done = cluster.host.run("exception", "grant", *words)
        return done.returncode, done.stderr

    assert said("plaintext", "--reason", "x", "--until", "1d")[0] == 2
    assert said("plaintext", "--owner", "x", "--until", "1d")[0] == 2
    assert said("plaintext", "--owner", "x", "--reason", "y")[0] == 2
    code, text = said("plaintext", "--owner", "x", "--reason", "y", "--until", "91d")
    assert (code, "90 days at most" in text) == (1, True), text
    assert said("plaintext", "--owner", "x", "--reason", "y", "--until", "soon")[0] == 1
    assert said("everything", "--owner", "x", "--reason", "y", "--until", "1d")[0] == 2
    assert not (cluster.host.home / "exceptions.jsonl").exists() or cluster.host.ok("exception", "list")
