"""What every endpoint gets: the Protocols of an installation, who asks, and how to answer and to record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum, StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol

from fastapi import Depends, Request
from msgspec import Struct
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.dispatch.operating import Fleet, Launching, QueueBook, Runs, Workflows
from secure_dagu.store.secret_files import SecretFiles
from secure_dagu.web.api.host import HostLoad
from secure_dagu.web.api.live import Hub
from secure_dagu.web.api.run_events import EventLog
from secure_dagu.web.api.shapes import encoded
from secure_dagu.web.api.tickets import Tickets
from secure_dagu.web.api.views_compliance import Evidence


class Need(IntEnum):
    """What an endpoint asks of an account; each role has all up to its own (REST reference, section 2)."""

    PUBLIC = 0
    READ = 1
    """viewer: look at definitions, runs, logs, queues, metrics."""
    RUN = 2
    """operator: start and steer runs."""
    WRITE = 3
    """developer: change definitions, delete runs."""
    MACHINES = 4
    """developer: see machines with their addresses, and the base configuration."""
    AUDIT = 5
    """manager: audit and event logs."""
    ADMIN = 6
    """admin: users, API keys, workers' certificates."""


class Account(Protocol):
    """Who asks."""

    @property
    def name(self) -> str:
        """What is written as the actor."""
        ...

    def may(self, need: Need) -> bool:
        """Tell whether the account has what an endpoint asks."""
        ...


class Change(StrEnum):
    """What somebody changes: the actions of the REST reference, section 10, and ours."""

    DAG_CREATE = "dag_create"
    DAG_UPDATE = "dag_update"
    DAG_RENAME = "dag_rename"
    DAG_DELETE = "dag_delete"
    DAG_EXECUTE = "dag_execute"
    DAG_EXECUTE_SYNC = "dag_execute_sync"
    DAG_ENQUEUE = "dag_enqueue"
    DAG_DEQUEUE = "dag_dequeue"
    DAG_TERMINATE = "dag_terminate"
    DAG_STOP_ALL = "dag_stop_all"
    DAG_RETRY = "dag_retry"
    DAG_RESCHEDULE = "dag_reschedule"
    DAG_SUSPEND = "dag_suspend"
    DAG_RESUME = "dag_resume"
    RUN_DELETE = "dag_run_delete"
    STEP_STATUS = "dag_step_status_update"
    STEP_APPROVE = "dag_step_approve"
    STEP_REJECT = "dag_step_reject"
    STEP_PUSH_BACK = "dag_step_push_back"
    TASK_COMPLETE = "human_task_complete"
    ARTIFACT_READ = "artifact_read"
    QUEUE_PAUSE = "queue_pause"
    QUEUE_RESUME = "queue_resume"
    WORKER_DRAIN = "worker_drain"
    WORKER_REVOKE = "worker_revoke"
    BASE_CONFIG = "base_config_update"
    SECRET_CREATE = "secret_create"  # noqa: S105 - words, no passwords
    SECRET_UPDATE = "secret_update"  # noqa: S105
    SECRET_DELETE = "secret_delete"  # noqa: S105
    AUDIT_READ = "audit_read"
    AUDIT_EXPORT = "audit_export"
    AUDIT_VERIFY = "audit_verify"


class Gate(Protocol):
    """Who may come in, and the record of what is changed."""

    @property
    def challenge(self) -> str:
        """What a 401 asks for: the scheme of `WWW-Authenticate`."""
        ...

    async def admit(self, request: Request, need: Need) -> Account:
        """Return who asks.

        Raises:
            Unauthenticated: nobody is proven. Refused: the role, or a switch of the installation, forbids it.
        """
        ...

    async def still_good(self, account: Account) -> bool:
        """Tell whether an account that was let in earlier still has its session and its rights."""
        ...

    async def record(self, request: Request, account: Account, change: Change, target: str) -> None:
        """Write a change into the audit log before it is made.

        Raises:
            Unavailable: it cannot be written; then the change must not happen.
        """
        ...

    def failed(self, request: Request, status: int, reason: str) -> None:
        """Note that what was recorded for a request did not happen: the status of its answer, and the error's code."""
        ...


class Check(Struct, frozen=True, kw_only=True):
    """One part of the installation that /health looks at."""

    ok: bool
    message: str = ""
    is_own: bool = True
    """False: it is somebody else's part, and this server does its own work all the same."""


class Parts(Struct, frozen=True, kw_only=True):
    """An installation, as the REST API sees it."""

    runs: Runs
    launching: Launching
    queues: QueueBook
    workflows: Workflows
    fleet: Fleet
    gate: Gate
    hub: Hub
    tickets: Tickets
    host: HostLoad
    events: EventLog | None
    audit_folders: Mapping[str, Path]
    secrets: SecretFiles
    """Managed secrets, as the coordinator of this host serves them."""
    compliance: Callable[[], Evidence]
    """Blocks."""
    base_config: Path
    write_base_config: Callable[[str], None]
    """Blocks. DefinitionError: the text does not load; it is not kept."""
    api_path: str
    """Base path and API path."""
    heartbeat_s: float = 10.0
    slow_client_s: float = 30.0
    write_buffer: int = 65536
    max_topics: int = 20
    log_charset: str = "utf-8"
    """Character encoding of the logs of steps."""
    has_coordinator: Callable[[], bool] = lambda: True
    checks: Callable[[], Mapping[str, Callable[[], Awaitable[Check]]]] = dict
    """Return what a probe looks at, by name."""
    exposition: Callable[[str], Awaitable[tuple[bytes, str]]]
    metrics_are_public: bool = False


class ErrorBody(TypedDict):
    """What is wrong; `error` says it in a word of its own where a stream is asked for."""

    code: str
    message: str
    error: NotRequired[str]


class Empty(TypedDict):
    """Nothing to say: it is done."""


class ErrorList(TypedDict):
    """What did not work; empty when all did."""

    errors: list[str]


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong."},
    401: {"model": ErrorBody, "description": "Nobody is proven."},
    403: {"model": ErrorBody, "description": "The role does not allow it."},
    404: {"model": ErrorBody, "description": "There is no such thing."},
    409: {"model": ErrorBody, "description": "The state has moved on, or the name is taken."},
    413: {"model": ErrorBody, "description": "A declared limit was passed."},
    429: {"model": ErrorBody, "description": "Too often."},
    500: {"model": ErrorBody, "description": "An unexpected error."},
    503: {"model": ErrorBody, "description": "The other end cannot be reached, or nobody can do it now."},
}
"""Answers that every endpoint may give, for the OpenAPI document."""


def parts_of(request: Request) -> Parts:
    """Return the installation."""
    parts: Parts = request.app.state.api
    return parts


Api = Annotated[Parts, Depends(parts_of)]


class Needs:
    """Dependency: an account that has `need`. What it says is also written into the OpenAPI document."""

    def __init__(self, need: Need) -> None:
        self.need = need

    async def __call__(self, request: Request) -> Account:
        """Return who asks."""
        account = await parts_of(request).gate.admit(request, self.need)
        request.state.account = account
        return account


Viewer = Annotated[Account, Depends(Needs(Need.READ))]
Operator = Annotated[Account, Depends(Needs(Need.RUN))]
Developer = Annotated[Account, Depends(Needs(Need.WRITE))]
MachineReader = Annotated[Account, Depends(Needs(Need.MACHINES))]
Auditor = Annotated[Account, Depends(Needs(Need.AUDIT))]
Admin = Annotated[Account, Depends(Needs(Need.ADMIN))]


async def recorded(request: Request, change: Change, target: str) -> None:
    """Write a change into the audit log before it is made."""
    await parts_of(request).gate.record(request, request.state.account, change, target)


def reply(request: Request, value: Any, *, status: int = 200) -> Response:
    """Return a JSON document with a strong ETag of its content; 304 to a client that has it already."""
    body = encoded(value)
    if request.method != "GET":
        return Response(body, status_code=status, media_type="application/json")
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    asked = [item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")]
    if status == 200 and (tag in asked or "*" in asked):
        return Response(status_code=304, headers=headers)
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def empty() -> Response:
    """Return an empty object: it is done."""
    return Response(b"{}", media_type="application/json")


def attachment(name: str) -> str:
    """Return the Content-Disposition of a download: plain ASCII, no quotes or control characters."""
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\;%' else "_" for char in name)
    return f'attachment; filename="{plain[:200] or "download"}"'


def seen_tags(request: Request) -> frozenset[str]:
    """Return the tags of `If-Match`; none where the author does not say what was seen.

    A weak one counts like the strong one: proxies that compress answers make them weak, and the text is the same.
    """
    header = request.headers.get("if-match", "").strip()
    if header in ("", "*"):
        return frozenset()
    return frozenset(tag.strip().removeprefix("W/") for tag in header.split(","))


def spec_tag(text: str) -> str:
    """Return the ETag of a text that people edit: its SHA-256."""
    return f'"{sha256(text.encode("utf-8", "replace")).hexdigest()}"'
