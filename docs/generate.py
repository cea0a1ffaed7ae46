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
        "| none | nothing beyond the role |",
        "| own-id | the worker id in the message is the certificate's name, or that name, `@` and anything |",
        "| held-lease | as own-id, and this worker holds the fresh lease of that attempt; constant through a stream |",
        "| held-tree | a worker reaches only the run that it holds and what hangs below it; other roles are free |",
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
    ]
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Return every metric."""
    from secure_dagu.telemetry import metrics as module

    lines = [
        "# Metrics",
        "",
        "`GET /metrics` on the health ports, 8091 of a coordinator and 8092 of a worker; generated from",
        "`secure_dagu/telemetry/metrics.py`.",
        "Labels come from closed sets; text that a peer supplies is shortened, cleaned and capped.",
    ]
    for title, registry in (
        ("Every process", module.COMMON),
        ("Coordinator", module.COORDINATOR),
        ("Worker", module.WORKER),
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


PAGES: Mapping[str, Callable[[], str]] = {
    "permissions.md": permissions,
    "errors.md": errors,
    "metrics.md": metrics,
    "commands.md": commands,
    "configuration.md": configuration,
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
