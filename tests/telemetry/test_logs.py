"""One event is one line, without secrets, whatever a peer puts into it."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from secure_dagu.telemetry import lines, logs

EVIL = 'x\n{"level":"audit"}\x1b[31m\u202e\u2028'


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(*, json_lines: bool, debug: bool = False) -> tuple[Any, io.StringIO]:
    out = io.StringIO()
    logs.configure(json_lines=json_lines, debug=debug, stream=out)
    return structlog.get_logger(), out


def test_an_event_is_one_json_line_with_its_fields() -> None:
    log, out = logged(json_lines=True)
    log.info("task.claimed", task="mydag/r1", waited_s=0.5, keys=("a", "b"), more={"n": 1})
    line = json.loads(out.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO", "msg": "task.claimed", "task": "mydag/r1", "waited-s": 0.5, "keys": ["a", "b"],
        "more": {"n": 1},
    }  # fmt: skip


def test_an_event_as_text_is_what_collectors_know_from_dagu() -> None:
    log, out = logged(json_lines=False)
    log.warning("link.refused", reason="cert_expired", why="it ended yesterday", run="r", worker="w", attempt="a", n=1)
    line = re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (.*)\n", out.getvalue())
    assert line is not None
    told = (
        'level=WARN msg=link.refused reason=cert_expired why="it ended yesterday" run-id=r worker-id=w attempt-id=a n=1'
    )
    assert line[1] == told


def test_a_person_at_a_terminal_sees_a_shorter_line_in_colour() -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        logs.configure(json_lines=False, stream=terminal)
        structlog.get_logger().warning("link.refused", timeout_s=3)
    text = os.read(ours, 1000).decode()
    os.close(ours)
    assert text[5:].partition(" ")[2] == "WARN  link.refused timeout-s=3\x1b[0m\r\n"
    assert text.startswith("\x1b[33m")


@pytest.mark.parametrize("value", ["", "two words", 'a"b', "a=b", "tab\t", "line\n", "\\", ["x"], {"k": 1}])
def test_what_is_no_plain_word_is_quoted_as_in_json(value: Any) -> None:
    text = lines.line({"key": value, "n": 1}).removeprefix("key=").removesuffix(" n=1")
    assert json.loads(text) == (value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("json_lines", [True, False])
def test_injected_lines_colours_and_direction_marks_stay_inside_their_field(json_lines: bool) -> None:
    """Threat T20."""
    log, out = logged(json_lines=json_lines)
    log.info("call.refused", worker=EVIL, **{"k\ney": EVIL})
    text = out.getvalue()
    assert text.count("\n") == 1
    assert not set(text[:-1]) & set("\x1b\u202e\u2028\r")
    if json_lines:
        assert json.loads(text)["level"] == "INFO"


def test_secrets_are_masked_by_name_and_by_shape() -> None:
    log, out = logged(json_lines=True)
    log.info(
        "x", password="canary", claim_token="canary", params="canary", nested={"api_token": "canary"},
        note="Authorization: Bearer canarycanary", pem="-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----",
        attempt_key="9cb1:abc",
    )  # fmt: skip
    assert "canary" not in out.getvalue()
    assert json.loads(out.getvalue())["attempt-key"] == "9cb1:abc"


def test_long_values_many_fields_and_deep_ones_are_cut() -> None:
    log, out = logged(json_lines=True)
    deep: Any = "end"
    for _ in range(50):
        deep = [deep]
    log.info("x", long="y" * 100_000, deep=deep, **{f"f{n}": n for n in range(1000)})
    assert len(out.getvalue()) < 10_000
    assert len(json.loads(out.getvalue())) <= logs.MAX_FIELDS + 3


@pytest.mark.parametrize("json_lines", [True, False])
def test_an_exception_is_logged_whole(json_lines: bool) -> None:
    log, out = logged(json_lines=json_lines)
    try:
        int("broken\x1b[31m")
    except ValueError:
        log.exception("call.failed")
    assert "Traceback" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "ValueError: invalid literal" in out.getvalue()


def test_debug_lines_appear_only_when_asked_for() -> None:
    log, out = logged(json_lines=True)
    log.debug("x")
    assert out.getvalue() == ""
    log, out = logged(json_lines=True, debug=True)
    log.debug("x")
    assert '"DEBUG"' in out.getvalue()


def test_what_libraries_say_has_the_same_shape() -> None:
    _, out = logged(json_lines=True)
    logging.getLogger("grpc").error("odd %s", "thing")
    logging.getLogger("grpc").info("chatter")
    line = json.loads(out.getvalue())
    assert (line["msg"], line["library"], line["message"]) == ("library.said", "grpc", "odd thing")


def test_logging_first_keeps_rich_out_of_the_process() -> None:
    code = (
        "from secure_dagu.telemetry import logs; import structlog, sys; logs.configure(json_lines=True);"
        "structlog.get_logger().info('x'); sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
