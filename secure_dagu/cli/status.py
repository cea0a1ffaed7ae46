"""`secure-dagu status`: how a run of this host stands, or one at a coordinator."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import remote
from secure_dagu.errors import ConfigError, InvalidRequest, NotFound

if TYPE_CHECKING:
    from secure_dagu.cli.tree import Reader
    from secure_dagu.config.load import Loaded
    from secure_dagu.local.places import Places

SUMMARY = "Show how a run stands; without a DAG, list the newest runs of a coordinator."
EXAMPLE = "secure-dagu status etl -r 0Jf3kQ"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "dag", metavar="DAG", nargs="?", help="a workflow: its name, its file's name, or a path (default: list runs)"
    )
    parser.add_argument("-r", "--run-id", metavar="ID", help="which run (default: the newest)")
    parser.add_argument("-s", "--sub-run-id", metavar="ID", default="", help="that child run of it")
    parser.add_argument("-n", "--limit", metavar="N", type=int, default=20, help="how many runs to list (default 20)")
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Print the run, or the list: of this host, unless it has none and a coordinator may have."""
    from secure_dagu.cli import workflow

    if args.sub_run_id and not args.run_id:
        raise InvalidRequest("--sub-run-id requires --run-id")
    loaded = workflow.settings_of(args)
    if args.dag and not names_coordinator(args):
        try:
            document = _local(args, workflow.places_of(loaded))
        except NotFound:
            if args.sub_run_id or not _has_certificates(loaded):
                raise
        else:
            show(args, document)
            return 0
    elif not args.dag and not names_coordinator(args) and not _has_certificates(loaded):
        raise InvalidRequest("accepts 1 arg(s), received 0", fix="name a DAG; `secure-dagu history` lists all runs")
    return await _remote(args)


def names_coordinator(args: argparse.Namespace) -> bool:
    """Tell whether a flag says that a coordinator is meant."""
    return any(value is not None for key, value in vars(args).items() if key.startswith(("client.", "peer.")))


def _has_certificates(loaded: Loaded) -> bool:
    """Tell whether this host could talk to a coordinator."""
    from secure_dagu.config.load import peer_files
    from secure_dagu.config.peers import Purpose

    try:
        peer_files(loaded, Purpose.OPERATOR)
    except ConfigError:
        return False
    return True


def _local(args: argparse.Namespace, places: Places) -> dict[str, Any]:
    """Return the status document of a run of this host.

    Raises:
        NotFound: there is none.
    """
    from secure_dagu.cli import workflow
    from secure_dagu.local import history
    from secure_dagu.run.model import DagRunRef

    name = workflow.dag_name(args.dag, places)
    if not args.run_id:
        record = places.records.newest(name)
        if record is None:
            raise NotFound(
                f"failed to extract attempt: failed to find the latest run data for DAG {name}: no status data"
            )
    else:
        record = places.records.find(DagRunRef(name, args.run_id))
        if record is None:
            raise _unknown(args.run_id)
    attempt = record.latest()
    if attempt is None:  # hidden or removed meanwhile
        raise _unknown(record.run.run_id)
    if not args.sub_run_id:
        return history.current(record, attempt)
    found = history.child(record, args.sub_run_id)
    if found is None:
        raise _unknown(args.sub_run_id)
    return history.current(*found, root=record)


def _unknown(run_id: str) -> NotFound:
    what = f"failed to extract attempt: failed to find run data for dag-run ID {run_id}"
    return NotFound(f"{what}: dag-run ID not found: {run_id}")


def show(args: argparse.Namespace, document: dict[str, Any], *, read: Reader | None = None) -> None:
    """Print a run; `read` as in `workflow.show_end`."""
    if args.json:
        from secure_dagu.cli import render

        print(json.dumps({"run": render.run_as_json(json.dumps(document))}, ensure_ascii=False))
    elif not args.quiet:
        from secure_dagu.cli import tree

        print("\n".join(tree.tree(document, read=read or tree.read_tail)))


async def _remote(args: argparse.Namespace) -> int:
    from secure_dagu.cli import render

    async with remote.connect(args) as (coordinator, caller):
        if not args.dag:
            runs = await coordinator.runs(caller, name=None, run_id=args.run_id, limit=args.limit)
            if args.json:
                print(json.dumps({"runs": render.runs_as_json(runs)}, ensure_ascii=False))
            else:
                print("\n".join(render.runs_table(runs)))
            return 0
        ref = await remote.find_run(coordinator, caller, args.dag, args.run_id)
        document = await coordinator.run_status(caller, run=ref, root=None)
        if document is None:
            raise NotFound(f"there is no run {ref}", fix=f"list the runs with `secure-dagu status {args.dag}`")
        if args.json:
            print(json.dumps({"run": render.run_as_json(document)}, ensure_ascii=False))
        else:
            print("\n".join(render.run_tree(document)))
    return 0
