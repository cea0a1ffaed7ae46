"""Look at the runs of this host: how one stands, which ones match, which processes live."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.errors import Conflict, DefinitionError, Unavailable
from secure_dagu.local import definitions
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus
from secure_dagu.store.records import DAG_NAME, Attempt, Record, Records

GONE = "the process that ran it is gone"
_OWN_NAME = re.compile(r"^(?:[\"']?name[\"']?\s*:|\s*\{)", re.MULTILINE)


def current(record: Record, attempt: Attempt, *, root: Record | None = None) -> dict[str, Any]:
    """Return how an attempt stands; one that is recorded as running and whose process is gone is turned into failed.

    Args:
        record, attempt: the run.
        root: the run whose process executes it, for a child run.
    """
    document = attempt.status()
    if not document:
        return {"name": record.run.name, "dagRunId": record.run.run_id, "status": int(RunStatus.NOT_STARTED)}
    holder = attempt if root is None else root.latest()
    if document.get("status") != RunStatus.RUNNING or holder is None or not (holder.path / "alive").exists():
        return document  # without that file another program runs it, and we cannot tell whether it still does
    if holder.lives_elsewhere():
        return document
    with contextlib.suppress(Conflict, Unavailable, OSError), holder.alive():
        # Nobody runs it, and nobody begins to as long as we hold it. It may have ended since we read.
        document = attempt.status()
        if document.get("status") == RunStatus.RUNNING:
            document = _failed(document)
            attempt.write(json.dumps(document, ensure_ascii=False), final=True)
    return document


def _failed(document: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def ended(node: Mapping[str, Any]) -> dict[str, Any]:
        if node.get("status") != StepStatus.RUNNING:
            return dict(node)
        return {**node, "status": int(StepStatus.FAILED), "finishedAt": now, "error": GONE}

    found = {key: ended(value) for key, value in document.items() if key.startswith("on") and isinstance(value, dict)}
    nodes = [ended(node) for node in document.get("nodes") or () if isinstance(node, dict)]
    error = document.get("error") or GONE
    return {
        **document, **found, "nodes": nodes, "status": int(RunStatus.FAILED), "finishedAt": now, "error": error,
    }  # fmt: skip


def name_of(word: str, dags_dir: Path, *, base_config: str = "") -> str:
    """Return the name of the DAG that a command looks at: what its file says, whether or not the file still loads."""
    path = definitions.find(word, dags_dir)
    if path is None:
        return definitions.stem(Path(word))
    return name_in(path, base_config=base_config)


def name_in(path: Path, *, base_config: str = "") -> str:
    """Return the name of the DAG in a file; loads it only if it has a name of its own."""
    stem = definitions.stem(path)
    try:
        text = definitions.read(path)
        if not _OWN_NAME.search(text):
            return stem
        from secure_dagu.dag.load import load_definition  # a YAML parser is a third of what such a command takes
        from secure_dagu.runner.files import schema_reader

        reader = schema_reader(path.parent, Path.cwd())
        return load_definition(text, file=str(path), base_config=base_config, read_schema=reader).main.name
    except DefinitionError:
        return stem


class Query(Struct, frozen=True, kw_only=True):
    """Which runs are wanted. Empty means any."""

    name: str = ""
    since: datetime | None = None
    until: datetime | None = None
    statuses: frozenset[RunStatus] = frozenset()
    labels: tuple[str, ...] = ()
    """All must hold: `key`, `key=value`, `!key` or `!key=value`."""
    run_id: str = ""
    """Part of the id."""
    limit: int = 100


def find(records: Records, query: Query) -> Iterator[dict[str, Any]]:
    """Yield the status documents of root runs, newest first."""
    left = query.limit
    for record in records.runs(query.name or None, since=query.since, until=query.until):
        if left <= 0:
            return
        if query.run_id not in record.run.run_id:
            continue
        attempt = record.latest()
        if attempt is None:
            continue
        document = current(record, attempt)
        if _matches(document, query):
            left -= 1
            yield document


def _matches(document: Mapping[str, Any], query: Query) -> bool:
    if query.statuses and document.get("status") not in query.statuses:
        return False
    # Old records of Dagu say tags.
    labels = {str(label).lower() for label in document.get("labels") or document.get("tags") or ()}
    keys = {label.partition("=")[0] for label in labels}
    return all(_has(labels, keys, wanted.strip().lower()) for wanted in query.labels)


def _has(labels: set[str], keys: set[str], wanted: str) -> bool:
    if wanted.startswith("!"):
        return not _has(labels, keys, wanted[1:])
    return wanted in labels if "=" in wanted else wanted in keys


def latest(records: Records, name: str, *, count: int) -> Sequence[dict[str, Any]]:
    """Return the newest runs of a DAG; none for a name that no DAG can have."""
    return list(find(records, Query(name=name, limit=count))) if DAG_NAME.match(name) else []


def living(records: Records, *, name: str = "", run_id: str = "") -> Iterator[tuple[Record, Attempt]]:
    """Yield the attempts that a process of this host executes now, newest first."""
    for record in records.runs(name or None):
        if run_id in record.run.run_id and (attempt := record.latest()) is not None and attempt.is_alive():
            yield record, attempt


def child(root: Record, run_id: str) -> tuple[Record, Attempt] | None:
    """Return a child run of `root` at any depth; None when there is none of that id."""
    if run_id not in root.children():
        return None
    record = root.child(DagRunRef(root.run.name, run_id))
    attempt = record.latest()
    return (record, attempt) if attempt is not None else None
