"""`secure-dagu exec`: run one command as a workflow of one step."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from secure_dagu.cli import workflow
from secure_dagu.cli.start import goes_to_workers
from secure_dagu.errors import InvalidRequest

SUMMARY = "Run one command as a workflow of one step, with a log and a record."
EXAMPLE = "secure-dagu exec --env STAGE=test -- ./migrate.sh --dry-run"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_options(parser, "name", "run-id")
    parser.add_argument("words", metavar="WORD", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(params=[])
    parser.add_argument("-E", "--env", metavar="K=V", action="append", default=[], help="a variable; may be repeated")
    parser.add_argument("--dotenv", metavar="FILE", action="append", default=[], help="a file of variables")
    parser.add_argument("--workdir", metavar="DIR", default="", help="working directory (default: this one)")
    parser.add_argument("--shell", metavar="SHELL", default="", help="run it as a command line of this shell")
    parser.add_argument("--base", metavar="FILE", default="", help="another base configuration")
    parser.add_argument("--worker-label", metavar="K=V", action="append", default=[], help="a label of its worker")


async def run(args: argparse.Namespace) -> int:
    """Run it to its end."""
    command = [*args.words, *args.params]
    if not command:
        raise InvalidRequest("requires a command after --")
    from msgspec.structs import replace

    from secure_dagu.dag.load import load_definition
    from secure_dagu.local import definitions
    from secure_dagu.local.runs import LocalRuns, Start
    from secure_dagu.run.model import DagRunRef

    run_id, name = workflow.run_id_argument(args), workflow.name_argument(args) or _name(command[0])
    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    if args.base:
        places = replace(places, base_config=definitions.read(Path(args.base)))
    definition = load_definition(_definition(args, command), name=name, base_config=places.base_config)
    start = Start(
        run=DagRunRef(definition.main.name, run_id),
        loaded=definition,
        base_config=places.base_config,
        queue=definition.main.name,
        actor=workflow.actor(),
    )
    if goes_to_workers(loaded, start):
        from secure_dagu.cli import dispatch

        return workflow.show_end(args, await dispatch.run_to_end(args, start))
    runs = LocalRuns(places, echo=workflow.echo_of(args, loaded))
    return await workflow.run_to_end(args, runs, start, record=runs.record(start))


def _name(command: str) -> str:
    return f"exec-{re.sub(r'[^A-Za-z0-9_.-]', '-', Path(command).name)}"[:40]


def _definition(args: argparse.Namespace, command: list[str]) -> str:
    """Return a workflow of one step, as the JSON that is YAML too; words are data, so their dollars are escaped."""
    document: dict[str, object] = {"working_dir": _literal(str(Path(args.workdir or ".").absolute()))}
    env = [_pair(text, "--env") for text in args.env]
    if env:
        document["env"] = [{name: _literal(value)} for name, value in env]
    if args.dotenv:
        document["dotenv"] = [_literal(str(Path(file).absolute())) for file in args.dotenv]
    if args.worker_label:
        document["worker_selector"] = dict(_pair(text, "--worker-label") for text in args.worker_label)
    if args.shell:
        step: dict[str, object] = {"run": " ".join(command), "with": {"shell": args.shell}}
    else:
        words = [_literal(word) for word in command]
        step = {"action": "exec", "with": {"command": words[0], "args": words[1:]}}
    document["steps"] = [{"name": "main", **step}]
    return json.dumps(document)


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidRequest(f'{flag} "{text}" is not K=V')
    return name, value


def _literal(text: str) -> str:
    """Return text whose dollars no field expands: a backslash before each, and one more for each before it."""
    return re.sub(r"(\\*)\$", lambda found: found[1] * 2 + r"\$", text)
