"""What a run hides, as values: wherever a secret lies in the output and however that was cut."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.runner.masking import MASK, MIN_LINE_BYTES, Masker, forms

# Two letters make overlaps, prefixes of prefixes and secrets inside secrets likely.
secrets = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)
pieces = st.lists(st.text("abc", max_size=7).map(str.encode), max_size=12)


def fed(values: Sequence[str], data: Sequence[bytes]) -> bytes:
    masker = Masker(values)
    return b"".join(map(masker.feed, data)) + masker.finish()


def by_the_book(values: Sequence[str], data: bytes) -> bytes:
    """Do slowly what is promised: from left to right, the longest form at each place."""
    hidden = sorted({form for value in values for form in forms(value)}, key=len, reverse=True)
    return re.sub(b"|".join(map(re.escape, hidden)), MASK, data) if hidden else data


@given(values=secrets, data=pieces)
def test_masking_does_not_depend_on_where_the_output_was_cut(values: list[str], data: list[bytes]) -> None:
    whole = b"".join(data)
    assert fed(values, data) == fed(values, [whole]) == Masker(values).text(whole.decode()).encode()
    assert fed(values, data) == by_the_book(values, whole)


@given(values=secrets, data=pieces)
def test_no_secret_is_left_in_masked_output(values: list[str], data: list[bytes]) -> None:
    # Text on the two sides of a mask was never next to each other, so each side counts on its own.
    for part in fed(values, data).split(MASK):
        assert not any(value.encode() in part for value in values)


@given(values=secrets, data=pieces)
def test_output_without_a_secret_is_untouched(values: list[str], data: list[bytes]) -> None:
    upper = [piece.upper() for piece in data]
    assert fed(values, upper) == b"".join(upper)


@st.composite
def lines_and_output(draw: st.DrawFn) -> tuple[list[str], list[bytes]]:
    """Draw secrets of several lines of every length, and output made of their lines, parts of them and other things."""
    lines = draw(st.lists(st.text("abcd1 ", min_size=1, max_size=90), min_size=1, max_size=24))
    breaks = st.sampled_from(["\n", "\r\n", "\\n"])
    cut = draw(st.integers(0, len(lines)))
    values = [draw(breaks).join(part) for part in (lines[:cut], lines[cut:]) if part]
    line = st.sampled_from(lines)
    part = st.tuples(line, st.integers(0, 90), st.integers(0, 90)).map(lambda drawn: drawn[0][drawn[1] : drawn[2]])
    other = st.sampled_from(["\n", " ", "x", "> ", *values])
    whole = "".join(draw(st.lists(line | part | other, max_size=12))).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return values, [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@settings(deadline=None)
@given(drawn=lines_and_output())
def test_lines_of_secrets_are_found_as_promised_wherever_the_output_was_cut(
    drawn: tuple[list[str], list[bytes]],
) -> None:
    values, data = drawn
    assert fed(values, data) == by_the_book(values, b"".join(data))


@settings(deadline=None)
@given(drawn=lines_and_output())
def test_every_line_that_says_something_is_hidden_with_whatever_stands_around_it(
    drawn: tuple[list[str], list[bytes]],
) -> None:
    values, _ = drawn
    for value in values:
        for line in re.split(r"\r\n|\n|\\n", value):
            if len(line.strip()) >= MIN_LINE_BYTES and len(set(line) - {" "}) >= 4:
                shown = Masker(values).text(f">>{line}!")
                assert line.strip() not in shown
                assert shown.startswith(">>")
                assert shown.endswith("!")


@pytest.fixture(scope="module")
def key() -> str:
    made = rsa.generate_private_key(65537, 2048)
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_no_line_of_a_key_is_shown_and_its_armour_may_be(key: str) -> None:
    shown = fed([key], [f"{number} {line}\n".encode() for number, line in enumerate(key.splitlines()[1:-1])])
    assert shown == b"".join(b"%d %s\n" % (number, MASK) for number in range(len(key.splitlines()) - 2))
    assert Masker([key]).text("-----BEGIN PRIVATE KEY-----\n") == "-----BEGIN PRIVATE KEY-----\n"
    assert Masker([key]).text(key) == MASK.decode()


def test_a_key_inside_a_json_secret_is_hidden_when_a_program_takes_it_out(key: str) -> None:
    account = json.dumps({"type": "service_account", "private_key": key}, indent=2)
    for line in key.splitlines()[1:-1]:
        assert line not in Masker([account]).text(key)
    for shown in (account, json.dumps({"stdout": account})):
        assert all(line not in Masker([account]).text(shown) for line in key.splitlines()[1:-1])


@pytest.mark.parametrize("line", ["{", "}", "},", "--------", "[[[[[[[[[", "a: 1", "      ", "aaaaaaaaaaaa"])
def test_a_line_that_says_nothing_is_shown(line: str) -> None:
    masker = Masker([f"{line}\npassword: correct-horse\n{line}"])
    assert masker.text(f"see {line} here") == f"see {line} here"
    assert masker.text("password: correct-horse") == MASK.decode()


def test_a_short_secret_is_hidden_without_the_line_break_of_its_file() -> None:
    assert fed(["ab\n"], [b"<a", b"b>"]) == b"<" + MASK + b">"


@pytest.mark.parametrize("before", ["", "u", "us", "usr"])
def test_a_secret_is_hidden_in_base64(before: str) -> None:
    secret = "correct-horse?>battery"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        shown = fed([secret], [encode(f"{before}{secret}@host".encode())])
        assert MASK in shown
        left = sum(len(part) for part in shown.split(MASK))
        assert left <= len(base64.b64encode(f"{before}@host".encode())) + 4
    assert b"Y29ycmVjdC" not in fed([secret], [base64.b64encode(secret.encode())])


def test_a_long_secret_is_hidden_in_base64_that_is_wrapped(key: str) -> None:
    wrapped = base64.encodebytes(key.strip().encode())
    assert [line for line in fed([key], [wrapped]).splitlines() if line.strip(b"=") != MASK] == []


def test_a_secret_is_hidden_in_a_url() -> None:
    secret = "p@ss/word+1"
    assert Masker([secret]).text(f"https://h/?t={quote(secret, safe='')}&u") == "https://h/?t=*******&u"


def test_empty_secrets_are_not_masked() -> None:
    assert fed(["", ""], [b"abc"]) == b"abc"


@pytest.mark.parametrize("value", ['a"b\\c', "line\none", "grün", "raw-\udcff-byte", "lone-\ud800"])
def test_a_secret_is_masked_as_programs_write_it(value: str) -> None:
    written = value.encode(errors="surrogateescape") if "\ud800" not in value else b"lone-?"
    assert fed([value], [b"<", written, b">"]) == b"<" + MASK + b">"
    if value.isprintable():
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            assert Masker([value]).text(text) == f'"{MASK.decode()}"'


def test_streams_of_one_run_hold_back_each_their_own() -> None:
    first = Masker(["secret-word"])
    second = first.anew()
    assert first.feed(b"secret-") == b""
    assert second.feed(b"word\n") == b"word\n"
    assert second.finish() == b""
    assert first.feed(b"word\n") == MASK + b"\n"


def test_a_prompt_without_a_line_break_is_shown_at_once(key: str) -> None:
    assert Masker([key, "hunter2-hunter2"]).feed(b"Continue? ") == b"Continue? "


def test_a_large_secret_costs_next_to_nothing_a_piece() -> None:
    masker = Masker(["k" + "x" * 2**20])
    started = time.process_time()
    for _ in range(200):
        masker.feed(b"x" * 4096)
    assert time.process_time() - started < 1
