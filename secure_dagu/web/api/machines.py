"""`/queues`, `/workers`, `/services` and `/security` (REST reference, sections 7 and 8)."""

from __future__ import annotations

import time
from typing import Annotated, NotRequired

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.dag import durations
from secure_dagu.errors import DefinitionError, InvalidRequest
from secure_dagu.web.api import bodies, shapes_machines, views_audit, views_machines, views_security
from secure_dagu.web.api.deps import (
    Admin,
    Api,
    Auditor,
    Change,
    Empty,
    MachineReader,
    Need,
    Operator,
    Viewer,
    empty,
    recorded,
    reply,
)
from secure_dagu.web.api.queries import ItemsQuery, QueueName, WorkerName
from secure_dagu.web.threads import on_thread

router = APIRouter(tags=["machines"])


class Point(TypedDict):
    """One sample; Unix seconds."""

    timestamp: int
    value: float


class ResourceHistory(TypedDict):
    """Load of the web server's host: percentages, but for `load`."""

    cpu: list[Point]
    memory: list[Point]
    disk: list[Point]
    load: list[Point]
    memoryTotalBytes: int
    memoryUsedBytes: int
    diskTotalBytes: int
    diskUsedBytes: int


class Revoked(TypedDict):
    """How many certificates were revoked."""

    revoked: int


class Drained(TypedDict):
    """A worker, and what it is from now on."""

    id: str
    state: str
    note: NotRequired[str]


@router.get("/queues", response_model=shapes_machines.QueueList)
async def list_queues(request: Request, parts: Api, _: Viewer) -> Response:
    """List the configured queues and those that have runs."""
    return reply(request, await views_machines.queue_list(parts.queues))


@router.get("/queues/{queueName}", response_model=shapes_machines.Queue)
async def get_queue(request: Request, parts: Api, _: Viewer, queueName: QueueName) -> Response:
    """Show one queue."""
    return reply(request, await views_machines.one_queue(parts.queues, queueName))


@router.get("/queues/{queueName}/items", response_model=views_machines.QueueItems)
async def list_items(
    request: Request, parts: Api, _: Viewer, queueName: QueueName, query: Annotated[ItemsQuery, Query()]
) -> Response:
    """List runs that wait, in their order, each with the reason."""
    return reply(request, await views_machines.queue_items(parts.queues, queueName, query))


@router.post("/queues/{queueName}/pause", response_model=Empty)
async def pause_queue(request: Request, parts: Api, account: Operator, queueName: QueueName) -> Response:
    """Start nothing from a queue until it is resumed; kept over restarts."""
    await recorded(request, Change.QUEUE_PAUSE, f"queue:{queueName}")
    await parts.queues.pause(queueName, actor=account.name)
    return empty()


@router.post("/queues/{queueName}/resume", response_model=Empty)
async def resume_queue(request: Request, parts: Api, account: Operator, queueName: QueueName) -> Response:
    """Start from a queue again."""
    await recorded(request, Change.QUEUE_RESUME, f"queue:{queueName}")
    await parts.queues.resume(queueName, actor=account.name)
    return empty()


@router.get("/workers", response_model=shapes_machines.WorkerList)
async def list_workers(request: Request, parts: Api, account: Viewer) -> Response:
    """List all known workers, those lost within a day too. Addresses and identities need the role developer."""
    return reply(request, await views_machines.worker_list(parts, is_full=account.may(Need.MACHINES)))


@router.post("/workers/{workerId}/drain", response_model=Drained)
async def drain_worker(
    request: Request, parts: Api, account: Admin, workerId: WorkerName, body: bodies.DrainBody | None = None
) -> Response:
    """Give a worker no new work, or with `draining` false give it work again."""
    draining = body is None or body.draining
    await recorded(request, Change.WORKER_DRAIN, f"worker:{workerId}")
    await parts.fleet.drain(workerId, draining=draining, actor=account.name)
    return reply(request, {"id": workerId, "state": "draining" if draining else "active"})


@router.post("/workers/{workerId}/revoke", response_model=Revoked)
async def revoke_worker(
    request: Request, parts: Api, account: Admin, workerId: WorkerName, body: bodies.RevokeBody | None = None
) -> Response:
    """Revoke every certificate of a worker and cut its links."""
    reason = body.reason if body is not None else "unspecified"
    await recorded(request, Change.WORKER_REVOKE, f"worker:{workerId}")
    return reply(request, {"revoked": await parts.fleet.revoke(workerId, reason=reason, actor=account.name)})


@router.get("/services/coordinator", response_model=views_machines.Coordinators)
async def list_coordinators(request: Request, parts: Api, _: MachineReader) -> Response:
    """List the known coordinators."""
    found = await parts.fleet.coordinators()
    return reply(request, {"coordinators": [shapes_machines.coordinator(view) for view in found]})


@router.get("/services/scheduler", response_model=views_machines.Schedulers)
async def list_schedulers(request: Request, parts: Api, _: MachineReader) -> Response:
    """List the known schedulers; the active one holds the lock."""
    found = await parts.fleet.schedulers()
    return reply(request, {"schedulers": [shapes_machines.scheduler(view) for view in found]})


@router.get("/services/resources/history", response_model=ResourceHistory)
async def resource_history(
    request: Request, parts: Api, _: MachineReader, duration: Annotated[str, Query(max_length=32)] = "1h"
) -> Response:
    """Show the load of the web server's host; `duration` is such as 30m or 1h."""
    try:
        seconds = durations.seconds(duration, field="duration")
    except DefinitionError as error:
        raise InvalidRequest("the duration cannot be read", why=error.why or error.what) from None
    samples = parts.host.since(seconds if seconds > 0 else time.time())
    newest_one = samples[-1] if samples else None
    history: ResourceHistory = {
        "cpu": [{"timestamp": sample.at, "value": sample.cpu} for sample in samples],
        "memory": [{"timestamp": sample.at, "value": sample.memory} for sample in samples],
        "disk": [{"timestamp": sample.at, "value": sample.disk} for sample in samples],
        "load": [{"timestamp": sample.at, "value": sample.load} for sample in samples],
        "memoryTotalBytes": newest_one.memory_total if newest_one else 0,
        "memoryUsedBytes": newest_one.memory_used if newest_one else 0,
        "diskTotalBytes": newest_one.disk_total if newest_one else 0,
        "diskUsedBytes": newest_one.disk_used if newest_one else 0,
    }
    return reply(request, history)


@router.get("/security/summary", response_model=views_machines.SecuritySummary)
async def security_summary(request: Request, parts: Api, _: MachineReader) -> Response:
    """Show the state of security at a glance."""
    return reply(request, await views_machines.security_summary(parts))


@router.get("/security/certificates", response_model=views_machines.Certificates)
async def list_certificates(request: Request, parts: Api, _: MachineReader) -> Response:
    """List the certificates in use here, and those of our CA's ledger."""
    return reply(request, await views_machines.certificates(parts.fleet))


@router.get("/security/connections", response_model=views_machines.Connections)
async def list_connections(request: Request, parts: Api, _: MachineReader) -> Response:
    """List the live connections of the coordinators that can be asked."""
    return reply(request, await views_machines.connections(parts.fleet))


@router.get("/security/events", response_model=views_security.SecurityEvents)
async def list_security_events(
    request: Request, parts: Api, _: Auditor, query: Annotated[views_audit.AuditPageQuery, Query()]
) -> Response:
    """List what the audit logs say of refused connections, calls and logins and of certificates, newest first.

    `counts` says how often each reason came up in the same time; without times, in the last seven days.
    """
    await recorded(request, Change.AUDIT_READ, "log:security")
    return reply(request, await on_thread(lambda: views_security.security_page(parts, query)))
