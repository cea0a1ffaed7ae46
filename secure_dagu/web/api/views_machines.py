"""What the REST API and live updates say of queues, machines and security: the Protocols asked, the answer shaped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NotRequired

from typing_extensions import TypedDict

from secure_dagu.dispatch.model import WorkerHealth
from secure_dagu.dispatch.operating import Fleet, QueueBook
from secure_dagu.errors import NotFound
from secure_dagu.web.api import shapes_machines as shapes
from secure_dagu.web.api.deps import Parts
from secure_dagu.web.api.queries import ItemsQuery
from secure_dagu.web.api.shapes import moment
from secure_dagu.web.api.shapes_runs import DAGRunSummary, summary

NO_COORDINATOR = "Coordinator service not configured"


class QueueItems(TypedDict):
    """Runs that wait, in their order."""

    items: list[DAGRunSummary]
    nextCursor: NotRequired[str]


class Coordinators(TypedDict):
    """The known coordinators."""

    coordinators: list[shapes.CoordinatorInstance]


class Schedulers(TypedDict):
    """The known schedulers."""

    schedulers: list[shapes.SchedulerInstance]


class Services(TypedDict):
    """Both."""

    coordinators: list[shapes.CoordinatorInstance]
    schedulers: list[shapes.SchedulerInstance]


class Certificates(TypedDict):
    """Certificates in use here, and those of our CA's ledger."""

    certificates: list[shapes.Certificate]


class Connections(TypedDict):
    """Live connections."""

    connections: list[shapes.Link]


class SecuritySummary(TypedDict):
    """The state of security at a glance."""

    connections: int
    weakConnections: int
    certificates: int
    revoked: int
    expired: int
    nextExpiry: str
    workersHealthy: int
    workersTotal: int
    workersQuarantined: int


async def queue_list(queues: QueueBook) -> shapes.QueueList:
    """Return every queue."""
    return shapes.queue_list(await queues.queues())


async def one_queue(queues: QueueBook, name: str) -> shapes.Queue:
    """Return one queue. NotFound: there is none."""
    for view in await queues.queues():
        if view.name == name:
            return shapes.queue(view)
    raise NotFound(f'Queue "{name}" not found')


async def queue_items(queues: QueueBook, name: str, query: ItemsQuery) -> QueueItems:
    """Return waiting runs of a queue."""
    page = await queues.items(name, limit=query.limit, cursor=query.cursor)
    shape: QueueItems = {"items": [summary(item) for item in page.runs]}
    if page.next_cursor:
        shape["nextCursor"] = page.next_cursor
    return shape


async def worker_list(parts: Parts, *, is_full: bool) -> shapes.WorkerList:
    """Return every worker. Unavailable: no coordinator answers."""
    if not parts.has_coordinator():
        return shapes.worker_list((), [NO_COORDINATOR], is_full=is_full)
    return shapes.worker_list(await parts.fleet.workers(), (), is_full=is_full)


async def services(fleet: Fleet) -> Services:
    """Return coordinators and schedulers."""
    return {
        "coordinators": [shapes.coordinator(view) for view in await fleet.coordinators()],
        "schedulers": [shapes.scheduler(view) for view in await fleet.schedulers()],
    }


async def certificates(fleet: Fleet) -> Certificates:
    """Return the certificates."""
    now = datetime.now(UTC)
    return {"certificates": [shapes.certificate(view, now) for view in await fleet.certificates()]}


async def connections(fleet: Fleet) -> Connections:
    """Return the live connections."""
    return {"connections": [shapes.link(view) for view in await fleet.links()]}


async def security_summary(parts: Parts) -> SecuritySummary:
    """Return the state of security at a glance."""
    now = datetime.now(UTC)
    links = await parts.fleet.links()
    known = await parts.fleet.certificates()
    workers = await parts.fleet.workers() if parts.has_coordinator() else ()
    valid = [view.not_after for view in known if view.in_use and view.not_after > now]
    return {
        "connections": len(links),
        "weakConnections": sum(link.tls_version != "TLSv1.3" for link in links),
        "certificates": len(known),
        "revoked": sum(view.revoked_at is not None for view in known),
        "expired": sum(view.in_use and view.not_after <= now for view in known),
        "nextExpiry": moment(min(valid, default=None)),
        "workersHealthy": sum(view.info.health is WorkerHealth.HEALTHY for view in workers),
        "workersTotal": len(workers),
        "workersQuarantined": sum(view.state.value == "quarantined" for view in workers),
    }
