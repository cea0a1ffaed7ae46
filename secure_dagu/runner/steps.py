"""Execute one step once: its environment, its preconditions, its streams, what it publishes.

The order is that of the workflow language: preconditions, then fields right before the start, then the work, then
outputs. Nothing here decides what follows; the outcome goes to `run.machine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.dag.model import Precondition, RepeatPolicy, Step
from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve, resolve_dynamic
from secure_dagu.dispatch.model import LogStream
from secure_dagu.errors import DefinitionError, SecureDaguError
from secure_dagu.run.machine import Outcome, Result
from secure_dagu.run.retry import Policy
from secure_dagu.run.snapshot import encode
from secure_dagu.runner import output, process, publishing, shell
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import EXECUTORS
from secure_dagu.runner.files import path_below
from secure_dagu.runner.output import Capture, LogFile

if TYPE_CHECKING:
    from secure_dagu.runner.runner import Execution

SUBSTITUTION_S = 2.0
"""How long a command substitution may take (workflow language, section 2.11)."""


async def execute_step(
    run: Execution, step: Step, *, node: str, scope: Scope, is_first: bool, is_handler: bool = False
) -> Outcome:
    """Execute `step` once, as the node called `node`.

    Never raises for what the step does: the worst is a failed outcome.
    """
    try:
        return await _execute(run, step, node=node, scope=scope, is_first=is_first, is_handler=is_handler)
    except SecureDaguError as error:
        return Outcome(result=Result.FAILED, exit_code=1, error=run.masker.text(str(error)))
    except OSError as error:
        return Outcome(result=Result.FAILED, exit_code=1, error=f"{error.strerror}")


async def _execute(run: Execution, step: Step, *, node: str, scope: Scope, is_first: bool, is_handler: bool) -> Outcome:
    cwd = _working_dir(run, step, scope)
    managed = {"PWD": str(cwd), "DAG_RUN_STEP_NAME": node}
    if is_handler:
        managed["DAG_RUN_STATUS"] = run.status_word()
    scope = evaluate_env(step.env, scope.with_env(Layer.STEP_MANAGED, managed), layer=Layer.STEP_ENV)
    chosen = run.shell_of(step, scope)
    if is_first and step.preconditions:
        unmet = await check_all(run, step.preconditions, scope, chosen=chosen, cwd=cwd)
        if run.halt().is_set():  # which ends a check too, so that its answer means nothing
            return Outcome(result=Result.ABORTED)
        if unmet:
            run.log("INFO", "Step skipped", step=node, reason=run.masker.text(unmet))
            return Outcome(result=Result.SKIPPED)
    retry, repeat = _policies(step, scope)
    capture = Capture(run.dag.max_output_bytes) if publishing.needs_stdout(step) else None
    capture_err = Capture(run.dag.max_output_bytes) if publishing.reads(step, "stderr") else None
    logs = run.folders.logs
    names = run.log_names[node]
    with _output_file(logs) as published:
        out = run.log_file(node, LogStream.STDOUT, logs / f"{names}.stdout.log")
        merged = step.merged_logs if step.merged_logs is not None else run.dag.merged_logs
        err = None if merged else run.log_file(node, LogStream.STDERR, logs / f"{names}.stderr.log")
        attempt = {"DAGU_OUTPUT_FILE": str(published)}
        if not is_handler:
            attempt["DAG_RUN_STEP_STDOUT_FILE"] = str(out.path)
            attempt["DAG_RUN_STEP_STDERR_FILE"] = str(err.path if err else out.path)
        scope = scope.with_env(Layer.ATTEMPT, attempt)
        tee_out = _tee(run, step.stdout.path, step.stdout.artifact, scope, cwd)
        tee_err = _tee(run, step.stderr.path, step.stderr.artifact, scope, cwd)
        if tee_out is not None and tee_err is not None and tee_out.path == tee_err.path:
            raise DefinitionError("stdout and stderr go to the same file", fix="set `log_output: merged`")
        context = StepContext(
            request=run.request,
            definition=run.definition,
            dag=run.dag,
            step=step,
            scope=scope,
            env=scope.env.flat(),
            cwd=cwd,
            shell=chosen,
            stdout=_sink(out, capture, tee_out),
            stderr=None if err is None else _sink(err, capture_err, tee_err),
            marker=f"{run.marker}{node}/",
            stop=asyncio.Event() if step.timeout_s > 0 else run.halt(),
            stopping=process.Stopping(ask=process.signal_named(step.signal_on_stop), grace_s=run.dag.max_clean_up_s),
            children=run.children,
            changed=lambda values: run.publish(node, values),
        )
        try:
            done = await (_with_timeout(run, context) if step.timeout_s > 0 else _work(context))
        finally:
            for file in (out, err, tee_out, tee_err):
                if file is not None:
                    file.close()
        written = publishing.read_output(published, run.dag.max_output_bytes)
    captures = publishing.Captured(stdout=capture, stderr=capture_err, cwd=cwd, limit_bytes=run.dag.max_output_bytes)
    return await _outcome(run, step, context, done, captured=captures, written=written, retry=retry, repeat=repeat)


async def _work(context: StepContext) -> Done:
    """Run the executor; what it cannot do is a failure of the step, not of the run."""
    try:
        return await EXECUTORS[context.step.kind](context)
    except SecureDaguError as error:
        return Done(result=Result.FAILED, exit_code=1, error=str(error))
    except OSError as error:
        return Done(result=Result.FAILED, exit_code=1, error=error.strerror or "input or output failed")


async def _with_timeout(run: Execution, context: StepContext) -> Done:
    """Run the executor; stop it when the run stops or its own time is over."""
    limit_s, started_at = context.step.timeout_s, time.monotonic()
    async with asyncio.TaskGroup() as group:
        work = group.create_task(_work(context))
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
    run: Execution,
    step: Step,
    context: StepContext,
    done: Done,
    *,
    captured: publishing.Captured,
    written: str,
    retry: Policy | None,
    repeat: Policy | None,
) -> Outcome:
    """Turn how the work ended into what the machine and later steps need to know."""
    result, error, exit_code = done.result, done.error, done.exit_code
    published: dict[str, Any] = {}
    scope = context.scope
    if result in (Result.SUCCEEDED, Result.PARTIAL):
        try:
            if written or step.outputs:
                published["stepOutputsValue"] = encode(output.read_output_file(written, step.outputs))
            published.update(publishing.publish(step, scope, captured, done.outputs))
        except SecureDaguError as problem:
            result, error, exit_code = Result.FAILED, str(problem), 1
            published = {}
    elif done.outputs:
        published["outputsValue"] = encode(done.outputs)
    matches = bool(
        result is Result.FAILED
        and step.continue_on.outputs
        and captured.stdout is not None
        and not captured.stdout.is_over
        and output.first_line_match(captured.stdout.text(), step.continue_on.outputs)
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
    run: Execution,
    policy: RepeatPolicy,
    scope: Scope,
    context: StepContext,
    *,
    exit_code: int | None,
    result: Result,
) -> bool:
    """Evaluate the test of a repeat policy after an execution (workflow language, section 3.10)."""
    if policy.condition:
        condition = Precondition(condition=policy.condition, expected=policy.expected)
        return await _is_met(run, condition, scope, chosen=context.shell, cwd=context.cwd)
    if policy.exit_codes:
        return exit_code in policy.exit_codes
    return result in (Result.SUCCEEDED, Result.PARTIAL)


async def check_all(
    run: Execution, preconditions: tuple[Precondition, ...], scope: Scope, *, chosen: shell.Chosen, cwd: Path
) -> str:
    """Evaluate every precondition, in order; return why the first unmet one is not met, empty when all are."""
    unmet = ""
    for item in preconditions:
        met = await _is_met(run, item, scope, chosen=chosen, cwd=cwd)
        if met is item.negate and not unmet:
            unmet = f"condition was not met: expected {item.expected!r}" if item.expected else "condition was not met"
    return unmet


async def _is_met(run: Execution, item: Precondition, scope: Scope, *, chosen: shell.Chosen, cwd: Path) -> bool:
    if item.expected is None:
        text = resolve(item.condition, scope, FieldMode.SHELL)
        code = await _shell(run, [chosen.program, *chosen.args, "-c", text], scope, cwd)
        return code[0] == 0
    if item.eval:
        dynamic = resolve_dynamic(item.eval, scope)
        results = [await substitute(run, command, scope, chosen=chosen, cwd=cwd) for command in dynamic.commands]
        actual = dynamic.fill(results)
    else:
        actual = resolve(item.condition, scope, FieldMode.FIELD)
    lines = actual.splitlines() or [""]
    if item.expected.startswith("re:"):
        return any(re.search(item.expected[3:], line) for line in lines)
    return any(line == item.expected for line in lines)


async def substitute(run: Execution, command: str, scope: Scope, *, chosen: shell.Chosen, cwd: Path) -> str:
    """Run one command substitution; return its trimmed output.

    Raises:
        DefinitionError: it failed or took too long.
    """
    code, text = await _shell(run, [chosen.program, *chosen.args, "-c", command], scope, cwd, SUBSTITUTION_S)
    if code != 0:
        raise DefinitionError("a command substitution failed", why=process.error_text(code))
    return text.strip()


async def _shell(
    run: Execution, argv: list[str], scope: Scope, cwd: Path, limit_s: float | None = None
) -> tuple[int, str]:
    """Run a helper command of the engine; its output is not logged. A stop of the run ends it."""
    captured = Capture(run.dag.max_output_bytes)
    try:
        async with asyncio.timeout(limit_s):
            code = await process.run(
                argv,
                env=scope.env.flat(),
                cwd=cwd,
                stdout=captured.write,
                stderr=lambda data: None,
                marker=f"{run.marker}checks/",
                stop=run.halt(),
                stopping=process.Stopping(grace_s=run.dag.max_clean_up_s),
            )
    except TimeoutError:
        return -9, ""
    except process.CannotStart:
        return 127, ""
    return code, captured.text() if not captured.is_over else ""


def _working_dir(run: Execution, step: Step, scope: Scope) -> Path:
    """Return the step's directory, made if it is missing (workflow language, section 3.4)."""
    root = run.work_dir
    if run.dag.working_dir:
        root = path_below(root, resolve(run.dag.working_dir, scope, FieldMode.FIELD))
    if not step.working_dir:
        if run.dag.working_dir:
            root.mkdir(mode=0o750, parents=True, exist_ok=True)
        return root
    path = path_below(root, resolve(step.working_dir, scope, FieldMode.FIELD))
    path.mkdir(mode=0o750, parents=True, exist_ok=True)
    return path


def _tee(run: Execution, path: str, artifact: str, scope: Scope, cwd: Path) -> LogFile | None:
    """Return the file that a stream is also written to: a path of the author's, or an artifact."""
    if artifact:
        name = resolve(artifact, scope, FieldMode.PATH)
        parts = Path(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise DefinitionError(f"the artifact path {name!r} climbs out of the artifact folder")
        target = path_below(run.folders.artifacts, name)
    elif path:
        target = path_below(cwd, resolve(path, scope, FieldMode.PATH))
    else:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    return LogFile(target, run.new_masker(), lambda _path, _size: None, mode=0o644, is_made=True)


def _sink(log: LogFile, capture: Capture | None, tee: LogFile | None) -> process.Sink:
    if capture is None and tee is None:
        return log.write

    def write(data: bytes) -> None:
        log.write(data)
        if capture is not None:
            capture.write(data)
        if tee is not None:
            tee.write(data)

    return write


@contextlib.contextmanager
def _output_file(folder: Path) -> Iterator[Path]:
    """Make the file of one attempt's declared outputs, empty and ours alone; remove it afterwards."""
    handle, name = tempfile.mkstemp(prefix="output-", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
