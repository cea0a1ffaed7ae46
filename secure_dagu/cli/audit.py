"""`secure-dagu audit`: verify, show and export the audit logs of this host."""

from __future__ import annotations

import argparse
import heapq
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.cli import flags, output
from secure_dagu.errors import ConfigError, IntegrityViolation, InvalidRequest

if TYPE_CHECKING:
    from secure_dagu.audit.chain import Place, Record
    from secure_dagu.audit.events import Event
    from secure_dagu.audit.reading import Wanted
    from secure_dagu.audit.verify import Report
    from secure_dagu.config.load import Loaded

SUMMARY = "Verify, show and export the audit logs of this host."
EXAMPLE = "secure-dagu audit verify && secure-dagu audit show --action secret.read --since 24h"
INTEGRITY = IntegrityViolation.exit_code
LOGS = ("coordinator", "server", "scheduler", "commands")
_SPAN = re.compile(r"([1-9]\d{0,5})([smhdw])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    verify = actions.add_parser(
        "verify",
        help="check every record, signature and file, offline; name the first bad record",
        epilog="example:  secure-dagu audit verify --dir ./copy --key ed25519:… --anchor 4711:9f2c…",
    )
    verify.add_argument("--key", metavar="ed25519:…", default="", help="what `audit key` printed (default: the log's)")
    verify.add_argument(
        "--anchor", metavar="N:HASH", default="", help="a record that an earlier `audit verify` named; must be in there"
    )
    show = actions.add_parser(
        "show", help="print records, newest last", epilog="example:  secure-dagu audit show --outcome denied --since 7d"
    )
    show.add_argument("-n", "--limit", metavar="N", type=int, default=100, help="the last N (default 100; 0: all)")
    export = actions.add_parser(
        "export",
        help="write records to standard output, one a line",
        epilog="example:  secure-dagu audit export --format rfc5424 --since 24h",
    )
    export.add_argument(
        "--format", choices=("json", "rfc5424"), default="json", help="lines as they are, or syslog messages"
    )
    key = actions.add_parser("key", help="print the public half of the key that signs checkpoints, to keep elsewhere")
    for action in (show, export):
        _add_filters(action)
    for action in (verify, show, export, key):
        action.add_argument("--log", choices=LOGS, help="one of the logs (default: all)")
        action.add_argument("--dir", metavar="DIR", help="a folder elsewhere, such as a copy, instead of these")
        if action is not export:
            action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_common_flags(action)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--action", dest="actions", metavar="A,B", default="", help="actions, or categories")
    parser.add_argument("--outcome", metavar="A,B", default="", help="succeeded, denied, failed")
    for name, text in (("actor", "identity"), ("target", "target"), ("address", "address")):
        parser.add_argument(f"--{name}", metavar="PART", default="", help=f"part of the {text}")
    parser.add_argument("--serial", metavar="HEX", default="", help="beginning of the certificate's serial")
    parser.add_argument("--since", metavar="TIME", default="", help="then or later: 24h, 7d, or ISO 8601 in UTC")
    parser.add_argument("--until", metavar="TIME", default="", help="before then")


async def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from secure_dagu.config.load import load

    loaded = load(args)
    action = {"verify": _verify, "show": _show, "export": _export, "key": _key}[args.action]
    return action(args, loaded)


# -- actions -----------------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace, loaded: Loaded) -> int:
    from secure_dagu.audit.checkpoints import public_of, read_public
    from secure_dagu.audit.events import Action, Detail, Event, Outcome
    from secure_dagu.audit.verify import verify

    folders, anchor = _folders(args, loaded), _anchor(args.anchor)
    if (args.key or anchor is not None) and len(folders) > 1:
        raise InvalidRequest("a key or an anchor is of one log", fix="say --log coordinator or --log commands")
    reports = {
        name: verify(folder, key=read_public(args.key or public_of(folder)), anchor=anchor)
        for name, folder in folders.items()
    }
    events = [
        Event(
            action=Action.AUDIT_VERIFIED, target=f"log:{name}", details={Detail.NUMBER: report.records},
            outcome=Outcome.SUCCEEDED if report.bad is None else Outcome.FAILED,
            reason=f"{report.bad.kind} at record {report.bad.seq}" if report.bad is not None else "",
        )
        for name, report in reports.items()
    ]  # fmt: skip
    is_good = all(report.bad is None for report in reports.values())
    if args.json:
        output.print_json({"ok": is_good, "logs": [_report(name, report) for name, report in reports.items()]})
    else:
        for name, report in reports.items():
            print(output.visible(_words(name, report)))
    try:
        _record(args, loaded, events)
    except IntegrityViolation as error:  # it is what was verified: the finding is told all the same
        output.say(output.visible(f"this verification is not recorded: {error}"))
        return INTEGRITY
    return 0 if is_good else INTEGRITY


def _show(args: argparse.Namespace, loaded: Loaded) -> int:
    from secure_dagu.audit.events import Action, Event
    from secure_dagu.audit.reading import records

    folders, wanted = _folders(args, loaded), _wanted(args)
    _record(args, loaded, [Event(action=Action.AUDIT_READ, target=f"log:{name}") for name in folders])
    found: Iterator[Record] = (
        record for _, record in heapq.merge(*(records(f, wanted) for f in folders.values()), key=lambda r: r[1].time)
    )
    kept = deque(found, maxlen=args.limit) if args.limit > 0 else found
    if args.json:
        from msgspec import to_builtins

        output.print_json({"records": [to_builtins(record) for record in kept]})
        return 0
    for record in kept:
        print(output.visible(_line(record)))
    return 0


def _export(args: argparse.Namespace, loaded: Loaded) -> int:
    from secure_dagu.audit.events import Action, Detail, Event
    from secure_dagu.audit.export import rfc5424
    from secure_dagu.audit.reading import records

    folders, wanted = _folders(args, loaded), _wanted(args)
    _record(
        args,
        loaded,
        [
            Event(action=Action.AUDIT_EXPORTED, target=f"log:{name}", details={Detail.WHAT: args.format})
            for name in folders
        ],
    )
    out = sys.stdout.buffer
    for folder in folders.values():
        for line, _ in records(folder, wanted):
            out.write(line if args.format == "json" else rfc5424(line) + b"\n")
    out.flush()
    return 0


def _key(args: argparse.Namespace, loaded: Loaded) -> int:
    from secure_dagu.audit.checkpoints import public_of

    keys = {name: public_of(folder) for name, folder in _folders(args, loaded).items()}
    if args.json:
        output.print_json({"keys": keys})
        return 0
    for name, key in keys.items():
        print(f"{name:<12} {key}")
    return 0


# -- which logs and records --------------------------------------------------------------------------------------------


def _folders(args: argparse.Namespace, loaded: Loaded) -> Mapping[str, Path]:
    from secure_dagu.assembly import recording

    if args.dir:
        folders = {args.dir: Path(args.dir)}
    else:
        folders = recording.folders(loaded)
        if args.log:
            folders = {args.log: folders[args.log]}
    found = {name: folder for name, folder in folders.items() if any(folder.glob("*.jsonl"))}
    if not found:
        raise ConfigError(
            "there is no audit log", why=f"nothing is recorded in {', '.join(map(str, folders.values()))}",
            fix="a coordinator begins one as it starts; say its home with --dagu-home, or a folder with --dir",
        )  # fmt: skip
    return found


def _record(args: argparse.Namespace, loaded: Loaded, events: list[Event]) -> None:
    """Record who read or verified; a copy elsewhere is not this host's log, so looking at one leaves no trace here."""
    from secure_dagu.assembly.recording import commands_trail

    if args.dir:
        return
    with commands_trail(loaded.home) as record:
        for event in events:
            record(event)


def _wanted(args: argparse.Namespace) -> Wanted:
    from secure_dagu.audit.events import Action, Outcome
    from secure_dagu.audit.reading import Wanted

    actions, outcomes = _words_of(args.actions), _words_of(args.outcome)
    known = {action.value for action in Action} | {action.category for action in Action}
    for word, words in [(word, known) for word in actions] + [(word, set(Outcome)) for word in outcomes]:
        if word not in words:
            raise InvalidRequest(f"{word[:64]!r} is not known", fix="docs/reference/audit.md lists them all")
    return Wanted(
        actions=actions, outcomes=outcomes, actor=args.actor, target=args.target, serial=args.serial.lower(),
        address=args.address, since=_time(args.since), until=_time(args.until),
    )  # fmt: skip


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))


def _time(text: str) -> str:
    from secure_dagu.audit.chain import text_of

    if not text:
        return ""
    if span := _SPAN.match(text):
        return text_of(datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])}))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{text[:64]!r} is no time", fix="say 24h, 7d or 2026-11-25T12:00") from None
    return text_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _anchor(text: str) -> Place | None:
    from secure_dagu.audit.chain import Place

    if not text:
        return None
    number, _, found = text.partition(":")
    if not re.fullmatch(r"[1-9]\d{0,17}", number) or not re.fullmatch(r"[0-9a-f]{64}", found):
        raise InvalidRequest("the anchor cannot be read", why="it is a number, a colon and 64 hex digits")
    return Place(int(number), found)


# -- words -------------------------------------------------------------------------------------------------------------


def _report(name: str, report: Report) -> dict[str, object]:
    from msgspec import to_builtins

    return {"log": name, "ok": report.bad is None, "unsigned": report.unsigned, **to_builtins(report)}


def _words(name: str, report: Report) -> str:
    bad = report.bad
    if bad is None:
        unsigned = f", the last {report.unsigned} not signed yet" if report.unsigned else ""
        return (
            f"{name}: good. {report.records} records in {report.files} files, {report.checkpoints} signatures"
            f"{unsigned}\n  anchor {report.records}:{report.head}"
        )
    where = f" ({bad.file}, line {bad.line})" if bad.file else ""
    return f"{name}: BAD at record {bad.seq}: {bad.kind}{where}\n  {bad.text}\n  records 1 to {report.records} are good"


def _line(record: Record) -> str:
    who = record.actor or record.details.get("claimed", "") or record.details.get("subject", "") or "-"
    parts = [record.time[:19] + "Z", f"{record.action:<24}", record.outcome, str(who), record.address, record.target]
    more = [f"{key}={value}" for key, value in record.details.items() if key != "signature"]
    return " ".join([*filter(None, parts), *([f"why={record.reason}"] if record.reason else []), *more])
