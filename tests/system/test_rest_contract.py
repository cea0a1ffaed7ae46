"""The REST API of a real `start-all`, as the reference says it: status codes, error codes, and nothing of the host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.system.hosts import Host

PASSWORD = "correct horse"
DAGS = {
    "quick": "params: NAME=you\nsteps:\n  - {id: a, run: echo hi $NAME}\n",
    "slow": "queue: narrow\nsteps:\n  - {id: a, run: sleep 60}\n",
    "parent": "steps:\n  - {id: c, call: kid}\n---\nname: kid\nsteps:\n  - {id: k, run: echo kid}\n",
    "broken": "steps: 17\n",
    "far": "worker_selector: {gpu: 'true'}\nsteps:\n  - {id: a, run: echo}\n",
}
Answer = tuple[int, Any]


class Client:
    """An admin, and the host whose paths no answer may hold."""

    def __init__(self, url: str, home: Path) -> None:
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=20)
        self._home = str(home)
        body = {"username": "ada", "password": PASSWORD}
        self._http.headers["Authorization"] = f"Bearer {self._http.post('/auth/setup', json=body).json()['token']}"

    def __call__(self, method: str, path: str, body: Any = None) -> Answer:
        """Return status and document of an answer."""
        answer = self._http.request(method, path, json=body)
        assert self._home not in answer.text, f"{method} {path} tells where things are: {answer.text}"
        return answer.status_code, answer.json() if answer.content else None

    def code(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Return status and code of an answer that says no."""
        status, document = self(method, path, body)
        assert set(document) >= {"code", "message"}, document
        return status, document["code"]

    def until(self, run: str, label: str) -> None:
        """Wait until a run has a status."""
        until = time.monotonic() + 60
        while (found := self("GET", f"/dag-runs/{run}")[1]["dagRunDetails"]["statusLabel"]) != label:
            assert time.monotonic() < until, f"{run} is {found}, not {label}"
            time.sleep(0.05)

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Serve once for all of these tests: each has runs of its own."""
    host = Host(tmp_path_factory.mktemp("contract") / "home")
    (host.home / "dags").mkdir(parents=True)
    for name, text in DAGS.items():
        (host.home / "dags" / f"{name}.yaml").write_text(text)
    (host.home / "config.yaml").write_text("queues: {config: [{name: narrow, max_concurrency: 1}]}\n")
    host.ok("pki", "init", "--advertise", "localhost")
    port, coordinator = free_port(), free_port()
    words = [f"--port={port}", "--scheduler.port=0", f"--coordinator.port={coordinator}"]
    with host.service(
        "start-all", *words, "--coordinator.advertise=localhost", "--coordinator.health-port=0"
    ) as service:
        service.wait_for(r"msg=ready\s")
        client = Client(f"http://127.0.0.1:{port}", host.home)
        yield client
        client.close()


def test_a_name_or_an_id_that_is_taken_is_told_apart_from_other_conflicts(api: Client) -> None:
    taken = (409, "already_exists")
    assert api("POST", "/dags/quick/start", {"dagRunId": "taken"})[0] == 200
    assert api.code("POST", "/dags/quick/start", {"dagRunId": "taken"}) == taken
    assert api.code("POST", "/dags/quick/enqueue", {"dagRunId": "taken"}) == taken
    assert api.code("POST", "/dag-runs/quick/taken/reschedule", {"dagRunId": "taken"}) == taken
    assert api.code("POST", "/dags", {"name": "quick"}) == taken
    assert api.code("POST", "/dags/quick/rename", {"newFileName": "slow"}) == taken
    assert api.code("POST", "/users", {"username": "ada", "password": PASSWORD, "role": "viewer"}) == taken


def test_what_a_run_is_not_ready_for_is_the_callers_mistake(api: Client) -> None:
    wrong = (400, "bad_request")
    assert api("POST", "/dags/quick/start-sync", {"dagRunId": "over", "timeout": 20})[0] == 200
    assert api.code("POST", "/dag-runs/quick/over/stop") == (400, "not_running")
    assert api.code("POST", "/dag-runs/quick/over/dequeue") == wrong
    assert api.code("POST", "/dag-runs/quick/none/stop") == (404, "not_found")
    assert api("POST", "/dags/slow/enqueue", {"dagRunId": "first"})[0] == 200
    api.until("slow/first", "running")
    assert api.code("POST", "/dag-runs/slow/first/dequeue") == wrong
    assert api.code("DELETE", "/dag-runs/slow/first") == wrong
    assert api.code("PATCH", "/dag-runs/slow/first/steps/a/status", {"status": 4}) == wrong
    assert api("POST", "/dags/slow/enqueue", {"dagRunId": "second"})[0] == 200
    assert api.code("DELETE", "/dag-runs/slow/second") == wrong
    assert api.code("POST", "/dags/slow/start", {"singleton": True}) == (409, "already_exists")
    assert api("POST", "/dag-runs/slow/second/dequeue")[0] == 200
    assert api("POST", "/dag-runs/slow/first/stop")[0] == 200
    api.until("slow/first", "aborted")
    assert api("DELETE", "/dag-runs/slow/first")[0] == 204


def test_a_start_that_no_worker_can_take_is_503(api: Client) -> None:
    assert api.code("POST", "/dags/far/start", {}) == (503, "no_worker")


def test_an_error_says_the_file_and_not_where_it_lies(api: Client) -> None:
    assert api.code("POST", "/dags/none/start", {}) == (404, "not_found")
    status, told = api("POST", "/dags/broken/start", {})
    assert status == 400
    assert "broken.yaml:1:8" in told["message"]


def test_the_runs_that_a_run_called_are_listed(api: Client) -> None:
    assert api("POST", "/dags/parent/start-sync", {"dagRunId": "family", "timeout": 20})[0] == 200
    [child] = api("GET", "/dag-runs/parent/family/sub-dag-runs")[1]["subRuns"]
    assert (child["dagName"], child["statusLabel"]) == ("kid", "succeeded")
    [node] = api("GET", "/dag-runs/parent/family")[1]["dagRunDetails"]["nodes"]
    assert node["subRuns"] == [{"dagRunId": child["dagRunId"], "dagName": "kid"}]
    log = api("GET", f"/dag-runs/parent/family/sub-dag-runs/{child['dagRunId']}/steps/k/log")
    assert log[1]["content"] == "kid\n"


def test_the_audit_log_is_asked_by_the_words_of_old_tools_and_by_how_somebody_came(api: Client) -> None:
    assert api("POST", "/dags/quick/start", {"dagRunId": "audited"})[0] == 200
    [status, started] = api("GET", "/audit?action=dag_execute&source=rest&resourceId=quick")
    assert status == 200
    assert {entry["action"] for entry in started["entries"]} == {"run.start_requested"}
    assert {entry["surface"] for entry in started["entries"]} == {"rest_api"}
    assert {entry["credentialType"] for entry in started["entries"]} == {"password"}
    assert api.code("POST", "/auth/login", {"username": "ada", "password": "wrong wrong"}) == (401, "unauthorized")
    [login] = api("GET", "/audit?category=user&action=login&result=denied")[1]["entries"]
    assert login["reason"] == "bad_credentials"
    assert api("GET", "/audit?credentialType=api_key")[1]["total"] == 0
    by_command = api("GET", "/audit?surface=cli")[1]["entries"]
    assert by_command
    assert {entry["surface"] for entry in by_command} == {"cli"}
    assert api.code("POST", "/dags", {"name": "slow"}) == (409, "already_exists")
    end = time.monotonic() + 60
    while not (found := api("GET", "/audit?action=dag_create&result=failed&resourceId=slow")[1]["entries"]):
        assert time.monotonic() < end, "what was recorded before it failed is recorded as failed"
        time.sleep(0.1)
    assert found[0]["reason"] == "already-exists"
    assert api("GET", "/audit/verify")[1]["ok"] is True
