"""What the web server's pages get: the installation, the gate, and how this server is set up."""

from __future__ import annotations

from fastapi import Request
from msgspec import Struct

from secure_dagu.web.api.deps import Parts
from secure_dagu.web.gate import Doorkeeper


class Options(Struct, frozen=True, kw_only=True):
    """Settings that show."""

    title: str = "secure-dagu"
    color: str = ""
    base_path: str = ""
    """Prefix of every URL; empty or `/a/b`."""
    api_path: str = "/api/v1"
    """Of the REST API, with the base path."""
    time_zone: str = ""
    """IANA name; empty: the host's."""
    headless: bool = False
    auth_mode: str = "builtin"
    peer_mode: str = "mtls"
    """How coordinator and workers speak, where there is a coordinator: `mtls` or `insecure`."""
    write_dags: bool = True
    run_dags: bool = True
    dashboard_limit: int = 100
    dags_sort: str = "name"
    dags_order: str = "asc"
    version: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    """What the status page says of build and configuration; no secrets."""


class Services(Struct, frozen=True, kw_only=True):
    """Everything behind the pages."""

    parts: Parts
    door: Doorkeeper
    options: Options


def services_of(request: Request) -> Services:
    """Return what a page works with."""
    services: Services = request.app.state.services
    return services
