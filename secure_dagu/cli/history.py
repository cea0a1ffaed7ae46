"""`secure-dagu history`: the runs of this host."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import output
from secure_dagu.errors import InvalidRequest

if TYPE_CHECKING:
    from secure_dagu.local.history import Query
    from secure_dagu.run.model import RunStatus

SUMMARY = "List the runs of this host, newest first."
EXAMPLE = "secure-dagu history etl --last 7d --status failed"
HEADER = ("DAG NAME", "RUN ID", "STATUS", "STARTED (UTC)", "DURATION", "PARAMS")
FORMATS = ("table", "json", "csv")
MAX_LIMIT = 1000
DEFAULT_DAYS = 30
_WORDS = (
    "running", "succeeded", "failed", "aborted", "queued", "waiting", "rejected", "not_started", "partially_succeeded",
)  # fmt: skip
_ALIASES = {
    "success": "succeeded",
    "failure": "failed",
    "canceled": "aborted",
    "cancelled": "aborted",
    "cancel": "aborted",
}
STATUSES = dict(zip(_WORDS, _WORDS, strict=True)) | _ALIASES
"""What may be asked for, and the status that it means."""
_SPAN = re.compile(r"([1-9]\d{0,5})([hdw])\Z")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", nargs="?", default="", help="only runs of this one")
    parser.add_argument("-f", "--format", metavar="|".join(FORMATS), default="table", help="how (default table)")
    parser.add_argument("--from", dest="since", metavar="TIME", default="", help="created then or later, in UTC")
    parser.add_argument("--to", dest="until", metavar="TIME", default="", help="created until then; a date is included")
    parser.add_argument("--last", metavar="7d|24h|1w", default="", help="created within this time (default 30d)")
    parser.add_argument("--status", metavar="A,B", default="", help=f"any of these: {', '.join(STATUSES)}")
    parser.add_argument("--labels", "--tags", metavar="X,Y=Z,!W", default="", help="all of these; ! for not")
    parser.add_argument("-r", "--run-id", metavar="PART", default="", help="part of the run's id")
    parser.add_argument("-l", "--limit", metavar="N", default="100", help="at most so many, up to 1000 (default 100)")


async def run(args: argparse.Namespace) -> int:
    """Print them."""
    wanted = query_of(args)
    from msgspec.structs import replace

    from secure_dagu.cli import workflow
    from secure_dagu.local import history

    places = workflow.places_of(workflow.settings_of(args))
    name = workflow.dag_name(args.dag, places) if args.dag else ""
    show(args, list(history.find(places.records, replace(wanted, name=name))))
    return 0


def query_of(args: argparse.Namespace) -> Query:
    """Return what the flags ask for, of any DAG.

    Raises:
        InvalidRequest: a flag has another value than it may.
    """
    if args.format not in FORMATS:
        raise InvalidRequest(f"invalid format '{args.format}'. Valid values: {', '.join(FORMATS)}")
    since, until = _range(args, now=datetime.now(UTC))
    statuses, limit = _statuses(args.status), _limit(args.limit)
    from secure_dagu.local.history import Query

    labels = tuple(label for label in args.labels.split(",") if label.strip())
    return Query(since=since, until=until, statuses=statuses, labels=labels, run_id=args.run_id, limit=limit)


def show(args: argparse.Namespace, found: Sequence[Mapping[str, Any]]) -> None:
    """Print status documents as the flags ask for it."""
    if not found:
        output.say("No DAG runs found matching the specified filters.")
    if args.format == "json":
        print(as_json(found))
    elif args.format == "csv":
        print_csv(found)
    elif found:
        from secure_dagu.cli.text import safe, table

        print("\n".join(table([HEADER, *([safe(cell) for cell in row(document)] for document in found)])))


def _range(args: argparse.Namespace, *, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Return from when until when; the second is exclusive."""
    if args.last:
        if args.since or args.until:
            raise InvalidRequest("cannot use --last with --from or --to (conflicting time range specifications)")
        return now - span(args.last, "--last"), None
    since, until = _time(args.since, "--from"), _time(args.until, "--to")
    if until and re.fullmatch(r"\d{4}-\d{2}-\d{2}", args.until):
        until += timedelta(days=1)
    if since and until and since >= until:
        raise InvalidRequest("--from must be before --to")
    return since if since or until else now - timedelta(days=DEFAULT_DAYS), until


def span(text: str, flag: str) -> timedelta:
    """Return a time span such as `7d`, `24h` or `1w`.

    Raises:
        InvalidRequest: it is none.
    """
    found = _SPAN.match(text)
    if not found:
        raise InvalidRequest(f"invalid {flag} value '{text}': use a number and h, d or w, such as 24h, 7d or 1w")
    return int(found[1]) * _UNITS[found[2]]


def _time(text: str, flag: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"invalid {flag} value '{text}': use YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ") from None


def _statuses(text: str) -> frozenset[RunStatus]:
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in STATUSES:
            raise InvalidRequest(f"invalid status '{word}'. Valid values: {', '.join(STATUSES)}")
    from secure_dagu.run.model import RunStatus

    return frozenset(RunStatus[STATUSES[word].upper()] for word in words)


def _limit(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise InvalidRequest(f"invalid limit '{text}': must be between 1 and {MAX_LIMIT}")
    return int(text)


def row(document: Mapping[str, Any]) -> list[str]:
    """Return the cells of one run."""
    from secure_dagu.cli.text import moment
    from secure_dagu.run.model import RunStatus

    began = moment(document.get("startedAt"))
    return [
        str(document.get("name", "")),
        str(document.get("dagRunId", "")),
        RunStatus(document.get("status") or 0).title,
        f"{began:%Y-%m-%d %H:%M:%S}" if began else "-",
        _duration(document),
        str(document.get("params") or "-"),
    ]


def _duration(document: Mapping[str, Any]) -> str:
    from secure_dagu.cli.text import duration, moment

    began, ended = moment(document.get("startedAt")), moment(document.get("finishedAt"))
    return duration(began, ended) or "-"


def print_csv(documents: Sequence[Mapping[str, Any]]) -> None:
    """Print comma separated values (RFC 4180)."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(row(document) for document in documents)


def as_json(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the array that scripts read; characters that are special in HTML are escaped."""
    import json

    from secure_dagu.cli.text import moment
    from secure_dagu.run.model import RunStatus

    rows = []
    for document in documents:
        times = {key: moment(document.get(key)) for key in ("startedAt", "finishedAt")}
        optional = {
            **{key: f"{at:%Y-%m-%dT%H:%M:%SZ}" for key, at in times.items() if at},
            "duration": _duration(document),
            **{key: document[key] for key in ("params", "labels", "workerId", "error") if document.get(key)},
        }
        status = RunStatus(document.get("status") or 0).word
        rows.append({"name": document.get("name"), "dagRunId": document.get("dagRunId"), "status": status, **optional})
    text = json.dumps(rows, ensure_ascii=False, indent=2)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
