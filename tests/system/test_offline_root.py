"""An issuing CA on the coordinator's host, its root elsewhere: what it revokes stays out, whatever is renewed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Cluster
from tests.system.hosts import Host


@pytest.fixture
def under_a_root(tmp_path: Path) -> tuple[Cluster, Host]:
    """Return a cluster as the guide makes one, and the host of its root."""

    class Online(Cluster):
        def __post_init__(self) -> None:
            self.host = self.new_host("coordinator")
            self.host.ok("pki", "init", "--issuing-ca")

    root = Host(tmp_path / "offline")
    root.home.mkdir()
    (root.home / "words").write_text("in a safe, on paper\n")
    (root.home / "words").chmod(0o600)
    words = f"--passphrase-file={root.home / 'words'}"
    root.ok("pki", "init", "--offline-root", "--advertise", "localhost", words)
    cluster = Online(tmp_path)
    request, stick = str(cluster.host.home / "pki/issuing.csr"), str(tmp_path / "stick")
    root.ok("pki", "issue-ca", request, "--out", stick, words)
    cluster.host.ok("pki", "init", "--issuing-ca", "--certificate", stick, "--advertise", "localhost")
    return cluster, root


def test_what_an_issuing_ca_revoked_stays_out(under_a_root: tuple[Cluster, Host]) -> None:
    cluster, root = under_a_root
    good, bad = (cluster.worker_host(name) for name in ("good", "bad"))
    flags = ["worker", f"--worker.coordinators={cluster.address}", "--worker.health-port=0"]
    with cluster.coordinator() as coordinator, bad.service(*flags, "--worker.id=bad") as worker:
        worker.wait_for("coordinator.reached")
        cluster.host.ok("pki", "revoke", "bad")
        coordinator.wait_for("peers.cut.*cert_revoked")
        worker.wait_for("revoked")
    words = f"--passphrase-file={root.home / 'words'}"
    pki = cluster.host.home / "pki"
    root.ok("pki", "issue-ca", str(pki / "issuing.csr"), "--out", str(pki), "--force", words)
    with cluster.coordinator(), good.service(*flags, "--worker.id=good") as worker:
        worker.wait_for("coordinator.reached")
        for _ in range(2):
            with bad.service(*flags, "--worker.id=bad") as refused:
                refused.wait_for("revoked")
            assert "coordinator.reached" not in refused.text
            cluster.host.ok("pki", "crl", "--renew")  # by the renewed issuing CA
