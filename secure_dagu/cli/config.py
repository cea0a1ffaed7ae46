"""`secure-dagu config`: what is configured, where it came from, and whether it can work."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags, output
from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.config.load import Loaded

SUMMARY = "Check or show the configuration."
EXAMPLE = "secure-dagu config check coordinator --coordinator.advertise=ci.example.com"
PURPOSES = ("coordinator", "worker", "operator")
_SECTIONS = ("coordinator", "worker", "peer", "policy", "client", "audit")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (default: list where things are)")
    check = actions.add_parser("check", help="validate everything, with certificate files; exit 3 if it cannot work")
    check.add_argument(
        "purposes",
        metavar="PROCESS",
        nargs="*",
        help="what must be able to start here: coordinator, worker, operator (default: at least one of them)",
    )
    show = actions.add_parser("show", help="print every value and where it came from")
    docs = actions.add_parser("docs", help="print docs/reference/configuration.md")
    for action in (check, show):
        action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_settings_flags(action, _SECTIONS)
    for action in (check, show, docs):
        flags.add_common_flags(action)


async def run(args: argparse.Namespace) -> int:
    """Do the action; without one, list where things are."""
    if args.action == "docs":
        from secure_dagu.config.reference import configuration_page

        print(configuration_page(), end="")
        return 0
    from secure_dagu.config.load import load

    loaded = load(args)
    for warning in loaded.warnings:
        output.say(f"warning: {output.visible(warning)}")
    if args.action is None:
        return _list(loaded)
    return _show(loaded, as_json=args.json) if args.action == "show" else _check(loaded, args)


def _list(loaded: Loaded) -> int:
    """Print where this host keeps things, and where this program is (command line reference, section 4)."""
    paths = loaded.settings.paths
    data = paths.data_dir
    rows = {
        "Base config": paths.base_config,
        "DAGs directory": paths.dags_dir,
        "DAG runs": paths.dag_runs_dir,
        "DAG-run work directory": paths.dag_run_work_dir,
        "Data directory": data,
        "Tools directory": data / "tools",
        "Log directory": paths.log_dir,
        "Admin logs": paths.admin_logs_dir,
        "Suspend flags": paths.suspend_flags_dir,
        "Queue": paths.queue_dir,
        "Processes": paths.proc_dir,
        "Service registry": paths.service_registry_dir,
        "Executable": Path(sys.argv[0]).absolute(),
    }
    width = max(map(len, rows)) + 1
    for label, path in rows.items():
        print(output.visible(f"{label + ':':<{width}} {path}"))
    return 0


def _show(loaded: Loaded, *, as_json: bool) -> int:
    from secure_dagu.config.settings import all_settings
    from secure_dagu.config.values import shown

    rows = []
    for key, item in all_settings().items():
        value = getattr(getattr(loaded.settings, item.section), item.name)
        rows.append({"key": key, "value": shown(value), "source": loaded.sources[key]})
    if as_json:
        output.print_json({"home": str(loaded.home.config_dir), "file": _file(loaded), "settings": rows})
        return 0
    print(f"home  {loaded.home.config_dir} ({loaded.home.said})\nfile  {_file(loaded) or '(none)'}\n")
    widths = [max(len(row[column]) for row in rows) for column in ("key", "value")]
    for row in rows:
        line = f"{row['key']:<{widths[0]}}  {row['value']:<{min(widths[1], 40)}}  {row['source']}"
        print(output.visible(line))
    return 0


def _check(loaded: Loaded, args: argparse.Namespace) -> int:
    from secure_dagu.config.load import peer_files
    from secure_dagu.config.peers import Purpose

    if unknown := [word for word in args.purposes if word not in PURPOSES]:
        raise ConfigError(f"{unknown[0]!r} is no kind of process", fix=f"name some of {', '.join(PURPOSES)}")
    found: dict[str, Any] = {}
    errors: list[ConfigError] = []
    for purpose in args.purposes or PURPOSES:
        try:
            if purpose == "worker" and args.purposes and not loaded.settings.worker.coordinators:
                raise ConfigError(  # noqa: TRY301 - told together with the others
                    "worker.coordinators is required", fix="give --worker.coordinators=HOST:PORT[,HOST:PORT…]"
                )
            found[purpose] = peer_files(loaded, Purpose(purpose))
        except ConfigError as problem:
            errors.append(problem)
            found[purpose] = problem
    if errors and (args.purposes or len(errors) == len(PURPOSES)):
        raise errors[0]
    if args.json:
        told = {purpose: _as_json(value) for purpose, value in found.items()}
        output.print_json({"home": str(loaded.home.config_dir), "file": _file(loaded), "peers": told})
        return 0
    print(f"home         {loaded.home.config_dir} ({loaded.home.said})\nfile         {_file(loaded) or '(none)'}")
    for purpose, value in found.items():
        print(f"{purpose:<12} {_as_text(value)}")
    print("The configuration can be used.")
    return 0


def _file(loaded: Loaded) -> str:
    return str(loaded.config_file) if loaded.config_file else ""


def _as_json(value: Any) -> dict[str, Any]:
    from secure_dagu.config.peers import PeerFiles

    match value:
        case PeerFiles(cert=cert, key=key, ca=ca, source=source):
            return {"tls": True, "cert": str(cert), "key": str(key), "ca": str(ca), "source": source}
        case ConfigError():
            return {"tls": None, "missing": value.what}
        case _:
            return {"tls": False}


def _as_text(value: Any) -> str:
    told = _as_json(value)
    if told["tls"] is None:
        return f"cannot start here: {told['missing']}"
    return f"mutual TLS with {told['cert']}, trusting {told['ca']}" if told["tls"] else "PLAINTEXT (peer.insecure)"
