"""Lists over 50,000 past runs, half of them files of this host and half a coordinator's, as people and programs ask."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.cluster import OPERATOR, Cluster, client, new_cluster, process, quantile, run_to_end, task
from bench.runs import ONE_STEP, Row, multiply
from secure_dagu.assembly.places import places_of
from secure_dagu.dispatch.operating import RunFilter, in_lists
from secure_dagu.dispatch.way import Way
from secure_dagu.local.catalogue import Catalogue
from secure_dagu.local.places import Places
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus
from secure_dagu.store.narrowing import label_lines
from secure_dagu.store.records import Records, note_change
from tests.ports import free_port
from tests.scheduler.host import settings

PAST = 50_000
ASKED = 60
DAYS = 60
_STEP = {"step": {"name": "s", "commands": [{"command": "true"}]}, "status": 4, "stdout": "/l/s.out", "stderr": ""}
_STATUSES = (RunStatus.SUCCEEDED,) * 37 + (RunStatus.FAILED,) * 2 + (RunStatus.ABORTED,)
_NOW = datetime.now(UTC)
_ADA = {"username": "ada", "password": "correct horse battery"}
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

FILTERS = {
    "all": RunFilter(),
    "failed ones": RunFilter(statuses=frozenset({RunStatus.FAILED, RunStatus.ABORTED})),
    "running ones, none": RunFilter(statuses=frozenset({RunStatus.RUNNING})),
    "one DAG": RunFilter(name="dag-7"),
    "part of a name": RunFilter(name_part="AG-7"),
    "part of a run id, one": RunFilter(run_id_part="46-12345"),
    "a rare label": RunFilter(labels=("team=t99",)),
    "label and not label": RunFilter(labels=("team=t*", "!team=t1")),
    "a label that none has": RunFilter(labels=("nobody",)),
    "a day": RunFilter(since=_NOW - timedelta(days=30), until=_NOW - timedelta(days=29)),
}


async def operate_lists() -> list[Row]:
    """Ask the catalogue in this process, then a whole server over HTTP."""
    with new_cluster() as cluster:
        await _remember(cluster)
        rows = await _catalogue(cluster)
        rows += await _server(cluster)
        return rows


async def _remember(cluster: Cluster) -> None:
    home = cluster.host.home
    with cluster.coordinator(), cluster.worker("w1"):
        async with client(cluster) as coordinator:
            await run_to_end(coordinator, task("one", "first", ONE_STEP))
    half = PAST // 2
    multiply(home / "data" / "coordinator.db", half, _coordinators)
    await asyncio.to_thread(_files, home / "data" / "dag-runs", half)


def _document(number: int) -> dict[str, Any]:
    at = _NOW - timedelta(days=DAYS) * ((number + 1) / PAST)
    stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "name": f"dag-{number % 49}", "dagRunId": f"{number % 49}-{number}", "attemptId": "abcdef",
        "status": int(_STATUSES[number * 7 % len(_STATUSES)]), "labels": [f"team=t{number % 100}", "nightly"],
        "createdAt": int(at.timestamp() * 1000), "startedAt": stamp, "finishedAt": stamp, "params": "A=1 B=2",
        "workerId": "local", "nodes": [_STEP] * 10,
    }  # fmt: skip


def _coordinators(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    document = _document(2 * number)
    run = {
        "dag": document["name"], "root_dag": document["name"], "run_id": document["dagRunId"],
        "root_run_id": document["dagRunId"], "made_at": document["createdAt"], "status": document["status"],
        "labels": label_lines(document["labels"]), "summary": json.dumps(in_lists(document)),
    }  # fmt: skip
    attempt = {
        "status": document["status"], "labels": json.dumps(document["labels"]), "document": json.dumps(document),
        "created_at": document["createdAt"],
    }  # fmt: skip
    return run, attempt


def _files(folder: Path, count: int) -> None:
    records = Records(folder)
    for number in range(1, 2 * count, 2):
        document = _document(number)
        at = datetime.fromtimestamp(document["createdAt"] / 1000, UTC)
        record = records.create(DagRunRef(document["name"], document["dagRunId"]), now=at)
        attempt = record.add_attempt(AttemptId("abcdef"), now=at)
        (attempt.path / "status.jsonl").write_text(json.dumps(document) + "\n")
        (attempt.path / "dag.json").write_text(json.dumps({"definition": ONE_STEP}))
    os.sync()


async def _catalogue(cluster: Cluster) -> list[Row]:
    """Measure what lists cost in the process that has the index, with the coordinator in another one."""
    places = places_of(settings(cluster.host.home))
    with cluster.coordinator():
        async with client(cluster) as coordinator:
            runs = Catalogue(places, way=Way(coordinator, OPERATOR), reader="bench")
            began = time.perf_counter()
            await runs.find(RunFilter(), limit=1)
            rows: list[Row] = [("the index of 25,000 records made anew", time.perf_counter() - began, "s", "", None)]
            for word, wanted in FILTERS.items():
                looks_at_all = bool(wanted.labels or wanted.name_part or wanted.run_id_part)
                took = await _timed(partial(runs.find, wanted, limit=100))
                rows += _told(f"find 100: {word}", took, most_ms=40 if looks_at_all else 15)
            found = await runs.find(RunFilter(), limit=100)
            rows += _told("find 100: a later page", await _timed(
                lambda: runs.find(RunFilter(), limit=100, cursor=found.next_cursor)))  # fmt: skip
            rows += _told("count of all, by status", await _timed(lambda: runs.count(since=_EPOCH)))
            for word, number in (("a file", 20_001), ("the coordinator's", 20_000)):
                run = DagRunRef(f"dag-{number % 49}", f"{number % 49}-{number}")
                rows += _told(f"get: {word}", await _timed(partial(runs.get, run)))
            rows.append(_noting(places))
            runs.close()
            return rows


def _noting(places: Places) -> Row:
    record = Records(places.dag_runs_dir).find(DagRunRef("dag-1", "1-1"))
    assert record is not None, "it was made above"
    began = time.perf_counter()
    for _ in range(2000):
        note_change(record.path)
    each = (time.perf_counter() - began) / 2000 * 1e6
    return ("noting a change in the journal", each, "µs", "<= 30", each <= 30)


async def _server(cluster: Cluster) -> list[Row]:
    """Measure `start-all` with a coordinator in the same process over HTTP."""
    port = free_port()
    rows: list[Row] = []
    with _start_all(cluster, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            token = (await http.post("/api/v1/auth/setup", json=_ADA)).raise_for_status().json()["token"]
            http.headers["Authorization"] = f"Bearer {token}"

            async def asked(url: str) -> None:
                (await http.get(url, follow_redirects=True)).raise_for_status()

            for word, url in {
                "GET /dag-runs": "/api/v1/dag-runs?fromDate=0",
                "GET /dag-runs, failed ones": "/api/v1/dag-runs?fromDate=0&status=2",
                "GET /dag-runs, a rare label": "/api/v1/dag-runs?fromDate=0&labels=team%3Dt99",
                "GET /dag-runs, part of a name": "/api/v1/dag-runs?fromDate=0&name=ag-7",
                "page of runs": "/dag-runs?range=all",
                "page of runs, one day": "/dag-runs",
                "first page": "/",
            }.items():
                rows += _told(word, await _timed(partial(asked, url)), most_ms=100)
    return rows


@contextmanager
def _start_all(cluster: Cluster, port: int) -> Iterator[None]:
    words = [
        "start-all", f"--port={port}", "--scheduler.port=0", "--coordinator.host=127.0.0.1",
        f"--coordinator.port={cluster.port}", "--coordinator.health-port=0", "--coordinator.advertise=localhost",
    ]  # fmt: skip
    with process(cluster.host, "start-all", words, ready=" msg=ready "):
        yield


async def _timed(ask: Callable[[], Awaitable[object]]) -> list[float]:
    await ask()
    took = []
    for _ in range(ASKED):
        began = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - began) * 1000)
    return took


def _told(what: str, took: list[float], *, most_ms: float = 15) -> list[Row]:
    p50, p95 = quantile(took, 0.5), quantile(took, 0.95)
    return [
        (f"{what}, p50", p50, "ms", "", None),
        (f"{what}, p95", p95, "ms", f"<= {most_ms:.0f}", p95 <= most_ms),
    ]
