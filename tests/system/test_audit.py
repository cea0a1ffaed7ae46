"""The audit log of a running cluster: what it tells, and the copy that a syslog server keeps of it."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.audit import chain
from secure_dagu.audit.chain import Broken, Place
from tests.ports import free_port
from tests.system.conftest import Cluster

WORKFLOW = "steps:\n  - id: a\n    run: 'true'\n"


class SyslogServer(threading.Thread):
    """Keeps what one client sends, by octet counting (RFC 6587), until the client goes away."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lines: list[bytes] = []
        self.start()

    def run(self) -> None:
        self._listener.settimeout(30)
        connection, _ = self._listener.accept()
        with self._listener, connection, connection.makefile("rb") as stream:
            while length := b"".join(iter(lambda: stream.read(1).strip(), b"")):
                message = stream.read(int(length))
                self.lines.append(message[message.index(b'] {"seq"') + 2 :] + b"\n")


def shown(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    found = json.loads(cluster.host.ok("audit", "show", "--json", "--log", "coordinator", "-n", "0", *words))
    return list(found["records"])


def test_one_run_tells_who_did_what_with_which_certificate_from_where(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(WORKFLOW)
    server = SyslogServer()
    with cluster.coordinator(f"--audit.syslog=127.0.0.1:{server.port}") as serving, cluster.worker("w1"):
        cluster.host.ok("dispatch", str(tmp_path / "a.yaml"), "--run-id", "r1", "--follow", cluster.operator)
        serving.stop()
    server.join(20)
    place = Place()
    for line in server.lines:  # what the server kept is the whole chain
        after = chain.follows(line, place)
        assert not isinstance(after, Broken), (after, line)
        place = after
    assert f"anchor {place.seq}:{place.hash}" in cluster.host.ok("audit", "verify", "--log", "coordinator")

    issued = json.loads(cluster.host.ok("pki", "list", "--json"))["certificates"]
    serials = {entry["identity"]: entry["serial"] for entry in issued}
    by_action = {record["action"]: record for record in shown(cluster, "--target", "run:a/r1")}
    admin, worker = "spiffe://secure-dagu/admin/operator", "spiffe://secure-dagu/worker/w1"
    for action, actor in (("task.dispatched", admin), ("task.claimed", worker), ("run.ended", worker)):
        record = by_action[action]
        assert (record["actor"], record["serial"], record["outcome"]) == (actor, serials[actor], "succeeded")
        assert record["address"].startswith("127.0.0.1:")
        assert record["time"].endswith("Z")
        assert record["host"] == socket.gethostname()
        assert record["source"] == "coordinator"
    actions = [record["action"] for record in shown(cluster)]
    assert actions.count("process.started") == actions.count("process.stopped") == 1
    assert "transport.weakened" not in actions


@pytest.mark.parametrize(
    ("word", "kind"), [("--peer.insecure=true", "plaintext"), ("--peer.min-tls-version=1.2", "tls-1.2")]
)
def test_weak_transport_is_recorded_before_anything_is_served(cluster: Cluster, word: str, kind: str) -> None:
    cluster.host.ok("exception", "grant", kind, "--owner", "ops", "--reason", "a test", "--until", "1d")
    with cluster.coordinator(word) as serving:
        serving.stop()
    weakened = [record for record in shown(cluster) if record["action"] == "transport.weakened"]
    assert [record["details"]["setting"] for record in weakened] == [word.removeprefix("--").replace("-", "_")]


def test_a_second_coordinator_on_the_same_data_is_refused(cluster: Cluster) -> None:
    with cluster.coordinator():
        done = cluster.host.run(
            "coordinator", "--coordinator.advertise=localhost", f"--coordinator.port={free_port()}",
            "--coordinator.health-port=0",
        )  # fmt: skip
    assert done.returncode == 5
    assert "another process writes the audit log" in done.stderr
