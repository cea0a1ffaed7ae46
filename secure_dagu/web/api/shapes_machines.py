"""Queues, workers, services, links and certificates as the REST API says them (REST reference, sections 7 and 8). Pure.

Who has no `developer` role sees workers without what tells how to reach them: `is_full=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NotRequired

from typing_extensions import TypedDict

from secure_dagu.dispatch.model import RunningTask, WorkerHealth
from secure_dagu.dispatch.operating import CertificateView, FoundRun, LinkView, QueueView, ServiceView, WorkerView
from secure_dagu.web.api.shapes import moment
from secure_dagu.web.api.shapes_runs import DAGRunSummary, summary


class Queue(TypedDict):
    """One queue."""

    name: str
    type: str
    maxConcurrency: int
    runningCount: int
    queuedCount: int
    running: list[DAGRunSummary]
    paused: bool
    oldestQueuedAt: NotRequired[str]


class QueueSummary(TypedDict):
    """All queues together."""

    totalQueues: int
    totalRunning: int
    totalQueued: int
    totalCapacity: int
    utilizationPercentage: float


class QueueList(TypedDict):
    """Every queue, by name."""

    queues: list[Queue]
    summary: QueueSummary


class RunningTaskShape(TypedDict):
    """What a worker runs now."""

    dagRunId: str
    dagName: str
    startedAt: str
    rootDagRunName: NotRequired[str]
    rootDagRunId: NotRequired[str]
    parentDagRunName: NotRequired[str]
    parentDagRunId: NotRequired[str]


class Worker(TypedDict):
    """One worker, and what its certificate proves."""

    id: str
    labels: dict[str, str]
    totalPollers: int
    busyPollers: int
    runningTasks: list[RunningTaskShape]
    lastHeartbeatAt: str
    healthStatus: str
    state: str
    identity: NotRequired[str]
    serial: NotRequired[str]
    issuer: NotRequired[str]
    certNotAfter: NotRequired[str]
    tlsVersion: NotRequired[str]
    remoteAddress: NotRequired[str]
    connectedSince: NotRequired[str]
    version: NotRequired[str]


class WorkerList(TypedDict):
    """Every known worker; `errors` says what could not be asked."""

    workers: list[Worker]
    errors: list[str]


class CoordinatorInstance(TypedDict):
    """One coordinator."""

    instanceId: str
    host: str
    port: int
    status: str
    startedAt: str


class SchedulerInstance(TypedDict):
    """One scheduler; the active one holds the lock."""

    instanceId: str
    host: str
    status: str
    startedAt: str


class Certificate(TypedDict):
    """A certificate in use here, or one that our CA issued."""

    subject: str
    identity: str
    serial: str
    issuer: str
    names: list[str]
    notBefore: str
    notAfter: str
    daysLeft: int
    inUse: bool
    revokedAt: NotRequired[str]
    revocationReason: NotRequired[str]


class Link(TypedDict):
    """One live connection of a coordinator."""

    identity: str
    role: str
    remoteAddress: str
    tlsVersion: str
    cipher: str
    group: str
    serial: str
    certNotAfter: str
    connectedSince: str


def queue(view: QueueView) -> Queue:
    """Return one queue."""
    shape: Queue = {
        "name": view.name,
        "type": "global" if view.is_global else "dag-based",
        "maxConcurrency": view.max_concurrency,
        "runningCount": len(view.running),
        "queuedCount": view.queued,
        "running": [summary(FoundRun(document=document)) for document in view.running],
        "paused": view.paused,
    }
    if view.oldest_queued_at:
        shape["oldestQueuedAt"] = moment(view.oldest_queued_at)
    return shape


def queue_list(views: Sequence[QueueView]) -> QueueList:
    """Return every queue, and all together."""
    running, capacity = sum(len(view.running) for view in views), sum(view.max_concurrency for view in views)
    return {
        "queues": [queue(view) for view in sorted(views, key=lambda view: view.name)],
        "summary": {
            "totalQueues": len(views),
            "totalRunning": running,
            "totalQueued": sum(view.queued for view in views),
            "totalCapacity": capacity,
            "utilizationPercentage": round(100 * running / capacity, 1) if capacity else 0.0,
        },
    }


def worker(view: WorkerView, *, is_full: bool) -> Worker:
    """Return one worker."""
    info = view.info
    shape: Worker = {
        "id": info.worker,
        "labels": dict(info.labels),
        "totalPollers": info.stats.total_pollers,
        "busyPollers": info.stats.busy_pollers,
        "runningTasks": [_task(task) for task in info.stats.running],
        "lastHeartbeatAt": moment(info.last_heartbeat_at),
        "healthStatus": info.health.name.lower() if info.health is not WorkerHealth.UNSPECIFIED else "unhealthy",
        "state": view.state.value,
    }
    if view.version:
        shape["version"] = view.version
    if view.cert_not_after:
        shape["certNotAfter"] = moment(view.cert_not_after)
    if is_full:
        known = {
            "identity": view.identity,
            "serial": view.serial,
            "issuer": view.issuer,
            "tlsVersion": view.tls_version,
            "remoteAddress": view.remote_address,
            "connectedSince": moment(view.connected_since),
        }
        for key, value in known.items():
            if value:
                shape[key] = value  # type: ignore[literal-required]  # each is a key
    return shape


def worker_list(views: Sequence[WorkerView], errors: Sequence[str], *, is_full: bool) -> WorkerList:
    """Return every worker."""
    return {"workers": [worker(view, is_full=is_full) for view in views], "errors": list(errors)}


def coordinator(view: ServiceView) -> CoordinatorInstance:
    """Return one coordinator."""
    return {
        "instanceId": view.instance_id,
        "host": view.host,
        "port": view.port,
        "status": view.status,
        "startedAt": moment(view.started_at),
    }


def scheduler(view: ServiceView) -> SchedulerInstance:
    """Return one scheduler."""
    return {
        "instanceId": view.instance_id,
        "host": view.host,
        "status": view.status,
        "startedAt": moment(view.started_at),
    }


def certificate(view: CertificateView, now: datetime) -> Certificate:
    """Return one certificate; `daysLeft` is negative once it has expired."""
    shape: Certificate = {
        "subject": view.subject,
        "identity": view.identity,
        "serial": view.serial,
        "issuer": view.issuer,
        "names": list(view.names),
        "notBefore": moment(view.not_before),
        "notAfter": moment(view.not_after),
        "daysLeft": (view.not_after.astimezone(UTC) - now).days,
        "inUse": view.in_use,
    }
    if view.revoked_at:
        shape["revokedAt"] = moment(view.revoked_at)
        shape["revocationReason"] = view.revocation_reason
    return shape


def link(view: LinkView) -> Link:
    """Return one connection."""
    return {
        "identity": view.identity,
        "role": view.role,
        "remoteAddress": view.address,
        "tlsVersion": view.tls_version,
        "cipher": view.cipher,
        "group": view.group,
        "serial": view.serial,
        "certNotAfter": moment(view.cert_not_after),
        "connectedSince": moment(view.opened_at),
    }


def _task(task: RunningTask) -> RunningTaskShape:
    shape: RunningTaskShape = {
        "dagRunId": task.run.run_id,
        "dagName": task.run.name,
        "startedAt": moment(task.started_at),
    }
    if task.root != task.run:
        shape["rootDagRunName"], shape["rootDagRunId"] = task.root.name, task.root.run_id
    if task.parent is not None:
        shape["parentDagRunName"], shape["parentDagRunId"] = task.parent.name, task.parent.run_id
    return shape
