"""Read what roots, steps, handlers and defaults share: env, shell, preconditions, policies, selectors. Pure."""

from __future__ import annotations

import re
import shlex

from secure_dagu.dag import durations, go_regexp, nodes, reading, schema
from secure_dagu.dag.entries import check_decoding, check_entries
from secure_dagu.dag.model import ContinueOn, EnvEntry, Precondition, RepeatPolicy, RetryPolicy, Shell, StreamTarget
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.errors import DefinitionError

_DIGITS_OR_REFERENCE = re.compile(r"\s*\d{1,12}\s*|.*\$.*", re.DOTALL)

SIGNALS = frozenset(
    "SIGABRT SIGALRM SIGCONT SIGHUP SIGINT SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTERM SIGTSTP SIGUSR1 SIGUSR2".split()  # noqa: SIM905
)
"""Names that `signal_on_stop` takes."""


def env(report: Report, node: Node | None, path: str) -> tuple[EnvEntry, ...]:
    """Read environment declarations: a map, or a list of maps and `NAME=value` texts, in source order."""
    if node is None:
        return ()
    entries: list[EnvEntry] = []
    if isinstance(node, Mapping):
        _env_map(report, node, path, entries)
    elif isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            if isinstance(item, Mapping):
                _env_map(report, item, where, entries)
            elif isinstance(item, Scalar) and "=" in item.text:
                name, _, value = item.text.partition("=")
                _env_entry(report, item, where, name, value, entries)
            else:
                shown = f" `{item.text[:80]}`" if isinstance(item, Scalar) else ""
                report.problem(item, where, f"expected NAME=value or a map, found{shown or ' a list'}")
    else:
        report.problem(node, path, "must be a map or array")
    return tuple(entries)


def _env_map(report: Report, node: Mapping, path: str, entries: list[EnvEntry]) -> None:
    for name, value in node.entries.items():
        if isinstance(value, Scalar):
            _env_entry(report, node.keys[name], path, name, nodes.scalar_text(value), entries)
        else:
            report.problem(value, f"{path}.{name}", f"expected text, found {reading.kind_of(value)}")


def _env_entry(report: Report, node: Node, path: str, name: str, value: str, entries: list[EnvEntry]) -> None:
    if not reading.ENV_NAME.fullmatch(name):
        report.problem(node, path, f'"{name[:80]}" is not an environment name: letters, digits and _, no digit first')
    entries.append(EnvEntry(name=name, value=value))


def shell(report: Report, program: Node | None, args: Node | None, packages: Node | None, path: str) -> Shell:
    """Read `shell`, `shell_args` and `shell_packages`; `path` is that of `shell`."""
    words: tuple[str, ...] = ()
    if isinstance(program, Scalar):
        try:
            words = tuple(shlex.split(nodes.scalar_text(program)))
        except ValueError:
            report.problem(program, path, "the quotes in this command line do not close")
    elif program is not None:
        words = reading.texts(report, program, path)
    more = reading.texts(report, args, f"{path}_args")
    if program is not None and not any(words):
        report.problem(program, path, "must name a shell")
    return Shell(
        program=words[0] if words else "",
        args=words[1:] + more,
        packages=reading.texts(report, packages, f"{path}_packages"),
    )


def preconditions(report: Report, node: Node | None, path: str) -> tuple[Precondition, ...]:
    """Read `preconditions`: text, or a list of texts and maps."""
    if isinstance(node, Mapping):
        report.problem(node, path, "preconditions must be text or a list")
        return ()
    return tuple(
        _precondition(report, item, where) for item, where in reading.items(report, node, path, "text or a list")
    )


def _precondition(report: Report, node: Node, path: str) -> Precondition:
    if isinstance(node, Scalar):
        if not isinstance(nodes.scalar_value(node), str) or not node.text.strip():
            report.problem(node, path, "condition must be non-blank text")
        return Precondition(condition=node.text)
    entry = reading.table(report, node, path, schema.PRECONDITION)
    if entry is None:
        return Precondition()
    fields: dict[str, str] = {}
    for name in ("condition", "eval", "expected"):
        value = entry.entries.get(name)
        if value is None:
            continue
        if not isinstance(value, Scalar) or not isinstance(nodes.scalar_value(value), str):
            report.problem(value, path, f"{name} must be text, found {reading.kind_of(value)}; quote it")
        elif not value.text.strip():
            report.problem(value, path, f"{name} must not be blank")
        else:
            fields[name] = value.text
    if ("condition" in entry.entries) == ("eval" in entry.entries):
        report.problem(entry, path, "exactly one of condition and eval is needed")
    if "eval" in entry.entries and "expected" not in entry.entries:
        report.problem(entry, path, "eval needs expected")
    expected = fields.get("expected")
    if expected is not None and expected.startswith("re:"):
        check_regexp(report, entry.entries["expected"], path, expected[3:])
    return Precondition(
        condition=fields.get("condition", ""),
        eval=fields.get("eval", ""),
        expected=expected,
        negate=reading.boolean(report, entry.get("negate"), f"{path}.negate"),
    )


def check_regexp(report: Report, node: Node, path: str, pattern: str) -> None:
    """Report a pattern that is empty or no regexp."""
    try:
        go_regexp.compiled(pattern)
    except ValueError as problem:
        report.problem(node, path, f"expected: this is not a valid regexp: {problem}")
    else:
        if not pattern:
            report.problem(node, path, "expected: the regexp after re: is empty")


def check_duration(report: Report, node: Node | None, path: str) -> None:
    """Report what is neither a duration nor text with a reference."""
    text = nodes.scalar_text(node) if isinstance(node, Scalar) else ""
    if node is None or "$" in text:
        return
    try:
        durations.seconds(text, field=path)
    except DefinitionError as error:
        report.problem(node, path, error.what.removeprefix(f"{path} ") + ": expected such as 1h30m or 500ms")


def _count(report: Report, node: Node | None, path: str, default: str) -> str:
    """Read a number of times or seconds: digits, or text with a reference."""
    value = reading.text(report, node, path, default)
    if node is not None and not _DIGITS_OR_REFERENCE.fullmatch(value):
        report.problem(node, path, "expected an integer of at least 0, or text with a reference")
        return default
    return value.strip()


def backoff(report: Report, node: Node | None, path: str) -> float:
    """Read `backoff`: true is 2.0; a number must be greater than 1, or 0, which is none."""
    if node is None:
        return 0.0
    value = nodes.scalar_value(node) if isinstance(node, Scalar) else None
    if isinstance(value, bool):
        return 2.0 if value else 0.0
    if isinstance(value, int | float) and (value == 0 or 1.0 < value < 1e6):
        return float(value)
    report.problem(node, path, "expected true, false or a number greater than 1")
    return 0.0


def retry_policy(report: Report, node: Node | None, path: str) -> RetryPolicy | None:
    """Read a step's `retry_policy`."""
    entry = reading.table(report, node, path, schema.RETRY)
    if entry is None:
        return None
    for name in ("limit", "interval_sec"):
        if entry.get(name) is None:
            report.problem(entry, path, f"{name} is required")
    return RetryPolicy(
        limit=_count(report, entry.get("limit"), f"{path}.limit", "0"),
        interval_s=_count(report, entry.get("interval_sec"), f"{path}.interval_sec", "0"),
        exit_codes=reading.integers(report, entry.get("exit_code"), f"{path}.exit_code"),
        backoff=backoff(report, entry.get("backoff"), f"{path}.backoff"),
        max_interval_s=float(reading.integer(report, entry.get("max_interval_sec"), f"{path}.max_interval_sec")),
    )


def repeat_policy(report: Report, node: Node | None, path: str) -> RepeatPolicy | None:
    """Read `repeat_policy` and settle its mode (section 3.10); None when nothing repeats."""
    entry = reading.table(report, node, path, schema.REPEAT)
    if entry is None:
        return None
    condition = reading.text(report, entry.get("condition"), f"{path}.condition")
    expected = reading.text(report, entry.get("expected"), f"{path}.expected") if "expected" in entry.entries else None
    exit_codes = reading.integers(report, entry.get("exit_code"), f"{path}.exit_code")
    repeat = entry.get("repeat")
    mode = ""
    if repeat is not None:
        value = nodes.scalar_value(repeat) if isinstance(repeat, Scalar) else None
        if value is True:
            mode = "while"
        elif value in ("while", "until"):
            mode = str(value)
            if not condition and not exit_codes:
                report.problem(repeat, f"{path}.repeat", f"{mode} needs condition or exit_code")
        elif value is not False:
            report.problem(repeat, f"{path}.repeat", "expected while, until, true or false")
    elif condition and expected is not None:
        mode = "until"
    elif condition or exit_codes:
        mode = "while"
    if expected is not None and expected.startswith("re:"):
        check_regexp(report, entry.entries["expected"], path, expected[3:])
    return RepeatPolicy(
        mode=mode,
        condition=condition,
        expected=expected,
        exit_codes=exit_codes,
        interval_s=_count(report, entry.get("interval_sec"), f"{path}.interval_sec", "0"),
        limit=_count(report, entry.get("limit"), f"{path}.limit", ""),
        backoff=backoff(report, entry.get("backoff"), f"{path}.backoff"),
        max_interval_s=_count(report, entry.get("max_interval_sec"), f"{path}.max_interval_sec", ""),
    )


def continue_on(report: Report, node: Node | None, path: str) -> ContinueOn:
    """Read `continue_on`: `failed`, `skipped`, or a map."""
    if isinstance(node, Scalar):
        value = reading.choice(report, node, path, ("failed", "skipped"), "failed")
        return ContinueOn(failure=value == "failed", skipped=value == "skipped")
    entry = reading.table(report, node, path, schema.CONTINUE_ON)
    if entry is None:
        return ContinueOn()
    outputs = reading.texts(report, entry.get("output"), f"{path}.output")
    for pattern in outputs:
        if pattern.startswith("re:"):
            check_regexp(report, entry.entries["output"], path, pattern[3:])
    failure = [
        reading.boolean(report, entry.get(name), f"{path}.{name}") for name in ("failure", "failed")
    ]  # both are read, so that both are checked
    return ContinueOn(
        failure=any(failure),
        skipped=reading.boolean(report, entry.get("skipped"), f"{path}.skipped"),
        exit_codes=reading.integers(report, entry.get("exit_code"), f"{path}.exit_code"),
        outputs=outputs,
        mark_success=reading.boolean(report, entry.get("mark_success"), f"{path}.mark_success"),
    )


def stream(report: Report, node: Node | None, path: str, *, publishes: bool) -> StreamTarget:
    """Read `stdout` or `stderr`: a path, `artifact`, or (stdout only, `publishes`) `outputs`."""
    if isinstance(node, Scalar):
        return StreamTarget(path=nodes.scalar_text(node))
    entry = reading.table(report, node, path, schema.STREAM)
    if entry is None:
        return StreamTarget()
    if (entry.get("artifact") is None) == (entry.get("outputs") is None):
        report.problem(entry, path, "exactly one of artifact and outputs is needed")
    artifact = reading.text(report, entry.get("artifact"), f"{path}.artifact")
    if artifact.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", artifact) or ".." in re.split(r"[/\\]", artifact):
        report.problem(nodes.at(entry, "artifact"), f"{path}.artifact", "must be a relative path without `..`")
    outputs = entry.get("outputs")
    if outputs is not None and not publishes:
        report.problem(outputs, f"{path}.outputs", "only stdout publishes outputs")
    if isinstance(outputs, Mapping):
        block = reading.table(report, outputs, f"{path}.outputs", schema.STREAM_OUTPUTS)
        assert block is not None
        check_decoding(report, block, f"{path}.outputs")
        if block.get("fields") is not None and len(block.entries) > 1:
            report.problem(block, f"{path}.outputs", "fields excludes field, decode and select beside it")
        if isinstance(fields := block.get("fields"), Mapping):
            check_entries(report, fields, f"{path}.outputs.fields")
    return StreamTarget(artifact=artifact, outputs=None if outputs is None else nodes.plain_value(outputs))


def max_concurrent(report: Report, node: Node | None, path: str) -> int:
    """Read how many items are worked on at a time."""
    if node is None:
        return 10
    value = nodes.scalar_value(node) if isinstance(node, Scalar) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
        report.problem(node, path, "must be an integer from 1 to 1000")
        return 10
    return value


def worker_selector(report: Report, node: Node | None, path: str) -> tuple[dict[str, str] | None, bool]:
    """Read `worker_selector`: labels (None: not set), and whether it is the word `local`."""
    if node is None:
        return None, False
    if isinstance(node, Scalar):
        if node.text.strip() != "local":
            report.problem(node, path, "expected a map of labels, or the word local")
        return {}, True
    if isinstance(node, Mapping):
        for label, value in node.entries.items():
            if isinstance(value, Scalar) and value.is_null:
                report.problem(value, f"{path}.{label[:80]}", "a label's value is text, a number or a boolean")
    return reading.text_map(report, node, path), False


def signal_name(report: Report, node: Node | None, path: str) -> str:
    """Read a signal name such as `SIGINT`; empty when not set."""
    name = reading.text(report, node, path)
    if node is not None and name not in SIGNALS:
        report.problem(node, path, f"expected a signal name: {', '.join(sorted(SIGNALS))}")
    return name


def file_dependencies(report: Report, node: Node | None, path: str) -> tuple[str, ...]:
    """Read `dependencies`: literal paths or globs, relative, with forward slashes (section 3.16)."""
    names = reading.texts(report, node, path)
    if node is not None and not names:
        report.problem(node, path, "dependencies must be text or a non-empty list")
    for name in names:
        assert node is not None
        if "$" in name or "`" in name:
            report.item_problem(node, name, path, "dependencies must be literal paths or globs, without references")
        elif not name.strip() or name.startswith(("/", "~", "\\")) or ".." in name.split("/"):
            report.item_problem(
                node, name, path, "dependencies must be relative paths below the workflow file's folder"
            )
    return names
