"""`secure-dagu dispatch`: send a workflow to a coordinator, and follow it if asked to."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import remote
from secure_dagu.cli.text import safe
from secure_dagu.errors import DefinitionError

if TYPE_CHECKING:
    from secure_dagu.dag.model import Definition
    from secure_dagu.dispatch.api import Coordinator
    from secure_dagu.dispatch.model import BundleRef, Caller, Task
    from secure_dagu.local.runs import Start

SUMMARY = "Send a workflow to a coordinator; with --follow, see its steps and log live."
EXAMPLE = "secure-dagu dispatch etl.yaml --follow -- YEAR=2025"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="the workflow file")
    parser.add_argument("params", metavar="PARAM", nargs="*", help="parameters after `--`: words, key=value, or JSON")
    parser.add_argument("-p", "--params", dest="params_text", metavar="TEXT", default="", help="parameters as one text")
    parser.add_argument("-r", "--run-id", metavar="ID", default="", help="the run's id (default: a new one)")
    parser.add_argument("-N", "--name", metavar="NAME", help="call the DAG something else than the file says")
    parser.add_argument("--labels", metavar="K=V,…", default="", help="extra labels of the run")
    parser.add_argument("--target-worker", metavar="ID", help="only this worker may take it")
    parser.add_argument("-f", "--follow", action="store_true", help="show steps and log live, to the end of the run")
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Dispatch; with --follow the exit code is 0 only for a successful run."""
    from secure_dagu.cli import render
    from secure_dagu.run.model import RunStatus

    path = Path(args.file)
    base_config = remote.base_config(args)
    definition = _load(path, args.name, base_config)
    async with remote.connect(args) as (coordinator, caller):
        from secure_dagu.local.run_ids import new_run_id

        bundle = await _send_bundle(coordinator, caller, path, definition)
        task = _task(args, path, definition, bundle, base_config=base_config, run_id=args.run_id or new_run_id())
        accepted = await coordinator.dispatch(caller, task)
        if not args.follow:
            if args.json:
                print(json.dumps({"run": _accepted(accepted)}, ensure_ascii=False))
            else:
                print(f"{accepted.run.name} {accepted.run.run_id}")
            return 0
        out = sys.stderr if args.json else sys.stdout
        print(f"run {accepted.run} accepted", file=out, flush=True)
        follower = render.Follower()
        async for event in coordinator.follow(caller, run=accepted.run, with_logs=True):
            for line in follower.lines(event):
                print(line, file=out, flush=True)
        document = json.loads(follower.document)
        status = RunStatus(document["status"])
        if args.json:
            print(json.dumps({"run": render.run_as_json(follower.document)}, ensure_ascii=False))
        else:
            error = f": {safe(document['error'])}" if document.get("error") else ""
            print(f"{status.title}{error}", flush=True)
        return 0 if status.is_success else 1


async def run_to_end(args: argparse.Namespace, start: Start) -> dict[str, Any]:
    """Dispatch a run and return its last status document; SIGINT and SIGTERM cancel it."""
    import asyncio

    from secure_dagu.cli import workflow
    from secure_dagu.dispatch.model import Operation, Task
    from secure_dagu.dispatch.retrying import told_at_start

    dag, path = start.loaded.main, Path(start.source_file)
    said = workflow.echo_of(args, workflow.settings_of(args))
    async with remote.connect(args) as (coordinator, caller), workflow.stop_on_signals() as stop:
        task = Task(
            operation=Operation.START,
            previous_status=told_at_start(start.trigger, is_retried=False),
            run=start.run,
            root=start.run,
            definition=start.loaded.text,
            params=start.params,
            worker_selector=dict(dag.worker_selector or {}),
            labels=",".join(start.labels),
            base_config=start.base_config,
            schedule_time=start.schedule_time,
            queue_name=dag.queue,
            source_file=start.source_file,
            bundle=await _send_bundle(coordinator, caller, path, start.loaded),
            profile_name=start.profile,
            trigger_actor=start.actor,
            definition_id=path.stem,
        )
        accepted = await coordinator.dispatch(caller, task)
        said("INFO", "Dispatched dag-run", {"dag": accepted.run.name, "run-id": accepted.run.run_id})
        document = ""

        async def cancel() -> None:
            await stop.wait()
            await coordinator.cancel(caller, run=accepted.run, root=None)

        async with asyncio.TaskGroup() as group:
            cancelling = group.create_task(cancel(), name="cancel")
            async for event in coordinator.follow(caller, run=accepted.run, with_logs=False):
                document = event.status or document
            cancelling.cancel()
    final: dict[str, Any] = json.loads(document)
    return final


def _load(path: Path, name: str | None, base_config: str) -> Definition:
    from secure_dagu.dag.load import load_definition

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(
            f"cannot read the workflow {path}",
            why=str(getattr(error, "strerror", "") or "it is not UTF-8 text"),
            fix="name an existing YAML file",
        ) from None
    return load_definition(text, file=str(path), name=name or path.stem, base_config=base_config)


async def _send_bundle(
    coordinator: Coordinator, caller: Caller, path: Path, definition: Definition
) -> BundleRef | None:
    """Pack what the workflow declares under `dependencies` and upload it unless the coordinator has it already."""
    from secure_dagu.cli.progress import Progress
    from secure_dagu.runner.bundle import pack

    patterns = definition.file_dependencies
    if not patterns:
        return None
    ref, data = pack(base=path.parent, dag_path=path.name, dag_text=definition.text, patterns=patterns)
    if not await coordinator.has(caller, ref.digest):
        with Progress(f"sending {len(patterns)} file dependencies", total=ref.size_bytes) as progress:
            verdict = await coordinator.put(caller, ref, progress.count(remote.pieces(data)))
        if not verdict.accepted:
            raise DefinitionError("the coordinator did not take the file dependencies", why=verdict.error)
    return ref


def _task(
    args: argparse.Namespace,
    path: Path,
    definition: Definition,
    bundle: BundleRef | None,
    *,
    base_config: str,
    run_id: str,
) -> Task:
    from secure_dagu.cli import workflow
    from secure_dagu.dag.declarations import caller_labels
    from secure_dagu.dispatch.model import Operation, Task, WorkerId
    from secure_dagu.dispatch.retrying import told_at_start
    from secure_dagu.run.model import DagRunRef, TriggerType

    dag = definition.main
    ref = DagRunRef(dag.name, run_id)
    return Task(
        operation=Operation.START,
        previous_status=told_at_start(TriggerType.MANUAL, is_retried=False),
        run=ref,
        root=ref,
        definition=definition.text,
        params=workflow.caller_params(args),
        worker_selector=dict(dag.worker_selector or {}),
        target_worker=WorkerId(args.target_worker) if args.target_worker else None,
        labels=",".join(dict.fromkeys((*dag.labels, *caller_labels(args.labels)))),
        base_config=base_config,
        queue_name=dag.queue,
        source_file=str(path.resolve()),
        bundle=bundle,
        trigger_actor=workflow.actor(),
        definition_id=path.stem,
    )


def _accepted(task: Task) -> dict[str, str]:
    return {
        "name": task.run.name,
        "runId": task.run.run_id,
        "attemptId": task.attempt_id,
        "attemptKey": task.attempt_key,
    }
