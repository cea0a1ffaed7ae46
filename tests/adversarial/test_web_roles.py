"""Who may call what over the REST API: every endpoint, as every role, against the table of the reference."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from secure_dagu.audit.events import Action, Outcome
from secure_dagu.web.api.document import openapi
from secure_dagu.web.gate import Rules
from secure_dagu.web.people import Person, Role, Way
from tests.adversarial.test_web_audit import NO_CHANGE, PATHS, body_of
from tests.web.site import PASSWORD, Site, open_site

API = "/api/v1"
LEAST = {
    "read DAGs, runs, logs, artifacts, queues, metrics; the own account": "viewer",
    "start, enqueue, stop, retry, reschedule, dequeue, suspend, approve, set step status": "operator",
    "create, edit, rename, delete DAG; delete run; run from inline spec": "developer",
    "scheduler and coordinator status, resource history, base config": "developer",
    "audit log, event log, secrets": "manager",
    "users, API keys, drain and revoke": "admin",
}
"""Capability → the least role that has it (REST reference, section 2). Each role has what those before it have."""
READ, RUN, WRITE, MACHINES, AUDIT, ADMIN = LEAST
TABLE = (
    ("anybody", r"GET /(health|ready)|POST /auth/(setup|login|logout)"),
    (RUN, r"POST /dags/{fileName}/(suspend|start|start-sync|enqueue|stop-all)"),
    (RUN, r"(POST|GET) /dag-runs/{name}/{dagRunId}/(stop|retry|reschedule|dequeue)"),
    (RUN, r"POST /dag-runs/{name}/{dagRunId}/(steps|human-tasks)/{stepName}/(approve|reject|push-back|complete)"),
    (RUN, r"PATCH /dag-runs/{name}/{dagRunId}(/sub-dag-runs/{subDAGRunId})?/steps/{stepName}/status"),
    (RUN, r"POST /queues/{queueName}/(pause|resume)"),
    (WRITE, r"POST /dags|DELETE /dags/{fileName}|PUT /dags/{fileName}/spec|POST /dags/{fileName}/rename"),
    (WRITE, r"POST /dag-runs(/enqueue)?|DELETE /dag-runs/{name}/{dagRunId}"),
    (MACHINES, r"GET /services/.+|(GET|PUT) /settings/base-config|GET /security/(summary|certificates|connections)"),
    (AUDIT, r"[A-Z]+ /secrets(/.+)?|GET /audit(/export|/verify)?|GET /(event-logs|compliance/report|security/events)"),
    (ADMIN, r"[A-Z]+ /(users|api-keys)(/.+)?|POST /workers/{workerId}/(drain|revoke)"),
    (READ, r"GET /(openapi.json|metrics|auth/me|workers|events/stream)|GET /(dags|dag-runs|queues|search)(/.+)?"),
    (READ, r"POST /(auth/change-password|dags/validate|events/ticket|events/stream/topics)"),
)
"""Capability → its endpoints; the first line that fits counts."""
BASE_CONFIG = ("PUT", "/settings/base-config")
"""It is part of every definition, so it is no more written than they are."""
ADA = Person(name="ada", role=Role.ADMIN, way=Way.NONE)
FORBIDDEN = "Insufficient permissions"
NOT_LOADING = "steps: 17"
BODIES: dict[str, Any] = {
    "/dag-runs": {"spec": NOT_LOADING, "name": "x"},
    "/dag-runs/enqueue": {"spec": NOT_LOADING, "name": "x"},
    "/dags/validate": {"spec": NOT_LOADING},
    "/events/stream/topics": {"sessionID": "x"},
    "/auth/change-password": {"currentPassword": "not this one", "newPassword": PASSWORD},
}
"""Instead of those of the other test: nothing is really started."""


def endpoints() -> list[tuple[str, str]]:
    """Return method and path of every endpoint that the document has; what removes something comes last."""
    found = [(method.upper(), path) for path, methods in openapi(API)["paths"].items() for method in methods]
    return sorted(found, key=lambda one: one[0] == "DELETE")


def capability(method: str, path: str) -> str:
    """Return what the reference's table says that an endpoint is."""
    found = [name for name, pattern in TABLE if re.fullmatch(pattern, f"{method} {path}")]
    assert found, f"{method} {path} is in no line of the table"
    return found[0]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "home") as opened:
        await opened.accounts.set_up("ada", PASSWORD)
        yield opened


async def keys_of(site: Site) -> dict[Role, str]:
    """Make an API key of every role."""
    return {role: (await site.accounts.make_key(name=role.value, role=role, by=ADA))[1] for role in Role}


async def ask(client: httpx.AsyncClient, method: str, path: str, key: str, **ids: str) -> httpx.Response:
    """Call an endpoint with what it takes; of a stream only the head is read."""
    body = BODIES.get(path, body_of(path))
    if body is None and path.startswith("/dag") and method in ("POST", "PUT"):
        body = {}
    if path.endswith("/steps/{stepName}/status"):
        body = {"status": 4}
    query = {"path": "a"} if path.endswith(("/preview", "/artifacts/download")) else {"q": "a"}
    url = f"{API}{path.format(**{**PATHS, 'userId': 'x', 'keyId': 'x', **ids})}"
    request = client.build_request(
        method, url, params=query if method == "GET" else None, json=None if method in ("GET", "DELETE") else body,
        headers={"Authorization": f"Bearer {key}"},
    )  # fmt: skip
    answer = await client.send(request, stream=True)
    if path != "/events/stream" or answer.status_code != 200:
        await answer.aread()
    await answer.aclose()
    return answer


async def test_every_role_may_call_what_the_reference_says_and_nothing_else(site: Site) -> None:
    keys, roles = await keys_of(site), list(Role)
    eve = await site.accounts.create("eve", PASSWORD, Role.VIEWER)
    robot = await site.accounts.make_key(name="robot", role=Role.VIEWER, by=ADA)
    ids = {"userId": eve.id, "keyId": robot[0].id}
    async with site.client() as client:
        for method, path in endpoints():
            if (what := capability(method, path)) == "anybody":
                continue
            for role, key in keys.items():
                site.trail.events.clear()
                answer = await ask(client, method, path, key, **ids)
                told = f"{role} {method} {path}: {answer.status_code}"
                assert answer.status_code != 401, told
                is_forbidden = answer.status_code == 403 and answer.json()["message"].startswith(FORBIDDEN)
                assert is_forbidden == (roles.index(role) < roles.index(Role(LEAST[what]))), told
                acts = [(event.action, event.outcome) for event in site.trail.events]
                if is_forbidden:
                    assert answer.json()["code"] == "forbidden", told
                    assert acts == [(Action.CALL_DENIED, Outcome.DENIED)], told
                elif method != "GET" and path not in NO_CHANGE:
                    assert acts, f"{told} left nothing in the audit log"
                    assert {event.actor for event in site.trail.events} == {f"apikey:{role.value}"}, told


async def test_the_document_says_the_least_role_of_the_reference() -> None:
    for path, methods in openapi(API)["paths"].items():
        for method, operation in methods.items():
            what = capability(method.upper(), path)
            assert operation["x-role"].partition(",")[0] == LEAST.get(what, what), f"{method} {path}"


@pytest.mark.parametrize(("rules", "closed"), [(Rules(write_dags=False), WRITE), (Rules(run_dags=False), RUN)])
async def test_a_switch_of_the_installation_closes_its_line_of_the_table_for_every_role(
    tmp_path: Path, rules: Rules, closed: str
) -> None:
    async with open_site(tmp_path, rules=rules) as site, site.client() as client:
        await site.accounts.set_up("ada", PASSWORD)
        keys = await keys_of(site)
        for method, path in endpoints():
            if path in ("/auth/setup", "/auth/login", "/auth/logout"):
                continue
            answer = await ask(client, method, path, keys[Role.ADMIN])
            is_denied = answer.status_code == 403 and answer.json()["message"].startswith("Permission denied")
            expected = capability(method, path) == closed or (closed == WRITE and (method, path) == BASE_CONFIG)
            assert is_denied == expected, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
