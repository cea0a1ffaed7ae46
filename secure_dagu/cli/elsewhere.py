"""`start`, `enqueue`, `status`, `history`, `stop`, `retry`, `restart` and `dequeue` in a context: at its server.

Output and exit codes are those of the commands on this host. What a command waits for it asks again and again; what
changes something is sent once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import echo, workflow
from secure_dagu.errors import Conflict, InvalidRequest, NotFound, NotRunning, SecureDaguError, Unavailable

if TYPE_CHECKING:
    import asyncio

    from secure_dagu.cli.tree import Reader
    from secure_dagu.config.load import Loaded
    from secure_dagu.contexts.answers import Details
    from secure_dagu.contexts.book import Context
    from secure_dagu.contexts.server import Server
    from secure_dagu.run.model import DagRunRef

FIRST_LOOK_S, LAST_LOOK_S = 0.2, 2.0
PATIENCE_S = 60.0
"""For how long a server that was asked to run something may be out of reach before we give up waiting."""
MAX_STREAMS = 200
"""Streams whose last lines are fetched for one summary."""


def chosen(args: argparse.Namespace, said: str) -> Context | None:
    """Return the context that a command goes to; None: this host.

    Args:
        args: the parsed arguments.
        said: what --context says; empty takes the current one.

    Raises:
        NotFound, Refused, Unavailable: it cannot be used.
    """
    from secure_dagu.config.load import load
    from secure_dagu.contexts.book import LOCAL, Contexts

    contexts = Contexts(load(args).settings.paths.contexts_dir)
    name = said or contexts.current()
    if name == LOCAL:
        return None
    try:
        return contexts.get(name)
    except NotFound as error:
        if said:
            raise
        raise NotFound(
            f'context "{name}" not found', why="it is the current one, and it is gone",
            fix="`secure-dagu context use local`, or another one",
        ) from error  # fmt: skip


def only_here(args: argparse.Namespace, context: Context, *, is_named: bool) -> SecureDaguError:
    """Return why a command does not go to a context's server."""
    why = "it acts on this host only (local context)"
    if not is_named:
        why += f", and the current context is {context.name}"
    return InvalidRequest(
        f"{args.command} cannot be used in the context {context.name}", why=why,
        fix="say --context local for this host, or run it on that one",
    )  # fmt: skip


async def run(args: argparse.Namespace, context: Context) -> int:
    """Run one of the eight commands at the server of a context; return its exit code."""
    from secure_dagu.assembly.contexts import reached
    from secure_dagu.cli import output
    from secure_dagu.contexts.server import Server

    loaded = workflow.settings_of(args)
    async with reached(loaded, context, warn=output.say) as client:
        return await _COMMANDS[args.command](Here(args, loaded, context, Server(client)))


class Here:
    """One command line, and the server that it goes to."""

    def __init__(self, args: argparse.Namespace, loaded: Loaded, context: Context, server: Server) -> None:
        self.args, self.context, self.server = args, context, server
        self.said: echo.Echo = workflow.echo_of(args, loaded)

    def refuse(self, **flags: object) -> None:
        """Refuse flags that the REST API has nothing for; they are given by name, with their values if they were said.

        Raises:
            InvalidRequest: one of them was.
        """
        for name, value in flags.items():
            if value:
                raise InvalidRequest(
                    f"--{name.replace('_', '-')} cannot be used in the context {self.context.name}",
                    why="the server's REST API has nothing for it", fix="leave it out, or run the command on that host",
                )  # fmt: skip

    def ref(self, dag: str, run_id: str) -> DagRunRef:
        """Return a run that a person names."""
        from secure_dagu.run.model import DagRunRef

        return DagRunRef(dag, _id(run_id))


# ── start, enqueue ───────────────────────────────────────────────────────────────────────────────────────────────────


async def _start(here: Here) -> int:
    args, server = here.args, here.server
    word = workflow.dag_argument(args)
    workflow.check_trigger(args.trigger_type)
    if args.from_run_id:
        if workflow.caller_params(args):
            raise InvalidRequest("--from-run-id cannot be combined with parameters", why="the old run's are used")
        here.refuse(labels=args.labels, profile=args.profile, no_reuse=args.no_reuse)
    _refuse_local_flags(here)
    run_id = workflow.run_id_argument(args)
    if args.from_run_id:
        dag = await server.dag_of(word)
        old = here.ref(dag, args.from_run_id)
        return await _begun(here, here.ref(args.name or dag, run_id), lambda: _again(server, old, run_id, args.name))
    found = await server.definition_of(word)
    wanted = _wanted(here, run_id)
    return await _begun(here, here.ref(args.name or found.dag, run_id), lambda: server.start(found.file, wanted))


async def _again(server: Server, old: DagRunRef, run_id: str, name: str = "") -> str:
    return (await server.again(old, run_id=run_id, name=name)).dag_run_id


async def _enqueue(here: Here) -> int:
    args, server = here.args, here.server
    word = workflow.dag_argument(args)
    workflow.check_trigger(args.trigger_type)
    _refuse_local_flags(here)
    wanted = _wanted(here, workflow.run_id_argument(args))
    found = await server.definition_of(word)
    dag = args.name or found.dag
    run_id = await _sent(here, here.ref(dag, wanted.run_id), lambda: server.enqueue(found.file, wanted))
    fields = {"dag": dag, "run-id": run_id, "queue": args.queue, "params": wanted.params}
    here.said("INFO", "Enqueued dag-run", fields)
    return 0


def _refuse_local_flags(here: Here) -> None:
    args = here.args
    here.refuse(
        default_working_dir=args.default_working_dir,
        schedule_time=args.schedule_time,
        trigger_actor=args.trigger_actor,
        trigger_type=args.trigger_type != "manual",
        worker_id=getattr(args, "worker_id", "local") != "local",
    )


def _wanted(here: Here, run_id: str) -> Any:
    from secure_dagu.contexts.server import Wanted
    from secure_dagu.dag.declarations import caller_labels

    args = here.args
    return Wanted(
        run_id=run_id,
        params=workflow.caller_params(args),
        name=args.name,
        labels=caller_labels(args.labels),
        profile=args.profile,
        no_reuse=args.no_reuse,
        queue=getattr(args, "queue", ""),
    )


# ── status, history ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _status(here: Here) -> int:
    from secure_dagu.cli import status
    from secure_dagu.contexts.server import LATEST

    args, server = here.args, here.server
    if status.names_coordinator(args):
        raise InvalidRequest("flags of a coordinator cannot be combined with a context", fix="say --context local")
    if not args.dag:
        raise InvalidRequest("accepts 1 arg(s), received 0", fix="name a DAG; `secure-dagu history` lists all runs")
    if args.sub_run_id and not args.run_id:
        raise InvalidRequest("--sub-run-id requires --run-id")
    ref = here.ref(await server.dag_of(args.dag), args.run_id or LATEST)
    child = _id(args.sub_run_id) if args.sub_run_id else ""
    try:
        found = await server.run(ref, child=child)
    except NotFound as error:
        what = f"failed to find run data for dag-run ID {args.run_id}"
        if not args.run_id:
            what = f"failed to find the latest run data for DAG {ref.name}: no status data"
        raise NotFound(f"failed to extract attempt: {what}", why=str(error)) from error
    document = server.document(found)
    read = None
    if not args.json and not args.quiet:
        read = await _streams(server, here.ref(ref.name, args.run_id or found.dag_run_id), document, child=child)
    status.show(args, document, read=read)
    return 0


async def _history(here: Here) -> int:
    from secure_dagu.cli import history
    from secure_dagu.contexts.server import Filter

    args = here.args
    asked = history.query_of(args)
    wanted = Filter(
        name=await here.server.dag_of(args.dag) if args.dag else "",
        since=asked.since,
        until=asked.until,
        statuses=asked.statuses,
        labels=asked.labels,
        run_id_part=asked.run_id,
    )
    history.show(args, [one.document() async for one in here.server.runs(wanted, limit=asked.limit)])
    return 0


# ── stop, retry, restart, dequeue ────────────────────────────────────────────────────────────────────────────────────


async def _stop(here: Here) -> int:
    args, server = here.args, here.server
    dag = await server.dag_of(workflow.dag_argument(args))
    runs = [here.ref(dag, args.run_id)] if args.run_id else await _active(here, dag)
    stopped = 0
    for ref in runs:
        with contextlib.suppress(NotRunning):  # it has ended meanwhile, or had before
            await server.stop(ref)
            stopped += 1
            here.said("INFO", "Dag-run stop requested", {"dag": dag, "run-id": ref.run_id})
    if not stopped:
        here.said("INFO", "No running DAG runs found", {"dag": dag, "run-id": args.run_id})
    return 0


async def _retry(here: Here) -> int:
    from secure_dagu.run.model import RunStatus

    args, server = here.args, here.server
    word = workflow.dag_argument(args)
    if not args.run_id:
        raise InvalidRequest('required flag(s) "run-id" not set')
    if not args.step and (args.downstream or args.sub_run_id):
        flag = "--downstream" if args.downstream else "--sub-run-id"
        raise InvalidRequest(f"{flag} requires --step")
    here.refuse(default_working_dir=args.default_working_dir, worker_id=args.worker_id != "local")
    ref = here.ref(await server.dag_of(word), args.run_id)
    child = _id(args.sub_run_id) if args.sub_run_id else ""
    before = await server.run(ref, child=child)
    await server.retry(ref, step=args.step, downstream=args.downstream, child=child)
    async with workflow.stop_on_signals() as stop:
        found = await _until(here, ref, stop, lambda now: now.mark != before.mark, child=child)
        if found.status is RunStatus.QUEUED:
            here.said("INFO", "Enqueued dag-run", {"dag": ref.name, "run-id": ref.run_id})
            return 0
        return await _show_end(here, ref, await _until(here, ref, stop, _is_over, child=child), child=child)


async def _restart(here: Here) -> int:
    from secure_dagu.local.run_ids import new_run_id
    from secure_dagu.run.model import RunStatus

    args, server = here.args, here.server
    dag = await server.dag_of(workflow.dag_argument(args))
    here.refuse(schedule_time=args.schedule_time)
    if args.run_id:
        found = await server.run(here.ref(dag, args.run_id))
        running = [here.ref(dag, args.run_id)] if found.status is RunStatus.RUNNING else []
        status = found.status
    else:
        running = await _active(here, dag)
        status = RunStatus.NOT_STARTED if running else await _newest_status(here, dag)
    if not running:
        raise Conflict(f"DAG {dag} is not running, current status: {status.word}")
    old = running[0]
    async with workflow.stop_on_signals() as stop:
        with contextlib.suppress(NotRunning):
            await server.stop(old)
        here.said("INFO", "Dag-run stop requested", {"dag": dag, "run-id": old.run_id})
        await _until(here, old, stop, _is_over, stops_it=False)
        if stop.is_set():
            return 0
    run_id = new_run_id()
    return await _begun(here, here.ref(dag, run_id), lambda: _again(server, old, run_id))


async def _dequeue(here: Here) -> int:
    from secure_dagu.run.model import DagRunRef

    args, server = here.args, here.server
    if len(args.queue) != 1:
        raise InvalidRequest(f"accepts 1 arg(s), received {len(args.queue)}")
    queue = args.queue[0]
    name, colon, run_id = args.dag_run.partition(":")
    if args.dag_run and not (name and colon and run_id):
        raise InvalidRequest(f'invalid dag-run "{args.dag_run}": expected name:id')
    wanted = DagRunRef(name, _id(run_id)) if args.dag_run else None
    async with contextlib.aclosing(server.queued(queue)) as waiting:
        async for ref in waiting:
            if wanted is None or ref == wanted:
                await server.dequeue(ref)
                here.said("INFO", "Dequeued dag-run", {"dag": ref.name, "run-id": ref.run_id, "queue": queue})
                return 0
    why = f"{name}:{run_id} is not queued there" if wanted else ""
    raise NotFound(f"no dag-run found in queue {queue}", why=why)


async def _active(here: Here, dag: str) -> list[DagRunRef]:
    """Return the runs of a DAG that go on, newest first."""
    from secure_dagu.contexts.server import MAX_PAGE, Filter
    from secure_dagu.run.model import RunStatus

    wanted = Filter(name=dag, statuses=frozenset({RunStatus.RUNNING, RunStatus.WAITING}))
    return [here.ref(dag, one.dag_run_id) async for one in here.server.runs(wanted, limit=MAX_PAGE)]


async def _newest_status(here: Here, dag: str) -> Any:
    from secure_dagu.contexts.server import LATEST
    from secure_dagu.run.model import RunStatus

    try:
        return (await here.server.run(here.ref(dag, LATEST))).status
    except NotFound:
        return RunStatus.NOT_STARTED


# ── waiting for the end of a run ─────────────────────────────────────────────────────────────────────────────────────


async def _begun(here: Here, ref: DagRunRef, begin: Callable[[], Awaitable[str]]) -> int:
    """Begin a run, wait for its end, and print its summary; SIGINT and SIGTERM stop the run.

    Args:
        here: the command line.
        ref: the run, under the id that we ask for.
        begin: asks for it, and returns the id that it has.
    """
    async with workflow.stop_on_signals() as stop:
        ref = here.ref(ref.name, await _sent(here, ref, begin))
        here.said("INFO", "DAG run started", {"dag": ref.name, "run-id": ref.run_id, "context": here.context.name})
        return await _show_end(here, ref, await _until(here, ref, stop, _is_over))


async def _sent(here: Here, ref: DagRunRef, send: Callable[[], Awaitable[str]]) -> str:
    """Ask for a run, once; when the answer is lost, say how to find out whether there is one."""
    try:
        return await send()
    except Unavailable as error:
        if error.reason not in ("lost", "timeout", "not_http"):
            raise
        raise Unavailable(
            f"whether there is a dag-run {ref.run_id} is not known", why=str(error), fix=_look(here, ref)
        ) from error


async def _show_end(here: Here, ref: DagRunRef, found: Details, *, child: str = "") -> int:
    document = here.server.document(found)
    read = None if here.args.quiet else await _streams(here.server, ref, document, child=child)
    return workflow.show_end(here.args, document, read=read)


async def _until(
    here: Here,
    ref: DagRunRef,
    stop: asyncio.Event,
    is_wanted: Callable[[Details], bool],
    *,
    child: str = "",
    stops_it: bool = True,
) -> Details:
    """Look at a run until it is as wanted. A server that is away meanwhile is waited for.

    Args:
        here: whom to ask.
        ref: the run.
        stop: asks for the end of the run, once, if `stops_it`; else it ends the waiting.
        is_wanted: what is waited for.
        child: that run below it is looked at.
        stops_it: see `stop`.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    pause, is_asked, gone_since, found = FIRST_LOOK_S, False, 0.0, None
    while True:
        try:
            if stop.is_set() and stops_it and not is_asked:
                with contextlib.suppress(NotRunning):  # not yet, or not any more: the next look tells
                    await here.server.stop(ref)
                    is_asked = True
                    here.said("INFO", "Dag-run stop requested", {"dag": ref.name, "run-id": ref.run_id})
            found = await here.server.run(ref, child=child)
            gone_since = 0.0
            if is_wanted(found) or (stop.is_set() and not stops_it):
                return found
        except NotFound:
            if not is_asked or found is None:
                raise
            return found  # it waited in a queue, and was taken out
        except Unavailable as error:
            if not gone_since:
                gone_since = loop.time()
                here.said("WARN", "the server is away", {"why": str(error), "run-id": ref.run_id})
            if loop.time() - gone_since > PATIENCE_S:
                raise _lost(here, ref, error) from error
        if stop.is_set():
            await asyncio.sleep(pause)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
        pause = min(pause * 1.5, LAST_LOOK_S)


def _lost(here: Here, ref: DagRunRef, error: Unavailable) -> Unavailable:
    return Unavailable(f"what became of dag-run {ref.run_id} is not known", why=str(error), fix=_look(here, ref))


def _look(here: Here, ref: DagRunRef) -> str:
    return f"`secure-dagu --context {here.context.name} status {ref.name} -r {ref.run_id}` once the server is back"


def _is_over(found: Details) -> bool:
    from secure_dagu.run.model import RunStatus

    return found.status.is_terminal or found.status is RunStatus.WAITING


async def _streams(server: Server, ref: DagRunRef, document: dict[str, Any], *, child: str = "") -> Reader:
    """Fetch the last lines of every stream of a run; return what gives them by the path in its node."""
    from secure_dagu.cli import tree
    from secure_dagu.contexts.answers import HANDLERS

    found: dict[str, tree.Tail] = {}
    nodes = [*document["nodes"], *(document[key] for key in HANDLERS if key in document)]
    for node in nodes:
        for stream in ("stdout", "stderr"):
            path = node[stream]
            if not path or path in found or len(found) >= MAX_STREAMS:
                continue
            with contextlib.suppress(NotFound):
                log = await server.log(ref, node["step"]["name"], stream, child=child)
                if log.content.strip():
                    lines = log.content.removesuffix("\n").split("\n")[-tree.LAST_LINES :]
                    kept = tuple(line.removesuffix("\r") for line in lines)
                    found[path] = tree.Tail(kept, max(0, log.total_lines - len(kept)))
    return found.get


def _id(text: str) -> str:
    """Return the id of a run as one can be.

    Raises:
        InvalidRequest: it cannot.
    """
    import re

    if not re.fullmatch(r"[-A-Za-z0-9_]{1,128}", text):
        raise InvalidRequest("dag-run ID must only contain alphanumeric characters, dashes, and underscores")
    return text


_COMMANDS: dict[str, Callable[[Here], Awaitable[int]]] = {
    "start": _start,
    "enqueue": _enqueue,
    "status": _status,
    "history": _history,
    "stop": _stop,
    "retry": _retry,
    "restart": _restart,
    "dequeue": _dequeue,
}
