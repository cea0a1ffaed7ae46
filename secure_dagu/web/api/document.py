"""The OpenAPI document: made from the endpoints, with who may call each, and without what FastAPI would answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import RouteContext, iter_route_contexts

from secure_dagu import __version__
from secure_dagu.web.api.deps import Need, Needs
from secure_dagu.web.api.routes import api_router

_ROLES = {
    Need.READ: "viewer",
    Need.RUN: "operator",
    Need.WRITE: "developer",
    Need.MACHINES: "developer",
    Need.AUDIT: "manager",
    Need.ADMIN: "admin",
}
OWN_GATE = {
    ("GET", "/metrics"): "viewer, or anybody where metrics are public",
    ("GET", "/events/stream"): "viewer, by header or ticket",
    ("PUT", "/settings/base-config"): "developer",
}
"""Endpoints that ask in their own way."""


@cache
def openapi(api_path: str) -> dict[str, Any]:
    """Return the document; `api_path` is where the API is mounted."""
    document = get_openapi(
        title="secure-dagu",
        version=__version__,
        description="REST API v1. Times are RFC 3339 in UTC; an empty text means not yet.",
        routes=api_router().routes,
        servers=[{"url": api_path}],
    )
    for method, path, role in endpoints():
        operation = document["paths"][path][method.lower()]
        operation["responses"].pop("422", None)
        operation["x-role"] = role
        operation["security"] = [] if role == "anybody" else [{"bearer": []}, {"basic": []}, {"cookie": []}]
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A login's token or an API key."},
        "basic": {"type": "http", "scheme": "basic", "description": "In mode basic."},
        "cookie": {"type": "apiKey", "in": "cookie", "name": "secure_dagu_login", "description": "A browser's login."},
    }
    return document


def endpoints() -> Iterator[tuple[str, str, str]]:
    """Yield method, path and the least role of every endpoint; the role of a public one is `anybody`."""
    for route in iter_route_contexts(api_router().routes):
        for method in sorted(route.methods or ()):
            path = str(route.path_format)
            yield method, path, OWN_GATE.get((method, path)) or _role(route)


def _role(route: RouteContext) -> str:
    needs = [item.call.need for item in route.dependant.dependencies if isinstance(item.call, Needs)]
    return _ROLES[max(needs)] if needs else "anybody"
