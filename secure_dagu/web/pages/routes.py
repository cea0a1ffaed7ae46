"""The Web UI in one place: its routers, its files, and the page for what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from secure_dagu.errors import SecureDaguError, Unauthenticated
from secure_dagu.web.context import services_of
from secure_dagu.web.pages import documents, entrance, overview, search, workflows
from secure_dagu.web.pages.files import Files
from secure_dagu.web.pages.frame import render
from secure_dagu.web.pages.operating_pages import operating_routers

_WORDS = {
    400: "This address says something that cannot be",
    403: "You may not see this",
    404: "There is no such page",
    500: "Something went wrong here",
    503: "Not possible now",
}


def routers() -> Sequence[APIRouter]:
    """Return the routers of every page."""
    return (*(module.router for module in (entrance, overview, workflows, search, documents)), *operating_routers())


def static() -> Sequence[tuple[str, ASGIApp]]:
    """Return (path, application) of the files."""
    return (("/static", Files()),)


def page_error(request: Request, status: int, error: SecureDaguError | None) -> Response:
    """Return the page that says what went wrong; who is not logged in is led to the login."""
    services = services_of(request)
    base = services.options.base_path
    try:
        person = services.door.who(request)
    except Unauthenticated:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{base}/login?next={quote(here, safe='')}", status_code=303)
    words = _WORDS.get(status, "That did not work")
    is_told = error is not None and status != 500  # what broke inside is in the log
    told = {"what": error.what, "why": error.why, "fix": error.fix} if is_told and error else {}
    return render(
        request, person, "error.html", status=status, words=words, **({"what": "", "why": "", "fix": ""} | told)
    )
