"""`secure-dagu doctor`: dial as a worker or operator does, and name the layer at fault."""

from __future__ import annotations

import argparse

from secure_dagu.cli import checks, flags, output
from secure_dagu.errors import ConfigError, SecureDaguError

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
    tell = (lambda _: None) if args.json else checks.show
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
        output.print_json({"ok": code == 0, "exit_code": code, "checks": [checks.as_json(check) for check in found]})
    else:
        print(output.visible(checks.summary(found)))
    return code
