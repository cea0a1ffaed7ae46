"""A secret that is written over the REST API reaches the worker that may have it, and nothing else on the way."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.ports import free_port
from tests.system.conftest import Cluster

VALUE = "kqvJ7-never-to-be-seen"
DAG = """\
worker_selector: {gpu: 'true'}
secrets: [{name: TOKEN, ref: prod/token}]
steps:
  - {id: a, run: 'echo "${#TOKEN} characters: $TOKEN"'}
"""


def holding(folder: Path, text: str) -> list[Path]:
    """Return the files below a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_secret_goes_from_the_rest_api_to_a_step_on_a_worker_and_is_seen_nowhere(cluster: Cluster) -> None:
    web, home = free_port(), cluster.host.home
    (home / "dags").mkdir()
    (home / "dags" / "far.yaml").write_text(DAG)
    words = [f"--port={web}", "--scheduler.port=0", f"--coordinator.port={cluster.port}"]
    words += ["--coordinator.advertise=localhost", f"--coordinator.health-port={cluster.health_port}"]
    with (
        cluster.host.service("start-all", *words) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{web}/api/v1", timeout=30) as api,
    ):
        service.wait_for(r"msg=ready\s")
        body = {"username": "ada", "password": "correct horse"}
        api.headers["Authorization"] = f"Bearer {api.post('/auth/setup', json=body).json()['token']}"
        with cluster.worker("w1", "--worker.labels=gpu=true") as worker:

            def ran(run_id: str) -> str:
                answer = api.post("/dags/far/start-sync", json={"dagRunId": run_id, "timeout": 25})
                assert answer.status_code == 200, answer.text
                return str(answer.json()["dagRun"]["statusLabel"])

            assert ran("without") == "failed"
            assert api.post("/secrets", json={"ref": "prod/token", "value": "an old value"}).status_code == 201
            assert api.put("/secrets/prod/token", json={"value": VALUE}).status_code == 200
            assert ran("with") == "succeeded"
            log = api.get("/dag-runs/far/with/steps/a/log").json()["content"]
            assert log == f"{len(VALUE)} characters: *******\n"
            told = api.get("/audit?resourceType=secret&limit=50").json()["entries"]
            assert [(entry["action"], entry["result"]) for entry in reversed(told)] == [
                ("secret.read", "failed"),
                ("secret.created", "succeeded"),
                ("secret.updated", "succeeded"),
                ("secret.read", "succeeded"),
            ]
            assert {entry["resourceId"] for entry in told} == {".global/prod/token"}
            assert worker.stop() == 0
        assert VALUE not in service.text + worker.text
        assert service.stop() == 0
    assert holding(cluster.root, VALUE) == [home / "data" / "secrets" / ".global" / "prod" / "token"]
