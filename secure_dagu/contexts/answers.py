"""Answers of the REST API → status documents, as the commands of this host print them. Strict about what is used.

Nothing here trusts the other server: what has another type than it should is refused when it is decoded, and everything
that is printed passes `cli.text.safe` later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from secure_dagu.contexts.address import ServerUrl
from secure_dagu.run.model import RunStatus, StepStatus

HANDLERS = ("onInit", "onSuccess", "onFailure", "onAbort", "onWait", "onExit")
Many = Annotated[int, Meta(ge=0)]


class Command(Struct, frozen=True):
    """A command line; the words behind the first one may be apart."""

    command: str = ""
    args: str | list[str] | None = None

    @property
    def line(self) -> str:
        """Return it whole."""
        words = self.args if isinstance(self.args, list) else [self.args or ""]
        return " ".join(word for word in (self.command, *words) if word)


class Asked(Struct, frozen=True):
    """What a step asks of a person."""

    prompt: str = ""
    form: dict[str, Any] | None = None


class Step(Struct, frozen=True, rename="camel"):
    """A step of a definition."""

    name: str
    commands: list[Command] | None = None
    human_task: Asked | None = None
    approval: Asked | None = None


class Child(Struct, frozen=True, rename="camel"):
    """A run that a step called."""

    dag_run_id: str = ""
    params: str = ""


class Node(Struct, frozen=True, rename="camel"):
    """A step of a run."""

    step: Step
    status: StepStatus
    stdout: str = ""
    stderr: str = ""
    started_at: str = ""
    finished_at: str = ""
    retry_count: int = 0
    sub_runs: list[Child] | None = None
    error: str = ""

    def document(self, server: ServerUrl) -> dict[str, Any]:
        """Return the node as a status document has it; paths of the API become whole URLs."""
        step: dict[str, Any] = {
            "name": self.step.name,
            "commands": [{"cmdWithArgs": command.line} for command in self.step.commands or ()],
        }
        for key, asked in (("humanTask", self.step.human_task), ("approval", self.step.approval)):
            if asked is not None:
                step[key] = {"prompt": asked.prompt, "form": asked.form}
        return {
            "step": step,
            "status": int(self.status),
            "stdout": _whole(self.stdout, server),
            "stderr": _whole(self.stderr, server),
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "retryCount": self.retry_count,
            "children": [{"dagRunId": one.dag_run_id, "params": one.params} for one in self.sub_runs or ()],
            "error": self.error,
        }


class Summary(Struct, frozen=True, rename="camel"):
    """One run of a list."""

    name: str
    dag_run_id: str
    status: RunStatus
    started_at: str = ""
    finished_at: str = ""
    queued_at: str = ""
    params: str | None = None
    labels: list[str] | None = None
    tags: list[str] | None = None
    worker_id: str = ""
    error: str = ""

    def document(self) -> dict[str, Any]:
        """Return the run as a status document has it."""
        return {
            "name": self.name,
            "dagRunId": self.dag_run_id,
            "status": int(self.status),
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "queuedAt": self.queued_at,
            "params": self.params or "",
            "labels": self.labels or self.tags or [],
            "workerId": self.worker_id,
            "error": self.error,
        }


class Details(Summary, frozen=True, kw_only=True, rename="camel"):
    """A run whole."""

    attempt_id: str = ""
    log: str = ""
    nodes: list[Node] | None = None
    on_init: Node | None = None
    on_success: Node | None = None
    on_failure: Node | None = None
    on_abort: Node | None = None
    on_wait: Node | None = None
    on_exit: Node | None = None

    @property
    def mark(self) -> tuple[str, ...]:
        """Return what differs between one attempt of a run and the next."""
        return (self.attempt_id, self.queued_at, self.started_at, self.finished_at, str(int(self.status)))

    def handlers(self) -> Iterator[tuple[str, Node]]:
        """Yield the handlers that the run has, by their key."""
        found = (self.on_init, self.on_success, self.on_failure, self.on_abort, self.on_wait, self.on_exit)
        yield from ((key, node) for key, node in zip(HANDLERS, found, strict=True) if node is not None)

    def whole(self, server: ServerUrl) -> dict[str, Any]:
        """Return the run as its status document."""
        return {
            **self.document(),
            "attemptId": self.attempt_id,
            "log": _whole(self.log, server),
            "nodes": [node.document(server) for node in self.nodes or ()],
            **{key: node.document(server) for key, node in self.handlers()},
        }


class RunPage(Struct, frozen=True, rename={"details": "dagRunDetails"}):
    """`GET /dag-runs/{name}/{dagRunId}`."""

    details: Details


class RunList(Struct, frozen=True, rename="camel"):
    """`GET /dag-runs`."""

    dag_runs: list[Summary] | None = None
    next_cursor: str = ""


class QueueItems(Struct, frozen=True, rename="camel"):
    """`GET /queues/{name}/items`."""

    items: list[Summary] | None = None
    next_cursor: str = ""


class Named(Struct, frozen=True):
    """A definition's name."""

    name: str = ""


class DagPage(Struct, frozen=True):
    """`GET /dags/{fileName}`; no `dag` when it does not load."""

    dag: Named | None = None


class DagFile(Struct, frozen=True, rename="camel"):
    """A definition of a list."""

    file_name: str
    dag: Named | None = None


class DagList(Struct, frozen=True):
    """`GET /dags`."""

    dags: list[DagFile] | None = None


class Started(Struct, frozen=True, rename="camel"):
    """A run that was started or queued."""

    dag_run_id: str
    queued: bool = False


class Log(Struct, frozen=True, rename="camel"):
    """Some lines of a log."""

    content: str = ""
    line_count: Many = 0
    total_lines: Many = 0


class Health(Struct, frozen=True):
    """`GET /health`."""

    status: str
    version: str = ""


class User(Struct, frozen=True):
    """Somebody."""

    username: str
    role: str = ""


class Me(Struct, frozen=True):
    """`GET /auth/me`."""

    user: User


def given(**values: Any) -> Mapping[str, Any]:
    """Return a body of what is not empty: a server may not know every key."""
    return {key: value for key, value in values.items() if value not in ("", None, False, [], ())}


def _whole(path: str, server: ServerUrl) -> str:
    return f"{server.origin}{path}" if path.startswith(f"{server.path}/") else path  # Dagu's are files of its host
