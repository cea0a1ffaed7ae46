"""This host's runs and a coordinator's as one list; a coordinator's runs looked at one by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from secure_dagu.assembly.coordinator import _Everything
from secure_dagu.dispatch.model import ArtifactPart, Caller, Role
from secure_dagu.dispatch.operating import RunFilter, Waiting, Window
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import InvalidRequest, NotFound, Unavailable
from secure_dagu.local.catalogue import LOOK_EVERY_S, Catalogue
from secure_dagu.local.places import Places
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, attempt_key
from tests.coordinator.harness import DISPATCHER, House, Place, a_task, each, identity_of, log_part, worker
from tests.local.test_catalogue import NOW, add_run, places_in

ADMIN = Caller(role=Role.ADMIN, name="server", proven=True)
W1 = worker("w1")
RUN = DagRunRef("sales", "r1")
ARCHIVE = "/tmp/worker/dag-run_20260102_030405Z_r1"


class Site(Struct):
    """A host, a coordinator, and their runs as one."""

    places: Places
    house: House
    runs: Catalogue

    async def ids(self, wanted: RunFilter | None = None, *, limit: int = 2) -> list[str]:
        """Return the run ids of every page."""
        found: list[str] = []
        cursor = ""
        while True:
            page = await self.runs.find(wanted or RunFilter(), limit=limit, cursor=cursor)
            found += [str(run.document["dagRunId"]) for run in page.runs]
            cursor = page.next_cursor
            if not cursor:
                return found


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    places = places_in(tmp_path / "host")
    (tmp_path / "coordinator").mkdir()
    async with Place(tmp_path / "coordinator").coordinator() as house:
        runs = Catalogue(places, way=Way(_Everything(house.service), ADMIN))
        yield Site(places, house, runs)
        runs.close()


async def test_runs_of_both_are_one_list_in_the_order_of_their_making(site: Site) -> None:
    clock = site.house.place.clock
    for number in range(7):
        clock.advance(1)
        if number % 2:
            add_run(site.places, "sales", f"r{number}", at=clock.now(), status=RunStatus.FAILED)
        else:
            await site.house.report(W1, await site.house.started(W1, f"r{number}"), 4)
    everything = [f"r{number}" for number in reversed(range(7))]
    for limit in (1, 2, 3, 7, 500):
        assert await site.ids(limit=limit) == everything
    assert await site.ids(RunFilter(statuses=frozenset({RunStatus.FAILED}))) == ["r5", "r3", "r1"]
    assert await site.ids(RunFilter(since=clock.now() - timedelta(seconds=2))) == ["r6", "r5", "r4"]
    assert await site.ids(RunFilter(run_id_part="4", name_part="ALES")) == ["r4"]
    counted = await site.runs.count(since=clock.now() - timedelta(days=1))
    assert counted == {RunStatus.SUCCEEDED: 4, RunStatus.FAILED: 3}
    assert (await site.runs.get(DagRunRef("sales", "latest"))).document["dagRunId"] == "r6"


async def test_a_run_that_was_handed_over_is_there_once_and_the_coordinators(site: Site) -> None:
    clock = site.house.place.clock
    record = add_run(site.places, "sales", "r1", at=clock.now(), status=RunStatus.QUEUED)
    await site.house.report(W1, await site.house.started(W1), 1)
    assert await site.ids(limit=5) == ["r1"]
    assert (await site.runs.get(RUN)).document["status"] == RunStatus.RUNNING
    attempt = record.latest()
    assert attempt is not None
    attempt.hide()
    assert await site.ids(limit=5) == ["r1"]
    assert "echo" in await site.runs.definition(RUN)  # as this host started it


async def test_logs_files_children_and_outputs_of_a_coordinators_run_are_read(site: Site) -> None:
    house = site.house
    claim = await house.started(W1)
    node = {
        "step": {"name": "one"}, "status": 4, "stdout": "", "stderr": "", "outputVariables": {"MY_OUT": "MY_OUT=7"},
        "children": [
            {"dagRunId": "c1", "dagName": "child"}, {"dagRunId": "c2", "dagName": "child", "params": "A=1"}, 3,
        ],
    }  # fmt: skip
    await house.upload(W1, claim, log_part(b"one\ntwo\nthree\n"))
    await house.report(W1, claim, 1, archiveDir=ARCHIVE, nodes=[node])
    parts = each(ArtifactPart(path="a/b.txt", data=b"result", is_final=True))
    await house.service.reports.stream_artifacts(W1, identity_of(W1, claim), parts)
    child: dict[str, Any] = {
        "name": "child", "dagRunId": "c1", "attemptId": "c1", "parent": {"name": "sales", "id": "r1"},
        "attemptKey": attempt_key(root=RUN, run=DagRunRef("child", "c1"), attempt_id=AttemptId("c1")),
        "claimKey": claim.task.attempt_key, "root": {"name": "sales", "id": "r1"},
    }  # fmt: skip
    assert (await house.report(W1, claim, 1, **child)).accepted
    assert (await house.report(W1, claim, 4, archiveDir=ARCHIVE, nodes=[node])).accepted

    runs = site.runs
    found = await runs.get(RUN)
    assert (found.document["status"], found.has_artifacts) == (RunStatus.SUCCEEDED, True)
    page = await runs.log(RUN, Window(tail=2), step="one")
    assert (page.content, page.total_lines, page.has_more, page.end_offset) == ("two\nthree\n", 3, True, 14)
    assert (await runs.log(RUN, Window(), step="one", stream="stderr")).content == ""
    assert (await runs.log(RUN, Window())).content == ""
    assert b"".join([data async for data in runs.log_bytes(RUN, step="one", offset=4)]) == b"two\nthree\n"
    assert [(file.path, file.size_bytes) for file in await runs.artifacts(RUN)] == [("a/b.txt", 6)]
    assert b"".join([data async for data in runs.artifact_bytes(RUN, "a/b.txt")]) == b"result"
    for path in ("../b.txt", "/etc/passwd", "a", "", "a\0b"):
        with pytest.raises((NotFound, InvalidRequest)):
            _ = [data async for data in runs.artifact_bytes(RUN, path)]
    first, second = await runs.children(RUN)
    assert (first["dagRunId"], first["status"]) == ("c1", RunStatus.RUNNING)
    assert (second["dagRunId"], second["status"], second["params"]) == ("c2", RunStatus.NOT_STARTED, "A=1")
    assert (await runs.get(RUN, child="c1")).document["name"] == "child"
    outputs = await runs.outputs(RUN)
    assert outputs is not None
    assert outputs["outputs"] == {"myOut": "7"}
    assert (outputs["metadata"]["dagRunId"], outputs["metadata"]["status"]) == ("r1", "succeeded")
    for wrong in (DagRunRef("sales", "none"), DagRunRef("none", "latest"), DagRunRef("sa/les", "../r1")):
        with pytest.raises(NotFound):
            await runs.get(wrong)
    with pytest.raises(NotFound):
        await runs.get(RUN, child="c9")
    with pytest.raises(NotFound):
        await runs.log(RUN, Window(), step="nobody")


async def test_a_run_that_waits_at_the_coordinator_says_why(site: Site) -> None:
    await site.house.beat(W1)
    await site.house.service.desk.dispatch(DISPATCHER, a_task())
    await site.house.pass_time(40)  # its only worker is gone
    for found in (await site.runs.get(RUN), (await site.runs.find(RunFilter(), limit=1)).runs[0]):
        assert Waiting.NO_WORKER in {condition.reason for condition in found.conditions}


_STEP = {"name": "one"}


@pytest.mark.parametrize(
    "more",
    [
        {"nodes": 5}, {"nodes": [3, None, {}]}, {"nodes": [{"step": "one", "children": 7, "status": 4}]},
        {"nodes": [{"step": _STEP, "status": 4, "outputsValue": "{", "children": [{"dagRunId": 9}]}]},
        {"nodes": [{"step": _STEP, "status": 4, "children": [{"dagRunId": "../x"}]}]},
        {"nodes": [{"step": _STEP, "status": 4, "outputVariables": 3}]}, {"conditions": 3, "labels": {"a": 1}},
        {"onExit": "x", "params": [], "startedAt": 7},
    ],
)  # fmt: skip
async def test_whatever_a_worker_reports_can_be_looked_at(site: Site, more: dict[str, Any]) -> None:
    claim = await site.house.started(W1)
    if not (await site.house.report(W1, claim, 4, **more)).accepted:
        return
    assert await site.ids() == ["r1"]
    await site.runs.get(RUN)
    await site.runs.children(RUN)
    await site.runs.outputs(RUN)
    await site.runs.artifacts(RUN)
    await site.runs.count(since=NOW - timedelta(days=9999))
    assert await site.ids(RunFilter(labels=("!x",), name_part="s", run_id_part="1")) == ["r1"]
    for step in ("", "one"):
        with contextlib.suppress(NotFound):
            await site.runs.log(RUN, Window(), step=step)


async def test_a_child_that_was_sent_away_has_its_log_at_the_coordinator(site: Site) -> None:
    claim = await site.house.started(W1, "c1", name="child")
    await site.house.upload(W1, claim, log_part(b"from afar\n"))
    await site.house.report(W1, claim, 4)
    parent = add_run(site.places, "parent", "p1", nodes=[{"step": {"name": "s"}, "children": [{"dagRunId": "c1"}]}])
    mirror = parent.child(DagRunRef("child", "c1")).add_attempt(AttemptId("m1"), now=site.house.place.clock.now())
    mirror.write(json.dumps(await site.house.document(DagRunRef("child", "c1"))))
    page = await site.runs.log(DagRunRef("parent", "p1"), Window(), step="one", child="c1")
    assert page.content == "from afar\n"


async def test_a_step_at_the_coordinator_that_moves_on_is_told_within_a_second(site: Site) -> None:
    assert LOOK_EVERY_S < 1
    claim = await site.house.started(W1)
    await site.house.report(W1, claim, 1)
    heard = asyncio.Queue[DagRunRef]()

    async def listen() -> None:
        async for run in site.runs.changes():
            heard.put_nowait(run)

    async with site.runs.watching(), asyncio.timeout(60), asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        number = 0
        while heard.empty():  # the first look tells nothing; each report is another revision
            number += 1
            await site.house.report(W1, claim, 1, nodes=[{"step": {"name": "one"}, "status": 1, "retryCount": number}])
            await asyncio.sleep(0.05)
        assert heard.get_nowait() == RUN
        listening.cancel()


class Gone(_Everything):
    """A coordinator that does not answer."""

    def __init__(self) -> None:
        async def nobody(*_: object, **__: object) -> Any:
            raise Unavailable("no coordinator can be reached")

        self.find_runs = self.count_runs = self.run_status = nobody


async def test_without_its_coordinator_a_host_still_shows_its_own_runs(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    add_run(places, "sales", "r1")
    runs = Catalogue(places, way=Way(Gone(), ADMIN))
    assert [run.document["dagRunId"] for run in (await runs.find(RunFilter(), limit=5)).runs] == ["r1"]
    assert await runs.count(since=NOW - timedelta(days=1)) == {RunStatus.SUCCEEDED: 1}
    assert (await runs.get(RUN)).document["dagRunId"] == "r1"
    with pytest.raises(Unavailable):
        await runs.get(DagRunRef("sales", "r2"))
    runs.close()
