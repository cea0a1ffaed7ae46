"""Delete old runs with everything that they left (workflow language, section 3.22)."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from secure_dagu.dag.model import Dag
from secure_dagu.errors import Unavailable
from secure_dagu.local.places import Places
from secure_dagu.run.model import RunStatus
from secure_dagu.store.records import Record

_RUN_FOLDER = re.compile(r"dag-run_\d{8}_\d{6}Z_(.+)")


def clean(places: Places, dag: Dag, *, keep: Record) -> None:
    """Delete what the DAG's retention no longer holds; a run that is active, and `keep`, stay."""
    for record in old_runs(places, dag):
        if record.path != keep.path and not is_active(record):
            with contextlib.suppress(Unavailable):  # the next run's end tries again
                delete(places, record)


def old_runs(places: Places, dag: Dag) -> Iterator[Record]:
    """Yield runs that are past the DAG's retention."""
    if dag.retention_runs:
        yield from islice(places.records.runs(dag.name), dag.retention_runs, None)
    else:
        yield from places.records.runs(dag.name, until=datetime.now(UTC) - timedelta(days=dag.retention_days))


def is_active(record: Record) -> bool:
    """Tell whether a run is queued, waits, or is being executed."""
    attempt = record.latest()
    if attempt is None:
        return False
    status = attempt.status().get("status")
    return attempt.is_alive() or status in (RunStatus.QUEUED, RunStatus.WAITING)


def delete(places: Places, record: Record) -> None:
    """Delete a run: logs, artifacts, working directory, record; those of its children too.

    Raises:
        Unavailable: its record is still there.
    """
    run = record.run
    for attempt in (*record.attempts(), *(one for child in record.children() for one in _attempts(record, child))):
        document = attempt.status()
        _remove_run_folder(document.get("archiveDir"), document)
        log = document.get("log")
        _remove_run_folder(str(Path(log).parent) if isinstance(log, str) else None, document)
    shutil.rmtree(places.work_folder(run=run, root=run).parent, ignore_errors=True)
    places.records.remove(record)
    if record.path.exists():
        raise Unavailable(
            f"dag-run {run.run_id} cannot be deleted", why=f"the system does not let {record.path} go",
            fix="look at the disk and the rights of paths.data_dir",
        )  # fmt: skip


def _attempts(record: Record, child: str) -> list[Any]:
    return Record(record.run, record.path / "sub" / child).attempts()


def _remove_run_folder(path: object, document: dict[str, Any]) -> None:
    """Remove a folder that a record names, if it is called as ours are: a record must not delete anything else."""
    if not isinstance(path, str):
        return
    found = _RUN_FOLDER.fullmatch(Path(path).name)
    if found and found[1] == document.get("dagRunId"):
        shutil.rmtree(path, ignore_errors=True)
