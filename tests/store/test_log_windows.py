"""Lines of logs by window: what a plain reader of the whole file would show, without reading it whole."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.operating import Window
from secure_dagu.errors import NotFound
from secure_dagu.store.log_windows import BLOCK, MOST_BYTES, MOST_COUNTED, page

_WINDOWS = st.builds(
    Window, tail=st.integers(0, 6), head=st.integers(0, 6), offset=st.integers(0, 6), limit=st.integers(1, 6)
)


def plain(text: str, window: Window) -> str:
    """Return what a plain reader shows."""
    lines = text.splitlines(keepends=True)
    if window.head or window.offset:
        first = max(window.offset, 1) - 1
        return "".join(lines[first : first + (window.head or window.limit)])
    return "".join(lines[-(window.tail or 1000) :])


def check(path: Path, text: str, window: Window) -> None:
    found, wanted = page(path, window), plain(text, window)
    assert found.content == wanted
    assert found.line_count == len(wanted.splitlines())
    assert found.total_lines == len(text.splitlines())
    assert not found.is_estimate
    assert found.has_more == (wanted != text)
    if wanted:
        assert text.encode()[: found.end_offset].endswith(wanted.encode())


@given(text=st.text(alphabet="ab\n", max_size=60), window=_WINDOWS)
@settings(max_examples=150)
def test_a_window_shows_the_lines_that_a_plain_reader_would(
    tmp_path_factory: pytest.TempPathFactory, text: str, window: Window
) -> None:
    path = tmp_path_factory.mktemp("log") / "x.log"
    path.write_text(text)
    check(path, text, window)
    path.unlink()


def test_windows_across_blocks_are_exact(tmp_path: Path) -> None:
    chance = random.Random(7)
    text = "".join("x" * chance.randrange(200) + "\n" for _ in range(6 * BLOCK // 100)) + "no end"
    path, count = tmp_path / "x.log", len(text.splitlines())
    path.write_text(text)
    for _ in range(60):
        size = chance.randrange(1, 10_000)
        check(path, text, Window(tail=size))
        check(path, text, Window(head=size))
        check(path, text, Window(offset=chance.randrange(1, count + 5), limit=size))
    assert page(path, Window(tail=50_000)).line_count == 10_000


def test_the_end_of_a_gibibyte_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with path.open("wb") as file:
        file.write(b"line\n" * 1000)
        file.truncate(2**30)  # a hole: nothing is stored
        file.seek(2**30)
        file.write(b"\nlast but one\nlast\n")
    began = time.process_time()
    found = page(path, Window(tail=2))
    assert time.process_time() - began < 2
    assert found.content == "last but one\nlast\n"
    assert found.has_more
    assert found.is_estimate
    assert found.end_offset == path.stat().st_size > MOST_COUNTED
    whole = page(path, Window(tail=3))
    assert len(whole.content) <= MOST_BYTES


def test_invalid_bytes_are_replaced_and_what_is_no_plain_file_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"a\xff\xfeb\n")
    assert page(path, Window()).content == "a\ufffd\ufffdb\n"
    (tmp_path / "link.log").symlink_to(path)
    for name in ("link.log", "", "none.log"):
        with pytest.raises(NotFound):
            page(tmp_path / name, Window())
