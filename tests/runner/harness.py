"""Runs of real definitions with real processes: what the worker is to the runner, kept small and looked into."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from secure_dagu.dispatch.model import LogStream, Operation, StateEntry, StateRef, StateSource, Task
from secure_dagu.errors import Conflict
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, attempt_key
from secure_dagu.runner.api import ChildRequest, ChildResult, Enqueued, RunFolders, RunRequest
from secure_dagu.runner.runner import execute

DEADLINE_S = 20.0
HOST_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
RUN = DagRunRef("demo", "run-1")


class Seen:
    """An observer that remembers; `when` calls back as soon as a step's log holds some text."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.final_text = ""
        self.sizes: dict[tuple[str, LogStream], int] = {}
        self.logs: dict[str, bytes] = {}
        self.lines: list[tuple[str, str, dict[str, str]]] = []
        self._awaited: list[tuple[str, bytes, Callable[[], None]]] = []

    def when(self, step: str, text: bytes, then: Callable[[], None]) -> None:
        self._awaited.append((step, text, then))

    def status_changed(self, document: str, *, final: bool = False) -> None:
        assert not self.final_text, "the final document is the last"
        self.documents.append(json.loads(document))
        if final:
            self.final_text = document

    def log_written(self, step: str, stream: LogStream, path: Path, size: int) -> None:
        assert path.stat().st_size == size
        assert size > self.sizes.get((step, stream), 0), "a stream only grows"
        self.sizes[step, stream] = size
        for waiting in list(self._awaited):
            if waiting[0] == step and waiting[1] in path.read_bytes():
                self._awaited.remove(waiting)
                waiting[2]()

    def line_logged(self, level: str, message: str, fields: Mapping[str, str]) -> None:
        self.lines.append((level, message, dict(fields)))

    @property
    def final(self) -> dict[str, Any]:
        assert self.final_text, "the run has ended"
        return dict(self.documents[-1])

    @property
    def status(self) -> RunStatus:
        return RunStatus(self.final["status"])

    def nodes(self) -> dict[str, str]:
        """Return the status word of each step, and of each handler that ran."""
        idle = {key for key, value in self.final.items() if key.startswith("on") and not value["status"]}
        return {name: str(node["word"]) for name, node in self.details().items() if name not in idle}

    def details(self) -> dict[str, dict[str, Any]]:
        found = {node["step"]["name"]: node for node in self.final["nodes"]}
        found |= {key: value for key, value in self.final.items() if key.startswith("on")}
        return {name: {**node, "word": WORDS[node["status"]]} for name, node in found.items()}

    def out(self, step: str) -> str:
        return self.logs[f"{step}.stdout.log"].decode()


WORDS = (
    "not_started", "running", "failed", "aborted", "succeeded", "skipped", "partially_succeeded", "waiting", "rejected",
    "retrying",
)  # fmt: skip


class Children:
    """Implements `ChildRuns`: children end as told, definitions and secrets are in dictionaries."""

    def __init__(self, *, secrets: Mapping[str, str] | None = None, texts: Mapping[str, str] | None = None) -> None:
        self.requests: list[ChildRequest] = []
        self.cancelled: list[str] = []
        self.enqueued: list[ChildRequest] = []
        self.state: dict[StateRef, StateEntry] = {}
        self.end: Callable[[ChildRequest], ChildResult] = lambda request: child_result(RunStatus.SUCCEEDED)
        self.holds = False
        """True: children run until they are cancelled."""
        self.started = asyncio.Event()
        self._secrets = secrets or {}
        self._texts = texts or {}

    async def run(self, request: ChildRequest) -> ChildResult:
        self.requests.append(request)
        self.started.set()
        if self.holds:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(request.run_id)
                raise
        return self.end(request)

    async def enqueue(self, request: ChildRequest, *, queue: str) -> Enqueued:
        known = any(known.run_id == request.run_id for known in self.enqueued)
        self.enqueued.append(request)
        return Enqueued(queue=queue or request.dag, already_exists=known)

    async def get_state(self, ref: StateRef) -> StateEntry | None:
        return self.state.get(ref)

    async def put_state(
        self, ref: StateRef, value: bytes, *, expected_version: int | None, create_only: bool, updated_by: StateSource
    ) -> StateEntry:
        before = self.state.get(ref)
        if (create_only and before) or expected_version not in (None, before.version if before else 0):
            raise Conflict("dag state: conflict")
        entry = StateEntry(
            ref=ref, value=value, version=before.version + 1 if before else 1, hash=sha256(value).hexdigest(),
            created_at_ns=before.created_at_ns if before else 1, updated_at_ns=2, updated_by=updated_by,
        )  # fmt: skip
        self.state[ref] = entry
        return entry

    async def delete_state(self, ref: StateRef) -> bool:
        return self.state.pop(ref, None) is not None

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        found = [
            entry
            for ref, entry in sorted(self.state.items(), key=lambda item: item[0].key)
            if (ref.scope, ref.namespace) == (scope, namespace) and ref.key.startswith(prefix)
        ]
        return found[: limit or None]

    async def dag_text(self, name: str) -> str | None:
        return self._texts.get(name)

    async def resolve_secret(self, *, name: str, ref: str) -> str:
        return self._secrets[ref]


def child_result(status: RunStatus, **outputs: str) -> ChildResult:
    variables = {name: f"{name}={value}" for name, value in outputs.items()}
    node = {"step": {"name": "s"}, "status": 4, "outputVariables": variables}
    return ChildResult(status=status, document=json.dumps({"status": int(status), "nodes": [node]}))


def make_request(text: str, base: Path, *, host_env: Mapping[str, str] | None = None, **changes: Any) -> RunRequest:
    attempt = AttemptId(changes.pop("attempt", "a1"))
    key = attempt_key(root=RUN, run=RUN, attempt_id=attempt)
    bundle = changes.pop("archive", None)
    process_env = changes.pop("process_env", {})
    public_url = changes.pop("public_url", "")
    values: dict[str, Any] = {"operation": Operation.START, "run": RUN, "root": RUN, "definition": text}
    task = Task(**{**values, "attempt_id": attempt, "attempt_key": key, **changes})
    folders = RunFolders(logs=base / "logs", work=base / "work", artifacts=base / "artifacts")
    for folder in (folders.logs, folders.work, folders.artifacts):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return RunRequest(
        task=task,
        attempt_id=attempt,
        attempt_key=key,
        claim_key=key,
        worker="w1",
        folders=folders,
        host_env=HOST_ENV if host_env is None else host_env,
        default_shell="sh",
        bundle=bundle,
        process_env=process_env,
        public_url=public_url,
    )


async def run(
    text: str,
    base: Path,
    *,
    seen: Seen | None = None,
    children: Children | None = None,
    stop: asyncio.Event | None = None,
    **changes: Any,
) -> Seen:
    """Execute a definition to its end."""
    seen = seen or Seen()
    request = make_request(text, base, **changes)
    async with asyncio.timeout(DEADLINE_S):
        await execute(request, seen, children or Children(), stop=stop or asyncio.Event())
    seen.logs = {path.name: path.read_bytes() for path in request.folders.logs.glob("*.log")}
    return seen


async def run_and_stop(text: str, base: Path, *, step: str = "a", ready: bytes = b"ready", **changes: Any) -> Seen:
    """Execute a definition and stop it as soon as `step` has written `ready`."""
    seen, stop = Seen(), asyncio.Event()
    seen.when(step, ready, stop.set)
    return await run(text, base, seen=seen, stop=stop, **changes)


def alive(pid: int) -> bool:
    """Tell whether a process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_in(path: Path) -> int:
    return int(path.read_text())
