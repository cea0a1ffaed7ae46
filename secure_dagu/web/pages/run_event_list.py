"""The page of events: what runs did, newest first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from secure_dagu.run.model import RunStatus
from secure_dagu.web.api.deps import Need
from secure_dagu.web.api.run_events import EventPage, EventQuery
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.threads import on_thread

SPANS = {"1h": "Last hour", "24h": "Last 24 hours", "all": "Any time"}
_HOURS = {"1h": 1, "24h": 24}
STATUSES = tuple(status.word for status in RunStatus if status is not RunStatus.NOT_STARTED)
_PAGE = 100
_MOST_PAGES = 1000

router = APIRouter(include_in_schema=False)


class EventFilters(Struct, frozen=True, kw_only=True):
    """What somebody filters by."""

    status: str = ""
    dag: str = ""
    run_id: str = ""
    span: str = "24h"
    page: int = 1

    def query(self, *, page: int = 1) -> str:
        """Return the same as a URL's query."""
        pairs = {
            "status": self.status, "dag": self.dag, "run": self.run_id,
            "span": "" if self.span == "24h" else self.span, "page": str(page) if page > 1 else "",
        }  # fmt: skip
        return urlencode({key: value for key, value in pairs.items() if value})

    def wanted(self, now: datetime) -> EventQuery:
        """Return what the log is asked for."""
        hours = _HOURS.get(self.span)
        asked = {
            "type": f"dag.run.{self.status}" if self.status else "", "dagName": self.dag, "dagRunId": self.run_id,
            "startTime": now - timedelta(hours=hours) if hours else None,
            "limit": _PAGE, "offset": (self.page - 1) * _PAGE,
        }  # fmt: skip
        return EventQuery.model_validate(asked)


def event_filters_of(given: dict[str, str]) -> EventFilters:
    """Return the filters of a URL; what cannot be read is left out."""
    status, span, page = (given.get(key, "") for key in ("status", "span", "page"))
    number = int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 1
    return EventFilters(
        status=status if status in STATUSES else "",
        dag=given.get("dag", "")[:255].strip(),
        run_id=given.get("run", "")[:128].strip(),
        span=span if span in SPANS else "24h",
        page=min(_MOST_PAGES, max(1, number)),
    )


@router.get("/event-logs")
async def event_list(request: Request) -> Response:
    """Show what runs did."""
    services, person = await entered(request, Need.AUDIT)
    filters, events = event_filters_of(dict(request.query_params)), services.parts.events
    found: EventPage = {"entries": [], "total": 0}
    if events is not None:
        wanted = filters.wanted(datetime.now(UTC))
        found = await on_thread(lambda: events.page(wanted))
    total = found.get("total", 0)
    return render(
        request, person, "event_logs.html", filters=filters, spans=SPANS, statuses=STATUSES, entries=found["entries"],
        total=total, pages=max(1, -(-total // _PAGE)), is_kept=events is not None,
    )  # fmt: skip
