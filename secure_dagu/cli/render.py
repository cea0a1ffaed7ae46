"""Turn status documents and run events into text for people and into our stable JSON. No input or output here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from secure_dagu.cli.text import duration, moment, safe, table
from secure_dagu.cli.tree import HANDLERS
from secure_dagu.dispatch.model import LogPart, LogStream, RunEvent, RunSummary, WorkerHealth, WorkerInfo
from secure_dagu.dispatch.operating import WorkerView
from secure_dagu.run.model import RunStatus, StepStatus

_MARKS = {
    StepStatus.SUCCEEDED: "✓",
    StepStatus.PARTIALLY_SUCCEEDED: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.REJECTED: "✗",
    StepStatus.ABORTED: "■",
    StepStatus.SKIPPED: "↷",
    StepStatus.RUNNING: "▶",
    StepStatus.RETRYING: "↻",
    StepStatus.WAITING: "…",
}


def nodes(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a status document in definition order, then the handlers that it has."""
    yield from document.get("nodes") or ()
    for name in HANDLERS:
        if document.get(name):
            yield document[name]


def run_as_json(text: str) -> dict[str, Any]:
    """Return our stable shape of a run: statuses as words, no paths of other hosts, no step internals."""
    document = json.loads(text)
    return {
        "name": document["name"],
        "runId": document["dagRunId"],
        "attemptId": document.get("attemptId", ""),
        "status": RunStatus(document["status"]).word,
        "worker": document.get("workerId", ""),
        "params": document.get("params", ""),
        "startedAt": document.get("startedAt", ""),
        "finishedAt": document.get("finishedAt", ""),
        "error": document.get("error", ""),
        "warnings": document.get("warnings") or [],
        "steps": [
            {
                "name": node["step"]["name"],
                "status": StepStatus(node["status"]).word,
                "startedAt": (node.get("startedAt") or "").strip("-"),
                "finishedAt": (node.get("finishedAt") or "").strip("-"),
                "retries": node.get("retryCount", 0),
                "error": node.get("error", ""),
                "output": node.get("outputValue", ""),
            }
            for node in nodes(document)
        ],
    }


def run_tree(text: str) -> Iterator[str]:
    """Yield the summary tree of a run (command-line reference, section 2), without the streams' texts."""
    document = json.loads(text)
    status = RunStatus(document["status"])
    start, end = moment(document.get("startedAt", "")), moment(document.get("finishedAt", ""))
    yield f"{status.title} - {document.get('startedAt', '') or 'not started'}"
    yield ""
    took = duration(start, end) if status is not RunStatus.NOT_STARTED else ""
    yield f"dag: {safe(document['name'])}" + (f" ({took})" if took else "")
    yield f"├─run: {safe(document['dagRunId'])}"
    if document.get("workerId"):
        yield f"├─worker: {safe(document['workerId'])}"
    for warning in document.get("warnings") or ():
        yield f"├─warning: {safe(warning)}"
    yield "│"
    shown = list(nodes(document))
    for index, node in enumerate(shown):
        last = index == len(shown) - 1
        yield from _node_lines(node, branch="└─" if last else "├─", stem="  " if last else "│ ")
    yield ""
    if document.get("error"):
        yield f"Error: {safe(document['error'])}"
    word = "Result" if status.is_terminal else "Status"
    yield f"{word}: {status.title}"


def _node_lines(node: Mapping[str, Any], *, branch: str, stem: str) -> Iterator[str]:
    status = StepStatus(node["status"])
    line = branch + safe(node["step"]["name"])
    took = duration(moment(node.get("startedAt", "")), moment(node.get("finishedAt", "")))
    if status is not StepStatus.NOT_STARTED:
        line += (f" ({took})" if took else "") + f" [{status.word}]"
    yield line
    for child in node.get("children") or ():
        params = f" [{safe(child['params'])}]" if child.get("params") else ""
        yield f"{stem}├─subdag: {safe(child['dagRunId'])}{params}"
    if node.get("error"):
        yield f"{stem}└─error: {safe(node['error'])}"


class Follower:
    """Turn the events of a run into lines: a step's start and end, and every line it writes, as they come."""

    def __init__(self) -> None:
        self._seen: dict[str, StepStatus] = {}
        self._partial: dict[tuple[str, LogStream], bytes] = {}
        self._warned: set[str] = set()
        self.document = ""

    def lines(self, event: RunEvent) -> Iterator[str]:
        """Yield the lines that this event adds."""
        if event.log is not None:
            yield from self._log_lines(event.log)
        if event.status:
            self.document = event.status
            yield from self._status_lines(json.loads(event.status))

    def _log_lines(self, part: LogPart) -> Iterator[str]:
        if part.stream is LogStream.SCHEDULER:
            return
        key = (part.step, part.stream)
        *whole, rest = (self._partial.get(key, b"") + part.data).split(b"\n")
        if part.is_final and rest:
            whole, rest = [*whole, rest], b""
        self._partial[key] = rest
        mark = "!" if part.stream is LogStream.STDERR else "│"
        for line in whole:
            yield f"    {safe(part.step)} {mark} {safe(line.decode(errors='replace').rstrip(chr(13)))}"

    def _status_lines(self, document: Mapping[str, Any]) -> Iterator[str]:
        for warning in document.get("warnings") or ():
            if warning not in self._warned:
                self._warned.add(warning)
                yield f"  ! {safe(warning)}"
        for node in nodes(document):
            name, status = node["step"]["name"], StepStatus(node["status"])
            before = self._seen.get(name, StepStatus.NOT_STARTED)
            if status is before:
                continue
            self._seen[name] = status
            if before is StepStatus.NOT_STARTED and status.is_terminal and node.get("startedAt") not in (None, "", "-"):
                yield f"  ▶ {safe(name)}"
            error = f": {safe(node['error'])}" if node.get("error") else ""
            word = "" if status is StepStatus.RUNNING else f" {status.word}"
            yield f"  {_MARKS.get(status, ' ')} {safe(name)}{word}{error}"


def workers_table(workers: Sequence[WorkerView]) -> Iterator[str]:
    """Yield the table of workers."""
    rows = [
        (
            "WORKER", "STATE", "HEALTH", "BUSY", "SLOTS", "LABELS", "LAST SEEN (UTC)", "ADDRESS", "TLS",
            "CERTIFICATE UNTIL", "VERSION",
        )
    ]  # fmt: skip
    rows += [
        (
            safe(item.info.worker),
            "lost" if item.is_lost else item.state.value,
            item.info.health.name.lower(),
            str(item.info.stats.busy_pollers),
            str(item.info.stats.total_pollers),
            safe(",".join(f"{key}={value}" for key, value in sorted(item.info.labels.items()))) or "-",
            f"{item.info.last_heartbeat_at:%Y-%m-%d %H:%M:%S}",
            safe(item.remote_address) or "-",
            safe(item.tls_version) or "-",
            f"{item.cert_not_after:%Y-%m-%d %H:%M}" if item.cert_not_after else "-",
            safe(item.version) or "-",
        )
        for item in sorted(workers, key=lambda item: item.info.worker)
    ]
    yield from table(rows)


def workers_as_json(workers: Sequence[WorkerView]) -> list[dict[str, Any]]:
    """Return the stable shape of the worker list."""
    return [
        {
            **_worker_as_json(item.info),
            "state": item.state.value,
            "lost": item.is_lost,
            "identity": item.identity,
            "serial": item.serial,
            "issuer": item.issuer,
            "certNotAfter": _iso(item.cert_not_after),
            "tlsVersion": item.tls_version,
            "cipher": item.cipher,
            "group": item.group,
            "remoteAddress": item.remote_address,
            "connectedSince": _iso(item.connected_since),
            "version": item.version,
            "held": item.held_tasks,
        }
        for item in sorted(workers, key=lambda item: item.info.worker)
    ]


def _iso(at: datetime | None) -> str:
    return at.isoformat().replace("+00:00", "Z") if at is not None else ""


def _worker_as_json(item: WorkerInfo) -> dict[str, Any]:
    return {
        "id": item.worker,
        "health": WorkerHealth(item.health).name.lower(),
        "busy": item.stats.busy_pollers,
        "slots": item.stats.total_pollers,
        "labels": dict(item.labels),
        "lastHeartbeatAt": item.last_heartbeat_at.isoformat().replace("+00:00", "Z"),
        "running": [{"name": task.run.name, "runId": task.run.run_id} for task in item.stats.running],
    }


def runs_table(runs: Sequence[RunSummary]) -> Iterator[str]:
    """Yield the table of runs."""
    rows = [("DAG", "RUN ID", "STATUS", "WORKER", "STARTED (UTC)", "DURATION", "ERROR")]
    rows += [
        (
            safe(item.run.name),
            safe(item.run.run_id),
            RunStatus(item.status).title,
            safe(item.worker) or "-",
            f"{item.started_at:%Y-%m-%d %H:%M:%S}" if item.started_at else "-",
            duration(item.started_at, item.finished_at) or "-",
            safe(item.error) or "-",
        )
        for item in runs
    ]
    yield from table(rows)


def runs_as_json(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Return the stable shape of a run list."""

    def text(value: datetime | None) -> str:
        return value.isoformat().replace("+00:00", "Z") if value else ""

    return [
        {
            "name": item.run.name,
            "runId": item.run.run_id,
            "status": RunStatus(item.status).word,
            "worker": item.worker,
            "error": item.error,
            "createdAt": text(item.created_at),
            "startedAt": text(item.started_at),
            "finishedAt": text(item.finished_at),
        }
        for item in runs
    ]
