"""Pages of what is recorded: the audit log and, out of it, what concerns security."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from secure_dagu.audit.chain import text_of
from secure_dagu.audit.events import Action, Outcome
from secure_dagu.audit.reading import Wanted, newest
from secure_dagu.web.api.deps import Change, Need
from secure_dagu.web.api.views_audit import entry, verified
from secure_dagu.web.api.views_security import KINDS, SECURITY, ReasonCount, counted, of_security
from secure_dagu.web.context import Services
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.people import Person
from secure_dagu.web.threads import on_thread

SPANS = {"24h": "Last 24 hours", "7d": "Last 7 days", "30d": "Last 30 days", "all": "Any time"}
_DAYS = {"24h": 1, "7d": 7, "30d": 30}
_PAGE = 100
_MOST_PAGES = 1000
CATEGORIES = tuple(dict.fromkeys(action.value.partition(".")[0] for action in Action))
_OF_SECURITY = tuple(word.partition(".")[0] for word in SECURITY if word != Action.LINK_CUT)

router = APIRouter(include_in_schema=False)


class AuditFilters(Struct, frozen=True, kw_only=True):
    """What somebody filters by."""

    category: str = ""
    action: str = ""
    source: str = ""
    outcome: str = ""
    reason: str = ""
    actor: str = ""
    target: str = ""
    address: str = ""
    span: str = "7d"
    page: int = 1

    def query(self, *, page: int = 1) -> str:
        """Return the same as a URL's query."""
        pairs = {
            "category": self.category, "action": self.action, "source": self.source, "result": self.outcome,
            "reason": self.reason, "user": self.actor, "target": self.target, "address": self.address,
            "span": "" if self.span == "7d" else self.span, "page": str(page) if page > 1 else "",
        }  # fmt: skip
        return urlencode({key: value for key, value in pairs.items() if value})

    def export_query(self, now: datetime) -> str:
        """Return the same for the endpoint of the REST API that exports."""
        days = _DAYS.get(self.span)
        start = now - timedelta(days=days) if days else datetime(1970, 1, 1, tzinfo=UTC)
        pairs = {
            "category": self.category, "action": self.action, "source": self.source, "result": self.outcome,
            "reason": self.reason, "userId": self.actor, "resourceId": self.target, "ipAddress": self.address,
            "startTime": start.isoformat(timespec="seconds"),
        }  # fmt: skip
        return urlencode({key: value for key, value in pairs.items() if value})

    def wanted(self, now: datetime) -> Wanted:
        """Return what the logs are asked for."""
        days = _DAYS.get(self.span)
        word = self.action or self.category
        return Wanted(
            actions=(word,) if word else (),
            outcomes=(self.outcome,) if self.outcome else (),
            reason=self.reason,
            actor=self.actor,
            target=self.target,
            address=self.address,
            since=text_of(now - timedelta(days=days)) if days else "",
        )


class KindCard(Struct, frozen=True, kw_only=True):
    """How often one kind of refusal was recorded."""

    title: str
    word: str
    reasons: tuple[ReasonCount, ...]

    @property
    def total(self) -> int:
        """Return the sum over all reasons."""
        return sum(one["count"] for one in self.reasons)


def audit_filters_of(given: dict[str, str]) -> AuditFilters:
    """Return the filters of a URL; what cannot be read is left out."""

    def text(key: str) -> str:
        return given.get(key, "")[:256].strip()

    page = text("page")
    return AuditFilters(
        category=text("category") if text("category") in CATEGORIES else "",
        action=text("action") if text("action") in set(Action) else "",
        source=text("source"),
        outcome=text("result") if text("result") in set(Outcome) else "",
        reason=text("reason"),
        actor=text("user"),
        target=text("target"),
        address=text("address"),
        span=text("span") if text("span") in SPANS else "7d",
        page=max(1, min(_MOST_PAGES, int(page))) if page.isascii() and page.isdigit() and 0 < len(page) < 6 else 1,
    )


@router.get("/audit-logs")
async def audit(request: Request) -> Response:
    """Show the audit logs of this host, newest first."""
    services, person = await entered(request, Need.AUDIT)
    return await _show(request, services, person, "audit.html")


@router.get("/security-events")
async def security_events(request: Request) -> Response:
    """Show what the audit logs say of refusals, certificates and revocations, counted by reason."""
    services, person = await entered(request, Need.AUDIT)
    return await _show(request, services, person, "security.html", is_security=True)


async def _show(
    request: Request, services: Services, person: Person, template: str, *, is_security: bool = False
) -> Response:
    parts, now = services.parts, datetime.now(UTC)
    filters = audit_filters_of(dict(request.query_params))
    wanted = filters.wanted(now)
    if is_security:
        wanted = of_security(wanted)
    folders = [folder for name, folder in parts.audit_folders.items() if filters.source in ("", name)]
    await parts.gate.record(request, person, Change.AUDIT_READ, "log:security" if is_security else "log:all")
    found = await on_thread(lambda: newest(folders, wanted, limit=_PAGE, offset=(filters.page - 1) * _PAGE))
    is_checked = request.query_params.get("verify") == "1"
    if is_checked:
        await parts.gate.record(request, person, Change.AUDIT_VERIFY, "log:all")
    return render(
        request, person, template,
        filters=filters, spans=SPANS, categories=_OF_SECURITY if is_security else CATEGORIES, actions=sorted(Action),
        outcomes=list(Outcome),
        sources=list(parts.audit_folders), entries=[entry(record) for record in found.records], total=found.total,
        pages=max(1, -(-found.total // _PAGE)), export=filters.export_query(now),
        counts=await on_thread(lambda: _counts(folders, wanted)) if is_security else (),
        verification=await on_thread(lambda: verified(parts.audit_folders)) if is_checked else None,
    )  # fmt: skip


def _counts(folders: Sequence[Path], wanted: Wanted) -> Sequence[KindCard]:
    found = counted(folders, Wanted(since=wanted.since))
    return [
        KindCard(title=kind.title, word=kind.word, reasons=tuple(one for one in found if one["kind"] == kind.word))
        for kind in KINDS
    ]
