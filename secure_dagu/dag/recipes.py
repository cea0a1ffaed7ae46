"""Build DAGs: which files steps read and make, and whether what is there already will do. Pure.

A step that declares a path output is a recipe: from the contents of its inputs, its text, its parameters and its
environment it makes one file. What it made is remembered in a manifest; while nothing that went in has changed and the
file is still the one that was made, the step need not run (workflow language, section 3.17).

What may be declared is checked where a step is read (`dag.build`).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dag import formats
from secure_dagu.dag.model import Dag, Step
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, first_unresolved, resolve, resolve_tree
from secure_dagu.errors import DefinitionError

HOST_COMMANDS = ("command", "script", "exec")
"""Kinds of steps that may read and make files."""
STAGING_PREFIX = ".secure-dagu-"


class Verdict(StrEnum):
    """What is decided about a step."""

    REUSE = "reuse"
    EXECUTE = "execute"
    ALWAYS = "always"
    """It is executed whatever there is: it cannot be reused."""
    DEFERRED = "deferred"
    """Only in a preview: it depends on what a step before it will make."""
    NONE = "none"
    """Nothing could or need be decided."""


class Reason(StrEnum):
    """Why."""

    MATCHED = "matched"
    MANIFEST_MISSING = "manifest_missing"
    RECIPE_CHANGED = "recipe_changed"
    INPUT_CHANGED = "input_changed"
    OUTPUT_MISSING = "output_missing"
    OUTPUT_CHANGED = "output_changed"
    CONTROL_DEPENDENCY_RAN = "control_dependency_ran"
    REUSE_DISABLED = "reuse_disabled"
    INPUT_MISSING = "input_missing"
    INELIGIBLE = "ineligible"
    UPSTREAM_WOULD_EXECUTE = "upstream_would_execute"
    PRECONDITION_NOT_MET = "precondition_not_met"
    PRECONDITION_ERROR = "precondition_error"
    STORE_UNAVAILABLE = "store_unavailable"
    EVALUATION_FAILED = "evaluation_failed"
    RECOVERY_FAILED = "recovery_failed"
    CANCELLED_BEFORE_DECISION = "cancelled_before_decision"
    INPUT_CHANGED_DURING_EXECUTION = "input_changed_during_execution"


class Decision(Struct, frozen=True):
    """A verdict with its reason; `detail` names what it is about, such as an input."""

    verdict: Verdict
    reason: Reason
    detail: str = ""

    @property
    def runs(self) -> bool:
        """Tell whether the step is executed."""
        return self.verdict in (Verdict.EXECUTE, Verdict.ALWAYS)


# ── which files ──────────────────────────────────────────────────────────────────────────────────────────────────────


class StepPaths(Struct, frozen=True, kw_only=True):
    """The files of one step as canonical absolute paths."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """`${inputs.<name>}`."""
    name: str = ""
    """`${outputs.<name>}`; empty: it makes no file."""
    output: str = ""

    def declared(self) -> Mapping[str, str]:
        """Return what `${steps.ID.outputs.<name>}` says once the file is there."""
        return {self.name: self.output} if self.name else {}


NO_PATHS = StepPaths()


def find_paths(dag: Dag, scope: Scope, canonical: Callable[[str], str]) -> Mapping[str, StepPaths]:
    """Return the files of every step that has some, by step name.

    An input may be another step's output: `${steps.ID.outputs.<name>}`.

    Args:
        dag: the document.
        scope: what is known before the run: constants, parameters, root environment.
        canonical: makes the one absolute path of a file out of an authored one.

    Raises:
        DefinitionError: a step whose command does not run on this host; a reference without a value.
    """
    made: dict[str, StepPaths] = {}
    for step in dag.steps:
        outputs = [item for item in step.outputs if item.path]
        if not outputs and not step.path_inputs:
            continue
        if not is_host_command(dag, step):
            raise DefinitionError(
                f"{step.position}: the step {step.name!r} cannot declare paths",
                why="only commands and scripts on this host read and make the files of a build DAG",
            )
        made[step.name] = NO_PATHS
        if outputs:
            path = canonical(_text(step, "outputs", outputs[0].path, scope))
            made[step.name] = StepPaths(name=outputs[0].name, output=path)
    known = {step.id: made[step.name].declared() for step in dag.steps if step.id and step.name in made}
    inputs_scope = replace(scope, declared=known)
    return {
        step.name: replace(
            made[step.name],
            inputs={item.name: canonical(_text(step, "inputs", item.path, inputs_scope)) for item in step.path_inputs},
        )
        for step in dag.steps
        if step.name in made
    }


def _text(step: Step, what: str, path: str, scope: Scope) -> str:
    if token := first_unresolved(path, scope, FieldMode.PATH):
        raise DefinitionError(
            f"{step.position}: {what} of the step {step.name!r}: {token} has no value when the plan is made",
            fix="use constants, parameters or the root environment in build paths",
        )
    return resolve(path, scope, FieldMode.PATH)


def is_host_command(dag: Dag, step: Step) -> bool:
    """Tell whether a step's work is a command on this host: no container, no SSH host."""
    if step.kind not in HOST_COMMANDS or step.container is not None or dag.container is not None:
        return False
    return step.kind == "exec" or "ssh" not in dag.step_defaults


def edges(dag: Dag, paths: Mapping[str, StepPaths]) -> Mapping[str, tuple[str, ...]]:
    """Return for each step the steps whose outputs it reads.

    Raises:
        DefinitionError: two steps make the same file.
    """
    producers: dict[str, str] = {}
    for step in dag.steps:
        output = paths.get(step.name, NO_PATHS).output
        if output and (other := producers.setdefault(output, step.name)) != step.name:
            raise DefinitionError(
                f"build output path {output} has multiple producers: {other} and {step.name}",
                fix="let one step make each file",
            )
    found: dict[str, tuple[str, ...]] = {}
    for name, files in paths.items():
        read = dict.fromkeys(producers[path] for path in files.inputs.values() if path in producers)
        if read:
            found[name] = tuple(read)
    return found


def check_streams(dag: Dag, paths: Mapping[str, StepPaths], targets: Mapping[str, Sequence[str]]) -> None:
    """Refuse streams that go to a build path. `targets`: for each step, the canonical paths of its stdout and stderr.

    Raises:
        DefinitionError: one does.
    """
    files = {path for known in paths.values() for path in (*known.inputs.values(), known.output) if path}
    for step in dag.steps:
        for target in targets.get(step.name, ()):
            if target in files:
                raise DefinitionError(
                    f"{step.position}: a stream of the step {step.name!r} goes to the build path {target}",
                    fix="let the command itself write to ${outputs.<name>}",
                )


# ── whether to run ───────────────────────────────────────────────────────────────────────────────────────────────────


def ineligible(dag: Dag, step: Step, *, has_secrets: bool) -> str:
    """Return why what a step makes can never be reused, empty when it can."""
    if not is_host_command(dag, step):
        return "it is no command on this host"
    if not step.id or len(step.outputs) != 1 or not step.outputs[0].path:
        return "it needs an id and exactly one output, which is a path"
    if has_secrets:
        return "secrets are no part of a recipe"
    for name, has in (
        ("repeat_policy", step.repeat is not None and bool(step.repeat.mode)),
        ("approval", step.approval is not None),
        ("parallel", step.parallel is not None),
        ("foreach", step.foreach is not None),
        ("output", step.output is not None or step.output_schema is not None),
        ("stdout.outputs", step.stdout.outputs is not None),
    ):
        if has:
            return f"it has `{name}`"
    return ""


def standing(dag: Dag, step: Step, *, has_secrets: bool, no_reuse: bool) -> Decision | None:
    """Return what is decided about a step whatever its files are; None when they decide."""
    if why := ineligible(dag, step, has_secrets=has_secrets):
        return Decision(Verdict.ALWAYS, Reason.INELIGIBLE, why)
    return Decision(Verdict.EXECUTE, Reason.REUSE_DISABLED) if no_reuse else None


class Manifest(Struct, frozen=True, kw_only=True):
    """What a step made and of what: digests of contents, the recipe's, and the run that executed it."""

    recipe: str
    """Empty: not reusable."""
    inputs: Mapping[str, str]
    """Digest by name; the paths belong to the recipe."""
    output: str
    producer: str


def fingerprint(recipe: str, inputs: Mapping[str, str]) -> str:
    """Return what identifies everything that goes into a file."""
    return _digest({"recipe": recipe, "inputs": dict(sorted(inputs.items()))})


def decide(*, manifest: Manifest | None, recipe: str, inputs: Mapping[str, str], output: str | None) -> Decision:
    """Return whether the file that is there will do. `output`: the digest of its content, None when there is no file.

    The first difference found is the reason.
    """
    if manifest is None:
        return Decision(Verdict.EXECUTE, Reason.MANIFEST_MISSING)
    if manifest.recipe != recipe:
        return Decision(Verdict.EXECUTE, Reason.RECIPE_CHANGED)
    for name, digest in inputs.items():
        if manifest.inputs.get(name) != digest:
            return Decision(Verdict.EXECUTE, Reason.INPUT_CHANGED, name)
    if output is None:
        return Decision(Verdict.EXECUTE, Reason.OUTPUT_MISSING)
    if manifest.output != output:
        return Decision(Verdict.EXECUTE, Reason.OUTPUT_CHANGED)
    return Decision(Verdict.REUSE, Reason.MATCHED)


def preview(step: Step, read_from: Sequence[str], before: Mapping[str, Decision], judged: Decision) -> Decision:
    """Return what a dry run says of a step, from what it says of those before it.

    A step that is waited for by name decides when it runs; one whose output is read may make the very same file again.

    Args:
        step: the step.
        read_from: steps whose outputs it reads.
        before: decisions of the steps before it.
        judged: the decision by what is there now.
    """
    if judged.verdict is Verdict.ALWAYS or judged.reason is Reason.REUSE_DISABLED:
        return judged
    if any(before[name].runs for name in step.depends):
        return Decision(Verdict.EXECUTE, Reason.CONTROL_DEPENDENCY_RAN)
    for name in (*step.depends, *read_from):
        if before[name].runs or before[name].verdict is Verdict.DEFERRED:
            return Decision(Verdict.DEFERRED, Reason.UPSTREAM_WOULD_EXECUTE, name)
    return judged


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────

_LAYERS = (
    Layer.PROFILE,
    Layer.PARAMS,
    Layer.ROOT_ENV,
    Layer.DOTENV,
    Layer.INJECTED,
    Layer.OUTPUTS,
    Layer.STEP_ENV,
)
"""What an author or a caller sets. The host's environment and managed values differ from run to run."""
_MANAGED = ("DAG_", "DAGU_", "PWD")
"""What a child inherits of its parent's managed values (`Layer.PROFILE`): they differ from run to run, too."""


def recipe(
    step: Step,
    scope: Scope,
    paths: StepPaths,
    *,
    interpreter: Sequence[str],
    cwd: str,
    work_dir: str,
    platform: str,
) -> str:
    """Return the digest of how a step makes its file.

    Args:
        step: the step.
        scope: as the step sees it; its own environment is evaluated again with a fixed name for the output, because
            the real one is new at every attempt.
        paths: the step's files.
        interpreter: its shell with arguments.
        cwd: where it runs.
        work_dir: the run's own directory; new in every run, so it stands under one name wherever it appears.
        platform: what kind of host this is.
    """
    scope = replace(scope, build_outputs={paths.name: "<output>"} if paths.name else {})
    scope = evaluate_env(step.env, scope, layer=Layer.STEP_ENV)
    env: dict[str, str] = {}
    for layer in _LAYERS:
        managed = _MANAGED if layer is Layer.PROFILE else ()
        env.update({name: value for name, value in scope.env.layer(layer).items() if not name.startswith(managed)})
    parts = {
        "kind": step.kind,
        "commands": [resolve(line, scope, FieldMode.SHELL) for line in step.commands],
        "script": resolve(step.script, scope, FieldMode.SHELL),
        "with": resolve_tree(step.inputs, scope, FieldMode.HOST),
        "interpreter": list(interpreter),
        "params": scope.params_json,
        "env": dict(sorted(env.items())),
        "inputs": dict(sorted(paths.inputs.items())),
        "output": [paths.name, paths.output],
        "platform": platform,
        "cwd": cwd,
    }
    return _digest(_normalised(parts, work_dir))


def _normalised(value: Any, work_dir: str) -> Any:
    if isinstance(value, str):
        return value.replace(work_dir, "<work dir>")
    if isinstance(value, Mapping):
        return {key: _normalised(item, work_dir) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item, work_dir) for item in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(formats.compact_json(value).encode(errors="surrogateescape")).hexdigest()


def key_of(output: str) -> str:
    """Return under which key the manifest of a file is kept: one for each canonical path."""
    return hashlib.sha256(output.encode(errors="surrogateescape")).hexdigest()


def staging_path(output: str, token: str) -> str:
    """Return the file beside `output` that one attempt writes; its name ends like the final one, as tools expect."""
    folder, name = posixpath.split(output)
    return posixpath.join(folder, f"{STAGING_PREFIX}{token}.{name}")
