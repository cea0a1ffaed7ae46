"""Search in the texts of definitions (REST reference, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NotRequired

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.dispatch.operating import Workflow, WorkflowFilter, Workflows
from secure_dagu.web.api.deps import Api, Viewer, reply
from secure_dagu.web.api.queries import BoundedQuery, FileName

router = APIRouter(tags=["dags"])

_SHOWN = 5
"""Matches of one definition in the list."""
_AROUND = 2
"""Lines before and after a match."""
_MAX_LINE = 500


class Match(TypedDict):
    """A place: its number, from 1, and the lines around it, the first of which is `startLine`."""

    line: str
    lineNumber: int
    startLine: int


class SearchResult(TypedDict):
    """The places in one definition."""

    fileName: str
    name: str
    matches: list[Match]
    hasMoreMatches: bool
    nextMatchesCursor: NotRequired[str]


class SearchPage(TypedDict):
    """Definitions that hold a text."""

    results: list[SearchResult]
    hasMore: bool
    nextCursor: NotRequired[str]


class MatchPage(TypedDict):
    """Places in one definition."""

    matches: list[Match]
    hasMore: bool
    nextCursor: NotRequired[str]


class SearchQuery(BoundedQuery):
    """What is looked for."""

    q: str = Field(min_length=1, max_length=255, description="A text; upper and lower case are the same.")
    labels: str = Field("", max_length=2048, description="As for the list of definitions.")
    cursor: str = Field("", max_length=12, pattern=r"^\d*$")
    limit: int = Field(20, ge=1, le=50)


@router.get("/dags/search", response_model=SearchPage)
@router.get("/search/dags", response_model=SearchPage)
async def search_dags(request: Request, parts: Api, _: Viewer, query: Annotated[SearchQuery, Query()]) -> Response:
    """Find definitions that hold a text."""
    return reply(request, await search(parts.workflows, query))


@router.get("/search/dags/{fileName}/matches", response_model=MatchPage)
async def search_matches(
    request: Request, parts: Api, _: Viewer, fileName: FileName, query: Annotated[SearchQuery, Query()]
) -> Response:
    """Show more places in one definition."""
    workflow = await parts.workflows.get(fileName)
    found, start = list(_matches(workflow.text, query.q)), int(query.cursor or 0)
    page: MatchPage = {
        "matches": found[start : start + query.limit],
        "hasMore": len(found) > start + query.limit,
    }
    if page["hasMore"]:
        page["nextCursor"] = str(start + query.limit)
    return reply(request, page)


async def search(workflows: Workflows, query: SearchQuery) -> SearchPage:
    """Return the definitions that hold a text."""
    labels = tuple(part.strip() for part in query.labels.split(",") if part.strip())
    found = [item for item in await workflows.all(WorkflowFilter(labels=labels)) if _holds(item, query.q)]
    start = int(query.cursor or 0)
    page: SearchPage = {
        "results": [_result(item, query.q) for item in found[start : start + query.limit]],
        "hasMore": len(found) > start + query.limit,
    }
    if page["hasMore"]:
        page["nextCursor"] = str(start + query.limit)
    return page


def _holds(workflow: Workflow, text: str) -> bool:
    return text.casefold() in workflow.text.casefold()


def _result(workflow: Workflow, text: str) -> SearchResult:
    found = list(_matches(workflow.text, text))
    result: SearchResult = {
        "fileName": workflow.file,
        "name": workflow.name,
        "matches": found[:_SHOWN],
        "hasMoreMatches": len(found) > _SHOWN,
    }
    if len(found) > _SHOWN:
        result["nextMatchesCursor"] = str(_SHOWN)
    return result


def _matches(text: str, wanted: str) -> Iterator[Match]:
    lines, wanted = text.splitlines(), wanted.casefold()
    for index, line in enumerate(lines):
        if wanted in line.casefold():
            first = max(0, index - _AROUND)
            around = [item[:_MAX_LINE] for item in lines[first : index + _AROUND + 1]]
            yield {"line": "\n".join(around), "lineNumber": index + 1, "startLine": first + 1}
