"""A run that a server executes here sends a sub-DAG to the workers that its step selects."""

from __future__ import annotations

import argparse
from pathlib import Path

from secure_dagu.assembly.launching import launching
from secure_dagu.assembly.operator import operator
from secure_dagu.config.load import load
from secure_dagu.dispatch.operating import StartRequest
from secure_dagu.dispatch.way import Way
from secure_dagu.run.model import RunStatus
from tests.scheduler.host import document, status, until
from tests.system.conftest import Cluster

FLOW = """
steps: [{id: call, action: dag.run, with: {dag: child}, worker_selector: {gpu: "true"}}]
---
name: child
steps: [{id: a, run: echo hello}]
"""


async def test_a_sub_dag_of_a_local_run_is_executed_by_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    home = cluster.host.home
    (home / "dags").mkdir(exist_ok=True)
    (home / "dags" / "flow.yaml").write_text(FLOW)
    (home / "config.yaml").write_text(f"client: {{coordinators: ['{cluster.address}']}}\n")
    loaded = load(argparse.Namespace(), cluster.host.environment)
    with cluster.coordinator(), cluster.worker("w1", "--worker.labels=gpu=true"):
        async with (
            operator(loaded) as (coordinator, caller),
            launching(loaded, way=Way(coordinator, caller)) as launcher,
        ):
            run = await launcher.start(StartRequest(dag="flow"))
            await until(lambda: status(launcher, run) not in (RunStatus.RUNNING, RunStatus.NOT_STARTED))
            found = document(launcher, run)
            assert status(launcher, run) is RunStatus.SUCCEEDED, found
            (child,) = found["nodes"][0]["children"]
            record = launcher.places.records.find(run)
            assert record is not None
            (mirrored,) = record.children()
            assert mirrored == child["dagRunId"]
            listed = await coordinator.runs(caller, name="child", run_id=mirrored, limit=1)
            assert [(one.worker, RunStatus(one.status)) for one in listed] == [("w1", RunStatus.SUCCEEDED)]
