"""Coming in and the own account: login, the first account, the own password."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from secure_dagu.errors import NotFound, Unauthenticated
from secure_dagu.web.api.deps import Need
from secure_dagu.web.context import Services, services_of
from secure_dagu.web.pages.frame import entered, environment, render, shared
from secure_dagu.web.people import MOST, Way

_COLOR: Final = re.compile(r"#[0-9A-Fa-f]{3,8}|[A-Za-z]{3,30}|(?:rgb|hsl)a?\([0-9.,%/ deg]{3,40}\)")
RIGHTS: Final = (
    (Need.READ, "Look at definitions, runs, logs, artifacts, queues and workers"),
    (Need.RUN, "Start, stop, retry, enqueue and approve runs; suspend schedules"),
    (Need.WRITE, "Change definitions, delete runs, see machines with their addresses"),
    (Need.AUDIT, "Read and verify the audit log"),
    (Need.ADMIN, "Manage users and API keys; drain and revoke workers"),
)
WAYS: Final = {
    Way.PASSWORD: "by password",
    Way.API_KEY: "by API key",
    Way.BASIC: "by HTTP basic authentication",
    Way.CERTIFICATE: "by client certificate",
    Way.NONE: "not at all: auth.mode is none",
}

router = APIRouter(include_in_schema=False)


@router.get("/login")
async def login(request: Request) -> Response:
    """Ask for a password; where there is no account yet, lead to the setup."""
    services = services_of(request)
    base = services.options.base_path
    if services.options.auth_mode != "builtin" or _is_in(services, request):
        return RedirectResponse(_wanted(request) or f"{base}/", status_code=303)
    if not services.door.accounts.is_set_up:
        return RedirectResponse(f"{base}/setup", status_code=303)
    return _outside(request, "login.html")


@router.get("/setup")
async def setup(request: Request) -> Response:
    """Ask for the first account; it is the administrator."""
    services = services_of(request)
    if services.options.auth_mode != "builtin" or services.door.accounts.is_set_up:
        return RedirectResponse(f"{services.options.base_path}/login", status_code=303)
    return _outside(request, "setup.html", needs_token=services.door.accounts.needs_setup_token)


@router.get("/account")
async def account(request: Request) -> Response:
    """Show who is logged in, and what that allows."""
    services, person = await entered(request, Need.READ)
    return render(
        request, person, "account.html", way=WAYS[person.way],
        rights=[(words, person.may(need)) for need, words in RIGHTS],
        roles=[(role.value, [words for need, words in RIGHTS if need <= most]) for role, most in MOST.items()],
        has_password=person.way is Way.PASSWORD, zone_name=services.options.time_zone,
        is_changed="changed" in request.query_params,
    )  # fmt: skip


@router.get("/brand.css")
async def brand(request: Request) -> Response:
    """Return the colour that `ui.navbar_color` names; what is no colour is not passed on."""
    color = services_of(request).options.color
    if not _COLOR.fullmatch(color):
        raise NotFound("there is no colour of this installation")
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(f":root {{ --brand: {color}; }}\n", media_type="text/css", headers=headers)


def _outside(request: Request, template: str, **values: object) -> Response:
    """Return a page for somebody who is not logged in."""
    services = services_of(request)
    is_private = request.scope.get("scheme") == "https" or _is_loopback(request)
    text = (
        environment()
        .get_template(template)
        .render({**shared(services), "is_private": is_private, "wanted": _wanted(request), **values})
    )
    return HTMLResponse(text, headers={"Cache-Control": "no-store"})


def _is_in(services: Services, request: Request) -> bool:
    try:
        services.door.who(request)
    except Unauthenticated:
        return False
    return True


def _is_loopback(request: Request) -> bool:
    host = request.client.host if request.client else ""
    return host.startswith("127.") or host in ("::1", "localhost")


def _wanted(request: Request) -> str:
    """Return the page that somebody wanted to see before the login; only one of ours."""
    said = request.query_params.get("next", "")
    parts = urlsplit(said)
    is_ours = said.startswith("/") and not said.startswith("//") and "\\" not in said
    return said if is_ours and not parts.scheme and not parts.netloc and len(said) <= 2048 else ""
