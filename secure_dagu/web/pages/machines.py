"""Pages of the machines: workers, links, certificates and the state of the system."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from secure_dagu.dispatch.model import WorkerHealth
from secure_dagu.dispatch.operating import CertificateView, LinkView, WorkerView
from secure_dagu.errors import Unavailable
from secure_dagu.web.api.deps import Need
from secure_dagu.web.pages.chart import Chart, chart
from secure_dagu.web.pages.frame import entered, render

SOON_DAYS = 14
"""A certificate that ends within these days is shown as a warning."""
URGENT_DAYS = 3
REASONS = ("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation",
           "privilegeWithdrawn")  # fmt: skip
"""Why a certificate can be revoked; the words of RFC 5280."""
_HOUR = 3600.0

router = APIRouter(include_in_schema=False)


class WorkerCard(Struct, frozen=True, kw_only=True):
    """One worker of the list."""

    worker: WorkerView
    health: str
    """`healthy`, `warning`, `unhealthy` or `lost`."""
    days_left: int | None

    @property
    def affected(self) -> str:
        """Return the runs that stop if it is cut off, one a line."""
        return "\n".join(str(task.run) for task in self.worker.info.stats.running)


class CertificateRow(Struct, frozen=True, kw_only=True):
    """One certificate of the list."""

    certificate: CertificateView
    days_left: int
    state: str
    """`revoked`, `expired`, `urgent`, `soon` or `valid`."""


@router.get("/workers")
async def workers(request: Request) -> Response:
    """Show every known worker, and those that were lost within a day."""
    services, person = await entered(request, Need.READ)
    now, problem = datetime.now(UTC), ""
    found: Sequence[WorkerView] = ()
    if services.parts.has_coordinator():
        try:
            found = await services.parts.fleet.workers()
        except Unavailable as error:
            problem = str(error)
    cards = [_card(worker, now) for worker in sorted(found, key=lambda one: str(one.info.worker))]
    present = [card for card in cards if not card.worker.is_lost]
    stats = [card.worker.info.stats for card in present]
    slots, busy = sum(one.total_pollers for one in stats), sum(one.busy_pollers for one in stats)
    return render(
        request, person, "workers.html",
        present=present, lost=[card for card in cards if card.worker.is_lost], problem=problem,
        has_coordinator=services.parts.has_coordinator(), reasons=REASONS,
        slots=slots, busy=busy, healthy=sum(card.health == "healthy" for card in present),
        tasks=sum(len(one.running) for one in stats), percent=round(100 * busy / slots) if slots else 0,
        can_see_addresses=person.may(Need.MACHINES),
    )  # fmt: skip


@router.get("/links")
async def links(request: Request) -> Response:
    """Show the live connections of the coordinators."""
    services, person = await entered(request, Need.MACHINES)
    found: Sequence[LinkView] = ()
    problem = ""
    try:
        found = await services.parts.fleet.links()
    except Unavailable as error:
        problem = str(error)
    return render(
        request, person, "links.html", links=found, problem=problem,
        weak=sum(link.tls_version != "TLSv1.3" for link in found), has_coordinator=services.parts.has_coordinator(),
    )  # fmt: skip


@router.get("/certificates")
async def certificates(request: Request) -> Response:
    """Show certificates in use here, and the ledger of our CA."""
    services, person = await entered(request, Need.MACHINES)
    now = datetime.now(UTC)
    rows = [certificate_row(one, now) for one in await services.parts.fleet.certificates()]
    rows.sort(key=lambda row: (row.certificate.subject, row.certificate.not_after))
    return render(
        request, person, "certificates.html",
        in_use=[row for row in rows if row.certificate.in_use],
        ledger=[row for row in rows if not row.certificate.in_use],
        soon_days=SOON_DAYS, urgent_days=URGENT_DAYS,
        counts={state: sum(row.state == state for row in rows) for state in ("valid", "soon", "urgent", "expired",
                                                                            "revoked")},
    )  # fmt: skip


@router.get("/system-status")
async def system(request: Request) -> Response:
    """Show coordinators, schedulers, health checks, the load of this host, and how this server is set up."""
    services, person = await entered(request, Need.MACHINES)
    parts = services.parts
    checks = [(name, await look()) for name, look in parts.checks().items()]
    samples = parts.host.since(_HOUR)
    newest = samples[-1] if samples else None
    charts: list[tuple[str, str, Chart]] = []
    if newest is not None:
        charts = [
            ("CPU", f"{newest.cpu:.0f} %", chart([(one.at, one.cpu) for one in samples], top=100)),
            ("Memory", f"{newest.memory:.0f} %", chart([(one.at, one.memory) for one in samples], top=100)),
            ("Disk", f"{newest.disk:.0f} %", chart([(one.at, one.disk) for one in samples], top=100)),
            ("Load", f"{newest.load:.2f}", chart([(one.at, one.load) for one in samples])),
        ]
    return render(
        request, person, "system.html", checks=checks, charts=charts, newest=newest,
        facts=(*services.options.facts, ("Coordinator", "in this installation" if parts.has_coordinator() else "none")),
        coordinators=await parts.fleet.coordinators(), schedulers=await parts.fleet.schedulers(),
    )  # fmt: skip


def certificate_row(certificate: CertificateView, now: datetime) -> CertificateRow:
    """Return a certificate with how long it is good for."""
    days = (certificate.not_after.astimezone(UTC) - now).days
    if certificate.revoked_at is not None:
        state = "revoked"
    elif certificate.not_after <= now:
        state = "expired"
    elif days < URGENT_DAYS:
        state = "urgent"
    else:
        state = "soon" if days < SOON_DAYS else "valid"
    return CertificateRow(certificate=certificate, days_left=days, state=state)


def health_of(worker: WorkerView) -> str:
    """Return `healthy`, `warning`, `unhealthy` or `lost`."""
    if worker.is_lost:
        return "lost"
    health = worker.info.health
    return "unhealthy" if health is WorkerHealth.UNSPECIFIED else health.name.lower()


def _card(worker: WorkerView, now: datetime) -> WorkerCard:
    ends = worker.cert_not_after
    return WorkerCard(
        worker=worker,
        health=health_of(worker),
        days_left=(ends.astimezone(UTC) - now).days if ends else None,
    )
