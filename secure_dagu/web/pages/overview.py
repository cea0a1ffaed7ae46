"""The overview: what ran, what runs, what waits, whether machines and security are well."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from secure_dagu.dispatch.operating import RunFilter, RunPage, WorkerState, WorkerView
from secure_dagu.errors import Unavailable
from secure_dagu.run.model import RunStatus
from secure_dagu.web.api.deps import Need, Parts
from secure_dagu.web.pages.day import SPANS, day, filters_of
from secure_dagu.web.pages.frame import entered, render, zone_of
from secure_dagu.web.pages.machines import CertificateRow, certificate_row, health_of
from secure_dagu.web.pages.run_views import RunView, run_view
from secure_dagu.web.pages.security_state import SecurityWatch

SHOWN = 8
"""Runs in each of the two lists."""
_PAGE = 500
_COUNTED = (
    RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.PARTIALLY_SUCCEEDED, RunStatus.ABORTED, RunStatus.REJECTED,
    RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.WAITING,
)  # fmt: skip
_ALWAYS = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.RUNNING, RunStatus.QUEUED})
"""Counted even when there are none."""
_RUNNING = frozenset({RunStatus.RUNNING, RunStatus.WAITING})
_QUEUED = frozenset({RunStatus.QUEUED})
_EVER = datetime(1970, 1, 1, tzinfo=UTC)

router = APIRouter(include_in_schema=False)


class Machines(Struct, frozen=True, kw_only=True):
    """The workers, counted."""

    counts: tuple[tuple[str, int], ...] = ()
    """Health or state, and how many; only what there is."""
    slots: int = 0
    busy: int = 0
    problem: str = ""


@router.get("/")
async def overview(request: Request) -> Response:
    """Show the state of the installation."""
    services, person = await entered(request, Need.READ)
    parts, now, zone = services.parts, datetime.now(UTC), zone_of(services)
    filters = filters_of(dict(request.query_params))
    begin, end = filters.window(now, zone)
    most = services.options.dashboard_limit
    alive = await _alive(parts, RunFilter(name_part=filters.name, since=begin, until=end), most)
    running = await parts.runs.find(RunFilter(statuses=_RUNNING), limit=SHOWN + 1)
    queued = await parts.runs.find(RunFilter(statuses=_QUEUED), limit=SHOWN + 1)
    watch = _watch(request, parts)
    answer = render(
        request, person, "overview.html",
        filters=filters, spans=list(SPANS), is_cut=len(alive) >= most,
        timeline=day(_with_running(alive, running, filters.name), begin, end, now=now, zone=zone),
        before=filters.beside(-1, now, zone), after=filters.beside(1, now, zone) if filters.day else "",
        counts=await _counts(parts, now),
        running=[run_view(found) for found in running.runs[:SHOWN]], more_running=len(running.runs) > SHOWN,
        queued=[run_view(found) for found in queued.runs[:SHOWN]], more_queued=len(queued.runs) > SHOWN,
        machines=await _machines(parts), has_coordinator=parts.has_coordinator(), next_end=await _next_end(parts, now),
        records=watch.known, may_audit=person.may(Need.AUDIT), may_machines=person.may(Need.MACHINES),
    )  # fmt: skip
    watch.look()
    return answer


async def _alive(parts: Parts, wanted: RunFilter, most: int) -> list[RunView]:
    found: list[RunView] = []
    cursor = ""
    while len(found) < most:
        page = await parts.runs.find(wanted, limit=min(_PAGE, most - len(found)), cursor=cursor)
        found += [run_view(item) for item in page.runs]
        if not (cursor := page.next_cursor):
            break
    return found


async def _counts(parts: Parts, now: datetime) -> list[tuple[RunStatus, int]]:
    """Count what ended of the last 24 hours' runs, and what is not over, however old it is."""
    lately = await parts.runs.count(since=now - timedelta(hours=24))
    ever = await parts.runs.count(since=_EVER)
    counts = {status: (lately if status.is_terminal else ever).get(status, 0) for status in _COUNTED}
    return [(status, number) for status, number in counts.items() if number or status in _ALWAYS]


def _with_running(alive: list[RunView], running: RunPage, name: str) -> list[RunView]:
    """Add what has been running since before the window."""
    known = {view.run for view in alive}
    views = (run_view(found) for found in running.runs)
    return alive + [view for view in views if view.run not in known and name.lower() in view.run.name.lower()]


async def _machines(parts: Parts) -> Machines:
    if not parts.has_coordinator():
        return Machines()
    found: Sequence[WorkerView]
    try:
        found = await parts.fleet.workers()
    except Unavailable as error:
        return Machines(problem=str(error))
    words = [health_of(worker) if worker.state is WorkerState.ACTIVE else worker.state.value for worker in found]
    order = ("healthy", "warning", "draining", "quarantined", "unhealthy", "lost")
    stats = [worker.info.stats for worker in found if not worker.is_lost]
    return Machines(
        counts=tuple((word, words.count(word)) for word in order if word in words),
        slots=sum(one.total_pollers for one in stats),
        busy=sum(one.busy_pollers for one in stats),
    )


async def _next_end(parts: Parts, now: datetime) -> CertificateRow | None:
    """Return the certificate in use that ends first."""
    used = [one for one in await parts.fleet.certificates() if one.in_use and one.revoked_at is None]
    return certificate_row(min(used, key=lambda one: one.not_after), now) if used else None


def _watch(request: Request, parts: Parts) -> SecurityWatch:
    """Return what looks at the audit logs for this server."""
    state = request.app.state
    if getattr(state, "security_watch", None) is None or state.security_watch[0] is not parts:
        state.security_watch = (parts, SecurityWatch(parts.audit_folders))
    watch: SecurityWatch = state.security_watch[1]
    return watch
