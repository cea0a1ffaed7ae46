"""Pages of definitions: the list, one definition with its tabs, its editor, the start dialog."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from secure_dagu.dispatch.operating import FoundRun, RunFilter, Workflow, WorkflowFilter
from secure_dagu.errors import NotFound, SecureDaguError
from secure_dagu.run.model import StepStatus
from secure_dagu.web.api import shapes_runs
from secure_dagu.web.api.deps import Need, Parts
from secure_dagu.web.api.shapes import page_of
from secure_dagu.web.api.shapes_runs import run_ref, run_url
from secure_dagu.web.api.views_dags import HISTORY, latest
from secure_dagu.web.context import Options
from secure_dagu.web.pages import graph, workflow_views, yaml_paint
from secure_dagu.web.pages.frame import entered, render, zone_of
from secure_dagu.web.pages.run_views import SETTABLE, run_view
from secure_dagu.web.pages.starters import STARTERS
from secure_dagu.web.threads import on_thread

TABS: Mapping[str, str] = {
    "latest": "Latest run",
    "definition": "Definition",
    "history": "History",
    "next-runs": "Next runs",
    "manage": "Manage",
}
PAGE = 50
NEXT = 25
_LATE = datetime.max.replace(tzinfo=UTC)
_MAX_TEXT = 255

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Query(max_length=4096)]


class Filters(Struct, frozen=True, kw_only=True):
    """What the list shows, as its URL has it."""

    name: str = ""
    labels: str = ""
    active: bool = False
    sort: str = "name"
    order: str = "asc"
    page: int = 1

    def query(self, **changes: Any) -> str:
        """Return the same as a URL's query, with changes."""
        other = replace(self, **changes)
        pairs = {
            "name": other.name, "labels": other.labels, "active": "true" if other.active else "",
            "sort": other.sort, "order": other.order, "page": str(other.page) if other.page > 1 else "",
        }  # fmt: skip
        return urlencode({key: value for key, value in pairs.items() if value})

    @property
    def topic(self) -> str:
        """Return the topic of live updates that tells what this list shows."""
        query = f"{self.query()}&perPage={PAGE}"
        return f"dagslist:{query}"

    @property
    def is_any(self) -> bool:
        """Tell whether nothing is left out."""
        return not (self.name or self.labels or self.active)

    def wanted(self) -> WorkflowFilter:
        """Return what the DAGs directory is asked for."""
        labels = tuple(part.strip() for part in self.labels.split(",") if part.strip())
        return WorkflowFilter(name_part=self.name, labels=labels, active_only=self.active)


def filters_of(given: Mapping[str, str], options: Options) -> Filters:
    """Return the filters of a URL; what cannot be read is left out."""
    page = given.get("page", "")
    sort, order = given.get("sort", ""), given.get("order", "")
    usual = "nextRun" if options.dags_sort.lower().startswith("next") else "name"
    return Filters(
        name=given.get("name", "").strip()[:_MAX_TEXT],
        labels=given.get("labels", "").strip()[:_MAX_TEXT],
        active=given.get("active") == "true",
        sort=sort if sort in ("name", "nextRun") else usual,
        order=order if order in ("asc", "desc") else options.dags_order,
        page=int(page) if page.isascii() and page.isdigit() and 0 < len(page) < 6 and int(page) > 0 else 1,
    )


@router.get("/dags")
async def workflow_list(request: Request) -> Response:
    """Show definitions."""
    services, person = await entered(request, Need.READ)
    parts = services.parts
    filters = filters_of(dict(request.query_params), services.options)
    found = sorted(await parts.workflows.all(filters.wanted()), key=lambda item: (item.name, item.file))
    if filters.sort == "nextRun":
        found.sort(key=lambda item: item.next_run_at or _LATE)
    if filters.order == "desc":
        found.reverse()
    page, pagination = page_of(found, page=filters.page, per_page=PAGE)
    rows = [
        workflow_views.WorkflowRow(workflow=item, latest=run_view(newest) if newest is not None else None)
        for item in page
        for newest in (await latest(parts.runs, item),)
    ]
    return render(
        request, person, "workflows.html",
        filters=filters, rows=rows, pagination=pagination, problems=list(await parts.workflows.problems()),
        broken=[item for item in found if item.definition is None], labels=list(await parts.workflows.labels()),
        starters=STARTERS, now=datetime.now(UTC),
    )  # fmt: skip


@router.get("/dags/{file}")
async def workflow_page(request: Request, file: str, tab: Text = "latest", run: Text = "") -> Response:
    """Show one definition."""
    services, person = await entered(request, Need.READ)
    parts = services.parts
    workflow = await parts.workflows.get(file)
    newest = await latest(parts.runs, workflow)
    shown = tab if tab in TABS else "latest"
    context: dict[str, Any] = {
        "workflow": workflow, "dag": workflow.definition.main if workflow.definition else None, "tab": shown,
        "tabs": TABS, "problems": workflow_views.problems(workflow.errors),
        "newest": run_view(newest) if newest is not None else None, "child": "", "settable": SETTABLE,
        "timings": workflow_views.timings(workflow.definition.main) if workflow.definition else (),
    }  # fmt: skip
    match shown:
        case "latest":
            context |= await _run_of(parts, newest)
        case "definition":
            context |= await _definition_tab(workflow)
        case "history":
            context |= await _history_tab(parts, workflow, run)
        case "next-runs":
            main = workflow.definition.main if workflow.definition else None
            now, zone = datetime.now(UTC), zone_of(services)
            times = await on_thread(lambda: workflow_views.occurrences(main, now, zone, most=NEXT)) if main else []
            context |= {"occurrences": times, "zone_name": services.options.time_zone or str(zone)}
    return render(request, person, "workflow.html", **context)


@router.get("/dags/{file}/edit")
async def editor(request: Request, file: str) -> Response:
    """Show the text of a definition to change it."""
    services, person = await entered(request, Need.WRITE)
    workflow = await services.parts.workflows.get(file)
    return render(
        request, person, "workflow_edit.html", workflow=workflow, text=workflow.text,
        digest=workflow_views.digest_of(workflow.text), problems=workflow_views.problems(workflow.errors),
    )  # fmt: skip


@router.get("/dags/{file}/start")
async def start_dialog(request: Request, file: str) -> Response:
    """Ask with what a run is to be started, and say where it will run."""
    services, person = await entered(request, Need.RUN)
    parts = services.parts
    workflow = await parts.workflows.get(file)
    where, problem = None, ""
    form = workflow_views.start_form(workflow.definition.main) if workflow.definition else None
    if form is not None:
        try:
            where = workflow_views.where(await parts.launching.outlook(file))
        except SecureDaguError as error:
            problem = str(error)
    return render(
        request, person, "workflow_start.html", workflow=workflow, form=form, where=where, problem=problem,
        problems=workflow_views.problems(workflow.errors),
    )  # fmt: skip


async def _run_of(parts: Parts, found: FoundRun | None) -> dict[str, Any]:
    """Return what the parts of a run's page need, for a run that is shown here."""
    if found is None:
        return {"view": None}
    run = run_ref(found.document)
    whole = await parts.runs.get(run)
    view = run_view(whole)
    root = view.run if view.run.run_id else run
    url = run_url(parts.api_path, root, root)
    drawn = await on_thread(lambda: graph.of_run(view.steps))
    return {"view": view, "root": root, "api_run": url, "api_root": url, "graph": drawn}


async def _definition_tab(workflow: Workflow) -> dict[str, Any]:
    definition = workflow.definition
    lines = await on_thread(lambda: yaml_paint.painted(workflow.text))
    if definition is None:
        return {"lines": lines, "graph": None, "attributes": (), "steps": (), "locals": ()}
    drawn = await on_thread(
        lambda: [
            (name, dag, graph.of_dag(dag, key=f"local{number}"))
            for number, (name, dag) in enumerate(definition.locals.items(), start=1)
        ]
    )
    main = definition.main
    return {
        "lines": lines,
        "graph": await on_thread(lambda: graph.of_dag(main)),
        "attributes": workflow_views.attributes(main),
        "steps": workflow_views.step_rows(main),
        "locals": [(name, workflow_views.step_rows(dag), one) for name, dag, one in drawn],
    }


async def _history_tab(parts: Parts, workflow: Workflow, chosen: str) -> dict[str, Any]:
    page = await parts.runs.find(RunFilter(name=workflow.name), limit=HISTORY)
    whole = []
    for item in page.runs:
        try:
            whole.append(await parts.runs.get(run_ref(item.document)))
        except NotFound:  # deleted a moment ago
            continue
    grid = shapes_runs.grid([item.document for item in whole])
    views = [run_view(item) for item in whole]
    words = {status.value: status.word for status in StepStatus}
    known = [frozenset(step.name for step in view.steps) for view in views]
    context: dict[str, Any] = {
        "columns": list(reversed(views)), "rows": workflow_views.history_rows(grid, words, known), "chosen": "",
        "view": None,
    }  # fmt: skip
    found = next((item for item in whole if run_ref(item.document).run_id == chosen), None)
    if found is not None:
        context |= {"chosen": chosen, **await _run_of(parts, found)}
    return context
