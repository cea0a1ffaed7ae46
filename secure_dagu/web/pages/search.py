"""Page of a search in the texts of definitions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from secure_dagu.web.api.deps import Need
from secure_dagu.web.api.search import SearchQuery, search
from secure_dagu.web.pages.frame import entered, render

_MAX_TEXT = 255
_FOUND = 20

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Query(max_length=4096)]


@router.get("/search")
async def search_page(
    request: Request, q: Annotated[str, Query(max_length=_MAX_TEXT)] = "", labels: Text = "", cursor: Text = ""
) -> Response:
    """Find definitions that hold a text."""
    services, person = await entered(request, Need.READ)
    text = q.strip()
    page = None
    if text:
        at = cursor if cursor.isascii() and cursor.isdigit() and len(cursor) <= 12 else ""
        query = SearchQuery(q=text, labels=labels[:2048], cursor=at, limit=_FOUND)
        page = await search(services.parts.workflows, query)
    return render(
        request, person, "search.html", q=text, labels=labels, found=page["results"] if page else [],
        next_cursor=page.get("nextCursor", "") if page else "",
    )  # fmt: skip
