"""What a scraper reads of runs: ends are counted once, and what runs and waits is there."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.ports import free_port
from tests.system.hosts import Host
from tests.system.test_server import Api


def series(api: Api, name: str) -> float:
    """Return one series of the server; -1 where it is not shown."""
    answer = api.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    found = re.search(rf"^{re.escape(name)} (\S+)$", answer.text, re.MULTILINE)
    return float(found[1]) if found else -1.0


def until(api: Api, name: str, wanted: float) -> None:
    """Wait until a series has a value."""
    deadline = time.monotonic() + 60
    while (found := series(api, name)) != wanted:
        assert time.monotonic() < deadline, f"{name} is {found}, not {wanted}"
        time.sleep(0.05)


def test_ends_of_runs_are_counted_once_and_running_ones_are_shown(tmp_path: Path) -> None:
    host, port = Host(tmp_path), free_port()
    (tmp_path / "dags").mkdir()
    gate = tmp_path / "gate"
    (tmp_path / "dags" / "wait.yaml").write_text(
        f"steps: [{{id: a, run: 'while [ ! -e {gate} ]; do sleep 0.05; done'}}]"
    )
    (tmp_path / "dags" / "bad.yaml").write_text("steps: [{id: a, run: 'false'}]")
    succeeded, failed = (f'secure_dagu_dag_runs_total{{status="{word}"}}' for word in ("succeeded", "failed"))
    with host.service("start-all", f"--port={port}", "--scheduler.port=0") as service:
        service.wait_for(r"msg=ready\s")
        api = Api(f"http://127.0.0.1:{port}")
        api.set_up()
        api.client.post("/dags/wait/start", json={"dagRunId": "w"}).raise_for_status()
        until(api, "dagu_dag_runs_currently_running", 1)
        assert series(api, "dagu_dags_total") == 2
        assert series(api, succeeded) == 0
        gate.touch()
        until(api, succeeded, 1)
        api.client.post("/dags/bad/start", json={"dagRunId": "b"}).raise_for_status()
        until(api, failed, 1)
        api.client.post("/dag-runs/bad/b/retry", json={"dagRunId": "b"}).raise_for_status()
        until(api, failed, 2)
        assert series(api, succeeded) == 1
        assert series(api, "dagu_dag_run_duration_seconds_count") == 3
        until(api, "dagu_dag_runs_currently_running", 0)
        service.stop()


def test_dags_are_told_apart_where_that_is_asked_for(tmp_path: Path) -> None:
    host, port = Host(tmp_path), free_port()
    (tmp_path / "dags").mkdir()
    (tmp_path / "config.yaml").write_text("metrics_per_dag: true\n")
    gate = tmp_path / "gate"
    (tmp_path / "dags" / "wait.yaml").write_text(
        f"steps: [{{id: a, run: 'while [ ! -e {gate} ]; do sleep 0.05; done'}}]"
    )
    (tmp_path / "dags" / "bad.yaml").write_text("steps: [{id: a, run: 'false'}]")
    with host.service("start-all", f"--port={port}", "--scheduler.port=0") as service:
        service.wait_for(r"msg=ready\s")
        api = Api(f"http://127.0.0.1:{port}")
        api.set_up()
        api.client.post("/dags/wait/enqueue", json={"dagRunId": "w"}).raise_for_status()
        api.client.post("/dags/bad/start", json={"dagRunId": "b"}).raise_for_status()
        until(api, 'dagu_dag_runs_currently_running_by_dag{dag="wait"}', 1)
        until(api, 'secure_dagu_dag_runs_by_dag_total{dag="bad",status="failed"}', 1)
        assert series(api, 'dagu_dag_run_duration_seconds_count{dag="bad"}') == 1
        assert series(api, 'dagu_queue_wait_seconds_count{dag="wait"}') == 1
        assert series(api, "dagu_queue_wait_seconds_count") == -1
        gate.touch()
        until(api, 'secure_dagu_dag_runs_by_dag_total{dag="wait",status="succeeded"}', 1)
        until(api, 'dagu_dag_runs_currently_running_by_dag{dag="wait"}', -1)
        service.stop()
