"""`secure-dagu rm`: remove the history of a workflow, its definition, or both; or its runs at a coordinator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.cli import output, remote
from secure_dagu.errors import Conflict, InvalidRequest, NotFound, Unavailable, UnknownCall

if TYPE_CHECKING:
    from secure_dagu.dispatch.api import Coordinator
    from secure_dagu.dispatch.model import Caller
    from secure_dagu.local.places import Places
    from secure_dagu.run.model import DagRunRef
    from secure_dagu.store.records import Record

PAGE = 500

SUMMARY = "Remove the history of a workflow, its definition, or both; where a coordinator is named, its runs there."
EXAMPLE = "secure-dagu rm etl --history --older-than 30d --dry-run"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", nargs="*", help="a workflow: its name, its file's name, or a path")
    parser.add_argument("-H", "--history", action="store_true", help="its runs, with logs, artifacts and work")
    parser.add_argument("-d", "--definition", action="store_true", help="its file")
    parser.add_argument("-t", "--older-than", metavar="10d|24h|1w", default="", help="only runs older than this")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    remote.add_flags(parser, json_output=False)


async def run(args: argparse.Namespace) -> int:
    """Ask, then remove."""
    if len(args.dag) != 1:
        raise InvalidRequest(f"accepts 1 arg(s), received {len(args.dag)}")
    if not args.history and not args.definition:
        raise InvalidRequest("at least one of --history (-H) or --definition (-d) is required")
    from secure_dagu.cli.history import span

    if args.older_than and not args.history:
        raise InvalidRequest("--older-than requires --history")
    age = span(args.older_than, "--older-than") if args.older_than else None
    return await remove(args, args.dag[0], age=age, older_than=args.older_than)


async def remove(args: argparse.Namespace, word: str, *, age: timedelta | None, older_than: str) -> int:
    """Remove what `args` names; `age` limits it to older runs, `older_than` says so to the person.

    Raises:
        NotFound: there is no such workflow.
        Conflict: the definition of a DAG with active runs was to be removed.
        InvalidRequest: a coordinator is named, and the definition was to be removed.
    """
    from secure_dagu.cli import status, workflow

    places = workflow.places_of(workflow.settings_of(args))
    if status.names_coordinator(args):
        if args.definition:
            raise InvalidRequest("--definition is about this host", fix="leave out the flags of a coordinator")
        return await _remove_there(args, workflow.dag_name(word, places), places, age=age, older_than=older_than)
    return _remove_here(args, word, places, age=age, older_than=older_than)


def _remove_here(args: argparse.Namespace, word: str, places: Places, *, age: timedelta | None, older_than: str) -> int:
    from secure_dagu.cli import workflow
    from secure_dagu.local import definitions, retention

    path = definitions.find(word, places.dags_dir)
    name = workflow.dag_name(word, places)
    runs = list(places.records.runs(name))
    if path is None and (args.definition or not runs):
        raise NotFound(
            f'DAG "{name}" not found', why=f"there is no file {definitions.candidate(word, places.dags_dir)}"
        )
    if args.definition and any(retention.is_active(record) for record in runs):
        raise Conflict(f'cannot delete the definition of DAG "{name}"', why="it has active runs", fix="stop them first")
    if args.dry_run:
        old = _old(places, name, age)
        _tell(name, [record.run for record in old] if args.history else None, path if args.definition else None)
        return 0
    if not args.force and not _agrees(args, name, path, older_than):
        print("Cancelled.")
        return 0
    if args.history:
        old = _old(places, name, age)
        for record in old:
            retention.delete(places, record)
        if not args.quiet:
            print(f'Deleted {len(old)} run(s) for DAG "{name}".')
    if args.definition and path is not None:
        try:
            path.unlink()
        except OSError as error:
            raise Unavailable(f"{path} cannot be removed", why=str(error.strerror)) from error
        if not args.quiet:
            print(f'Deleted the definition of DAG "{name}".')
    return 0


async def _remove_there(
    args: argparse.Namespace, name: str, places: Places, *, age: timedelta | None, older_than: str
) -> int:
    """Remove runs of a DAG at the coordinator, and what is kept of them here for retries."""
    from secure_dagu.local import retention

    async with remote.connect(args) as (coordinator, caller):
        runs = await _finished(coordinator, caller, name, age)
        if args.dry_run:
            _tell(name, runs, None)
            return 0
        if not args.force and not _agrees(args, name, None, older_than, where=" at the coordinator"):
            print("Cancelled.")
            return 0
        deleted = 0
        for run in runs:
            try:
                await coordinator.delete_run(caller, run=run)
                deleted += 1
            except UnknownCall:
                raise
            except (NotFound, Conflict) as error:  # it was deleted or retried meanwhile
                output.say(output.visible(f"{run.run_id} was left: {error}"))
                continue
            kept = places.records.find_any(run)
            if kept is not None and kept.latest() is None:
                retention.delete(places, kept)
    if not args.quiet:
        print(f'Deleted {deleted} run(s) for DAG "{name}" at the coordinator.')
    return 0


async def _finished(coordinator: Coordinator, caller: Caller, name: str, age: timedelta | None) -> list[DagRunRef]:
    """Return the runs at a coordinator that are to be removed, newest first."""
    from secure_dagu.dispatch.operating import RunFilter
    from secure_dagu.run.model import DagRunRef, RunStatus

    over = frozenset(status for status in RunStatus if status.is_terminal)
    wanted = RunFilter(name=name, statuses=over, until=datetime.now(UTC) - age if age else None)
    found: list[DagRunRef] = []
    before: tuple[int, str] | None = None
    while page := await coordinator.find_runs(caller, wanted, limit=PAGE, before=before):
        found += [DagRunRef(name, run.ident.partition("/")[2]) for run in page]
        before = page[-1].at, page[-1].ident
    return found


def _old(places: Places, name: str, age: timedelta | None) -> list[Record]:
    """Return the runs that are to be removed: no active one, and only those that are old enough."""
    from secure_dagu.local import retention

    until = datetime.now(UTC) - age if age else None
    found = (record for record in places.records.runs(name, until=until) if record.latest() is not None)
    return [record for record in found if not retention.is_active(record)]


def _tell(name: str, runs: Sequence[DagRunRef] | None, path: Path | None) -> None:
    if runs is not None:
        print(f'Dry run: Would delete {len(runs)} run(s) for DAG "{name}":')
        for run in runs:
            print(f"  - {run.run_id}")
    if path is not None:
        print(f'Dry run: Would delete the definition of DAG "{name}":\n  - {path}')


def _agrees(args: argparse.Namespace, name: str, path: Path | None, older_than: str, *, where: str = "") -> bool:
    """Say what will be removed and ask; no answer means no."""
    if args.history:
        what = f"history older than {older_than}" if older_than else "all history"
        print(f'This will delete {what} for DAG "{name}"{where}.\nActive runs will be preserved.')
    if args.definition:
        print(f'This will delete the definition of DAG "{name}": {path}')
    print("Continue? [y/N]: ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
