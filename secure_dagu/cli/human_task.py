"""`secure-dagu human-task complete`: answer a step that waits for a person."""

from __future__ import annotations

import argparse
import json
from typing import Any

from secure_dagu.cli import flags, workflow
from secure_dagu.errors import InvalidRequest, NotFound

SUMMARY = "Complete a human task of a waiting run."
EXAMPLE = "secure-dagu human-task complete -r 0Jf3kQ --step review --input verdict=ok release"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    # A parser of its own: of two plain words, argparse would take the second only right behind the first.
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    parser = actions.add_parser("complete", help="complete a human task", epilog=f"example:  {EXAMPLE}")
    flags.add_common_flags(parser)
    workflow.add_dag(parser, with_params=False)
    parser.add_argument("-r", "--run-id", metavar="ID", default="", help="the root run (required)")
    parser.add_argument("--step", metavar="ID", default="", help="the id of the task's step (required)")
    parser.add_argument("--input", metavar="K=V", action="append", default=[], help="a value; may be repeated")
    parser.add_argument("--inputs-json", metavar="JSON", default="", help="all values as one JSON object")


async def run(args: argparse.Namespace) -> int:
    """Check the input, keep it, and put the run back into its queue when nothing else waits."""
    from datetime import UTC, datetime

    from secure_dagu.local.queued import again, resume
    from secure_dagu.local.runs import find_run, start_of
    from secure_dagu.run import forms, people
    from secure_dagu.run.snapshot import time_text

    name = workflow.dag_argument(args)
    for flag, value in (("run-id", args.run_id), ("step", args.step)):
        if not value:
            raise InvalidRequest(f'required flag(s) "{flag}" not set')
    given = _given(args)
    places = workflow.places_of(workflow.settings_of(args))
    dag = workflow.dag_name(name, places)
    try:
        record = find_run(places, dag, args.run_id)
    except NotFound as error:
        raise NotFound(f"DAG {dag} has no run {args.run_id}", why=error.what) from error
    attempt = record.attempts()[-1]
    document = attempt.status()
    kept = start_of(record.run, attempt.definition())
    step = next((one for one in kept.loaded.main.steps if args.step in (one.id, one.name)), None)
    if step is None or step.kind != "human.task":
        raise NotFound(f"the step {args.step!r} is no human task of this run")
    values = forms.checked(step.inputs.get("form"), given, limit_bytes=kept.loaded.main.max_output_bytes)
    changed = people.complete(document, args.step, values, by=workflow.actor(), at=time_text(datetime.now(UTC)))
    if changed == document:
        print(f"human task {args.step} was already completed")
    elif resume(places, record, again(kept), changed):
        print(f"human task {args.step} completed; the run was queued for resume")
    else:
        print(
            f"human task {args.step} completed; the run remains waiting for {', '.join(people.waiting_steps(changed))}"
        )
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the input of the person.

    Raises:
        InvalidRequest: it is malformed, given twice, or in both forms.
    """
    if args.inputs_json and args.input:
        raise InvalidRequest("--input and --inputs-json cannot be combined")
    if args.inputs_json:
        return _object(args.inputs_json)
    found: dict[str, Any] = {}
    for text in args.input:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidRequest(f'--input "{text}" is not key=value')
        if name in found:
            raise InvalidRequest(f"duplicate key {name!r} in --input")
        found[name] = value
    return found


def _object(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidRequest(f"duplicate key {twice!r} in --inputs-json")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("--inputs-json is not valid JSON", why=str(error)) from None
    if not isinstance(value, dict):
        raise InvalidRequest("--inputs-json is not a JSON object")
    return value
