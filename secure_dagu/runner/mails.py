"""Mails about a run: which are due, what they say, and their sending (workflow language, section 3.20).

A mail that cannot be sent is a line of the run's log, never a failure of the run.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgspec import Struct

from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import SecureDaguError
from secure_dagu.run.machine import HANDLER_NODES, NodeState, RunState
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.runner import smtp
from secure_dagu.runner.executors.options import Options

if TYPE_CHECKING:
    from secure_dagu.runner.graph import Graph

_DUE = {
    RunStatus.FAILED: ("failure", "error_mail"),
    RunStatus.REJECTED: ("failure", "error_mail"),
    RunStatus.SUCCEEDED: ("success", "info_mail"),
    RunStatus.PARTIALLY_SUCCEEDED: ("success", "info_mail"),
    RunStatus.WAITING: ("wait", "wait_mail"),
}
"""What a run amounts to → the key of `mail_on` that asks for a mail, and whose addresses it has."""
MAX_ROWS = 1000
MAX_CELL = 2000
"""Characters of one cell: an error may be long, and a mail is read by people."""


class Row(Struct, frozen=True, kw_only=True):
    """One node in the table."""

    name: str
    started_at: datetime | None
    finished_at: datetime | None
    status: str
    command: str
    error: str


async def run_ended(run: Graph, state: RunState, scope: Scope) -> None:
    """Send the mail that the DAG wants for how its run ended, if any."""
    word, which = _DUE.get(state.status, ("", ""))
    if state.status is RunStatus.FAILED and state.is_retried:
        return  # not the last try
    if run.dag.mail_on.get(word):
        await _send(run, state, scope, which, state.status.word)


async def step_failed(run: Graph, state: RunState, scope: Scope) -> None:
    """Send the error mail of a step with `mail_on_error`."""
    await _send(run, state, scope, "error_mail", RunStatus.FAILED.word)


async def _send(run: Graph, state: RunState, scope: Scope, which: str, status: str) -> None:
    task = run.request.task
    url = page_of(run.request.public_url, run=task.run, root=task.root)
    try:
        settings = Options(resolve_tree(run.dag.mails.get(which, {}), scope, FieldMode.FIELD), name=which)
        server = smtp.read_smtp(resolve_tree(run.dag.step_defaults.get("smtp", {}), scope, FieldMode.FIELD))
        mail = smtp.message(
            sender=settings.text("from"),
            to=smtp.recipients(settings.any("to")),
            subject=subject(settings.text("prefix"), run.dag.name, status),
            body=run.masker.text(body(run.dag.name, task.run.run_id, status, _rows(run, state), url=url)),
            is_html=True,
            attachments=_logs(run, state) if settings.boolean("attach_logs") else (),
        )
        await smtp.send(server, mail)
    except SecureDaguError as error:
        run.log("ERROR", "Mail not sent", mail=which, err=run.masker.text(str(error)))
    except OSError as error:
        run.log("ERROR", "Mail not sent", mail=which, err=error.strerror or "input or output failed")
    else:
        run.log("INFO", "Mail sent", mail=which)


def subject(prefix: str, dag: str, status: str) -> str:
    """Return the subject of a mail about a run."""
    return f"{prefix} {dag} ({status})".strip()


def page_of(public_url: str, *, run: DagRunRef, root: DagRunRef) -> str:
    """Return where people find a run in the Web UI; empty where nobody said under which URL that is."""
    if not public_url:
        return ""
    page = f"{public_url}/dag-runs/{quote(root.name, safe='')}/{quote(root.run_id, safe='')}"
    return page if run == root else f"{page}?child={quote(run.run_id, safe='')}"


def body(dag: str, run_id: str, status: str, rows: Sequence[Row], *, url: str = "") -> str:
    """Return the HTML text: what the run is, where its page is, and a table of its nodes."""
    name = f'<a href="{html.escape(url)}">{_cell(run_id)}</a>' if url else _cell(run_id)
    head = "".join(f"<th>{title}</th>" for title in ("#", "Name", "Started", "Finished", "Status", "Command", "Error"))
    lines = [
        "<tr>" + "".join(f"<td>{_cell(text)}</td>" for text in _texts(number, row)) + "</tr>"
        for number, row in enumerate(rows[:MAX_ROWS], start=1)
    ]
    if len(rows) > MAX_ROWS:
        lines.append(f'<tr><td colspan="7">… and {len(rows) - MAX_ROWS} more</td></tr>')
    style = "table{border-collapse:collapse}td,th{border:1px solid #999;padding:4px 8px;text-align:left}"
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><style>{style}</style></head><body>\n'
        f"<p><b>{_cell(dag)}</b> {_cell(status)}<br>run {name}</p>\n"
        f"<table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>\n</body></html>\n"
    )


def _texts(number: int, row: Row) -> tuple[str, ...]:
    times = (at.strftime("%Y-%m-%d %H:%M:%SZ") if at else "" for at in (row.started_at, row.finished_at))
    return (str(number), row.name, *times, row.status, row.command, row.error)


def _cell(text: str) -> str:
    short = text if len(text) <= MAX_CELL else text[:MAX_CELL] + "…"
    return html.escape(short).replace("\n", "<br>")


def _rows(run: Graph, state: RunState) -> list[Row]:
    pairs = [(step.name, step, node) for step, node in zip(run.plan.steps, state.nodes, strict=True)]
    for name, node in state.handlers.items():
        pairs.append((HANDLER_NODES[name], run.plan.handlers[name], node))
    return [
        Row(
            name=name,
            started_at=node.started_at,
            finished_at=node.finished_at,
            status=node.status.word,
            command=_command(step.commands or ((step.kind,) if step.kind != "script" else ()), node),
            error=node.error,
        )
        for name, step, node in pairs
    ]


def _command(authored: Sequence[str], node: NodeState) -> str:
    """Return what ran, as the status shows it; the text of a script is shown nowhere."""
    shown: Any = (node.shown or {}).get("commands")
    if isinstance(shown, list):
        return "\n".join(str(entry.get("cmdWithArgs", "")) for entry in shown if isinstance(entry, Mapping))
    return "\n".join(authored)


def _logs(run: Graph, state: RunState) -> list[smtp.Attachment]:
    """Return the log files of the nodes, in order, as far as a mail can carry them."""
    names = [(step.name, step) for step in run.plan.steps]
    names += [(HANDLER_NODES[name], run.plan.handlers[name]) for name in state.handlers]
    paths: dict[Path, None] = {}
    for name, step in names:
        logs = run.log_paths(name, step)
        paths |= dict.fromkeys((logs.stdout, logs.stderr))
    found, left = [], smtp.MAX_ATTACHED
    for path in paths:
        if not path.is_file() or not 0 < path.stat().st_size <= left:
            continue
        data = path.read_bytes()[:left]
        left -= len(data)
        found.append(smtp.Attachment(name=path.name, data=data, is_text=True))
    return found
