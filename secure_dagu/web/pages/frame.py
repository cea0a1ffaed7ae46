"""What every page shares: who looks at it, its frame, and how values are written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from zoneinfo import ZoneInfo

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from starlette.responses import HTMLResponse, Response

from secure_dagu.web.api.deps import Need
from secure_dagu.web.context import Services, services_of
from secure_dagu.web.pages.files import version
from secure_dagu.web.pages.gantt import moment_of
from secure_dagu.web.people import Person

TEMPLATES: Final = Path(__file__).parent.parent / "templates"

MENU: Final = (
    ("", (("/", "Overview", "home", Need.READ),)),
    (
        "Workflows",
        (
            ("/dags", "Definitions", "workflows", Need.READ),
            ("/search", "Search", "search", Need.READ),
            ("/base-config", "Base config", "sliders", Need.MACHINES),
        ),
    ),
    (
        "Executions",
        (
            ("/dag-runs", "Runs", "runs", Need.READ),
            ("/queues", "Queues", "queues", Need.READ),
            ("/event-logs", "Events", "clock", Need.AUDIT),
        ),
    ),
    (
        "Machines",
        (
            ("/workers", "Workers", "workers", Need.READ),
            ("/links", "Links", "links", Need.MACHINES),
            ("/certificates", "Certificates", "certificates", Need.MACHINES),
            ("/system-status", "System", "system", Need.MACHINES),
        ),
    ),
    (
        "Security",
        (
            ("/audit-logs", "Audit log", "audit", Need.AUDIT),
            ("/security-events", "Security events", "alert", Need.AUDIT),
            ("/compliance", "Compliance", "lock", Need.AUDIT),
        ),
    ),
    (
        "Administration",
        (
            ("/secrets", "Secrets", "vault", Need.AUDIT),
            ("/users", "Users", "users", Need.ADMIN),
            ("/api-keys", "API keys", "key", Need.ADMIN),
            ("/api-docs", "API reference", "api", Need.READ),
        ),
    ),
)
"""Sections of the menu, each with (path, words, icon, what it needs)."""

SHORTCUTS: Final = (
    (("?",), "This list"),
    (("/",), "Search on this page, or everywhere"),
    (("g", "o"), "Overview"),
    (("g", "w"), "Workflow definitions"),
    (("g", "r"), "Runs"),
    (("g", "q"), "Queues"),
    (("g", "m"), "Workers"),
    (("g", "s"), "Search"),
    (("n",), "New definition, where there is a list of them"),
    (("s",), "Start the definition shown"),
    (("r",), "Refresh"),
    (("j", "k"), "Next and previous row of a list"),
    (("↓", "↑"), "The same within a list; Enter opens a row, Space ticks it"),
    (("Ctrl", "S"), "Save, in an editor"),
    (("Esc",), "Close a dialog or a menu; leave the editor's Tab key"),
    (("Enter",), "Next hit in a log; with Shift the one before"),
)
"""Keys, and what they do (`static/frame.js`)."""

_TICKING: Final = re.compile(r"(?<=>)[^<]*(?=</time>)")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


async def entered(request: Request, need: Need) -> tuple[Services, Person]:
    """Return the installation and who asks.

    Raises:
        Unauthenticated: nobody is logged in. Refused: the role may not see the page.
    """
    services = services_of(request)
    return services, await services.door.admit(request, need)


def zone_of(services: Services) -> tzinfo:
    """Return the time zone in which times are shown."""
    name = services.options.time_zone
    return ZoneInfo(name) if name else datetime.now().astimezone().tzinfo or UTC


def render(request: Request, person: Person, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page."""
    services = services_of(request)
    options = services.options
    frame: Mapping[str, Any] = {
        "me": person, "menu": MENU, "shortcuts": SHORTCUTS,
        "here": request.url.path.removeprefix(options.base_path) or "/",
        "form_token": services.door.form_token(person),
        "can_run": person.may(Need.RUN) and options.run_dags,
        "can_write": person.may(Need.WRITE) and options.write_dags,
        "can_admin": person.may(Need.ADMIN),
        **shared(services),
        "zone": zone_of(services),
    }  # fmt: skip
    text = environment().get_template(template).render({**frame, **values})
    headers = {"Cache-Control": "private, no-store", "ETag": tag_of(text)}
    if status == 200 and request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)  # only live.js asks so: it has the page, and shows it
    return HTMLResponse(text, status_code=status, headers=headers)


def tag_of(text: str) -> str:
    """Return what differs when a page says something else; times that tick in the browser do not count."""
    return f'W/"{sha256(_TICKING.sub("", text).encode()).hexdigest()[:32]}"'


def shared(services: Services) -> Mapping[str, Any]:
    """Return what every template gets, whoever looks."""
    options = services.options
    return {
        "options": options,
        "peer_mode": options.peer_mode if services.parts.has_coordinator() else "",
        "base": options.base_path,
        "api": options.api_path,
        "static": lambda name: f"{options.base_path}/static/{version()}/{name}",
    }


@cache
def environment() -> Environment:
    """Return the templates; everything that they write is escaped."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "seg": lambda text: quote(str(text), safe=""),
        "iso": lambda at: at.astimezone(UTC).isoformat(timespec="seconds"),
        "utc": lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "local": _local,
        "moment": moment_of,
        "duration": duration,
        "elapsed": lambda begin: duration((datetime.now(UTC) - begin).total_seconds()),
        "ago": lambda at: f"{duration((datetime.now(UTC) - at).total_seconds())} ago",
        "until": lambda at: f"in {duration((at - datetime.now(UTC)).total_seconds())}",
        "bytes": bytes_text,
        "pieces": pieces,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    return made


@pass_context
def _local(context: Context, at: datetime) -> str:
    name = context["options"].time_zone
    return local_text(at, ZoneInfo(name) if name else None)


def local_text(at: datetime, zone: tzinfo | None) -> str:
    """Return a moment for people, in a time zone; None: this host's, as its clock was at that moment."""
    local = at.astimezone(zone)
    is_this_year = local.year == datetime.now(local.tzinfo).year
    return f"{local:%b} {local.day}, {local:%H:%M:%S}" if is_this_year else f"{local:%Y-%m-%d %H:%M}"


def duration(seconds: float) -> str:
    """Return `1h 02m 03s`, `5m 03s`, `7s` or `0.4s`."""
    if seconds < 1:
        return f"{max(0.0, seconds):.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m {rest:02d}s"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def pieces(line: str, wanted: str) -> list[tuple[bool, str]]:
    """Cut a line where it holds a text, upper and lower case being the same: (it is the text, piece)."""
    found = re.split(f"({re.escape(wanted)})", line, flags=re.IGNORECASE) if wanted else [line]
    return [(number % 2 == 1, piece) for number, piece in enumerate(found) if piece]


def bytes_text(size: int) -> str:
    """Return `1.5 MiB`."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")
