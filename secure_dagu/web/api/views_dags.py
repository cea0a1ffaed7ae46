"""What the REST API and live updates say of definitions: the Protocols asked, the answer shaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NotRequired

from typing_extensions import TypedDict

from secure_dagu.dag.validate import validate
from secure_dagu.dispatch.operating import FoundRun, RunFilter, Runs, Workflow, Workflows
from secure_dagu.web.api import shapes_dags, shapes_runs
from secure_dagu.web.api.queries import DagsQuery
from secure_dagu.web.api.shapes import Pagination, moment, page_of

HISTORY = 30
"""Runs of a history."""
_LATE = datetime.max.replace(tzinfo=UTC)


class DAGList(TypedDict):
    """A page of definitions; `errors` is about the directory as a whole."""

    dags: list[shapes_dags.DAGFile]
    errors: list[str]
    pagination: Pagination


class LocalDag(TypedDict):
    """A sub-DAG in the same file."""

    name: str
    dag: NotRequired[shapes_dags.DAGDetails]
    errors: list[str]


class DAGPage(TypedDict):
    """A definition with what it is doing."""

    dag: NotRequired[shapes_dags.DAGDetails]
    localDags: list[LocalDag]
    latestDAGRun: shapes_runs.DAGRunDetails
    suspended: bool
    errors: list[str]
    spec: str


class SpecPage(TypedDict):
    """The text of a definition, what it loads as, and references that nothing will resolve."""

    dag: NotRequired[shapes_dags.DAGDetails]
    spec: str
    errors: list[str]
    valueReferenceNotices: list[shapes_dags.NoticeShape]


class Validated(TypedDict):
    """What a text loads as, or what is wrong with it."""

    valid: bool
    dag: NotRequired[shapes_dags.DAGDetails]
    errors: list[str]


class GridRow(TypedDict):
    """One step over the runs of a history."""

    name: str
    history: list[int]


class HistoryPage(TypedDict):
    """The newest runs of a definition; the columns of `gridData` are these runs."""

    dagRuns: list[shapes_runs.DAGRunDetails]
    gridData: list[GridRow]


class Labels(TypedDict):
    """Every label in use."""

    labels: list[str]
    errors: list[str]


async def dag_list(workflows: Workflows, runs: Runs, query: DagsQuery) -> DAGList:
    """Return a page of definitions."""
    found = sorted(await workflows.all(query.filter()), key=lambda item: (item.name, item.file))
    if query.sort == "nextRun":
        found.sort(key=lambda item: item.next_run_at or _LATE)
    if query.order == "desc":
        found.reverse()
    page, pagination = page_of(found, page=query.page, per_page=query.perPage)
    files = [shapes_dags.dag_file(item, await latest(runs, item)) for item in page]
    return {"dags": files, "errors": list(await workflows.problems()), "pagination": pagination}


async def dag_page(workflows: Workflows, runs: Runs, file: str, *, api: str) -> DAGPage:
    """Return a definition with its newest run."""
    workflow = await workflows.get(file)
    newest = await latest(runs, workflow)
    if newest is not None:
        newest = await runs.get(shapes_runs.run_ref(newest.document))
    shape: DAGPage = {
        "localDags": [],
        "latestDAGRun": shapes_runs.details(newest or FoundRun(document={"name": workflow.name}), api=api),
        "suspended": workflow.suspended,
        "errors": list(workflow.errors),
        "spec": workflow.text,
    }
    if workflow.definition is not None:
        shape["dag"] = _details(workflow)
        shape["localDags"] = [
            {"name": name, "dag": shapes_dags.dag_details(dag), "errors": []}
            for name, dag in workflow.definition.locals.items()
        ]
    return shape


async def spec_page(workflows: Workflows, file: str) -> SpecPage:
    """Return the text of a definition."""
    workflow = await workflows.get(file)
    shape: SpecPage = {"spec": workflow.text, "errors": list(workflow.errors), "valueReferenceNotices": []}
    if workflow.definition is not None:
        shape["dag"] = _details(workflow)
        notices = validate(workflow.text, file=f"{file}.yaml").notices
        shape["valueReferenceNotices"] = [shapes_dags.notice(item) for item in notices]
    return shape


async def validated(workflows: Workflows, text: str, name: str) -> Validated:
    """Return what a text loads as."""
    definition, errors = await workflows.validate(text, name=name)
    shape: Validated = {"valid": not errors and definition is not None, "errors": list(errors)}
    if definition is not None:
        shape["dag"] = shapes_dags.dag_details(definition.main)
    return shape


async def history(workflows: Workflows, runs: Runs, file: str, *, api: str) -> HistoryPage:
    """Return the newest runs of a definition."""
    workflow = await workflows.get(file)
    page = await runs.find(RunFilter(name=workflow.name), limit=HISTORY)
    whole = [await runs.get(shapes_runs.run_ref(item.document)) for item in page.runs]
    rows: Sequence[Any] = shapes_runs.grid([item.document for item in whole])
    return {"dagRuns": [shapes_runs.details(item, api=api) for item in whole], "gridData": list(rows)}


async def latest(runs: Runs, workflow: Workflow) -> FoundRun | None:
    """Return the newest run of a definition, None when there is none."""
    page = await runs.find(RunFilter(name=workflow.name), limit=1)
    return page.runs[0] if page.runs else None


def _details(workflow: Workflow) -> shapes_dags.DAGDetails:
    assert workflow.definition is not None
    return shapes_dags.dag_details(workflow.definition.main, next_run=moment(workflow.next_run_at))
