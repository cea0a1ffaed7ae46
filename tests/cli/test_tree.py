"""The summary tree, to the letter."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.cli.tree import TAIL_BYTES, Tail, read_tail, tree
from secure_dagu.run.model import RunStatus

AT = "2026-01-02T03:04:05Z"
NOW = datetime(2026, 1, 2, 4, 4, 10, tzinfo=UTC)


def node(name: str, status: int = 4, **more: Any) -> dict[str, Any]:
    commands = [{"command": line.split()[0], "cmdWithArgs": line} for line in more.pop("commands", ())]
    step = {"name": name, **({"commands": commands} if commands else {}), **more.pop("step", {})}
    times = {"startedAt": AT, "finishedAt": AT} if status else {"startedAt": "", "finishedAt": ""}
    return {"step": step, "stdout": "", "stderr": "", "status": status, **times, **more}


def document(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "etl", "dagRunId": "r1", "status": 4, "startedAt": AT, "finishedAt": AT, "log": "/logs/run.log",
        "nodes": list(nodes), "pendingStepRetries": None, **more,
    }  # fmt: skip


def shown(values: dict[str, Any], **streams: str | Tail) -> str:
    def read(path: str) -> Tail | None:
        found = streams.get(path)
        return Tail(tuple(found.split("\n"))) if isinstance(found, str) else found

    return "\n".join(tree(values, read=read, now=NOW)) + "\n"


def test_a_run_with_everything_looks_as_the_reference_says() -> None:
    first = node(
        "extract", 2, commands=["curl -s example.com", "wc -l"], stdout="out", stderr="err",
        children=[{"dagRunId": "c1", "params": "a=1"}, {"dagRunId": "c2"}],
        build={"decision": "execute", "reason": "input_changed"},
        error="exit status 3",
    )  # fmt: skip
    text = shown(document(first, node("load", 5), status=2, error="extract: exit status 3"), out="one\n  two", err="!")
    assert (
        text
        == """\
Failed - 2026-01-02T03:04:05Z

dag: etl (< 1s)
├─log: /logs/run.log
│
├─extract (< 1s) [failed]
│ ├─curl -s example.com
│ ├─wc -l
│ │
│ ├─stdout: out
│ │   one
│ │   two
│ │
│ ├─stderr: err
│ │   !
│ │
│ ├─subdag: c1 [a=1]
│ ├─subdag: c2
│ ├─build: execute (input_changed)
│ └─error: exit status 3
│\x20
└─load [skipped]

Result: Failed
"""
    )


def test_the_last_entry_of_a_step_ends_its_branch() -> None:
    values = document(node("a", commands=["echo hi"]), node("b", commands=["echo hi"], stdout="out"))
    assert (
        shown(values, out="hi")
        == """\
Succeeded - 2026-01-02T03:04:05Z

dag: etl (< 1s)
├─log: /logs/run.log
│
├─a (< 1s) [succeeded]
│ └─echo hi
│\x20
└─b (< 1s) [succeeded]
  ├─echo hi
  │
  └─stdout: out
      hi

Result: Succeeded
"""
    )


def test_a_run_that_goes_on_has_a_status_and_no_result_and_steps_that_wait_have_none() -> None:
    running = {**node("a", 1), "finishedAt": ""}
    values = document(running, node("b", 0), status=1, finishedAt="")
    assert (
        shown(values)
        == """\
Running - 2026-01-02T03:04:05Z

dag: etl (1h0m5s)
├─log: /logs/run.log
│
├─a (1h0m5s) [running]
│\x20
└─b

Status: Running
"""
    )


def test_a_dry_run_has_no_log_and_a_run_without_steps_no_branches() -> None:
    dry = document(node("a", commands=["echo ${params.x}"]), log="")
    assert shown(dry).splitlines()[2:6] == ["dag: etl (< 1s)", "└─a (< 1s) [succeeded]", "  └─echo ${params.x}", ""]
    assert shown(document()).splitlines()[2:] == ["dag: etl (< 1s)", "└─log: /logs/run.log", "", "Result: Succeeded"]


def test_handlers_come_after_the_steps_in_the_order_in_which_they_run() -> None:
    values = document(node("a"), onExit=node("onExit"), onInit=node("onInit"), onFailure=node("onFailure", 0))
    names = [line[2:].split()[0] for line in shown(values).splitlines() if line[:2] in ("├─", "└─")]
    assert names == ["log:", "a", "onInit", "onFailure", "onExit"]


@pytest.mark.parametrize("status", list(RunStatus))
def test_first_and_last_line_say_the_title(status: RunStatus) -> None:
    first, *_, last = shown(document(status=int(status))).splitlines()
    word = "Status" if status in (RunStatus.RUNNING, RunStatus.NOT_STARTED) else "Result"
    assert (first, last) == (f"{status.title} - {AT}", f"{word}: {status.title}")


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ({"startedAt": "2026-01-02T04:04:05+01:00"}, AT),
        ({"startedAt": "-", "queuedAt": AT}, AT),
        ({"startedAt": "", "createdAt": 1767323045000}, AT),
        ({"startedAt": "rubbish"}, "-"),
    ],
)
def test_the_first_line_says_when_in_utc(times: dict[str, Any], text: str) -> None:
    assert shown(document(**times)).splitlines()[0] == f"Succeeded - {text}"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("2026-01-02T03:04:05Z", "< 1s"),
        ("2026-01-02T03:04:50Z", "45s"),
        ("2026-01-02T03:06:35Z", "2m30s"),
        ("2026-01-02T05:04:06Z", "2h0m1s"),
    ],
)
def test_durations_are_whole_seconds(end: str, text: str) -> None:
    assert f"dag: etl ({text})" in shown(document(finishedAt=end))


def test_the_error_of_a_run_is_told_once() -> None:
    assert "error:" not in shown(document(error=""))
    assert "└─error: no such secret" in shown(document(error="no such secret"))
    failed = node("a", 2, error="exit status 3")
    assert shown(document(failed, error="a: exit status 3")).count("exit status 3") == 1


def test_output_is_wrapped_at_words_to_80_columns_and_loses_its_indent() -> None:
    long = "word " * 30
    text = shown(document(node("a", stdout="out"), node("b")), out=f"\t  {long}\n{'x' * 200} y")
    below = [line for line in text.splitlines() if line.startswith("│     ")]
    assert below[0] == "│     " + "word " * 14 + "word"
    assert len(below[0]) == 80
    assert below[2] == "│     " + "x" * 200
    assert below[3] == "│     y"


@pytest.mark.parametrize(
    ("line", "shows"),
    [
        ("/tmp/secure-dagu-_z81niru.sh: line 3: nope: command not found", "line 3: nope: command not found"),
        ("/var/tmp/secure-dagu-abcdefgh.sh: 12: nope: not found", "line 12: nope: not found"),
        ("/tmp/other-abcdefgh.sh: 12: nope: not found", "/tmp/other-abcdefgh.sh: 12: nope: not found"),
    ],
)
def test_the_place_of_a_script_that_is_gone_is_not_shown(line: str, shows: str) -> None:
    assert f"      {shows}\n" in shown(document(node("a", stderr="err")), err=line)


def test_hidden_lines_are_counted() -> None:
    values = document(node("a", stdout="out"))
    text = shown(values, out=Tail(("last",), 7))
    assert "  └─stdout: out\n      ... (7 more lines)\n      last\n" in text


def test_one_log_for_both_streams_is_shown_once() -> None:
    assert shown(document(node("a", stdout="log", stderr="log")), log="x").count(": log") == 1


def test_nothing_from_elsewhere_moves_the_cursor() -> None:
    bad = "\x1b[2J"
    values = document(
        node(f"a{bad}", commands=[f"echo {bad}"], stdout=f"out{bad}", error=f"e{bad}\nmore{bad}"),
        name=f"n{bad}", log=f"l{bad}",
    )  # fmt: skip
    text = shown(values, **{f"out{bad}": f"o{bad}"})
    assert "\x1b" not in text
    assert text.count("\\x1b[2J") == 8
    assert "  └─error: e\\x1b[2J\n      more\\x1b[2J\n" in text


def test_a_step_that_waits_says_what_for() -> None:
    task = node("ask", 7, step={"humanTask": {"prompt": "Ship it?", "form": {"type": "object"}}})
    text = shown(document(task, status=7))
    assert '  ├─prompt: Ship it?\n  └─form: {"type": "object"}\n' in text
    assert "prompt" not in shown(document({**task, "status": 4}))


def test_the_operation_of_an_action_stands_where_a_command_would() -> None:
    assert "  └─write\n" in shown(document(node("a", step={"commands": [{"command": "write"}]})))


def test_the_end_of_a_file_is_fifty_lines(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("".join(f"{number}\r\n" for number in range(120)))
    assert read_tail(str(path)) == Tail(tuple(str(number) for number in range(70, 120)), 70)
    path.write_text("a\n\nb")
    assert read_tail(str(path)) == Tail(("a", "", "b"), 0)


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\t\n"])
def test_an_empty_stream_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(data)
    assert read_tail(str(path)) is None
    assert read_tail(str(tmp_path / "missing")) is None
    assert read_tail("\0") is None


def test_a_huge_line_is_cut_and_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"first\n" + b"\xff" * (TAIL_BYTES + 10))
    tail = read_tail(str(path))
    assert tail is not None
    assert (len(tail.lines), tail.hidden) == (1, 1)
    assert tail.lines[0] == "\ufffd" * TAIL_BYTES
