"""Write the generated pages of docs/reference, or with --check say which are stale. Read by tests/docs."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

REFERENCE = Path(__file__).resolve().parent / "reference"


def permissions() -> str:
    """Return the role × RPC table."""
    from secure_dagu.dispatch.model import Role
    from secure_dagu.security.explain import MEANINGS
    from secure_dagu.security.roles import RPC_RULES

    roles = [Role.WORKER, Role.DISPATCHER, Role.COORDINATOR, Role.ADMIN, Role.METRICS]
    lines = [
        "# Permissions",
        "",
        "Which role may call which RPC; generated from `secure_dagu/security/roles.py`.",
        "What is not in this table is refused, whoever asks.",
        "",
        "| RPC | " + " | ".join(role.value for role in roles) + " | also checked | over plaintext |",
        "|---|" + "---|" * (len(roles) + 2),
    ]
    for method, rule in sorted(RPC_RULES.items()):
        cells = ["yes" if role in rule.roles else "–" for role in roles]
        plain = "refused" if rule.takes_secret else "anyone"
        name = method.removeprefix("/").replace("/", " ")
        lines.append(f"| {name} | {' | '.join(cells)} | {rule.object_rule.value} | {plain} |")
    lines += [
        "",
        "## What is also checked",
        "",
        "| rule | meaning |",
        "|---|---|",
        *(f"| {rule.value} | {text} |" for rule, text in MEANINGS.items()),
        "",
        "## Labels and tenants",
        "",
        "`Poll` and `Heartbeat` carry labels: a worker may claim those that its certificate grants, or fewer",
        "([how to grant them](../how-to/labels-and-tenants.md)).",
        "A run has the tenant that its root's `worker_selector` names with `secure-dagu/tenant`.",
        "Dispatchers and coordinators reach the tenants that their certificates grant, and runs without one, in",
        "`Dispatch`, `GetDAGRunStatus`, `RequestCancel`, `FollowRun`, `ReadLog`, `ReadLogPage`, `ListArtifacts`,",
        "`ReadArtifact` and `DeleteRun`;",
        "`ListRuns`, `FindRuns` and `GetWorkers` leave out what belongs to others.",
        "An admin reaches every tenant.",
        "Shared state, definitions and bundles have no tenant.",
        "",
        "`secure-dagu policy explain NAME METHOD` says which of these rules decides for one certificate,",
        "`policy list` prints this table, `policy test --role ROLE` one column of it.",
    ]
    return "\n".join(lines) + "\n"


def errors() -> str:
    """Return the error families."""
    from secure_dagu import errors as module

    lines = [
        "# Errors",
        "",
        "Every error says what happened, why, and what to do; generated from `secure_dagu/errors.py`.",
        "The code is stable and appears in JSON, logs and gRPC trailers.",
        "",
        "| code | meaning | exit code | HTTP | gRPC |",
        "|---|---|---|---|---|",
    ]
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if issubclass(cls, module.SecureDaguError) and cls is not module.SecureDaguError:
            first = (cls.__doc__ or "").split("\n")[0]
            lines.append(f"| `{cls.code}` | {first} | {cls.exit_code} | {cls.http_status} | {cls.grpc_status} |")
    lines += [
        "",
        "Other exit codes: 0 success, 2 wrong usage, 70 a bug of ours, 130 an interrupt.",
        "`dispatch --follow` ends with 1 when the run did not succeed.",
        *_faults(),
    ]
    return "\n".join(lines) + "\n"


def _faults() -> list[str]:
    """Return what can be wrong with a connection, as both ends say it."""
    from secure_dagu.security.verdict import FAULTS, Side

    lines = [
        "",
        "## Faults of a connection",
        "",
        "One code for each fault, generated from `secure_dagu/security/verdict.py`.",
        "Both ends give the same code.",
        "The end that decides counts it in `secure_dagu_tls_handshake_failures_total{side,reason}`.",
        "A coordinator also logs it (`link.refused`) and writes it to the audit log, with the address and what the "
        "certificate calls itself.",
        "The other end learns it by an alert or a last word and prints it with what, why and fix.",
    ]
    decided = {Side.SERVER: "the coordinator", Side.CLIENT: "the worker or operator", None: "either end"}
    for reason, fault in FAULTS.items():
        lines += ["", f"### {reason.value}", "", f"Found by {decided[fault.decided_by]}.", ""]
        for title, words in (("Coordinator", fault.server), ("Worker or operator", fault.client)):
            if words is not None:
                lines.append(f"- {title}: {words.why}.\n  Fix: {words.fix}.")
    return lines


def metrics() -> str:
    """Return every metric."""
    from secure_dagu.telemetry import metrics as module
    from secure_dagu.telemetry import queue_series, schedule_series, web_series

    lines = [
        "# Metrics",
        "",
        "`GET /metrics` on the health ports, 8090 of a scheduler, 8091 of a coordinator and 8092 of a worker, and",
        "`GET /api/v1/metrics` of the web server; generated from `secure_dagu/telemetry/`.",
        "Labels come from closed sets; text that a peer supplies is shortened, cleaned and capped.",
    ]
    for title, registry in (
        ("Every process", module.COMMON),
        ("Coordinator", module.COORDINATOR),
        ("Worker", module.WORKER),
        ("Queues, of the scheduler", queue_series.QUEUES),
        ("Schedules, of the scheduler", schedule_series.SCHEDULER),
        ("Web server", web_series.WEB),
        ("Web server without a scheduler in its process", web_series.ALONE),
    ):
        lines += ["", f"## {title}", "", "| name | type | meaning |", "|---|---|---|"]
        families = {family.name: family for family in registry.collect()}
        for name in sorted(families):
            if name.startswith(("python_", "process_")):
                continue
            family = families[name]
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            lines.append(f"| `{name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Return the help of every command."""
    from secure_dagu.cli.main import build_parser

    lines = [
        "# Commands",
        "",
        "The help of every command as the program prints it; generated from `secure_dagu/cli/`.",
    ]

    def walk(parser: argparse.ArgumentParser) -> None:
        lines.extend(["", f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```"])
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in dict.fromkeys(action.choices.values()):
                    walk(child)

    walk(build_parser())
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """Return every setting."""
    from secure_dagu.config.reference import configuration_page

    return configuration_page()


def audit() -> str:
    """Return the events of the audit log."""
    from secure_dagu.audit.events import MEANINGS, Action, Outcome
    from secure_dagu.audit.methods import ACTION_OF

    lines = [
        "# Audit log",
        "",
        "What is recorded, and how; generated from `secure_dagu/audit/`. How to use it: [audit](../how-to/audit.md).",
        "",
        "## A record",
        "",
        "One JSON object a line, in files of at most 64 MiB that are only ever appended to.",
        "Every member is there in every record; a text is at most 512 characters, and what does not print is escaped.",
        "",
        "| member | AU-3 | meaning |",
        "|---|---|---|",
        "| `seq` | | number, from 1 without a gap; a file's name is the number of its first record |",
        "| `prev` | | hash of the record before; 64 zeros in the first |",
        "| `time` | when | UTC with microseconds |",
        "| `host`, `source` | where | host name, and `coordinator` or `command` |",
        "| `action` | what | one of the list below; the part before the dot is its category |",
        f"| `outcome` | outcome | {', '.join(f'`{outcome}`' for outcome in Outcome)} |",
        "| `actor` | identity | identity URI, `os:USER` for a command, `system`; empty when nobody is proven |",
        "| `serial` | identity | of the actor's certificate, hex |",
        "| `address` | source | remote `host:port` |",
        "| `target` | what | what it was done to, such as `run:NAME/ID` or `certificate:SERIAL` |",
        "| `reason` | outcome | why it was denied or failed |",
        "| `details` | | names of a closed list; never parameters, environment, documents or secrets |",
        "| `hash` | | SHA-256, hex, of the line as it is without this member |",
        "",
        "A checkpoint is a record whose `details.signature` is an Ed25519 signature, in base64, of these four lines,",
        "each with a newline: `secure-dagu audit checkpoint v1`, its `seq`, its `prev`, its `time`.",
        "One is written every 1,000 records, 10 seconds after a record that none covers, and when the log is closed.",
        "",
        "## Events",
        "",
        "*now*: on disk before the action is acknowledged; an action whose record cannot be written does not happen.",
        "*soon*: on disk within a second.",
        "*folded*: soon, and the same event again within a minute is counted instead (`details.repeats`), because it",
        "repeats at the will of others. What is denied or failed is folded too.",
        "",
        "| action | written | meaning |",
        "|---|---|---|",
    ]
    for action in Action:
        meaning = MEANINGS[action]
        when = "now" if meaning.durable else "folded" if meaning.folds else "soon"
        lines.append(f"| `{action}` | {when} | {meaning.text} |")
    lines += [
        "",
        "## What a call leaves",
        "",
        "A refused call leaves `call.denied`, whatever it is.",
        "A report of progress leaves nothing: the report that ends a run does.",
        "Polls, heartbeats and probes leave the `link.opened` of the connection that they travel on.",
        "",
        "| RPC | action |",
        "|---|---|",
    ]
    for method, action in sorted(ACTION_OF.items()):
        lines.append(f"| {method.removeprefix('/').replace('/', ' ')} | `{action}` |")
    return "\n".join(lines) + "\n"


def rest_api() -> str:
    """Return every endpoint; the text around the table is of docs/reference/rest-api.md.in."""
    from secure_dagu.web.api.document import endpoints, openapi

    document = openapi("/api/v1")
    before, after = (REFERENCE / "rest-api.md.in").read_text().split("@ENDPOINTS@\n")
    lines = ["| endpoint | least role | what it does |", "|---|---|---|"]
    for method, path, role in endpoints():
        told = document["paths"][path][method.lower()]
        first = told.get("description", "").split("\n")[0]
        lines.append(f"| `{method} {path}` | {role} | {first} |")
    return before + "\n".join(lines) + "\n" + after


PAGES: Mapping[str, Callable[[], str]] = {
    "permissions.md": permissions,
    "errors.md": errors,
    "metrics.md": metrics,
    "commands.md": commands,
    "configuration.md": configuration,
    "audit.md": audit,
    "rest-api.md": rest_api,
}


def main() -> int:
    """Write the pages, or compare them."""
    os.environ["COLUMNS"] = "100"  # argparse wraps help to the terminal's width
    stale = 0
    for name, make in PAGES.items():
        text, path = make(), REFERENCE / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            stale += 1
            print(f"docs/reference/{name} is not what the code says: run `make generate`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
