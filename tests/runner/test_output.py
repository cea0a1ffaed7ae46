"""Logs, captures and declared outputs, as values."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_dagu.dag.model import DeclaredOutput
from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.run.patterns import line_holds
from secure_dagu.runner.masking import Masker
from secure_dagu.runner.output import Capture, LogFile, read_output_file


def test_a_log_grows_and_tells_its_size(tmp_path: Path) -> None:
    told: list[int] = []
    for piece in (b"one\n", b"", b"two\n"):
        log = LogFile(tmp_path / "a.log", Masker(()), lambda _path, size: told.append(size))
        log.write(piece)
        log.close()
        log.close()
    assert (tmp_path / "a.log").read_bytes() == b"one\ntwo\n"
    assert told == [4, 8]
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600


def test_a_capture_past_its_limit_keeps_nothing_and_says_so() -> None:
    capture = Capture(4)
    capture.write(b"1234")
    assert capture.text() == "1234"
    capture.write(b"5")
    capture.write(b"6")
    with pytest.raises(LimitExceeded, match="max_output_size is 4 bytes"):
        capture.text()


A, J = DeclaredOutput(name="a", type="string"), DeclaredOutput(name="j", type="json")


@pytest.mark.parametrize(
    ("text", "declared", "values"),
    [
        ("a=1", (A,), {"a": "1"}),
        ("a=", (A,), {"a": ""}),
        ("a=x<<E\r\n", (A,), {"a": "x<<E"}),
        ("a<<E\none\n\nb=2\nE\n", (A,), {"a": "one\n\nb=2"}),
        ("a<<E\nE\nj=[1]\n", (A, J), {"a": "", "j": "[1]"}),
        ("a<<E\rone\rE\r", (A,), {"a": "one"}),
        ("", (), {}),
    ],
)
def test_the_output_file_says(text: str, declared: tuple[DeclaredOutput, ...], values: dict[str, str]) -> None:
    assert read_output_file(text, declared) == values


@pytest.mark.parametrize(
    ("text", "declared", "fragment"),
    [
        ("a=1\n\n", (A,), "malformed"),
        ("a\n", (A,), "malformed"),
        ("a<<1\n1\n", (A,), "malformed"),
        ("a<<E\none\n E\n", (A,), "not closed"),
        ("b=1\n", (A,), "undeclared step output 'b'"),
        ("b=1\n", (), "undeclared step output 'b'"),
        ("a=1\na=2\n", (A,), "twice"),
        ("", (A,), "not emitted"),
        ("j={\n", (J,), "not JSON"),
        ("j=" + "[" * 100_000, (J,), "not JSON"),
    ],
)
def test_the_output_file_is_refused(text: str, declared: tuple[DeclaredOutput, ...], fragment: str) -> None:
    with pytest.raises(DefinitionError, match=fragment):
        read_output_file(text, declared)


@pytest.mark.parametrize(
    ("patterns", "matches"),
    [(["warn"], True), (["re:^w.+ 7$"], True), (["re:^7"], False), (["x", "7"], True), ([], False)],
)
def test_a_line_is_looked_for(patterns: list[str], *, matches: bool) -> None:
    assert line_holds(patterns, "ok\nwarn: 7") is matches
