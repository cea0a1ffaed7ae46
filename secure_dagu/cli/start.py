"""`secure-dagu start`: run a workflow on this host, in the foreground."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from secure_dagu.cli import workflow
from secure_dagu.errors import InvalidRequest

if TYPE_CHECKING:
    from secure_dagu.config.load import Loaded
    from secure_dagu.local.places import Places
    from secure_dagu.local.runs import Start

SUMMARY = "Run a workflow on this host; print what became of it."
EXAMPLE = "secure-dagu start etl.yaml -- YEAR=2025"
OPTIONS = (
    *("run-id", "name", "labels", "profile", "default-working-dir", "no-reuse", "trigger-type"),
    *("schedule-time", "worker-id", "trigger-actor"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    workflow.add_dag(parser)
    workflow.add_options(parser, *OPTIONS)
    parser.add_argument("--from-run-id", metavar="ID", default="", help="started as that run was")


async def run(args: argparse.Namespace) -> int:
    """Run it to its end."""
    name = workflow.dag_argument(args)
    workflow.check_trigger(args.trigger_type)
    loaded = workflow.settings_of(args)
    places = workflow.places_of(loaded)
    if args.from_run_id and workflow.caller_params(args):
        raise InvalidRequest("--from-run-id cannot be combined with parameters", why="the old run's are used")
    start = from_run(args, loaded, places, name) if args.from_run_id else new(args, loaded, places, name)
    if goes_to_workers(loaded, start):
        from secure_dagu.cli import dispatch

        return workflow.show_end(args, await dispatch.run_to_end(args, start))
    from secure_dagu.local.runs import LocalRuns

    runs = LocalRuns(places, echo=workflow.echo_of(args, loaded), remote=workflow.remote_of(args, loaded))
    return await workflow.run_to_end(args, runs, start, record=runs.record(start))


def goes_to_workers(loaded: Loaded, start: Start) -> bool:
    """Decide where a run is executed; a coordinator is there if one is configured."""
    from secure_dagu.dispatch.operating import Placement
    from secure_dagu.dispatch.placement import placement_of

    by_default = loaded.settings.core.default_execution_mode == "distributed"
    placed = placement_of(
        start.loaded.main, has_coordinator=workflow.has_coordinator(loaded), distributed_by_default=by_default
    )
    return placed is Placement.WORKERS


def new(args: argparse.Namespace, loaded: Loaded, places: Places, name: str) -> Start:
    """Return what the named DAG is started with.

    Raises:
        DefinitionError: it does not load, cannot be planned, or its parameters do not fit.
    """
    from secure_dagu.dag.declarations import caller_labels
    from secure_dagu.local.runs import Start
    from secure_dagu.run.model import DagRunRef, TriggerType

    run_id, scheduled = workflow.run_id_argument(args), workflow.schedule_time(args)
    definition, path = workflow.load_dag(name, places, called=workflow.name_argument(args))
    params = workflow.caller_params(args)
    workflow.check_plan(definition, params)
    dag = definition.main
    labels = (*dag.labels, *caller_labels(args.labels))
    return Start(
        run=DagRunRef(dag.name, run_id),
        loaded=definition,
        source_file=str(path),
        params=params,
        labels=tuple(dict.fromkeys(labels)),
        base_config=places.base_config,
        queue=dag.name,
        default_working_dir=getattr(args, "default_working_dir", ""),
        no_reuse=getattr(args, "no_reuse", False),
        trigger=TriggerType[args.trigger_type.upper()],
        actor=args.trigger_actor or workflow.actor(),
        schedule_time=scheduled,
        worker=getattr(args, "worker_id", "local"),
        **workflow.profile_of(loaded, args.profile),
    )


def from_run(args: argparse.Namespace, loaded: Loaded, places: Places, name: str) -> Start:
    """Return what an earlier run was started with, as a new run; what the command line says wins.

    `--name` is how the new run is called, and how the earlier one may have been.

    Raises:
        NotFound: there is no such run.
    """
    from msgspec.structs import replace

    from secure_dagu.dag.declarations import caller_labels
    from secure_dagu.local.runs import find_run, start_of
    from secure_dagu.run.model import DagRunRef, TriggerType

    called = workflow.name_argument(args)
    renamed = places.records.find(DagRunRef(called, args.from_run_id)) if called else None
    record = renamed or find_run(places, workflow.dag_name(name, places), args.from_run_id)
    new = DagRunRef(called or record.run.name, workflow.run_id_argument(args))
    old = start_of(new, record.attempts()[-1].definition())
    return replace(
        old,
        run=new,
        labels=tuple(dict.fromkeys((*old.labels, *caller_labels(args.labels)))),
        default_working_dir=args.default_working_dir or old.default_working_dir,
        no_reuse=args.no_reuse or old.no_reuse,
        worker=args.worker_id,
        trigger=TriggerType[args.trigger_type.upper()],
        actor=args.trigger_actor or workflow.actor(),
        schedule_time=workflow.schedule_time(args),
        **workflow.profile_of(loaded, args.profile or old.profile),
    )
