"""A run that waits says why, with the same word: in the API, on its page, and in the metrics."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.system.conftest import Cluster

PASSWORD = "correct horse"
SLOW = "steps:\n  - {id: a, run: 'while [ ! -e END ]; do sleep 0.1; done'}\n"
DAGS = {
    "limited": f"queue: narrow\n{SLOW}",
    "resting": f"queue: shut\n{SLOW}",
    "nobody": f"worker_selector: {{gpu: none}}\n{SLOW}",
    "rejected": f"worker_selector: {{zone: red}}\n{SLOW}",
    "crowded": f"worker_selector: {{gpu: small}}\n{SLOW}",
}
EXPECTED = {
    "limited": ("MaxConcurrencyReached", "limit"),
    "resting": ("QueuePaused", "paused"),
    "nobody": ("NoMatchingWorker", "no healthy worker matches"),
    "rejected": ("WorkerIdentityRejected", "certificate"),
    "crowded": ("NoFreeSlot", "slot"),
}


@contextlib.contextmanager
def ending(file: Path) -> Iterator[None]:
    """Let every run end at the end: a step outlives the service that started it, and keeps its output open."""
    try:
        yield
    finally:
        file.touch()


def eventually(look: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait until something is seen."""
    end = time.monotonic() + 60
    while not look():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def test_each_reason_is_told_in_three_places(cluster: Cluster) -> None:
    web, home = free_port(), cluster.host.home
    end_of_runs = cluster.root / "end"
    (home / "dags").mkdir()
    for name, text in DAGS.items():
        (home / "dags" / f"{name}.yaml").write_text(text.replace("END", str(end_of_runs)))
    (home / "config.yaml").write_text(
        "metrics: public\nqueues: {config: [{name: narrow, max_concurrency: 1}, {name: shut, max_concurrency: 1}]}\n"
    )
    words = [
        "start-all", f"--port={web}", "--scheduler.port=0", f"--coordinator.port={cluster.port}",
        "--coordinator.advertise=localhost", f"--coordinator.health-port={cluster.health_port}",
    ]  # fmt: skip
    one_slot = ["--worker.labels=gpu=small", "--worker.max-active-runs=1"]
    stranger = cluster.worker_host("w2")
    with (
        cluster.host.service(*words) as service,
        cluster.worker("w1", *one_slot),
        cluster.unready_worker("w2", "--worker.labels=zone=red", host=stranger),
        httpx.Client(base_url=f"http://127.0.0.1:{web}", timeout=20) as client,
        ending(end_of_runs),
    ):
        service.wait_for(r"(info|INFO).*\bready\b")
        made = client.post("/api/v1/auth/setup", json={"username": "ada", "password": PASSWORD})
        client.headers["Authorization"] = f"Bearer {made.json()['token']}"

        def api(method: str, path: str, body: object = None) -> httpx.Response:
            answer = client.request(method, f"/api/v1{path}", json=body)
            assert answer.status_code == 200, answer.text
            return answer

        def reasons(name: str) -> set[str]:
            run = api("GET", f"/dag-runs/{name}/waits").json()["dagRunDetails"]
            return {condition["reason"] for condition in run.get("conditions", [])}

        def metric(reason: str) -> float:
            found = re.search(
                rf'^secure_dagu_(?:queue_blocked|tasks_waiting){{reason="{reason}"}} ([1-9]\S*)$',
                api("GET", "/metrics").text, re.MULTILINE,
            )  # fmt: skip
            return float(found[1]) if found else 0.0

        service.wait_for("worker.appeared.*w1")
        api("POST", "/queues/shut/pause")
        for name in ("limited", "crowded"):
            api("POST", f"/dags/{name}/start" if name == "crowded" else f"/dags/{name}/enqueue", {"dagRunId": "first"})
            eventually(
                lambda name=name: api("GET", f"/dag-runs/{name}/first").json()["dagRunDetails"]["status"] == 1,  # type: ignore[misc]
                lambda: service.text,
            )
        for name in DAGS:
            api("POST", f"/dags/{name}/start" if name == "crowded" else f"/dags/{name}/enqueue", {"dagRunId": "waits"})
        for name, (reason, words_) in EXPECTED.items():
            eventually(lambda: reasons(name) == {reason}, lambda: (name, reasons(name)))  # noqa: B023
            eventually(lambda: metric(reason) == 1, lambda: (name, api("GET", "/metrics").text))  # noqa: B023
            page = client.get(f"/dag-runs/{name}/waits")
            assert page.status_code == 200
            assert words_ in page.text.lower(), (name, page.text)
