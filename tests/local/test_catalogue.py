"""All runs as one list: the index against a plain scan, pages, logs by window, single runs."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.dispatch.operating import RunFilter, Waiting, Window, matches
from secure_dagu.dispatch.queueing import as_fields, conditions
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.local.catalogue import LOOK_EVERY_S, Catalogue
from secure_dagu.local.places import Places
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus
from secure_dagu.store.records import JOURNAL, Record

CALLER = Caller(role=Role.ADMIN, name="server", proven=True)
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def places_in(folder: Path) -> Places:
    """Return the places of a host below a folder."""
    return Places(
        dags_dir=folder / "dags", data_dir=folder / "data", log_dir=folder / "logs", artifact_dir=folder / "artifacts",
        work_dir=folder / "work", dag_runs_dir=folder / "data" / "dag-runs", queues=folder / "data" / "queue",
        proc_dir=folder / "data" / "proc", suspend_dir=folder / "suspend", state_dir=folder / "data" / "dag-state",
    )  # fmt: skip


def add_run(
    places: Places, name: str, run_id: str, *, at: datetime = NOW, status: RunStatus = RunStatus.SUCCEEDED,
    labels: tuple[str, ...] = (), **more: object,
) -> Record:  # fmt: skip
    """Record a run."""
    record = places.records.create(DagRunRef(name, run_id), now=at)
    attempt = record.add_attempt(AttemptId("abc123"), now=at)
    attempt.write_definition({"definition": "steps: [{id: a, run: echo}]"})
    document = {
        "name": name, "dagRunId": run_id, "attemptId": "abc123", "status": int(status), "labels": list(labels),
        "createdAt": int(at.timestamp() * 1000), "nodes": [], **more,
    }  # fmt: skip
    attempt.write(json.dumps(document), final=True)
    return record


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_in(tmp_path)


@pytest.fixture
def catalogue(places: Places) -> Iterator[Catalogue]:
    made = Catalogue(places, way=Way(None, CALLER))
    yield made
    made.close()


async def ids(catalogue: Catalogue, wanted: RunFilter | None = None, limit: int = 100) -> list[str]:
    """Return the run ids of the first page."""
    page = await catalogue.find(wanted or RunFilter(), limit=limit)
    return [str(run.document["dagRunId"]) for run in page.runs]


async def test_pages_neither_lose_nor_repeat_runs_while_runs_are_added(places: Places, catalogue: Catalogue) -> None:
    for number in range(25):
        add_run(places, "etl", f"r{number:02}", at=NOW + timedelta(seconds=number))
    seen: list[str] = []
    cursor = ""
    for step in range(10):
        page = await catalogue.find(RunFilter(), limit=4, cursor=cursor)
        seen += [str(run.document["dagRunId"]) for run in page.runs]
        add_run(places, "etl", f"new{step}", at=NOW + timedelta(hours=1, seconds=step))
        cursor = page.next_cursor
        if not cursor:
            break
    assert seen == [f"r{number:02}" for number in reversed(range(25))]


async def test_a_list_says_why_a_queued_run_waits_as_long_as_it_does(places: Places, catalogue: Catalogue) -> None:
    attempt = add_run(places, "etl", "r1", status=RunStatus.QUEUED).latest()
    add_run(places, "etl", "r2", at=NOW + timedelta(seconds=1))
    assert attempt is not None
    attempt.write_conditions([as_fields(one) for one in conditions(Waiting.QUEUE_LIMIT, NOW)])
    found = (await catalogue.find(RunFilter(), limit=5)).runs
    assert [{one.reason for one in run.conditions} for run in found] == [set(), {Waiting.QUEUE_LIMIT}]
    attempt.write(json.dumps({**found[1].document, "status": int(RunStatus.RUNNING)}))
    assert [run.conditions for run in (await catalogue.find(RunFilter(), limit=5)).runs] == [(), ()]


async def test_the_index_follows_every_kind_of_change(places: Places, catalogue: Catalogue) -> None:
    record = add_run(places, "etl", "r1")
    queued = add_run(places, "etl", "r2", at=NOW + timedelta(seconds=1), status=RunStatus.QUEUED)
    assert await ids(catalogue) == ["r2", "r1"]
    attempt = queued.latest()
    assert attempt is not None
    attempt.hide()
    assert await ids(catalogue) == ["r1"]
    attempt = record.add_attempt(AttemptId("def456"), now=NOW + timedelta(hours=1))
    attempt.write(json.dumps({"name": "etl", "dagRunId": "r1", "status": int(RunStatus.FAILED)}), final=True)
    assert await ids(catalogue, RunFilter(statuses=frozenset({RunStatus.FAILED}))) == ["r1"]
    assert await ids(catalogue, RunFilter(statuses=frozenset({RunStatus.SUCCEEDED}))) == []
    assert (await catalogue.count(since=NOW - timedelta(days=1)))[RunStatus.FAILED] == 1
    places.records.remove(record)
    assert await ids(catalogue) == []


async def test_a_run_whose_process_is_gone_is_shown_as_failed(places: Places, catalogue: Catalogue) -> None:
    record = add_run(places, "etl", "r1", status=RunStatus.RUNNING)
    attempt = record.latest()
    assert attempt is not None
    with attempt.alive():
        assert await ids(catalogue, RunFilter(statuses=frozenset({RunStatus.RUNNING}))) == ["r1"]
    found = (await catalogue.get(DagRunRef("etl", "r1"))).document
    assert found["status"] == RunStatus.FAILED
    assert await ids(catalogue, RunFilter(statuses=frozenset({RunStatus.FAILED}))) == ["r1"]


@pytest.mark.parametrize("harm", ["deleted", "garbage", "truncated", "torn journal", "no journal"])
async def test_a_damaged_index_is_made_again(places: Places, harm: str) -> None:
    for number in range(3):
        add_run(places, "etl", f"r{number}", at=datetime.now(UTC) - timedelta(seconds=number))
    first = Catalogue(places, way=Way(None, CALLER))
    assert len(await ids(first)) == 3
    first.close()
    folder = places.dag_runs_dir
    file = next(folder.glob(".index-server-*.db"))
    if harm == "deleted":
        file.unlink()
    elif harm == "garbage":
        file.write_bytes(b"not a database at all" * 1000)
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif harm == "torn journal":
        with (folder / JOURNAL).open("ab") as journal:
            journal.write(b"etl/dag-runs/../../x\n\xff\xfe\nhalf a li")
    else:
        (folder / JOURNAL).unlink()
    add_run(places, "etl", "r9", at=datetime.now(UTC))
    second = Catalogue(places, way=Way(None, CALLER))
    assert len(await ids(second)) == 4
    second.close()


_RUNS = st.lists(
    st.tuples(
        st.sampled_from(["etl", "etl-day", "report"]), st.integers(0, 5), st.sampled_from(list(RunStatus)),
        st.lists(st.sampled_from(["team=ops", "team=data", "nightly"]), max_size=2, unique=True),
    ),
    max_size=12,
)  # fmt: skip
_FILTERS = st.builds(
    RunFilter,
    name=st.sampled_from(["", "etl"]), name_part=st.sampled_from(["", "ET", "day"]),
    run_id_part=st.sampled_from(["", "r1"]),
    statuses=st.frozensets(st.sampled_from([RunStatus.FAILED, RunStatus.SUCCEEDED, RunStatus.QUEUED]), max_size=2),
    labels=st.lists(st.sampled_from(["team=*", "!nightly", "team", "team=ops"]), max_size=2).map(tuple),
    since=st.sampled_from([None, NOW, NOW + timedelta(seconds=2)]),
    until=st.sampled_from([None, NOW + timedelta(seconds=4)]),
)  # fmt: skip


@given(runs=_RUNS, wanted=_FILTERS)
@settings(max_examples=25)
def test_the_index_says_what_a_plain_scan_says(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, int, RunStatus, list[str]]], wanted: RunFilter
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    places = places_in(folder)
    plain = []
    for number, (name, second, status, labels) in enumerate(runs):
        if status is RunStatus.RUNNING:
            status = RunStatus.WAITING  # nobody runs it: it would turn into a failed one
        at = NOW + timedelta(seconds=second)
        add_run(places, name, f"r{number}", at=at, status=status, labels=tuple(labels))
        document = {"name": name, "dagRunId": f"r{number}", "labels": labels}
        fits = (
            (not wanted.name or wanted.name == name)
            and (not wanted.statuses or status in wanted.statuses)
            and (wanted.since is None or at >= wanted.since)
            and (wanted.until is None or at < wanted.until)
            and matches(document, wanted)
        )
        if fits:
            plain.append((at, f"{name}/r{number}", f"r{number}"))
    catalogue = Catalogue(places, way=Way(None, CALLER))
    assert asyncio.run(ids(catalogue, wanted)) == [run_id for _, _, run_id in sorted(plain, reverse=True)]
    catalogue.close()
    shutil.rmtree(folder)


async def test_logs_artifacts_and_children_of_a_run_are_read_and_nothing_else(
    places: Places, catalogue: Catalogue, tmp_path: Path
) -> None:
    archive = tmp_path / "artifacts" / "etl" / "r1"
    (archive / "sub").mkdir(parents=True)
    (archive / "sub" / "a.txt").write_text("result")
    (archive / "link").symlink_to("/etc/passwd")
    (tmp_path / "out.log").write_text("one\ntwo\n")
    node = {
        "step": {"name": "s"},
        "stdout": str(tmp_path / "out.log"),
        "stderr": "/etc",
        "children": [{"dagRunId": "c"}],
    }
    add_run(places, "etl", "r1", nodes=[node], archiveDir=str(archive), log=str(tmp_path / "out.log"))
    run = DagRunRef("etl", "r1")
    assert (await catalogue.log(run, Window(tail=1), step="s")).content == "two\n"
    assert (await catalogue.log(DagRunRef("etl", "latest"), Window())).total_lines == 2
    assert (await catalogue.log(run, Window(), step="s", stream="stderr")).content == ""
    with pytest.raises(NotFound):
        await catalogue.log(run, Window(), step="nobody")
    with pytest.raises(InvalidRequest):
        await catalogue.log(run, Window(), step="s", stream="stdin")
    assert [(item.path, item.size_bytes) for item in await catalogue.artifacts(run)] == [("sub/a.txt", 6)]
    assert b"".join([piece async for piece in catalogue.artifact_bytes(run, "sub/a.txt")]) == b"result"
    for path in ("../r1/sub/a.txt", "link", "/etc/passwd", "sub", "", "sub//a.txt", "sub\\a.txt", "a\0b"):
        with pytest.raises(NotFound):
            _ = [piece async for piece in catalogue.artifact_bytes(run, path)]
    assert [child["dagRunId"] for child in await catalogue.children(run)] == ["c"]
    assert "echo" in await catalogue.definition(run)
    with pytest.raises(NotFound):
        await catalogue.get(DagRunRef("etl", "../r1"))


async def test_changes_are_told_to_every_listener_within_a_second(places: Places, catalogue: Catalogue) -> None:
    assert LOOK_EVERY_S < 1
    heard: list[list[DagRunRef]] = [[], []]

    async def listen(into: list[DagRunRef]) -> None:
        async for run in catalogue.changes():
            into.append(run)
            return

    await ids(catalogue)  # the index is there
    async with catalogue.watching(), asyncio.timeout(60), asyncio.TaskGroup() as group:
        for into in heard:
            group.create_task(listen(into))
        await asyncio.sleep(0)
        add_run(places, "etl", "r1")
    assert heard == [[DagRunRef("etl", "r1")]] * 2


async def test_a_cursor_that_is_not_ours_is_refused(catalogue: Catalogue) -> None:
    too_large = base64.urlsafe_b64encode(b"9" * 30 + b" a/b").decode()
    for cursor in ("x", "%%%", "AAAA", "ü", too_large, "A" * 10_000):
        with pytest.raises(InvalidRequest):
            await catalogue.find(RunFilter(), limit=1, cursor=cursor)
