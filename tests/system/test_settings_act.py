"""The settings of the web server that people bring along do what they say, on a real `start-all` with a worker."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.conftest import Cluster
from tests.system.hosts import free_port

PASSWORD = "correct horse"
CONFIG = """\
public_url: https://dagu.example.org/flows
cors_allowed_origins: [https://tools.example.org]
skip_examples: true
dag_discovery: {recursive: true}
ui:
  navbar_title: Night shift
  navbar_color: "#123456"
  max_dashboard_page_limit: 1
  log_encoding_charset: ISO-8859-1
  dags: {sort_field: name, sort_order: desc}
monitoring: {interval: 1s, retention: 4s}
event_store: {enabled: true, retention_days: 3}
paths: {event_store_dir: ELSEWHERE/events, dag_state_dir: ELSEWHERE/state}
sse: {max_topics_per_connection: 2, max_clients: 1, heartbeat_interval: 100ms}
queues: {config: [{name: wide, max_concurrency: 1, max_active_runs: 3}]}
"""
UMLAUT = r"printf 'gr\374n\n'"
DAGS = {
    "apple.yaml": f"steps:\n  - id: a\n    run: {UMLAUT}\n",
    "pear.yaml": f"worker_selector: {{gpu: 'true'}}\nsteps:\n  - id: a\n    run: {UMLAUT}\n",
    "keep.yaml": "steps:\n  - {id: a, action: state.set, with: {key: seen, value: 17}}\n",
    "below/plum.yaml": "steps:\n  - {id: a, run: 'true'}\n",
}


def until(what: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Ask until the answer is wanted; return it."""
    end = time.monotonic() + 20
    while not wanted(found := what()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, elsewhere: Path) -> Iterator[httpx.Client]:
    """Serve once with all of these settings and a worker; yield an admin."""
    cluster, web = Cluster(tmp_path_factory.mktemp("settings")), free_port()
    home = cluster.host.home
    for name, text in DAGS.items():
        (home / "dags" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "dags" / name).write_text(text)
    (home / "config.yaml").write_text(CONFIG.replace("ELSEWHERE", str(elsewhere)))
    words = [f"--port={web}", "--scheduler.port=0", f"--coordinator.port={cluster.port}"]
    words += ["--coordinator.advertise=localhost", f"--coordinator.health-port={cluster.health_port}"]
    with cluster.host.service("start-all", *words) as service:
        service.wait_for(r"msg=ready\s")
        assert "ignored" not in service.text
        with (
            cluster.worker("w1", "--worker.labels=gpu=true"),
            httpx.Client(base_url=f"http://127.0.0.1:{web}", timeout=20) as made,
        ):
            body = {"username": "ada", "password": PASSWORD}
            token = made.post("/api/v1/auth/setup", json=body).json()["token"]
            made.headers["Authorization"] = f"Bearer {token}"
            yield made


def api(client: httpx.Client, path: str) -> Any:
    answer = client.get(f"/api/v1{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def finished(client: httpx.Client, dag: str, run_id: str) -> None:
    answer = client.post(f"/api/v1/dags/{dag}/start-sync", json={"dagRunId": run_id, "timeout": 20})
    assert answer.json()["dagRun"]["statusLabel"] == "succeeded", answer.text


def test_ui_title_colour_and_first_order_of_the_list(client: httpx.Client) -> None:
    page = client.get("/dags").text
    assert "Night shift" in page
    assert "#123456" in client.get("/brand.css").text
    places = [page.index(f'href="/dags/{name}') for name in ("pear", "apple")]
    assert places == sorted(places), "the list begins at its end"


def test_ui_max_dashboard_page_limit_bounds_what_the_timeline_shows(client: httpx.Client) -> None:
    for run_id in ("older", "newer"):
        finished(client, "apple", run_id)
    page = client.get("/").text
    assert re.findall(r'class="timeline-bar[^>]*href="([^"]+)"', page) == ["/dag-runs/apple/newer"]


@pytest.mark.parametrize("dag", ["apple", "pear"])
def test_ui_log_encoding_charset_reads_logs_of_this_host_and_of_workers(client: httpx.Client, dag: str) -> None:
    finished(client, dag, "green")
    log = f"/dag-runs/{dag}/green/steps/a/log"
    assert api(client, log)["content"] == "grün\n"
    download = client.get(f"/api/v1{log}/download")
    assert (download.content, download.headers["content-type"]) == (b"gr\xfcn\n", "text/plain; charset=iso-8859-1")
    own = client.get(f"/api/v1/dag-runs/{dag}/green/log/download")
    assert own.headers["content-type"] == "text/plain; charset=utf-8", "the run's own log is ours"


def test_public_url_and_cors_let_named_origins_in_and_nobody_else(client: httpx.Client) -> None:
    for origin in ("https://tools.example.org", "https://dagu.example.org"):
        answer = client.get("/api/v1/dags", headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-credentials"] == "true"
    answer = client.get("/api/v1/dags", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert client.get("/api/v1/health", headers={"Host": "dagu.example.org"}).status_code == 200
    assert client.get("/api/v1/health", headers={"Host": "evil.example"}).status_code == 421


def test_monitoring_samples_each_second_and_forgets(client: httpx.Client) -> None:
    path = "/services/resources/history?duration=1h"
    cpu = until(lambda: api(client, path)["cpu"], lambda found: len(found) >= 3)
    assert cpu[-1]["timestamp"] - cpu[0]["timestamp"] <= 4, "it is asked for an hour and kept for some seconds"
    until(lambda: api(client, path)["cpu"][0]["timestamp"], lambda first: first > cpu[0]["timestamp"])


def test_the_event_store_is_where_it_was_put(client: httpx.Client, elsewhere: Path) -> None:
    finished(client, "apple", "noted")
    path = "/event-logs?dagRunId=noted&type=dag.run.succeeded"
    [event] = until(lambda: api(client, path)["entries"], lambda found: len(found) == 1)
    lines = [
        json.loads(line) for file in (elsewhere / "events").glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    assert event in lines


def test_values_that_runs_keep_are_where_they_were_put(client: httpx.Client, elsewhere: Path) -> None:
    finished(client, "keep", "kept")
    [kept] = [path for path in (elsewhere / "state").rglob("*") if path.is_file() and "17" in path.read_text()]
    assert kept.stat().st_mode & 0o077 == 0


def test_streams_are_limited_in_number_and_topics_and_say_that_they_live(client: httpx.Client) -> None:
    stream = "/api/v1/events/stream"
    assert client.get(f"{stream}?topic=queues:&topic=dagruns:&topic=workers:").status_code == 400
    with client.stream("GET", f"{stream}?topic=queues:") as one:
        assert one.status_code == 200
        lines = one.iter_lines()
        assert client.get(f"{stream}?topic=queues:").status_code == 503
        assert next(line for line in lines if line.startswith(":")) == ": heartbeat"


def test_the_old_name_of_a_queues_limit_wins_and_deeper_folders_are_read(client: httpx.Client) -> None:
    assert api(client, "/queues/wide")["maxConcurrency"] == 3
    names = [item["fileName"] for item in api(client, "/dags?perPage=50")["dags"]]
    assert "plum" in {name.rpartition("/")[2] for name in names}
    assert len(names) == len(DAGS), "no examples were written"
