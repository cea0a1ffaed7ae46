"""`secure-dagu ls`: the workflows in the directory of workflows, and how they did."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from secure_dagu.local.places import Places

SUMMARY = "List the workflows in the directory of workflows."
EXAMPLE = "secure-dagu ls --last --sort-last 'etl*'"
HISTORY = 5


class Row(NamedTuple):
    """One workflow."""

    name: str
    path: Path
    runs: tuple[dict[str, Any], ...]
    """Its newest runs, newest first."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="", help="part of the name, or a glob")
    parser.add_argument("-n", "--next", action="store_true", help="when its schedule starts it next")
    parser.add_argument("-l", "--last", action="store_true", help="status and start of its newest run")
    parser.add_argument("-H", "--history", action="store_true", help=f"statuses of its last {HISTORY} runs")
    parser.add_argument("-t", "--sort-last", action="store_true", help="the one that ran last first")
    parser.add_argument("-r", "--reverse", action="store_true", help="the other way round")


async def run(args: argparse.Namespace) -> int:
    """Print them."""
    from secure_dagu.cli import workflow
    from secure_dagu.cli.text import safe, table

    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    count = HISTORY if args.history else 1 if args.last or args.sort_last else 0
    rows = [row for row in _rows(places, count) if _is_meant(row.name, args.pattern)]
    if args.sort_last:
        rows.sort(key=lambda row: _started(row.runs), reverse=True)
    if args.reverse:
        rows.reverse()
    if not rows:
        print("No DAGs found")
        return 0
    header = ["NAME"]
    header += ["NEXT_RUN"] if args.next else []
    header += ["LAST_STATUS", "LAST_STARTED"] if args.last else []
    header += ["HISTORY"] if args.history else []
    cells = [header]
    for row in rows:
        line = [safe(row.name)]
        line += [_next(row.path, places, loaded.settings.core.tz)] if args.next else []
        line += [_status(row.runs[0]) if row.runs else "-", _started(row.runs) or "-"] if args.last else []
        line += [",".join(map(_status, row.runs)) or "-"] if args.history else []
        cells.append(line)
    print("\n".join(table(cells)))
    return 0


def _rows(places: Places, count: int) -> Iterator[Row]:
    """Yield all workflows by name, each with its `count` newest runs."""
    from secure_dagu.local import definitions, history

    found: dict[str, Path] = {}
    for path in definitions.files(places.dags_dir):
        found.setdefault(history.name_in(path, base_config=places.base_config), path)
    for name, path in sorted(found.items()):
        yield Row(name=name, path=path, runs=tuple(history.latest(places.records, name, count=count)))


def _is_meant(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    if any(char in pattern for char in "*?["):
        return fnmatchcase(name.lower(), pattern.lower())
    return pattern.lower() in name.lower()


def _status(document: dict[str, Any]) -> str:
    from secure_dagu.run.model import RunStatus

    return RunStatus(document.get("status") or 0).word


def _started(runs: tuple[dict[str, Any], ...]) -> str:
    from secure_dagu.cli.text import moment

    began = moment(runs[0].get("startedAt")) if runs else None
    return f"{began:%Y-%m-%dT%H:%M:%SZ}" if began else ""


def _next(path: Path, places: Places, tz: str) -> str:
    """Return when the schedule of a workflow starts it next, in UTC; `-` when it never does, or does not load."""
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    from secure_dagu.dag.load import load_definition
    from secure_dagu.dag.schedule import next_start
    from secure_dagu.errors import DefinitionError
    from secure_dagu.local import definitions
    from secure_dagu.runner.files import schema_reader

    try:
        text = definitions.read(path)
        if "schedule" not in text + places.base_config:
            return "-"
        reader = schema_reader(path.parent, Path.cwd())
        loaded = load_definition(text, file=str(path), base_config=places.base_config, read_schema=reader)
    except DefinitionError:
        return "-"
    schedule = loaded.main.schedule
    now = datetime.now(UTC)
    found = next_start(schedule, now, ZoneInfo(tz) if tz else now.astimezone().tzinfo or UTC)
    return f"{found:%Y-%m-%dT%H:%M:%SZ}" if found else "-"
