"""Pages of runs: the list, one run with its tabs, a log, and files of a run as a browser may show them."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from secure_dagu.dispatch.model import ArtifactInfo
from secure_dagu.dispatch.operating import Document, FoundRun
from secure_dagu.errors import LimitExceeded, NotFound
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.web.api.deps import Change, Need, Parts
from secure_dagu.web.api.run_resources import tree
from secure_dagu.web.api.shapes_runs import run_url
from secure_dagu.web.pages import graph, markdown
from secure_dagu.web.pages.frame import entered, render, zone_of
from secure_dagu.web.pages.gantt import timeline
from secure_dagu.web.pages.run_filters import PAGE_SIZES, RANGES, filters_of
from secure_dagu.web.pages.run_views import SETTABLE, numbered_nodes, run_view
from secure_dagu.web.threads import on_thread

TABS: Mapping[str, str] = {
    "status": "Status",
    "timeline": "Timeline",
    "outputs": "Outputs",
    "artifacts": "Artifacts",
    "definition": "Definition",
    "sub-runs": "Sub-runs",
}
LOG_SIZES = (100, 200, 500, 1000, 2000, 5000, 10000)
_TEXT_MAX = 512 * 1024
_FILE_MAX = 5 * 1024 * 1024
_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"})
_HTML = "text/html"
_SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
_RUN = "/dag-runs/{name}/{run_id}"

router = APIRouter(include_in_schema=False)

Child = Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]*$", max_length=128)]
Text = Annotated[str, Query(max_length=4096)]


@router.get("/dag-runs")
async def run_list(request: Request) -> Response:
    """Show runs, newest first."""
    services, person = await entered(request, Need.READ)
    filters = filters_of(request.query_params.multi_items())
    now = datetime.now(UTC)
    wanted = filters.wanted(now, zone_of(services))
    page = await services.parts.runs.find(wanted, limit=filters.limit, cursor=filters.cursor)
    return render(
        request, person, "runs.html",
        filters=filters, ranges=RANGES, sizes=PAGE_SIZES, statuses=list(RunStatus),
        runs=[run_view(found) for found in page.runs], next_cursor=page.next_cursor,
    )  # fmt: skip


@router.get(_RUN)
async def run_page(
    request: Request, name: str, run_id: str, tab: Text = "status", child: Child = "", file: Text = ""
) -> Response:
    """Show one run, root or called by another."""
    services, person = await entered(request, Need.READ)
    parts, root = services.parts, DagRunRef(name, run_id)
    found = await parts.runs.get(root, child=child)
    view = run_view(found)
    if not child and view.run.run_id:  # a record that has just begun says nothing yet
        root = view.run  # where `latest` was asked for, links name the run
    shown = tab if tab in TABS else "status"
    context: dict[str, Any] = {
        "view": view, "root": root, "child": child, "tab": shown, "tabs": TABS, "settable": SETTABLE,
        "api_run": run_url(parts.api_path, root, view.run) if child else run_url(parts.api_path, root, root),
        "api_root": run_url(parts.api_path, root, root),
    }  # fmt: skip
    more = {
        "status": _status_tab, "timeline": _timeline_tab, "outputs": _outputs_tab, "artifacts": _artifacts_tab,
        "definition": _definition_tab, "sub-runs": _sub_runs_tab,
    }[shown]  # fmt: skip
    if shown == "artifacts" and file:
        await parts.gate.record(request, person, Change.ARTIFACT_READ, f"run:{root}/{file}"[:256])
    context |= await more(parts, root, child, found.document, file)
    return render(request, person, "run.html", **context)


@router.get(f"{_RUN}/log")
async def log_page(
    request: Request, name: str, run_id: str, step: Text = "", stream: Text = "stdout", child: Child = ""
) -> Response:
    """Show the log of a step, or of the run itself."""
    services, person = await entered(request, Need.READ)
    parts, root = services.parts, DagRunRef(name, run_id)
    view = run_view(await parts.runs.get(root, child=child))
    if not child and view.run.run_id:
        root = view.run
    own = next((one for one in view.steps if one.name == step), None)
    if step and own is None:
        raise NotFound(f"there is no step {step!r} in this run")
    shown = "stderr" if stream == "stderr" else "stdout"
    return render(
        request, person, "log.html",
        view=view, root=root, child=child, step=own, stream=shown, sizes=LOG_SIZES,
        is_active=view.is_active if own is None else view.is_active and not own.status.is_terminal,
        api_run=run_url(parts.api_path, root, view.run if child else root),
    )  # fmt: skip


@router.get(f"{_RUN}/file")
async def file_of_run(request: Request, name: str, run_id: str, path: Text, child: Child = "") -> Response:
    """Show a picture or a page that a run left, where nothing in it can run: in a sandbox without an origin."""
    services, person = await entered(request, Need.READ)
    parts, root = services.parts, DagRunRef(name, run_id)
    info = await _artifact(parts, root, child, path)
    mime = mimetypes.guess_type(path, strict=False)[0] or ""
    if mime not in _IMAGES and mime != _HTML:
        raise NotFound("this kind of file is not shown", fix="download it")
    if info.size_bytes > _FILE_MAX:
        raise LimitExceeded("the file is too large to be shown", fix="download it")
    await parts.gate.record(request, person, Change.ARTIFACT_READ, f"run:{root}/{path}"[:256])
    data = await _bytes(parts, root, child, path, _FILE_MAX)
    headers = {
        "Content-Security-Policy": _SANDBOX,
        "X-Frame-Options": "SAMEORIGIN",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-store",
    }
    return Response(data, media_type=f"{mime}; charset=utf-8" if mime == _HTML else mime, headers=headers)


async def _status_tab(parts: Parts, root: DagRunRef, child: str, document: Document, _file: str) -> dict[str, Any]:
    steps = run_view(FoundRun(document=document)).steps
    return {"graph": await on_thread(lambda: graph.of_run(steps))}


async def _timeline_tab(parts: Parts, root: DagRunRef, child: str, document: Document, _file: str) -> dict[str, Any]:
    return {"timeline": timeline([node for _, node in numbered_nodes(document)], now=datetime.now(UTC))}


async def _outputs_tab(parts: Parts, root: DagRunRef, child: str, document: Document, _file: str) -> dict[str, Any]:
    found = await parts.runs.outputs(root, child=child) or {}
    values = found.get("outputs")
    return {"outputs": sorted(values.items()) if isinstance(values, Mapping) else []}


async def _artifacts_tab(parts: Parts, root: DagRunRef, child: str, document: Document, file: str) -> dict[str, Any]:
    found: Sequence[ArtifactInfo] = ()
    with contextlib.suppress(NotFound):
        found = await parts.runs.artifacts(root, child=child)
    context: dict[str, Any] = {"files": tree(found, is_recursive=True), "count": len(found), "preview": None}
    if file:
        context["preview"] = await _preview(parts, root, child, file)
    return context


async def _definition_tab(parts: Parts, root: DagRunRef, child: str, document: Document, _file: str) -> dict[str, Any]:
    try:
        return {"definition": await parts.runs.definition(root, child=child)}
    except NotFound:
        return {"definition": ""}


async def _sub_runs_tab(parts: Parts, root: DagRunRef, child: str, document: Document, _file: str) -> dict[str, Any]:
    found = await parts.runs.children(root, child=child)
    return {"sub_runs": [run_view(FoundRun(document=document)) for document in found]}


async def _preview(parts: Parts, root: DagRunRef, child: str, path: str) -> dict[str, Any]:
    info = await _artifact(parts, root, child, path)
    mime = mimetypes.guess_type(path, strict=False)[0] or ""
    shown: dict[str, Any] = {"path": path, "size": info.size_bytes, "kind": "binary", "is_cut": False}
    if mime in _IMAGES or mime == _HTML:
        kind = "html" if mime == _HTML else "image"
        return shown | {"kind": kind if info.size_bytes <= _FILE_MAX else "large"}
    data = await _bytes(parts, root, child, path, _TEXT_MAX)
    if b"\0" in data:
        return shown
    text = data.decode("utf-8", "replace")
    shown["is_cut"] = info.size_bytes > len(data)
    if path.lower().endswith((".md", ".markdown")):
        return shown | {"kind": "markdown", "blocks": markdown.blocks(text)}
    return shown | {"kind": "text", "text": text}


async def _artifact(parts: Parts, root: DagRunRef, child: str, path: str) -> ArtifactInfo:
    for info in await parts.runs.artifacts(root, child=child):
        if info.path == path:
            return info
    raise NotFound("there is no such artifact")


async def _bytes(parts: Parts, root: DagRunRef, child: str, path: str, limit: int) -> bytes:
    data = bytearray()
    async for piece in parts.runs.artifact_bytes(root, path, child=child):
        data += piece[: limit - len(data)]
        if len(data) >= limit:
            break
    return bytes(data)
