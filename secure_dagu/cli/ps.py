"""`secure-dagu ps`: the runs that processes of this host execute now."""

from __future__ import annotations

import argparse

SUMMARY = "List the runs that processes of this host execute now."
EXAMPLE = "secure-dagu ps --dag etl"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-d", "--dag", metavar="NAME", default="", help="only runs of this one")
    parser.add_argument("-r", "--run-id", metavar="PART", default="", help="part of the run's id")


async def run(args: argparse.Namespace) -> int:
    """Print them."""
    from secure_dagu.cli import workflow
    from secure_dagu.cli.text import moment, safe, table
    from secure_dagu.local import history

    places = workflow.places_of(workflow.settings_of(args))
    name = workflow.dag_name(args.dag, places) if args.dag else ""
    rows = [("DAG", "RUN_ID", "ATTEMPT", "STARTED", "GROUP", "FRESH")]
    for record, attempt in history.living(places.records, name=name, run_id=args.run_id):
        document = attempt.status()
        began = moment(document.get("startedAt"))
        group = safe(str(document.get("procGroup") or record.run.name))
        started = f"{began:%Y-%m-%dT%H:%M:%SZ}" if began else "-"
        rows.append((record.run.name, record.run.run_id, attempt.attempt_id, started, group, "yes"))
    print("\n".join(table(rows)) if len(rows) > 1 else "No running processes")
    return 0
