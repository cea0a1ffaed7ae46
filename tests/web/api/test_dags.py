"""Definitions through the REST API: listed, written, renamed, searched."""

from __future__ import annotations

import httpx

from tests.web.api.conftest import HELLO
from tests.web.api.installation import Installation

GOOD = "steps: [{name: a, run: echo}]\n"
BAD = "steps: [{name: a, runs: echo}]\n"


async def test_definitions_are_listed_by_page_label_and_schedule(admin: httpx.AsyncClient, site: Installation) -> None:
    for number in range(3):
        (site.dags / f"d{number}.yaml").write_text(GOOD)
    (site.dags / "broken.yaml").write_text(BAD)
    page = (await admin.get("/dags", params={"page": 2, "perPage": 2})).json()
    assert page["pagination"] == {"totalRecords": 5, "currentPage": 2, "totalPages": 3, "nextPage": 3, "prevPage": 1}
    assert [item["fileName"] for item in page["dags"]] == ["d1", "d2"]
    everything = {item["fileName"]: item for item in (await admin.get("/dags")).json()["dags"]}
    assert everything["broken"]["errors"]
    assert everything["hello"]["latestDAGRun"]["statusLabel"] == "not_started"
    assert everything["hello"]["dag"]["schedule"] == [{"kind": "cron", "expression": "0 3 * * *"}]
    assert everything["hello"]["dag"]["defaultParams"] == "NAME=world COUNT=3"
    found = (await admin.get("/dags", params={"labels": "team=ops", "order": "desc"})).json()["dags"]
    assert [item["fileName"] for item in found] == ["hello"]
    assert (await admin.get("/dags/labels")).json() == {"labels": ["nightly", "team=ops"], "errors": []}
    assert (await admin.get("/dags?labels=a&tags=b")).status_code == 400


async def test_a_definition_is_created_changed_renamed_and_removed(
    admin: httpx.AsyncClient, site: Installation
) -> None:
    assert (await admin.post("/dags", json={"name": "new"})).json() == {"name": "new"}
    again = await admin.post("/dags", json={"name": "new", "spec": GOOD})
    assert again.status_code == 409
    assert "new" in again.json()["message"]
    assert (await admin.post("/dags", json={"name": "bad", "spec": BAD})).status_code == 400
    seen = (await admin.get("/dags/new/spec")).headers["etag"]
    assert (await admin.put("/dags/new/spec", json={"spec": BAD})).status_code == 400
    assert (await admin.put("/dags/new/spec", json={"spec": GOOD}, headers={"If-Match": seen})).json() == {"errors": []}
    late = await admin.put("/dags/new/spec", json={"spec": HELLO}, headers={"If-Match": seen})
    assert late.status_code == 409
    kept = await admin.put("/dags/new/spec", params={"strict": "false"}, json={"spec": BAD})
    assert kept.json()["errors"]
    assert (await admin.get("/dags/new")).json()["errors"]
    assert (await admin.post("/dags/new/rename", json={"newFileName": "other"})).json() == {}
    assert (await admin.post("/dags/other/suspend", json={"suspend": True})).json() == {}
    assert (await admin.get("/dags/other")).json()["suspended"] is True
    assert (await admin.delete("/dags/other")).status_code == 204
    assert (await admin.get("/dags/other")).status_code == 404
    assert site.gate.records[-1] == ("admin", "dag_delete", "dag:other")


async def test_validation_answers_whatever_the_text_is(admin: httpx.AsyncClient) -> None:
    good = (await admin.post("/dags/validate", json={"spec": HELLO})).json()
    assert good["valid"] is True
    assert [item["name"] for item in good["dag"]["paramDefs"]] == ["NAME", "COUNT"]
    bad = (await admin.post("/dags/validate", json={"spec": BAD})).json()
    assert bad["valid"] is False
    assert "runs" in bad["errors"][0]
    assert (await admin.post("/dags/validate", json={"spec": "{[\0"})).json()["valid"] is False


async def test_texts_are_searched(admin: httpx.AsyncClient) -> None:
    for path in ("/dags/search", "/search/dags"):
        result = (await admin.get(path, params={"q": "ECHO"})).json()["results"][0]
        assert result["fileName"] == "hello"
        assert len(result["matches"]) == 3
    match = (await admin.get("/search/dags/hello/matches", params={"q": "bye"})).json()["matches"][0]
    assert HELLO.splitlines()[match["lineNumber"] - 1].strip() == "run: echo bye"
    assert match["line"].splitlines()[match["lineNumber"] - match["startLine"]].strip() == "run: echo bye"


async def test_references_that_nothing_resolves_are_named(admin: httpx.AsyncClient, site: Installation) -> None:
    (site.dags / "lost.yaml").write_text("steps: [{id: a, run: 'echo ${steps.gone.outputs.x}'}]\n")
    notices = (await admin.get("/dags/lost/spec")).json()["valueReferenceNotices"]
    assert notices[0]["reason"] == "unknown_step_id"
    assert notices[0]["field"] == "steps[0].run"
