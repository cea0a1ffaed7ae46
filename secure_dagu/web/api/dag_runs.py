"""`/dag-runs`: look at runs, steer them, decide about those that wait for a person (REST reference, section 5)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.errors import InvalidRequest, Refused
from secure_dagu.web.api import bodies, run_resources, views_runs
from secure_dagu.web.api.dags import Started, start_request
from secure_dagu.web.api.deps import Api, Change, Developer, Empty, Operator, Viewer, empty, recorded, reply
from secure_dagu.web.api.queries import DagName, RunsQuery, StepName
from secure_dagu.web.api.run_resources import Target, no_latest

router = APIRouter(tags=["dag-runs"])

_RUN = "/dag-runs/{name}/{dagRunId}"
At = Annotated[Target, Depends(run_resources.root)]


class Rescheduled(TypedDict):
    """The new run, and whether it is queued."""

    dagRunId: str
    queued: bool


class Resumed(TypedDict):
    """A decision, and whether the run goes on."""

    dagRunId: str
    stepName: str
    resumed: bool


@router.get("/dag-runs", response_model=views_runs.RunList)
async def list_runs(request: Request, parts: Api, _: Viewer, query: Annotated[RunsQuery, Query()]) -> Response:
    """List runs, newest first; without dates, of any time."""
    return reply(request, await views_runs.run_list(parts.runs, query))


@router.post("/dag-runs", response_model=Started)
async def run_inline(request: Request, parts: Api, account: Developer, body: bodies.InlineBody) -> Response:
    """Run a definition that is not in the DAGs directory."""
    wanted = start_request(body, account.name, text=body.spec, name=body.name)
    await recorded(request, Change.DAG_EXECUTE, f"dag:{body.name or 'inline'}")
    return reply(request, {"dagRunId": (await parts.launching.start(wanted)).run_id})


@router.post("/dag-runs/enqueue", response_model=Started)
async def enqueue_inline(request: Request, parts: Api, account: Developer, body: bodies.InlineEnqueueBody) -> Response:
    """Put a run of a definition that is not in the DAGs directory into a queue."""
    wanted = start_request(body, account.name, text=body.spec, name=body.name, queue=body.queue)
    await recorded(request, Change.DAG_ENQUEUE, f"dag:{body.name or 'inline'}")
    return reply(request, {"dagRunId": (await parts.launching.enqueue(wanted)).run_id})


@router.get("/dag-runs/{name}", response_model=views_runs.RunList)
async def list_runs_of(
    request: Request, parts: Api, _: Viewer, name: DagName, query: Annotated[RunsQuery, Query()]
) -> Response:
    """List runs of one DAG."""
    return reply(request, await views_runs.run_list(parts.runs, query, dag=name))


@router.delete(_RUN, status_code=204, response_model=None)
async def delete_run(request: Request, parts: Api, _: Developer, at: At) -> Response:
    """Remove a finished run with everything that it left."""
    no_latest(at.run.run_id)
    await recorded(request, Change.RUN_DELETE, at.word)
    await parts.launching.delete(at.run)
    return Response(status_code=204)


@router.post(f"{_RUN}/stop", response_model=Empty)
async def stop_run(request: Request, parts: Api, account: Operator, at: At) -> Response:
    """Ask for the end of a run; of a failed one that waits for its automatic retry, cancel that retry."""
    no_latest(at.run.run_id)
    await recorded(request, Change.DAG_TERMINATE, at.word)
    await parts.launching.stop(at.run, actor=account.name)
    return empty()


@router.post(f"{_RUN}/retry", response_model=Empty)
async def retry_run(request: Request, parts: Api, account: Operator, at: At, body: bodies.RetryBody) -> Response:
    """Run again what did not succeed, or one step, as a new attempt of the same run."""
    no_latest(at.run.run_id)
    if body.dagRunId != at.run.run_id:
        raise InvalidRequest("dagRunId is not the run of the path")
    if not body.stepName and (body.includeDownstream or body.subDAGRunId):
        raise InvalidRequest("includeDownstream and subDAGRunId need stepName")
    await recorded(request, Change.DAG_RETRY, at.word)
    await parts.launching.retry(
        at.run, actor=account.name, step=body.stepName, downstream=body.includeDownstream, child=body.subDAGRunId
    )
    return empty()


@router.post(f"{_RUN}/reschedule", response_model=Rescheduled)
async def reschedule_run(
    request: Request, parts: Api, account: Operator, at: At, body: bodies.RescheduleBody
) -> Response:
    """Start a new run as an earlier one was."""
    if body.dagRunId:
        no_latest(body.dagRunId)
    await recorded(request, Change.DAG_RESCHEDULE, at.word)
    run, is_queued = await parts.launching.reschedule(
        at.run, actor=account.name, run_id=body.dagRunId, name=body.dagName, use_current=body.useCurrentDagFile
    )
    return reply(request, {"dagRunId": run.run_id, "queued": is_queued})


@router.post(f"{_RUN}/dequeue", response_model=Empty)
async def dequeue_run(request: Request, parts: Api, account: Operator, at: At) -> Response:
    """Take a queued run out of its queue."""
    no_latest(at.run.run_id)
    await recorded(request, Change.DAG_DEQUEUE, at.word)
    await parts.launching.dequeue(at.run, actor=account.name)
    return empty()


@router.get(f"{_RUN}/dequeue", response_model=Empty, deprecated=True)
async def dequeue_run_by_get(request: Request, parts: Api, account: Operator, at: At) -> Response:
    """Take a queued run out of its queue: the old way, only with an Authorization header, which no page can forge."""
    if not request.headers.get("authorization"):
        raise Refused("a GET changes nothing", fix="use POST, or send an Authorization header")
    return await dequeue_run(request, parts, account, at)


@router.get(f"{_RUN}/sub-dag-runs", response_model=views_runs.SubRunList)
async def list_sub_runs(
    request: Request, parts: Api, _: Viewer, at: At,
    parentSubDAGRunId: Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]*$", max_length=128)] = "",
) -> Response:  # fmt: skip
    """List the runs that a run called."""
    return reply(request, await views_runs.sub_runs(parts.runs, at.run, child=parentSubDAGRunId))


async def approve_step(
    request: Request, parts: Api, account: Operator, at: At, stepName: StepName, body: bodies.InputsBody
) -> Response:
    """Approve a waiting step."""
    await recorded(request, Change.STEP_APPROVE, at.word)
    resumed = await parts.launching.approve(at.run, stepName, body.inputs, actor=account.name)
    return reply(request, _resumed(at, stepName, resumed))


async def reject_step(
    request: Request, parts: Api, account: Operator, at: At, stepName: StepName, body: bodies.RejectBody
) -> Response:
    """Reject a waiting step: the run ends."""
    await recorded(request, Change.STEP_REJECT, at.word)
    await parts.launching.reject(at.run, stepName, body.reason, actor=account.name)
    return reply(request, _resumed(at, stepName, False))


async def push_back_step(
    request: Request, parts: Api, account: Operator, at: At, stepName: StepName, body: bodies.InputsBody
) -> Response:
    """Let a waiting step and what led to it run again."""
    await recorded(request, Change.STEP_PUSH_BACK, at.word)
    resumed = await parts.launching.push_back(at.run, stepName, body.inputs, actor=account.name)
    return reply(request, _resumed(at, stepName, resumed))


async def complete_task(
    request: Request, parts: Api, account: Operator, at: At, stepName: StepName, body: bodies.TaskBody
) -> Response:
    """Complete a human task with the fields of its form."""
    await recorded(request, Change.TASK_COMPLETE, at.word)
    resumed = await parts.launching.complete_task(at.run, stepName, body.fields, actor=account.name)
    return reply(request, _resumed(at, stepName, resumed))


_decisions: dict[str, Any] = {
    "/steps/{stepName:path}/approve": approve_step,
    "/steps/{stepName:path}/reject": reject_step,
    "/steps/{stepName:path}/push-back": push_back_step,
    "/human-tasks/{stepName:path}/complete": complete_task,
}
for _path, _endpoint in _decisions.items():
    router.add_api_route(f"{_RUN}{_path}", _endpoint, methods=["POST"], response_model=Resumed)

router.include_router(run_resources.routes(f"{_RUN}/sub-dag-runs/{{subDAGRunId}}", run_resources.child))
router.include_router(run_resources.routes(_RUN, run_resources.root))


def _resumed(at: Target, step: str, resumed: bool) -> Resumed:
    return {"dagRunId": at.run.run_id, "stepName": step, "resumed": resumed}
