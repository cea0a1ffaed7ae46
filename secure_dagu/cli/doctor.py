"""`secure-dagu doctor`: dial as a worker or operator does, and name the layer at fault."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags, output
from secure_dagu.errors import ConfigError, SecureDaguError

if TYPE_CHECKING:
    from secure_dagu.security.checkup import Check

SUMMARY = "Find out why a connection to a coordinator does not work, or whether it does."
EXAMPLE = "secure-dagu doctor --worker.coordinators=coordinator.example.com:50055 --worker.id=gpu-1"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--as",
        dest="purpose",
        choices=("worker", "operator"),
        help="whose certificate and coordinators to use (default: worker where worker.coordinators is set)",
    )
    parser.add_argument(
        "--idle",
        metavar="TIME",
        default="0",
        help="also leave a connection idle for this long, such as 90s, and see whether something cuts it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document with stable keys")
    flags.add_settings_flags(parser, ("worker", "client", "peer"))


async def run(args: argparse.Namespace) -> int:
    """Make every check; return the exit code of the first that failed."""
    from secure_dagu.config import values
    from secure_dagu.config.load import load
    from secure_dagu.security.checkup import Name, exit_code, failed

    try:
        idle_s = values.duration(args.idle).total_seconds()
    except ValueError as problem:
        raise ConfigError("--idle cannot be used", why=str(problem), fix="say a time, such as 90s or 5m") from problem
    tell = (lambda _: None) if args.json else _print
    try:
        loaded = load(args)
    except SecureDaguError as error:
        found = [failed(Name.CONFIG, error)]
        tell(found[0])
    else:
        from secure_dagu.cli.service import configure

        configure(loaded)
        from secure_dagu.assembly import doctor
        from secure_dagu.config.peers import Purpose

        said = args.purpose or ("worker" if loaded.settings.worker.coordinators else "operator")
        found = await doctor.examine(loaded, Purpose(said), idle_s=idle_s, told=tell)
    code = exit_code(found)
    if args.json:
        output.print_json({"ok": code == 0, "exit_code": code, "checks": [_as_json(check) for check in found]})
    else:
        print(output.visible(_summary(found)))
    return code


def _as_json(check: Check) -> dict[str, Any]:
    return {
        "check": check.check.value,
        "state": check.state.value,
        "code": check.code,
        "target": check.target,
        "what": check.what,
        "why": check.why,
        "fix": check.fix,
    }


def _print(check: Check) -> None:
    # A good line names a file shortly; one that somebody must act on names it whole.
    named = check.target.rpartition("/")[2] if check.code == "ok" else check.target
    target = f"{named}: " if named and named not in check.what else ""
    code = f" [{check.code}]" if check.code != "ok" and f"({check.code})" not in check.what else ""
    print(output.visible(f"{_STATES[check.state.value]}  {check.check.value:<11}  {target}{check.what}{code}"))
    for word, text in (("why", check.why), ("fix", check.fix)):
        if text:
            print(output.visible(f"{'':<19}{word}: {text}"))
    sys.stdout.flush()


_STATES = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def _summary(found: list[Check]) -> str:
    from secure_dagu.security.checkup import State

    bad = next((check for check in found if check.state is State.FAIL), None)
    if bad is not None:
        return f"\nThe fault is in the layer {bad.check.value} [{bad.code}]."
    warnings = sum(check.state is State.WARN for check in found)
    return "\nEverything works." if not warnings else f"\nIt works, with {warnings} warning{'s'[: warnings != 1]}."
