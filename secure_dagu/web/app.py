"""The web server's application: REST API, Web UI, and the walls around both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from secure_dagu import __version__
from secure_dagu.errors import SecureDaguError
from secure_dagu.security.peer import Peer
from secure_dagu.web.api import problems
from secure_dagu.web.api.deps import Needs
from secure_dagu.web.api.routes import api_router
from secure_dagu.web.context import Options, Services
from secure_dagu.web.walls import Outside, Walls

OPEN: Final = frozenset(
    {"/health", "/ready", "/metrics", "/events/stream", "/auth/setup", "/auth/login", "/auth/logout"}
)
"""Routes of the API that see to their callers themselves, or are for everybody; every other one declares its need."""

PageError = Callable[[Request, int, SecureDaguError | None], Response]
"""Make the page that says what went wrong: status, and the error if it is one of ours."""


def make_inside(
    options: Options,
    *,
    pages: Sequence[APIRouter] = (),
    static: Sequence[tuple[str, ASGIApp]] = (),
    page_error: PageError | None = None,
) -> FastAPI:
    """Return every route. What they work with is put into its state: `api` (`Parts`) and `services`.

    Args:
        options: where things are.
        pages: routers of the Web UI, which are mounted below the base path.
        static: (path, application) of its files.
        page_error: shows errors of pages; None: they are answered as those of the API are.
    """
    app = FastAPI(title=options.title, version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    problems.install(app)
    if page_error is not None:
        _show_errors_of_pages(app, page_error, options.api_path)
    router = api_router()
    if missing := list(undeclared(router)):
        raise AssertionError(f"these routes say nothing about who may call them: {', '.join(missing)}")
    app.include_router(router, prefix=options.api_path)
    for one in pages:
        app.include_router(one, prefix=options.base_path, include_in_schema=False)
    for path, served in static:
        app.mount(f"{options.base_path}{path}", served)
    return app


def surround(
    app: FastAPI,
    services: Services,
    outside: Outside,
    *,
    peer_of: Callable[[str], Peer | None] = lambda _name: None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Give the routes what they work with, and return them behind the walls.

    Args:
        app: what `make_inside` made.
        services: what it works with.
        outside: what is decided about the way to it.
        peer_of: who is at the other end of a private connection, by its name.
        origins: origins whose pages may read the API with credentials; `*`: any, without.
    """
    app.state.api, app.state.services = services.parts, services
    whole: ASGIApp = GZipMiddleware(app, minimum_size=2048, compresslevel=5)
    if origins:
        whole = CORSMiddleware(
            whole, allow_origins=list(origins), allow_credentials="*" not in origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-Match", "If-None-Match"], expose_headers=["ETag"],
        )  # fmt: skip
    return Walls(whole, outside, peer_of)


def undeclared(router: APIRouter) -> Iterator[str]:
    """Yield the routes that neither declare a need nor are listed as open: absent means denied, so none may be."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.path not in OPEN and not _declares(route.dependant):
            yield route.path


def origin_of(url: str) -> str:
    """Return the origin of a URL; empty for none."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else ""


def _declares(dependant: Dependant) -> bool:
    return isinstance(dependant.call, Needs) or any(_declares(inner) for inner in dependant.dependencies)


def _show_errors_of_pages(app: FastAPI, page_error: PageError, api_path: str) -> None:
    """Let errors of pages be pages; the API keeps its own answers."""
    for kind, handler in list(app.exception_handlers.items()):
        app.add_exception_handler(kind, _either(handler, page_error, api_path))


def _either(handler: Any, page_error: PageError, api_path: str) -> Callable[[Request, Exception], Any]:
    async def answer(request: Request, error: Exception) -> Response:
        told: Response = await handler(request, error)
        is_asked_by_browser = told.status_code in (401, 429) and request.app.state.api.gate.challenge == "Basic"
        if request.url.path.startswith(f"{api_path}/") or is_asked_by_browser:
            return told
        return page_error(request, told.status_code, error if isinstance(error, SecureDaguError) else None)

    return answer
