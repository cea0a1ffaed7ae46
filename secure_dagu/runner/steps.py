"""Execute one step once: its environment, its preconditions, its streams, what it publishes.

The order is that of the workflow language: preconditions, then fields right before the start, then the work, then
outputs. Nothing here decides what follows; the outcome goes to `run.machine`.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from secure_dagu.dag import formats
from secure_dagu.dag.model import Precondition, RepeatPolicy, Step
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve
from secure_dagu.dispatch.model import LogStream
from secure_dagu.errors import DefinitionError, SecureDaguError
from secure_dagu.run import patterns
from secure_dagu.run.machine import Outcome, Result
from secure_dagu.run.retry import Policy
from secure_dagu.run.snapshot import encode, encode_published
from secure_dagu.runner import conditions, environment, output, process, publishing, shell, streams
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import executor_of
from secure_dagu.runner.executors.places import place
from secure_dagu.runner.files import make_working_dir, path_below
from secure_dagu.runner.output import Capture, LogFile

if TYPE_CHECKING:
    from secure_dagu.runner.build import Gate
    from secure_dagu.runner.graph import Graph


async def execute_step(
    run: Graph,
    step: Step,
    *,
    node: str,
    scope: Scope,
    is_first: bool,
    is_handler: bool = False,
) -> Outcome:
    """Execute `step` once, as the node called `node`.

    Never raises for what the step does: the worst is a failed outcome.
    """
    logs = run.log_paths(node, step)
    gate = None if is_handler else run.gate(step)
    try:
        return await _execute(
            run, step, node=node, scope=scope, is_first=is_first, is_handler=is_handler, logs=logs, gate=gate
        )
    except SecureDaguError as error:
        return Outcome(result=Result.FAILED, exit_code=1, error=run.masker.text(str(error)))
    except OSError as error:
        return Outcome(result=Result.FAILED, exit_code=1, error=f"{error.strerror}")
    finally:
        if gate is not None:
            gate.close()


async def _execute(
    run: Graph,
    step: Step,
    *,
    node: str,
    scope: Scope,
    is_first: bool,
    is_handler: bool,
    logs: streams.LogPaths,
    gate: Gate | None,
) -> Outcome:
    if gate is not None:
        opened = await gate.open(scope)
        if opened is None:
            return Outcome(result=Result.ABORTED)
        scope = opened
    cwd = _working_dir(run, step, scope)
    managed = {"PWD": str(cwd), "DAG_RUN_STEP_NAME": node, **run.managed_of(node)}
    scope = scope.with_env(Layer.STEP_MANAGED, managed)
    if gate is None:
        scope = evaluate_env(step.env, scope, layer=Layer.STEP_ENV)
    else:
        scope = replace(evaluate_env(step.env, gate.with_output(scope), layer=Layer.STEP_ENV), build_outputs=None)
    chosen = run.shell_of(step.shell, scope)
    if is_first and step.preconditions:
        objection = await _objection(run, step, node, scope, chosen=chosen, cwd=cwd, gate=gate)
        if objection is not None:
            return objection
    if gate is not None:
        decided = await gate.decide(scope, chosen=chosen, cwd=cwd)
        if decided is not None:
            return decided
    if step.kind == "human.task":
        return _human_task(run, step, node, scope)
    return await _started(
        run, step, node=node, scope=scope, chosen=chosen, cwd=cwd, is_handler=is_handler, logs=logs, gate=gate
    )


async def _objection(
    run: Graph, step: Step, node: str, scope: Scope, *, chosen: shell.Chosen, cwd: Path, gate: Gate | None
) -> Outcome | None:
    """Check the preconditions; return how the step ends where they hold it back."""
    try:
        results = await conditions.check_all(run, step.preconditions, scope, chosen=chosen, cwd=cwd)
    except SecureDaguError:
        if gate is not None:
            gate.precondition_failed()
        raise
    if run.halt().is_set():  # which ends a check too, so that its answer means nothing
        return Outcome(result=Result.ABORTED)
    if not any(results):
        return None
    if gate is not None:
        gate.precondition_not_met()
    run.show(node, {"preconditions": conditions.shown(step.preconditions, results)})
    run.log("INFO", "Step skipped", step=node, reason="precondition not met")
    return Outcome(result=Result.SKIPPED)


async def _started(
    run: Graph,
    step: Step,
    *,
    node: str,
    scope: Scope,
    chosen: shell.Chosen,
    cwd: Path,
    is_handler: bool,
    logs: streams.LogPaths,
    gate: Gate | None,
) -> Outcome:
    """Do the work, between its open streams and what it publishes."""
    retry, repeat = _policies(step, scope)
    capture = Capture(run.dag.max_output_bytes) if publishing.needs_stdout(step) else None
    capture_err = Capture(run.dag.max_output_bytes) if publishing.reads(step, "stderr") else None
    with streams.output_file(run.folders.logs) as published:
        out = run.log_file(node, LogStream.STDOUT, logs.stdout)
        err = None if logs.are_merged else run.log_file(node, LogStream.STDERR, logs.stderr)
        attempt = {"DAGU_OUTPUT_FILE": str(published)}
        if not is_handler:
            attempt["DAG_RUN_STEP_STDOUT_FILE"] = str(logs.stdout)
            attempt["DAG_RUN_STEP_STDERR_FILE"] = str(logs.stderr)
        scope = scope.with_env(Layer.ATTEMPT, attempt)
        scope = replace(scope, context={**scope.context, "paths.step_output_file": str(published)})
        tee_out = streams.tee(run, step.stdout.path, step.stdout.artifact, scope, cwd)
        tee_err = streams.tee(run, step.stderr.path, step.stderr.artifact, scope, cwd)
        if tee_out is not None and tee_err is not None and tee_out.path == tee_err.path:
            raise DefinitionError("stdout and stderr go to the same file", fix="set `log_output: merged`")
        if gate is not None:
            scope = gate.with_output(scope)
        context = StepContext(
            request=run.request,
            definition=run.definition,
            dag=run.dag,
            step=step,
            path=run.path_of(node),
            scope=scope,
            env=scope.env.flat(),
            cwd=cwd,
            root=environment.root_dir(run, scope),
            artifacts=run.folders.artifacts,
            shell=chosen,
            stdout=streams.sink(out, capture, tee_out),
            stderr=_stderr(out, err, capture, capture_err, tee_out, tee_err),
            marker=f"{run.marker}{node}/",
            stop=asyncio.Event() if step.timeout_s > 0 else run.halt(),
            stopping=process.Stopping(ask=process.signal_named(step.signal_on_stop), grace_s=run.dag.max_clean_up_s),
            children=run.children,
            container=run.container,
            limits=run.limits,
            secrets=run.secrets,
            changed=lambda values: run.publish(node, values),
            show=lambda values: run.show(node, values),
            recent_stderr=lambda: err.tail() if err else "",
        )
        try:
            done = await (_with_timeout(run, context, node) if step.timeout_s > 0 else _work(run, context, node))
        finally:
            for file in (out, err, tee_out, tee_err):
                if file is not None:
                    file.close()
        written = publishing.read_output(published, run.dag.max_output_bytes)
    captures = publishing.Captured(stdout=capture, stderr=capture_err, cwd=cwd, limit_bytes=run.dag.max_output_bytes)
    return await _outcome(
        run, step, context, done, captured=captures, written=written, retry=retry, repeat=repeat, gate=gate
    )


def _stderr(
    out: LogFile,
    err: LogFile | None,
    capture: Capture | None,
    capture_err: Capture | None,
    tee_out: LogFile | None,
    tee_err: LogFile | None,
) -> process.Sink | None:
    """Return where stderr goes; None: it shares stdout's pipe, which keeps the order of a merged log to the byte.

    A merged log takes both streams, but what is captured of stdout, or goes to a file of the author's, is stdout alone.
    """
    if err is not None:
        return streams.sink(err, capture_err, tee_err)
    if capture is None and capture_err is None and tee_out is None and tee_err is None:
        return None
    return streams.sink(out, capture_err, tee_err)


def _human_task(run: Graph, step: Step, node: str, scope: Scope) -> Outcome:
    """Ask a person: the node waits until somebody completes it (workflow language, section 3.25).

    Raises:
        DefinitionError: this is a sub-DAG, whose parent cannot be held up.
    """
    if run.request.task.parent is not None:
        raise DefinitionError("human.task works in root runs only", why="this run is a sub-DAG")
    prompt = resolve(formats.as_text(step.inputs.get("prompt", "")), scope, FieldMode.FIELD)
    run.show(node, {"humanTask": {"prompt": prompt, "form": step.inputs.get("form")}})
    return Outcome(result=Result.WAITING)


async def _work(run: Graph, context: StepContext, node: str) -> Done:
    """Run the executor; what it cannot do is a failure of the step, not of the run."""
    try:
        if context.step.foreach is not None:
            from secure_dagu.runner import foreach  # which imports the loop, and that imports us

            return await foreach.execute(run, context, node)
        return await executor_of(place(context.dag, context.step))(context)
    except SecureDaguError as error:
        return Done(result=Result.FAILED, exit_code=1, error=str(error))
    except OSError as error:
        return Done(result=Result.FAILED, exit_code=1, error=error.strerror or "input or output failed")


async def _with_timeout(run: Graph, context: StepContext, node: str) -> Done:
    """Run the executor; stop it when the run stops or its own time is over."""
    limit_s, started_at = context.step.timeout_s, time.monotonic()
    async with asyncio.TaskGroup() as group:
        work = group.create_task(_work(run, context, node))
        watch = group.create_task(_pass_on(run.halt(), context.stop))
        await asyncio.wait({work}, timeout=limit_s)
        timed_out = not work.done() and not context.stop.is_set()
        if timed_out:
            context.stop.set()
        done = await work
        watch.cancel()
    if timed_out:
        took_s = time.monotonic() - started_at
        error = f"step timed out after {took_s:.1f}s (timeout: {limit_s:g}s)"
        return Done(result=Result.TIMED_OUT, exit_code=124, error=error)
    return done


async def _pass_on(source: asyncio.Event, target: asyncio.Event) -> None:
    await source.wait()
    target.set()


async def _outcome(
    run: Graph,
    step: Step,
    context: StepContext,
    done: Done,
    *,
    captured: publishing.Captured,
    written: str,
    retry: Policy | None,
    repeat: Policy | None,
    gate: Gate | None,
) -> Outcome:
    """Turn how the work ended into what the machine and later steps need to know."""
    result, error, exit_code = done.result, done.error, done.exit_code
    published: dict[str, Any] = dict(done.kept)
    scope = context.scope
    if result in (Result.SUCCEEDED, Result.PARTIAL):
        try:
            declared = [item for item in step.outputs if not item.path]
            if written or (declared and "stepOutputsValue" not in published):
                published["stepOutputsValue"] = encode(output.read_output_file(written, declared))
            published.update(publishing.publish(step, scope, captured, done.outputs))
            if gate is not None and (made := await gate.commit()):
                emitted = json.loads(published.get("stepOutputsValue", "{}"))
                published["stepOutputsValue"] = encode_published({**emitted, **made})
        except SecureDaguError as problem:
            result, error, exit_code = Result.FAILED, str(problem), 1
            published = {}
    elif done.outputs:
        published["outputsValue"] = encode_published(done.outputs)
    matches = bool(
        result is Result.FAILED
        and step.continue_on.outputs
        and captured.stdout is not None
        and not captured.stdout.is_over
        and patterns.line_holds(step.continue_on.outputs, captured.stdout.text())
    )
    met: bool | None = None
    if repeat is not None and step.repeat is not None and result is not Result.ABORTED and not context.stop.is_set():
        if isinstance(step.output, str) and "outputValue" in published:
            fresh = {**scope.env.layer(Layer.OUTPUTS), step.output: published["outputValue"]}
            scope = scope.with_env(Layer.OUTPUTS, fresh)
        met = await _repeat_met(run, step.repeat, scope, context, exit_code=exit_code, result=result)
    return Outcome(
        result=result,
        exit_code=exit_code,
        error=run.masker.text(error),
        output_matches=matches,
        repeat_met=met,
        published=published,
        retry=retry,
        repeat=repeat,
    )


def _policies(step: Step, scope: Scope) -> tuple[Policy | None, Policy | None]:
    """Return retry and repeat with their references resolved to numbers."""
    retry = repeat = None
    if step.retry is not None:
        retry = Policy(
            limit=_whole(step.retry.limit, scope, "retry_policy.limit"),
            interval_s=_whole(step.retry.interval_s, scope, "retry_policy.interval_sec"),
            backoff=step.retry.backoff,
            max_interval_s=step.retry.max_interval_s,
            exit_codes=step.retry.exit_codes,
        )
    if step.repeat is not None and step.repeat.mode:
        repeat = Policy(
            limit=_whole(step.repeat.limit or "0", scope, "repeat_policy.limit"),
            interval_s=_whole(step.repeat.interval_s or "0", scope, "repeat_policy.interval_sec"),
            backoff=step.repeat.backoff,
            max_interval_s=_whole(step.repeat.max_interval_s or "0", scope, "repeat_policy.max_interval_sec"),
        )
    return retry, repeat


def _whole(text: str, scope: Scope, field: str) -> int:
    value = resolve(text, scope, FieldMode.FIELD).strip()
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise DefinitionError(f"{field} is not a whole number of at least 0", why=f"it resolves to {value[:50]!r}")
    return int(value)


async def _repeat_met(
    run: Graph,
    policy: RepeatPolicy,
    scope: Scope,
    context: StepContext,
    *,
    exit_code: int | None,
    result: Result,
) -> bool:
    """Evaluate the test of a repeat policy after an execution: all that it names (workflow language, section 3.10)."""
    if policy.exit_codes and exit_code not in policy.exit_codes:
        return False
    if policy.condition:
        condition = Precondition(condition=policy.condition, expected=policy.expected)
        return not await conditions.why_unmet(run, condition, scope, chosen=context.shell, cwd=context.cwd)
    return bool(policy.exit_codes) or result in (Result.SUCCEEDED, Result.PARTIAL)


def _working_dir(run: Graph, step: Step, scope: Scope) -> Path:
    """Return the step's directory, made if it is missing (workflow language, section 3.4)."""
    root = environment.root_dir(run, scope)
    if not step.working_dir or place(run.dag, step) == "container.run":  # whose directory is in the container
        return root if root == run.work_dir else _made(root)
    return _made(path_below(root, resolve(step.working_dir, scope, FieldMode.FIELD)))


def _made(path: Path) -> Path:
    try:
        make_working_dir(path)
    except OSError as error:
        raise DefinitionError(f"the working directory {str(path)!r} cannot be used", why=f"{error.strerror}") from None
    return path
