"""`/dags`: definitions, and runs that are started from them (REST reference, section 4)."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from msgspec.structs import replace
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.dispatch.operating import FoundRun, RunFilter, StartRequest
from secure_dagu.errors import Conflict, InvalidRequest, SecureDaguError
from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType
from secure_dagu.web.api import bodies, shapes_runs, views_dags, views_runs
from secure_dagu.web.api.deps import (
    Api,
    Change,
    Developer,
    Empty,
    ErrorBody,
    ErrorList,
    Operator,
    Parts,
    Viewer,
    empty,
    recorded,
    reply,
    spec_tag,
)
from secure_dagu.web.api.queries import DagsQuery, FileName, RunId

router = APIRouter(tags=["dags"])

HELLO = "steps:\n  - name: hello\n    run: echo hello\n"
"""A definition that is created without a text."""
_UNFINISHED = frozenset({RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.WAITING, RunStatus.NOT_STARTED})
_FIRST_LOOK_S, _LAST_LOOK_S = 0.05, 0.5


class Created(TypedDict):
    """What was created."""

    name: str


class Started(TypedDict):
    """Which run was started."""

    dagRunId: str


class TimedOut(ErrorBody):
    """The run goes on."""

    dagRunId: str


@router.get("/dags", response_model=views_dags.DAGList)
async def list_dags(request: Request, parts: Api, _: Viewer, query: Annotated[DagsQuery, Query()]) -> Response:
    """List definitions."""
    return reply(request, await views_dags.dag_list(parts.workflows, parts.runs, query))


@router.post("/dags", response_model=Created, status_code=201)
async def create_dag(request: Request, parts: Api, _: Developer, body: bodies.NewDag) -> Response:
    """Create a definition; without `spec`, one that says hello."""
    await recorded(request, Change.DAG_CREATE, f"dag:{body.name}")
    made = await parts.workflows.create(body.name, HELLO if body.spec is None else body.spec)
    return reply(request, {"name": made.file}, status=201)


@router.post("/dags/validate", response_model=views_dags.Validated)
async def validate_dag(request: Request, parts: Api, _: Viewer, body: bodies.ValidateBody) -> Response:
    """Say what is wrong with a definition. Nothing is kept."""
    return reply(request, await views_dags.validated(parts.workflows, body.spec, body.name))


@router.get("/dags/labels", response_model=views_dags.Labels)
async def list_labels(request: Request, parts: Api, _: Viewer) -> Response:
    """List every label in use."""
    return reply(request, {"labels": list(await parts.workflows.labels()), "errors": []})


@router.get("/dags/{fileName}", response_model=views_dags.DAGPage)
async def get_dag(request: Request, parts: Api, _: Viewer, fileName: FileName) -> Response:
    """Show a definition with its newest run."""
    return reply(request, await views_dags.dag_page(parts.workflows, parts.runs, fileName, api=parts.api_path))


@router.delete("/dags/{fileName}", status_code=204, response_model=None)
async def delete_dag(request: Request, parts: Api, _: Developer, fileName: FileName) -> Response:
    """Remove a definition; its runs stay."""
    await recorded(request, Change.DAG_DELETE, f"dag:{fileName}")
    await parts.workflows.delete(fileName)
    return Response(status_code=204)


@router.get("/dags/{fileName}/spec", response_model=views_dags.SpecPage)
async def get_spec(request: Request, parts: Api, _: Viewer, fileName: FileName) -> Response:
    """Show the text of a definition. The ETag is what `If-Match` of a later PUT takes."""
    page = await views_dags.spec_page(parts.workflows, fileName)
    tag = spec_tag(page["spec"])
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    answer = reply(request, page)
    answer.headers["ETag"] = tag
    return answer


@router.put("/dags/{fileName}/spec", response_model=ErrorList)
async def put_spec(
    request: Request, parts: Api, _: Developer, fileName: FileName, body: bodies.SpecBody, strict: bool = True
) -> Response:
    """Replace the text of a definition. Unless `strict=false`, one that does not load is refused.

    With `If-Match`, only the text that the author has seen is replaced: 409 when it is another one now.
    """
    await recorded(request, Change.DAG_UPDATE, f"dag:{fileName}")
    tag = request.headers.get("if-match", "").strip()
    seen = tag.removeprefix("W/").strip('"') if tag not in ("", "*") else None
    written = await parts.workflows.write(fileName, body.spec, seen=seen, strict=strict)
    answer = reply(request, {"errors": list(written.errors)})
    answer.headers["ETag"] = spec_tag(written.text)
    return answer


@router.post("/dags/{fileName}/rename", response_model=Empty)
async def rename_dag(
    request: Request, parts: Api, _: Developer, fileName: FileName, body: bodies.RenameBody
) -> Response:
    """Give a definition another file name."""
    await recorded(request, Change.DAG_RENAME, f"dag:{fileName}")
    await parts.workflows.rename(fileName, body.newFileName)
    return empty()


@router.post("/dags/{fileName}/suspend", response_model=Empty)
async def suspend_dag(
    request: Request, parts: Api, _: Operator, fileName: FileName, body: bodies.SuspendBody
) -> Response:
    """Let the schedule of a definition rest, or go on."""
    await recorded(request, Change.DAG_SUSPEND if body.suspend else Change.DAG_RESUME, f"dag:{fileName}")
    await parts.workflows.suspend(fileName, suspended=body.suspend)
    return empty()


@router.get("/dags/{fileName}/dag-runs", response_model=views_dags.HistoryPage)
async def dag_history(request: Request, parts: Api, _: Viewer, fileName: FileName) -> Response:
    """Show the newest runs of a definition and the matrix of their steps."""
    return reply(request, await views_dags.history(parts.workflows, parts.runs, fileName, api=parts.api_path))


@router.get("/dags/{fileName}/dag-runs/{dagRunId}", response_model=views_runs.RunOfDagPage)
async def dag_run(request: Request, parts: Api, _: Viewer, fileName: FileName, dagRunId: RunId) -> Response:
    """Show one run of a definition."""
    workflow = await parts.workflows.get(fileName)
    found = await parts.runs.get(DagRunRef(workflow.name, dagRunId))
    return reply(request, {"dagRun": shapes_runs.details(found, api=parts.api_path)})


@router.post("/dags/{fileName}/start", response_model=Started)
async def start_dag(
    request: Request, parts: Api, account: Operator, fileName: FileName, body: bodies.StartBody
) -> Response:
    """Start a run at once; 503 when no worker can take it."""
    wanted = start_request(body, account.name, dag=fileName, name=body.dagName)
    await recorded(request, Change.DAG_EXECUTE, f"dag:{fileName}")
    return reply(request, {"dagRunId": (await parts.launching.start(wanted)).run_id})


@router.post(
    "/dags/{fileName}/start-sync", response_model=views_runs.RunOfDagPage, responses={408: {"model": TimedOut}}
)
async def start_dag_sync(
    request: Request, parts: Api, account: Operator, fileName: FileName, body: bodies.StartSyncBody
) -> Response:
    """Start a run and answer when it is over; 408 when that takes longer than `timeout`, and it goes on."""
    wanted = start_request(body, account.name, dag=fileName, name=body.dagName)
    await recorded(request, Change.DAG_EXECUTE_SYNC, f"dag:{fileName}")
    run = await parts.launching.start(wanted)
    found = await _ended(parts, run, timeout_s=body.timeout)
    if found is None:
        late: TimedOut = {"code": "timeout", "message": "the run goes on", "dagRunId": run.run_id}
        return reply(request, late, status=408)
    return reply(request, {"dagRun": shapes_runs.details(found, api=parts.api_path)})


@router.post("/dags/{fileName}/enqueue", response_model=Started)
async def enqueue_dag(
    request: Request, parts: Api, account: Operator, fileName: FileName, body: bodies.EnqueueBody
) -> Response:
    """Put a run into its queue."""
    wanted = start_request(body, account.name, dag=fileName, name=body.dagName, queue=body.queue)
    await recorded(request, Change.DAG_ENQUEUE, f"dag:{fileName}")
    return reply(request, {"dagRunId": (await parts.launching.enqueue(wanted)).run_id})


@router.post("/dags/{fileName}/stop-all", response_model=ErrorList)
async def stop_all(request: Request, parts: Api, account: Operator, fileName: FileName) -> Response:
    """Stop every running run of a definition."""
    await recorded(request, Change.DAG_STOP_ALL, f"dag:{fileName}")
    workflow = await parts.workflows.get(fileName)
    wanted = RunFilter(name=workflow.name, statuses=frozenset({RunStatus.RUNNING}))
    errors: list[str] = []
    cursor = ""
    while True:
        page = await parts.runs.find(wanted, limit=500, cursor=cursor)
        for item in page.runs:
            run = shapes_runs.run_ref(item.document)
            try:
                await parts.launching.stop(run, actor=account.name)
            except Conflict:  # it has ended meanwhile
                continue
            except SecureDaguError as error:
                errors.append(f"{run.run_id}: {error}")
        if not (cursor := page.next_cursor):
            return reply(request, {"errors": errors})


def start_request(
    body: bodies.StartBody | bodies.InlineBody, actor: str, *, dag: str = "", text: str = "", name: str = "",
    queue: str = "",
) -> StartRequest:  # fmt: skip
    """Return what a body asks to run.

    Raises:
        InvalidRequest: both labels and tags, or the run id `latest`.
    """
    if body.labels and body.tags:
        raise InvalidRequest("tags is the old name of labels", fix="give only one of them")
    if body.dagRunId == "latest":
        raise InvalidRequest("no run can be called latest", fix="give another id, or none")
    wanted = StartRequest(
        params=body.params,
        run_id=body.dagRunId,
        labels=tuple(body.labels or body.tags),
        singleton=body.singleton,
        no_reuse=body.noReuse,
        profile=body.profile,
        trigger=TriggerType.MANUAL,
        actor=actor,
    )
    return replace(wanted, dag=dag, text=text, name=name, queue=queue)


async def _ended(parts: Parts, run: DagRunRef, *, timeout_s: float) -> FoundRun | None:
    """Return a run when it is over or waits for a person; None when that takes too long."""
    until, pause = time.monotonic() + timeout_s, _FIRST_LOOK_S
    while True:
        found = await parts.runs.get(run)
        if shapes_runs.run_status(found.document) not in _UNFINISHED - {RunStatus.WAITING}:
            return found
        if (left := until - time.monotonic()) <= 0:
            return None
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, _LAST_LOOK_S)
