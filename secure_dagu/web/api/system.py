"""Health, metrics, audit, compliance, event logs and settings (REST reference, sections 3, 8, 10 and 12)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from threading import Lock
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse
from typing_extensions import TypedDict

from secure_dagu import __version__
from secure_dagu.errors import Conflict
from secure_dagu.web.api import bodies, run_events, views_audit, views_compliance
from secure_dagu.web.api.deps import (
    Api,
    Auditor,
    Change,
    Check,
    ErrorList,
    MachineReader,
    Need,
    Parts,
    Viewer,
    attachment,
    parts_of,
    recorded,
    reply,
    seen_tags,
    spec_tag,
)
from secure_dagu.web.api.shapes import encoded, moment
from secure_dagu.web.api.views_runs import SpecOnly
from secure_dagu.web.threads import on_thread, stepwise

router = APIRouter(tags=["system"])

_STARTED = time.monotonic()
_WRITING = Lock()
"""Between reading and writing the base configuration."""


class CheckShape(TypedDict):
    """One part of the installation."""

    ok: bool
    message: str


class Health(TypedDict):
    """Whether the installation works."""

    status: Literal["healthy", "unhealthy"]
    timestamp: str
    uptime: int
    version: str
    checks: dict[str, CheckShape]


class Ready(TypedDict):
    """Whether this server can do its work now."""

    ready: bool
    because: list[str]


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(parts: Api) -> Response:
    """Tell whether the installation works: 503 when a part of it does not. Public."""
    checks = await _checks(parts)
    is_well = all(check.ok for check in checks.values())
    told: Health = {
        "status": "healthy" if is_well else "unhealthy",
        "timestamp": moment(datetime.now(UTC)),
        "uptime": int(time.monotonic() - _STARTED),
        "version": __version__,
        "checks": {name: {"ok": check.ok, "message": check.message} for name, check in checks.items()},
    }
    return _uncached(told, 200 if is_well else 503)


@router.get("/ready", response_model=Ready, responses={503: {"model": Ready}})
async def ready(parts: Api) -> Response:
    """Tell whether this server can do its work now, whatever other processes do. Public."""
    because = [name for name, check in (await _checks(parts)).items() if not check.ok and check.is_own]
    return _uncached({"ready": not because, "because": because}, 503 if because else 200)


@router.get("/openapi.json", response_model=dict[str, Any])
async def openapi_document(request: Request, parts: Api, _: Viewer) -> Response:
    """Describe every endpoint (OpenAPI 3.1)."""
    from secure_dagu.web.api.document import openapi  # it is made of all endpoints, this one too

    return reply(request, openapi(parts.api_path))


@router.get(
    "/metrics",
    response_model=None,
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text."}},
)
async def metrics(request: Request) -> Response:
    """Show metrics, for Prometheus; public where `metrics` says so."""
    parts = parts_of(request)
    if not parts.metrics_are_public:
        await parts.gate.admit(request, Need.READ)
    body, content_type = await parts.exposition(request.headers.get("accept", ""))
    return Response(body, media_type=None, headers={"Content-Type": content_type})


@router.get("/audit", response_model=views_audit.AuditPage)
async def list_audit(
    request: Request, parts: Api, _: Auditor, query: Annotated[views_audit.AuditPageQuery, Query()]
) -> Response:
    """List records of the audit logs, newest first; without times, those of the last seven days."""
    await recorded(request, Change.AUDIT_READ, "log:all")
    return reply(request, await on_thread(lambda: views_audit.page(parts.audit_folders, query)))


@router.get(
    "/audit/export",
    response_model=None,
    response_class=Response,
    responses={200: {"content": {"application/x-ndjson": {}, "text/csv": {}}, "description": "The records."}},
)
async def export_audit(
    request: Request, parts: Api, _: Auditor, query: Annotated[views_audit.AuditExportQuery, Query()]
) -> Response:
    """Download records: lines as they are, from which the chain can be verified, or CSV."""
    await recorded(request, Change.AUDIT_EXPORT, "log:all")
    if query.format == "csv":
        return _export(views_audit.export_csv(parts.audit_folders, query), "audit.csv", "text/csv; charset=utf-8")
    return _export(views_audit.export_jsonl(parts.audit_folders, query), "audit.jsonl", "application/x-ndjson")


@router.get("/audit/verify", response_model=views_audit.Verified)
async def verify_audit(request: Request, parts: Api, _: Auditor) -> Response:
    """Verify every hash and signature of the audit logs of this host."""
    await recorded(request, Change.AUDIT_VERIFY, "log:all")
    return reply(request, await on_thread(lambda: views_audit.verified(parts.audit_folders)))


@router.get("/compliance/report", response_model=views_compliance.ComplianceReport)
async def compliance_report(request: Request, parts: Api, _: Auditor) -> Response:
    """Show how this server's controls stand, the open exceptions, and where its audit log ends."""
    await recorded(request, Change.AUDIT_READ, "report:compliance")
    return reply(request, views_compliance.report(await on_thread(parts.compliance)))


@router.get("/event-logs", response_model=run_events.EventPage)
async def list_events(
    request: Request, parts: Api, _: Auditor, query: Annotated[run_events.EventQuery, Query()]
) -> Response:
    """List what runs did, newest first."""
    events = parts.events
    if events is None:
        return reply(request, {"entries": [], "total": 0})
    return reply(request, await on_thread(lambda: events.page(query)))


@router.get("/settings/base-config", response_model=SpecOnly)
async def get_base_config(request: Request, parts: Api, _: MachineReader) -> Response:
    """Show the base configuration that every definition inherits. The ETag is what `If-Match` of a later PUT takes."""
    text = await on_thread(lambda: base_text(parts))
    answer = reply(request, {"spec": text})
    answer.headers["ETag"] = spec_tag(text)
    return answer


@router.put("/settings/base-config", response_model=ErrorList)
async def put_base_config(request: Request, parts: Api, _: MachineReader, body: bodies.SpecBody) -> Response:
    """Replace the base configuration; one that does not load is refused.

    With `If-Match`, only the text that the author has seen is replaced: 409 when it is another one now.
    """
    await parts.gate.admit(request, Need.WRITE)
    await recorded(request, Change.BASE_CONFIG, "file:base.yaml")
    seen = seen_tags(request)

    def write() -> None:
        with _WRITING:
            if seen and spec_tag(base_text(parts)) not in seen:
                raise Conflict(
                    what="the base configuration was not saved", why="somebody else has changed it since you read it",
                    fix="read it again, then change it",
                )  # fmt: skip
            parts.write_base_config(body.spec)

    await on_thread(write)
    answer = reply(request, {"errors": []})
    answer.headers["ETag"] = spec_tag(body.spec)
    return answer


def base_text(parts: Parts) -> str:
    """Return the base configuration; empty where there is none."""
    try:
        return parts.base_config.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""


async def _checks(parts: Parts) -> dict[str, Check]:
    return {name: await look() for name, look in parts.checks().items()}


def _uncached(value: Any, status: int) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(encoded(value), status_code=status, media_type="application/json", headers=headers)


def _export(pieces: Iterator[bytes], name: str, media_type: str) -> Response:
    content: AsyncIterator[bytes] = stepwise(pieces)
    headers = {"Content-Disposition": attachment(name), "Cache-Control": "private, no-store"}
    return StreamingResponse(content, media_type=media_type, headers=headers)
