"""The settings of the web server that people bring along do what they say, on a real `start-all` with a worker."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from tests.ports import free_port
from tests.runner.mailserver import mail_server
from tests.system.conftest import Cluster
from tests.system.hosts import Host, Service

PASSWORD = "correct horse"
CONFIG = """\
public_url: https://dagu.example.org/flows
cors_allowed_origins: [https://tools.example.org]
tz: Asia/Tokyo
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
NARROW = """\
base_path: /flows
api_base_path: /api/v7
headless: true
access_log_mode: non-public
log_format: json
tz: Asia/Tokyo
default_shell: /bin/bash
env_passthrough: [LET_ME_IN]
env_passthrough_prefixes: [WIDE_]
skip_examples: true
coordinator: {enabled: false}
auth:
  builtin:
    token: {ttl: 90m, secret: a-secret-of-the-configuration-file}
    initial_admin: {username: grace, password: correct horse}
permissions: {write_dags: false}
ip_access: {allowed_ips: [127.0.0.1, 10.0.0.0/8], trusted_proxies: [127.0.0.1]}
metrics: public
queues: {enabled: false}
proc: {heartbeat_interval: 200ms, stale_threshold: 7s}
paths:
  dags_dir: ROOT/defs
  log_dir: ROOT/logs
  artifact_dir: ROOT/artifacts
  dag_runs_dir: ROOT/runs
  users_dir: ROOT/users
  suspend_flags_dir: ROOT/rest
  service_registry_dir: ROOT/registry
"""
PREFIX = "/flows/api/v7"
SYNC = {"timeout": 60, "dagRunId": "told1"}
LOOK = """\
artifacts: {enabled: true}
steps:
  - id: a
    run: |
      basename "$0" | sed "s/.*/${BASH_VERSION:+bash}/"
      echo "$TZ"
      echo "in=$LET_ME_IN wide=$WIDE_OPEN out=$KEEP_OUT secret=$DAGU_AUTH_TOKEN_SECRET"
      touch "$DAG_RUN_ARTIFACTS_DIR/made"
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
    end = time.monotonic() + 60
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


def test_tz_is_the_zone_in_which_every_page_shows_times(client: httpx.Client) -> None:
    finished(client, "apple", "timed")
    [run] = api(client, "/dag-runs?dagRunId=timed")["dagRuns"]
    there = datetime.fromisoformat(run["startedAt"]).astimezone(ZoneInfo("Asia/Tokyo"))
    for page in ("/dag-runs", "/dag-runs/apple/timed", "/dags/apple"):
        assert f">{there:%b} {there.day}, {there:%H:%M:%S}</time>" in client.get(page).text, page


@pytest.mark.parametrize("dag", ["apple", "pear"])
def test_ui_log_encoding_charset_reads_logs_of_this_host_and_of_workers(client: httpx.Client, dag: str) -> None:
    finished(client, dag, "green")
    log = f"/dag-runs/{dag}/green/steps/a/log"
    assert api(client, log)["content"] == "grün\n"
    download = client.get(f"/api/v1{log}/download")
    assert (download.content, download.headers["content-type"]) == (b"gr\xfcn\n", "text/plain; charset=iso-8859-1")
    own = client.get(f"/api/v1/dag-runs/{dag}/green/log/download")
    assert own.headers["content-type"] == "text/plain; charset=utf-8", "the run's own log is ours"


async def test_mails_of_runs_lead_to_pages_below_the_public_url(client: httpx.Client) -> None:
    async with mail_server() as server:
        spec = (
            f"smtp: {{host: 127.0.0.1, port: {server.port}}}\nmail_on: {{failure: true}}\n"
            "error_mail: {from: a@x.test, to: b@x.test}\nsteps: [{id: a, run: 'false'}]\n"
        )
        for path, body in (("/dags", {"name": "tells", "spec": spec}), ("/dags/tells/start-sync", SYNC)):
            answer = await asyncio.to_thread(client.post, f"/api/v1{path}", json=body)
            assert answer.status_code in (200, 201), answer.text
        assert (await asyncio.to_thread(client.delete, "/api/v1/dags/tells")).is_success
        html = server.mails[0].get_body(("html",))
        assert html is not None
        assert 'href="https://dagu.example.org/flows/dag-runs/tells/told1"' in str(html.get_content())


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


class Roomy(Host):
    """A machine with variables of its own."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment, and what is let through or not."""
        return {**super().environment, "LET_ME_IN": "1", "WIDE_OPEN": "2", "KEEP_OUT": "3"}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Service, Path]]:
    """Serve behind a prefix, without pages, with every folder elsewhere; yield a client without credentials."""
    root, web = tmp_path_factory.mktemp("narrow"), free_port()
    host = Roomy(root / "home")
    host.home.mkdir()
    (root / "defs").mkdir()
    (root / "defs" / "look.yaml").write_text(LOOK)
    (root / "defs" / "wait.yaml").write_text("steps:\n  - {id: a, run: sleep 60}\n")
    (host.home / "config.yaml").write_text(NARROW.replace("ROOT", str(root)))
    with (
        host.service("start-all", f"--port={web}", "--scheduler.port=0") as service,
        httpx.Client(base_url=f"http://127.0.0.1:{web}", timeout=20) as made,
    ):
        service.wait_for(r'"msg": ?"ready"')
        yield made, service, root


Narrow = tuple[httpx.Client, Service, Path]


def logged_in(client: httpx.Client) -> dict[str, str]:
    """Log in as the admin of the configuration; return the headers."""
    answer = client.post(f"{PREFIX}/auth/login", json={"username": "grace", "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    left = datetime.fromisoformat(answer.json()["expiresAt"]) - datetime.now(UTC)
    assert timedelta(minutes=85) < left <= timedelta(minutes=90), "auth.builtin.token.ttl"
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def test_base_path_api_base_path_and_headless_say_what_is_where(narrow: Narrow) -> None:
    client, _, _ = narrow
    assert client.get(f"{PREFIX}/health").status_code == 200
    assert client.get(f"{PREFIX}/openapi.json", headers=logged_in(client)).json()["servers"] == [{"url": PREFIX}]
    for path in ("/api/v1/health", "/api/v7/health", "/flows/api/v1/health", "/", "/flows/", "/flows/dags"):
        assert client.get(path).status_code == 404, path


def test_steps_get_the_shell_the_zone_and_the_variables_that_are_let_through_and_no_others(narrow: Narrow) -> None:
    client, _, _ = narrow
    body = {"dagRunId": "look", "timeout": 20}
    answer = client.post(f"{PREFIX}/dags/look/start-sync", json=body, headers=logged_in(client))
    assert answer.status_code == 200, answer.text
    log = client.get(f"{PREFIX}/dag-runs/look/look/steps/a/log", headers=logged_in(client)).json()["content"]
    assert log.splitlines() == ["bash", "Asia/Tokyo", "in=1 wide=2 out= secret="]


def test_every_folder_is_where_it_was_put(narrow: Narrow) -> None:
    client, _, root = narrow
    body = {"dagRunId": "places", "timeout": 20}
    assert client.post(f"{PREFIX}/dags/look/start-sync", json=body, headers=logged_in(client)).status_code == 200
    for folder in ("runs", "logs", "artifacts", "users", "registry"):
        assert [path for path in (root / folder).rglob("*") if path.is_file()], folder
    assert client.post(f"{PREFIX}/dags/look/suspend", json={"suspend": True}, headers=logged_in(client)).json() == {}
    assert [path.name for path in (root / "rest").iterdir()] == ["look.suspend"]
    assert not [path for name in ("dags", "logs", "suspend") for path in (root / "home" / name).rglob("*.*")]


def test_proc_says_how_often_a_run_gives_a_sign_of_life_and_what_silence_means(narrow: Narrow) -> None:
    client, _, root = narrow
    assert (
        client.post(f"{PREFIX}/dags/wait/start", json={"dagRunId": "w"}, headers=logged_in(client)).status_code == 200
    )
    said = f"{socket.gethostname()}\n7"
    found = (root / "runs" / "wait").rglob
    [sign] = until(lambda: [path for path in found("alive") if path.read_text() == said], lambda signs: len(signs) == 1)
    signs: set[float] = set()

    def seen() -> int:
        signs.add(sign.stat().st_mtime)
        return len(signs)

    until(seen, lambda number: number >= 8)  # without the setting there would be five in that time
    assert client.post(f"{PREFIX}/dag-runs/wait/w/stop", headers=logged_in(client)).status_code == 200


def test_permissions_and_queues_that_are_off_are_off_for_an_admin(narrow: Narrow) -> None:
    client, _, _ = narrow
    headers = logged_in(client)
    refused = client.post(f"{PREFIX}/dags", json={"name": "new"}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert refused.json()["message"].startswith("Permission denied")
    answer = client.post(f"{PREFIX}/dags/look/enqueue", json={}, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text


def test_ip_access_believes_the_proxy_and_refuses_who_is_not_listed(narrow: Narrow) -> None:
    client, _, _ = narrow
    for said, status in (("10.1.2.3", 200), ("192.0.2.1", 403), ("192.0.2.1, 10.1.2.3", 200), ("no address", 400)):
        assert client.get(f"{PREFIX}/health", headers={"X-Forwarded-For": said}).status_code == status, said


def test_metrics_are_public_and_the_access_log_leaves_out_what_is_public(narrow: Narrow) -> None:
    client, service, _ = narrow
    assert "dagu_dags_total" in client.get(f"{PREFIX}/metrics").text
    assert client.get(f"{PREFIX}/dags?mark=seen").status_code == 401
    line = json.loads(service.wait_for(rf'"{PREFIX}/dags'))
    assert line["level"] == "INFO"
    logged = [json.loads(line) for line in service.lines if line.startswith("{")]
    paths = {str(line.get("path", "")) for line in logged}
    assert f"{PREFIX}/dags" in paths
    assert paths.isdisjoint({f"{PREFIX}/health", f"{PREFIX}/metrics", f"{PREFIX}/auth/login"})
