"""A full disk: an action whose record cannot be written does not happen, and all is well again when there is room."""

from __future__ import annotations

import re
import resource
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secure_dagu.audit import journal
from secure_dagu.audit.events import Action, Event
from tests.system.conftest import Cluster

WORKFLOW = "steps:\n  - id: a\n    run: 'true'\n"
EVENT = Event(action=Action.RUN_READ, target="x" * 500, reason="y" * 500)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Return a cluster with certificates and nothing running."""
    return Cluster(tmp_path)


def metric(cluster: Cluster, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/metrics", timeout=5) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_nothing_is_dispatched_that_cannot_be_recorded(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.host.home / "data" / "audit"
    # So long a log that the limit below hits it and not the (much shorter) database.
    with journal.opened(folder, host="ci", source="coordinator") as log:
        for _ in range(30):
            log.append([(EVENT, datetime.now(UTC))] * 500)
    (cluster.host.home / "config.yaml").write_text(
        "peer:\n  max_retries: 0\n"
    )  # a refusal is to be seen, not waited out
    workflow = tmp_path / "a.yaml"
    workflow.write_text(WORKFLOW)
    with cluster.coordinator() as serving, cluster.worker("w1"):
        cluster.host.ok("dispatch", str(workflow), "--run-id", "before", "--follow", cluster.operator)
        limits = resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE)
        size = journal.files_of(folder)[-1].stat().st_size
        resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        refused = cluster.host.run("dispatch", str(workflow), "--run-id", "meanwhile", cluster.operator)
        assert refused.returncode == 5, refused.stdout + refused.stderr
        assert "the audit log cannot be written" in refused.stderr
        assert metric(cluster, "secure_dagu_audit_write_failures_total") >= 1
        with pytest.raises(urllib.error.HTTPError, match="503") as unready:
            urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/ready", timeout=5)
        with unready.value as told:
            assert b"the audit log cannot be written" in told.read()
        resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, limits)
        cluster.host.ok("dispatch", str(workflow), "--run-id", "after", "--follow", cluster.operator)
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/ready", timeout=5) as told:
            assert told.status == 200
        serving.stop()
    assert "coordinator: good" in cluster.host.ok("audit", "verify", "--log", "coordinator")
    shown = cluster.host.ok("audit", "show", "--log", "coordinator", "--action", "task,process", "--since", "5m")
    assert "run:a/before" in shown
    assert "run:a/after" in shown
    assert "run:a/meanwhile" not in shown
    assert "process.stopped" in shown
