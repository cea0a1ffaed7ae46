"""A run through the REST API: started, watched, read, retried, deleted."""

from __future__ import annotations

import httpx

from tests.web.api.installation import Installation


async def started(admin: httpx.AsyncClient, **body: object) -> dict[str, object]:
    """Start hello and return its details when it is over."""
    answer = await admin.post("/dags/hello/start-sync", json={"timeout": 20, **body})
    assert answer.status_code == 200, answer.text
    details: dict[str, object] = answer.json()["dagRun"]
    return details


async def test_a_run_is_started_and_its_steps_logs_and_outputs_are_read(admin: httpx.AsyncClient) -> None:
    details = await started(admin, params="NAME=you", dagRunId="r1")
    assert details["statusLabel"] == "succeeded"
    assert details["name"] == "hello"
    base = "/dag-runs/hello/r1"
    assert (await admin.get(base)).json()["dagRunDetails"]["params"] == "NAME=you COUNT=3"
    log = (await admin.get(f"{base}/steps/one/log")).json()
    assert log["content"] == "hello you\n"
    assert log["totalLines"] == 1
    assert (await admin.get(f"{base}/steps/two/log", params={"stream": "stderr"})).json()["content"] == "err\n"
    assert (await admin.get(f"{base}/outputs")).json()["outputs"] == {"greeting": "hello you"}
    assert '"dag": "hello"' in (await admin.get(f"{base}/log", params={"tail": 5})).json()["content"]
    assert "run: echo" in (await admin.get(f"{base}/spec")).json()["spec"]
    assert (await admin.get("/dag-runs/hello/latest")).json()["dagRunDetails"]["dagRunId"] == "r1"


async def test_no_path_of_the_server_is_in_an_answer(admin: httpx.AsyncClient, site: Installation) -> None:
    await started(admin, dagRunId="r1")
    for path in ("/dag-runs/hello/r1", "/dags/hello", "/dags/hello/dag-runs", "/dag-runs"):
        assert str(site.home) not in (await admin.get(path)).text
    node = (await admin.get("/dag-runs/hello/r1")).json()["dagRunDetails"]["nodes"][0]
    assert node["stdout"] == "/api/v1/dag-runs/hello/r1/steps/one/log?stream=stdout"


async def test_logs_and_artifacts_are_downloaded(admin: httpx.AsyncClient) -> None:
    await started(admin, dagRunId="r1")
    base = "/dag-runs/hello/r1"
    answer = await admin.get(f"{base}/steps/one/log/download")
    assert answer.text == "hello world\n"
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-disposition"] == 'attachment; filename="hello-r1-one-stdout.log"'
    answer = await admin.get(f"{base}/log/download")
    assert answer.headers["content-disposition"] == 'attachment; filename="hello-r1-scheduler.log"'
    items = (await admin.get(f"{base}/artifacts", params={"recursive": True})).json()["items"]
    assert [item["path"] for item in items] == ["sub", "a.txt"]
    assert items[0]["children"] == [{"name": "b.md", "path": "sub/b.md", "type": "file", "size": 4}]
    top = (await admin.get(f"{base}/artifacts")).json()["items"]
    assert "children" not in top[0]
    answer = await admin.get(f"{base}/artifacts/download", params={"path": "sub/b.md"})
    assert answer.content == b"# hi"
    assert answer.headers["content-type"] == "application/octet-stream"
    preview = (await admin.get(f"{base}/artifacts/preview", params={"path": "sub/b.md"})).json()
    assert preview["kind"] == "markdown"
    assert preview["content"] == "# hi"
    for path in ("../../x", "/etc/passwd", "a\\b", "sub/../a.txt", "nothing"):
        assert (await admin.get(f"{base}/artifacts/download", params={"path": path})).status_code == 404


async def test_lists_are_filtered_and_paged(admin: httpx.AsyncClient) -> None:
    for number in range(3):
        await started(admin, dagRunId=f"r{number}")
    page = (await admin.get("/dag-runs", params={"limit": 2})).json()
    assert len(page["dagRuns"]) == 2
    assert page["nextCursor"]
    rest = (await admin.get("/dag-runs", params={"limit": 2, "cursor": page["nextCursor"]})).json()
    assert len(rest["dagRuns"]) == 1
    assert "nextCursor" not in rest
    assert (await admin.get("/dag-runs?status=1&status=2")).json() == {"dagRuns": []}
    assert len((await admin.get("/dag-runs?status=4&labels=team=ops")).json()["dagRuns"]) == 3
    assert (await admin.get("/dag-runs", params={"toDate": 1000})).json() == {"dagRuns": []}
    assert len((await admin.get("/dag-runs/hello", params={"dagRunId": "1"})).json()["dagRuns"]) == 1
    history = (await admin.get("/dags/hello/dag-runs")).json()
    assert {row["name"]: row["history"] for row in history["gridData"]}["one"] == [4, 4, 4]


async def test_an_unchanged_answer_is_not_sent_again(admin: httpx.AsyncClient) -> None:
    await started(admin, dagRunId="r1")
    first = await admin.get("/dag-runs/hello/r1")
    again = await admin.get("/dag-runs/hello/r1", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert again.headers["etag"] == first.headers["etag"]


async def test_steering_is_recorded_before_it_happens(admin: httpx.AsyncClient, site: Installation) -> None:
    await started(admin, dagRunId="r1")
    assert (await admin.post("/dag-runs/hello/r1/stop")).status_code == 409
    answer = await admin.patch("/dag-runs/hello/r1/steps/one/status", json={"status": 2})
    assert answer.json() == {}
    assert (await admin.post("/dag-runs/hello/r1/retry", json={"dagRunId": "r1"})).json() == {}
    assert (await admin.post("/dag-runs/hello/r1/retry", json={"dagRunId": "other"})).status_code == 400
    assert (await admin.delete("/dag-runs/hello/latest")).status_code == 400
    assert (await admin.delete("/dag-runs/hello/r1")).status_code == 204
    assert (await admin.get("/dag-runs/hello/r1")).status_code == 404
    changes = [(change, target) for _, change, target in site.gate.records]
    assert changes == [
        ("dag_execute_sync", "dag:hello"),
        ("dag_terminate", "run:hello/r1"),
        ("dag_step_status_update", "run:hello/r1"),
        ("dag_retry", "run:hello/r1"),
        ("dag_run_delete", "run:hello/r1"),
    ]


async def test_an_inline_definition_runs(admin: httpx.AsyncClient) -> None:
    body = {"spec": "steps: [{name: a, run: echo inline}]", "name": "adhoc", "dagRunId": "x1"}
    assert (await admin.post("/dag-runs", json=body)).json() == {"dagRunId": "x1"}
    assert (await admin.post("/dag-runs", json={**body, "dagRunId": "latest"})).status_code == 400
    assert (await admin.post("/dag-runs", json=body)).status_code == 409


async def test_a_late_answer_says_that_the_run_goes_on(admin: httpx.AsyncClient, site: Installation) -> None:
    (site.dags / "slow.yaml").write_text("steps: [{name: a, run: sleep 3}]\n")
    answer = await admin.post("/dags/slow/start-sync", json={"timeout": 1, "dagRunId": "s1"})
    assert answer.status_code == 408
    assert answer.json()["code"] == "timeout"
    assert answer.json()["dagRunId"] == "s1"
    assert (await admin.post("/dags/slow/stop-all")).json() == {"errors": []}


async def test_a_queued_run_says_why_it_waits_and_is_taken_out_by_post_only(
    admin: httpx.AsyncClient, site: Installation
) -> None:
    assert (await admin.post("/dags/hello/enqueue", json={"dagRunId": "q1"})).json() == {"dagRunId": "q1"}
    queue = (await admin.get("/queues/hello")).json()
    assert queue["type"] == "dag-based"
    assert queue["queuedCount"] == 1
    item = (await admin.get("/queues/hello/items")).json()["items"][0]
    assert item["statusLabel"] == "queued"
    assert item["conditions"][0]["reason"] == "MaxConcurrencyReached"
    assert (await admin.post("/queues/hello/pause")).json() == {}
    assert (await admin.get("/queues/hello")).json()["paused"] is True
    assert (await admin.get("/queues/none")).status_code == 404
    assert (await admin.post("/dag-runs/hello/q1/dequeue")).json() == {}
    assert (await admin.get("/dag-runs/hello/q1")).status_code == 404


async def test_people_decide_about_steps_of_any_name(admin: httpx.AsyncClient, site: Installation) -> None:
    await started(admin, dagRunId="r1")
    base = "/dag-runs/hello/r1"
    answer = await admin.post(f"{base}/steps/a%2Fb/approve", json={"inputs": {"K": "v"}})
    assert answer.json() == {"dagRunId": "r1", "stepName": "a/b", "resumed": True}
    assert (await admin.post(f"{base}/steps/a/reject", json={"reason": "no"})).json()["resumed"] is False
    assert (await admin.post(f"{base}/steps/a/push-back", json={})).status_code == 200
    assert (await admin.post(f"{base}/human-tasks/t/complete", json={"fields": {"n": 1}})).status_code == 200
    assert site.launching.calls == [("approve", "a/b"), ("reject", "a"), ("push_back", "a"), ("complete_task", "t")]
