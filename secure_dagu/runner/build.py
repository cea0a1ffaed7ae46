"""Steps of build DAGs: what goes on around the execution of one (workflow language, section 3.17).

The order is: locks, preconditions, the decision, the command, which writes beside the final file, and the commit. A
`Gate` holds what one execution has locked and staged; `runner.steps` passes through it. What is decided and how a file
is put in its place is told by `dag.recipes` and `runner.build_store`; nothing here decides by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dag import recipes
from secure_dagu.dag.model import Dag, Step
from secure_dagu.dag.recipes import NO_PATHS, Decision, Manifest, Reason, StepPaths, Verdict
from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, first_unresolved, resolve
from secure_dagu.errors import DefinitionError, SecureDaguError, Unavailable
from secure_dagu.run.machine import Outcome, Result
from secure_dagu.run.snapshot import encode
from secure_dagu.runner import environment
from secure_dagu.runner.api import RunRequest
from secure_dagu.runner.build_store import Stopped, Store, digest, remove
from secure_dagu.runner.environment import Place
from secure_dagu.runner.files import path_below
from secure_dagu.runner.shell import Chosen

if TYPE_CHECKING:
    from secure_dagu.runner.runner import Execution

PLATFORM = f"{sys.platform}-{platform.machine()}"


class Planned(Struct, frozen=True, kw_only=True):
    """A run before it begins, or one that will not."""

    request: RunRequest
    dag: Dag
    work_dir: Path

    def log(self, level: str, message: str, **fields: str) -> None:
        """Say nothing."""


def find_paths(place: Planned, scope: Scope) -> Mapping[str, StepPaths]:
    """Return the files of a build DAG's steps.

    Args:
        place: the run.
        scope: parameters and root environment as far as they are known before the run.

    Raises:
        DefinitionError: this run may not build; a path that cannot be used.
    """
    request, dag = place.request, place.dag
    if request.materializations is None:
        raise DefinitionError(
            "a build DAG runs on the host that has its files, not on a worker", fix="set `worker_selector: local`"
        )
    base = _base(request, dag, scope)
    paths = recipes.find_paths(dag, scope, lambda text: _canonical(base, text))
    root = environment.root_dir(place, scope)
    targets = {
        step.name: [
            _canonical(path_below(root, resolve(step.working_dir, scope, FieldMode.FIELD)), path)
            for path in (resolve(stream.path, scope, FieldMode.PATH) for stream in (step.stdout, step.stderr))
            if path
        ]
        for step in dag.steps
    }
    recipes.check_streams(dag, paths, targets)
    return paths


def _base(request: RunRequest, dag: Dag, scope: Scope) -> Path | None:
    """Return what relative paths are below: the explicit working directory, else the directory of the DAG's file."""
    if token := first_unresolved(dag.working_dir, scope, FieldMode.FIELD):
        raise DefinitionError(f"working_dir of a build DAG: {token} has no value when the plan is made")
    explicit = resolve(dag.working_dir, scope, FieldMode.FIELD) or request.default_working_dir
    path = path_below(request.dag_dir or Path(), explicit)
    return path if path.is_absolute() else None


def _canonical(base: Path | None, text: str) -> str:
    """Return the one absolute path of a file: links among its folders are followed, one in its place is not."""
    path = path_below(base or Path(), text)
    if base is None and not path.is_absolute():
        raise DefinitionError(
            f"the build path {text!r} is relative to nothing",
            why="the DAG has no working_dir and was not read from a file",
            fix="set working_dir",
        )
    if path.name in ("", ".."):
        raise DefinitionError(f"the build path {text!r} names no file")
    return os.path.join(os.path.realpath(path.parent), path.name)


class Judged(Struct, frozen=True, kw_only=True):
    """A decision and what it was made of."""

    decision: Decision
    recipe: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digest by name."""
    manifest: Manifest | None = None


def judge(
    request: RunRequest,
    dag: Dag,
    step: Step,
    paths: StepPaths,
    recipe: str,
    *,
    has_secrets: bool,
    control_ran: bool,
    stop: Callable[[], bool],
) -> Judged:
    """Look at a step's files and decide. Reads whole files: to be called in a thread.

    Raises:
        OSError, DefinitionError: a file cannot be read, or is no plain file.
        Stopped: `stop` says so.
    """
    assert request.materializations is not None, "or nothing is built"
    store = Store(request.materializations)
    inputs: dict[str, str] = {}
    for name, path in paths.inputs.items():
        content = digest(path, stop)
        if content is None:
            return Judged(decision=Decision(Verdict.NONE, Reason.INPUT_MISSING, name))
        inputs[name] = content
    output = digest(paths.output, stop) if paths.output else None
    standing = recipes.standing(dag, step, has_secrets=has_secrets, no_reuse=request.no_reuse)
    if standing is not None and standing.verdict is Verdict.ALWAYS:
        return Judged(decision=standing, inputs=inputs)
    manifest = store.manifest(paths.output)
    if standing is not None:
        decision = standing
    elif control_ran:
        decision = Decision(Verdict.EXECUTE, Reason.CONTROL_DEPENDENCY_RAN)
    else:
        decision = recipes.decide(manifest=manifest, recipe=recipe, inputs=inputs, output=output)
    return Judged(decision=decision, recipe=recipe, inputs=inputs, manifest=manifest)


def shown(judged: Judged, phase: str, paths: StepPaths, producer: str) -> Mapping[str, str]:
    """Return the `build` object of a node (section 6.3)."""
    values = {
        "decision": judged.decision.verdict,
        "phase": phase,
        "reason": judged.decision.reason,
        "detail": judged.decision.detail,
        "fingerprint": recipes.fingerprint(judged.recipe, judged.inputs) if judged.recipe else "",
        "materializationKey": recipes.key_of(paths.output) if paths.output else "",
        "producerRun": producer,
    }
    return {key: str(value) for key, value in values.items() if value}


class Gate:
    """One execution of one step of a build DAG, from its locks to its commit."""

    def __init__(self, run: Execution, step: Step, paths: StepPaths | None) -> None:
        assert run.request.materializations is not None, "or the run is refused"
        self._run = run
        self._step = step
        self._paths = paths = paths or NO_PATHS
        self._store = Store(run.request.materializations)
        self._locks: list[int] = []
        self._staged = recipes.staging_path(paths.output, secrets.token_hex(8)) if paths.output else ""
        self._phase = ""
        self._judged = Judged(decision=Decision(Verdict.NONE, Reason.EVALUATION_FAILED))
        self._is_closed = False

    # ── before the command ───────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, scope: Scope) -> Scope | None:
        """Lock the step's files; return `scope` with its inputs, None when the run was stopped meanwhile.

        Raises:
            SecureDaguError: they cannot be locked, or an interrupted commit cannot be finished.
        """
        try:
            await self._lock()
        except Stopped:
            return None
        except OSError as error:
            self._undecided(Reason.STORE_UNAVAILABLE)
            raise Unavailable("the store of build manifests cannot be used", why=error.strerror or "") from None
        if self._paths.output:
            try:
                await asyncio.to_thread(self._store.recover, self._paths.output, lambda: self._is_closed)
            except (OSError, SecureDaguError) as error:
                self._undecided(Reason.RECOVERY_FAILED, str(error))
                raise DefinitionError("what an interrupted run left cannot be put right", why=str(error)) from None
        return replace(scope, build_inputs=self._paths.inputs)

    async def _lock(self) -> None:
        wanted = dict.fromkeys(self._paths.inputs.values(), False)
        if self._paths.output:
            wanted[self._paths.output] = True
        if wanted:
            self._store.make()
        for path, exclusive in sorted(wanted.items()):  # one order for everybody, or two could wait for each other
            self._locks.append(await self._store.lock(path, exclusive=exclusive, stop=self._run.halt()))

    def with_output(self, scope: Scope) -> Scope:
        """Return `scope` with the staging file, which only commands and their environment may know."""
        return replace(scope, build_outputs={self._paths.name: self._staged} if self._paths.name else {})

    def precondition_not_met(self) -> None:
        """Take notice that the step is skipped."""
        self._undecided(Reason.PRECONDITION_NOT_MET)

    def precondition_failed(self) -> None:
        """Take notice that a precondition could not be evaluated."""
        self._undecided(Reason.PRECONDITION_ERROR)

    def _undecided(self, reason: Reason, detail: str = "") -> None:
        self._tell(Judged(decision=Decision(Verdict.NONE, reason, detail)), "ended")

    async def decide(self, scope: Scope, *, chosen: Chosen, cwd: Path) -> Outcome | None:
        """Decide whether to run; return the outcome of a step that need not.

        Raises:
            DefinitionError: an input is missing, or something could not be read.
        """
        run, step, paths = self._run, self._step, self._paths
        try:
            recipe = recipe_of(run, step, scope, paths, chosen=chosen, cwd=cwd)
            judged = await asyncio.to_thread(
                judge,
                run.request,
                run.dag,
                step,
                paths,
                recipe,
                has_secrets=bool(run.secrets),
                control_ran=run.has_executed(step.depends),
                stop=lambda: self._is_closed or run.halt().is_set(),
            )
        except Stopped:
            return Outcome(result=Result.ABORTED)
        except (OSError, SecureDaguError) as error:
            self._undecided(Reason.EVALUATION_FAILED, str(error))
            raise DefinitionError("the build files cannot be compared", why=str(error)) from None
        if judged.decision.verdict is Verdict.NONE:
            self._tell(judged, "ended")
            missing = judged.decision.detail
            raise DefinitionError(f"the build input {missing!r} is missing", why=paths.inputs[missing])
        if judged.decision.verdict is Verdict.REUSE:
            self._tell(judged, "reused")
            return Outcome(
                result=Result.SUCCEEDED,
                exit_code=0,
                published={"stepOutputsValue": encode(dict(paths.declared()))},
            )
        if paths.output:
            Path(paths.output).parent.mkdir(parents=True, exist_ok=True)
        self._tell(judged, "executing")
        return None

    # ── after it ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self) -> Mapping[str, str]:
        """Put what the command has made in its place; return the declared path.

        Raises:
            DefinitionError: there is nothing, an input has changed meanwhile, or the disk refuses.
        """
        judged, paths = self._judged, self._paths
        try:
            now, made = await asyncio.to_thread(self._digests)
            for name, before in judged.inputs.items():
                if now[name] != before:
                    changed = Decision(judged.decision.verdict, Reason.INPUT_CHANGED_DURING_EXECUTION, name)
                    self._tell(replace(judged, decision=changed), "ended")
                    raise DefinitionError(
                        f"the build input {name!r} changed while the step ran", fix="run again when nobody writes to it"
                    )
            if paths.output:
                self._put_in_place(made)
        except OSError as error:
            raise DefinitionError("the build output could not be put in its place", why=error.strerror or "") from None
        self._tell(judged, "committed" if paths.output else "executed")
        return paths.declared()

    def _digests(self) -> tuple[Mapping[str, str | None], str | None]:
        """Return the digests of the inputs and of the staged file as they are now."""

        def stop() -> bool:
            return self._is_closed  # not when the run stops: a command that has succeeded has succeeded

        now = {name: digest(path, stop) for name, path in self._paths.inputs.items()}
        return now, digest(self._staged, stop) if self._staged else None

    def _put_in_place(self, made: str | None) -> None:
        name = self._paths.name
        if made is None:
            raise DefinitionError(
                f"the step has not made its output {name!r}", fix=f"let the command write to ${{outputs.{name}}}"
            )
        judged = self._judged
        manifest = Manifest(recipe=judged.recipe, inputs=judged.inputs, output=made, producer=self._own_run())
        for act in self._store.acts(self._staged, self._paths.output, manifest):
            act()  # not in a thread: a cancelled wait for one would release our locks while it still writes

    def close(self) -> None:
        """Remove what was staged and not committed; release the locks."""
        self._is_closed = True
        if self._phase == "executing":  # the command failed, or what it made
            self._tell(self._judged, "ended")
        elif not self._phase:
            is_stopped = self._run.halt().is_set()
            self._undecided(Reason.CANCELLED_BEFORE_DECISION if is_stopped else Reason.EVALUATION_FAILED)
        if self._staged:
            with contextlib.suppress(OSError):
                remove(self._staged)
        for handle in self._locks:
            os.close(handle)

    def _own_run(self) -> str:
        return str(self._run.request.task.run)

    def _tell(self, judged: Judged, phase: str) -> None:
        """Let the node show where the build of the step is."""
        self._judged, self._phase = judged, phase
        producer = judged.manifest.producer if phase == "reused" and judged.manifest else ""
        if phase == "committed":
            producer = self._own_run()
        self._run.publish(self._step.name, {"build": shown(judged, phase, self._paths, producer)})


def recipe_of(place: Place, step: Step, scope: Scope, paths: StepPaths, *, chosen: Chosen, cwd: Path) -> str:
    """Return the recipe of a step as it would run here."""
    return recipes.recipe(
        step,
        scope,
        paths,
        interpreter=[chosen.program, *chosen.args],
        cwd=str(cwd),
        work_dir=str(place.work_dir),
        platform=PLATFORM,
    )
