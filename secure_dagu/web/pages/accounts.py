"""Pages of accounts: users and API keys."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from secure_dagu.web.api.deps import Need
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.people import Role

EXPIRIES = (("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("", "never"))

router = APIRouter(include_in_schema=False)


@router.get("/users")
async def users(request: Request) -> Response:
    """Show who has an account."""
    services, person = await entered(request, Need.ADMIN)
    found = sorted(services.door.accounts.users(), key=lambda user: user.username)
    return render(request, person, "users.html", users=found, roles=list(Role))


@router.get("/api-keys")
async def api_keys(request: Request) -> Response:
    """Show the keys of programs; never a key itself."""
    services, person = await entered(request, Need.ADMIN)
    found = sorted(services.door.accounts.api_keys(), key=lambda key: key.name)
    now = datetime.now(UTC).isoformat()
    return render(
        request, person, "api_keys.html", keys=found, roles=list(Role), expiries=EXPIRIES,
        expired={key.id for key in found if key.expires_at and key.expires_at < now},
    )  # fmt: skip
