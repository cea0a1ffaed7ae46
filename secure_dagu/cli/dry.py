"""`secure-dagu dry`: show what a run of a workflow would do; nothing is executed and nothing is kept."""

from __future__ import annotations

import argparse

from secure_dagu.cli import start, workflow

SUMMARY = "Show what a run of a workflow would do; nothing is executed, nothing is kept."
EXAMPLE = "secure-dagu dry etl.yaml -- YEAR=2025"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_dag(parser)
    workflow.add_options(parser, "name", "profile", "no-reuse")
    parser.set_defaults(
        run_id="", labels="", schedule_time="", trigger_type="manual", trigger_actor="", default_working_dir=""
    )


async def run(args: argparse.Namespace) -> int:
    """Load, bind, plan; print the steps as succeeded."""
    name = workflow.dag_argument(args)
    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    planned = start.new(args, loaded, places, name)
    from secure_dagu.local import dry

    document = dry.document(planned, places)
    if not args.quiet:
        from secure_dagu.cli import tree

        print("\n".join(tree.tree(document)))
    return 0
