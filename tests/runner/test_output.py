"""Logs, captures and declared outputs, as values; masking above all."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag.model import DeclaredOutput
from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.run.patterns import line_holds
from secure_dagu.runner.output import MASK, Capture, LogFile, Masker, read_output_file

# Two letters make overlaps, prefixes of prefixes and secrets inside secrets likely.
secrets = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)
pieces = st.lists(st.text("abc", max_size=7).map(str.encode), max_size=12)


def fed(values: Sequence[str], data: Sequence[bytes]) -> bytes:
    masker = Masker(values)
    return b"".join(map(masker.feed, data)) + masker.finish()


@given(values=secrets, data=pieces)
def test_masking_does_not_depend_on_where_the_output_was_cut(values: list[str], data: list[bytes]) -> None:
    whole = b"".join(data)
    assert fed(values, data) == fed(values, [whole]) == Masker(values).text(whole.decode()).encode()


@given(values=secrets, data=pieces)
def test_no_secret_is_left_in_masked_output(values: list[str], data: list[bytes]) -> None:
    # Text on the two sides of a mask was never next to each other, so each side counts on its own.
    for part in fed(values, data).split(MASK):
        assert not any(value.encode() in part for value in values)


@given(values=secrets, data=pieces)
def test_output_without_a_secret_is_untouched(values: list[str], data: list[bytes]) -> None:
    upper = [piece.upper() for piece in data]
    assert fed(values, upper) == b"".join(upper)


def test_empty_secrets_are_not_masked() -> None:
    assert fed(["", ""], [b"abc"]) == b"abc"


@pytest.mark.parametrize("value", ['a"b\\c', "line\none", "grün", "raw-\udcff-byte", "lone-\ud800"])
def test_a_secret_is_masked_as_programs_write_it(value: str) -> None:
    written = value.encode(errors="surrogateescape") if "\ud800" not in value else b"lone-?"
    assert fed([value], [b"<", written, b">"]) == b"<" + MASK + b">"
    if value.isprintable():
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            assert Masker([value]).text(text) == f'"{MASK.decode()}"'


def test_a_large_secret_costs_next_to_nothing_a_piece() -> None:
    masker = Masker(["k" + "x" * 2**20])
    started = time.process_time()
    for _ in range(200):
        masker.feed(b"x" * 4096)
    assert time.process_time() - started < 1


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
