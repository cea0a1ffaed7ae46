"""What the REST API and live updates say of runs: the Protocols asked, the answer shaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from secure_dagu.dispatch.operating import Runs, Window
from secure_dagu.run.model import DagRunRef
from secure_dagu.web.api import shapes_runs
from secure_dagu.web.api.queries import RunsQuery
from secure_dagu.web.api.shapes import mapping, objects, text, time_text

STEP_LOG_LINES = 1000
"""What a live view shows of a step's log."""


class RunList(TypedDict):
    """A page of runs, newest first."""

    dagRuns: list[shapes_runs.DAGRunSummary]
    nextCursor: NotRequired[str]


class RunDetailsPage(TypedDict):
    """A run whole."""

    dagRunDetails: shapes_runs.DAGRunDetails


class RunOfDagPage(TypedDict):
    """A run of a definition."""

    dagRun: shapes_runs.DAGRunDetails


class SubRunList(TypedDict):
    """The runs that a run called."""

    subRuns: list[shapes_runs.SubRun]


class SpecOnly(TypedDict):
    """The definition that a run was started with."""

    spec: str


class OutputsMetadata(TypedDict, total=False):
    """Whose outputs; empty when the run has none."""

    dagName: str
    dagRunId: str
    attemptId: str
    status: str
    completedAt: str
    params: str


class Outputs(TypedDict):
    """What a run published."""

    metadata: OutputsMetadata
    outputs: dict[str, Any]


class StepLogInfo(TypedDict):
    """A step in a live log."""

    stepName: str
    status: int
    statusLabel: str
    startedAt: str
    finishedAt: str
    hasStdout: bool
    hasStderr: bool


class RunLogs(TypedDict):
    """The log of a run and which steps have one."""

    schedulerLog: shapes_runs.Log
    stepLogs: list[StepLogInfo]


class StepLog(TypedDict):
    """The end of both streams of a step."""

    stdoutContent: str
    stderrContent: str
    lineCount: int
    totalLines: int
    hasMore: bool


async def run_list(runs: Runs, query: RunsQuery, *, dag: str = "") -> RunList:
    """Return a page of runs; `dag` is an exact name."""
    page = await runs.find(query.filter(dag=dag), limit=query.limit, cursor=query.cursor)
    shape: RunList = {"dagRuns": [shapes_runs.summary(item) for item in page.runs]}
    if page.next_cursor:
        shape["nextCursor"] = page.next_cursor
    return shape


async def run_page(runs: Runs, run: DagRunRef, *, child: str = "", api: str) -> RunDetailsPage:
    """Return a run whole."""
    return {"dagRunDetails": shapes_runs.details(await runs.get(run, child=child), api=api)}


async def sub_runs(runs: Runs, run: DagRunRef, *, child: str = "") -> SubRunList:
    """Return the runs that a run called."""
    return {"subRuns": [shapes_runs.sub_run(item) for item in await runs.children(run, child=child)]}


async def outputs(runs: Runs, run: DagRunRef, *, child: str = "") -> Outputs:
    """Return what a run published."""
    document: Mapping[str, Any] = await runs.outputs(run, child=child) or {}
    known = mapping(document.get("metadata"))
    metadata: OutputsMetadata = {}
    for key in ("dagName", "dagRunId", "attemptId", "status", "completedAt", "params"):
        if isinstance(value := known.get(key), str) and value:
            metadata[key] = value
    return {"metadata": metadata, "outputs": dict(mapping(document.get("outputs")))}


async def run_logs(runs: Runs, run: DagRunRef, *, tail: int) -> RunLogs:
    """Return the end of a run's log, and which steps have one."""
    document = (await runs.get(run)).document
    handlers = [document[name] for name in shapes_runs.HANDLERS if isinstance(document.get(name), Mapping)]
    page = await runs.log(run, Window(tail=tail))
    return {
        "schedulerLog": shapes_runs.log_shape(page),
        "stepLogs": [_step_log_info(node) for node in [*objects(document.get("nodes")), *handlers]],
    }


async def step_log(runs: Runs, run: DagRunRef, step: str) -> StepLog:
    """Return the end of both streams of a step; the counts are those of stdout."""
    out = await runs.log(run, Window(tail=STEP_LOG_LINES), step=step, stream="stdout")
    err = await runs.log(run, Window(tail=STEP_LOG_LINES), step=step, stream="stderr")
    return {
        "stdoutContent": out.content,
        "stderrContent": err.content,
        "lineCount": out.line_count,
        "totalLines": out.total_lines,
        "hasMore": out.has_more,
    }


def _step_log_info(node: Mapping[str, Any]) -> StepLogInfo:
    status = shapes_runs.node_status(node)
    return {
        "stepName": text(mapping(node.get("step")).get("name")),
        "status": int(status),
        "statusLabel": status.word,
        "startedAt": time_text(node.get("startedAt")),
        "finishedAt": time_text(node.get("finishedAt")),
        "hasStdout": bool(text(node.get("stdout"))),
        "hasStderr": bool(text(node.get("stderr"))),
    }
