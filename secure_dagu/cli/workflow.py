"""What the commands share that run workflows on this host: where things are, which DAG is meant, how a run is shown."""

from __future__ import annotations

import argparse
import contextlib
import errno
import getpass
import re
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import echo, output
from secure_dagu.errors import DefinitionError, InvalidRequest

if TYPE_CHECKING:
    import asyncio

    from secure_dagu.cli.tree import Reader
    from secure_dagu.config.load import Loaded
    from secure_dagu.dag.model import Definition
    from secure_dagu.local.places import Places
    from secure_dagu.local.runs import LocalRuns, Start
    from secure_dagu.local.sent_children import Remote

TRIGGERS = ("scheduler", "manual", "webhook", "subdag", "retry", "catchup")
_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""A pipe that was closed (`| head`), a terminal that is gone."""
_RUN_ID = re.compile(r"[-A-Za-z0-9_]*\Z")
_SCHEDULED = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})\Z")


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_dag(parser: argparse.ArgumentParser, *, with_params: bool = True) -> None:
    """Declare the DAG and, behind `--`, its parameters."""
    parser.add_argument("dag", metavar="DAG", nargs="*", help="a workflow: its name, its file's name, or a path")
    if with_params:
        parser.add_argument(
            "-p", "--params", dest="params_text", metavar="TEXT", default="",
            help="parameters: words, key=value, or JSON; those after `--` win over it",
        )  # fmt: skip
        parser.set_defaults(params=[])


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare some of the options that several commands have."""
    options: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "run-id": (("-r", "--run-id"), {"metavar": "ID", "default": "", "help": "the run's id (default: a new one)"}),
        "name": (("-N", "--name"), {"metavar": "NAME", "default": "", "help": "call the DAG something else"}),
        "labels": (("--labels", "--tags"), {"metavar": "A,B=C", "default": "", "help": "extra labels of the run"}),
        "profile": (("--profile",), {"metavar": "NAME", "default": "", "help": "variables and secrets to run with"}),
        "default-working-dir": (
            ("--default-working-dir",),
            {"metavar": "DIR", "default": "", "help": "working directory where the workflow names none"},
        ),
        "no-reuse": (("--no-reuse",), {"action": "store_true", "help": "build workflows: compute everything anew"}),
        "trigger-type": (
            ("--trigger-type",),
            {"metavar": "TYPE", "default": "manual", "help": f"what starts it: {', '.join(TRIGGERS)}"},
        ),
        "schedule-time": (
            ("--schedule-time",),
            {"metavar": "TIME", "default": "", "help": "the time that it was scheduled for, RFC 3339"},
        ),
        "worker-id": (("--worker-id",), {"metavar": "ID", "default": "local", "help": "who runs it (default local)"}),
        "trigger-actor": (("--trigger-actor",), {"default": "", "help": argparse.SUPPRESS}),
    }
    for name in names:
        words, settings = options[name]
        parser.add_argument(*words, **settings)


def dag_argument(args: argparse.Namespace) -> str:
    """Return the DAG that was named.

    Raises:
        InvalidRequest: none was, or more words came before `--`.
    """
    if not args.dag:
        raise InvalidRequest("requires at least 1 arg(s), only received 0")
    if len(args.dag) > 1:
        words = " ".join(args.dag[1:])
        raise InvalidRequest(f"unexpected arguments after DAG definition: {words} (use '--' before parameters)")
    return str(args.dag[0])


def caller_params(args: argparse.Namespace) -> str:
    """Return the parameters as one text: what came after `--`, else `--params`."""
    return join_words(args.params) if args.params else str(args.params_text)


def join_words(words: Sequence[str]) -> str:
    """Return words as one text that splits into the same words; a single JSON object or array stays as it is."""
    if len(words) == 1 and words[0].lstrip()[:1] in ("{", "["):
        return words[0]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if word and not re.search(r"[\s\"`]", word):
        return word
    if word[:1] in ('"', "`") or re.match(r"[A-Za-z0-9_]+=[\"`]", word):
        return word  # quoted already: `-- 'k="a b"'`
    name, equals, value = word.partition("=")
    if not equals or re.search(r"[\s\"`]", name):
        name, equals, value = "", "", word
    inner = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{inner}"'


def run_id_argument(args: argparse.Namespace) -> str:
    """Return the run id that was given, or a new one.

    Raises:
        InvalidRequest: it has other characters, or too many.
    """
    from secure_dagu.local.run_ids import new_run_id

    given = str(args.run_id)
    if not _RUN_ID.match(given):
        raise InvalidRequest("dag-run ID must only contain alphanumeric characters, dashes, and underscores")
    if len(given) > 64:
        raise InvalidRequest("dag-run ID must be at most 64 characters long")
    return given or new_run_id()


def name_argument(args: argparse.Namespace) -> str:
    """Return `--name`; empty when none was given.

    Raises:
        InvalidRequest: no DAG can be called so.
    """
    from secure_dagu.dag.load import MAX_NAME_LENGTH, is_dag_name

    given = str(args.name)
    if given and not is_dag_name(given):
        rule = f"at most {MAX_NAME_LENGTH} letters, digits, `_`, `-` and `.`"
        raise InvalidRequest(f'invalid --name value "{given}"', why=f"a DAG's name is {rule}")
    return given


def schedule_time(args: argparse.Namespace) -> str:
    """Return `--schedule-time` in UTC.

    Raises:
        InvalidRequest: it is no RFC 3339 time.
    """
    given = str(args.schedule_time)
    if not given:
        return ""
    from datetime import UTC, datetime

    bad = InvalidRequest(f'invalid --schedule-time value "{given}": must be RFC 3339 format')
    if not _SCHEDULED.match(given):
        raise bad
    try:
        moment = datetime.fromisoformat(given).astimezone(UTC)
    except (ValueError, OverflowError):
        raise bad from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def check_trigger(word: str) -> None:
    """Check `--trigger-type`.

    Raises:
        InvalidRequest: it is none.
    """
    if word not in TRIGGERS:
        raise InvalidRequest(f'invalid trigger-type "{word}": must be one of {", ".join(TRIGGERS)}')


def actor() -> str:
    """Return who starts a run, as its record says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


# ── this host ────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings_of(args: argparse.Namespace) -> Loaded:
    """Return the settings; what should be said about them goes to standard error."""
    from secure_dagu.config.load import load

    loaded = load(args)
    said = echo_of(args, loaded)
    for warning in loaded.warnings:
        said("WARN", warning, {})
    return loaded


def places_of(loaded: Loaded) -> Places:
    """Return where this host keeps its runs."""
    from secure_dagu.assembly import places

    return places.places_of(loaded)


def base_config_of(loaded: Loaded) -> str:
    """Return the text of `base.yaml`; empty when there is none."""
    from secure_dagu.assembly import places

    return places.base_config_of(loaded)


def echo_of(args: argparse.Namespace, loaded: Loaded) -> echo.Echo:
    """Return who says the log lines of a run."""
    return echo.silent if args.quiet else echo.to_stderr(as_json=loaded.settings.core.log_format == "json")


def remote_of(args: argparse.Namespace, loaded: Loaded) -> Remote | None:
    """Return the way to workers for sub-DAGs that select some; None where no coordinator is configured."""
    if not has_coordinator(loaded):
        return None
    from secure_dagu.cli import remote
    from secure_dagu.local.sent_children import Remote

    by_default = loaded.settings.core.default_execution_mode == "distributed"
    return Remote(connect=lambda: remote.connect(args), distributed_by_default=by_default)


def has_coordinator(loaded: Loaded) -> bool:
    """Tell whether somebody said where a coordinator is."""
    return any(loaded.sources[key] != "default" for key in ("client.coordinators", "worker.coordinators"))


def load_dag(name: str, places: Places, *, called: str = "") -> tuple[Definition, Path]:
    """Return the definition that `name` means, and its file.

    Raises:
        DefinitionError: it cannot be read, or does not load.
    """
    from secure_dagu.dag.load import load_definition
    from secure_dagu.local import definitions
    from secure_dagu.runner.files import schema_reader

    path = definitions.candidate(name, places.dags_dir)
    try:
        text = definitions.read(path)
        reader = schema_reader(path.parent, Path.cwd())
        return load_definition(
            text, file=str(path), name=called or None, base_config=places.base_config, read_schema=reader
        ), path
    except DefinitionError as error:
        raise definitions.load_error(name, error) from error


def dag_name(name: str, places: Places) -> str:
    """Return the name of the DAG whose runs a command is about: its file may be gone, or not load any more."""
    from secure_dagu.local import history

    return history.name_of(name, places.dags_dir, base_config=places.base_config)


def profile_of(loaded: Loaded, name: str) -> dict[str, Any]:
    """Return the fields of a `Start` that a profile gives.

    Raises:
        NotFound: there is no such profile.
    """
    if not name:
        return {}
    from secure_dagu.local.profiles import Profiles

    variables, secrets = Profiles(loaded.home.config_dir / "profiles").values(name)
    return {"profile": name, "profile_env": variables, "profile_secrets": secrets}


def check_plan(definition: Definition, params: str) -> None:
    """Find out before a run is recorded what would end it before its first step.

    Raises:
        DefinitionError: the steps wait for each other, or the parameters do not fit.
    """
    from secure_dagu.local import starting

    starting.check_plan(definition, params)


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def stop_on_signals(*, is_here: bool = False) -> AsyncIterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set: the run stops, its handlers run, the exit code is 0.

    `is_here`: this process executes the run, so a terminal that goes away (SIGHUP) stops it as well: its steps would be
    left behind with nobody to end them. `nohup` is respected.
    """
    import asyncio  # is a third of what parsing the command line may take

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if is_here and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def run_to_end(args: argparse.Namespace, runs: LocalRuns, start: Start, *, record: Any, **how: Any) -> int:
    """Run one attempt in the foreground, print its summary, and return the exit code."""
    from secure_dagu.security.shield import shield

    shield()  # its steps may not read each other's secrets here
    async with stop_on_signals(is_here=True) as stop:
        final = await runs.run(record, start, stop=stop, **how)
    return show_end(args, final)


def show_end(args: argparse.Namespace, final: dict[str, Any], *, read: Reader | None = None) -> int:
    """Print the summary of a run that has ended; return the exit code (workflow language, section 5.3).

    `read`: gives the end of a stream by the path in its node; None reads files of this host.
    """
    code, error = outcome_of(final)
    if not args.quiet:
        from secure_dagu.cli import tree

        try:
            print("\n".join(tree.tree(final, read=read or tree.read_tail)), flush=True)
        except OSError as gone:
            if gone.errno not in _NOBODY_READS:
                raise
            output.give_up(1)  # the exit code tells all the same
        if code:
            what = f"failed to execute the dag-run {final['name']} (dag-run ID: {final['dagRunId']})"
            output.say(f"Error: {what}: {error}")
    return code


def outcome_of(final: dict[str, Any]) -> tuple[int, str]:
    """Return the exit code of a run and what went wrong first."""
    from secure_dagu.run.model import RunStatus, StepStatus

    status = RunStatus(final["status"])
    init = final.get("onInit") or {}
    if status is RunStatus.ABORTED and init.get("status") != StepStatus.FAILED:
        return 0, ""
    if status in (RunStatus.SUCCEEDED, RunStatus.WAITING, RunStatus.QUEUED):
        return 0, ""
    handlers = [final[key] for key in ("onInit", "onSuccess", "onFailure", "onAbort", "onExit") if final.get(key)]
    errors = [node["error"] for node in (*final.get("nodes", ()), *handlers) if node.get("error")]
    first = str(errors[0] if errors else final.get("error") or status.word)
    return 1, first.splitlines()[0] if first.strip() else status.word
