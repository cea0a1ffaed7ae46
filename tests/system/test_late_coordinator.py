"""A scheduler that was started before any coordinator: it finds the one that comes, and gives it what is its."""

from __future__ import annotations

import json

import pytest

from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.test_scheduler import until


@pytest.mark.parametrize("service", ["scheduler", "start-all"])
def test_a_coordinator_that_registers_later_gets_the_runs_that_select_workers(cluster: Cluster, service: str) -> None:
    dags = cluster.host.home / "dags"
    dags.mkdir()
    (dags / "gpu.yaml").write_text("worker_selector: {gpu: 'true'}\nsteps:\n  - id: a\n    run: 'true'\n")

    def worker_of(run_id: str) -> str:
        told = cluster.host.run("status", "gpu", "-r", run_id, cluster.operator, "--json")
        run = json.loads(told.stdout)["run"] if told.returncode == 0 else {}
        return str(run["worker"]) if run.get("status") == "succeeded" else ""

    port = f"--{'scheduler.' if service == 'scheduler' else ''}port={free_port()}"
    with cluster.host.service(service, port) as running:
        running.wait_for("scheduler.active")
        cluster.host.ok("enqueue", "--run-id=early", "gpu")
        until(lambda: "succeeded" in cluster.host.run("status", "gpu", "--run-id=early").stdout.lower())
        with cluster.coordinator(), cluster.worker("w1", "--worker.labels=gpu=true"):
            running.wait_for("coordinator.found")
            cluster.host.ok("enqueue", "--run-id=late", "gpu")
            until(lambda: worker_of("late") == "w1")
            assert worker_of("early") == "", "what ran here stays here"
